//! Pending versions whose bytes a loss of power has taken.
//!
//! A change flushes its bytes and its record side by side and answers when both are durable: one flush of latency
//! instead of two. So power may fail when the record is durable and the bytes are not. Such a version was never
//! acknowledged, and its record is still pending, because a commit comes after the answer. At open every pending
//! version is read and compared with its checksums; one that does not match is dropped, as if the change had never
//! begun. (An acknowledged one can be dropped here only if its page was damaged since; then other replicas have it.)

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

use emberfs_proto::buf::AlignedBuf;
use emberfs_proto::checksum::crc32;
use emberfs_proto::ids::{ChunkKey, TargetId};
use emberfs_proto::{Error, ErrorCode, Result};

use super::classes::{Class, Loc, sector_up};
use super::files::BlockFiles;
use super::health::Health;
use super::index::{self, Index, Op};
use super::record::{Content, Pending, Record};

/// A pending version that has not been looked at yet.
pub(super) struct Suspect {
    target: TargetId,
    chunk: ChunkKey,
    record: Record,
}

impl Suspect {
    /// `None` if the record has no pending bytes.
    pub(super) fn of(target: TargetId, chunk: ChunkKey, record: &Record) -> Option<Self> {
        let bytes = matches!(&record.pending, Some(Pending::Write(content)) if content.len > 0);
        bytes.then(|| Self {
            target,
            chunk,
            record: record.clone(),
        })
    }

    fn pending(&self) -> Option<&Content> {
        match &self.record.pending {
            Some(Pending::Write(content)) => Some(content),
            _ => None,
        }
    }

    /// Whether all pages that the pending version brought are on the disk. Those that it shares with the committed
    /// version are not looked at: they were durable before.
    fn is_whole(&self, files: &BlockFiles) -> std::io::Result<bool> {
        let Some((pending, loc)) = self.pending().and_then(|p| Some((p, p.block?))) else {
            return Ok(true);
        };
        let committed = self.record.committed.as_ref();
        let shared = committed.filter(|c| c.block == Some(loc));
        let old = |n: usize| shared.and_then(|c| c.sums.get(n));
        let mut buf = AlignedBuf::new(self.record.page_size as usize);
        for (n, sum) in pending.sums.iter().enumerate() {
            if old(n) == Some(sum) {
                continue;
            }
            let start = n as u32 * self.record.page_size;
            let len = (pending.len - start).min(self.record.page_size);
            buf.set_len(sector_up(len) as usize);
            let at = loc.start() + u64::from(start);
            match files.open(loc.class)?.read_exact_at(&mut buf, at) {
                Ok(()) => {}
                // The file lost its end as well.
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
            if crc32(&buf[..len as usize]) != *sum {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Drops the suspects that lack bytes, durably, and flushes those of the others, whose process may have been
/// killed before it did; the blocks that nobody owns after that.
pub(super) fn settle(
    suspects: Vec<Suspect>,
    index: &Index,
    files: &BlockFiles,
    health: &Health,
) -> Result<Vec<Loc>> {
    let (mut ops, mut freed) = (Vec::new(), Vec::new());
    let mut kept_in = BTreeSet::new();
    for suspect in suspects {
        let Suspect { target, chunk, .. } = suspect;
        let whole = suspect.is_whole(files).map_err(|error| {
            let what = format!(
                "disk {}: reading target {target} chunk {chunk}: {error}",
                health.disk()
            );
            Error::new(ErrorCode::DiskError, what)
        });
        match whole {
            Ok(true) => {
                let loc = suspect.pending().and_then(|p| p.block);
                kept_in.extend(loc.map(|loc| loc.class.index()));
                continue;
            }
            Ok(false) => {}
            // A page that cannot be read is damage, for whoever reads it to meet; it says nothing of a loss of power.
            Err(error) => {
                tracing::warn!(%error, "a pending version cannot be checked");
                continue;
            }
        }
        let version = suspect.pending().map_or(0, |p| p.stamp.version.0);
        tracing::warn!(
            disk = %health.disk(), %target, %chunk, version,
            "dropping a write that was never acknowledged: its bytes did not reach the disk before it lost power"
        );
        let Record {
            page_size,
            chunk_size,
            committed,
            ..
        } = suspect.record.clone();
        let kept: Vec<Loc> = committed.iter().filter_map(|c| c.block).collect();
        freed.extend(suspect.record.blocks().filter(|loc| !kept.contains(loc)));
        let key = index::key(target, chunk);
        ops.push(match committed {
            None => Op::Delete(key),
            Some(committed) => Op::Put(
                key,
                Box::new(Record {
                    page_size,
                    chunk_size,
                    committed: Some(committed),
                    pending: None,
                }),
            ),
        });
    }
    for class in Class::all().filter(|class| kept_in.contains(&class.index())) {
        let flushed = files.open(class).and_then(|file| file.sync_data());
        flushed.map_err(|error| health.write_failed("pending versions", &error))?;
    }
    if !ops.is_empty() {
        index.apply(&ops)?;
        index.flush()?;
    }
    Ok(freed)
}
