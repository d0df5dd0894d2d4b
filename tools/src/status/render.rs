//! The report for people.

use std::fmt::Write;

use crate::cluster_dir::storage_name;
use crate::show;

use super::report::{ChainReport, Overall, ResyncReport, StatusReport};

/// With more chains than this only those that are not whole are listed.
const MAX_CHAINS: usize = 32;

/// The verdict, each problem, and what to type.
pub(super) fn verdict(report: &StatusReport) -> String {
    let mut out = match report.status {
        Overall::Healthy => "HEALTHY".to_owned(),
        Overall::Degraded => "DEGRADED".to_owned(),
        Overall::Broken => "BROKEN".to_owned(),
    };
    let first = report.problems.first();
    let reason = first.map_or_else(|| summary(report), |problem| problem.what.clone());
    let _ = write!(out, ": {reason}");
    for problem in report.problems.iter().skip(1) {
        let _ = write!(out, "\n  also: {}", problem.what);
    }
    let mut shown: Vec<&str> = Vec::new();
    for problem in &report.problems {
        if !shown.contains(&problem.next.as_str()) {
            let _ = write!(out, "\n  next: {}", problem.next);
            shown.push(&problem.next);
        }
    }
    out
}

/// The verdict and all the rest.
pub(super) fn full(report: &StatusReport) -> String {
    let mut parts = vec![verdict(report)];
    if report.cluster.is_some() {
        parts.push(head(report));
    }
    if !report.nodes.is_empty() {
        parts.push(nodes(report));
    }
    if !report.chains.is_empty() {
        parts.push(chains(report));
    }
    if !report.moves.is_empty() {
        parts.push(moves(report));
    }
    if report.resync.targets > 0 {
        parts.push(resync(report));
    }
    if !report.clients.is_empty() {
        parts.push(clients(report));
    }
    if !report.processes.is_empty() {
        parts.push(processes(report));
    }
    parts.join("\n\n")
}

fn summary(report: &StatusReport) -> String {
    format!(
        "{}, each with {} of {} replicas serving",
        show::count(report.chains.len(), "chain"),
        report.replicas,
        report.replicas
    )
}

fn head(report: &StatusReport) -> String {
    let cluster = report.cluster.as_deref().unwrap_or("unknown");
    let mut out = format!(
        "cluster  {cluster} at {}, map {}",
        report.address, report.map_version
    );
    let space = report.space;
    let replicas = u64::from(report.replicas.max(1));
    let _ = write!(
        out,
        "\nspace    {} used of {} ({}); room for about {} more in {}",
        show::bytes(space.used),
        show::bytes(space.capacity),
        show::percent(space.used, space.capacity),
        show::bytes(space.free / replicas),
        show::count(report.replicas as usize, "copy").replace("copys", "copies"),
    );
    if let Some(meta) = &report.meta {
        let _ = write!(
            out,
            "\nmeta     {} inodes, {}, {} open files ({} for writing), {} deleted files to clean up; up {}",
            meta.inodes,
            show::count(meta.clients as usize, "client"),
            meta.sessions,
            meta.write_sessions,
            meta.garbage,
            show::duration_ms(meta.uptime_ms),
        );
    }
    out
}

fn nodes(report: &StatusReport) -> String {
    let mut rows = Vec::new();
    for node in &report.nodes {
        let targets = report.chains.iter().flat_map(|chain| &chain.targets);
        let targets: Vec<_> = targets.filter(|target| target.node == node.id).collect();
        for (index, disk) in node.disks.iter().enumerate() {
            let mine: Vec<_> = targets
                .iter()
                .filter(|target| target.disk == disk.id)
                .collect();
            let serving = mine
                .iter()
                .filter(|target| target.state == "serving")
                .count();
            let first = index == 0;
            let only = |text: String| if first { text } else { String::new() };
            rows.push(vec![
                only(node.name.clone()),
                only(if node.alive { "alive" } else { "dead" }.to_owned()),
                only(node.data_addr.clone()),
                only(if node.registered {
                    show::duration_ms(node.heartbeat_age_ms)
                } else {
                    "-".to_owned()
                }),
                disk.path.clone(),
                show::bytes(disk.space.used),
                show::bytes(disk.space.capacity),
                format!("{serving}/{}", mine.len()),
                match (disk.error.as_str(), disk.role) {
                    ("", "active") => "ok".to_owned(),
                    ("", role) => role.to_owned(),
                    (error, _) => error.to_owned(),
                },
            ]);
        }
    }
    let header = [
        "node",
        "state",
        "address",
        "heard",
        "disk",
        "used",
        "capacity",
        "serving",
        "disk state",
    ];
    show::table(&header, rows)
}

fn chains(report: &StatusReport) -> String {
    let asked = report.replicas as usize;
    let whole = report
        .chains
        .iter()
        .filter(|chain| chain.serving >= asked)
        .count();
    let all = report.chains.len();
    let listed = |chain: &&ChainReport| all <= MAX_CHAINS || chain.serving < asked;
    let rows = report.chains.iter().filter(listed).map(|chain| {
        let target = |target: &super::report::TargetReport| {
            let mut text = format!("{}:{}", storage_name(target.node as usize), target.state);
            if target.state == "syncing" {
                let _ = write!(text, " {}/{}", target.sync_done, target.sync_total);
            }
            text
        };
        let targets: Vec<_> = chain.targets.iter().map(target).collect();
        vec![
            chain.id.to_string(),
            format!("v{}", chain.version),
            format!("{}/{asked} serving", chain.serving),
            targets.join("  "),
        ]
    });
    let rows: Vec<_> = rows.collect();
    let mut out = format!("{whole} of {} whole", show::count(all, "chain"));
    if !rows.is_empty() {
        let _ = write!(
            out,
            "\n{}",
            show::table(&["chain", "version", "health", "replicas"], rows)
        );
    }
    out
}

fn moves(report: &StatusReport) -> String {
    let place = |node: u32, disk: &str| {
        let disk = disk.get(..8).unwrap_or(disk);
        format!("{} disk/{disk}", storage_name(node as usize))
    };
    let rows = report.moves.iter().map(|moving| {
        vec![
            moving.chain.to_string(),
            place(moving.from_node, &moving.from_disk),
            place(moving.to_node, &moving.to_disk),
            match moving.sync_total {
                0 => moving.state.to_owned(),
                total => format!("{} {}/{total}", moving.state, moving.sync_done),
            },
        ]
    });
    show::table(&["moving chain", "from", "to", "new replica"], rows)
}

/// All that is being brought up to date, then one line for each.
fn resync(report: &StatusReport) -> String {
    let all = &report.resync;
    let shown = show::count(all.targets, "replica");
    let mut out = format!("resync   {shown}: {}", progress(all));
    for chain in &report.chains {
        for target in chain.targets.iter().filter(|t| t.state == "syncing") {
            let node = storage_name(target.node as usize);
            let progress = progress(&ResyncReport::of(target));
            let _ = write!(out, "\n  chain {} on {node}: {progress}", chain.id);
        }
    }
    out
}

fn progress(of: &ResyncReport) -> String {
    let left = match of.eta_seconds {
        Some(seconds) => format!("{} left", show::duration_ms(seconds * 1000)),
        None if of.chunks_total == 0 => "comparing, or waiting for its turn".to_owned(),
        None => "time left unknown".to_owned(),
    };
    format!(
        "{} of {} chunks, {} of {}, {}/s, {left}",
        of.chunks,
        of.chunks_total,
        show::bytes(of.bytes),
        show::bytes(of.bytes_total),
        show::bytes(of.bytes_per_second)
    )
}

fn clients(report: &StatusReport) -> String {
    let rows = report.clients.iter().map(|client| {
        vec![
            client.host.clone(),
            client.sessions.to_string(),
            show::duration_ms(client.idle_ms),
        ]
    });
    show::table(&["client", "open files", "idle"], rows)
}

fn processes(report: &StatusReport) -> String {
    let rows = report.processes.iter().map(|process| {
        let pid = process
            .pid
            .map_or_else(|| "down".to_owned(), |pid| pid.to_string());
        vec![process.name.clone(), pid]
    });
    show::table(&["process", "pid"], rows)
}
