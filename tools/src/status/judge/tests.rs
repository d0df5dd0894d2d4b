use super::*;
use crate::status::render;
use crate::status::report::ProcessReport;
use bytes::Bytes;
use pb::DiskRole;
use pb::PublicState::{LastServing, Offline, Serving, Syncing};

const NOW_MS: u64 = 2_000_000_000_000;

/// Three nodes; chains with one target per node, in the given states.
fn facts(chains: &[[PublicState; 3]]) -> Facts {
    let disk = |node: u32| Bytes::copy_from_slice(&u128::from(node).to_be_bytes());
    let mut map = pb::ClusterMapMsg {
        version: 5,
        replicas: 3,
        ..Default::default()
    };
    map.cluster = Bytes::copy_from_slice(&7u128.to_be_bytes());
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let disks = vec![pb::DiskMsg {
            id: disk(id),
            path: format!("/d{id}"),
            capacity: 1000,
            ..Default::default()
        }];
        map.nodes.push(pb::NodeMsg {
            id,
            alive: true,
            disks,
            ..Default::default()
        });
        let space = pb::Space {
            capacity: 1000,
            used: 100,
            free: 900,
        };
        nodes.push(pb::NodeReport {
            node: id,
            registered: true,
            heartbeat_age_ms: 300,
            disks: vec![pb::DiskReport {
                disk: disk(id),
                space: Some(space),
                error: String::new(),
                care: None,
            }],
            targets: Vec::new(),
        });
    }
    for (index, states) in chains.iter().enumerate() {
        let chain = index as u32 + 1;
        let mut targets = Vec::new();
        for (node, state) in (1..).zip(states) {
            let id = u64::from(chain * 10 + node);
            targets.push(id);
            let state = *state as i32;
            map.targets.push(pb::TargetMsg {
                id,
                chain,
                node,
                disk: disk(node),
                state,
            });
            let said = pb::TargetReport {
                target: id,
                ..Default::default()
            };
            nodes[node as usize - 1].targets.push(said);
        }
        map.chains.push(pb::ChainMsg {
            id: chain,
            version: 4,
            targets,
        });
    }
    let report = pb::ReportReply {
        map: Some(map),
        nodes,
        expected_nodes: 3,
        ..Default::default()
    };
    Facts {
        address: "h:7400".to_owned(),
        report: Ok(report),
        summary: Ok(pb::SummaryReply {
            inodes: 12,
            ..Default::default()
        }),
        local: None,
        now_ms: NOW_MS,
    }
}

fn with_local(mut facts: Facts, down: &[&str]) -> Facts {
    let process = |name: &str| ProcessReport {
        name: name.to_owned(),
        pid: (!down.contains(&name)).then_some(42),
    };
    let names = ["meta-1", "storage-1", "storage-2", "storage-3"];
    let processes = names.into_iter().map(process).collect();
    facts.local = Some(LocalFacts {
        dir: "/c".to_owned(),
        processes,
    });
    facts
}

fn reply(facts: &mut Facts) -> &mut pb::ReportReply {
    facts.report.as_mut().expect("the manager answered")
}

fn codes(report: &StatusReport) -> Vec<&str> {
    report.problems.iter().map(|problem| problem.code).collect()
}

#[test]
fn a_whole_cluster_is_healthy() {
    let report = judge(&facts(&[[Serving; 3]; 4]));
    assert_eq!(report.status, Overall::Healthy, "{:?}", report.problems);
    assert_eq!((report.space.capacity, report.space.used), (3000, 300));
    let text = render::full(&report);
    assert!(
        text.starts_with("HEALTHY: 4 chains, each with 3 of 3 replicas serving\n"),
        "{text}"
    );
    assert!(
        text.contains("3/3 serving") && text.contains("12 inodes"),
        "{text}"
    );
}

#[test]
fn a_missing_replica_degrades_and_the_next_command_restarts_its_server() {
    let mut facts = with_local(
        facts(&[[Serving; 3], [Serving, Serving, Offline]]),
        &["storage-3"],
    );
    let map = reply(&mut facts).map.as_mut().expect("a map");
    map.nodes[2].alive = false;
    let report = judge(&facts);
    assert_eq!(report.status, Overall::Degraded);
    assert_eq!(codes(&report), ["node-dead", "chain-degraded"]);
    for problem in &report.problems {
        assert_eq!(problem.next, "emberfs start --dir /c storage-3");
    }
    let text = render::verdict(&report);
    assert!(text.starts_with("DEGRADED: node storage-3"), "{text}");
    assert_eq!(text.matches("next:").count(), 1, "{text}");
}

#[test]
fn a_process_that_just_died_is_seen_before_its_lease_ends() {
    let report = judge(&with_local(facts(&[[Serving; 3]]), &["storage-2"]));
    assert_eq!(
        (report.status, codes(&report)),
        (Overall::Degraded, vec!["node-dead"])
    );
}

#[test]
fn a_resync_is_degraded_and_shows_its_progress() {
    let mut facts = facts(&[[Serving, Serving, Syncing], [Serving, Serving, Syncing]]);
    // The one that is synced knows nothing; its predecessor in the chain leads the resync.
    let lead = &mut reply(&mut facts).nodes[1].targets;
    for (target, bytes) in lead.iter_mut().zip([1 << 20, 3 << 20]) {
        (target.sync_done, target.sync_total) = (2, 9);
        (target.sync_bytes, target.sync_bytes_total) = (bytes, 5 << 20);
        target.sync_bytes_per_second = 1 << 20;
        target.resync_sent_bytes = bytes;
    }
    let report = judge(&facts);
    assert_eq!(report.status, Overall::Degraded);
    let what = &report.problems[0].what;
    assert!(what.contains("4 of 18 chunks"), "{what}");
    let eta: Vec<_> = report
        .chains
        .iter()
        .map(|c| c.targets[2].sync_eta_seconds)
        .collect();
    assert_eq!(eta, [Some(4), Some(2)]);
    assert_eq!(report.resync.eta_seconds, Some(3));
    assert_eq!(report.nodes[1].resync_sent_bytes, 4 << 20);
    let text = render::full(&report);
    for line in [
        "resync   2 replicas: 4 of 18 chunks, 4.0 MiB of 10.0 MiB, 2.0 MiB/s, 3.0 s left",
        "\n  chain 1 on storage-3: 2 of 9 chunks, 1.0 MiB of 5.0 MiB, 1.0 MiB/s, 4.0 s left",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn a_resync_that_has_not_begun_says_so() {
    let report = judge(&facts(&[[Serving, Serving, Syncing]]));
    assert_eq!(report.resync.eta_seconds, None);
    assert!(render::full(&report).contains("waiting for its turn"));
}

#[test]
fn a_chain_that_serves_nowhere_breaks_the_cluster_and_comes_first() {
    let report = judge(&with_local(
        facts(&[[Serving, Serving, Offline], [LastServing, Offline, Offline]]),
        &["storage-1"],
    ));
    assert_eq!(report.status, Overall::Broken);
    assert_eq!(report.problems[0].code, "chain-down");
    assert_eq!(report.problems[0].next, "emberfs start --dir /c storage-1");
}

#[test]
fn a_cluster_without_chains_or_without_metadata_server_is_broken() {
    let report = judge(&facts(&[]));
    assert_eq!(
        (report.status, codes(&report)),
        (Overall::Broken, vec!["no-chains"])
    );

    let mut facts = with_local(facts(&[[Serving; 3]]), &["meta-1"]);
    facts.report = Err("cannot reach h:7400: refused".to_owned());
    facts.summary = Err("the same".to_owned());
    let report = judge(&facts);
    assert_eq!(
        (report.status, codes(&report)),
        (Overall::Broken, vec!["meta-unreachable"])
    );
    assert_eq!(report.problems[0].next, "emberfs up --dir /c");
    assert!(render::full(&report).starts_with("BROKEN: the metadata server is unreachable"));
}

#[test]
fn failed_and_full_disks_degrade() {
    let mut facts = facts(&[[Serving; 3]]);
    reply(&mut facts).nodes[0].disks[0].error = "read-only".to_owned();
    reply(&mut facts).nodes[1].disks[0].space = Some(pb::Space {
        capacity: 1000,
        used: 980,
        free: 20,
    });
    let report = judge(&facts);
    assert_eq!(
        (report.status, codes(&report)),
        (Overall::Degraded, vec!["disk-error", "disk-full"])
    );
}

#[test]
fn repaired_damage_is_mentioned_for_a_while_and_damage_that_stays_breaks_the_cluster() {
    let mut facts = facts(&[[Serving; 3]]);
    let care = |repaired, unrepairable, ago| pb::DiskCare {
        found: repaired + unrepairable,
        repaired,
        unrepairable,
        last_found_ms: NOW_MS - ago,
        ..Default::default()
    };
    reply(&mut facts).nodes[0].disks[0].care = Some(care(2, 0, 8 * 86_400_000));
    assert!(judge(&facts).problems.is_empty());
    reply(&mut facts).nodes[0].disks[0].care = Some(care(2, 0, 1000));
    let report = judge(&facts);
    assert_eq!(
        (report.status, codes(&report)),
        (Overall::Healthy, vec!["damage-repaired"])
    );
    let text = render::verdict(&report);
    assert!(
        text.starts_with("HEALTHY: disk /d1 of storage-1 had 2 damaged chunks repaired")
            && text.contains("next: emberfs scrub"),
        "{text}"
    );
    reply(&mut facts).nodes[1].disks[0].care = Some(care(0, 1, 1000));
    let report = judge(&facts);
    assert_eq!(
        (report.status, codes(&report)),
        (Overall::Broken, vec!["data-damaged", "damage-repaired"])
    );
    assert_eq!(report.problems[0].next, "emberfs fsck");
}

#[test]
fn the_json_shape_has_its_documented_fields() {
    let report = judge(&with_local(facts(&[[Serving, Serving, Syncing]]), &[]));
    let json = serde_json::to_value(&report).expect("JSON");
    assert_eq!(json["status"], "degraded");
    assert_eq!(json["problems"][0]["severity"], "degraded");
    assert_eq!(json["nodes"][0]["disks"][0]["free"], 900);
    assert_eq!(json["chains"][0]["targets"][2]["state"], "syncing");
    assert_eq!(json["processes"][0]["pid"], 42);
    let fields = json.as_object().expect("an object").keys();
    for field in fields {
        assert!(
            crate::status::JSON_HELP.contains(field.as_str()),
            "{field} is not in --help"
        );
    }
}

#[test]
fn a_node_that_is_turned_away_is_shown_with_the_reason() {
    let mut facts = facts(&[[Serving; 3]]);
    reply(&mut facts).refusals.push(pb::RefusalMsg {
        node: 2,
        error: "/d2 holds an older copy".to_owned(),
        age_ms: 5,
    });
    let report = judge(&facts);
    assert_eq!(codes(&report), ["node-refused"]);
    assert_eq!(report.status, Overall::Degraded);
    assert_eq!(
        report.problems[0].what,
        "storage-2 is refused: /d2 holds an older copy"
    );
}

#[test]
fn a_replica_that_moves_is_shown_with_its_progress_and_is_no_problem() {
    let mut facts = facts(&[[Serving, Serving, Serving]]);
    let reply = facts.report.as_mut().expect("a report");
    let map = reply.map.as_mut().expect("a map");
    let old = map.targets[0].clone();
    let new = pb::TargetMsg {
        id: 99,
        node: 3,
        state: Syncing as i32,
        ..old.clone()
    };
    map.targets.push(new);
    map.chains[0].targets.push(99);
    // Its predecessor leads the resync.
    let lead = &mut reply.nodes[2].targets[0];
    (lead.sync_done, lead.sync_total) = (2, 9);
    map.moves.push(pb::MoveMsg {
        chain: 1,
        target: 99,
        replaces: old.id,
        leaving: false,
    });
    let drained = pb::DiskRoleMsg {
        disk: old.disk.clone(),
        role: DiskRole::Draining as i32,
    };
    map.roles.push(drained);
    let report = judge(&facts);
    assert_eq!(report.status, Overall::Healthy, "{:?}", report.problems);
    let moving = &report.moves[0];
    assert_eq!(
        (moving.from_node, moving.to_node, moving.state),
        (1, 3, "syncing")
    );
    assert_eq!(
        (moving.sync_done, moving.sync_total),
        (2, 9),
        "what its predecessor says"
    );
    let roles: Vec<_> = report.nodes.iter().map(|node| node.disks[0].role).collect();
    assert_eq!(roles, ["draining", "active", "active"]);
    let shown = render::full(&report);
    assert!(
        shown.contains("syncing 2/9") && shown.contains("draining"),
        "{shown}"
    );
}
