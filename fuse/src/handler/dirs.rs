//! Directory listings.
//!
//! The server lists names in byte order, a page at a time, after a given name. The kernel wants
//! numbers (cookies) to resume from. Each open directory numbers its entries as they come: 1 is `.`,
//! 2 is `..`, 3 the first name and so on; a cookie means "after this one".
//!
//! - **Going on** uses the last name, not a count, so deleting what was listed skips nothing.
//! - **Going back** a little (the kernel drops what did not fit) is served from a window of the last
//!   entries. Further back (seekdir) lists again from the nearest page mark; deletions in between may
//!   then shift the position, as they do on most file systems.
//! - **Rewinding** starts afresh.
//! - Entries that come with attributes make the kernel believe the name and the attributes, so
//!   whatever has changed since a page was fetched, here or as far as the watch tells elsewhere, is fetched again first.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use emberfs_client::{Attr, Creds, LossesHeard, Result};
use emberfs_proto::ErrorCode;
use emberfs_proto::ids::InodeId;
use emberfs_proto::pb::FileKind;
use tokio::sync::Mutex;

use super::ghosts::is_gone;
use super::succession::Noted;
use super::{Handler, ROOT_NODE, bad_handle, virtual_dir};
use crate::backend::Backend;
use crate::takeover::DirRecord;

#[cfg(test)]
mod tests;

/// Names asked for first, and after a change; each further page is twice as long.
const FIRST_PAGE: u32 = 256;

/// Names asked for at most.
const MAX_PAGE: u32 = 2048;

/// Entries kept for going back; at some 300 bytes each this is 1.2 MiB per open directory.
const WINDOW: usize = 4096;

/// Entries per answer: somewhat more than fit the kernel's usual 32 KiB.
const MAX_BATCH: usize = 256;

/// `.` and `..` come first.
const DOTS: u64 = 2;

/// One line of a listing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DirItem {
    pub(crate) node: u64,
    /// Where to resume after this one.
    pub(crate) cookie: u64,
    pub(crate) name: Bytes,
    pub(crate) kind: FileKind,
    /// Current attributes; only if asked for, and not for `.` and `..`.
    pub(crate) attr: Option<Attr>,
}

/// An open directory.
pub(super) struct DirHandle {
    pub(super) inode: InodeId,
    /// Of which losses of names an fsync need not tell.
    heard: LossesHeard,
    /// One reader at a time; the kernel sees to that for one open anyway.
    listing: Mutex<Listing>,
    /// For a successor of this process.
    pub(super) noted: Noted<DirRecord>,
}

struct Fetched {
    name: Bytes,
    attr: Attr,
    /// The clock of changes when the page was asked for.
    at: u64,
}

/// A sliding window over the names; positions count from 0, the first name.
struct Listing {
    window: VecDeque<Fetched>,
    /// Position of the window's first entry.
    start: u64,
    /// The window's last entry is the directory's last.
    complete: bool,
    /// For some positions, ascending, the name before it.
    marks: Vec<(u64, Bytes)>,
    page: u32,
    parent: u64,
}

impl Default for Listing {
    fn default() -> Self {
        Self {
            window: VecDeque::new(),
            start: 0,
            complete: false,
            marks: vec![(0, Bytes::new())],
            page: FIRST_PAGE,
            parent: 0,
        }
    }
}

impl DirHandle {
    fn new(inode: InodeId, heard: LossesHeard) -> Self {
        Self {
            inode,
            heard,
            listing: Mutex::default(),
            noted: Noted::default(),
        }
    }

    /// As an earlier process left it: names from `position` on come after `name`.
    pub(super) fn resumed(inode: InodeId, position: u64, name: Bytes) -> Self {
        let mut listing = Listing::default();
        if position > 0 {
            listing.marks.push((position, name));
        }
        Self {
            listing: Mutex::new(listing),
            ..Self::new(inode, LossesHeard::default())
        }
    }
}

impl Listing {
    fn end(&self) -> u64 {
        self.start + self.window.len() as u64
    }

    fn get(&self, position: u64) -> Option<&Fetched> {
        self.window
            .get(usize::try_from(position.checked_sub(self.start)?).ok()?)
    }

    /// Moves to `position` if the window does not reach there: back to the nearest mark before it.
    fn seek(&mut self, position: u64) {
        if position < self.start || position > self.end() {
            let index = self
                .marks
                .partition_point(|(at, _)| *at <= position)
                .saturating_sub(1);
            self.start = self.marks.get(index).map_or(0, |(at, _)| *at);
            self.window.clear();
            self.complete = false;
        }
    }

    /// Forgets everything from `position` on, so that it is fetched again.
    fn cut(&mut self, position: u64) {
        if position < self.end() {
            self.note(position);
            self.window
                .truncate(position.saturating_sub(self.start) as usize);
        }
        // Marks beyond belong to the numbering that has just been given up.
        self.marks.retain(|(at, _)| *at <= position);
        self.complete = false;
        self.page = FIRST_PAGE;
    }

    /// The name before the window's end: where the next page starts.
    fn last_name(&self) -> Bytes {
        match self.window.back() {
            Some(last) => last.name.clone(),
            None => self.mark(self.start),
        }
    }

    /// The name before a position in the window or marked.
    fn before(&self, position: u64) -> Bytes {
        let inside = position.checked_sub(1).and_then(|before| self.get(before));
        inside.map_or_else(|| self.mark(position), |entry| entry.name.clone())
    }

    fn mark(&self, position: u64) -> Bytes {
        let found = self.marks.binary_search_by_key(&position, |(at, _)| *at);
        found
            .ok()
            .and_then(|i| self.marks.get(i))
            .map(|(_, name)| name.clone())
            .unwrap_or_default()
    }

    /// Sets a mark at a position inside the window.
    fn note(&mut self, position: u64) {
        let before = position
            .checked_sub(1)
            .and_then(|p| self.get(p))
            .map(|e| e.name.clone());
        if let (Some(name), Err(index)) = (
            before,
            self.marks.binary_search_by_key(&position, |(at, _)| *at),
        ) {
            self.marks.insert(index, (position, name));
        }
    }

    /// Appends a page fetched at `at` after [`Self::last_name`].
    fn extend(&mut self, entries: impl IntoIterator<Item = (Bytes, Attr)>, end: bool, at: u64) {
        let old_end = self.end();
        self.note(old_end);
        self.window.extend(
            entries
                .into_iter()
                .map(|(name, attr)| Fetched { name, attr, at }),
        );
        self.complete = end || self.end() == old_end;
        self.page = (self.page * 2).min(MAX_PAGE);
        let surplus = self.window.len().saturating_sub(WINDOW);
        if surplus > 0 {
            // The new start needs a mark, or nothing could be fetched from there again.
            self.note(self.start + surplus as u64);
            self.window.drain(..surplus);
            self.start += surplus as u64;
        }
    }
}

impl<B: Backend> Handler<B> {
    pub(crate) fn opendir(&self, node: u64) -> u64 {
        let handle = self.draw_handle();
        let inode = self.inode(node);
        let dir = DirHandle::new(inode, self.backend.losses_heard(inode));
        self.dirs.write().insert(handle, Arc::new(dir));
        handle
    }

    pub(crate) fn releasedir(&self, handle: u64) {
        let removed = self.dirs.write().remove(&handle);
        if let Some(dir) = removed {
            self.note_releasedir(&dir.noted);
        }
    }

    /// Names that were made and removed in it through this mount are durable afterwards.
    pub(crate) async fn sync_directory(&self, handle: u64) -> Result<()> {
        let dir = self.dir(handle)?;
        if virtual_dir::is_virtual(dir.inode.0) {
            return Ok(());
        }
        self.backend.sync_changes(dir.inode, &dir.heard).await
    }

    fn dir(&self, handle: u64) -> Result<Arc<DirHandle>> {
        let dirs = self.dirs.read();
        dirs.get(&handle).cloned().ok_or_else(|| bad_handle(handle))
    }

    /// The entries after `cookie` (0: from the start); none at the end. With `attrs` the kernel
    /// will believe the attributes that come along. Who may read the directory was asked when it was opened, and that counts
    /// as long as it is open.
    pub(crate) async fn readdir(
        &self,
        handle: u64,
        cookie: u64,
        attrs: bool,
    ) -> Result<Vec<DirItem>> {
        let dir = self.dir(handle)?;
        let mut listing = dir.listing.lock().await;
        if cookie == 0 {
            *listing = Listing::default();
        }
        let mut position = cookie.saturating_sub(DOTS);
        listing.seek(position);
        if attrs
            && let Some(next) = listing.get(position)
            && self.inodes.changed_since(dir.inode.0, next.at)
        {
            listing.cut(position);
        }
        // The first page also tells the parent.
        while position >= listing.end() && !listing.complete {
            match self.fetch(&dir, &mut listing).await {
                // Nothing is in it, not even itself.
                Err(error) if is_gone(&error) && self.ghosts.knows(dir.inode.0) => {
                    return Ok(Vec::new());
                }
                fetched => fetched?,
            }
        }
        self.note_position(&dir.noted, position, || listing.before(position));
        let mut batch = self.dots(&dir, &listing, cookie);
        while batch.len() < MAX_BATCH {
            let Some(entry) = listing.get(position) else {
                break;
            };
            position += 1;
            if let Some(item) = self.item(entry, position + DOTS, attrs).await? {
                batch.push(item);
            }
            // An empty answer would mean the end.
            if batch.is_empty() && position >= listing.end() && !listing.complete {
                self.fetch(&dir, &mut listing).await?;
            }
        }
        Ok(batch)
    }

    async fn fetch(&self, dir: &DirHandle, listing: &mut Listing) -> Result<()> {
        let at = self.inodes.now();
        let after = listing.last_name();
        let reply = match virtual_dir::listing(dir.inode.0, self.root) {
            Some(own) => own,
            None => {
                let root = Creds::default();
                self.backend
                    .readdir(&root, dir.inode, &after, listing.page)
                    .await?
            }
        };
        listing.parent = reply.parent;
        let entries = reply.entries.into_iter();
        let entries = entries.filter_map(|entry| Some((entry.name, entry.attr?)));
        listing.extend(entries, reply.end, at);
        Ok(())
    }

    fn dots(&self, dir: &DirHandle, listing: &Listing, cookie: u64) -> Vec<DirItem> {
        let own = self.node(dir.inode.0);
        let parent = if own == ROOT_NODE {
            ROOT_NODE
        } else {
            self.node(listing.parent)
        };
        let dots: [(u64, &'static [u8]); 2] = [(own, b"."), (parent, b"..")];
        let numbered = (1..)
            .zip(dots)
            .skip(usize::try_from(cookie).unwrap_or(usize::MAX));
        numbered
            .map(|(cookie, (node, name))| DirItem {
                // 0 would hide the entry from programs.
                node: node.max(ROOT_NODE),
                cookie,
                name: Bytes::from_static(name),
                kind: FileKind::Directory,
                attr: None,
            })
            .collect()
    }

    /// `None` if the entry has gone in the meantime.
    async fn item(&self, entry: &Fetched, cookie: u64, attrs: bool) -> Result<Option<DirItem>> {
        let mut attr = entry.attr;
        let own = virtual_dir::is_virtual(attr.inode);
        if attrs && !own && self.inodes.changed_since(attr.inode, entry.at) {
            attr = match self.backend.getattr(InodeId(attr.inode)).await {
                Ok(attr) => attr,
                Err(error) if matches!(error.code, ErrorCode::NotFound | ErrorCode::Stale) => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
        }
        let kind = attr.kind();
        // One that has outgrown the kernel's pages of it is shown by a lookup, which sees to that first.
        let attrs = attrs && self.inodes.outgrown(&mut attr).is_none();
        let attr = if attrs {
            self.show(attr)
        } else {
            attr.inode = self.node(attr.inode);
            attr
        };
        let name = entry.name.clone();
        Ok(Some(DirItem {
            node: attr.inode,
            cookie,
            name,
            kind,
            attr: attrs.then_some(attr),
        }))
    }
}
