//! INIT: what the kernel offers and what is chosen. The classic transport's choices, and the rings.

use std::io;

use super::abi::{self, init, u32_at};
use super::reply::Reply;
use super::request::Head;
use crate::adapter::MAX_IO;

#[cfg(test)]
mod tests;

/// Largest write, bytes.
pub(super) const MAX_WRITE: u32 = MAX_IO;

/// The kernel wants no payload buffer below this.
const MIN_PAYLOAD: usize = 8192;

/// What is used if the kernel has it.
const WANTED: u64 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::INIT_EXT
    | init::DIRECT_IO_ALLOW_MMAP
    | init::OVER_IO_URING;

/// Pages of the largest request.
fn max_pages() -> usize {
    (MAX_WRITE as usize).div_ceil(rustix::param::page_size())
}

/// Bytes of payload that an entry must hold.
pub(super) fn payload_capacity() -> usize {
    let pages = max_pages() * rustix::param::page_size();
    pages.max(MAX_WRITE as usize).max(MIN_PAYLOAD)
}

/// The kernel's offer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Init {
    pub(super) unique: u64,
    major: u32,
    minor: u32,
    max_readahead: u32,
    capabilities: u64,
}

impl Init {
    pub(super) fn decode(message: &[u8]) -> io::Result<Self> {
        Self::parse(message).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "the kernel's first message is no INIT",
            )
        })
    }

    fn parse(message: &[u8]) -> Option<Self> {
        let head = Head::decode(message)?;
        let body = message.get(abi::IN_HEADER..)?;
        let flags = u64::from(u32_at(body, 12)?);
        let more = if flags & init::INIT_EXT == 0 {
            0
        } else {
            u64::from(u32_at(body, 16)?) << 32
        };
        (head.opcode == abi::op::INIT).then_some(Self {
            unique: head.unique,
            major: u32_at(body, 0)?,
            minor: u32_at(body, 4)?,
            max_readahead: u32_at(body, 8)?,
            capabilities: flags | more,
        })
    }

    /// The answer; an error if the kernel offers no rings.
    pub(super) fn reply(&self, max_background: u16) -> io::Result<Reply> {
        let flags = self.capabilities & WANTED;
        if self.major != abi::MAJOR || flags & init::OVER_IO_URING == 0 {
            let what = format!(
                "the kernel's FUSE {}.{} does not offer io_uring",
                self.major, self.minor
            );
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        // As fuser does: the kernel slows writers down from three quarters on.
        let congestion = (u32::from(max_background) * 3 / 4) as u16;
        // 1 MiB in pages of 4 KiB or more.
        let max_pages = max_pages() as u16;
        let mut out = Vec::with_capacity(abi::INIT_OUT);
        for value in [abi::MAJOR, abi::MINOR, self.max_readahead, flags as u32] {
            out.extend_from_slice(&value.to_ne_bytes());
        }
        out.extend_from_slice(&max_background.to_ne_bytes());
        out.extend_from_slice(&congestion.to_ne_bytes());
        out.extend_from_slice(&MAX_WRITE.to_ne_bytes());
        // Times have a granularity of 1 ns.
        out.extend_from_slice(&1u32.to_ne_bytes());
        out.extend_from_slice(&max_pages.to_ne_bytes());
        out.extend_from_slice(&0u16.to_ne_bytes());
        out.extend_from_slice(&((flags >> 32) as u32).to_ne_bytes());
        out.resize(abi::INIT_OUT, 0);
        Ok(Reply::data(out.into()))
    }
}
