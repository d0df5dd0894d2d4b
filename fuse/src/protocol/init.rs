//! INIT: what the kernel offers and what is chosen, the same for both transports but for the rings.

use std::io;
use std::os::fd::OwnedFd;

use super::abi::{self, init, u32_at};
use super::reply::Reply;
use super::request::Head;
use super::{MAX_IO, MESSAGE};

#[cfg(test)]
mod tests;

/// The kernel wants no payload buffer below this.
const MIN_PAYLOAD: usize = 8192;

/// What is used if the kernel has it; the rings are a matter of the transport.
pub(crate) const WANTED: u64 = init::ASYNC_READ
    | init::POSIX_LOCKS
    | init::FLOCK_LOCKS
    | init::DONT_MASK
    | init::POSIX_ACL
    | init::HANDLE_KILLPRIV_V2
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
    | init::HAS_RESEND;

/// Pages of the largest request.
fn max_pages() -> usize {
    (MAX_IO as usize).div_ceil(rustix::param::page_size())
}

/// Bytes of payload that an entry must hold.
pub(crate) fn payload_capacity() -> usize {
    let pages = max_pages() * rustix::param::page_size();
    pages.max(MAX_IO as usize).max(MIN_PAYLOAD)
}

/// The kernel's offer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Init {
    pub(crate) unique: u64,
    major: u32,
    minor: u32,
    max_readahead: u32,
    capabilities: u64,
}

impl Init {
    pub(crate) fn decode(message: &[u8]) -> io::Result<Self> {
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

    /// The answer; an error if the kernel speaks another protocol, or offers no rings where they are wanted.
    pub(crate) fn reply(&self, max_background: u16, rings: bool) -> io::Result<Reply> {
        let unsupported = |what: String| io::Error::new(io::ErrorKind::Unsupported, what);
        let (major, minor) = (self.major, self.minor);
        if major != abi::MAJOR {
            let what = format!("the kernel speaks FUSE {major}.{minor}, not {}", abi::MAJOR);
            return Err(unsupported(what));
        }
        let wanted = WANTED | if rings { init::OVER_IO_URING } else { 0 };
        let flags = self.capabilities & wanted;
        if rings && flags & init::OVER_IO_URING == 0 {
            let what = format!("the kernel's FUSE {major}.{minor} does not offer io_uring");
            return Err(unsupported(what));
        }
        // The kernel slows writers down from three quarters on.
        let congestion = (u32::from(max_background) * 3 / 4) as u16;
        // 1 MiB in pages of 4 KiB or more.
        let max_pages = max_pages() as u16;
        let mut out = Vec::with_capacity(abi::INIT_OUT);
        for value in [abi::MAJOR, abi::MINOR, self.max_readahead, flags as u32] {
            out.extend_from_slice(&value.to_ne_bytes());
        }
        out.extend_from_slice(&max_background.to_ne_bytes());
        out.extend_from_slice(&congestion.to_ne_bytes());
        out.extend_from_slice(&MAX_IO.to_ne_bytes());
        // Times have a granularity of 1 ns.
        out.extend_from_slice(&1u32.to_ne_bytes());
        out.extend_from_slice(&max_pages.to_ne_bytes());
        out.extend_from_slice(&0u16.to_ne_bytes());
        out.extend_from_slice(&((flags >> 32) as u32).to_ne_bytes());
        out.resize(abi::INIT_OUT, 0);
        Ok(Reply::data(out.into()))
    }
}

/// Answers the kernel's first message on a device that was just mounted.
pub(crate) fn handshake(device: &OwnedFd, max_background: u16, rings: bool) -> io::Result<()> {
    let mut message = vec![0; MESSAGE];
    let len = rustix::io::retry_on_intr(|| rustix::io::read(device, &mut message))?;
    let init = Init::decode(&message[..len])?;
    let reply = init.reply(max_background, rings)?;
    let header = reply.header(init.unique);
    let parts = [io::IoSlice::new(&header), io::IoSlice::new(&reply.data)];
    rustix::io::writev(device, &parts)?;
    Ok(())
}
