//! Plans that end even, and moves that survive whatever happens between two steps.

mod changes;
mod plans;
mod steps;

use std::collections::{BTreeMap, BTreeSet};

use emberfs_proto::cluster::{Chain, ClusterMap, Disk, DiskRole, Node, PublicState, Target};
use emberfs_proto::ids::{
    ChainId, ChainTableId, ChainTableVersion, ChainVersion, DiskId, IncarnationId, MapVersion,
    NodeId, TargetId,
};

use super::*;
use crate::cluster::placement::{self, Candidate};

const GIB: u64 = 1 << 30;
const PACE: Pace = Pace {
    migrations: 4,
    paused: false,
    targets_per_disk: 8,
};

fn disk_id(node: u32, disk: u32) -> DiskId {
    DiskId(u128::from(node) * 1000 + u128::from(disk))
}

fn node(id: u32, capacities: &[u64]) -> Node {
    let disk = |(i, &capacity): (u32, &u64)| Disk {
        id: disk_id(id, i),
        path: format!("/d{i}"),
        capacity,
    };
    Node {
        id: NodeId(id),
        data_addr: format!("host{id}:1"),
        admin_addr: String::new(),
        incarnation: IncarnationId(1),
        alive: true,
        disks: (1..).zip(capacities).map(disk).collect(),
    }
}

/// A cluster of `nodes`, each with disks of these capacities, with chains laid out as at its birth.
fn cluster(nodes: &[Vec<u64>], replicas: u32, per_disk: u32) -> ClusterMap {
    let mut map = ClusterMap {
        version: MapVersion(1),
        replicas,
        ..ClusterMap::default()
    };
    let mut candidates = Vec::new();
    for (id, capacities) in (1..).zip(nodes) {
        let node = node(id, capacities);
        let disks = node.disks.iter().map(|d| d.id).collect();
        candidates.push(Candidate {
            node: node.id,
            disks,
        });
        map.nodes.insert(node.id, node);
    }
    let plan = placement::plan(&candidates, replicas, per_disk).unwrap();
    for (id, slots) in (1..).map(ChainId).zip(&plan.chains) {
        let mut chain = Chain {
            id,
            version: ChainVersion(1),
            targets: Vec::new(),
        };
        for slot in slots {
            map.last_target.0 += 1;
            let target = Target {
                id: map.last_target,
                chain: id,
                node: slot.node,
                disk: slot.disk,
                state: PublicState::Serving,
            };
            map.roles.insert(slot.disk, DiskRole::Active);
            chain.targets.push(target.id);
            map.targets.insert(target.id, target);
        }
        map.chains.insert(id, chain);
    }
    let all = map.chains.keys().copied().collect();
    map.tables
        .insert((ChainTableId(1), ChainTableVersion(1)), all);
    map
}

/// All disks of living nodes work and have room.
fn facts(map: &ClusterMap) -> Facts {
    let nodes = map.nodes.values();
    let disks = nodes.flat_map(|n| n.disks.iter().map(|d| (d, n.alive)));
    let health = |(disk, works): (&Disk, bool)| {
        let free = Some(disk.capacity);
        (
            disk.id,
            Health {
                works,
                used: 0,
                free,
            },
        )
    };
    disks.map(health).collect()
}

fn held(map: &ClusterMap) -> BTreeMap<DiskId, u64> {
    let mut held: BTreeMap<DiskId, u64> = BTreeMap::new();
    for target in map.targets.values() {
        *held.entry(target.disk).or_default() += 1;
    }
    held
}

fn serving(map: &ClusterMap, chain: &Chain) -> usize {
    map.serving(chain).count()
}

/// What holds in every map: replicas that are not being moved are on distinct nodes, there is at most one too
/// many per chain, and no id is beyond the count.
fn check(map: &ClusterMap) {
    for chain in map.chains.values() {
        let moving = map.moves.get(&chain.id);
        let stay = chain
            .targets
            .iter()
            .filter(|&&id| moving.is_none_or(|m| m.replaces != id));
        let nodes: Vec<NodeId> = stay.map(|id| map.targets[id].node).collect();
        let distinct: BTreeSet<NodeId> = nodes.iter().copied().collect();
        assert_eq!(
            nodes.len(),
            distinct.len(),
            "two replicas on one node: {chain:?}"
        );
        let extra = usize::from(moving.is_some());
        assert_eq!(
            chain.targets.len(),
            map.replicas as usize + extra,
            "{chain:?}"
        );
        if let Some(moving) = moving {
            assert!(
                chain.targets.contains(&moving.target) && chain.targets.contains(&moving.replaces)
            );
        }
    }
    assert!(map.targets.keys().all(|&id| id <= map.last_target));
    let members: usize = map.chains.values().map(|c| c.targets.len()).sum();
    assert_eq!(members, map.targets.len());
}

/// Carries a plan out in one stroke.
fn carry_out(map: &mut ClusterMap, plan: &Plan) {
    for step in &plan.steps {
        let target = map.targets.get_mut(&step.replaces).unwrap();
        assert_eq!(target.chain, step.chain);
        (target.node, target.disk) = (step.node, step.disk);
    }
}
