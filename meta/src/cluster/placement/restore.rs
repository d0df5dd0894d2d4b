//! How long a dead node's replicas take to be made anew: an estimate on paper, by simulated placement. Pure.
//!
//! Two ways to get back to full redundancy are compared, on the same chains and the same sources:
//! - *Spread*: every chain that lost a replica gets one on another node that has none yet, the
//!   node that has received least so far and its idlest disk. All survivors send and receive. A replica is
//!   never divided, so a small cluster is held up by what one node takes in, and a large one by what one
//!   *disk* takes in: there, more and smaller chains are what makes it faster.
//! - *Return* (the design of 3FS): the chains keep their places and wait for the node, or for one that replaces
//!   it; then everything flows into that one node. The time until it is there comes on top.
//!
//! Modelled is flow: each network port and each disk carries what falls on it at a constant rate, all
//! at the same time, and the slowest is what one waits for. A node that serves clients gives resync
//! a *share* of its ports and disks; one that returns empty serves nobody and gives all. All chains are equally full.
//! Not modelled: the network between nodes, which is taken as wide enough, and protocol overhead.

use emberfs_proto::Result;
use emberfs_proto::ids::{DiskId, NodeId};

use super::order::sources;
use super::{Candidate, Plan, Slot, plan, targets_per_disk};

/// What each node is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hardware {
    /// Network, bytes per second in each direction.
    pub port: f64,
    /// Bytes that a disk holds when full.
    pub disk: f64,
    /// Bytes per second read from a disk.
    pub read: f64,
    /// Bytes per second written to a disk.
    pub write: f64,
    /// How full disks are, 0 to 1.
    pub fill: f64,
    /// What resync may take of a port and a disk that serve clients, 0 to 1.
    pub share: f64,
}

/// What one waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// A network port.
    Network,
    /// A disk.
    Disk,
}

/// A time and its reason.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Seconds.
    pub seconds: f64,
    /// What takes that long.
    pub limit: Limit,
}

/// One size of cluster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Study {
    /// Nodes before the death.
    pub nodes: u32,
    /// Chains over them.
    pub chains: usize,
    /// Bytes to be made anew.
    pub lost: f64,
    /// Onto all others, worst over all nodes that may die; `None` if each of them holds a copy of
    /// everything already, or if the others have no room.
    pub spread: Option<Estimate>,
    /// Into the node that returns empty, worst over all nodes.
    pub returned: Estimate,
}

/// Plans a cluster of equal nodes and estimates both times. `wanted` as in [`targets_per_disk`].
pub fn study(
    nodes: u32,
    disks: u32,
    replicas: u32,
    wanted: u32,
    hardware: &Hardware,
) -> Result<Study> {
    let candidates = equal_nodes(nodes, disks);
    let per_disk = targets_per_disk(&candidates, replicas, wanted);
    let plan = plan(&candidates, replicas, per_disk)?;
    let deaths = candidates.iter().map(|c| c.node);
    let spread = deaths
        .clone()
        .map(|dead| spread(&plan, &candidates, dead, hardware));
    let returned = deaths.map(|dead| returned(&plan, &candidates, dead, hardware));
    Ok(Study {
        nodes,
        chains: plan.chains.len(),
        lost: f64::from(disks) * hardware.disk * hardware.fill,
        spread: spread
            .collect::<Option<Vec<_>>>()
            .and_then(|all| all.into_iter().reduce(slower)),
        returned: returned.reduce(slower).unwrap_or(NOTHING),
    })
}

/// `nodes` nodes, numbered from 1, of `disks` disks each, for plans without a cluster.
pub fn equal_nodes(nodes: u32, disks: u32) -> Vec<Candidate> {
    let disk = |node: u32, disk| DiskId(u128::from(node) << 32 | u128::from(disk));
    let node = |node| Candidate {
        node: NodeId(node),
        disks: (0..disks).map(|number| disk(node, number)).collect(),
    };
    (1..=nodes).map(node).collect()
}

const NOTHING: Estimate = Estimate {
    seconds: 0.0,
    limit: Limit::Disk,
};

fn slower(a: Estimate, b: Estimate) -> Estimate {
    if b.seconds > a.seconds { b } else { a }
}

/// Bytes that fall on each node and each disk; both by number.
struct Flow<'a> {
    candidates: &'a [Candidate],
    disks: usize,
    sent: Vec<f64>,
    received: Vec<f64>,
    disk_sent: Vec<f64>,
    disk_received: Vec<f64>,
}

impl<'a> Flow<'a> {
    fn new(candidates: &'a [Candidate]) -> Self {
        let disks = candidates.first().map_or(0, |c| c.disks.len());
        let nodes = candidates.len();
        Self {
            candidates,
            disks,
            sent: vec![0.0; nodes],
            received: vec![0.0; nodes],
            disk_sent: vec![0.0; nodes * disks],
            disk_received: vec![0.0; nodes * disks],
        }
    }

    /// Numbers of a slot's node and disk. Equal nodes are numbered from 1.
    fn place(&self, slot: Slot) -> (usize, usize) {
        let node = slot.node.0 as usize - 1;
        let disk = self.candidates[node]
            .disks
            .iter()
            .position(|&d| d == slot.disk);
        (node, node * self.disks + disk.unwrap_or(0))
    }

    fn send(&mut self, source: Slot, bytes: f64) {
        let (node, disk) = self.place(source);
        self.sent[node] += bytes;
        self.disk_sent[disk] += bytes;
    }

    fn receive(&mut self, node: usize, disk: usize, bytes: f64) {
        self.received[node] += bytes;
        self.disk_received[disk] += bytes;
    }

    /// The time of a disk that does nothing else.
    fn disk_time(&self, disk: usize, hardware: &Hardware) -> f64 {
        self.disk_sent[disk] / hardware.read + self.disk_received[disk] / hardware.write
    }

    /// The time of a node whose ports and disks are used by `share`.
    fn time(&self, node: usize, share: f64, hardware: &Hardware) -> Estimate {
        let network = self.sent[node].max(self.received[node]) / (hardware.port * share);
        let disks = node * self.disks..(node + 1) * self.disks;
        let disks = disks.map(|disk| self.disk_time(disk, hardware) / share);
        let disks = disks.fold(0.0, f64::max);
        let limit = if network > disks {
            Limit::Network
        } else {
            Limit::Disk
        };
        let seconds = network.max(disks);
        Estimate { seconds, limit }
    }
}

/// Chains of the dead node: the dead slot, its source, and all slots.
fn lost(plan: &Plan, dead: NodeId) -> impl Iterator<Item = (Slot, Option<Slot>, &Vec<Slot>)> {
    plan.chains.iter().filter_map(move |chain| {
        let slot = *chain.iter().find(|slot| slot.node == dead)?;
        let source = sources(chain).find(|(member, _)| member.node == dead);
        Some((slot, source.map(|(_, source)| source), chain))
    })
}

/// Bytes of one replica, given how many are on a disk.
fn replica(plan: &Plan, candidates: &[Candidate], hardware: &Hardware) -> f64 {
    let slots: usize = plan.chains.iter().map(Vec::len).sum();
    let disks: usize = candidates.iter().map(|c| c.disks.len()).sum();
    hardware.disk * hardware.fill * disks as f64 / slots as f64
}

fn spread(
    plan: &Plan,
    candidates: &[Candidate],
    dead: NodeId,
    hardware: &Hardware,
) -> Option<Estimate> {
    let (nodes, bytes) = (candidates.len(), replica(plan, candidates, hardware));
    if nodes < 2 || hardware.fill * nodes as f64 / (nodes - 1) as f64 > 1.0 {
        return None;
    }
    let mut flow = Flow::new(candidates);
    for (_, source, _) in lost(plan, dead) {
        flow.send(source?, bytes);
    }
    for (_, _, chain) in lost(plan, dead) {
        let free =
            (0..nodes).filter(|&node| chain.iter().all(|slot| slot.node != candidates[node].node));
        let load = |&node: &usize| (flow.received[node], flow.sent[node]);
        let node = free.min_by(|a, b| load(a).partial_cmp(&load(b)).unwrap_or(a.cmp(b)))?;
        let busy = |disk: usize| flow.disk_time(disk, hardware);
        let disk = (node * flow.disks..(node + 1) * flow.disks)
            .min_by(|&a, &b| busy(a).total_cmp(&busy(b)))?;
        flow.receive(node, disk, bytes);
    }
    (0..nodes)
        .map(|node| flow.time(node, hardware.share, hardware))
        .reduce(slower)
}

fn returned(plan: &Plan, candidates: &[Candidate], dead: NodeId, hardware: &Hardware) -> Estimate {
    let bytes = replica(plan, candidates, hardware);
    let mut flow = Flow::new(candidates);
    for (slot, source, _) in lost(plan, dead) {
        let (node, disk) = flow.place(slot);
        flow.receive(node, disk, bytes);
        if let Some(source) = source {
            flow.send(source, bytes);
        }
    }
    let share = |node: usize| {
        if candidates[node].node == dead {
            1.0
        } else {
            hardware.share
        }
    };
    let times = (0..candidates.len()).map(|node| flow.time(node, share(node), hardware));
    times.reduce(slower).unwrap_or(NOTHING)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Hardware = Hardware {
        port: 100.0,
        disk: 1000.0,
        read: 50.0,
        write: 50.0,
        fill: 0.5,
        share: 0.5,
    };

    #[test]
    fn one_node_takes_as_long_as_its_narrowest_way_in() {
        // Two disks lose 500 bytes each: 10 s through each disk, 5 s through a wide port.
        let wide = Hardware {
            port: 200.0,
            ..PLAIN
        };
        let study = study(10, 2, 3, 9, &wide).unwrap();
        assert!((study.lost - 1000.0).abs() < 1e-9);
        assert_eq!(study.returned.limit, Limit::Disk);
        assert!((study.returned.seconds - 10.0).abs() < 1e-9, "{study:?}");
        let narrow = Hardware {
            port: 50.0,
            ..PLAIN
        };
        let study = super::study(10, 2, 3, 9, &narrow).unwrap();
        assert_eq!(study.returned.limit, Limit::Network);
        assert!((study.returned.seconds - 20.0).abs() < 1e-9, "{study:?}");
    }

    #[test]
    fn many_nodes_are_faster_than_one_and_more_are_faster_still() {
        let times: Vec<f64> = [10, 20, 40]
            .map(|nodes| study(nodes, 4, 3, 9, &PLAIN).unwrap())
            .iter()
            .map(|study| study.spread.unwrap().seconds)
            .collect();
        assert!(
            times[0] > times[1] * 1.5 && times[1] > times[2] * 1.5,
            "{times:?}"
        );
    }

    #[test]
    fn nothing_can_be_spread_without_a_node_to_spare_or_room() {
        assert_eq!(study(3, 1, 3, 8, &PLAIN).unwrap().spread, None);
        assert!(study(4, 1, 3, 8, &PLAIN).unwrap().spread.is_some());
        let full = Hardware { fill: 0.8, ..PLAIN };
        assert_eq!(study(4, 1, 3, 8, &full).unwrap().spread, None);
        assert_eq!(
            study(4, 1, 1, 8, &PLAIN).unwrap().spread,
            None,
            "no copy is left"
        );
    }
}
