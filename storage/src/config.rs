//! Configuration of a storage server (`emberfs storage --config FILE`).

use std::path::PathBuf;

use emberfs_proto::{Error, ErrorCode, Result};
use serde::{Deserialize, Serialize};

use crate::engine::{
    DEFAULT_CACHE_ENTRIES, DEFAULT_INDEX_CACHE_BYTES, DEFAULT_IO_BUFFER_BYTES, DEFAULT_QUEUE_DEPTH,
    DEFAULT_RESERVE_BYTES,
};

/// Everything an operator can set. Unknown keys are refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageConfig {
    /// Id of this node, from 1 up; unique in the cluster and never changed.
    pub node: u32,
    /// `host:port` of the metadata server.
    pub meta: String,
    /// `host:port` on which the data plane listens; port 0 picks a free one.
    #[serde(default = "defaults::listen")]
    pub listen: String,
    /// `host:port` on which the management service listens; port 0 picks a free one.
    #[serde(default = "defaults::listen")]
    pub admin_listen: String,
    /// Host name or address under which clients reach this node, without a port. Empty: that of `listen`.
    #[serde(default)]
    pub advertise: String,
    /// Directories of this node's disks, one per device.
    pub disks: Vec<PathBuf>,
    /// What an acknowledged write survives: `power` (loss of power) or `process` (a killed process only).
    #[serde(default)]
    pub durability: Durability,
    /// Bytes of each file system that are left free.
    #[serde(default = "defaults::reserve_bytes")]
    pub reserve_bytes: u64,
    /// Use at most this many bytes of each disk; 0: all of it.
    #[serde(default)]
    pub capacity_bytes: u64,
    /// Chunks per disk whose metadata stays in memory.
    #[serde(default = "defaults::cache_entries")]
    pub cache_entries: usize,
    /// Reads and writes in flight per disk.
    #[serde(default = "defaults::queue_depth")]
    pub queue_depth: u32,
    /// Memory of the index's block cache per disk, bytes.
    #[serde(default = "defaults::index_cache_bytes")]
    pub index_cache_bytes: usize,
    /// Memory for I/O buffers that is registered with the kernel, bytes; 0: none.
    #[serde(default = "defaults::io_buffer_bytes")]
    pub io_buffer_bytes: usize,
    /// Request payload in memory per hop class, bytes (at least the largest chunk, 64 MiB).
    #[serde(default = "defaults::payload_bytes")]
    pub payload_bytes: usize,
    /// Read data in memory on its way to clients, bytes.
    #[serde(default = "defaults::read_bytes")]
    pub read_bytes: usize,
    /// Chunks in flight while a returning replica is brought up to date.
    #[serde(default = "defaults::resync_parallel")]
    pub resync_parallel: usize,
}

/// See [`StorageConfig::durability`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Survives loss of power.
    #[default]
    Power,
    /// Survives a killed process.
    Process,
}

impl StorageConfig {
    /// Checks what can be checked without looking at disks and network; [`ErrorCode::InvalidArgument`] names
    /// the key and what it may be.
    pub fn validate(&self) -> Result<()> {
        let bad = |what: String| Err(Error::new(ErrorCode::InvalidArgument, what));
        if self.node == 0 {
            return bad("`node` is 0; number storage nodes from 1 up".to_owned());
        }
        if self.disks.is_empty() {
            return bad("`disks` is empty; name at least one disk directory".to_owned());
        }
        for (key, address) in [
            ("meta", &self.meta),
            ("listen", &self.listen),
            ("admin_listen", &self.admin_listen),
        ] {
            let port = address
                .rsplit_once(':')
                .map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(_))) {
                return bad(format!(
                    "`{key}` is {address:?}; write host:port, such as \"10.0.0.1:7500\""
                ));
            }
        }
        Ok(())
    }

    /// The defaults for a node with these disks.
    pub fn new(node: u32, meta: impl Into<String>, disks: Vec<PathBuf>) -> Self {
        Self {
            node,
            meta: meta.into(),
            listen: defaults::listen(),
            admin_listen: defaults::listen(),
            advertise: String::new(),
            disks,
            durability: Durability::Power,
            reserve_bytes: defaults::reserve_bytes(),
            capacity_bytes: 0,
            cache_entries: defaults::cache_entries(),
            queue_depth: defaults::queue_depth(),
            index_cache_bytes: defaults::index_cache_bytes(),
            io_buffer_bytes: defaults::io_buffer_bytes(),
            payload_bytes: defaults::payload_bytes(),
            read_bytes: defaults::read_bytes(),
            resync_parallel: defaults::resync_parallel(),
        }
    }
}

mod defaults {
    pub(super) fn listen() -> String {
        "127.0.0.1:0".to_owned()
    }
    pub(super) fn reserve_bytes() -> u64 {
        super::DEFAULT_RESERVE_BYTES
    }
    pub(super) fn cache_entries() -> usize {
        super::DEFAULT_CACHE_ENTRIES
    }
    pub(super) fn queue_depth() -> u32 {
        super::DEFAULT_QUEUE_DEPTH
    }
    pub(super) fn index_cache_bytes() -> usize {
        super::DEFAULT_INDEX_CACHE_BYTES
    }
    pub(super) fn io_buffer_bytes() -> usize {
        super::DEFAULT_IO_BUFFER_BYTES
    }
    pub(super) fn payload_bytes() -> usize {
        64 << 20
    }
    pub(super) fn read_bytes() -> usize {
        96 << 20
    }
    pub(super) fn resync_parallel() -> usize {
        8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let good = || StorageConfig::new(1, "meta:7400", vec!["/disk".into()]);
        good().validate().unwrap();
        let with = |change: &dyn Fn(&mut StorageConfig)| {
            let mut config = good();
            change(&mut config);
            config
        };
        for (key, config) in [
            ("`node`", with(&|c| c.node = 0)),
            ("`disks`", with(&|c| c.disks.clear())),
            ("`meta`", with(&|c| c.meta = "meta".to_owned())),
            ("`listen`", with(&|c| c.listen = "0.0.0.0:many".to_owned())),
            ("`admin_listen`", with(&|c| c.admin_listen = String::new())),
        ] {
            let error = config.validate().unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument);
            assert!(error.message.contains(key), "{error}");
        }
    }
}
