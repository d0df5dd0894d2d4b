//! The vocabulary that every part of EmberFS shares: ids, errors, layout arithmetic,
//! checksums, buffers, gRPC services and the data-plane frames.
//!
//! Nothing here knows how a server stores or a client caches; both sides of every wire
//! depend on this crate and on nothing of each other.

pub mod buf;
pub mod checksum;
pub mod cluster;
pub mod convert;
pub mod error;
pub mod ids;
pub mod layout;
pub mod locks;
pub mod pb;
pub mod wire;
pub mod xattr;

pub use error::{Error, ErrorCode, Result, RetryClass};
