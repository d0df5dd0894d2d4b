//! The data plane: a small binary frame protocol for bulk data.
//!
//! gRPC moves 1 MiB messages at two to four times the CPU of a plain stream, so chunk data has its
//! own protocol: a 64-byte header, a protobuf body and a raw payload ([`frame`]). Metadata uses it as well, for
//! its short way between two threads ([`metadata`]). Many requests
//! are in flight on one connection; replies come in any order. The payload of a reply is
//! received straight into the memory that the caller gave ([`Landing`]), the payload of a
//! request into an aligned buffer that the disk and the next hop use as it is.
//!
//! What the parts guarantee:
//! - A malformed, truncated or oversized frame ends the connection with an error; it never
//!   panics and never makes the receiver allocate more than the frame limits.
//! - A call always ends: with a reply, with [`crate::ErrorCode::DeadlineExceeded`], or with
//!   [`crate::ErrorCode::Unreachable`] when its connection breaks.
//! - A server holds a bounded number of payload bytes per hop class ([`server`]).
//!
//! [`Channel`] is what the layers above see: nothing there assumes a byte stream, so that an RDMA
//! transport can take the place of TCP.

pub mod client;
pub mod frame;
mod io;
pub mod metadata;
pub mod port;
mod send;
pub mod server;

use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use crate::error::{Error, ErrorCode, Result};
pub use frame::Opcode;

/// Oldest protocol version this build speaks.
pub const MIN_VERSION: u32 = 1;
/// Newest protocol version this build speaks.
pub const MAX_VERSION: u32 = 1;

/// Where the payload of a reply goes.
#[derive(Debug, Default)]
pub enum Landing {
    /// No payload is expected; one is a protocol error.
    #[default]
    None,
    /// Appended to this buffer, within its spare capacity; more is a protocol error.
    Buffer(BytesMut),
    /// Into a fresh aligned buffer of the payload's size.
    Aligned,
    /// As [`Self::Aligned`], if there is a payload.
    Fresh,
}

/// What became of a [`Landing`].
#[derive(Debug, Default)]
pub enum Landed {
    /// There was none.
    #[default]
    None,
    /// The caller's buffer, with the payload appended.
    Buffer(BytesMut),
    /// The aligned buffer.
    Aligned(Bytes),
}

impl Landed {
    /// What has landed.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::None => Bytes::new(),
            Self::Buffer(buf) => buf.freeze(),
            Self::Aligned(bytes) => bytes,
        }
    }
}

impl Deref for Landed {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::Buffer(buf) => buf,
            Self::Aligned(bytes) => bytes,
        }
    }
}

/// One request.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub opcode: Opcode,
    /// Encoded protobuf body.
    pub body: Bytes,
    /// Payload in pieces, sent in order without a copy.
    pub payload: Vec<Bytes>,
    /// Where the reply's payload goes.
    pub landing: Landing,
    /// When to give up. The remaining time travels with the request.
    pub deadline: Instant,
    /// How many hops this request is away from the client: 0 for a client's own, one more per
    /// forwarding. Each hop class has its own memory budget at the receiver, so that chains that
    /// cross each other cannot wait in a circle.
    pub hop: u8,
}

impl Call {
    /// A request without payload.
    pub fn new(opcode: Opcode, body: &impl prost::Message, deadline: Instant) -> Self {
        Self {
            opcode,
            body: encode(body),
            payload: Vec::new(),
            landing: Landing::None,
            deadline,
            hop: 0,
        }
    }
}

/// One successful answer.
#[derive(Debug, Default)]
pub struct Reply {
    /// Encoded protobuf body.
    pub body: Bytes,
    /// The payload.
    pub payload: Landed,
}

impl Reply {
    /// Decodes the body; a malformed one is [`ErrorCode::Protocol`].
    pub fn decode<M: prost::Message + Default>(&self) -> Result<M> {
        decode(self.body.clone())
    }
}

/// A way to call one peer, whatever carries it.
pub trait Channel: Send + Sync + 'static {
    /// Sends the request and waits for its answer, until the call's deadline at most.
    fn call(&self, call: Call) -> Pin<Box<dyn Future<Output = Result<Reply>> + Send + '_>>;
}

/// Encodes a protobuf body.
pub fn encode(body: &impl prost::Message) -> Bytes {
    body.encode_to_vec().into()
}

/// Decodes a protobuf body; a malformed one is [`ErrorCode::Protocol`].
pub fn decode<M: prost::Message + Default>(body: Bytes) -> Result<M> {
    M::decode(body)
        .map_err(|e| Error::new(ErrorCode::Protocol, format!("malformed message body: {e}")))
}

#[cfg(test)]
mod tests;
