//! How often each pair of nodes shares a chain, and swaps that even this out.

use super::dice::Dice;
use super::search::{Arrangement, Tally, improve};

/// Swaps tried per slot, and in all at least and at most: a plan for a large cluster takes a moment,
/// not minutes, and one for a small cluster is worth more tries than it has slots.
const TRIES_PER_SLOT: usize = 64;
const MIN_TRIES: usize = 200_000;
const MAX_TRIES: usize = 2_000_000;
/// Swaps between two looks at which chains need any.
const LOOK_EVERY: usize = 4096;

/// How many chains each pair of nodes shares.
pub(super) struct Pairs {
    nodes: usize,
    shared: Tally,
}

impl Pairs {
    /// Counts what is in `chains`, in which each node has (in the end) as many places as its quota.
    pub(super) fn count(chains: &[Vec<usize>], quotas: &[usize], width: usize) -> Self {
        let nodes = quotas.len();
        let others = width.saturating_sub(1);
        let company = |quota: Option<&usize>| quota.map_or(0, |quota| quota * others);
        let company = company(quotas.iter().min())..=company(quotas.iter().max());
        let mut pairs = Self {
            nodes,
            shared: Tally::new(nodes * (nodes - 1), company, nodes - 1),
        };
        for chain in chains {
            for at in 1..chain.len() {
                pairs.join(chain[at], &chain[..at]);
            }
        }
        pairs
    }

    fn place(&self, a: usize, b: usize) -> usize {
        a * (self.nodes - 1) + b - usize::from(b > a)
    }

    fn add(&mut self, a: usize, b: usize, by: i32) {
        let (ab, ba) = (self.place(a, b), self.place(b, a));
        self.shared.add(ab, by);
        self.shared.add(ba, by);
    }

    /// `node` comes into a chain with `others`.
    pub(super) fn join(&mut self, node: usize, others: &[usize]) {
        for &other in others {
            self.add(node, other, 1);
        }
    }

    /// How many chains `node` shares with `others`, summed up.
    pub(super) fn with(&self, node: usize, others: &[usize]) -> i32 {
        let shared = |&other: &usize| self.shared.get(self.place(node, other));
        others.iter().map(shared).sum()
    }
}

/// Swaps members between chains while that evens out how often pairs of nodes meet. Who is in how
/// many chains stays as it is. Chains that rotation has made, `turned`, are left alone unless a pair meets
/// too often.
pub(super) fn even(chains: &mut Vec<Vec<usize>>, quotas: &[usize], turned: bool, dice: &mut Dice) {
    let width = chains.first().map_or(0, Vec::len);
    if width < 2 || quotas.len() == width || chains.len() < 2 {
        return;
    }
    let tries = (chains.len() * width * TRIES_PER_SLOT).clamp(MIN_TRIES, MAX_TRIES);
    let mut meetings = Meetings {
        pairs: Pairs::count(chains, quotas, width),
        chains: std::mem::take(chains),
        width,
        due: Vec::new(),
        look_in: 0,
    };
    if turned {
        meetings.pairs.shared.allow_none();
    }
    improve(&mut meetings, tries, dice);
    *chains = meetings.chains;
}

struct Meetings {
    pairs: Pairs,
    chains: Vec<Vec<usize>>,
    width: usize,
    /// Chains in which a pair meets that meets too often; all, if there are none.
    due: Vec<usize>,
    look_in: usize,
}

/// The members of two chains, each at a place in its chain, change places.
#[derive(Clone, Copy)]
struct Swap([(usize, usize); 2]);

impl Meetings {
    fn look(&mut self) {
        let is_over = |a: usize, b: usize| self.pairs.shared.is_over(self.pairs.place(a, b));
        let is_due = |chain: &[usize]| {
            (1..self.width).any(|at| chain[..at].iter().any(|&b| is_over(chain[at], b)))
        };
        let all = 0..self.chains.len();
        self.due = all.clone().filter(|&i| is_due(&self.chains[i])).collect();
        if self.due.is_empty() {
            self.due = all.collect();
        }
    }

    /// Counts the company of `chain`'s member at `at`, once more or less.
    fn count(&mut self, (chain, at): (usize, usize), by: i32) {
        let node = self.chains[chain][at];
        for other in (0..self.width).filter(|&other| other != at) {
            self.pairs.add(node, self.chains[chain][other], by);
        }
    }
}

impl Arrangement for Meetings {
    type Move = Swap;

    fn pick(&mut self, dice: &mut Dice) -> Option<Swap> {
        if self.look_in == 0 {
            self.look_in = LOOK_EVERY;
            self.look();
        }
        self.look_in -= 1;
        let (i, j) = (
            self.due[dice.below(self.due.len())],
            dice.below(self.chains.len()),
        );
        let (at_i, at_j) = (dice.below(self.width), dice.below(self.width));
        let (a, b) = (self.chains[i][at_i], self.chains[j][at_j]);
        let possible = !self.chains[i].contains(&b) && !self.chains[j].contains(&a);
        possible.then_some(Swap([(i, at_i), (j, at_j)]))
    }

    fn make(&mut self, swap: Swap) -> Swap {
        let Swap([i, j]) = swap;
        self.count(i, -1);
        self.count(j, -1);
        let (a, b) = (self.chains[i.0][i.1], self.chains[j.0][j.1]);
        (self.chains[i.0][i.1], self.chains[j.0][j.1]) = (b, a);
        self.count(i, 1);
        self.count(j, 1);
        swap
    }

    fn cost(&self) -> i64 {
        self.pairs.shared.squares()
    }

    fn is_done(&self) -> bool {
        self.pairs.shared.is_even()
    }
}
