//! A growing set of block numbers that finds its lowest member fast.

/// A set of `u32`, one bit each.
#[derive(Default)]
pub(super) struct Bitmap {
    words: Vec<u64>,
    count: u32,
    /// No word below this one has a bit set.
    lowest: usize,
}

impl Bitmap {
    /// Number of members.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Whether `n` is a member.
    pub(super) fn contains(&self, n: u32) -> bool {
        self.words
            .get(n as usize / 64)
            .is_some_and(|word| word >> (n % 64) & 1 == 1)
    }

    /// Adds `n`; whether it was new.
    pub(super) fn insert(&mut self, n: u32) -> bool {
        let word = n as usize / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let new = !self.contains(n);
        self.words[word] |= 1 << (n % 64);
        self.count += u32::from(new);
        self.lowest = self.lowest.min(word);
        new
    }

    /// Takes `n` out; whether it was there.
    pub(super) fn remove(&mut self, n: u32) -> bool {
        let there = self.contains(n);
        if there {
            self.words[n as usize / 64] &= !(1 << (n % 64));
            self.count -= 1;
        }
        there
    }

    /// Takes the lowest member out.
    pub(super) fn pop_first(&mut self) -> Option<u32> {
        if self.count == 0 {
            self.lowest = self.words.len();
            return None;
        }
        while self.words[self.lowest] == 0 {
            self.lowest += 1;
        }
        let n = self.lowest as u32 * 64 + self.words[self.lowest].trailing_zeros();
        self.remove(n);
        Some(n)
    }

    /// The highest run of neighbours, at most `most` long, that ends below `below`.
    pub(super) fn last_run(&self, below: u32, most: u32) -> Option<std::ops::Range<u32>> {
        let mut word = (below as usize).div_ceil(64).min(self.words.len());
        let mut mask = if below.is_multiple_of(64) || word * 64 < below as usize {
            u64::MAX
        } else {
            (1 << (below % 64)) - 1
        };
        let last = loop {
            word = word.checked_sub(1)?;
            let bits = self.words[word] & mask;
            mask = u64::MAX;
            if bits != 0 {
                break word as u32 * 64 + 63 - bits.leading_zeros();
            }
        };
        let mut first = last;
        while first > 0 && last - first + 1 < most && self.contains(first - 1) {
            first -= 1;
        }
        Some(first..last + 1)
    }

    /// Every member in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        self.words.iter().enumerate().flat_map(|(i, &word)| {
            (0..64)
                .filter(move |bit| word >> bit & 1 == 1)
                .map(move |bit| i as u32 * 64 + bit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_sorted_set(ops in proptest::collection::vec((0u8..4, 0u32..300), 0..200)) {
            let (mut bitmap, mut model) = (Bitmap::default(), BTreeSet::new());
            for (op, n) in ops {
                match op {
                    0 => prop_assert_eq!(bitmap.insert(n), model.insert(n)),
                    1 => prop_assert_eq!(bitmap.remove(n), model.remove(&n)),
                    2 => prop_assert_eq!(bitmap.pop_first(), model.pop_first()),
                    _ => {
                        let expect = model.range(..n).next_back().map(|&last| {
                            let mut first = last;
                            while first > 0 && last - first < 7 && model.contains(&(first - 1)) {
                                first -= 1;
                            }
                            first..last + 1
                        });
                        prop_assert_eq!(bitmap.last_run(n, 8), expect);
                    }
                }
                prop_assert_eq!(bitmap.contains(n), model.contains(&n));
            }
            prop_assert_eq!(bitmap.count() as usize, model.len());
            prop_assert!(bitmap.iter().eq(model.iter().copied()));
        }
    }
}
