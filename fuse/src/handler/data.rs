//! Space, holes, and copies: fallocate(2), lseek(2) for data and holes, copy_file_range(2).

use emberfs_client::{Allocate, Creds, Result, Whence};
use emberfs_proto::{Error, ErrorCode};

use super::Handler;
use crate::backend::{Backend, OpenFile};

/// Most bytes of one copy: what is copied is answered, and a program goes on from there. Bounded, so that a signal
/// is heeded between two of them.
const MAX_COPY: u64 = 64 << 20;

impl<B: Backend> Handler<B> {
    /// `mode` as of fallocate(2).
    pub(crate) async fn allocate(
        &self,
        creds: &Creds,
        handle: u64,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Result<()> {
        let file = self.file(handle)?;
        let how = Allocate::from_mode(mode.cast_unsigned())?;
        if creds.uid != 0
            && let Some(mode) = self.inodes.mode_after_write(file.inode, creds)
        {
            self.take_set_ids(&file, mode).await?;
        }
        // The kernel has sent its dirty pages of the range; they are on the way to the chunks.
        file.file.allocate(offset, len, how).await?;
        let grows = matches!(how, Allocate::Extend | Allocate::ZeroRange);
        let end = if grows { offset.saturating_add(len) } else { 0 };
        self.inodes.wrote(file.inode, end, true);
        Ok(())
    }

    /// `whence`: SEEK_DATA or SEEK_HOLE.
    pub(crate) async fn seek(&self, handle: u64, offset: u64, whence: u32) -> Result<u64> {
        let file = self.file(handle)?;
        let whence = match whence.cast_signed() {
            libc::SEEK_DATA => Whence::Data,
            libc::SEEK_HOLE => Whence::Hole,
            other => {
                let what =
                    format!("lseek with whence {other}: only data and holes are asked for here");
                return Err(Error::new(ErrorCode::InvalidArgument, what));
            }
        };
        file.file.seek(offset, whence).await
    }

    /// How many bytes were copied; fewer than `len` at the end of the file, or where a program shall ask again.
    pub(crate) async fn copy_range(
        &self,
        (from, from_offset): (u64, u64),
        (to, to_offset): (u64, u64),
        len: u64,
    ) -> Result<u64> {
        let (from, to) = (self.file(from)?, self.file(to)?);
        let len = len.min(MAX_COPY);
        let copied = self
            .backend
            .copy_range(&from.file, from_offset, &to.file, to_offset, len)
            .await?;
        if copied > 0 {
            to.begin_write();
            self.inodes
                .wrote(to.inode, to_offset.saturating_add(copied), true);
        }
        Ok(copied)
    }
}
