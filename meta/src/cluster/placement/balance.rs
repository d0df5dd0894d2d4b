//! How even a placement is: what each survivor of a node's death would have to do. Pure.
//!
//! Measured is the placement, not a moment: every target counts as SERVING and every chain as in
//! the order given.
//!
//! What is modelled when one node dies:
//! - *Reads* of a chain spread evenly over its SERVING replicas. Of w replicas each had 1/w of a chain's
//!   reads, now each of the others has 1/(w - 1): the extra load of a survivor is the number of chains
//!   that it shares with the dead node, in units of 1/w(w - 1) of a chain's reads. Chains are
//!   taken as equally busy.
//! - *Resync*: for every chain the last of the other replicas is the source, when the
//!   node returns, and also when a new target elsewhere takes its place. The load is the number of chains
//!   to send; chains are taken as equally full.
//!
//! The *ideal* beside each ratio is what arithmetic allows: a load is a whole number of units, so
//! when 64 units fall on 24 survivors the busiest has at least 3, which is 1.13 of the mean. No placement with
//! this number of chains can be better; with more chains one can ([`super::targets_per_disk`]).

use std::collections::BTreeMap;

use emberfs_proto::ids::{DiskId, NodeId};

use super::order::sources;
use super::{Candidate, Slot};

/// Fewest, mean and most of something over everybody who could have it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// Fewest.
    pub min: u64,
    /// Mean.
    pub mean: f64,
    /// Most.
    pub max: u64,
}

/// What falls on the survivors of one node's death.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// On each survivor on average, in units (see the top of the module).
    pub mean: f64,
    /// On the busiest survivor.
    pub busiest: u64,
    /// The busiest as a multiple of the mean; 1 when nothing falls on anybody.
    pub ratio: f64,
    /// The least `ratio` that whole numbers allow.
    pub ideal: f64,
}

/// One node's death.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Death {
    /// Who dies.
    pub node: NodeId,
    /// Extra reads on the surviving nodes.
    pub reads: Load,
    /// Chains that the surviving nodes send.
    pub resync: Load,
    /// Extra reads on the disks of the surviving nodes.
    pub disk_reads: Load,
}

/// How even a placement is.
#[derive(Clone, Debug, PartialEq)]
pub struct Balance {
    /// Nodes with a disk.
    pub nodes: usize,
    /// Disks on them.
    pub disks: usize,
    /// Chains.
    pub chains: usize,
    /// Targets of each disk.
    pub targets_per_disk: Spread,
    /// Chains of which each disk is head.
    pub heads_per_disk: Spread,
    /// Chains that each pair of nodes shares. The mean is the ideal, λ; the best whole numbers are
    /// those next to it.
    pub pairs: Spread,
    /// Each node's death, by node.
    pub deaths: Vec<Death>,
}

impl Balance {
    /// Measures `chains`, each head first, over `candidates`. Slots on nodes or disks that are no
    /// candidates are left out.
    pub fn of(candidates: &[Candidate], chains: &[Vec<Slot>]) -> Self {
        let mut nodes: Vec<&Candidate> =
            candidates.iter().filter(|c| !c.disks.is_empty()).collect();
        nodes.sort_by_key(|c| c.node);
        let disk_ids = nodes
            .iter()
            .enumerate()
            .flat_map(|(at, c)| c.disks.iter().map(move |&disk| (disk, at)));
        // Disk id → (its number, its node's number).
        let places: BTreeMap<DiskId, (usize, usize)> = disk_ids
            .enumerate()
            .map(|(number, (disk, at))| (disk, (number, at)))
            .collect();
        let known: Vec<Vec<(usize, usize)>> = chains
            .iter()
            .map(|chain| {
                chain
                    .iter()
                    .filter_map(|slot| places.get(&slot.disk).copied())
                    .collect()
            })
            .collect();
        let mut counts = Counts::new(nodes.len(), places.len());
        for chain in &known {
            counts.add(chain);
        }
        let (count, disks) = (nodes.len(), places.len());
        let mut sizes = vec![0; count];
        for &(_, node) in places.values() {
            sizes[node] += 1;
        }
        let death = |(at, candidate): (usize, &&Candidate)| {
            let others = |row: &[u64]| {
                let others = row.iter().enumerate().filter(|&(other, _)| other != at);
                Load::of(others.map(|(_, &load)| load))
            };
            let of_disks = places.values().filter(|&&(_, node)| node != at);
            Death {
                node: candidate.node,
                reads: others(&counts.shared[at * count..][..count]),
                resync: others(&counts.source[at * count..][..count]),
                disk_reads: Load::of(of_disks.map(|&(disk, _)| counts.on_disk[at * disks + disk])),
            }
        };
        let deaths = nodes.iter().enumerate().map(death).collect();
        let pairs = (1..count).flat_map(|a| (0..a).map(move |b| (a, b)));
        Self {
            nodes: count,
            disks,
            chains: chains.len(),
            targets_per_disk: Spread::of(counts.targets.iter().copied()),
            heads_per_disk: Spread::of(counts.heads.iter().copied()),
            pairs: Spread::of(pairs.map(|(a, b)| counts.shared[a * count + b])),
            deaths,
        }
    }

    /// The death whose reads spread worst.
    pub fn worst_reads(&self) -> Load {
        worst(self.deaths.iter().map(|death| death.reads))
    }

    /// The death whose resync spreads worst.
    pub fn worst_resync(&self) -> Load {
        worst(self.deaths.iter().map(|death| death.resync))
    }

    /// The death whose reads spread worst over disks.
    pub fn worst_disk_reads(&self) -> Load {
        worst(self.deaths.iter().map(|death| death.disk_reads))
    }
}

fn worst(loads: impl Iterator<Item = Load>) -> Load {
    loads
        .max_by(|a, b| a.ratio.total_cmp(&b.ratio))
        .unwrap_or_default()
}

impl Spread {
    fn of(counts: impl Iterator<Item = u64>) -> Self {
        let counts: Vec<u64> = counts.collect();
        Self {
            min: counts.iter().min().copied().unwrap_or(0),
            mean: mean(&counts),
            max: counts.iter().max().copied().unwrap_or(0),
        }
    }
}

impl Load {
    fn of(loads: impl Iterator<Item = u64>) -> Self {
        let loads: Vec<u64> = loads.collect();
        let (units, over) = (loads.iter().sum(), loads.len() as u64);
        let busiest = loads.iter().max().copied().unwrap_or(0);
        Self {
            mean: mean(&loads),
            busiest,
            ratio: ratio(busiest, units, over),
            ideal: whole_ratio(units, over),
        }
    }

    /// Whether the load is spread as well as [`super::GOOD_RATIO`] asks, or else as well as whole numbers allow.
    pub fn is_good(&self) -> bool {
        self.ratio <= self.ideal.max(super::GOOD_RATIO)
    }
}

/// The busiest of `over` over their mean, when `units` are dealt to them as evenly as whole numbers
/// allow; 1 when there is nothing to deal.
pub(super) fn whole_ratio(units: u64, over: u64) -> f64 {
    ratio(units.div_ceil(over.max(1)), units, over)
}

/// `busiest` over the mean of `units` over so many.
fn ratio(busiest: u64, units: u64, over: u64) -> f64 {
    if units == 0 {
        1.0
    } else {
        (busiest * over) as f64 / units as f64
    }
}

fn mean(counts: &[u64]) -> f64 {
    if counts.is_empty() {
        return 0.0;
    }
    counts.iter().sum::<u64>() as f64 / counts.len() as f64
}

/// What the chains come to, by number of node and disk.
struct Counts {
    nodes: usize,
    disks: usize,
    targets: Vec<u64>,
    heads: Vec<u64>,
    /// By node and node.
    shared: Vec<u64>,
    /// By node and its source.
    source: Vec<u64>,
    /// By node and other node's disk.
    on_disk: Vec<u64>,
}

impl Counts {
    fn new(nodes: usize, disks: usize) -> Self {
        Self {
            nodes,
            disks,
            targets: vec![0; disks],
            heads: vec![0; disks],
            shared: vec![0; nodes * nodes],
            source: vec![0; nodes * nodes],
            on_disk: vec![0; nodes * disks],
        }
    }

    fn add(&mut self, chain: &[(usize, usize)]) {
        for (at, &(disk, node)) in chain.iter().enumerate() {
            self.targets[disk] += 1;
            self.heads[disk] += u64::from(at == 0);
            for &(_, other) in chain.iter().filter(|&&(_, other)| other != node) {
                self.shared[other * self.nodes + node] += 1;
                self.on_disk[other * self.disks + disk] += 1;
            }
        }
        for ((_, node), (_, source)) in sources(chain) {
            self.source[node * self.nodes + source] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Node n has disks 10n and 10n + 1.
    fn slots(disks: &[u128]) -> Vec<Slot> {
        let slot = |&disk: &u128| Slot {
            node: NodeId((disk / 10) as u32),
            disk: DiskId(disk),
        };
        disks.iter().map(slot).collect()
    }

    fn nodes(count: u32) -> Vec<Candidate> {
        let node = |n: u32| Candidate {
            node: NodeId(n),
            disks: [0, 1].map(|d| DiskId(u128::from(n) * 10 + d)).to_vec(),
        };
        (1..=count).map(node).collect()
    }

    #[test]
    fn counts_are_of_the_chains_given() {
        let chains = [slots(&[10, 20, 30]), slots(&[20, 11, 31]), slots(&[10, 21])];
        let found = Balance::of(&nodes(3), &chains);
        assert_eq!((found.nodes, found.disks, found.chains), (3, 6, 3));
        let spread = |min, mean, max| Spread { min, mean, max };
        assert_eq!(found.targets_per_disk, spread(1, 8.0 / 6.0, 2));
        assert_eq!(found.heads_per_disk, spread(0, 0.5, 2));
        // 1 and 2 share three chains, 3 shares two with each.
        assert_eq!(found.pairs, spread(2, 7.0 / 3.0, 3));
        let first = found.deaths[0];
        assert_eq!(first.node, NodeId(1));
        assert_eq!((first.reads.busiest, first.reads.mean), (3, 2.5));
        // Node 3 is the tail of two chains of node 1, node 2 of the third.
        assert_eq!((first.resync.busiest, first.resync.mean), (2, 1.5));
        assert_eq!((first.disk_reads.busiest, first.disk_reads.mean), (2, 1.25));
        // The tail's own source is the one before it.
        let third = found.deaths[2];
        assert_eq!((third.resync.busiest, third.resync.mean), (1, 1.0));
    }

    #[test]
    fn the_ideal_is_what_whole_numbers_allow() {
        assert!((whole_ratio(64, 24) - 1.125).abs() < 1e-9);
        assert!((whole_ratio(48, 24) - 1.0).abs() < 1e-9);
        assert!((whole_ratio(1, 4) - 4.0).abs() < 1e-9);
        assert!((whole_ratio(0, 4) - 1.0).abs() < 1e-9);
        assert!((whole_ratio(0, 0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn odd_placements_are_measured_too() {
        let none = Balance::of(&[], &[slots(&[10, 20])]);
        assert_eq!((none.nodes, none.pairs), (0, Spread::default()));
        let alone = Balance::of(&nodes(1), &[slots(&[10])]);
        assert!(
            (alone.worst_reads().ratio - 1.0).abs() < 1e-9,
            "nothing to spread"
        );
        // A chain twice on one node, and one on a node that has left.
        let odd = Balance::of(&nodes(2), &[slots(&[10, 11]), slots(&[20, 30])]);
        assert_eq!(odd.pairs.max, 0);
        assert_eq!(odd.worst_reads().busiest, 0);
    }
}
