//! Configuration of a metadata server.

use std::path::PathBuf;
use std::time::Duration;

use emberfs_proto::layout::{DEFAULT_CHUNK_SIZE, DEFAULT_PAGE_SIZE, DEFAULT_STRIPE_WIDTH, Layout};
use emberfs_proto::{Error, ErrorCode, Result};
use serde::{Deserialize, Serialize};

/// Default port of the metadata and cluster services.
pub const DEFAULT_PORT: u16 = 7400;

/// Configuration of a metadata server. Every key has a default; unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetaConfig {
    /// `host:port` to listen on, for clients and storage servers alike. Port 0: any free one.
    pub listen: String,
    /// `host:port` under which others reach this server, if it differs from `listen` (for people
    /// and logs: clients are told the address by their configuration).
    pub advertise: Option<String>,
    /// Directory of the metadata store. Put it on a fast disk with power-loss protection: every
    /// change waits for it.
    pub data_dir: PathBuf,
    /// Copies of every chunk, at least 1.
    pub replicas: u32,
    /// Storage nodes that must have joined before the first chains are made. A cluster that should
    /// spread over five nodes from the start says 5.
    pub expected_nodes: u32,
    /// Replica slots per disk when chains are first made. More slots spread a failed disk's work wider.
    /// 0: twenty on up to 64 disks and eight on more, or so many more that a failed node's work can fall on
    /// all others evenly (`emberfs chains plan` shows what that comes to).
    pub targets_per_disk: u32,
    /// How long a storage server may serve after its last answered heartbeat, milliseconds. A
    /// silent server is replaced after this time.
    pub lease_ms: u64,
    /// Interval of storage servers' heartbeats, milliseconds; at most half of the lease, a fifth is usual.
    pub heartbeat_ms: u64,
    /// How long a silent client keeps its open files, milliseconds.
    pub client_lease_ms: u64,
    /// Chunk size of new files, bytes: a power of two from 64 KiB to 64 MiB.
    pub chunk_size: u32,
    /// Checksum page size of new files, bytes: a power of two from 4 KiB to the chunk size.
    pub page_size: u32,
    /// Chains that a new file is striped over, at least 1; fewer if there are not as many.
    pub stripe_width: u32,
    /// Pause between two background sweeps (deleted files, departed clients), milliseconds.
    pub gc_interval_ms: u64,
    /// How long requests in progress may take when the server stops, milliseconds.
    pub stop_grace_ms: u64,
    /// When making and removing names, and setting attributes, is answered: `"soon"`, as on a local disk, before it is on the metadata server's disk, where it
    /// is after some milliseconds, and for certain when `fsync` of the file or its directory or `close` returns; or
    /// `"durable"`, after that.
    pub answer_names: Answer,
}

/// See [`MetaConfig::answer_names`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Before it is durable.
    #[default]
    Soon,
    /// When it is.
    Durable,
}

impl Default for MetaConfig {
    fn default() -> Self {
        Self {
            listen: format!("0.0.0.0:{DEFAULT_PORT}"),
            advertise: None,
            data_dir: PathBuf::from("emberfs-meta"),
            replicas: 3,
            expected_nodes: 1,
            targets_per_disk: 0,
            lease_ms: 5000,
            heartbeat_ms: 1000,
            client_lease_ms: 30_000,
            chunk_size: DEFAULT_CHUNK_SIZE,
            page_size: DEFAULT_PAGE_SIZE,
            stripe_width: DEFAULT_STRIPE_WIDTH,
            gc_interval_ms: 1000,
            stop_grace_ms: 5000,
            answer_names: Answer::default(),
        }
    }
}

impl MetaConfig {
    /// Checks every value; [`ErrorCode::InvalidArgument`] names the key and what it may be.
    pub fn validate(&self) -> Result<()> {
        let bad = |what: String| Err(Error::new(ErrorCode::InvalidArgument, what));
        for (key, value, least) in [
            ("replicas", u64::from(self.replicas), 1),
            ("expected_nodes", u64::from(self.expected_nodes), 1),
            ("heartbeat_ms", self.heartbeat_ms, 10),
            ("lease_ms", self.lease_ms, 100),
            ("client_lease_ms", self.client_lease_ms, 100),
            ("gc_interval_ms", self.gc_interval_ms, 10),
        ] {
            if value < least {
                return bad(format!(
                    "configuration key `{key}` is {value}; it must be at least {least}"
                ));
            }
        }
        if self.heartbeat_ms * 2 > self.lease_ms {
            return bad(format!(
                "configuration key `heartbeat_ms` is {}, more than half of `lease_ms` ({}): one \
                 late heartbeat would stop a healthy storage server",
                self.heartbeat_ms, self.lease_ms
            ));
        }
        let layout = Layout {
            chunk_size: self.chunk_size,
            page_size: self.page_size,
            table: 1.into(),
            table_version: 1.into(),
            stripe_width: self.stripe_width,
            seed: 0,
        };
        layout.validate().map_err(|e| e.context("configuration"))
    }

    pub(crate) fn client_lease(&self) -> Duration {
        Duration::from_millis(self.client_lease_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_bad_values_are_named() {
        MetaConfig::default().validate().unwrap();
        let bad = |change: fn(&mut MetaConfig), key: &str| {
            let mut config = MetaConfig::default();
            change(&mut config);
            let error = config.validate().unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument);
            assert!(error.message.contains(key), "{error}");
        };
        bad(|c| c.replicas = 0, "replicas");
        bad(|c| c.heartbeat_ms = 4000, "heartbeat_ms");
        bad(|c| c.chunk_size = 100_000, "chunk size");
        bad(|c| c.stripe_width = 0, "stripe width");
    }
}
