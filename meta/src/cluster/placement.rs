//! Initial placement: which disks form which chain. Pure and deterministic, no solver.
//!
//! What a [`Plan`] guarantees, for any nodes and disks:
//! - the targets of a chain are on different nodes;
//! - disks hold the same number of targets, give or take one, unless a node has so many disks that
//!   a chain would need two of them (then that node's share is cut, evenly over its disks);
//! - disks are head of the same number of chains, as near as the chains allow;
//! - any two nodes share nearly the same number of chains, so that the reads and the resync of a
//!   dead node spread over all the others.
//!
//! How: each node gets a quota of slots ([`quotas`]). Chains are drawn one by one; a node whose
//! quota equals the number of chains left must be in each of them, the others are free, so any
//! choice that honours this can be completed. Among the free the one is taken that shares the
//! fewest chains with those already in. Swaps that even out the pairs follow, within a fixed budget,
//! driven by a generator with a constant seed. Then each slot picks a disk of its node, and
//! the heads are evened out along augmenting paths, which is exact.
//!
//! Rejected: an integer programme over incidence matrices, as 3FS solves it. It is exact
//! where it ends, but it can be infeasible or never end, and needs a solver to be installed.

use std::collections::{HashSet, VecDeque};

use emberfs_proto::ids::{DiskId, NodeId};
use emberfs_proto::{Error, ErrorCode, Result};

/// Targets per disk unless the operator says otherwise: enough that the load of a dead disk
/// spreads over several others, few enough that every chain is busy.
pub const DEFAULT_TARGETS_PER_DISK: u32 = 8;
/// Swaps tried per slot to even out pairs.
const SWAPS_PER_SLOT: usize = 64;
/// Swaps tried in total, so that a plan for a large cluster takes a moment, not minutes.
const MAX_SWAPS: usize = 1_000_000;

/// A node to place on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub node: NodeId,
    /// Its disks; a node without disks takes no part.
    pub disks: Vec<DiskId>,
}

/// One place of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The node.
    pub node: NodeId,
    /// The disk on it.
    pub disk: DiskId,
}

/// Chains to create, each a list of slots, head first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In table order.
    pub chains: Vec<Vec<Slot>>,
}

/// Plans chains of `replicas` targets over `candidates`, about `targets_per_disk` on each disk
/// (raised until the slots divide by `replicas`).
///
/// Answers [`ErrorCode::NotEnoughNodes`] when fewer nodes than `replicas` have a disk.
pub fn plan(candidates: &[Candidate], replicas: u32, targets_per_disk: u32) -> Result<Plan> {
    let mut nodes: Vec<&Candidate> = candidates.iter().filter(|c| !c.disks.is_empty()).collect();
    nodes.sort_by_key(|c| c.node);
    let width = replicas as usize;
    if width == 0 || targets_per_disk == 0 {
        let what = "replicas and targets_per_disk must be at least 1; correct the configuration";
        return Err(Error::new(ErrorCode::InvalidArgument, what));
    }
    if nodes.len() < width {
        let what = format!(
            "replication {replicas} needs {replicas} nodes with a disk, there are {}; start more nodes or lower replicas",
            nodes.len()
        );
        return Err(Error::new(ErrorCode::NotEnoughNodes, what));
    }
    let disks: Vec<usize> = nodes.iter().map(|c| c.disks.len()).collect();
    let (quotas, chains) = quotas(&disks, width, targets_per_disk as usize);
    let mut members = draw(&quotas, chains, width);
    even_pairs(&mut members, nodes.len());
    let mut chains = pick_disks(&members, &disks, &quotas);
    order(&mut chains, disks.iter().sum());
    // Disks were numbered node after node.
    let slots: Vec<Slot> = nodes
        .iter()
        .flat_map(|c| c.disks.iter().map(|&disk| Slot { node: c.node, disk }))
        .collect();
    let chains = chains
        .iter()
        .map(|chain| chain.iter().map(|&d| slots[d]).collect())
        .collect();
    Ok(Plan { chains })
}

/// How many slots each node fills, and how many chains there are. The quotas add up to
/// `chains * width` and none exceeds `chains`.
fn quotas(disks: &[usize], width: usize, per_disk: usize) -> (Vec<usize>, usize) {
    let total: usize = disks.iter().sum();
    // At most `width` tries: some multiple of `width` is among so many consecutive numbers.
    let even = |r: &usize| (r * total).is_multiple_of(width);
    let per_disk = (per_disk..per_disk + width).find(even).unwrap_or(per_disk);
    let filled = |chains: usize| {
        disks
            .iter()
            .map(|d| (d * per_disk).min(chains))
            .sum::<usize>()
    };
    // `filled(c) - c * width` is concave in c and not negative at 1: bisect for its last root.
    let (mut low, mut high) = (1, total * per_disk / width + 1);
    while high - low > 1 {
        let middle = usize::midpoint(low, high);
        if filled(middle) >= middle * width {
            low = middle;
        } else {
            high = middle;
        }
    }
    let chains = low;
    let mut quotas: Vec<usize> = disks.iter().map(|d| (d * per_disk).min(chains)).collect();
    // Fewer than `width` slots too many: take them where each disk holds the most.
    for _ in 0..filled(chains) - chains * width {
        let fullest = (0..quotas.len()).filter(|&n| quotas[n] > 0);
        let key = |&n: &usize| (quotas[n] * total / disks[n], quotas[n]);
        if let Some(n) = fullest.max_by_key(key) {
            quotas[n] -= 1;
        }
    }
    (quotas, chains)
}

/// How many chains each pair of nodes shares.
struct Pairs {
    nodes: usize,
    shared: Vec<i32>,
}

impl Pairs {
    fn new(nodes: usize) -> Self {
        Self {
            nodes,
            shared: vec![0; nodes * nodes],
        }
    }

    fn get(&self, a: usize, b: usize) -> i32 {
        self.shared[a * self.nodes + b]
    }

    fn add(&mut self, a: usize, b: usize, by: i32) {
        self.shared[a * self.nodes + b] += by;
        self.shared[b * self.nodes + a] += by;
    }

    /// Takes `node` out of (-1) or into (+1) the company of `others`.
    fn move_one(&mut self, node: usize, others: &[usize], by: i32) {
        for &other in others.iter().filter(|&&other| other != node) {
            self.add(node, other, by);
        }
    }

    fn with(&self, node: usize, others: &[usize]) -> i32 {
        others
            .iter()
            .filter(|&&o| o != node)
            .map(|&o| self.get(node, o))
            .sum()
    }
}

/// Draws the nodes of each chain.
fn draw(quotas: &[usize], chains: usize, width: usize) -> Vec<Vec<usize>> {
    let mut left = quotas.to_vec();
    let mut pairs = Pairs::new(quotas.len());
    let mut drawn = Vec::with_capacity(chains);
    for remaining in (1..=chains).rev() {
        let must = (0..left.len()).filter(|&n| left[n] == remaining);
        let mut chain: Vec<usize> = must.take(width).collect();
        while chain.len() < width {
            let free = (0..left.len()).filter(|n| left[*n] > 0 && !chain.contains(n));
            let key = |&n: &usize| (pairs.with(n, &chain), std::cmp::Reverse(left[n]), n);
            let Some(best) = free.min_by_key(key) else {
                break; // Cannot be: the quotas left add up to `remaining * width`, each at most `remaining`.
            };
            pairs.move_one(best, &chain, 1);
            chain.push(best);
        }
        // Those who had to be in count as pairs too.
        let must = chain.iter().take_while(|&&n| left[n] == remaining).count();
        for i in 1..must {
            let (before, rest) = chain.split_at(i);
            pairs.move_one(rest[0], before, 1);
        }
        for &n in &chain {
            left[n] -= 1;
        }
        drawn.push(chain);
    }
    drawn
}

/// Swaps members between chains while that evens out how often pairs of nodes meet.
fn even_pairs(chains: &mut [Vec<usize>], nodes: usize) {
    let width = chains.first().map_or(0, Vec::len);
    if width < 2 || nodes == width || chains.len() < 2 {
        return;
    }
    let mut pairs = Pairs::new(nodes);
    for chain in chains.iter() {
        for i in 1..chain.len() {
            pairs.move_one(chain[i], &chain[..i], 1);
        }
    }
    let mut dice = Dice(0x656d_6265_7266_7331);
    for _ in 0..(chains.len() * width * SWAPS_PER_SLOT).min(MAX_SWAPS) {
        let (i, j) = (dice.below(chains.len()), dice.below(chains.len()));
        let (at_i, at_j) = (dice.below(width), dice.below(width));
        let (a, b) = (chains[i][at_i], chains[j][at_j]);
        if i == j || chains[i].contains(&b) || chains[j].contains(&a) {
            continue;
        }
        // The sum of squares falls with evenness. Both moves are tried for real, then undone if
        // they did not help: pairs may overlap, so adding up differences would be wrong.
        let rest_i: Vec<usize> = chains[i].iter().copied().filter(|&n| n != a).collect();
        let rest_j: Vec<usize> = chains[j].iter().copied().filter(|&n| n != b).collect();
        let mut change = 0;
        for (node, company, by) in [
            (a, &rest_i, -1),
            (b, &rest_j, -1),
            (b, &rest_i, 1),
            (a, &rest_j, 1),
        ] {
            for &other in company {
                change += 2 * by * pairs.get(node, other) + 1;
                pairs.add(node, other, by);
            }
        }
        // Equal is taken too: it lets the search leave a plateau.
        if change <= 0 {
            chains[i][at_i] = b;
            chains[j][at_j] = a;
        } else {
            for (node, company, by) in [
                (a, &rest_i, 1),
                (b, &rest_j, 1),
                (b, &rest_i, -1),
                (a, &rest_j, -1),
            ] {
                for &other in company {
                    pairs.add(node, other, by);
                }
            }
        }
    }
}

/// Replaces nodes by disks, numbered node after node: each disk of a node in turn, the one that
/// meets the chain's other disks least first.
fn pick_disks(members: &[Vec<usize>], disks: &[usize], quotas: &[usize]) -> Vec<Vec<usize>> {
    let first: Vec<usize> = disks
        .iter()
        .scan(0, |next, count| {
            Some(std::mem::replace(next, *next + count))
        })
        .collect();
    let mut left: Vec<usize> = (0..disks.len())
        .flat_map(|n| (0..disks[n]).map(move |d| (n, d)))
        .map(|(n, d)| quotas[n] / disks[n] + usize::from(d < quotas[n] % disks[n]))
        .collect();
    let mut met: HashSet<(usize, usize)> = HashSet::new();
    let mut chains = Vec::with_capacity(members.len());
    for nodes in members {
        let mut chain: Vec<usize> = Vec::with_capacity(nodes.len());
        for &node in nodes {
            let own = first[node]..first[node] + disks[node];
            let meetings = |d: usize| {
                chain
                    .iter()
                    .filter(|&&c| met.contains(&(c.min(d), c.max(d))))
                    .count()
            };
            let key = |&d: &usize| {
                (
                    left[d],
                    std::cmp::Reverse(meetings(d)),
                    std::cmp::Reverse(d),
                )
            };
            if let Some(disk) = own.max_by_key(key) {
                left[disk] = left[disk].saturating_sub(1);
                for &other in &chain {
                    met.insert((disk.min(other), disk.max(other)));
                }
                chain.push(disk);
            }
        }
        chains.push(chain);
    }
    chains
}

/// Orders each chain so that heads, and as far as possible every later position, are even.
fn order(chains: &mut [Vec<usize>], disks: usize) {
    let width = chains.first().map_or(0, Vec::len);
    for position in 0..width {
        let mut held = vec![0_usize; disks];
        for chain in chains.iter_mut() {
            if let Some(best) = (position..chain.len()).min_by_key(|&at| held[chain[at]]) {
                chain.swap(position, best);
                held[chain[position]] += 1;
            }
        }
        even_position(chains, position, &mut held);
    }
}

/// Moves the role at `position` along paths disk → disk (a chain of the first holds the second at
/// a later position) from disks that hold two more of it than the end of the path.
fn even_position(chains: &mut [Vec<usize>], position: usize, held: &mut [usize]) {
    let mut holds: Vec<Vec<usize>> = vec![Vec::new(); held.len()];
    for (index, chain) in chains.iter().enumerate() {
        holds[chain[position]].push(index);
    }
    // Each path brings the sum of squares down, so the search ends; the bound is for the reader.
    let mut tried = HashSet::new();
    for _ in 0..4 * (chains.len() + held.len()) {
        let fullest = (0..held.len())
            .filter(|d| !tried.contains(d))
            .max_by_key(|&d| held[d]);
        let least = held.iter().min().copied().unwrap_or(0);
        let Some(from) = fullest.filter(|&d| held[d] >= least + 2) else {
            return;
        };
        let mut came: Vec<Option<(usize, usize)>> = vec![None; held.len()];
        let mut queue = VecDeque::from([from]);
        let mut end = None;
        while let Some(disk) = queue.pop_front() {
            if held[disk] + 2 <= held[from] {
                end = Some(disk);
                break;
            }
            for &chain in &holds[disk] {
                for &next in &chains[chain][position + 1..] {
                    if next != from && came[next].is_none() {
                        came[next] = Some((disk, chain));
                        queue.push_back(next);
                    }
                }
            }
        }
        let Some(end) = end else {
            tried.insert(from);
            continue;
        };
        let mut disk = end;
        while let Some((previous, chain)) = came[disk] {
            if let Some(at) = chains[chain].iter().position(|&d| d == disk) {
                chains[chain].swap(position, at);
            }
            holds[previous].retain(|&c| c != chain);
            holds[disk].push(chain);
            disk = previous;
        }
        held[from] -= 1;
        held[end] += 1;
        tried.clear();
    }
}

/// A small fixed generator (SplitMix64): plans must never change with a library's version.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((u128::from(z) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests;
