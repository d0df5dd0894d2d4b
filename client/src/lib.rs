//! EmberFS native client: namespace verbs and parallel chunk I/O.
//!
//! A [`Client`] talks gRPC to the metadata server and the frame protocol to storage servers. A
//! [`File`] reads and writes byte ranges; nothing above this crate knows about chunks or chains.
//!
//! What it guarantees:
//! - **Durability**: what [`File::sync`], [`File::flush`] or [`File::close`] returned for is on every
//!   replica of its chains, and the metadata server knows the length.
//! - **Read your writes**: a read through this client sees every write that returned before it, on
//!   any handle.
//! - **Never wrong bytes**: every byte read is checked against the checksum its writer computed; a
//!   damaged replica costs a second request to another one.
//! - **Short tails**: a read that waits longer than nearly all others is asked of a second replica too,
//!   for a bounded share of the reads ([`ClientConfig::hedge_percent`]).
//! - **Patience**: dead, busy or moving servers are waited for, within [`ClientConfig::io_timeout`];
//!   a retry of a change carries the same number as its first attempt, so it happens once.
//! - **Bounds**: memory for read-ahead and buffered writes stays within
//!   [`ClientConfig::memory_bytes`]; requests in flight, retries' pace and background closes have limits.
//!
//! ```no_run
//! # async fn example() -> emberfs_client::Result<()> {
//! use emberfs_client::{Client, ClientConfig, CreateFlags, Creds};
//!
//! let config = ClientConfig { meta: "127.0.0.1:7400".to_owned(), ..ClientConfig::default() };
//! let client = Client::connect(config).await?;
//! let me = Creds::current();
//! let flags = CreateFlags { write: true, read: true, ..CreateFlags::default() };
//! let (_, file) = client.create(&me, client.root(), b"hello", 0o644, flags).await?;
//! file.write(0, bytes::Bytes::from_static(b"hello, world")).await?;
//! file.close().await?;
//! client.shutdown().await;
//! # Ok(()) }
//! ```

mod allocate;
pub mod attr;
mod background;
mod batch;
pub mod blocking;
mod budget;
mod channels;
mod chunk_io;
mod chunk_list;
mod chunk_read;
mod chunk_write;
mod client;
mod config;
mod copy;
mod core;
mod creds;
mod delegations;
mod eager;
mod early_read;
mod ends;
mod fetch_files;
mod flush;
mod hedge;
mod identity;
mod inode_state;
mod length;
mod locks;
mod map_watch;
mod meta_rpc;
mod name_changes;
mod namespace;
mod numbers;
mod open_file;
mod ops;
#[doc(hidden)]
pub mod plan;
mod quota;
mod read;
mod read_ahead;
mod read_many;
mod request_scope;
mod reserve;
mod resolve;
mod resume;
mod retry;
mod seek;
mod stats;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod trash;
mod unnamed;
mod watch;
mod window;
mod write_buffer;
mod xattr;

pub use allocate::Allocate;
pub use attr::Attr;
pub use client::Client;
pub use config::{ClientConfig, Verify};
pub use creds::Creds;
pub use eager::spawn_eager;
pub use early_read::MAX_EARLY_READ;
pub use emberfs_proto::{Error, ErrorCode, Result};
pub use identity::Identity;
pub use locks::{LockInfo, LockKind, LockRequest, LockSpace};
pub use name_changes::LossesHeard;
pub use open_file::File;
pub use ops::{CreateFlags, NewMode, OpenFlags, RenameFlags, SetAttr, TimeSet, XattrFlags};
pub use read_many::ReadItem;
pub use request_scope::{RequestLog, RequestScope, VERBS};
pub use seek::Whence;
pub use stats::Stats;
pub use watch::CacheEvent;
