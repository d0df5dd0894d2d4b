//! The shape of `emberfs status --json`. Fields are added, never changed.

use serde::Serialize;

/// How the cluster is, as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Overall {
    /// Every chain has all its replicas and every node and disk works.
    Healthy,
    /// All data can be read and written, with less redundancy than asked for, or soon not any more.
    Degraded,
    /// Some data cannot be read or written.
    Broken,
}

/// Everything.
#[derive(Debug, Serialize)]
pub(super) struct StatusReport {
    pub(super) status: Overall,
    pub(super) problems: Vec<Problem>,
    pub(super) cluster: Option<String>,
    pub(super) address: String,
    pub(super) map_version: u64,
    pub(super) replicas: u32,
    pub(super) expected_nodes: u32,
    pub(super) settling: bool,
    pub(super) space: SpaceReport,
    pub(super) meta: Option<MetaReport>,
    pub(super) nodes: Vec<NodeReport>,
    pub(super) chains: Vec<ChainReport>,
    pub(super) moves: Vec<MoveReport>,
    pub(super) resync: ResyncReport,
    pub(super) clients: Vec<ClientReport>,
    pub(super) processes: Vec<ProcessReport>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Problem {
    /// Stable name of the check.
    pub(super) code: &'static str,
    /// What it makes the whole.
    pub(super) severity: Overall,
    /// What is wrong and where.
    pub(super) what: String,
    /// What to type.
    pub(super) next: String,
}

/// Bytes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct SpaceReport {
    pub(super) capacity: u64,
    pub(super) used: u64,
    pub(super) free: u64,
}

/// The namespace.
#[derive(Debug, Serialize)]
pub(super) struct MetaReport {
    pub(super) engine: String,
    pub(super) inodes: u64,
    pub(super) clients: u64,
    pub(super) sessions: u64,
    pub(super) write_sessions: u64,
    pub(super) garbage: u64,
    pub(super) uptime_ms: u64,
}

/// A storage server.
#[derive(Debug, Serialize)]
pub(super) struct NodeReport {
    pub(super) id: u32,
    pub(super) name: String,
    pub(super) alive: bool,
    pub(super) registered: bool,
    pub(super) heartbeat_age_ms: u64,
    pub(super) data_addr: String,
    pub(super) admin_addr: String,
    pub(super) disks: Vec<DiskReport>,
    /// Bytes that it sent to bring other replicas up to date, since its process started.
    pub(super) resync_sent_bytes: u64,
}

/// A disk.
#[derive(Debug, Serialize)]
pub(super) struct DiskReport {
    pub(super) id: String,
    pub(super) path: String,
    #[serde(flatten)]
    pub(super) space: SpaceReport,
    /// Empty: it works.
    pub(super) error: String,
    /// Chunks with damaged pages that were repaired, since the disk was formatted.
    pub(super) repaired: u64,
    /// Chunks that no replica has the bytes for, now.
    pub(super) unrepairable: u64,
    /// When damage was last found, milliseconds since 1970; 0: never.
    pub(super) last_damage_ms: u64,
    /// What operators want of it: active, new (holds nothing before it is added), draining, retired.
    pub(super) role: &'static str,
}

/// A chain.
#[derive(Debug, Serialize)]
pub(super) struct ChainReport {
    pub(super) id: u32,
    pub(super) version: u64,
    pub(super) serving: usize,
    pub(super) targets: Vec<TargetReport>,
}

/// A replica.
#[derive(Debug, Serialize)]
pub(super) struct TargetReport {
    pub(super) id: u64,
    pub(super) node: u32,
    pub(super) disk: String,
    /// The manager's word: serving, last_serving, syncing, waiting, offline.
    pub(super) state: &'static str,
    /// The node's word: up_to_date, online, offline.
    pub(super) local_state: &'static str,
    /// Chunks compared and brought up to date, while it is syncing.
    pub(super) sync_done: u64,
    pub(super) sync_total: u64,
    /// Bytes sent to it, of those that differed.
    pub(super) sync_bytes: u64,
    pub(super) sync_bytes_total: u64,
    pub(super) sync_bytes_per_second: u64,
    /// `null`: it is not syncing, or waits for its turn.
    pub(super) sync_eta_seconds: Option<u64>,
}

/// Every replica that is being brought up to date, taken together.
#[derive(Debug, Default, Serialize)]
pub(super) struct ResyncReport {
    /// Replicas.
    pub(super) targets: usize,
    pub(super) chunks: u64,
    pub(super) chunks_total: u64,
    pub(super) bytes: u64,
    pub(super) bytes_total: u64,
    pub(super) bytes_per_second: u64,
    /// Until all are done; `null`: there are none, or nothing moves.
    pub(super) eta_seconds: Option<u64>,
}

impl ResyncReport {
    /// Of one replica.
    pub(super) fn of(target: &TargetReport) -> Self {
        Self {
            targets: 1,
            chunks: target.sync_done,
            chunks_total: target.sync_total,
            bytes: target.sync_bytes,
            bytes_total: target.sync_bytes_total,
            bytes_per_second: target.sync_bytes_per_second,
            eta_seconds: target.sync_eta_seconds,
        }
    }

    /// Adds up everything but the time, which follows from the sums.
    pub(super) fn add(&mut self, other: &Self) {
        self.targets += other.targets;
        self.chunks += other.chunks;
        self.chunks_total += other.chunks_total;
        self.bytes += other.bytes;
        self.bytes_total += other.bytes_total;
        self.bytes_per_second += other.bytes_per_second;
    }
}

/// A replica on its way to another disk.
#[derive(Debug, Serialize)]
pub(super) struct MoveReport {
    pub(super) chain: u32,
    /// The replica that goes, and where it is.
    pub(super) replaces: u64,
    pub(super) from_node: u32,
    pub(super) from_disk: String,
    /// The new replica, where it is, and how it is.
    pub(super) target: u64,
    pub(super) to_node: u32,
    pub(super) to_disk: String,
    pub(super) state: &'static str,
    /// Chunks compared or sent of those looked at so far.
    pub(super) sync_done: u64,
    pub(super) sync_total: u64,
}

/// A mount or another client.
#[derive(Debug, Serialize)]
pub(super) struct ClientReport {
    pub(super) id: String,
    pub(super) host: String,
    pub(super) sessions: u64,
    pub(super) idle_ms: u64,
}

/// A process of the cluster on this host.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ProcessReport {
    pub(super) name: String,
    /// `null`: it is down.
    pub(super) pid: Option<i32>,
}
