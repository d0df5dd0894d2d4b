//! Initial placement: which disks form which chain. Pure and deterministic, no solver.
//!
//! What a [`Plan`] guarantees, for any nodes and disks:
//! - the targets of a chain are on different nodes;
//! - disks hold the same number of targets, give or take one, unless a node has so many disks that
//!   a chain would need two of them (then that node's share is cut, evenly over its disks);
//! - nodes, and the disks of a node, are head of the same number of chains, as near as the chains
//!   allow.
//!
//! What it comes close to, within a fixed budget of steps ([`balance`] measures how close):
//! - any two nodes share the same number of chains, so the reads of a dead node spread over all
//!   others evenly;
//! - any two nodes are each other's resync source for the same number of chains;
//! - the chains of any one node meet each disk of the other nodes equally often.
//!
//! How, each step in a file of its own:
//!
//! ```text
//! quotas ─► circulant ─► draw ─► pairs ─► order ─► disks
//!  slots     all nodes    what    swaps    who is   which disk
//!  per node  rotate       is left          head     of the node
//! ```
//!
//! Nodes of one size get most chains as *rotations* of a few base blocks: what is
//! even for one node is even for all, and the search is over a handful of small numbers instead of
//! thousands of chains. That works for every number of nodes. The rest, and clusters of unequal
//! nodes, are drawn one by one and evened out by swaps. All searches are driven by a generator with a
//! constant seed and count steps, never time, so a plan is the same on every machine.
//!
//! How even a plan *can* be is a question of whole numbers: when a dead node shares 1.4 chains with
//! each other on average, one of them shares 2. [`targets_per_disk`] therefore takes a few more targets per
//! disk than asked for where that brings the best possible balance within [`GOOD_RATIO`].
//!
//! Rejected: an integer programme over incidence matrices, as 3FS solves it. It is exact
//! where it ends, but it can be infeasible or never end, and needs a solver to be installed.

pub mod balance;
mod circulant;
mod dice;
mod disks;
mod draw;
mod order;
mod pairs;
mod quotas;
pub mod restore;
mod search;

use emberfs_proto::ids::{DiskId, NodeId};
use emberfs_proto::{Error, ErrorCode, Result};

use dice::Dice;

/// Targets per disk of a large cluster unless the operator says otherwise: enough that the load of a dead
/// disk spreads over several others, few enough that every chain is busy.
pub const FEW_TARGETS: u32 = 8;
/// The same in a cluster of at most [`SMALL_CLUSTER`] disks. It may double, and a disk that holds fewer
/// than ten targets cannot be within 10 % of an even share.
const MANY_TARGETS: u32 = 20;
/// Disks up to which a cluster counts as small.
const SMALL_CLUSTER: usize = 64;
/// The busiest survivor of a node's death may carry this much of the mean where whole numbers allow.
pub const GOOD_RATIO: f64 = 1.15;
/// [`targets_per_disk`] goes up to so many times what it was asked for.
const MAX_RAISE: u32 = 4;

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
    /// Steps that the searches took: what planning cost, on any machine.
    pub steps: u64,
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
    let (quotas, count) = quotas::quotas(&disks, width, targets_per_disk as usize);
    let mut dice = Dice::new();
    // Chains of node numbers; a node's number is its place in `nodes`.
    let mut chains = circulant::rotations(&quotas, width, &mut dice);
    let turned = chains.len() == count;
    draw::rest(&mut chains, &quotas, count, width);
    pairs::even(&mut chains, &quotas, turned, &mut dice);
    order::order(&mut chains, &quotas, turned, &mut dice);
    let places = disks::pick(&chains, &disks, &mut dice);
    let slot = |(&node, &disk): (&usize, &usize)| Slot {
        node: nodes[node].node,
        disk: nodes[node].disks[disk],
    };
    let slots = chains.iter().zip(&places);
    Ok(Plan {
        chains: slots
            .map(|(chain, disks)| chain.iter().zip(disks).map(slot).collect())
            .collect(),
        steps: dice.steps(),
    })
}

/// Targets per disk to begin with, for a cluster of so many disks; [`targets_per_disk`] may raise it.
pub fn default_targets(disks: usize) -> u32 {
    if disks <= SMALL_CLUSTER {
        MANY_TARGETS
    } else {
        FEW_TARGETS
    }
}

/// How many targets each disk of equal nodes should get: at least `wanted`, and so many that the
/// best possible plan spreads a dead node's reads, and its resync if that is to be had too, within
/// [`GOOD_RATIO`]. `wanted` where nodes are not equal, where there is nothing to spread, or where up
/// to four times as many would not help.
pub fn targets_per_disk(candidates: &[Candidate], replicas: u32, wanted: u32) -> u32 {
    let mut sizes = candidates
        .iter()
        .map(|c| c.disks.len() as u64)
        .filter(|&disks| disks > 0);
    let Some(disks) = sizes.next() else {
        return wanted;
    };
    if sizes.any(|other| other != disks) || wanted == 0 {
        return wanted;
    }
    let nodes = candidates.iter().filter(|c| !c.disks.is_empty()).count() as u64;
    let width = u64::from(replicas);
    if width < 2 || nodes < width {
        return wanted;
    }
    let whole = |per_disk: u64| (nodes * disks * per_disk).is_multiple_of(width);
    let ratios = |per_disk: u64| {
        let shared = disks * per_disk;
        (
            balance::whole_ratio(shared * (width - 1), nodes - 1),
            balance::whole_ratio(shared, nodes - 1),
        )
    };
    let range =
        || (u64::from(wanted)..=u64::from(wanted) * u64::from(MAX_RAISE)).filter(|&r| whole(r));
    let good = |ratio: f64| ratio <= GOOD_RATIO;
    let both = range().find(|&r| good(ratios(r).0) && good(ratios(r).1));
    let reads = || range().find(|&r| good(ratios(r).0));
    both.or_else(reads).map_or(wanted, |r| r as u32)
}

#[cfg(test)]
mod tests;
