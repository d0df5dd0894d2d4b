//! The search that every step of planning uses: small changes, kept when they do no harm.

use std::ops::RangeInclusive;

use super::dice::Dice;

/// Every so many tries one may make things worse, by this little, to leave a dead end.
const KICK_EVERY: usize = 64;
const KICK: i64 = 4;
/// A search that has gone so many changes from the best it knew goes back there.
const MAX_WANDER: usize = 1 << 16;

/// Something to be improved by small changes.
pub(super) trait Arrangement {
    /// A change.
    type Move;

    /// A change to try, if the one thrown makes sense.
    fn pick(&mut self, dice: &mut Dice) -> Option<Self::Move>;

    /// Makes a change; answers the one that takes it back.
    fn make(&mut self, change: Self::Move) -> Self::Move;

    /// What is to become small.
    fn cost(&self) -> i64;

    /// Nothing is left to gain.
    fn is_done(&self) -> bool;
}

/// Tries at most `tries` changes; leaves the arrangement as good as it has ever been.
pub(super) fn improve(arrangement: &mut impl Arrangement, tries: usize, dice: &mut Dice) {
    let mut best = arrangement.cost();
    let mut back = Vec::new();
    for step in 1..=tries {
        if arrangement.is_done() {
            return;
        }
        let Some(change) = arrangement.pick(dice) else {
            continue;
        };
        // A change that costs nothing is made too: it lets the search leave a plateau.
        let kick = step.is_multiple_of(KICK_EVERY);
        let limit = if kick {
            best + KICK
        } else {
            arrangement.cost()
        };
        let undo = arrangement.make(change);
        if arrangement.cost() > limit {
            arrangement.make(undo);
            continue;
        }
        back.push(undo);
        if arrangement.cost() < best {
            best = arrangement.cost();
            back.clear();
        } else if back.len() == MAX_WANDER {
            take_back(arrangement, &mut back);
        }
    }
    take_back(arrangement, &mut back);
}

fn take_back<A: Arrangement>(arrangement: &mut A, back: &mut Vec<A::Move>) {
    while let Some(undo) = back.pop() {
        arrangement.make(undo);
    }
}

/// Numbers that are to be as even as whole numbers can be.
pub(super) struct Tally {
    counts: Vec<i32>,
    range: RangeInclusive<i32>,
    squares: i64,
    outside: usize,
}

impl Tally {
    /// `size` numbers, all zero. So many things of a kind are to be shared out over `over` of them, more
    /// of some kinds than of others: each number is ideally a mean, rounded down or up.
    pub(super) fn new(size: usize, things: RangeInclusive<usize>, over: usize) -> Self {
        let over = over.max(1);
        let low = (things.start() / over) as i32;
        Self {
            counts: vec![0; size],
            range: low..=things.end().div_ceil(over) as i32,
            squares: 0,
            outside: if low > 0 { size } else { 0 },
        }
    }

    /// From now on no number is too small.
    pub(super) fn allow_none(&mut self) {
        let high = *self.range.end();
        self.range = 0..=high;
        self.outside = self.counts.iter().filter(|&&count| count > high).count();
    }

    pub(super) fn add(&mut self, at: usize, by: i32) {
        let count = &mut self.counts[at];
        self.outside -= usize::from(!self.range.contains(count));
        self.squares += i64::from(2 * by * *count + 1);
        *count += by;
        self.outside += usize::from(!self.range.contains(count));
    }

    pub(super) fn get(&self, at: usize) -> i32 {
        self.counts[at]
    }

    pub(super) fn is_over(&self, at: usize) -> bool {
        self.counts[at] > *self.range.end()
    }

    /// How uneven the numbers are: the sum of their squares.
    pub(super) fn squares(&self) -> i64 {
        self.squares
    }

    /// Every number is a mean, rounded down or up.
    pub(super) fn is_even(&self) -> bool {
        self.outside == 0
    }
}
