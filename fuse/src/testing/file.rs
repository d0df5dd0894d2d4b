//! Open files of [`Memory`].

use std::sync::atomic::Ordering;

use bytes::Bytes;
use emberfs_client::{Allocate, Attr, Result, Whence};
use emberfs_proto::ErrorCode;

use super::{Memory, error};
use crate::backend::OpenFile;

#[derive(Clone)]
pub(crate) struct MemoryFile {
    pub(super) memory: Memory,
    pub(super) inode: u64,
}

impl OpenFile for MemoryFile {
    async fn read(&self, offset: u64, len: usize) -> Result<Bytes> {
        self.memory.reads.fetch_add(1, Ordering::Relaxed);
        Ok(self.memory.change(self.inode, |node| {
            let start = (offset as usize).min(node.data.len());
            let end = (start + len).min(node.data.len());
            Bytes::copy_from_slice(&node.data[start..end])
        }))
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        self.memory.change(self.inode, |node| {
            let end = offset as usize + data.len();
            if node.data.len() < end {
                node.data.resize(end, 0);
            }
            node.data[offset as usize..end].copy_from_slice(&data);
            node.dirty = true;
        });
        Ok(())
    }

    fn size(&self) -> u64 {
        self.memory
            .change(self.inode, |node| node.data.len() as u64)
    }

    async fn sync(&self) -> Result<Attr> {
        self.memory.syncs.fetch_add(1, Ordering::Relaxed);
        if self.memory.fail_sync.load(Ordering::Relaxed) {
            return Err(error(ErrorCode::NoSpace));
        }
        let now = Some(self.memory.now());
        Ok(self.memory.change(self.inode, |node| {
            if std::mem::take(&mut node.dirty) {
                node.attr.size = node.data.len() as u64;
                (node.attr.mtime, node.attr.ctime) = (now, now);
            }
            node.attr
        }))
    }

    async fn allocate(&self, offset: u64, len: u64, how: Allocate) -> Result<()> {
        let (from, to) = (offset as usize, (offset + len) as usize);
        self.memory.change(self.inode, |node| {
            let zero = !matches!(how, Allocate::Extend | Allocate::KeepSize);
            let grow = matches!(how, Allocate::Extend | Allocate::ZeroRange);
            if grow && node.data.len() < to {
                node.data.resize(to, 0);
            }
            let end = to.min(node.data.len());
            if zero && from < end {
                node.data[from..end].fill(0);
            }
            node.attr.size = node.data.len() as u64;
        });
        Ok(())
    }

    /// Zeros are holes here.
    async fn seek(&self, offset: u64, whence: Whence) -> Result<u64> {
        self.memory.change(self.inode, |node| {
            let rest = node
                .data
                .get(offset as usize..)
                .filter(|rest| !rest.is_empty());
            let rest = rest.ok_or_else(|| error(ErrorCode::BeyondEnd))?;
            let found = match whence {
                Whence::Data => rest.iter().position(|&byte| byte != 0),
                Whence::Hole => Some(
                    rest.iter()
                        .position(|&byte| byte == 0)
                        .unwrap_or(rest.len()),
                ),
            };
            let found = found.ok_or_else(|| error(ErrorCode::BeyondEnd))?;
            Ok(offset + found as u64)
        })
    }

    async fn renew(&self) -> Result<()> {
        Ok(())
    }

    fn may_close_late(&self) -> bool {
        self.memory.late_closes.load(Ordering::Relaxed)
    }

    async fn close(self) -> Result<()> {
        self.memory.open_files.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }
}
