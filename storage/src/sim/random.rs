//! All the randomness there is.

use emberfs_proto::layout::splitmix64;

/// A stream of numbers from a seed. Parts of the simulation have streams of their own, so that leaving a
/// fault out does not change what clients do.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let mut state = seed ^ stream.wrapping_mul(0xA076_1D64_78BD_642F);
        splitmix64(&mut state);
        Self(state)
    }

    /// A number below `n`, which is not 0.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        splitmix64(&mut self.0) % n
    }

    /// A number of `[low, high)`.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below((high - low).max(1))
    }

    /// True `per_mille` times in a thousand.
    pub(super) fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// Between 0 and 1.
    pub(super) fn fraction(&mut self) -> f64 {
        self.below(1 << 20) as f64 / f64::from(1 << 20)
    }

    /// Usually near `mean`, now and then many times of it.
    pub(super) fn around(&mut self, mean: u64) -> u64 {
        let long = if self.chance(20) { 10 } else { 1 };
        self.between(mean / 3, mean * 5 / 3 + 1) * long
    }
}
