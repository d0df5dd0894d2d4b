//! `emberfs status` and `emberfs health`: is the cluster well, and if not, what to type next.
//!
//! Facts are gathered with short time limits (`gather.rs`), turned into a report with a stable shape
//! (`report.rs`), judged by a pure function (`judge.rs`) and shown (`render.rs`). Nothing here touches
//! the mount.

mod gather;
mod judge;
mod locks;
mod render;
mod report;

use crate::cli::{FullStatusArgs, StatusArgs};
use crate::failure::{Context, Exit, Result};
use crate::output::say;
use crate::rpc::Seat;

pub(crate) use judge::public_state;

use report::{Overall, StatusReport};

/// The shape of `--json`, for `--help`.
pub(crate) const JSON_HELP: &str = "\
JSON (fields are only ever added):
  status       \"healthy\", \"degraded\" or \"broken\", as the exit code 0, 1, 2
  problems     [{code, severity, what, next}], worst first; `next` is a command to type
  cluster, address, map_version, replicas, expected_nodes, settling
  space        {capacity, used, free} in bytes, all replicas counted
  meta         {engine, inodes, clients, sessions, write_sessions, garbage, uptime_ms}
  nodes        [{id, name, alive, registered, heartbeat_age_ms, data_addr, admin_addr, disks: [{id, path,
               capacity, used, free, error, repaired, unrepairable, last_damage_ms, role}], resync_sent_bytes}];
               role is active, new, draining or retired
  chains       [{id, version, serving, targets: [{id, node, disk, state, local_state, sync_done, sync_total,
               sync_bytes, sync_bytes_total, sync_bytes_per_second, sync_eta_seconds}]}]
  moves        [{chain, replaces, from_node, from_disk, target, to_node, to_disk, state, sync_done, sync_total}]:
               replicas on their way to another disk
  resync       {targets, chunks, chunks_total, bytes, bytes_total, bytes_per_second, eta_seconds}: every replica
               that is being brought up to date, taken together
  clients      [{id, host, sessions, idle_ms}]
  processes    [{name, pid}] of the cluster on this host; pid is null when it is down

JSON of status --locks:
  grace        locks are being reclaimed after a restart of the metadata server, and new ones wait
  locks        [{inode, space, kind, start, end, waiting, client, host, pid}]; space is flock or fcntl, kind shared or
               exclusive, end the last byte or null, waiting: not held yet";

/// `emberfs status`.
pub(crate) async fn status(cluster: Option<String>, args: FullStatusArgs) -> Result<Exit> {
    let FullStatusArgs {
        status: args,
        locks,
    } = args;
    if locks {
        let seat = Seat::find(cluster, &args.dir)?;
        return locks::list(&seat, args.json).await;
    }
    let report = gather(cluster, &args).await?;
    show(&report, args.json, render::full)
}

/// `emberfs health`.
pub(crate) async fn health(cluster: Option<String>, args: StatusArgs) -> Result<Exit> {
    let report = gather(cluster, &args).await?;
    show(&report, args.json, render::verdict)
}

async fn gather(cluster: Option<String>, args: &StatusArgs) -> Result<StatusReport> {
    let seat = Seat::find(cluster, &args.dir)?;
    let facts = gather::gather(&seat).await;
    Ok(judge::judge(&facts))
}

fn show(report: &StatusReport, json: bool, text: fn(&StatusReport) -> String) -> Result<Exit> {
    if json {
        say(serde_json::to_string_pretty(report).context("cannot write JSON")?)?;
    } else {
        say(text(report))?;
    }
    Ok(match report.status {
        Overall::Healthy => Exit::Success,
        Overall::Degraded => Exit::Failure,
        Overall::Broken => Exit::Broken,
    })
}
