//! Asks the metadata server and looks at the processes of this host.

use emberfs_proto::pb;

use crate::failure::Result;
use crate::local::LocalCluster;
use crate::rpc::{self, Seat};

use super::report::ProcessReport;

/// What could be learned.
#[derive(Debug)]
pub(super) struct Facts {
    /// Whom was asked.
    pub(super) address: String,
    /// The manager's report, or why there is none.
    pub(super) report: Result<pb::ReportReply, String>,
    /// The namespace's summary, or why there is none.
    pub(super) summary: Result<pb::SummaryReply, String>,
    /// The cluster on this host.
    pub(super) local: Option<LocalFacts>,
    /// When this was, milliseconds since 1970.
    pub(super) now_ms: u64,
}

/// About the cluster on this host.
#[derive(Debug)]
pub(super) struct LocalFacts {
    /// Its directory.
    pub(super) dir: String,
    /// Its processes, in starting order.
    pub(super) processes: Vec<ProcessReport>,
}

pub(super) async fn gather(seat: &Seat) -> Facts {
    let (report, summary, local) =
        tokio::join!(report(&seat.address), summary(&seat.address), local(seat));
    Facts {
        address: seat.address.clone(),
        report: report.map_err(|failure| failure.to_string()),
        summary: summary.map_err(|failure| failure.to_string()),
        local,
        now_ms: crate::scrub::now_ms(),
    }
}

async fn report(address: &str) -> Result<pb::ReportReply> {
    let mut client = rpc::cluster(address).await?;
    rpc::answer(
        address,
        rpc::CALL_LIMIT,
        client.report(pb::ReportRequest {}),
    )
    .await
}

async fn summary(address: &str) -> Result<pb::SummaryReply> {
    let mut client = rpc::metadata(address).await?;
    rpc::answer(
        address,
        rpc::CALL_LIMIT,
        client.summary(pb::SummaryRequest {}),
    )
    .await
}

async fn local(seat: &Seat) -> Option<LocalFacts> {
    let (dir, plan) = seat.local.clone()?;
    let shown = dir.root().display().to_string();
    let mut processes = Vec::new();
    for process in (LocalCluster { dir, plan }).processes() {
        // A pid file that cannot be read says no more than one that is missing.
        let running = process.running().await.ok().flatten();
        let pid = running.map(|running| running.pid());
        processes.push(ProcessReport {
            name: process.name().to_owned(),
            pid,
        });
    }
    Some(LocalFacts {
        dir: shown,
        processes,
    })
}
