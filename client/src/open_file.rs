//! An open file.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use emberfs_proto::ids::InodeId;

use crate::{Attr, Error, ErrorCode, Result};

/// An open file. Clones share one session; dropping the last without [`File::close`] closes it in the
/// background.
#[derive(Clone)]
pub struct File {
    inner: Arc<InodeId>,
}

fn later<T>() -> Result<T> {
    Err(Error::new(ErrorCode::Unsupported, "not built yet"))
}

impl File {
    /// Which file.
    pub fn inode(&self) -> InodeId {
        *self.inner
    }

    /// Length in bytes as far as this client knows, its own buffered writes included.
    pub fn size(&self) -> u64 {
        0
    }

    /// Reads; short only at the end of the file.
    pub async fn read(&self, _offset: u64, _len: usize) -> Result<Bytes> {
        later()
    }

    /// Reads into the spare capacity of `buf`; short only at the end of the file.
    pub async fn read_into(&self, _offset: u64, _buf: BytesMut) -> Result<BytesMut> {
        later()
    }

    /// Reads many `(offset, length)` ranges at once; results in the order of the ranges.
    pub async fn read_many(&self, ranges: &[(u64, usize)]) -> Vec<Result<Bytes>> {
        ranges.iter().map(|_| later()).collect()
    }

    /// Writes into this client's buffer; [`File::sync`] makes it durable.
    pub async fn write(&self, _offset: u64, _data: Bytes) -> Result<()> {
        later()
    }

    /// Writes at the end; answers the offset.
    pub async fn append(&self, _data: Bytes) -> Result<u64> {
        later()
    }

    /// fsync: every buffered write of this inode is on its replicas and its length is reported.
    pub async fn sync(&self) -> Result<Attr> {
        later()
    }

    /// What close(2) waits for: as [`File::sync`], nothing if nothing was written.
    pub async fn flush(&self) -> Result<()> {
        later()
    }

    /// Flushes and ends the session.
    pub async fn close(self) -> Result<()> {
        later()
    }
}
