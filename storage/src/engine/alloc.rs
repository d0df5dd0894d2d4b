//! Which blocks are free, who uses the others.
//!
//! Nothing here is on disk: the index is the only truth, and this is rebuilt from it at open.
//!
//! **Invariant.** A block is *free* exactly when no record owns it and no [`Block`] pins it. A pin
//! is taken by the task that fills a fresh block (so that a failed or abandoned write frees it by
//! dropping the pin) and by each reader (so that what it reads is not reused under it). Ownership
//! changes only together with the record: see [`super::index`].
//!
//! Free blocks are *backed* (the file system has allocated them) or *holes* (punched out, or of
//! unknown state after open). Only the space thread turns one into the other.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use emberfs_proto::{Error, ErrorCode, Result};
use parking_lot::Mutex;

use super::bitmap::Bitmap;
use super::classes::{CLASSES, Class, Loc};

/// The blocks of one class.
#[derive(Default)]
struct ClassState {
    /// Blocks in the file.
    total: u32,
    backed: Bitmap,
    holes: Bitmap,
    owned: Bitmap,
    pins: HashMap<u32, u32>,
}

/// The blocks of one disk.
pub(super) struct Allocator {
    classes: [Mutex<ClassState>; CLASSES],
    /// Bytes in blocks that are not free.
    in_use: AtomicU64,
    /// Of those, bytes whose record is gone but whose reuse waits for the index to be flushed.
    retiring: AtomicU64,
    /// Bytes in free backed blocks.
    idle: AtomicU64,
    /// `in_use` may not exceed this.
    limit: u64,
}

/// A pin on a block; freed with the last one unless a record owns the block.
pub(super) struct Block {
    allocator: Arc<Allocator>,
    loc: Loc,
}

impl Block {
    pub(super) fn loc(&self) -> Loc {
        self.loc
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.allocator.unpin(self.loc);
    }
}

impl Allocator {
    /// An empty one that hands out at most `limit` bytes.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            classes: std::array::from_fn(|_| Mutex::default()),
            in_use: AtomicU64::new(0),
            retiring: AtomicU64::new(0),
            idle: AtomicU64::new(0),
            limit,
        }
    }

    /// Takes a backed free block; `None` when the class has none and must grow. `NoSpace` at
    /// the configured capacity.
    pub(super) fn allocate(self: &Arc<Self>, class: Class) -> Result<Option<Block>> {
        let bytes = u64::from(class.capacity());
        let mut state = self.classes[class.index()].lock();
        let before = self.in_use.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > self.limit {
            self.in_use.fetch_sub(bytes, Ordering::Relaxed);
            let what = format!(
                "{before} of {} bytes are in use: add disks or delete",
                self.limit
            );
            return Err(Error::new(ErrorCode::NoSpace, what));
        }
        let Some(number) = state.backed.pop_first() else {
            self.in_use.fetch_sub(bytes, Ordering::Relaxed);
            return Ok(None);
        };
        self.idle.fetch_sub(bytes, Ordering::Relaxed);
        state.pins.insert(number, 1);
        Ok(Some(Block {
            allocator: Arc::clone(self),
            loc: Loc { class, number },
        }))
    }

    /// Pins a block that a record owns (or that is pinned already).
    pub(super) fn pin(self: &Arc<Self>, loc: Loc) -> Block {
        let mut state = self.classes[loc.class.index()].lock();
        debug_assert!(state.owned.contains(loc.number) || state.pins.contains_key(&loc.number));
        *state.pins.entry(loc.number).or_insert(0) += 1;
        Block {
            allocator: Arc::clone(self),
            loc,
        }
    }

    fn unpin(&self, loc: Loc) {
        let mut state = self.classes[loc.class.index()].lock();
        let Some(count) = state.pins.get_mut(&loc.number) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            state.pins.remove(&loc.number);
            self.free_if_unused(&mut state, loc);
        }
    }

    /// A record owns the block from now on; `false` if one did already.
    pub(super) fn own(&self, loc: Loc) -> bool {
        self.classes[loc.class.index()]
            .lock()
            .owned
            .insert(loc.number)
    }

    /// The record of the block is gone, but may come back with a crash: not reusable yet.
    pub(super) fn retire(&self, loc: Loc) {
        self.retiring
            .fetch_add(u64::from(loc.class.capacity()), Ordering::Relaxed);
    }

    /// The record of a retired block is gone for good.
    pub(super) fn disown(&self, loc: Loc) {
        self.retiring
            .fetch_sub(u64::from(loc.class.capacity()), Ordering::Relaxed);
        let mut state = self.classes[loc.class.index()].lock();
        if state.owned.remove(loc.number) {
            self.free_if_unused(&mut state, loc);
        }
    }

    fn free_if_unused(&self, state: &mut ClassState, loc: Loc) {
        if !state.owned.contains(loc.number) && !state.pins.contains_key(&loc.number) {
            let bytes = u64::from(loc.class.capacity());
            state.backed.insert(loc.number);
            self.in_use.fetch_sub(bytes, Ordering::Relaxed);
            self.idle.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// At open, once per block that the index names: `false` if two records own it.
    pub(super) fn restore(&self, loc: Loc) -> bool {
        self.in_use
            .fetch_add(u64::from(loc.class.capacity()), Ordering::Relaxed);
        self.own(loc)
    }

    /// At open, after the last [`Self::restore`]: blocks that the file must have.
    pub(super) fn blocks_needed(&self, class: Class) -> u32 {
        self.classes[class.index()]
            .lock()
            .owned
            .iter()
            .last()
            .map_or(0, |n| n + 1)
    }

    /// At open: the file has `total` blocks; what nobody owns is free, of unknown backing.
    pub(super) fn restore_total(&self, class: Class, total: u32) {
        let mut state = self.classes[class.index()].lock();
        state.total = total;
        for number in 0..total {
            if !state.owned.contains(number) {
                state.holes.insert(number);
            }
        }
    }

    /// Blocks in the class's file.
    pub(super) fn total(&self, class: Class) -> u32 {
        self.classes[class.index()].lock().total
    }

    /// The file has grown: these blocks are free and backed.
    pub(super) fn grown(&self, class: Class, blocks: Range<u32>) {
        let mut state = self.classes[class.index()].lock();
        state.total = state.total.max(blocks.end);
        self.add_backed(&mut state, class, blocks);
    }

    fn add_backed(&self, state: &mut ClassState, class: Class, blocks: Range<u32>) {
        let bytes = u64::from(class.capacity()) * u64::from(blocks.end - blocks.start);
        self.idle.fetch_add(bytes, Ordering::Relaxed);
        for number in blocks {
            state.backed.insert(number);
        }
    }

    /// The highest holes, to be backed again or punched; they stay holes meanwhile.
    pub(super) fn holes(&self, class: Class, below: u32, most: u32) -> Option<Range<u32>> {
        self.classes[class.index()]
            .lock()
            .holes
            .last_run(below, most)
    }

    /// These holes are backed now.
    pub(super) fn backed(&self, class: Class, blocks: Range<u32>) {
        let mut state = self.classes[class.index()].lock();
        for number in blocks.clone() {
            state.holes.remove(number);
        }
        self.add_backed(&mut state, class, blocks);
    }

    /// Takes the highest run of free backed blocks out for punching, if more than `keep` bytes
    /// of such blocks are there.
    pub(super) fn claim_idle(&self, class: Class, keep: u64, most: u32) -> Option<Range<u32>> {
        let mut state = self.classes[class.index()].lock();
        let capacity = u64::from(class.capacity());
        let surplus = (u64::from(state.backed.count()) * capacity).checked_sub(keep + 1)?;
        let most = (surplus / capacity + 1).min(u64::from(most)) as u32;
        let run = state.backed.last_run(u32::MAX, most)?;
        for number in run.clone() {
            state.backed.remove(number);
        }
        self.idle
            .fetch_sub(capacity * u64::from(run.end - run.start), Ordering::Relaxed);
        Some(run)
    }

    /// Claimed blocks are punched.
    pub(super) fn punched(&self, class: Class, blocks: Range<u32>) {
        let mut state = self.classes[class.index()].lock();
        for number in blocks {
            state.holes.insert(number);
        }
    }

    /// Bytes of free backed blocks of a class.
    pub(super) fn idle_of(&self, class: Class) -> u64 {
        let state = self.classes[class.index()].lock();
        u64::from(state.backed.count()) * u64::from(class.capacity())
    }

    /// Bytes in blocks of chunks (or about to be).
    pub(super) fn used_bytes(&self) -> u64 {
        let in_use = self.in_use.load(Ordering::Relaxed);
        in_use.saturating_sub(self.retiring.load(Ordering::Relaxed))
    }

    /// Bytes in free blocks that the file system has allocated already.
    pub(super) fn idle_bytes(&self) -> u64 {
        self.idle.load(Ordering::Relaxed) + self.retiring.load(Ordering::Relaxed)
    }

    /// The configured capacity.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Every block that a record owns, and how many are pinned; for invariant checks.
    pub(super) fn snapshot(&self) -> (Vec<Loc>, usize) {
        let (mut owned, mut pinned) = (Vec::new(), 0);
        for class in Class::all() {
            let state = self.classes[class.index()].lock();
            owned.extend(state.owned.iter().map(|number| Loc { class, number }));
            pinned += state.pins.len();
        }
        (owned, pinned)
    }
}

#[cfg(test)]
mod tests;
