//! From the map in force and what is known of the members to the next map. Pure.
//!
//! A chain is evaluated in two passes that make one change. The first treats each node whose
//! process is another one than the map names as failed; the second as it is now. So a restart
//! always costs a replica its place, unless nobody else has the data, and both happen in one
//! durable step: the new incarnation enters the map together with the verdict on the old one. A
//! claim made before this step is stale in the second pass if the first changed the chain.

use std::collections::{BTreeMap, BTreeSet};

use emberfs_proto::cluster::{Chain, ClusterMap, DiskRole, LocalState, Node, PublicState, Target};
use emberfs_proto::ids::{
    ChainId, ChainTableId, ChainTableVersion, ChainVersion, DiskId, TargetId,
};
use emberfs_proto::{Error, Result};

use super::members::Members;
use super::moves::{self, Facts, Pace};
use super::placement::{self, Candidate};
use super::state::{self, Replica, Step};

/// The table that new files use.
const FIRST_TABLE: ChainTableId = ChainTableId(1);

/// How chains are first laid out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) replicas: u32,
    pub(super) expected_nodes: u32,
    /// 0: as many as balance well.
    pub(super) targets_per_disk: u32,
}

/// What an evaluation came to.
#[derive(Debug)]
pub(super) struct Outcome {
    /// The next map, if it differs.
    pub(super) map: Option<ClusterMap>,
    /// Why there are still no chains although the expected nodes are here.
    pub(super) shortage: Option<Error>,
}

/// Evaluates everything.
pub(super) fn evaluate(
    map: &ClusterMap,
    members: &Members,
    layout: &Layout,
    pace: Pace,
) -> Outcome {
    let mut new = map.clone();
    for session in members.sessions() {
        new.nodes.insert(session.node.id, session.node.clone());
        new.openings.extend(&session.openings);
    }
    // Of a disk that is neither here nor holds a replica nothing needs to be remembered.
    let here = new
        .nodes
        .values()
        .flat_map(|node| &node.disks)
        .map(|disk| disk.id);
    let used = new.targets.values().map(|target| target.disk);
    let known: BTreeSet<DiskId> = here.chain(used).collect();
    new.openings.retain(|disk, _| known.contains(disk));
    for chain in map.chains.values() {
        let step = evaluate_chain(chain, map, members, pace);
        if step.changed {
            apply(&mut new, chain, &step);
        }
    }
    let mut shortage = None;
    if map.chains.is_empty() {
        new.replicas = layout.replicas;
        shortage = create_chains(&mut new, members, layout).err();
    } else {
        let facts = facts(&new, members);
        moves::advance(map, &mut new, &facts, pace);
    }
    let changed = new != *map;
    new.version.0 += u64::from(changed);
    Outcome {
        map: changed.then_some(new),
        shortage,
    }
}

/// What is known of every disk that a node names.
pub(super) fn facts(map: &ClusterMap, members: &Members) -> Facts {
    let mut facts = Facts::new();
    for node in map.nodes.values() {
        let reports = members.session(node.id).map_or(&[][..], |s| &s.disks);
        for disk in &node.disks {
            let report = reports.iter().find(|r| r.disk == disk.id.to_bytes());
            let space = report.and_then(|r| r.space);
            let health = moves::Health {
                works: node.alive && report.is_none_or(|r| r.error.is_empty()),
                used: space.map_or(0, |s| s.used),
                free: space.map(|s| s.free),
            };
            facts.insert(disk.id, health);
        }
    }
    facts
}

fn evaluate_chain(chain: &Chain, map: &ClusterMap, members: &Members, pace: Pace) -> Step {
    let restarted = |target: &Target| {
        let old = map.nodes.get(&target.node).map(|n| n.incarnation);
        let new = members.session(target.node).map(|s| s.node.incarnation);
        old != new
    };
    // While moves are paused their destinations are kept out: what they hold already stays.
    let held = map.moves.get(&chain.id).filter(|_| pace.paused);
    let held = held.map(|m| m.target);
    let claimed = |target: &Target, public, version| match held {
        Some(held) if held == target.id && public != PublicState::Serving => LocalState::Offline,
        _ => members.local(target.id, target.node, target.disk, public, version),
    };
    let targets = chain.targets.iter().filter_map(|id| map.targets.get(id));
    let before: Vec<Replica> = targets
        .map(|target| {
            let local = if restarted(target) {
                LocalState::Offline
            } else {
                claimed(target, target.state, chain.version)
            };
            Replica {
                target: target.id,
                public: target.state,
                local,
            }
        })
        .collect();
    let first = state::settle(&before);
    let version = ChainVersion(chain.version.0 + u64::from(first.changed));
    let mut between = first.replicas;
    for replica in &mut between {
        if let Some(target) = map.targets.get(&replica.target) {
            replica.local = claimed(target, replica.public, version);
        }
    }
    let second = state::settle(&between);
    Step {
        changed: first.changed || second.changed,
        ..second
    }
}

fn apply(new: &mut ClusterMap, old: &Chain, step: &Step) {
    for replica in &step.replicas {
        if let Some(target) = new.targets.get_mut(&replica.target) {
            target.state = replica.public;
        }
    }
    let targets = step.replicas.iter().map(|r| r.target).collect();
    let chain = Chain {
        id: old.id,
        version: ChainVersion(old.version.0 + 1),
        targets,
    };
    new.chains.insert(old.id, chain);
}

/// Lays out the first chains once the expected nodes are here.
fn create_chains(new: &mut ClusterMap, members: &Members, layout: &Layout) -> Result<()> {
    let usable = |node: &Node| {
        let failed = members.session(node.id).map_or(&[][..], |s| &s.disks);
        let failed = |disk: &[u8]| failed.iter().any(|d| !d.error.is_empty() && d.disk == disk);
        let disks = node
            .disks
            .iter()
            .map(|d| d.id)
            .filter(|d| !failed(&d.to_bytes()))
            .collect();
        Candidate {
            node: node.id,
            disks,
        }
    };
    let candidates: Vec<Candidate> = new
        .nodes
        .values()
        .filter(|node| node.alive)
        .map(usable)
        .filter(|candidate| !candidate.disks.is_empty())
        .collect();
    if candidates.is_empty() || candidates.len() < layout.expected_nodes as usize {
        return Ok(());
    }
    let per_disk = match layout.targets_per_disk {
        0 => {
            let disks = candidates.iter().map(|c| c.disks.len()).sum();
            let wanted = placement::default_targets(disks);
            placement::targets_per_disk(&candidates, layout.replicas, wanted)
        }
        chosen => chosen,
    };
    let plan = placement::plan(&candidates, layout.replicas, per_disk)?;
    let mut targets = BTreeMap::new();
    let mut next = (1..).map(TargetId);
    for (id, slots) in (1..).map(ChainId).zip(&plan.chains) {
        let mut chain = Chain {
            id,
            version: ChainVersion(1),
            targets: Vec::new(),
        };
        for (slot, target) in slots.iter().zip(next.by_ref()) {
            chain.targets.push(target);
            // An empty replica holds everything there is.
            let state = PublicState::Serving;
            let target = Target {
                id: target,
                chain: id,
                node: slot.node,
                disk: slot.disk,
                state,
            };
            new.roles.insert(slot.disk, DiskRole::Active);
            new.last_target = target.id;
            targets.insert(target.id, target);
        }
        new.chains.insert(id, chain);
    }
    new.targets = targets;
    let table = new.chains.keys().copied().collect();
    new.tables
        .insert((FIRST_TABLE, ChainTableVersion(1)), table);
    Ok(())
}

#[cfg(test)]
mod tests;
