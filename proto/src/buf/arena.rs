//! One region of memory for all I/O buffers of a process, so that the kernel can know it beforehand.
//!
//! A device reads and writes memory by physical pages. Handed a fresh address it pins and describes each 4 KiB page
//! of it on every request; of a region that was registered once, and lies in huge pages, a 1 MiB buffer is one piece.
//! Measured with 1 MiB O_DIRECT reads, that is a quarter of the processor time and up to three times the rate
//! (docs/benchmarks.md). So the region is mapped once, never given back, and cut into power-of-two
//! buffers by the buddy method (Knowlton, CACM 1965).
//!
//! A process that reserves nothing has no region, and its buffers come from the heap.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::OnceLock;

use parking_lot::Mutex;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

/// Smallest piece, bytes.
const UNIT: usize = super::MIN_CLASS;
/// Size and alignment of a huge page, bytes.
const HUGE_PAGE: usize = 2 << 20;

static ARENA: OnceLock<Arena> = OnceLock::new();

/// The region of this process.
pub(super) struct Arena {
    base: NonNull<u8>,
    len: usize,
    buddies: Mutex<Buddies>,
}

// SAFETY: the region is plain memory that lives as long as the process; who may touch which part of it is decided by
// `buddies`, which gives each piece to one owner.
unsafe impl Send for Arena {}
// SAFETY: as above; through `&Arena` nothing but `buddies` changes, and that is behind a lock.
unsafe impl Sync for Arena {}

/// Maps the region: `bytes`, rounded up to huge pages. Only the first call of a process counts. Its memory is
/// used once it is touched or registered with the kernel.
///
/// Fails if the address space or the process's memory limit is too small; then buffers come from the heap.
pub fn reserve(bytes: usize) -> io::Result<()> {
    if bytes == 0 || ARENA.get().is_some() {
        return Ok(());
    }
    let len = bytes.next_multiple_of(HUGE_PAGE);
    // Room to begin at a huge page; what lies before and behind is never touched.
    let mapped = len + HUGE_PAGE;
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing that exists.
    let start = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            mapped,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )?
    };
    let skip = start.cast::<u8>().align_offset(HUGE_PAGE);
    // SAFETY: `skip` is less than HUGE_PAGE, so the address lies within the mapping, with `len` bytes behind it.
    let base = unsafe { start.cast::<u8>().add(skip) };
    // SAFETY: advice about memory that only this function knows. Without huge pages it works as well, slower.
    if let Err(errno) = unsafe { madvise(base.cast(), len, Advice::LinuxHugepage) } {
        tracing::debug!(%errno, "no huge pages for I/O buffers");
    }
    let base = NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?;
    let arena = Arena {
        base,
        len,
        buddies: Mutex::new(Buddies::new(len / UNIT)),
    };
    // Lost a race: the other region serves, this one was never touched and costs address space only.
    let _ = ARENA.set(arena);
    Ok(())
}

/// Addresses of the region, to be registered with the kernel; `None` if nothing was reserved.
pub fn addresses() -> Option<Range<usize>> {
    let arena = ARENA.get()?;
    let start = arena.base.as_ptr() as usize;
    Some(start..start + arena.len)
}

/// A piece of `capacity` bytes, a power of two, aligned to its size up to a huge page.
pub(super) fn take(capacity: usize) -> Option<NonNull<u8>> {
    let arena = ARENA.get()?;
    let unit = arena.buddies.lock().take(order_of(capacity)?)?;
    // SAFETY: `unit` is a piece of the region, so the address lies within it.
    Some(unsafe { arena.base.add(unit * UNIT) })
}

/// Whether a piece belongs to the region.
pub(super) fn owns(ptr: NonNull<u8>) -> bool {
    addresses().is_some_and(|region| region.contains(&(ptr.as_ptr() as usize)))
}

/// Gives a piece of [`take`] back.
pub(super) fn give(ptr: NonNull<u8>, capacity: usize) {
    if let (Some(arena), Some(order)) = (ARENA.get(), order_of(capacity)) {
        let offset = ptr.as_ptr() as usize - arena.base.as_ptr() as usize;
        arena.buddies.lock().give(offset / UNIT, order);
    }
}

fn order_of(capacity: usize) -> Option<usize> {
    let order = (capacity / UNIT).checked_ilog2()? as usize;
    (order < ORDERS).then_some(order)
}

/// Sizes: one unit, two, four, ….
const ORDERS: usize = super::CLASSES;

/// Which units are free: per order, the first units of free pieces. Two free neighbours that make up a piece of
/// the next order are always joined.
#[derive(Debug)]
struct Buddies {
    free: [BTreeSet<usize>; ORDERS],
}

impl Buddies {
    /// `units` in a row, all free.
    fn new(units: usize) -> Self {
        let mut buddies = Self {
            free: std::array::from_fn(|_| BTreeSet::new()),
        };
        let mut at = 0;
        while at < units {
            let fits = (units - at).ilog2() as usize;
            let aligned = if at == 0 {
                ORDERS
            } else {
                at.trailing_zeros() as usize
            };
            let order = fits.min(aligned).min(ORDERS - 1);
            buddies.free[order].insert(at);
            at += 1 << order;
        }
        buddies
    }

    /// The first unit of a piece, the lowest of the smallest size that will do.
    fn take(&mut self, order: usize) -> Option<usize> {
        let from = (order..ORDERS).find(|&o| !self.free[o].is_empty())?;
        let unit = self.free[from].pop_first()?;
        for smaller in (order..from).rev() {
            self.free[smaller].insert(unit + (1 << smaller));
        }
        Some(unit)
    }

    fn give(&mut self, mut unit: usize, mut order: usize) {
        while order < ORDERS - 1 && self.free[order].remove(&(unit ^ (1 << order))) {
            unit &= !(1 << order);
            order += 1;
        }
        self.free[order].insert(unit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn free_units(buddies: &Buddies) -> usize {
        let pieces = buddies.free.iter().enumerate();
        pieces.map(|(order, units)| units.len() << order).sum()
    }

    proptest! {
        #[test]
        fn pieces_never_overlap_and_join_again(
            units in 1_usize..5000,
            steps in prop::collection::vec((0..ORDERS, any::<bool>(), any::<prop::sample::Index>()), 1..200),
        ) {
            let mut buddies = Buddies::new(units);
            prop_assert_eq!(free_units(&buddies), units);
            let whole = format!("{buddies:?}");
            let mut taken: Vec<(usize, usize)> = Vec::new();
            for (order, give, which) in steps {
                if give && !taken.is_empty() {
                    let (unit, order) = taken.swap_remove(which.index(taken.len()));
                    buddies.give(unit, order);
                } else if let Some(unit) = buddies.take(order) {
                    prop_assert_eq!(unit % (1 << order), 0);
                    let end = unit + (1 << order);
                    prop_assert!(end <= units);
                    for &(other, size) in &taken {
                        prop_assert!(end <= other || other + (1 << size) <= unit);
                    }
                    taken.push((unit, order));
                }
                let used: usize = taken.iter().map(|(_, order)| 1 << order).sum();
                prop_assert_eq!(free_units(&buddies) + used, units);
            }
            for (unit, order) in taken {
                buddies.give(unit, order);
            }
            prop_assert_eq!(format!("{buddies:?}"), whole);
        }
    }

    #[test]
    fn the_region_serves_buffers_until_it_is_full_and_then_the_heap_does() {
        reserve(4 << 20).unwrap();
        reserve(1 << 30).unwrap();
        let region = addresses().unwrap();
        assert_eq!((region.start % HUGE_PAGE, region.len()), (0, 4 << 20));
        let inside = |buf: &super::super::AlignedBuf| region.contains(&(buf.as_ptr() as usize));
        let held: Vec<_> = (0..8)
            .map(|_| super::super::AlignedBuf::zeroed(1 << 20))
            .collect();
        assert!(held.iter().filter(|buf| inside(buf)).count() <= 4);
        assert!(held.iter().any(|buf| !inside(buf)));
        drop(held);
        let mut again = super::super::AlignedBuf::new(4 << 20);
        again.fill(7);
        assert!(again.iter().all(|&b| b == 7));
    }
}
