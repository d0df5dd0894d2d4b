//! The EmberFS metadata server: the namespace and the cluster manager over a transactional key-value
//! store.
//!
//! ```text
//! clients ──gRPC Metadata──► namespace ──transactions──► kv ◄──transactions── cluster ◄──gRPC Cluster── storage servers
//!                               │                                                │
//!                               └─────────data plane (chunks) ◄───cluster map────┘
//! ```
//!
//! [`server::run`] is the process. [`kv`] is the store, [`cluster`] the manager; the namespace is
//! reached over gRPC only.

pub mod chunks;
pub mod cluster;
pub mod config;
mod delegations;
mod gc;
mod interests;
pub mod kv;
mod locks;
mod namespace;
pub mod server;
mod service;
mod sessions;
