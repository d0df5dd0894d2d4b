//! What the handler notes for a successor of this process, and how it goes on where an earlier one stopped.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use emberfs_client::{Attr, Creds, LossesHeard, RequestScope, Result};
use emberfs_proto::ids::InodeId;
use emberfs_proto::{Error, ErrorCode, RetryClass};
use futures::StreamExt;
use parking_lot::Mutex;

use super::dirs::DirHandle;
use super::io::{FileHandle, Opened, Written, open_flags};
use super::{Handler, bad_handle};
use crate::backend::{Backend, OpenFile};
use crate::takeover::{DirRecord, Found, Kept, OpenRecord, Place};

/// Files opened again at a time.
const REOPENS: usize = 64;

/// Which request of the kernel's it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// The kernel's number for it.
    pub(crate) number: u64,
    /// An earlier process read it too, and may have done something about it.
    pub(crate) again: bool,
}

/// A record of the ledger about this.
#[derive(Debug)]
pub(super) struct Noted<R>(Mutex<Option<(Place, R)>>);

impl<R> Default for Noted<R> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<B: Backend> Handler<B> {
    /// As [`Self::open`], once for each request.
    pub(crate) async fn open_once(
        &self,
        asked: Asked,
        creds: &Creds,
        node: u64,
        flags: i32,
    ) -> Result<Opened> {
        if let Some(opened) = self.opened_earlier(asked) {
            return Ok(opened);
        }
        let opened = self.open(creds, node, flags).await?;
        self.opened(asked, opened.handle).await?;
        Ok(opened)
    }

    /// The outcome of [`Self::create`] or [`Self::create_unnamed`], once for each request.
    pub(crate) async fn create_once(
        &self,
        asked: Asked,
        create: impl Future<Output = Result<(Attr, Opened)>>,
    ) -> Result<(Attr, Opened)> {
        if let Some(opened) = self.opened_earlier(asked) {
            let inode = self.file(opened.handle)?.inode;
            let attr = self.backend.getattr(InodeId(inode)).await?;
            return Ok((self.show(attr), opened));
        }
        let (attr, opened) = create.await?;
        self.opened(asked, opened.handle).await?;
        Ok((attr, opened))
    }

    /// As [`Self::opendir`], once for each request.
    pub(crate) fn opendir_once(&self, asked: Asked, node: u64) -> u64 {
        let earlier = asked
            .again
            .then(|| self.ledger.as_ref()?.opened_earlier(asked.number));
        if let Some(handle) = earlier.flatten()
            && self.dirs.read().contains_key(&handle)
        {
            return handle;
        }
        let handle = self.opendir(node);
        self.note_opendir(handle, asked.number);
        handle
    }

    /// The bytes of an append, where a successor finds what became of them. If there was no room for that, what was written to
    /// the file before is stored first: an append of which nobody knows might be made twice.
    async fn secure(&self, asked: Asked, handle: u64, data: Bytes) -> Result<Bytes> {
        let Some(ledger) = &self.ledger else {
            return Ok(data);
        };
        if ledger.holds(&data) {
            return Ok(data);
        }
        self.sync_writers(self.file(handle)?.inode).await?;
        Ok(ledger.keep(asked.number, &data))
    }

    /// As [`Self::write`]; what an earlier process appended for this request stays where it put it.
    pub(crate) async fn write_once(
        &self,
        asked: Asked,
        handle: u64,
        offset: u64,
        data: Bytes,
        (stranger, append): (Option<Creds>, bool),
    ) -> Result<Written> {
        let kept = match &self.ledger {
            Some(ledger) if asked.again && append => ledger.written_earlier(asked.number),
            _ => Vec::new(),
        };
        let Some(at) = kept.first().map(Kept::offset) else {
            let data = if append {
                self.secure(asked, handle, data).await?
            } else {
                data
            };
            let mut written = self
                .write(handle, offset, data.clone(), (stranger, append))
                .await?;
            written.kept = data;
            return Ok(written);
        };
        self.write(handle, at, data, (stranger, false)).await?;
        // It is noted anew.
        drop(kept);
        Ok(Written {
            attr_stale: true,
            pages_stale: true,
            kept: Bytes::new(),
        })
    }

    /// As [`Self::release`]; an earlier process may have done it.
    pub(crate) async fn release_once(
        &self,
        asked: Asked,
        handle: u64,
        flock: Option<u64>,
    ) -> Result<()> {
        if asked.again && !self.files.read().contains_key(&handle) {
            return Ok(());
        }
        self.release(handle, flock).await
    }

    /// What an earlier process answered, or would have, to a request to open a file.
    fn opened_earlier(&self, asked: Asked) -> Option<Opened> {
        if !asked.again {
            return None;
        }
        let handle = self.ledger.as_ref()?.opened_earlier(asked.number)?;
        let file = self.files.read().get(&handle).cloned()?;
        Some(Opened {
            handle,
            keep_cache: false,
            attr_stale: true,
            direct: self.bypasses_cache(file.flags),
            flushes: true,
        })
    }

    /// A request has opened a file.
    async fn opened(&self, asked: Asked, handle: u64) -> Result<()> {
        let Some(ledger) = &self.ledger else {
            return Ok(());
        };
        let found = self.files.read().get(&handle).cloned();
        let file = found.ok_or_else(|| bad_handle(handle))?;
        let record = OpenRecord::new(handle, file.inode, file.flags, asked.number, &file.creds);
        *file.noted.0.lock() = ledger.add_open(&record).map(|place| (place, record));
        if asked.again {
            // It may have been answered from the record of an earlier process, whose sessions end.
            file.file.renew().await?;
        }
        Ok(())
    }

    pub(super) fn note_lockers(&self, noted: &Noted<OpenRecord>, lockers: &BTreeSet<u64>) {
        if let (Some(ledger), Some((place, record))) = (&self.ledger, &mut *noted.0.lock()) {
            ledger.set_lockers(place, record, lockers.iter().copied());
        }
    }

    pub(super) fn note_release(&self, noted: &Noted<OpenRecord>) {
        if let (Some(ledger), Some((place, _))) = (&self.ledger, noted.0.lock().take()) {
            ledger.remove_open(place);
        }
    }

    fn note_opendir(&self, handle: u64, unique: u64) {
        let Some(ledger) = &self.ledger else { return };
        let Some(dir) = self.dirs.read().get(&handle).cloned() else {
            return;
        };
        let record = DirRecord {
            handle,
            inode: dir.inode.0,
            unique,
            ..DirRecord::default()
        };
        *dir.noted.0.lock() = ledger.add_dir(&record).map(|place| (place, record));
    }

    pub(super) fn note_position(
        &self,
        noted: &Noted<DirRecord>,
        position: u64,
        before: impl FnOnce() -> Bytes,
    ) {
        if let (Some(ledger), Some((place, record))) = (&self.ledger, &mut *noted.0.lock())
            && record.position != position
        {
            (record.position, record.name) = (position, before());
            ledger.set_dir(place, record);
        }
    }

    pub(super) fn note_releasedir(&self, noted: &Noted<DirRecord>) {
        if let (Some(ledger), Some((place, _))) = (&self.ledger, noted.0.lock().take()) {
            ledger.remove_dir(place);
        }
    }

    /// Whether these bytes reach the file even if this process dies now, or need not.
    pub(super) fn note_write(&self, data: &Bytes, inode: u64, offset: u64) -> bool {
        let ledger = self.ledger.as_ref();
        ledger.is_none_or(|ledger| ledger.note_write(data, inode, offset))
    }

    /// The bytes of a write, where a successor of this process finds them if it needs to.
    pub(crate) fn keep_bytes(&self, unique: u64, data: &[u8]) -> Bytes {
        match &self.ledger {
            Some(ledger) => ledger.keep(unique, data),
            None => Bytes::copy_from_slice(data),
        }
    }

    /// For the changes of the request with this number: they are made once, whoever asks for them.
    pub(crate) fn scope(&self, unique: u64) -> Option<RequestScope> {
        let log = self.ledger.as_ref()?.log(unique);
        self.backend.scope(log)
    }

    /// Takes over what an earlier process left: afterwards requests may be served. An error: the servers cannot be asked, and
    /// nothing is lost yet. Single files that are gone are left out. `complete`: the earlier process told the servers of all
    /// that it wrote.
    pub(crate) async fn resume(&self, found: Found, complete: bool) -> Result<()> {
        let Some(ledger) = &self.ledger else {
            return Ok(());
        };
        self.backend.hold_numbers(&ledger.earlier_numbers());
        if let Err(error) = self.backend.shut_out_earlier().await {
            // It shuts the earlier process out when it is reached, before anything else.
            tracing::warn!(%error, "a server that is not reached may still finish a write of the process before");
        }
        let appended = match self.backend.resume_locks().await {
            Err(error) if is_final(&error) => {
                tracing::error!(%error, "locks that were set through this mount are lost");
                Vec::new()
            }
            appended => appended?,
        };
        let handles = found.opens.iter().map(|(_, open)| open.handle);
        let handles = handles.chain(found.dirs.iter().map(|(_, dir)| dir.handle));
        let next = handles.max().map_or(1, |last| last + 1);
        self.next_handle.store(next, Ordering::Relaxed);
        for (place, record) in found.dirs {
            let inode = InodeId(record.inode);
            let dir = DirHandle::resumed(inode, record.position, record.name.clone());
            let handle = record.handle;
            *dir.noted.0.lock() = Some((place, record));
            self.dirs.write().insert(handle, Arc::new(dir));
        }
        let opens = found.opens.into_iter();
        let opens = opens.map(|(place, record)| self.reopen(place, record, complete));
        let mut opens = futures::stream::iter(opens).buffer_unordered(REOPENS);
        while let Some(reopened) = opens.next().await {
            reopened?;
        }
        drop(opens);
        // What is stored from now on is not to be written again.
        ledger.freeze(false);
        for write in found.writes {
            self.write_again(write.inode, write.offset, write.data)
                .await;
        }
        for inode in appended {
            self.appends.take_over(inode.0);
            self.append_wanted(inode.0).await?;
        }
        Ok(())
    }

    async fn reopen(&self, place: Place, record: OpenRecord, complete: bool) -> Result<()> {
        let (inode, flags, creds) = (record.inode, record.flags, record.creds());
        let opened = self
            .backend
            .resume_file(&creds, InodeId(inode), open_flags(flags), complete)
            .await;
        let (mut attr, file) = match opened {
            Ok(opened) => opened,
            Err(error) if is_final(&error) => {
                tracing::error!(inode, %error, "an open file is gone: what uses it will see errors");
                if let Some(ledger) = &self.ledger {
                    ledger.remove_open(place);
                }
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let state = FileHandle::new(&attr, file, flags, &creds, LossesHeard::default());
        // Nobody has noted whether it has one.
        state.flocked.store(true, Ordering::Release);
        self.inodes.opened(&mut attr, state.writable);
        state.lockers.lock().extend(record.lockers());
        if record.lockers().next().is_some() {
            self.locked.add(inode);
        }
        let handle = record.handle;
        *state.noted.0.lock() = Some((place, record));
        self.files.write().insert(handle, Arc::new(state));
        Ok(())
    }

    /// Buffers bytes that an earlier process had buffered.
    async fn write_again(&self, inode: u64, offset: u64, data: Bytes) {
        let writer = {
            let files = self.files.read();
            let mut writers = files
                .values()
                .filter(|file| file.inode == inode && file.writable);
            writers.next().cloned()
        };
        let len = data.len();
        let written = match &writer {
            Some(file) => {
                file.begin_write();
                file.file.write(offset, data).await
            }
            None => Err(bad_handle(0)),
        };
        match written {
            Ok(()) => self
                .inodes
                .wrote(inode, offset.saturating_add(len as u64), false),
            Err(error) => {
                tracing::error!(inode, offset, len, %error, "bytes that the process before this one had taken are lost");
            }
        }
    }

    /// This process ends and another goes on: what is dropped now stays for that one.
    pub(crate) fn freeze(&self) {
        if let Some(ledger) = &self.ledger {
            ledger.freeze(true);
        }
    }

    /// Every request that an earlier process did not answer has been read again.
    pub(crate) fn resumed(&self) {
        if let Some(ledger) = &self.ledger {
            ledger.forget_earlier();
            self.backend.release_numbers();
        }
    }
}

/// Nobody can take this over. (Not so if a later process has: then this one must leave everything as it is.)
fn is_final(error: &Error) -> bool {
    error.retry() == RetryClass::Never && error.code != ErrorCode::Superseded
}
