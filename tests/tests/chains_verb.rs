//! `emberfs chains` on a running cluster: what is listed and measured is what is there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use emberfs_tests::{ClusterOptions, TestCluster};

#[test]
fn chains_are_listed_and_measured_as_they_are() -> Result<()> {
    let cluster = TestCluster::with(ClusterOptions {
        mount: false,
        settings: vec!["storage.durability=process".to_owned()],
        ..ClusterOptions::new(4, 3)
    })?;
    let list = cluster
        .emberfs("chains", &["--json"])?
        .expect_code(0)?
        .json()?;
    let chains = list["chains"].as_array().context("no chains")?;
    // 21 targets on each of four disks, three to a chain.
    ensure!(chains.len() == 28, "{list}");
    for chain in chains {
        let targets = chain["targets"].as_array().context("no targets")?;
        let mut nodes: Vec<_> = targets.iter().filter_map(|t| t["node"].as_u64()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        ensure!(nodes.len() == 3 && chain["serving"] == 3, "{chain}");
    }
    let plan = cluster
        .emberfs("chains", &["plan", "--json"])?
        .expect_code(0)?
        .json()?;
    ensure!(plan["not_serving"] == 0 && plan["chains"] == 28, "{plan}");
    for load in ["reads", "resync"] {
        ensure!(
            plan[load]["ratio"] == 1.0 && plan[load]["ideal"] == 1.0,
            "{load}: {plan}"
        );
    }

    cluster.stop_process("storage-2")?;
    cluster.wait_status(1, Duration::from_secs(10))?;
    let shown = cluster.emberfs("chains", &[])?.expect_code(0)?.stdout;
    ensure!(shown.lines().count() == 29, "{shown}");
    let down = shown.matches("storage-2:").count();
    ensure!(
        down == 21 && shown.matches("offline").count() == 21,
        "{shown}"
    );
    let shown = cluster.emberfs("chains", &["plan"])?.expect_code(0)?.stdout;
    ensure!(shown.contains("21 targets not serving now"), "{shown}");
    Ok(())
}
