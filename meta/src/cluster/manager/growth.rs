//! What operators ask of the manager: changes of what disks are for, and what is left to move.

use std::collections::HashMap;

use emberfs_proto::cluster::{ClusterMap, Disk, Move, Node, PublicState, Target};
use emberfs_proto::ids::DiskId;
use emberfs_proto::{Result, pb};

use super::{Manager, stopping};
use crate::cluster::evaluate::facts;
use crate::cluster::moves::{self, Change, Facts, Health, Pace, Plan};

impl Manager {
    /// How fast replicas may be moved now.
    pub(super) fn pace(&self) -> Pace {
        Pace::of(&self.map(), self.config.targets_per_disk)
    }

    /// Checks an operator's wish and makes it durable; what has to move then follows in the background.
    /// Right after a start it waits until the manager knows which nodes live.
    pub(in crate::cluster) async fn change(
        &self,
        request: &pb::ChangeRequest,
    ) -> Result<pb::PlanReply> {
        let change = Change::try_from(request)?;
        self.settled().await?;
        let _writer = self.writer.lock().await;
        let old = self.map();
        let mut facts = facts(&old, &self.members.lock());
        if request.dry_run {
            let mut imagined = (*old).clone();
            imagine(&mut imagined, &mut facts, &request.as_if)?;
            let new = change.apply(&imagined, &facts)?;
            return Ok(describe(&new, &facts, self.pace()));
        }
        let mut new = change.apply(&old, &facts)?;
        if new != *old {
            new.version.0 += 1;
            self.publish(&old, new.clone()).await?;
            tracing::info!(?change, version = %new.version, "an operator changes the cluster");
            let mut members = self.members.lock();
            if let Change::RemoveNode(node) = change {
                members.forget(node);
            }
            members.set_dirty();
            drop(members);
            self.stir();
        }
        Ok(describe(&new, &facts, self.pace()))
    }

    /// What is being moved, and what will be.
    pub(in crate::cluster) fn plan(&self) -> pb::PlanReply {
        let map = self.map();
        let facts = facts(&map, &self.members.lock());
        describe(&map, &facts, self.pace())
    }

    async fn settled(&self) -> Result<()> {
        let mut moved = self.moved.subscribe();
        loop {
            moved.mark_unchanged();
            if !self.members.lock().is_settling() {
                return Ok(());
            }
            tokio::select! {
                _ = moved.changed() => {}
                () = self.closing.cancelled() => return Err(stopping()),
            }
        }
    }
}

/// Adds nodes and disks that are not there, for a plan only.
fn imagine(map: &mut ClusterMap, facts: &mut Facts, as_if: &[pb::NodeMsg]) -> Result<()> {
    for node in as_if {
        let node = Node::try_from(node)?;
        let healthy = |disk: &Disk| Health {
            works: true,
            used: 0,
            free: Some(disk.capacity),
        };
        facts.extend(node.disks.iter().map(|disk| (disk.id, healthy(disk))));
        let known = map.nodes.entry(node.id).or_insert(Node {
            disks: Vec::new(),
            ..node.clone()
        });
        known.disks.extend(node.disks);
    }
    Ok(())
}

fn describe(map: &ClusterMap, facts: &Facts, pace: Pace) -> pb::PlanReply {
    let plan = moves::plan(map, facts);
    let mut held: HashMap<DiskId, u64> = HashMap::new();
    for target in map.targets.values() {
        *held.entry(target.disk).or_default() += 1;
    }
    // Targets of one disk hold about the same: their chains take every file's chunks in turn.
    let bytes = |from: &Target| {
        let used = facts.get(&from.disk).map_or(0, |health| health.used);
        used / held.get(&from.disk).copied().unwrap_or(1).max(1)
    };
    let begun = map.moves.values().filter_map(|moving| {
        let from = map.targets.get(&moving.replaces)?;
        let to = map.targets.get(&moving.target)?;
        Some(pb::PlannedMove {
            chain: moving.chain.0,
            replaces: from.id.0,
            target: to.id.0,
            from_node: from.node.0,
            from_disk: from.disk.to_bytes(),
            to_node: to.node.0,
            to_disk: to.disk.to_bytes(),
            bytes: bytes(from),
        })
    });
    let planned = plan.steps.iter().filter_map(|step| {
        let from = map.targets.get(&step.replaces)?;
        Some(pb::PlannedMove {
            chain: step.chain.0,
            replaces: from.id.0,
            target: 0,
            from_node: from.node.0,
            from_disk: from.disk.to_bytes(),
            to_node: step.node.0,
            to_disk: step.disk.to_bytes(),
            bytes: bytes(from),
        })
    });
    pb::PlanReply {
        map_version: map.version.0,
        moves: begun.chain(planned).collect(),
        stuck: plan.stuck.len() as u64,
        waits_for: waits_for(map, facts, &plan, pace).unwrap_or_default(),
    }
}

/// Why nothing moves although something should.
fn waits_for(map: &ClusterMap, facts: &Facts, plan: &Plan, pace: Pace) -> Option<String> {
    let left = map.moves.len() + plan.steps.len();
    if pace.paused && left > 0 {
        return Some(
            "moves are paused; `emberfs settings migrations_paused=false` lets them go on"
                .to_owned(),
        );
    }
    if left == 0 {
        let what = "replicas have to go and have nowhere to go; add a node or a disk";
        return (!plan.stuck.is_empty()).then(|| format!("{} {what}", plan.stuck.len()));
    }
    let works = |target| {
        let disk = map.targets.get(&target).map(|t| t.disk);
        disk.is_none_or(|disk| facts.get(&disk).is_some_and(|health| health.works))
    };
    let serves = |target| map.state(target) == PublicState::Serving;
    let goes_on = |m: &Move| works(m.target) && (m.leaving || !serves(m.target));
    if map.moves.values().any(goes_on) || plan.steps.iter().any(|s| moves::may_begin(map, s)) {
        return None;
    }
    let stopped = map.moves.values().find(|m| !works(m.target));
    Some(match stopped.and_then(|m| map.targets.get(&m.target)) {
        Some(to) => format!("node {} takes replicas and is down; start it", to.node.0),
        None => "chains have to heal first; `emberfs status` shows them".to_owned(),
    })
}
