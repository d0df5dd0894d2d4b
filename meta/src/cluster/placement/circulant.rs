//! Chains by rotation: base blocks whose rotations are chains.
//!
//! Number the nodes around a circle of v. A *base block* is a set of places on it, head first; turned
//! by 0, 1, … v - 1 it makes v chains in which every node has every role once. Two nodes at distance
//! d share as many chains as there are ordered pairs of places in the base blocks that are d apart,
//! wherever on the circle they are. So evenness over all v² pairs of nodes is evenness over the v - 1
//! distances, for any v: with every distance met equally often the blocks are a difference family and
//! the chains a balanced design. The same holds for who is resync source for whom, where the
//! distances have a direction. Both are found by moving one place, or swapping two roles, at a time.
//!
//! A quota that the width k does not divide leaves a remainder. If k divides a large v, one more block takes it
//! up: its places differ modulo k, so turned by every k-th number it covers each node once, and it is turned
//! by as many of the k such series as the remainder says.

use super::dice::Dice;
use super::order::sources;
use super::search::{Arrangement, Tally, improve};

/// Changes tried per place in all base blocks, and in all at least and at most.
const TRIES_PER_PLACE: usize = 20_000;
const MIN_TRIES: usize = 400_000;
const MAX_TRIES: usize = 4_000_000;

/// With fewer nodes a remainder is drawn and swapped into place, which comes closer: a series is one
/// lump in a small circle.
const MANY_NODES: usize = 16;

/// The chains that rotation can make without any node exceeding its quota; none when quotas
/// differ, or when there is nothing to spread.
pub(super) fn rotations(quotas: &[usize], width: usize, dice: &mut Dice) -> Vec<Vec<usize>> {
    let nodes = quotas.len();
    let Some(&quota) = quotas.first() else {
        return Vec::new();
    };
    let whole = quota / width;
    let series = if nodes.is_multiple_of(width) && nodes >= MANY_NODES {
        quota % width
    } else {
        0
    };
    let blocks = whole + usize::from(series > 0);
    if quotas.iter().any(|&q| q != quota) || width < 2 || nodes <= width || blocks == 0 {
        return Vec::new();
    }
    let mut base = Base::new(nodes, width, quota, blocks, series > 0, dice);
    let tries = (blocks * width * TRIES_PER_PLACE).clamp(MIN_TRIES, MAX_TRIES);
    improve(&mut base, tries, dice);
    base.roles = true;
    base.exact = base.distances.is_even();
    improve(&mut base, tries, dice);
    let mut chains = Vec::new();
    for by in 0..nodes {
        let turned = if by % width < series { blocks } else { whole };
        let turn = |block: &Vec<usize>| block.iter().map(|place| (place + by) % nodes).collect();
        chains.extend(base.blocks[..turned].iter().map(turn));
    }
    chains
}

/// Base blocks and how often each distance, from 1 up, is met.
struct Base {
    nodes: usize,
    width: usize,
    blocks: Vec<Vec<usize>>,
    /// The last block's places must differ modulo the width.
    remainder: bool,
    /// The roles within blocks count too.
    roles: bool,
    /// The distances can be even.
    exact: bool,
    distances: Tally,
    /// From members to their resync sources.
    directed: Tally,
}

#[derive(Clone, Copy)]
enum Change {
    /// The member of a block at a place in it goes elsewhere on the circle.
    Place(usize, usize, usize),
    /// Two members of a block trade roles.
    Trade(usize, usize, usize),
    /// A block is mirrored: distances stay as they are, their directions turn round.
    Mirror(usize),
}

impl Base {
    fn new(
        nodes: usize,
        width: usize,
        quota: usize,
        blocks: usize,
        remainder: bool,
        dice: &mut Dice,
    ) -> Self {
        // Whole numbers next to what is on the circle in the end, or as yet.
        let ideal = |placed: usize, all: usize| {
            Tally::new(nodes - 1, placed.min(all)..=placed.max(all), nodes - 1)
        };
        let placed = blocks * width;
        let mut base = Self {
            nodes,
            width,
            blocks: Vec::with_capacity(blocks),
            remainder,
            roles: false,
            exact: true,
            distances: ideal(placed * (width - 1), quota * (width - 1)),
            directed: ideal(placed, quota),
        };
        for number in 1..=blocks {
            // Every block begins at 0: turning one changes nothing.
            let mut block = vec![0];
            while block.len() < width {
                let place = if remainder && number == blocks {
                    block.len()
                } else {
                    dice.below(nodes)
                };
                if !block.contains(&place) {
                    block.push(place);
                }
            }
            base.blocks.push(block);
            base.count(number - 1, 1);
        }
        base
    }

    /// Distance from `a` to `b`, going up.
    fn between(&self, a: usize, b: usize) -> usize {
        (b + self.nodes - a) % self.nodes
    }

    /// Counts a block once more or less.
    fn count(&mut self, block: usize, by: i32) {
        for at in 1..self.width {
            for other in 0..at {
                let up = self.between(self.blocks[block][at], self.blocks[block][other]);
                self.distances.add(up - 1, by);
                self.distances.add(self.nodes - up - 1, by);
            }
        }
        for (member, source) in sources(&self.blocks[block]) {
            let up = self.between(member, source);
            self.directed.add(up - 1, by);
        }
    }
}

impl Arrangement for Base {
    type Move = Change;

    fn pick(&mut self, dice: &mut Dice) -> Option<Change> {
        let block = dice.below(self.blocks.len());
        let (a, b) = (dice.below(self.width), dice.below(self.width));
        if self.roles && a != b {
            return Some(Change::Trade(block, a, b));
        }
        if self.roles && dice.below(2) == 0 {
            return Some(Change::Mirror(block));
        }
        let place = if self.remainder && block == self.blocks.len() - 1 {
            let steps = dice.below(self.nodes / self.width);
            (self.blocks[block][a] + steps * self.width) % self.nodes
        } else {
            dice.below(self.nodes)
        };
        (!self.blocks[block].contains(&place)).then_some(Change::Place(block, a, place))
    }

    fn make(&mut self, change: Change) -> Change {
        let (Change::Place(block, ..) | Change::Trade(block, ..) | Change::Mirror(block)) = change;
        self.count(block, -1);
        let members = &mut self.blocks[block];
        let undo = match change {
            Change::Place(_, at, place) => {
                Change::Place(block, at, std::mem::replace(&mut members[at], place))
            }
            Change::Trade(_, a, b) => {
                members.swap(a, b);
                change
            }
            Change::Mirror(_) => {
                for place in members {
                    *place = (self.nodes - *place) % self.nodes;
                }
                change
            }
        };
        self.count(block, 1);
        undo
    }

    fn cost(&self) -> i64 {
        let roles = if self.roles {
            self.directed.squares()
        } else {
            0
        };
        self.distances.squares() + roles
    }

    fn is_done(&self) -> bool {
        (self.distances.is_even() || !self.exact) && (self.directed.is_even() || !self.roles)
    }
}
