//! From facts to a report: a pure function.

use std::collections::HashMap;
use std::fmt::Write;

use emberfs_proto::ids::{ClientId, ClusterId, DiskId};
use emberfs_proto::pb::{self, DiskRole, LocalState, PublicState};

use crate::cluster_dir::{META, storage_name};
use crate::show;

use super::gather::{Facts, LocalFacts};
use super::report::{
    ChainReport, ClientReport, DiskReport, MetaReport, MoveReport, NodeReport, Overall, Problem,
    ResyncReport, SpaceReport, StatusReport, TargetReport,
};

/// A disk with less than one in this many bytes left is reported.
const LOW_SPACE: u64 = 20;
/// Repaired damage is mentioned for this long, milliseconds: a week.
const RECENT_DAMAGE_MS: u64 = 7 * 86_400_000;
/// How many ids a sentence lists.
const LISTED: usize = 6;

pub(super) fn judge(facts: &Facts) -> StatusReport {
    let mut report = empty(facts);
    match &facts.report {
        Ok(reply) => fill(&mut report, reply),
        Err(reason) => report.problems.push(unreachable(facts, reason)),
    }
    if let Ok(summary) = &facts.summary {
        fill_meta(&mut report, summary);
    } else if facts.report.is_ok() {
        let reason = facts.summary.as_ref().err().cloned().unwrap_or_default();
        report.problems.push(Problem {
            code: "namespace-silent",
            severity: Overall::Broken,
            what: format!("the namespace does not answer: {reason}"),
            next: restart(facts.local.as_ref(), META),
        });
    }
    if let Ok(reply) = &facts.report {
        let problems = check(&report, reply, facts.local.as_ref(), facts.now_ms);
        report.problems.extend(problems);
    }
    report
        .problems
        .sort_by_key(|problem| std::cmp::Reverse(problem.severity));
    report.status = report
        .problems
        .first()
        .map_or(Overall::Healthy, |worst| worst.severity);
    report
}

fn empty(facts: &Facts) -> StatusReport {
    let processes = facts.local.as_ref().map(|local| local.processes.clone());
    StatusReport {
        status: Overall::Broken,
        problems: Vec::new(),
        cluster: None,
        address: facts.address.clone(),
        map_version: 0,
        replicas: 0,
        expected_nodes: 0,
        settling: false,
        space: SpaceReport::default(),
        meta: None,
        nodes: Vec::new(),
        chains: Vec::new(),
        moves: Vec::new(),
        resync: ResyncReport::default(),
        clients: Vec::new(),
        processes: processes.unwrap_or_default(),
    }
}

fn fill(report: &mut StatusReport, reply: &pb::ReportReply) {
    let map = reply.map.clone().unwrap_or_default();
    report.cluster = ClusterId::from_bytes(&map.cluster).map(|id| id.to_string());
    report.map_version = map.version;
    report.replicas = map.replicas;
    report.expected_nodes = reply.expected_nodes;
    report.settling = reply.settling;
    let live: HashMap<u32, &pb::NodeReport> = reply.nodes.iter().map(|n| (n.node, n)).collect();
    report.nodes = map
        .nodes
        .iter()
        .map(|node| node_report(&map, node, live.get(&node.id)))
        .collect();
    for disk in report.nodes.iter().flat_map(|node| &node.disks) {
        report.space.capacity += disk.space.capacity;
        report.space.used += disk.space.used;
        report.space.free += disk.space.free;
    }
    let targets: HashMap<u64, &pb::TargetMsg> = map.targets.iter().map(|t| (t.id, t)).collect();
    let reported = reply.nodes.iter().flat_map(|node| &node.targets);
    let reported: HashMap<u64, &pb::TargetReport> = reported.map(|t| (t.target, t)).collect();
    let chain = |chain: &pb::ChainMsg| {
        let known = chain.targets.iter().filter_map(|id| targets.get(id));
        let mut leader = None;
        let mut one = |t: &pb::TargetMsg| {
            let said = reported.get(&t.id).copied();
            // Who is synced hears only of chunks that come; its predecessor knows how many are left.
            let lead = leader.filter(|_| t.state() == PublicState::Syncing);
            if t.state() == PublicState::Serving {
                leader = said;
            }
            target_report(t, said, lead)
        };
        let targets: Vec<_> = known.map(|t| one(t)).collect();
        let serving = targets.iter().filter(|t| t.state == "serving").count();
        ChainReport {
            id: chain.id,
            version: chain.version,
            serving,
            targets,
        }
    };
    report.chains = map.chains.iter().map(chain).collect();
    report.moves = moves(report, &map, &targets);
    report.resync = resync(&report.chains);
}

/// How far each move is.
fn moves(
    report: &StatusReport,
    map: &pb::ClusterMapMsg,
    targets: &HashMap<u64, &pb::TargetMsg>,
) -> Vec<MoveReport> {
    let one = |moving: &pb::MoveMsg| {
        let (from, to) = (targets.get(&moving.replaces)?, targets.get(&moving.target)?);
        let chain = report
            .chains
            .iter()
            .find(|chain| chain.id == moving.chain)?;
        let new = chain.targets.iter().find(|t| t.id == moving.target)?;
        Some(MoveReport {
            chain: moving.chain,
            replaces: moving.replaces,
            from_node: from.node,
            from_disk: disk_id(&from.disk),
            target: moving.target,
            to_node: to.node,
            to_disk: disk_id(&to.disk),
            state: new.state,
            sync_done: new.sync_done,
            sync_total: new.sync_total,
        })
    };
    map.moves.iter().filter_map(one).collect()
}

fn role(map: &pb::ClusterMapMsg, disk: &[u8]) -> &'static str {
    let said = map.roles.iter().find(|role| role.disk == disk);
    match said.map_or(DiskRole::Unspecified, pb::DiskRoleMsg::role) {
        DiskRole::Draining => "draining",
        DiskRole::Retired => "retired",
        DiskRole::Active => "active",
        DiskRole::Unspecified if map.targets.iter().any(|t| t.disk == disk) => "active",
        DiskRole::Unspecified => "new",
    }
}

fn node_report(
    map: &pb::ClusterMapMsg,
    node: &pb::NodeMsg,
    live: Option<&&pb::NodeReport>,
) -> NodeReport {
    let disk = |disk: &pb::DiskMsg| {
        let said = live.and_then(|live| live.disks.iter().find(|d| d.disk == disk.id));
        let space = said.and_then(|said| said.space).map(|s| SpaceReport {
            capacity: s.capacity,
            used: s.used,
            free: s.free,
        });
        let care = said.and_then(|said| said.care).unwrap_or_default();
        DiskReport {
            id: disk_id(&disk.id),
            path: disk.path.clone(),
            space: space.unwrap_or(SpaceReport {
                capacity: disk.capacity,
                used: 0,
                free: 0,
            }),
            error: said.map(|said| said.error.clone()).unwrap_or_default(),
            repaired: care.repaired,
            unrepairable: care.unrepairable,
            last_damage_ms: care.last_found_ms,
            role: role(map, &disk.id),
        }
    };
    NodeReport {
        id: node.id,
        name: storage_name(node.id as usize),
        alive: node.alive,
        registered: live.is_some_and(|live| live.registered),
        heartbeat_age_ms: live.map_or(0, |live| live.heartbeat_age_ms),
        data_addr: node.data_addr.clone(),
        admin_addr: node.admin_addr.clone(),
        disks: node.disks.iter().map(disk).collect(),
        resync_sent_bytes: live
            .into_iter()
            .flat_map(|live| &live.targets)
            .map(|t| t.resync_sent_bytes)
            .sum(),
    }
}

/// Every syncing replica taken together.
fn resync(chains: &[ChainReport]) -> ResyncReport {
    let targets = chains.iter().flat_map(|chain| &chain.targets);
    let mut all = ResyncReport::default();
    for target in targets.filter(|target| target.state == "syncing") {
        all.add(&ResyncReport::of(target));
    }
    let left = all.bytes_total.saturating_sub(all.bytes);
    all.eta_seconds = eta(all.chunks_total, left, all.bytes_per_second);
    all
}

/// Seconds until `left` bytes have moved; `None`: nothing is known yet, or nothing moves.
fn eta(chunks_total: u64, left: u64, bytes_per_second: u64) -> Option<u64> {
    match (chunks_total, left, bytes_per_second) {
        (0, _, _) => None,
        (_, 0, _) => Some(0),
        (_, _, 0) => None,
        (_, left, rate) => Some(left.div_ceil(rate)),
    }
}

/// `lead`: what the predecessor of a syncing target says of the resync.
fn target_report(
    target: &pb::TargetMsg,
    said: Option<&pb::TargetReport>,
    lead: Option<&pb::TargetReport>,
) -> TargetReport {
    let time_left = |lead: &pb::TargetReport| {
        let left = lead.sync_bytes_total.saturating_sub(lead.sync_bytes);
        eta(lead.sync_total, left, lead.sync_bytes_per_second)
    };
    TargetReport {
        id: target.id,
        node: target.node,
        disk: disk_id(&target.disk),
        state: public_state(target.state()),
        local_state: match said.map(pb::TargetReport::state) {
            Some(LocalState::UpToDate) => "up_to_date",
            Some(LocalState::Online) => "online",
            _ => "offline",
        },
        sync_done: lead.map_or(0, |lead| lead.sync_done),
        sync_total: lead.map_or(0, |lead| lead.sync_total),
        sync_bytes: lead.map_or(0, |lead| lead.sync_bytes),
        sync_bytes_total: lead.map_or(0, |lead| lead.sync_bytes_total),
        sync_bytes_per_second: lead.map_or(0, |lead| lead.sync_bytes_per_second),
        sync_eta_seconds: lead.and_then(time_left),
    }
}

/// The manager's word on a target, as every verb says it.
pub(crate) fn public_state(state: PublicState) -> &'static str {
    match state {
        PublicState::Serving => "serving",
        PublicState::LastServing => "last_serving",
        PublicState::Syncing => "syncing",
        PublicState::Waiting => "waiting",
        PublicState::Offline | PublicState::Unspecified => "offline",
    }
}

fn disk_id(bytes: &[u8]) -> String {
    DiskId::from_bytes(bytes)
        .map(|id| id.to_string())
        .unwrap_or_default()
}

fn fill_meta(report: &mut StatusReport, summary: &pb::SummaryReply) {
    report.meta = Some(MetaReport {
        engine: summary.engine.clone(),
        inodes: summary.inodes,
        clients: summary.clients,
        sessions: summary.sessions,
        write_sessions: summary.write_sessions,
        garbage: summary.garbage,
        uptime_ms: summary.uptime_ms,
    });
    let client = |client: &pb::ClientInfo| ClientReport {
        id: ClientId::from_bytes(&client.client)
            .map(|id| id.to_string())
            .unwrap_or_default(),
        host: client.host.clone(),
        sessions: client.sessions,
        idle_ms: client.idle_ms,
    };
    report.clients = summary.client_list.iter().map(client).collect();
}

fn unreachable(facts: &Facts, reason: &str) -> Problem {
    let local = facts.local.as_ref();
    let down = local.is_some_and(|local| process_is_down(local, META));
    Problem {
        code: "meta-unreachable",
        severity: Overall::Broken,
        what: format!("the metadata server is unreachable: {reason}"),
        next: match local {
            Some(local) if down => format!("emberfs up --dir {}", local.dir),
            _ => restart(local, META),
        },
    }
}

fn process_is_down(local: &LocalFacts, name: &str) -> bool {
    local
        .processes
        .iter()
        .any(|process| process.name == name && process.pid.is_none())
}

/// What brings a server back: we know only about those of this host.
fn restart(local: Option<&LocalFacts>, name: &str) -> String {
    match local {
        Some(local) if process_is_down(local, name) => {
            format!("emberfs start --dir {} {name}", local.dir)
        }
        Some(local) => format!("tail {}/run/{name}.log", local.dir),
        None => format!("start {name} on its host, or look at its log there"),
    }
}

fn check(
    report: &StatusReport,
    reply: &pb::ReportReply,
    local: Option<&LocalFacts>,
    now: u64,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    nodes(report, local, &mut problems);
    refusals(reply, local, &mut problems);
    chains(report, local, &mut problems);
    disks(report, &mut problems);
    damage(report, now, &mut problems);
    if reply.settling && problems.iter().any(|p| p.severity == Overall::Broken) {
        problems.push(Problem {
            code: "settling",
            severity: Overall::Degraded,
            what: "the metadata server has just started and waits for storage servers".to_owned(),
            next: "emberfs status".to_owned(),
        });
    }
    problems
}

fn nodes(report: &StatusReport, local: Option<&LocalFacts>, problems: &mut Vec<Problem>) {
    for node in &report.nodes {
        let down = local.is_some_and(|local| process_is_down(local, &node.name));
        if node.alive && !down {
            continue;
        }
        let why = match (node.registered, down) {
            (_, true) => "its process is down".to_owned(),
            (true, _) => format!("silent for {}", show::duration_ms(node.heartbeat_age_ms)),
            (false, _) => "silent, and not registered any more".to_owned(),
        };
        problems.push(Problem {
            code: "node-dead",
            severity: Overall::Degraded,
            what: format!("node {} ({}) is dead: {why}", node.name, node.data_addr),
            next: restart(local, &node.name),
        });
    }
}

fn refusals(reply: &pb::ReportReply, local: Option<&LocalFacts>, problems: &mut Vec<Problem>) {
    for refusal in &reply.refusals {
        let name = storage_name(refusal.node as usize);
        problems.push(Problem {
            code: "node-refused",
            severity: Overall::Degraded,
            what: format!("{name} is refused: {}", refusal.error),
            next: match local {
                Some(local) => format!("tail {}/run/{name}.log", local.dir),
                None => format!("look at the log of {name} on its host"),
            },
        });
    }
}

fn chains(report: &StatusReport, local: Option<&LocalFacts>, problems: &mut Vec<Problem>) {
    if report.chains.is_empty() {
        let there = report.nodes.iter().filter(|node| node.alive).count();
        problems.push(Problem {
            code: "no-chains",
            severity: Overall::Broken,
            what: format!(
                "there are no chains: {there} of {} have registered",
                show::count(report.expected_nodes as usize, "expected node")
            ),
            next: match local {
                Some(local) => format!("emberfs up --dir {}", local.dir),
                None => "start the missing storage servers".to_owned(),
            },
        });
        return;
    }
    let culprits = |chains: &[&ChainReport]| {
        let targets = chains.iter().flat_map(|chain| &chain.targets);
        let lost = targets.filter(|t| matches!(t.state, "offline" | "last_serving" | "waiting"));
        let node = lost.map(|target| target.node).min();
        node.map(|node| restart(local, &storage_name(node as usize)))
    };
    let dead: Vec<_> = report
        .chains
        .iter()
        .filter(|chain| chain.serving == 0)
        .collect();
    if !dead.is_empty() {
        problems.push(Problem {
            code: "chain-down",
            severity: Overall::Broken,
            what: format!("no replica serves {}", ids(&dead)),
            next: culprits(&dead).unwrap_or_else(|| "emberfs status".to_owned()),
        });
    }
    let asked = report.replicas as usize;
    let short = |chain: &&ChainReport| chain.serving > 0 && chain.serving < asked;
    let short: Vec<_> = report.chains.iter().filter(short).collect();
    if !short.is_empty() {
        let syncing = short.iter().flat_map(|chain| &chain.targets);
        let syncing: Vec<_> = syncing.filter(|target| target.state == "syncing").collect();
        let mut what = format!("fewer than {asked} replicas serve {}", ids(&short));
        if !syncing.is_empty() {
            let shown = show::count(syncing.len(), "replica");
            let ResyncReport {
                chunks,
                chunks_total,
                ..
            } = report.resync;
            // Writing into a String cannot fail.
            let _ = write!(
                what,
                "; {shown} being brought up to date: {chunks} of {chunks_total} chunks"
            );
        }
        problems.push(Problem {
            code: "chain-degraded",
            severity: Overall::Degraded,
            what,
            next: culprits(&short).unwrap_or_else(|| "emberfs status".to_owned()),
        });
    }
}

fn disks(report: &StatusReport, problems: &mut Vec<Problem>) {
    for node in &report.nodes {
        for disk in &node.disks {
            let place = format!("disk {} of {}", disk.path, node.name);
            if !disk.error.is_empty() {
                problems.push(Problem {
                    code: "disk-error",
                    severity: Overall::Degraded,
                    what: format!("{place} has failed: {}", disk.error),
                    next: "dmesg".to_owned(),
                });
            } else if node.alive && disk.space.free < disk.space.capacity / LOW_SPACE {
                problems.push(Problem {
                    code: "disk-full",
                    severity: Overall::Degraded,
                    what: format!(
                        "{place} is nearly full: {} left",
                        show::bytes(disk.space.free)
                    ),
                    next: "delete files, or add storage servers".to_owned(),
                });
            }
        }
    }
}

/// Damage that no replica can repair is lost data; repaired damage says something about a disk.
fn damage(report: &StatusReport, now: u64, problems: &mut Vec<Problem>) {
    let disks = report.nodes.iter().flat_map(|node| &node.disks);
    let lost: u64 = disks.map(|disk| disk.unrepairable).sum();
    if lost > 0 {
        problems.push(Problem {
            code: "data-damaged",
            severity: Overall::Broken,
            what: format!(
                "{} no replica has the right bytes for; reading them fails",
                show::count(lost as usize, "chunk copy").replace("copys", "copies")
            ),
            next: "emberfs fsck".to_owned(),
        });
    }
    for node in &report.nodes {
        for disk in &node.disks {
            let recent = now.saturating_sub(disk.last_damage_ms) < RECENT_DAMAGE_MS;
            if disk.repaired > 0 && recent {
                problems.push(Problem {
                    code: "damage-repaired",
                    // All data is whole again.
                    severity: Overall::Healthy,
                    what: format!(
                        "disk {} of {} had {} repaired from other replicas; if it goes on, replace the disk",
                        disk.path,
                        node.name,
                        show::count(disk.repaired as usize, "damaged chunk")
                    ),
                    next: "emberfs scrub".to_owned(),
                });
            }
        }
    }
}

fn ids(chains: &[&ChainReport]) -> String {
    let listed: Vec<_> = chains
        .iter()
        .take(LISTED)
        .map(|chain| chain.id.to_string())
        .collect();
    let more = if chains.len() > LISTED { ", …" } else { "" };
    format!(
        "{} ({}{more})",
        show::count(chains.len(), "chain"),
        listed.join(", ")
    )
}

#[cfg(test)]
mod tests;
