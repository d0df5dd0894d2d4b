//! Reading and writing frames on a byte stream; shared by both ends.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::frame::{HEADER_LEN, Header};
use crate::checksum::crc32;
use crate::error::{Error, ErrorCode, Result};

/// A frame ready to be sent: its header and what follows it, none of them empty.
pub(super) struct OutFrame {
    pub(super) pieces: Vec<Bytes>,
}

impl OutFrame {
    /// Fills in the lengths and the body checksum of `header`.
    pub(super) fn new(mut header: Header, body: Bytes, payload: Vec<Bytes>) -> Self {
        header.body_len = body.len() as u32;
        header.body_crc = crc32(&body);
        header.payload_len = payload.iter().map(|p| p.len() as u32).sum();
        let mut pieces = Vec::with_capacity(2 + payload.len());
        pieces.push(Bytes::copy_from_slice(&header.encode()));
        pieces.push(body);
        pieces.extend(payload);
        pieces.retain(|p| !p.is_empty());
        Self { pieces }
    }
}

/// Reads a header and its body. `None` at a clean end of the stream.
pub(super) async fn read_head(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<(Header, Bytes)>> {
    let mut raw = [0; HEADER_LEN];
    let first = stream.read(&mut raw).await.map_err(broken)?;
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut raw[first..]).await.map_err(broken)?;
    let header = Header::decode(&raw)?;
    let mut body = BytesMut::with_capacity(header.body_len as usize);
    read_into(stream, &mut body, header.body_len as usize).await?;
    if crc32(&body) != header.body_crc {
        return Err(Error::new(
            ErrorCode::Protocol,
            "frame body damaged in transit",
        ));
    }
    Ok(Some((header, body.freeze())))
}

/// Appends exactly `len` bytes from the stream to `buf`.
pub(super) async fn read_into(
    stream: &mut (impl AsyncRead + Unpin),
    buf: &mut BytesMut,
    len: usize,
) -> Result<()> {
    let mut left = len;
    while left > 0 {
        let read = stream
            .read_buf(&mut (&mut *buf).limit(left))
            .await
            .map_err(broken)?;
        if read == 0 {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
        }
        left -= read;
    }
    Ok(())
}

/// Reads and drops `len` bytes: the payload of a reply that nobody waits for any more.
pub(super) async fn discard(stream: &mut (impl AsyncRead + Unpin), len: usize) -> Result<()> {
    let mut limited = stream.take(len as u64);
    let copied = tokio::io::copy(&mut limited, &mut tokio::io::sink())
        .await
        .map_err(broken)?;
    if copied < len as u64 {
        return Err(broken(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(())
}

/// A stream failure as an error.
#[expect(clippy::needless_pass_by_value, reason = "used in map_err")]
pub(super) fn broken(error: io::Error) -> Error {
    Error::new(ErrorCode::Unreachable, format!("connection lost: {error}"))
}
