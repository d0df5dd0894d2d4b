//! What an application sees of dying, silent, stopping and returning servers is a short pause and no error.
//! How short it is `docs/benchmarks.md` records; here nobody may have waited for a lease to run out.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use emberfs_tests::{ClusterOptions, TestCluster, pattern};
use rustix::process::{Signal, kill_process};
use serde_json::Value;

/// A lease that no operation may wait for.
const LONG_LEASE: &str = "meta.lease_ms=20000";
/// Far below that lease, and far above what a death or a clean stop costs.
const NO_LEASE_MS: f64 = 4000.0;
/// How long a cluster may take to be whole again.
const HEAL: Duration = Duration::from_mins(1);

/// Three servers with a single chain: one is its head, one its middle, one its tail.
fn one_chain(settings: &[&str]) -> Result<TestCluster> {
    let mut all = vec!["meta.targets_per_disk=1".to_owned()];
    all.extend(settings.iter().map(|&setting| setting.to_owned()));
    TestCluster::with(ClusterOptions {
        settings: all,
        mount: false,
        ..ClusterOptions::new(3, 3)
    })
}

/// Runs `emberfs bench pause`, which fails when a read or a write does, and answers its faults.
fn pause(cluster: &TestCluster, arguments: &[&str]) -> Result<Vec<Value>> {
    let mut all = vec!["--json", "pause", "--size", "32M", "--seconds", "1"];
    all.extend(arguments);
    let report = cluster.emberfs("bench", &all)?.expect_code(0)?.json()?;
    let faults = report["pause"]["faults"].as_array().context("no faults")?;
    for fault in faults {
        println!("{fault}");
    }
    Ok(faults.clone())
}

fn longest(fault: &Value) -> f64 {
    let of = |kind: &str| fault["longest"][kind].as_f64().unwrap_or(f64::MAX);
    of("read_ms").max(of("write_ms"))
}

fn what(fault: &Value) -> &str {
    fault["what"].as_str().unwrap_or_default()
}

#[test]
fn a_killed_head_middle_or_tail_costs_no_lease() -> Result<()> {
    let cluster = one_chain(&[LONG_LEASE])?;
    let faults = pause(&cluster, &["--kill", "head,middle,tail"])?;
    ensure!(faults.len() == 6, "{faults:?}");
    for fault in &faults {
        ensure!(longest(fault) <= NO_LEASE_MS, "{fault}");
    }
    for role in ["(head)", "(middle)", "(tail)"] {
        ensure!(
            faults.iter().any(|f| what(f).ends_with(role)),
            "{role}: {faults:?}"
        );
    }
    cluster.fsck()?.expect_code(0)?;
    Ok(())
}

#[test]
fn a_rolling_restart_of_all_storage_servers_costs_no_lease() -> Result<()> {
    let cluster = one_chain(&[LONG_LEASE])?;
    let faults = pause(&cluster, &["--rolling", "--down", "0"])?;
    ensure!(faults.len() == 6, "{faults:?}");
    for fault in &faults {
        ensure!(longest(fault) <= NO_LEASE_MS, "{fault}");
    }
    cluster.fsck()?.expect_code(0)?;
    Ok(())
}

#[test]
fn a_silent_server_costs_its_lease_and_little_more() -> Result<()> {
    let lease_ms = 2000.0;
    let cluster = one_chain(&["meta.lease_ms=2000", "meta.heartbeat_ms=400"])?;
    let faults = pause(&cluster, &["--freeze", "head,tail"])?;
    ensure!(faults.len() == 4, "{faults:?}");
    for fault in &faults {
        let bound = if what(fault).starts_with("silence") {
            lease_ms + 2000.0
        } else {
            NO_LEASE_MS
        };
        ensure!(longest(fault) <= bound, "{fault}");
    }
    cluster.fsck()?.expect_code(0)?;
    Ok(())
}

#[test]
fn a_chain_that_lost_all_its_replicas_at_once_comes_back_whole_in_any_order() -> Result<()> {
    let cluster = TestCluster::with(ClusterOptions {
        settings: vec!["meta.targets_per_disk=1".to_owned()],
        ..ClusterOptions::new(3, 3)
    })?;
    let mut files = Vec::new();
    for (round, order) in [[1, 2, 3], [3, 1, 2], [2, 3, 1]].into_iter().enumerate() {
        let path = cluster.mount().join(format!("file-{round}"));
        let content = pattern(5 << 20, round as u64);
        fs::write(&path, &content)?;
        fs::File::open(&path)?.sync_all()?;
        files.push((path, content));
        // All at once: what the manager hears of the first must not take long enough to matter.
        for signal in [Signal::STOP, Signal::KILL] {
            for node in 1..=3 {
                kill_process(cluster.pid(&format!("storage-{node}"))?, signal)?;
            }
        }
        cluster.wait_status(2, HEAL)?;
        for node in order {
            cluster.start_process(&format!("storage-{node}"))?;
        }
        cluster.wait_status(0, HEAL)?;
        for (path, content) in &files {
            ensure!(&fs::read(path)? == content, "{} is wrong", path.display());
        }
    }
    cluster.fsck()?.expect_code(0)?;
    Ok(())
}
