//! Size classes of blocks: four per doubling, as in jemalloc, from 4 KiB to 64 MiB.
//!
//! 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, … KiB: each a multiple of 4 KiB (what
//! O_DIRECT needs), and above 16 KiB none is more than a quarter larger than the one below, so a
//! chunk wastes less than a fifth of its block. The class number is part of the on-disk format.

/// Unit of all disk I/O, bytes.
pub(super) const SECTOR: u32 = 4096;
/// Number of size classes.
pub(super) const CLASSES: usize = 52;
/// Capacity of the largest class, bytes: the largest chunk.
pub(super) const LARGEST: u32 = 64 << 20;

/// Number of a size class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Class(u8);

impl Class {
    /// Every class, smallest first.
    pub(super) fn all() -> impl DoubleEndedIterator<Item = Self> {
        (0..CLASSES as u8).map(Self)
    }

    /// The class with this number.
    pub(super) fn from_number(number: u8) -> Option<Self> {
        (usize::from(number) < CLASSES).then_some(Self(number))
    }

    /// Its number in the on-disk format.
    pub(super) fn number(self) -> u8 {
        self.0
    }

    /// Its place in tables of all classes.
    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Bytes that fit into a block.
    pub(super) fn capacity(self) -> u32 {
        if self.0 < 4 {
            return SECTOR * (u32::from(self.0) + 1);
        }
        let (doubling, step) = (u32::from(self.0) / 4, u32::from(self.0) % 4);
        // Doubling 1 goes from 20 to 32 KiB in steps of 4, doubling 2 from 40 to 64 in steps of 8, …
        (SECTOR << (doubling - 1)) * (5 + step)
    }

    /// The smallest class that holds `len` bytes; `None` beyond [`LARGEST`].
    pub(super) fn for_len(len: u32) -> Option<Self> {
        if len > LARGEST {
            return None;
        }
        let (mut low, mut high) = (0, CLASSES as u8 - 1);
        while low < high {
            let middle = u8::midpoint(low, high);
            if Self(middle).capacity() >= len {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Some(Self(low))
    }
}

/// Where a block lies: the `number`th of its class's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Loc {
    pub(super) class: Class,
    pub(super) number: u32,
}

impl Loc {
    /// First byte in the class's file.
    pub(super) fn start(self) -> u64 {
        u64::from(self.number) * u64::from(self.class.capacity())
    }
}

impl std::fmt::Display for Loc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "block {} of {} KiB",
            self.number,
            self.class.capacity() >> 10
        )
    }
}

/// Rounds up to whole sectors.
pub(super) fn sector_up(len: u32) -> u32 {
    len.next_multiple_of(SECTOR)
}

/// Rounds down to whole sectors.
pub(super) fn sector_down(len: u32) -> u32 {
    len - len % SECTOR
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_table_is_sorted_aligned_and_ends_at_the_largest_chunk() {
        let kib: Vec<u32> = Class::all().map(|c| c.capacity() >> 10).collect();
        assert_eq!(
            kib[..14],
            [4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96]
        );
        assert_eq!(kib.last(), Some(&(LARGEST >> 10)));
        assert!(kib.is_sorted_by(|a, b| a < b));
        assert!(Class::all().all(|c| c.capacity().is_multiple_of(SECTOR)));
        // Every power of two has a class of exactly its size: whole chunks waste nothing.
        assert!((12..=26).all(|s| Class::for_len(1 << s).unwrap().capacity() == 1 << s));
        assert_eq!(Class::for_len(LARGEST + 1), None);
        assert_eq!(Class::from_number(CLASSES as u8), None);
    }

    proptest! {
        #[test]
        fn the_class_of_a_length_is_the_smallest_that_fits(len in 0..=LARGEST) {
            let class = Class::for_len(len).unwrap();
            prop_assert!(class.capacity() >= len);
            if class.number() > 0 {
                prop_assert!(Class(class.0 - 1).capacity() < len);
            }
            if len >= 16 << 10 {
                prop_assert!(u64::from(class.capacity() - len) * 5 <= u64::from(class.capacity()));
            }
        }
    }
}
