//! Chance that is the same everywhere, and the measure of work.

/// A small fixed generator (SplitMix64): plans must never change with a library's version. Counts its
/// throws, which is the measure of what a search has cost.
pub(super) struct Dice {
    state: u64,
    steps: u64,
}

impl Dice {
    pub(super) fn new() -> Self {
        Self {
            state: 0x656d_6265_7266_7331,
            steps: 0,
        }
    }

    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.steps += 1;
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((u128::from(z) * bound as u128) >> 64) as usize
    }

    pub(super) fn steps(&self) -> u64 {
        self.steps
    }
}
