//! What the keeper and its workers say to each other: one message per packet of a socket, some with descriptors.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use emberfs_proto::{Error, ErrorCode};
use prost::Message;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

/// Bytes of a message, at most.
const MESSAGE: usize = 16 << 10;
/// Descriptors that come with one, at most: the kernel's limit is 253.
const DESCRIPTORS: usize = 128;

/// What is said. Numbers stay as they are: the two sides may be of different versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Say {
    Nothing = 0,
    /// Keeper: see whether the cluster can be reached.
    Try = 1,
    /// Keeper: connect as this client.
    Become = 2,
    /// Keeper: serve the mount with these descriptors.
    Serve = 3,
    /// Keeper: finish what was begun, take nothing more, and go.
    Leave = 4,
    /// Keeper: unmount as soon as nobody uses the mount, and go.
    Stop = 5,
    /// Worker: the last thing it was told is done.
    Done = 6,
    /// Worker: that failed, and why.
    Failed = 7,
    /// Worker: the mount is gone, and everything that was written through it is stored.
    Unmounted = 8,
}

/// A message.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Note {
    #[prost(enumeration = "Say", tag = "1")]
    pub(crate) say: i32,
    /// Of [`Say::Become`].
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) client: Vec<u8>,
    /// Of [`Say::Become`].
    #[prost(uint32, tag = "3")]
    pub(crate) instance: u32,
    /// Of [`Say::Serve`]: answer requests that an earlier worker did not answer with an error, because it may be one of them
    /// that ends workers.
    #[prost(bool, tag = "4")]
    pub(crate) refuse: bool,
    /// Of [`Say::Serve`], and of [`Say::Done`] after [`Say::Leave`]: the worker that has left told the servers of everything
    /// that it wrote.
    #[prost(bool, tag = "7")]
    pub(crate) complete: bool,
    /// Of [`Say::Failed`].
    #[prost(string, tag = "5")]
    pub(crate) text: String,
    /// Of [`Say::Failed`]: an [`ErrorCode`].
    #[prost(uint32, tag = "6")]
    pub(crate) code: u32,
}

impl Note {
    pub(crate) fn new(say: Say) -> Self {
        Self {
            say: say.into(),
            ..Self::default()
        }
    }

    pub(crate) fn failed(error: &Error) -> Self {
        let mut text = error.message.clone();
        text.truncate(text.floor_char_boundary(MESSAGE / 2));
        Self {
            say: Say::Failed.into(),
            text,
            code: error.code as u32,
            ..Self::default()
        }
    }

    /// What [`Self::failed`] was made of.
    pub(crate) fn error(&self) -> Error {
        let code = ErrorCode::ALL
            .iter()
            .find(|&&code| code as u32 == self.code);
        Error::new(
            code.copied().unwrap_or(ErrorCode::Internal),
            self.text.clone(),
        )
    }
}

/// One end of the socket. It keeps messages apart, as one of datagrams does, and tells of its other end's.
pub(crate) struct Line(UnixDatagram);

impl Line {
    /// The two ends: the keeper's, and the one that becomes a worker's standard input.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self(UnixDatagram::from_std(ours.into())?), theirs))
    }

    /// A worker's end.
    pub(crate) fn new(end: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&end, true)?;
        rustix::io::fcntl_setfd(&end, rustix::io::FdFlags::CLOEXEC)?;
        Ok(Self(UnixDatagram::from_std(end.into())?))
    }

    pub(crate) async fn send(&self, note: &Note, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = note.encode_to_vec();
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
            }
            let parts = [io::IoSlice::new(&bytes)];
            let flags = SendFlags::NOSIGNAL;
            Ok(rustix::net::sendmsg(
                &self.0,
                &parts,
                &mut ancillary,
                flags,
            )?)
        };
        self.0.async_io(Interest::WRITABLE, send).await.map(drop)
    }

    /// The next message; `None`: the other side is gone.
    pub(crate) async fn receive(&self) -> io::Result<Option<(Note, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MESSAGE];
        let receive = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [io::IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let got = rustix::net::recvmsg(&self.0, &mut parts, &mut ancillary, flags)?;
            let mut descriptors = Vec::new();
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    descriptors.extend(rights);
                }
            }
            Ok((got.bytes, descriptors))
        };
        let (len, descriptors) = match self.0.async_io(Interest::READABLE, receive).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            received => received?,
        };
        if len == 0 {
            return Ok(None);
        }
        let note = Note::decode(&bytes[..len])
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(Some((note, descriptors)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[tokio::test]
    async fn messages_and_descriptors_arrive_and_an_end_is_seen() {
        let (keeper, end) = Line::pair().unwrap();
        let worker = Line::new(end).unwrap();
        let file = tempfile::tempfile().unwrap();
        let note = Note {
            client: vec![1; 16],
            instance: 7,
            ..Note::new(Say::Become)
        };
        let many = vec![file.as_fd(); 70];
        keeper.send(&note, &many).await.unwrap();
        keeper.send(&Note::new(Say::Leave), &[]).await.unwrap();
        let (got, descriptors) = worker.receive().await.unwrap().unwrap();
        assert_eq!((got, descriptors.len()), (note, 70));
        let (got, descriptors) = worker.receive().await.unwrap().unwrap();
        assert_eq!((got.say(), descriptors.len()), (Say::Leave, 0));
        let error = Error::new(ErrorCode::Busy, "ä".repeat(MESSAGE));
        worker.send(&Note::failed(&error), &[]).await.unwrap();
        drop(worker);
        let (got, _) = keeper.receive().await.unwrap().unwrap();
        assert_eq!(got.error().code, ErrorCode::Busy);
        assert!(keeper.receive().await.unwrap().is_none());
    }
}
