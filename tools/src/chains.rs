//! `emberfs chains`: the chains of the running cluster, and how evenly chains spread a node's death.
//!
//! `chains` lists them (`list.rs`). `chains plan` measures a placement (`plan.rs`): the running
//! cluster's, or one that is planned on the spot for nodes that need not exist. `chains plan --restore`
//! estimates how long redundancy takes to come back, by number of nodes (`restore.rs`).

mod list;
mod plan;
mod restore;

use emberfs_proto::cluster::ClusterMap;
use serde::Serialize;

use crate::cli::{ChainsArgs, ChainsCommand, DirArg};
use crate::failure::{Context, Exit, Failure, Result};
use crate::output::say;
use crate::progress::Progress;
use crate::rpc::{self, Seat};

use list::ChainList;
use plan::PlanReport;
use restore::RestoreReport;

/// The shape of `chains --json`, for `--help`.
pub(crate) const JSON_HELP: &str = "\
JSON (fields are only ever added):
  cluster, address, map_version, replicas
  chains       [{id, version, serving, targets: [{id, node, disk, path, state}]}], targets head first;
               states: serving, last_serving, syncing, waiting, offline";

/// The shape of `chains plan --json`, for `--help`.
pub(crate) const PLAN_HELP: &str = "\
When one node dies, the reads of its chains fall evenly on the replicas that are left, and each chain is
resynced from the last of those. Loads are numbers of chains; \"ideal\" is the least that whole numbers allow
with so many chains. More targets on each disk bring it closer to 1.

JSON (fields are only ever added):
  nodes, disks, chains
  targets_per_disk, heads_per_disk, pairs
               {min, mean, max}; pairs: chains that two nodes share, whose mean is the ideal
  reads, resync, disk_reads
               {mean, busiest, ratio, ideal} of the death that spreads worst; ratio: busiest / mean
  deaths       [{node, reads, resync, disk_reads}]
  not_serving  targets of the running cluster that do not serve now, measured as if they did; null for a plan
  steps        of the search; null for a running cluster

JSON with --restore:
  disks, replicas, nic_gbit, disk_size, disk_read, disk_write, fill_percent, share_percent
  sizes        [{nodes, chains, lost_bytes, spread_seconds, spread_limit, return_seconds, return_limit}]; spread:
               onto all other nodes, null where they have no room or each has a copy already; return: into the
               node that comes back or replaces it, from the moment it is there; limit: network or disk";

/// `emberfs chains`.
pub(crate) async fn chains(cluster: Option<String>, args: ChainsArgs) -> Result<Exit> {
    let (dir, json) = (DirArg { dir: args.dir }, args.json);
    match args.command {
        None => {
            let (address, map) = running(cluster, &dir).await?;
            show(&ChainList::of(address, &map), json, ChainList::render)
        }
        Some(ChainsCommand::Plan(plan)) => match plan.nodes {
            None => {
                let (_, map) = running(cluster, &dir).await?;
                show(&PlanReport::of_map(&map), json, PlanReport::render)
            }
            Some(nodes) if plan.restore => {
                let report = computed("Planning clusters", move || {
                    RestoreReport::study(nodes, &plan)
                })
                .await?;
                show(&report, json, RestoreReport::render)
            }
            Some(nodes) => {
                let report = computed("Planning", move || PlanReport::plan(nodes, &plan)).await?;
                show(&report, json, PlanReport::render)
            }
        },
    }
}

/// The map of the running cluster and who gave it.
async fn running(cluster: Option<String>, dir: &DirArg) -> Result<(String, ClusterMap)> {
    let address = Seat::find(cluster, dir)?.address;
    let map = rpc::map(&address).await.map_err(Failure::broken)?;
    Ok((address, ClusterMap::try_from(&map)?))
}

/// Runs what takes a processor for a while.
async fn computed<T: Send + 'static>(
    step: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let progress = Progress::start(step);
    let done = tokio::task::spawn_blocking(work).await;
    drop(progress);
    done.context("the calculation failed")?
}

fn show<T: Serialize>(report: &T, json: bool, text: impl Fn(&T) -> String) -> Result<Exit> {
    if json {
        say(serde_json::to_string_pretty(report).context("cannot write JSON")?)?;
    } else {
        say(text(report))?;
    }
    Ok(Exit::Success)
}
