//! Who is head of a chain, and whom a returning member is synced from.
//!
//! A target that returns goes to the end of its chain and is sent what it missed by the one before
//! it: the last of the others. So the order of a new chain decides for every member who its *source*
//! is ([`sources`]): the tail for all others, and for the tail the one before it. Orders change as
//! nodes come and go; this evens out the first one.

use std::collections::{HashSet, VecDeque};

use super::dice::Dice;
use super::search::{Arrangement, Tally, improve};

/// Trades tried per slot, and in all at least and at most.
const TRIES_PER_SLOT: usize = 64;
const MIN_TRIES: usize = 200_000;
const MAX_TRIES: usize = 2_000_000;
/// How much an uneven number of heads weighs against an uneven number of syncs.
const HEAD_WEIGHT: i64 = 1;

/// Each member of a chain with the member that it would be synced from. None in a chain of one.
pub(super) fn sources<T: Copy>(chain: &[T]) -> impl Iterator<Item = (T, T)> {
    let last = chain.len().saturating_sub(1);
    let source = move |at: usize| chain[if at == last { last - 1 } else { last }];
    let members = 0..if last > 0 { chain.len() } else { 0 };
    members.map(move |at| (chain[at], source(at)))
}

/// Orders each chain so that nodes are head in proportion to their quota, and sources are even. The
/// order that rotation has made, `turned`, is left alone unless a node is source too often.
pub(super) fn order(chains: &mut Vec<Vec<usize>>, quotas: &[usize], turned: bool, dice: &mut Dice) {
    even_heads(chains, quotas);
    let (width, nodes) = (chains.first().map_or(0, Vec::len), quotas.len());
    if width < 3 {
        return; // In a chain of two each is the other's source.
    }
    let fewest = quotas.iter().min().copied().unwrap_or(0);
    let most = quotas.iter().max().copied().unwrap_or(0);
    let count = chains.len();
    let mut roles = Roles {
        nodes,
        width,
        // With unequal quotas heads are in proportion now and stay as they are.
        fixed: usize::from(fewest != most),
        chains: std::mem::take(chains),
        source: Tally::new(nodes * (nodes - 1), fewest..=most, nodes - 1),
        heads: Tally::new(nodes, count..=count, nodes),
    };
    if turned {
        roles.source.allow_none();
    }
    if fewest != most {
        roles.heads = Tally::new(nodes, 0..=count, 1);
    }
    for at in 0..roles.chains.len() {
        roles.count(at, 1);
    }
    let tries = (roles.chains.len() * width * TRIES_PER_SLOT).clamp(MIN_TRIES, MAX_TRIES);
    improve(&mut roles, tries, dice);
    *chains = roles.chains;
    even_heads(chains, quotas);
}

/// How often each node is source for each other, and head.
struct Roles {
    nodes: usize,
    width: usize,
    /// So many places at the front of a chain stay as they are.
    fixed: usize,
    chains: Vec<Vec<usize>>,
    source: Tally,
    heads: Tally,
}

/// In a chain two members trade places.
#[derive(Clone, Copy)]
struct Trade(usize, usize, usize);

impl Roles {
    /// Counts a chain once more or less.
    fn count(&mut self, chain: usize, by: i32) {
        let chain = &self.chains[chain];
        for (member, source) in sources(chain) {
            let place = member * (self.nodes - 1) + source - usize::from(source > member);
            self.source.add(place, by);
        }
        self.heads.add(chain[0], by);
    }
}

impl Arrangement for Roles {
    type Move = Trade;

    fn pick(&mut self, dice: &mut Dice) -> Option<Trade> {
        let chain = dice.below(self.chains.len());
        let free = self.width - self.fixed;
        let (a, b) = (dice.below(free) + self.fixed, dice.below(free) + self.fixed);
        (a != b).then_some(Trade(chain, a, b))
    }

    fn make(&mut self, trade: Trade) -> Trade {
        let Trade(chain, a, b) = trade;
        self.count(chain, -1);
        self.chains[chain].swap(a, b);
        self.count(chain, 1);
        trade
    }

    fn cost(&self) -> i64 {
        self.source.squares() + HEAD_WEIGHT * self.heads.squares()
    }

    fn is_done(&self) -> bool {
        self.source.is_even() && self.heads.is_even()
    }
}

/// Moves the role of head along paths node → node (the second is in a chain whose head is the
/// first) while that makes heads more even in proportion to `quotas`. With equal quotas the outcome is exact:
/// nodes differ by one at most.
fn even_heads(chains: &mut [Vec<usize>], quotas: &[usize]) {
    let nodes = quotas.len();
    let mut leads: Vec<Vec<usize>> = vec![Vec::new(); nodes];
    for (index, chain) in chains.iter().enumerate() {
        leads[chain[0]].push(index);
    }
    let heads = |leads: &[Vec<usize>], node: usize| leads[node].len() as u128;
    // Of the convex sum of heads² / quota: one head less here saves more than one more there costs.
    let helps = |leads: &[Vec<usize>], from: usize, to: usize| {
        let (less, more) = (2 * heads(leads, from), 2 * heads(leads, to));
        less > 0 && (more + 1) * (quotas[from] as u128) < (less - 1) * quotas[to] as u128
    };
    // Each path brings that sum down, so the search ends; the bound is for the reader.
    let mut tried = HashSet::new();
    for _ in 0..4 * (chains.len() + nodes) {
        let fullest = (0..nodes).filter(|n| quotas[*n] > 0 && !tried.contains(n));
        let Some(from) = fullest.max_by(|&one, &other| {
            let ones = heads(&leads, one) * quotas[other] as u128;
            let others = heads(&leads, other) * quotas[one] as u128;
            ones.cmp(&others).then(other.cmp(&one))
        }) else {
            return;
        };
        let mut came: Vec<Option<(usize, usize)>> = vec![None; nodes];
        let mut queue = VecDeque::from([from]);
        let mut end = None;
        while let Some(node) = queue.pop_front() {
            if node != from && helps(&leads, from, node) {
                end = Some(node);
                break;
            }
            for &chain in &leads[node] {
                for &next in &chains[chain][1..] {
                    if next != from && came[next].is_none() {
                        came[next] = Some((node, chain));
                        queue.push_back(next);
                    }
                }
            }
        }
        let Some(end) = end else {
            tried.insert(from);
            continue;
        };
        let mut node = end;
        while let Some((previous, chain)) = came[node] {
            if let Some(at) = chains[chain].iter().position(|&n| n == node) {
                chains[chain].swap(0, at);
            }
            leads[previous].retain(|&c| c != chain);
            leads[node].push(chain);
            node = previous;
        }
        tried.clear();
    }
}
