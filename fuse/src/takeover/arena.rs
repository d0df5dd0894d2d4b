//! Shared memory for the bytes of buffered writes, so that a process that dies leaves them to the next.
//!
//! A write of the kernel's is copied out of the device's message anyway; here the copy goes to a *slot* of an anonymous
//! file that the keeper holds as well. The slot is free again when the last reference to its bytes is dropped, which
//! the client does when the chains have acknowledged them. What [`Arena::open`] finds noted is therefore what
//! was answered and may not be stored. A successor stores that; until it has seen every request again that was not
//! answered, it keeps where those bytes went ([`Kept`]), because it may die too, and an append must not go to two places.
//! Slots come in three sizes, because writes do; the file is as large as all
//! of them together, but takes memory only for slots that were used, and never more than the client may buffer.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

/// Size of a slot in bytes, and how many there are. Part of what two versions of this program share.
const CLASSES: [(usize, usize); 3] = [(4 << 10, 16_384), (64 << 10, 2048), (1 << 20, 256)];
const SLOTS: usize = CLASSES[0].1 + CLASSES[1].1 + CLASSES[2].1;
/// Bytes of headers before the slots, whole pages. Behind the last one is room for [`LastChange`].
const HEADERS: usize = (SLOTS * size_of::<Header>()).next_multiple_of(64 << 10);
const _: () = assert!(SLOTS * size_of::<Header>() + size_of::<LastChange>() <= HEADERS);
const LENGTH: usize = HEADERS
    + CLASSES[0].0 * CLASSES[0].1
    + CLASSES[1].0 * CLASSES[1].1
    + CLASSES[2].0 * CLASSES[2].1;

/// What is known of a slot's bytes.
#[repr(C, align(64))]
struct Header {
    /// Order of the write among all; 0: the slot is free, or its bytes have not been written to the file yet.
    sequence: AtomicU64,
    /// The kernel's number for the request.
    unique: AtomicU64,
    inode: AtomicU64,
    offset: AtomicU64,
    len: AtomicU64,
    /// Equal to `unique`: a successor keeps where this request wrote, whether its bytes are stored by now or not.
    placed: AtomicU64,
}

/// The last change of names or attributes that was answered before it was durable: in which start of the metadata server, and its
/// commit there.
#[repr(C, align(64))]
struct LastChange {
    start: AtomicU64,
    commit: AtomicU64,
}

/// A write that an earlier process left.
#[derive(Debug)]
pub(crate) struct Left {
    sequence: u64,
    pub(crate) inode: u64,
    pub(crate) offset: u64,
    pub(crate) data: Bytes,
}

/// See the module.
pub(crate) struct Arena {
    map: Map,
    /// What is dropped now is dropped because the process ends: it stays for the next one.
    frozen: AtomicBool,
    sequence: AtomicU64,
    /// Who refers to each slot: its bytes, and what is kept of an earlier process.
    users: Box<[AtomicU8]>,
    /// Of each class; last in, first out, so that few slots take memory.
    free: [Mutex<Vec<u32>>; 3],
}

/// A slot in use.
struct Slot {
    arena: Arc<Arena>,
    class: usize,
    index: u32,
    len: usize,
}

impl AsRef<[u8]> for Slot {
    fn as_ref(&self) -> &[u8] {
        self.arena
            .map
            .bytes(slot_at(self.class, self.index), self.len)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.arena.frozen.load(Ordering::Acquire) {
            return;
        }
        let header = self.arena.header(self.class, self.index);
        header.sequence.store(0, Ordering::Release);
        self.arena.leave(self.class, self.index);
    }
}

/// Where an earlier process wrote for a request that it may not have answered. Successors find it until this is dropped.
pub(crate) struct Kept {
    arena: Arc<Arena>,
    class: usize,
    index: u32,
}

impl Kept {
    /// The kernel's number for the request.
    pub(crate) fn unique(&self) -> u64 {
        self.header().unique.load(Ordering::Relaxed)
    }

    /// Where in the file its bytes went.
    pub(crate) fn offset(&self) -> u64 {
        self.header().offset.load(Ordering::Relaxed)
    }

    fn header(&self) -> &Header {
        self.arena.header(self.class, self.index)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !self.arena.frozen.load(Ordering::Acquire) {
            self.arena.leave(self.class, self.index);
        }
    }
}

impl Arena {
    /// The memory of a new one.
    pub(crate) fn create() -> io::Result<OwnedFd> {
        let fd = rustix::fs::memfd_create("emberfs-writes", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, LENGTH as u64)?;
        Ok(fd)
    }

    /// Takes the memory over from the process that used it last; also what that one left, in the order of its writes, and
    /// where requests wrote that were not answered (and others). It is frozen at first.
    pub(crate) fn open(fd: &OwnedFd) -> io::Result<(Arc<Self>, Vec<Left>, Vec<Kept>)> {
        if File::from(fd.try_clone()?).metadata()?.len() != LENGTH as u64 {
            let what =
                "the memory of buffered writes is laid out differently: another version made it";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let arena = Arc::new(Self {
            map: Map::new(fd, LENGTH)?,
            frozen: AtomicBool::new(true),
            sequence: AtomicU64::new(0),
            users: (0..SLOTS).map(|_| AtomicU8::new(0)).collect(),
            free: std::array::from_fn(|_| Mutex::default()),
        });
        let (mut left, mut kept) = (Vec::new(), Vec::new());
        for (class, &(capacity, count)) in CLASSES.iter().enumerate() {
            for index in (0..count as u32).rev() {
                let header = arena.header(class, index);
                let sequence = header.sequence.load(Ordering::Acquire);
                let len = header.len.load(Ordering::Relaxed) as usize;
                let unique = header.unique.load(Ordering::Relaxed);
                let placed = unique != 0 && header.placed.load(Ordering::Relaxed) == unique;
                let unstored = sequence != 0 && len <= capacity;
                if !unstored && !placed {
                    arena.free[class].lock().push(index);
                    continue;
                }
                header.placed.store(unique, Ordering::Relaxed);
                arena.users_of(class, index).store(1, Ordering::Relaxed);
                kept.push(Kept {
                    arena: arena.clone(),
                    class,
                    index,
                });
                if unstored {
                    arena.users_of(class, index).store(2, Ordering::Relaxed);
                    left.push(Left {
                        sequence,
                        inode: header.inode.load(Ordering::Relaxed),
                        offset: header.offset.load(Ordering::Relaxed),
                        data: Bytes::from_owner(Slot {
                            arena: arena.clone(),
                            class,
                            index,
                            len,
                        }),
                    });
                }
            }
        }
        left.sort_by_key(|write| write.sequence);
        let last = left.last().map_or(0, |write| write.sequence);
        arena.sequence.store(last, Ordering::Relaxed);
        Ok((arena, left, kept))
    }

    /// While it is frozen, what is dropped stays for a successor of this process.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Release);
    }

    /// Copies the bytes of a request into a slot; `None` if none is free. A successor finds them once [`Self::note`] was called.
    pub(crate) fn keep(self: &Arc<Self>, unique: u64, data: &[u8]) -> Option<Bytes> {
        let mut fits = (0..CLASSES.len()).filter(|&class| data.len() <= CLASSES[class].0);
        let (class, index) =
            fits.find_map(|class| Some((class, self.free[class].lock().pop()?)))?;
        self.map.fill(slot_at(class, index), data);
        let header = self.header(class, index);
        header.unique.store(unique, Ordering::Relaxed);
        header.len.store(data.len() as u64, Ordering::Relaxed);
        self.users_of(class, index).store(1, Ordering::Relaxed);
        Some(Bytes::from_owner(Slot {
            arena: self.clone(),
            class,
            index,
            len: data.len(),
        }))
    }

    /// From now on a successor of this process writes `data` to the inode if this one does not; false if `data` is not
    /// (the whole of) what [`Self::keep`] gave.
    pub(crate) fn note(&self, data: &Bytes, inode: u64, offset: u64) -> bool {
        let Some((class, index)) = self.find(data) else {
            return false;
        };
        let header = self.header(class, index);
        header.inode.store(inode, Ordering::Relaxed);
        header.offset.store(offset, Ordering::Relaxed);
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        header.sequence.store(sequence, Ordering::Release);
        true
    }

    /// Whether these are what [`Self::keep`] gave.
    pub(crate) fn holds(&self, data: &Bytes) -> bool {
        self.find(data).is_some()
    }

    /// A successor learns of this change. One thread at a time.
    pub(crate) fn note_change(&self, start: u64, commit: u64) {
        let last = self.map.last_change();
        if last.start.swap(start, Ordering::Relaxed) == start {
            last.commit.fetch_max(commit, Ordering::Relaxed);
        } else {
            last.commit.store(commit, Ordering::Relaxed);
        }
    }

    /// The last one that was noted, by an earlier process too.
    pub(crate) fn last_change(&self) -> Option<(u64, u64)> {
        let last = self.map.last_change();
        let (start, commit) = (&last.start, &last.commit);
        let commit = commit.load(Ordering::Relaxed);
        (commit > 0).then(|| (start.load(Ordering::Relaxed), commit))
    }

    fn find(&self, data: &Bytes) -> Option<(usize, u32)> {
        let mut at = self.map.offset_of(data.as_ptr())?.checked_sub(HEADERS)?;
        for (class, &(capacity, count)) in CLASSES.iter().enumerate() {
            if at < capacity * count {
                let whole = at.is_multiple_of(capacity);
                return whole.then_some((class, (at / capacity) as u32));
            }
            at -= capacity * count;
        }
        None
    }

    /// One user of a slot less; after the last it is free.
    fn leave(&self, class: usize, index: u32) {
        if self.users_of(class, index).fetch_sub(1, Ordering::AcqRel) == 1 {
            self.header(class, index).placed.store(0, Ordering::Relaxed);
            self.free[class].lock().push(index);
        }
    }

    fn users_of(&self, class: usize, index: u32) -> &AtomicU8 {
        &self.users[number(class, index)]
    }

    fn header(&self, class: usize, index: u32) -> &Header {
        self.map.header(number(class, index))
    }
}

/// Which of all slots it is.
fn number(class: usize, index: u32) -> usize {
    let before: usize = CLASSES[..class].iter().map(|&(_, count)| count).sum();
    before + index as usize
}

/// Where a slot begins.
fn slot_at(class: usize, index: u32) -> usize {
    let before = CLASSES[..class].iter();
    let before: usize = before.map(|&(capacity, count)| capacity * count).sum();
    HEADERS + before + index as usize * CLASSES[class].0
}

/// The file in memory.
struct Map {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to no thread; see the methods for who may touch which bytes.
unsafe impl Send for Map {}
// SAFETY: headers are atomics; the bytes of a slot are written by who took it off the free list, before anybody else can
// refer to them, and only read afterwards.
unsafe impl Sync for Map {}

impl Map {
    fn new(fd: &OwnedFd, len: usize) -> io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing.
        let base =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, fd, 0)? };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len })
    }

    fn header(&self, number: usize) -> &Header {
        assert!(number < SLOTS, "there are {SLOTS} slots");
        // SAFETY: inside the mapping, which lives as long as `self`; the base is a page's, so the header is aligned; all
        // its fields are atomics, for which any bytes are values, and nobody writes there otherwise.
        unsafe { self.base.cast::<Header>().add(number).as_ref() }
    }

    fn last_change(&self) -> &LastChange {
        // SAFETY: inside the mapping (asserted where its place is defined), which lives as long as `self`; aligned and made of atomics
        // as the headers are, which it lies behind.
        unsafe { self.base.cast::<Header>().add(SLOTS).cast().as_ref() }
    }

    /// The bytes of a slot that is in use.
    fn bytes(&self, at: usize, len: usize) -> &[u8] {
        assert!(at >= HEADERS && at + len <= self.len, "inside the slots");
        // SAFETY: inside the mapping; a slot in use is not written to. The file never shrinks: the keeper and its workers
        // are the only ones who have it.
        unsafe { std::slice::from_raw_parts(self.base.add(at).as_ptr(), len) }
    }

    /// Fills a slot that nobody else refers to yet.
    fn fill(&self, at: usize, data: &[u8]) {
        assert!(
            at >= HEADERS && at + data.len() <= self.len,
            "inside the slots"
        );
        // SAFETY: inside the mapping; the slot was just taken off the free list, so there is no other reference to its bytes;
        // `data` is memory of this process's own and does not overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(data.as_ptr(), self.base.add(at).as_ptr(), data.len());
        }
    }

    fn offset_of(&self, pointer: *const u8) -> Option<usize> {
        let at = (pointer as usize).checked_sub(self.base.as_ptr() as usize)?;
        (at < self.len).then_some(at)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the mapping any more: slots keep the arena alive.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(left: &[Left]) -> Vec<(u64, u64, usize)> {
        let content = |write: &Left| (write.inode, write.offset, write.data.len());
        left.iter().map(content).collect()
    }

    fn places(kept: &[Kept]) -> Vec<(u64, u64)> {
        let mut places: Vec<_> = kept
            .iter()
            .map(|kept| (kept.unique(), kept.offset()))
            .collect();
        places.sort_unstable();
        places
    }

    #[test]
    fn what_is_noted_and_not_dropped_is_left_in_order() {
        let fd = Arena::create().unwrap();
        let (arena, left, _) = Arena::open(&fd).unwrap();
        arena.freeze(false);
        assert!(left.is_empty());
        let small = arena.keep(2, &[1; 100]).unwrap();
        let large = arena.keep(4, &vec![2; 1 << 20]).unwrap();
        let stored = arena.keep(6, &[3; 5000]).unwrap();
        let begun = arena.keep(8, &[4; 5000]).unwrap();
        assert!(arena.note(&stored, 9, 0));
        assert!(arena.note(&large, 7, 1 << 40));
        assert!(arena.note(&small, 7, 50));
        // A part keeps the whole.
        let part = small.slice(10..20);
        drop((small, stored));
        // The process is gone, and nothing of it was dropped.
        let (second, left, kept) = Arena::open(&fd).unwrap();
        assert_eq!(content(&left), [(7, 1 << 40, 1 << 20), (7, 50, 100)]);
        assert_eq!(places(&kept), [(2, 50), (4, 1 << 40)]);
        assert!(left[0].data.iter().all(|&byte| byte == 2));
        assert!(left[1].data.iter().all(|&byte| byte == 1));
        // A successor that fails before it begins leaves everything as it found it.
        drop((second, left, kept));
        let (second, left, kept) = Arena::open(&fd).unwrap();
        assert_eq!(left.len(), 2);
        second.freeze(false);
        drop((left, kept));
        // Its successor numbers its own writes behind them.
        let next = second.keep(10, &[5; 10]).unwrap();
        assert!(second.note(&next, 1, 0));
        let (_, left, _) = Arena::open(&fd).unwrap();
        assert_eq!(content(&left), [(1, 0, 10)]);
        drop((part, begun, large));
    }

    #[test]
    fn the_last_change_is_known_to_successors() {
        let fd = Arena::create().unwrap();
        let (first, ..) = Arena::open(&fd).unwrap();
        assert_eq!(first.last_change(), None);
        first.note_change(3, 70);
        first.note_change(3, 69);
        drop(first);
        let (second, ..) = Arena::open(&fd).unwrap();
        assert_eq!(second.last_change(), Some((3, 70)));
        second.note_change(4, 68);
        let (third, ..) = Arena::open(&fd).unwrap();
        assert_eq!(third.last_change(), Some((4, 68)));
    }

    #[test]
    fn where_bytes_went_is_kept_after_they_are_stored_until_it_is_dropped() {
        let fd = Arena::create().unwrap();
        let (first, ..) = Arena::open(&fd).unwrap();
        first.freeze(false);
        let begun = first.keep(2, &[1; 100]).unwrap();
        assert!(first.note(&begun, 7, 50));
        // A successor stores the bytes and dies before it sees the request again; so does the next.
        let (second, left, kept) = Arena::open(&fd).unwrap();
        second.freeze(false);
        drop(left);
        std::mem::forget(kept);
        let (third, left, kept) = Arena::open(&fd).unwrap();
        assert!(left.is_empty(), "stored bytes are not written again");
        assert_eq!(places(&kept), [(2, 50)]);
        std::mem::forget(kept);
        drop(third);
        let (fourth, _, kept) = Arena::open(&fd).unwrap();
        assert_eq!(places(&kept), [(2, 50)]);
        fourth.freeze(false);
        let slots = |arena: &Arena| arena.free[0].lock().len();
        assert_eq!(slots(&fourth), CLASSES[0].1 - 1);
        drop(kept);
        assert_eq!(slots(&fourth), CLASSES[0].1);
        // Its slot may be used again, also while nothing is known of where its bytes go.
        std::mem::forget(fourth.keep(4, &[2; 10]).unwrap());
        let (_, left, kept) = Arena::open(&fd).unwrap();
        assert!(left.is_empty() && kept.is_empty());
        std::mem::forget(begun);
    }

    #[test]
    fn a_full_arena_gives_nothing_and_other_bytes_are_not_its_own() {
        let fd = Arena::create().unwrap();
        let (arena, ..) = Arena::open(&fd).unwrap();
        arena.freeze(false);
        let (capacity, count) = CLASSES[2];
        let large = vec![7; capacity];
        let all: Vec<_> = (0..count).map(|_| arena.keep(2, &large).unwrap()).collect();
        assert!(arena.keep(2, &large).is_none());
        assert!(arena.keep(2, &vec![7; capacity + 1]).is_none());
        drop(all);
        let kept = arena.keep(2, &large).unwrap();
        assert!(!arena.note(&kept.slice(1..), 1, 0), "not the whole");
        assert!(!arena.note(&Bytes::from(large), 1, 0));
        // Small writes take larger slots when theirs are gone.
        let small: Vec<_> = (0..CLASSES[0].1 + 3)
            .map(|_| arena.keep(2, &[1]).unwrap())
            .collect();
        assert!(small.iter().all(|data| arena.note(data, 1, 0)));
    }
}
