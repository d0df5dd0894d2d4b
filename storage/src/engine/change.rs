//! Changes of chunks: prepare, commit, discard, drop.

use emberfs_proto::checksum::fragment_count;
use emberfs_proto::ids::{ChainVersion, ChunkKey, ChunkVersion, TargetId, WriteTag};
use emberfs_proto::{Error, ErrorCode, Result};
use std::sync::Arc;

use super::core::{Core, Hold};
use super::plan::Edit;
use super::record::{Content, Pending, Record, Stamp, check_sizes};
use super::transfer::Change;
use super::types::{ChunkMeta, Prepare, PrepareKind};

/// Checks a request by itself.
fn validate(prepare: &Prepare) -> Result<()> {
    let bad = |what: &str| Err(Error::new(ErrorCode::InvalidArgument, what));
    if let Err(why) = check_sizes(prepare.page_size, prepare.chunk_size) {
        return bad(why);
    }
    if prepare.version == ChunkVersion(0) {
        return bad("chunk version 0 means no chunk");
    }
    let (offset, data, sums) = match &prepare.kind {
        PrepareKind::Write {
            offset,
            data,
            checksums,
            ..
        } => (*offset, data, checksums),
        PrepareKind::Replace {
            data, checksums, ..
        } => (0, data, checksums),
        PrepareKind::Truncate { len } if *len > prepare.chunk_size => {
            return bad("length beyond the chunk size");
        }
        PrepareKind::Truncate { .. } | PrepareKind::Remove => return Ok(()),
    };
    if u64::from(offset) + data.len() as u64 > u64::from(prepare.chunk_size) {
        return bad("bytes beyond the chunk size");
    }
    if sums.len() != fragment_count(offset, data.len() as u32, prepare.page_size) {
        return bad("there must be one checksum per fragment");
    }
    Ok(())
}

/// Whether the change comes in turn. `Ok(false)`: it is pending already.
fn in_turn(record: Option<&Record>, prepare: &Prepare) -> Result<bool> {
    let committed = record.map_or(ChunkVersion(0), Record::committed_version);
    let pending = record.and_then(|r| r.pending.as_ref());
    let sizes = record.map(|r| (r.page_size, r.chunk_size));
    let keeps = committed != ChunkVersion(0);
    if keeps && sizes != Some((prepare.page_size, prepare.chunk_size)) {
        let what = format!("the chunk has (page, chunk) size {sizes:?}, fixed when it was created");
        return Err(Error::new(ErrorCode::InvalidArgument, what));
    }
    if matches!(prepare.kind, PrepareKind::Replace { .. }) {
        return Ok(true);
    }
    let version = prepare.version;
    if version <= committed {
        let what = format!("the chunk is at {committed} already, {version} is too late");
        let error = Error::new(ErrorCode::StaleChunkVersion, what);
        return Err(error.newer_version(committed.0));
    }
    if version.0 > committed.0 + 1 {
        let what = format!("the chunk is at {committed}, {version} comes too early");
        return Err(Error::new(ErrorCode::MissingVersion, what));
    }
    match pending.map(Pending::stamp) {
        None => Ok(true),
        // The same write again, after a lost answer.
        Some(stamp)
            if stamp.version == version
                && stamp.tag == prepare.tag
                && prepare.tag != WriteTag::default() =>
        {
            Ok(false)
        }
        Some(stamp) => {
            let what = format!("{} is pending since write {}", stamp.version, stamp.tag);
            Err(Error::new(ErrorCode::PendingExists, what))
        }
    }
}

fn meta(record: Option<Arc<Record>>) -> Option<ChunkMeta> {
    record.map(|record| record.meta())
}

impl Core {
    /// See [`Engine::prepare`](super::Engine::prepare). Must run to its end: the record may come before the bytes.
    pub(super) async fn prepare(
        &self,
        target: TargetId,
        chunk: ChunkKey,
        prepare: Prepare,
    ) -> Result<ChunkMeta> {
        self.health.writable()?;
        let named = |error: Error| error.context(format_args!("target {target} chunk {chunk}"));
        validate(&prepare).map_err(named)?;
        let hold = self.hold(target, chunk).await?;
        let old = hold.record.clone();
        if !in_turn(old.as_deref(), &prepare).map_err(named)? {
            // Its first caller may have gone away before its bytes were durable.
            if let Some(Pending::Write(Content {
                block: Some(loc), ..
            })) = old.as_deref().and_then(|r| r.pending.as_ref())
            {
                self.flush_block(target, chunk, *loc).await?;
            }
            return meta(old).ok_or_else(|| self.gone(target, chunk));
        }
        let Prepare {
            version,
            chain_version,
            tag,
            page_size,
            chunk_size,
            ..
        } = prepare;
        let stamp = Stamp {
            version,
            chain: chain_version,
            tag,
        };
        let base = old.as_deref().and_then(|r| r.committed.as_ref());
        let recent = match &prepare.kind {
            PrepareKind::Replace { recent, .. } => Arc::clone(recent),
            _ => base.map_or_else(Arc::default, |base| base.remembered(tag)),
        };
        let (pending, fresh, bytes) = match self.edit(base, prepare) {
            None => (Pending::Remove(stamp), None, None),
            Some((base, edit, data, sums)) => {
                let (page, chunk) = (page_size, chunk_size);
                let change = Change {
                    base,
                    edit,
                    data,
                    sums: &sums,
                    stamp,
                    recent,
                    page,
                    chunk,
                };
                let stored = self.store(&hold, change).await?;
                let pending = Pending::Write(stored.content);
                (pending, stored.block, stored.bytes)
            }
        };
        let committed = base.cloned();
        let new = Record {
            page_size,
            chunk_size,
            committed,
            pending: Some(pending),
        };
        // Side by side: see [`super::unflushed`].
        let write = async {
            match bytes {
                Some(bytes) => self.write_durably(bytes).await,
                None => Ok(()),
            }
        };
        let (written, record) = tokio::join!(write, self.set_record(hold, Some(new), true, fresh));
        let record = record?;
        if let Err(error) = written {
            // Nothing was stored, the caller hears. If this fails as well, the disk takes no more writes.
            let _ = self.abort(target, chunk, version).await;
            return Err(error);
        }
        meta(record).ok_or_else(|| self.gone(target, chunk))
    }

    /// What a request does to which bytes; `None`: a removal.
    #[expect(clippy::unused_self, reason = "reads as a step of prepare()")]
    fn edit<'a>(
        &self,
        base: Option<&'a Content>,
        prepare: Prepare,
    ) -> Option<(Option<&'a Content>, Edit, bytes::Bytes, Vec<u32>)> {
        let old = base.map_or(0, |b| b.len);
        Some(match prepare.kind {
            PrepareKind::Write {
                offset,
                data,
                checksums,
                size_hint,
            } => (
                base,
                Edit::write(old, offset, data.len() as u32, size_hint),
                data,
                checksums,
            ),
            PrepareKind::Truncate { len } => {
                (base, Edit::truncate(len), bytes::Bytes::new(), Vec::new())
            }
            PrepareKind::Replace {
                data, checksums, ..
            } => (
                None,
                Edit::write(0, 0, data.len() as u32, 0),
                data,
                checksums,
            ),
            PrepareKind::Remove => return None,
        })
    }

    fn gone(&self, target: TargetId, chunk: ChunkKey) -> Error {
        let what = format!(
            "disk {} target {target}: no chunk {chunk}",
            self.health.disk()
        );
        Error::new(ErrorCode::ChunkNotFound, what)
    }

    /// See [`Engine::commit`](super::Engine::commit).
    pub(super) async fn commit(
        &self,
        target: TargetId,
        chunk: ChunkKey,
        version: ChunkVersion,
        chain: ChainVersion,
    ) -> Result<Option<ChunkMeta>> {
        let hold = self.hold(target, chunk).await?;
        let Some(old) = hold.record.clone() else {
            return Err(self.gone(target, chunk));
        };
        let committed = old.committed_version();
        let new = match &old.pending {
            Some(Pending::Write(content)) if content.stamp.version == version => {
                let stamp = Stamp {
                    chain,
                    ..content.stamp
                };
                let content = Content {
                    stamp,
                    ..content.clone()
                };
                Some(Record {
                    committed: Some(content),
                    pending: None,
                    ..*old
                })
            }
            Some(Pending::Remove(stamp)) if stamp.version == version => None,
            _ if version <= committed => return Ok(meta(Some(old))),
            _ => {
                let what = format!(
                    "target {target} chunk {chunk}: cannot commit {version}, the chunk is at {committed}"
                );
                return Err(Error::new(ErrorCode::MissingVersion, what));
            }
        };
        Ok(meta(self.set_record(hold, new, false, None).await?))
    }

    /// See [`Engine::abort`](super::Engine::abort).
    pub(super) async fn abort(
        &self,
        target: TargetId,
        chunk: ChunkKey,
        version: ChunkVersion,
    ) -> Result<Option<ChunkMeta>> {
        let hold = self.hold(target, chunk).await?;
        let Some(old) = hold.record.clone() else {
            return Ok(None);
        };
        if old
            .pending
            .as_ref()
            .is_none_or(|p| p.stamp().version != version)
        {
            return Ok(meta(Some(old)));
        }
        let new = old.committed.clone().map(|c| Record {
            committed: Some(c),
            pending: None,
            ..*old
        });
        Ok(meta(self.set_record(hold, new, true, None).await?))
    }

    /// See [`Engine::drop_chunk`](super::Engine::drop_chunk).
    pub(super) async fn drop_chunk(&self, target: TargetId, chunk: ChunkKey) -> Result<()> {
        let hold: Hold = self.hold(target, chunk).await?;
        if hold.record.is_some() {
            self.set_record(hold, None, true, None).await?;
        }
        Ok(())
    }
}
