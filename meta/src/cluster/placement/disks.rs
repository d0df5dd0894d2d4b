//! Which disk of its node each slot is on.
//!
//! A node deals its slots to its disks in turn, head slots first, then second places and so on, so
//! its disks hold the same number of targets, and of each role, give or take one. Within a role any
//! disk will do: the one is taken that shares the fewest chains with the other nodes of this chain,
//! and swaps even that out. So when a node dies its load spreads over all disks of the others.

use super::dice::Dice;
use super::search::{Arrangement, Tally, improve};

/// Trades tried per slot, and in all at most.
const TRIES_PER_SLOT: usize = 200;
const MAX_TRIES: usize = 1_000_000;

/// The disk (numbered within its node) of each member of each chain.
pub(super) fn pick(chains: &[Vec<usize>], disks: &[usize], dice: &mut Dice) -> Vec<Vec<usize>> {
    let width = chains.first().map_or(0, Vec::len);
    let mut table = Table::new(chains, disks);
    let mut dealt = vec![0; disks.len()];
    for role in 0..width {
        let mut holders: Vec<Vec<usize>> = vec![Vec::new(); disks.len()];
        for (index, chain) in chains.iter().enumerate() {
            holders[chain[role]].push(index);
        }
        for (node, group) in holders.into_iter().enumerate() {
            let mut left = vec![0; disks[node]];
            for slot in dealt[node]..dealt[node] + group.len() {
                left[slot % disks[node]] += 1;
            }
            dealt[node] += group.len();
            for &chain in &group {
                let free = (0..disks[node]).filter(|&disk| left[disk] > 0);
                let Some(disk) = free.min_by_key(|&disk| table.meetings(chain, role, disk)) else {
                    break; // Cannot be: as many were dealt as there are in the group.
                };
                left[disk] -= 1;
                table.places[chain][role] = disk;
                table.count(chain, role, 1);
            }
            if disks[node] > 1 && group.len() > 1 {
                table.groups.push((role, group));
            }
        }
    }
    if !table.groups.is_empty() {
        let tries = (chains.len() * width * TRIES_PER_SLOT).min(MAX_TRIES);
        improve(&mut table, tries, dice);
    }
    table.places
}

/// How many chains each disk shares with each other node.
struct Table<'a> {
    chains: &'a [Vec<usize>],
    /// The disk of each member of each chain.
    places: Vec<Vec<usize>>,
    /// Number of the first disk of each node.
    first: Vec<usize>,
    /// Chains that have one node in one role: there it may trade its disks.
    groups: Vec<(usize, Vec<usize>)>,
    shared: Tally,
}

/// In one role, two chains of one node trade their disks.
#[derive(Clone, Copy)]
struct Trade {
    role: usize,
    chains: [usize; 2],
}

impl<'a> Table<'a> {
    fn new(chains: &'a [Vec<usize>], disks: &[usize]) -> Self {
        let (nodes, width) = (disks.len(), chains.first().map_or(0, Vec::len));
        let first = disks.iter().scan(0, |next, count| {
            Some(std::mem::replace(next, *next + count))
        });
        let all: usize = disks.iter().sum();
        let company = chains.len() * width * width.saturating_sub(1);
        Self {
            chains,
            places: vec![vec![0; width]; chains.len()],
            first: first.collect(),
            groups: Vec::new(),
            shared: Tally::new(all * nodes, 0..=company, all * (nodes - 1)),
        }
    }

    fn row(&self, node: usize, disk: usize) -> usize {
        (self.first[node] + disk) * self.first.len()
    }

    /// How many chains `disk` of the member in `role` shares with the chain's other nodes.
    fn meetings(&self, chain: usize, role: usize, disk: usize) -> i32 {
        let chain = &self.chains[chain];
        let row = self.row(chain[role], disk);
        let others = chain.iter().enumerate().filter(|&(at, _)| at != role);
        others.map(|(_, &other)| self.shared.get(row + other)).sum()
    }

    /// Counts the company of the disk that this chain has in `role` once more or less.
    fn count(&mut self, chain: usize, role: usize, by: i32) {
        let disk = self.places[chain][role];
        let chain = &self.chains[chain];
        let row = self.row(chain[role], disk);
        for (_, &other) in chain.iter().enumerate().filter(|&(at, _)| at != role) {
            self.shared.add(row + other, by);
        }
    }
}

impl Arrangement for Table<'_> {
    type Move = Trade;

    fn pick(&mut self, dice: &mut Dice) -> Option<Trade> {
        let (role, group) = &self.groups[dice.below(self.groups.len())];
        let chains = [(); 2].map(|()| group[dice.below(group.len())]);
        let [a, b] = chains.map(|chain| self.places[chain][*role]);
        (a != b).then_some(Trade {
            role: *role,
            chains,
        })
    }

    fn make(&mut self, trade: Trade) -> Trade {
        let Trade { role, chains } = trade;
        let [i, j] = chains;
        self.count(i, role, -1);
        self.count(j, role, -1);
        let (a, b) = (self.places[i][role], self.places[j][role]);
        (self.places[i][role], self.places[j][role]) = (b, a);
        self.count(i, role, 1);
        self.count(j, role, 1);
        trade
    }

    fn cost(&self) -> i64 {
        self.shared.squares()
    }

    fn is_done(&self) -> bool {
        self.shared.is_even()
    }
}
