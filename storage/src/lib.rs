//! The EmberFS storage server: a chunk engine per disk, chain replication between nodes.
//!
//! - [`engine`]: one disk: io_uring data I/O, `RocksDB` index, crash-safe order.
//! - [`chain`]: the replication protocol of one target, without I/O.
//! - [`node`]: drives the protocol with engine, network and the cluster manager.
//! - [`server`]: the process.

pub mod chain;
pub mod config;
pub mod engine;
pub mod node;
pub mod server;

#[cfg(test)]
mod sim;
