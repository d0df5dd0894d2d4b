//! The next step of every move, and which moves begin: a pure function from map to map.

use emberfs_proto::cluster::{Chain, ClusterMap, Disk, DiskRole, Move, PublicState, Target};
use emberfs_proto::ids::{ChainId, ChainTableVersion, ChainVersion, TargetId};

use super::Facts;
use super::plan::{Plan, Reason, Step, more_chains, plan};
use crate::cluster::placement;

/// How fast chains may be moved.
#[derive(Clone, Copy, Debug)]
pub(in crate::cluster) struct Pace {
    /// Chains at a time.
    pub(in crate::cluster) migrations: u32,
    /// Nothing begins.
    pub(in crate::cluster) paused: bool,
    /// Replicas that a disk should hold, about; with far fewer there are too few chains to use all disks.
    pub(in crate::cluster) targets_per_disk: u32,
}

impl Pace {
    /// What operators have set; `targets_per_disk` 0: the default.
    pub(in crate::cluster) fn of(map: &ClusterMap, targets_per_disk: u32) -> Self {
        Self {
            migrations: map.settings.migrations,
            paused: map.settings.migrations_paused,
            targets_per_disk: match targets_per_disk {
                0 => placement::default_targets(map.nodes.values().map(|n| n.disks.len()).sum()),
                configured => configured,
            },
        }
    }
}

/// Takes moves as far as they can go from `old` on. `new` is `old` with this evaluation's states.
pub(in crate::cluster) fn advance(
    old: &ClusterMap,
    new: &mut ClusterMap,
    facts: &Facts,
    pace: Pace,
) {
    for moving in old.moves.values() {
        step(old, new, moving);
    }
    forget_roles(new);
    if !new.rebalance && new.roles.values().all(|role| !is_vacated(*role)) {
        return;
    }
    let plan = plan(new, facts);
    if !pace.paused {
        begin(old, new, facts, &plan, pace.migrations);
    }
    if plan.steps.is_empty() && plan.stuck.is_empty() && new.moves.is_empty() {
        // A disk that does not work now may have been left out.
        let works = |disk: &Disk| facts.get(&disk.id).is_some_and(|health| health.works);
        let mut disks = new.nodes.values().flat_map(|node| &node.disks);
        if new.rebalance && disks.all(works) {
            new.rebalance = false;
            widen(new, facts, pace.targets_per_disk);
        }
    }
}

/// More chains, for files to come, if there are too few for the disks there are now. What is stored
/// has been spread before; the new chains are empty and hold everything there is of them.
fn widen(new: &mut ClusterMap, facts: &Facts, targets_per_disk: u32) {
    let Some((&(table, version), chains)) = new.tables.iter().next_back() else {
        return;
    };
    let mut chains = chains.clone();
    for slots in more_chains(new, facts, targets_per_disk) {
        let last = new.chains.keys().next_back().copied().unwrap_or_default();
        let id = ChainId(last.0 + 1);
        let mut chain = Chain {
            id,
            version: ChainVersion(1),
            targets: Vec::new(),
        };
        for (node, disk) in slots {
            new.last_target.0 += 1;
            let target = Target {
                id: new.last_target,
                chain: id,
                node,
                disk,
                state: PublicState::Serving,
            };
            chain.targets.push(target.id);
            new.targets.insert(target.id, target);
        }
        new.chains.insert(id, chain);
        chains.push(id);
    }
    if new.tables.get(&(table, version)) != Some(&chains) {
        new.tables
            .insert((table, ChainTableVersion(version.0 + 1)), chains);
    }
}

fn is_vacated(role: DiskRole) -> bool {
    matches!(role, DiskRole::Draining | DiskRole::Retired)
}

fn step(old: &ClusterMap, new: &mut ClusterMap, moving: &Move) {
    let state = new.state(moving.target);
    let old_state = new.targets.get(&moving.replaces).map(|t| t.state);
    match (moving.leaving, old_state) {
        (_, None) => drop(new.moves.remove(&moving.chain)),
        // It has not stopped yet.
        (true, Some(PublicState::Serving)) => {}
        // All others failed meanwhile: it is needed again.
        (true, Some(PublicState::LastServing)) => set_leaving(old, new, moving.chain, false),
        (true, Some(_)) => remove(old, new, moving.chain, moving.replaces),
        (false, _) if state == PublicState::Serving => make_room(old, new, moving),
        (false, _) if !is_wanted(new, moving.target) && state != PublicState::LastServing => {
            remove(old, new, moving.chain, moving.target);
        }
        (false, _) => {}
    }
}

/// The new target's disk takes replicas.
fn is_wanted(map: &ClusterMap, target: TargetId) -> bool {
    let disk = map.targets.get(&target).map(|t| t.disk);
    disk.is_some_and(|disk| !is_vacated(map.role(disk)))
}

/// The new replica serves: an old one goes. One that does not serve goes first, if it has to go too:
/// that costs no redundancy.
fn make_room(old: &ClusterMap, new: &mut ClusterMap, moving: &Move) {
    let Some(chain) = new.chains.get(&moving.chain) else {
        return;
    };
    let members = chain.targets.iter().filter_map(|id| new.targets.get(id));
    let serves = |t: &Target| t.state == PublicState::Serving;
    let goes = |t: &&Target| t.id == moving.replaces || is_vacated(new.role(t.disk));
    let idle = members
        .clone()
        .filter(goes)
        .find(|t| !serves(t) && t.id != moving.target);
    if let Some(idle) = idle.map(|t| t.id) {
        return remove(old, new, moving.chain, idle);
    }
    let serving = members.filter(|t| serves(t)).count();
    let wanted = (new.replicas as usize).min(chain.targets.len() - 1);
    if serving > wanted {
        set_leaving(old, new, moving.chain, true);
    }
}

fn set_leaving(old: &ClusterMap, new: &mut ClusterMap, chain: ChainId, leaving: bool) {
    if let Some(moving) = new.moves.get_mut(&chain) {
        moving.leaving = leaving;
        bump(old, new, chain);
    }
}

/// Takes a target out of the map; the move of its chain is over.
fn remove(old: &ClusterMap, new: &mut ClusterMap, chain: ChainId, target: TargetId) {
    new.moves.remove(&chain);
    new.targets.remove(&target);
    if let Some(chain) = new.chains.get_mut(&chain) {
        chain.targets.retain(|&id| id != target);
    }
    bump(old, new, chain);
}

/// One more than in the map before, however much changes in this evaluation.
fn bump(old: &ClusterMap, new: &mut ClusterMap, chain: ChainId) {
    let before = old
        .chains
        .get(&chain)
        .map_or(ChainVersion(0), |c| c.version);
    if let Some(chain) = new.chains.get_mut(&chain) {
        chain.version = ChainVersion(before.0 + 1);
    }
}

fn begin(old: &ClusterMap, new: &mut ClusterMap, facts: &Facts, plan: &Plan, limit: u32) {
    // A move whose destination is down waits for it and holds up nobody.
    let runs = |m: &&Move| {
        let disk = new.targets.get(&m.target).map(|t| t.disk);
        disk.and_then(|disk| facts.get(&disk))
            .is_some_and(|h| h.works)
    };
    let running = new.moves.values().filter(runs).count();
    for _ in running..limit as usize {
        let Some(step) = plan.steps.iter().find(|step| may_begin(new, step)) else {
            return;
        };
        new.last_target.0 += 1;
        let id = new.last_target;
        let target = Target {
            id,
            chain: step.chain,
            node: step.node,
            disk: step.disk,
            state: PublicState::Offline,
        };
        new.targets.insert(id, target);
        let moving = Move {
            chain: step.chain,
            target: id,
            replaces: step.replaces,
            leaving: false,
        };
        new.moves.insert(step.chain, moving);
        if let Some(chain) = new.chains.get_mut(&step.chain) {
            chain.targets.push(id);
        }
        bump(old, new, step.chain);
    }
}

/// Whether a step may begin now: its chain moves nothing else, has a source, and is not busy healing.
pub(in crate::cluster) fn may_begin(map: &ClusterMap, step: &Step) -> bool {
    let Some(chain) = map.chains.get(&step.chain) else {
        return false;
    };
    let members = chain.targets.iter().filter_map(|id| map.targets.get(id));
    let serving = members
        .clone()
        .filter(|t| t.state == PublicState::Serving)
        .count();
    let heals = |t: &Target| matches!(t.state, PublicState::Syncing | PublicState::Waiting);
    let ready = match step.reason {
        Reason::Balance => serving == chain.targets.len(),
        Reason::Vacate => serving > 0 && !members.clone().any(heals),
    };
    ready && chain.targets.contains(&step.replaces) && !map.moves.contains_key(&step.chain)
}

/// Roles of disks that are gone from their nodes and hold nothing mean nothing any more.
fn forget_roles(new: &mut ClusterMap) {
    let ClusterMap {
        roles,
        nodes,
        targets,
        ..
    } = new;
    let named = |disk| nodes.values().any(|n| n.disks.iter().any(|d| d.id == disk));
    roles.retain(|&disk, _| named(disk) || targets.values().any(|t| t.disk == disk));
}
