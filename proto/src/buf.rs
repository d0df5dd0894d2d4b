//! Page-aligned buffers, pooled: the same bytes serve the socket, the disk and the next hop.
//!
//! O_DIRECT wants memory aligned to the device's block; a payload that is received into
//! an [`AlignedBuf`] goes to the disk and to the successor without a copy. Buffers are always
//! initialised (fresh ones are zeroed by the kernel, reused ones hold old bytes), so no
//! caller ever sees uninitialised memory. Freed buffers return to a process-wide pool that
//! is bounded in bytes. A storage server has them in one region that its rings register with the
//! kernel ([`arena`]).

pub mod arena;

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytes::Bytes;
use parking_lot::Mutex;

/// Alignment of every buffer, in bytes: the largest logical block of current disks.
pub const ALIGNMENT: usize = 4096;

/// Smallest pooled capacity.
const MIN_CLASS: usize = ALIGNMENT;
/// Number of power-of-two classes: 4 KiB … 64 MiB.
const CLASSES: usize = 15;
/// Most bytes of free buffers that each class keeps.
const POOLED_BYTES_PER_CLASS: usize = 32 << 20;
/// The same of buffers in the region, which others need as well: only small ones are worth keeping cut.
const KEPT_CUT_BYTES_PER_CLASS: usize = 1 << 20;

/// Free buffers of the heap, one list per power-of-two capacity.
static POOL: [Mutex<Vec<RawBuf>>; CLASSES] = [const { Mutex::new(Vec::new()) }; CLASSES];
/// Free buffers cut from the region.
static CUT: [Mutex<Vec<RawBuf>>; CLASSES] = [const { Mutex::new(Vec::new()) }; CLASSES];

struct RawBuf {
    ptr: NonNull<u8>,
    capacity: usize,
}

// SAFETY: a RawBuf exclusively owns its allocation; moving it to another thread moves the ownership.
unsafe impl Send for RawBuf {}
// SAFETY: a shared RawBuf gives out only `&[u8]` (through AlignedBuf's Deref), never interior mutability.
unsafe impl Sync for RawBuf {}

impl RawBuf {
    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, ALIGNMENT).expect(
            "capacity is at most isize::MAX: it was rounded up from a length that fits memory",
        )
    }

    fn allocate(capacity: usize) -> Self {
        let layout = Self::layout(capacity);
        // SAFETY: capacity is at least MIN_CLASS, so the layout has a non-zero size.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(raw) else {
            handle_alloc_error(layout)
        };
        Self { ptr, capacity }
    }
}

impl Drop for RawBuf {
    fn drop(&mut self) {
        if arena::owns(self.ptr) {
            return arena::give(self.ptr, self.capacity);
        }
        // SAFETY: ptr came from alloc_zeroed with this very layout and is freed once.
        unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.capacity)) }
    }
}

/// An owned, initialised buffer whose address is a multiple of [`ALIGNMENT`].
pub struct AlignedBuf {
    raw: Option<RawBuf>,
    len: usize,
}

impl AlignedBuf {
    /// A buffer of `len` bytes with arbitrary (but initialised) contents. The capacity is
    /// rounded up to a power of two of at least 4 KiB.
    pub fn new(len: usize) -> Self {
        let capacity = len.max(MIN_CLASS).next_power_of_two();
        let pooled = |pool: &[Mutex<Vec<RawBuf>>; CLASSES]| pool[class_of(capacity)?].lock().pop();
        let cut = || arena::take(capacity).map(|ptr| RawBuf { ptr, capacity });
        let raw = pooled(&CUT)
            .or_else(cut)
            .or_else(|| pooled(&POOL))
            .unwrap_or_else(|| RawBuf::allocate(capacity));
        Self {
            raw: Some(raw),
            len,
        }
    }

    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let mut buf = Self::new(len);
        buf.fill(0);
        buf
    }

    /// Bytes that fit without a new allocation.
    pub fn capacity(&self) -> usize {
        self.raw().capacity
    }

    /// Changes the length; the bytes that appear have arbitrary contents.
    ///
    /// # Panics
    /// When `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.capacity(),
            "length {len} exceeds the capacity {}",
            self.capacity()
        );
        self.len = len;
    }

    /// Makes the buffer shareable without a copy; it returns to the pool with its last clone.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    fn raw(&self) -> &RawBuf {
        self.raw
            .as_ref()
            .expect("only drop takes the allocation out")
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the allocation holds `capacity >= len` initialised bytes and is borrowed with self.
        unsafe { std::slice::from_raw_parts(self.raw().ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref, and `&mut self` makes the borrow exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.raw().ptr.as_ptr(), self.len) }
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} of {} bytes)", self.len, self.capacity())
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        let Some(raw) = self.raw.take() else { return };
        if let Some(class) = class_of(raw.capacity) {
            let (pool, most) = if arena::owns(raw.ptr) {
                (&CUT, KEPT_CUT_BYTES_PER_CLASS)
            } else {
                (&POOL, POOLED_BYTES_PER_CLASS)
            };
            let mut pool = pool[class].lock();
            if (pool.len() + 1) * raw.capacity <= most {
                pool.push(raw);
            }
        }
    }
}

fn class_of(capacity: usize) -> Option<usize> {
    let class = (capacity.trailing_zeros() - MIN_CLASS.trailing_zeros()) as usize;
    (class < CLASSES).then_some(class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_keep_their_bytes_when_frozen() {
        for len in [0, 1, 4096, 4097, 1 << 20, (64 << 20) + 1] {
            let mut buf = AlignedBuf::zeroed(len);
            assert_eq!(buf.as_ptr() as usize % ALIGNMENT, 0);
            assert_eq!(buf.len(), len);
            assert!(buf.iter().all(|&b| b == 0));
            buf.iter_mut().for_each(|b| *b = 7);
            let bytes = buf.freeze();
            assert!(bytes.len() == len && bytes.iter().all(|&b| b == 7));
        }
    }

    #[test]
    fn the_pool_is_bounded() {
        let many: Vec<_> = (0..64).map(|_| AlignedBuf::new(4 << 20)).collect();
        drop(many);
        let class = class_of(4 << 20).unwrap();
        assert!(POOL[class].lock().len() * (4 << 20) <= POOLED_BYTES_PER_CLASS);
    }
}
