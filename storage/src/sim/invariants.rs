//! What must hold after every step, and at the end: the seven invariants of ARCHITECTURE.md as far as each
//! can be seen from outside. (The sixth is the history's.)

use std::collections::BTreeMap;

use emberfs_proto::cluster::{ClusterMap, LocalState, PublicState};
use emberfs_proto::ids::{ChainId, ChainVersion, ChunkKey, TargetId};

use super::disk::Stored;
use super::net::Place;
use super::world::World;
use crate::chain::Outcome;

/// Every membership that ever was in force.
#[derive(Default)]
pub(super) struct Chains {
    of: BTreeMap<(ChainId, ChainVersion), Vec<TargetId>>,
    pub(super) changes: u64,
}

impl World {
    pub(super) fn chains_changed(&mut self, map: &ClusterMap) {
        for chain in map.chains.values() {
            let members: Vec<_> = map.writable(chain).map(|t| t.id).collect();
            if self
                .chains
                .of
                .insert((chain.id, chain.version), members)
                .is_none()
            {
                self.chains.changes += 1;
                let states: Vec<_> = chain.targets.iter().map(|&t| (t.0, map.state(t))).collect();
                self.note(|| {
                    format!(
                        "map {}: chain {} {} {states:?}",
                        map.version, chain.id, chain.version
                    )
                });
            }
        }
    }

    fn place_of(&self, target: TargetId) -> Option<usize> {
        Some(self.manager.stored.targets.get(&target)?.node.0 as usize - 1)
    }

    fn chain_of(&self, target: TargetId) -> Option<ChainId> {
        Some(self.manager.stored.targets.get(&target)?.chain)
    }

    /// SERVING targets of a target's chain in the map in force, in order.
    fn serving(&self, target: TargetId) -> Vec<TargetId> {
        let map = &self.manager.stored;
        let chain = self.chain_of(target).and_then(|id| map.chains.get(&id));
        chain.map_or(Vec::new(), |chain| {
            map.serving(chain).map(|t| t.id).collect()
        })
    }

    fn stored(&self, target: TargetId, key: ChunkKey) -> Option<&Stored> {
        self.hosts[self.place_of(target)?].disk.get((target, key))
    }

    fn durable_version(&self, target: TargetId, key: ChunkKey) -> u64 {
        let host = self.place_of(target);
        let stored = host.and_then(|host| self.hosts[host].disk.durable((target, key)));
        stored.map_or(0, |s| s.newest().0)
    }

    /// The chunks of files that are there.
    fn keys(&self) -> impl Iterator<Item = ChunkKey> + use<> {
        let removed = self.history.removed.clone();
        let all: Vec<_> = (0..self.setup.keys)
            .map(|i| self.history.current(i))
            .collect();
        let all = all.into_iter();
        all.filter(move |key| !removed.contains(key))
    }

    /// Invariants 2 and 3, of the chains that a host is part of, after something changed on its disk.
    pub(super) fn check_step(&mut self, host: usize) {
        let Some(process) = &self.hosts[host].process else {
            return;
        };
        let targets: Vec<_> = process.targets.keys().copied().collect();
        let mut wrong = None;
        for target in targets {
            let current = |&id: &TargetId| {
                let host = self.place_of(id)?;
                let replica = &self.hosts[host].process.as_ref()?.targets.get(&id)?.replica;
                let serves = replica.view()?.state == PublicState::Serving
                    && replica.local() == LocalState::UpToDate;
                serves.then_some(id)
            };
            let serving: Vec<_> = self.serving(target).iter().filter_map(current).collect();
            for key in self.keys() {
                for pair in serving.windows(2) {
                    let [before, after] = [pair[0], pair[1]].map(|t| self.stored(t, key));
                    let (Some(before), after) = (before, after) else {
                        continue;
                    };
                    let versions = [
                        before.committed_version(),
                        after.map_or(0, Stored::committed_version),
                    ];
                    if versions[0] > versions[1] {
                        wrong = Some(format!(
                            "invariant 2: {key} is committed at {} on target {} but at {} on its successor {}",
                            versions[0], pair[0], versions[1], pair[1]
                        ));
                    }
                    let bytes = |s: &Stored| s.committed.as_ref().map(|v| v.bytes.clone());
                    if versions[0] == versions[1] && after.and_then(bytes) != bytes(before) {
                        wrong = Some(format!(
                            "invariant 3: {key} version {} has other bytes on target {} than on {}",
                            versions[0], pair[0], pair[1]
                        ));
                    }
                }
                for &id in &serving {
                    let Some(stored) = self.stored(id, key) else {
                        continue;
                    };
                    if stored.newest().0 > stored.committed_version() + 1 {
                        wrong = Some(format!(
                            "invariant 2: {key} on target {id} skips a version: {:?}",
                            stored.newest()
                        ));
                    }
                }
            }
        }
        if let Some(wrong) = wrong {
            self.fail(|| wrong);
        }
    }

    /// Invariant 1: the head answers a client.
    pub(super) fn check_acknowledged(
        &mut self,
        host: usize,
        target: TargetId,
        call: u64,
        outcome: &Outcome,
    ) {
        let Some(key) = self.client_key(call) else {
            return;
        };
        let Some(at) = self.adopted(host, target) else {
            return;
        };
        let Some(chain) = self.chain_of(target) else {
            return;
        };
        if self.history.removed.contains(&key) {
            return;
        }
        let members = self
            .chains
            .of
            .get(&(chain, at))
            .cloned()
            .unwrap_or_default();
        for other in self.serving(target) {
            let has = self.durable_version(other, key);
            if members.contains(&other) && has < outcome.version.0 {
                let version = outcome.version;
                self.fail(|| format!("invariant 1: {key} {version} is acknowledged, target {other} has only {has} for certain"));
            }
        }
    }

    fn client_key(&self, call: u64) -> Option<ChunkKey> {
        let call = self.net.calls.get(&call)?;
        match (&call.from, &call.caller) {
            (
                Place::Client(_),
                super::net::Caller::Lane {
                    client,
                    lane,
                    attempt,
                },
            ) => self.clients[*client].key_of(*lane, *attempt),
            _ => None,
        }
    }

    /// Invariant 4: a piece of work gets its chunk.
    pub(super) fn check_begins(&mut self, host: usize, target: TargetId, op: crate::chain::OpId) {
        let now = self.adopted(host, target);
        let asked = self
            .target(host, target)
            .and_then(|t| t.replica.asked_under(op));
        let stale = asked.is_some() && asked != now;
        if stale || !self.has_lease(host) {
            self.fail(|| format!("invariant 4: work asked of target {target} under {asked:?} begins under {now:?}, or without a lease"));
        }
    }

    /// Invariants 4 and 7: a reader is about to see a version.
    pub(super) fn check_shown(
        &mut self,
        host: usize,
        target: TargetId,
        key: ChunkKey,
        version: u64,
    ) {
        let serving = self.serving(target);
        if !serving.contains(&target) {
            self.fail(|| format!("invariant 4: host {host} serves a read of {key} from target {target}, which is not SERVING any more"));
            return;
        }
        if self.history.removed.contains(&key) {
            return;
        }
        for other in serving {
            let has = self.durable_version(other, key);
            if has < version {
                self.fail(|| format!("invariant 7: {key} version {version} is shown by target {target}, target {other} has only {has} for certain"));
            }
        }
    }

    /// Invariant 5, when a map comes into force.
    pub(super) fn check_promotions(&mut self, next: &ClusterMap) {
        let mut wrong = None;
        for old in self.manager.stored.chains.values() {
            let Some(source) = self.manager.stored.tail(old) else {
                continue;
            };
            let promoted = old.targets.iter().filter(|&&t| {
                self.manager.stored.state(t) == PublicState::Syncing
                    && next.state(t) == PublicState::Serving
            });
            for &target in promoted {
                for key in self.keys() {
                    let Some(ours) = self.stored(source.id, key) else {
                        continue;
                    };
                    let theirs = self.stored(target, key).map_or(0, |s| s.newest().0);
                    if ours.committed_version() > theirs && !ours.pending_removal() {
                        wrong = Some(format!(
                            "invariant 5: target {target} becomes SERVING with {key} at {theirs}, its predecessor {} has committed {}",
                            source.id,
                            ours.committed_version()
                        ));
                    }
                }
            }
        }
        if let Some(wrong) = wrong {
            self.fail(|| wrong);
        }
    }

    /// Whether everything has come to rest as it should.
    pub(super) fn is_calm(&self) -> bool {
        let map = &self.manager.stored;
        let settled = |host: &super::host::Host| {
            host.process.as_ref().is_some_and(|p| {
                p.map.version == map.version
                    && p.targets.values().all(|t| {
                        t.replica.local() == LocalState::UpToDate
                            && t.replica.busy_chunks() == 0
                            && t.pass.is_none()
                    })
            })
        };
        self.manager.is_up()
            && !self.is_busy()
            && !map.chains.is_empty()
            && map.moves.is_empty()
            && map
                .targets
                .values()
                .all(|t| t.state == PublicState::Serving)
            && self.hosts.iter().all(settled)
    }

    pub(super) fn describe(&self) -> String {
        let map = &self.manager.stored;
        let target = |t: &emberfs_proto::cluster::Target| {
            let process = self.hosts[t.node.0 as usize - 1].process.as_ref();
            let replica = process
                .and_then(|p| p.targets.get(&t.id))
                .map(|t| &t.replica);
            let busy = replica.map(crate::chain::Replica::busy_chunks);
            let version = replica.and_then(|r| r.view()).map(|v| v.version);
            format!(
                "{} {:?}/{:?} at {version:?} busy {busy:?}; ",
                t.id,
                t.state,
                replica.map(crate::chain::Replica::local)
            )
        };
        let targets: String = map.targets.values().map(target).collect();
        format!(
            "map {}, clients busy: {}, {targets}",
            map.version,
            self.is_busy()
        )
    }

    /// At the end all replicas are equal, down to what they remember of writers.
    pub(super) fn check_end(&mut self) {
        let mut wrong = None;
        for chain in self.manager.stored.chains.values() {
            let content = |target: &TargetId| {
                let host = self.place_of(*target)?;
                let records = self.hosts[host].disk.records(*target);
                // A message that outlives its file may leave an orphan on one replica, which fsck finds.
                let records = records.filter(|(key, _)| !self.history.removed.contains(key));
                let records = records.map(|(key, s)| {
                    let version = s.committed.as_ref();
                    let of = version.map(|v| (v.number, v.bytes.clone(), v.tag, v.recent.clone()));
                    (key, of, s.pending.is_some())
                });
                Some(records.collect::<Vec<_>>())
            };
            let all: Vec<_> = chain.targets.iter().map(content).collect();
            if all.windows(2).any(|w| w[0] != w[1]) {
                wrong = Some(format!(
                    "replicas of chain {} differ at the end: {all:#?}",
                    chain.id
                ));
            }
            let pending = all[0].iter().flatten().any(|record| record.2);
            if pending {
                wrong = Some(format!(
                    "chain {} has an unfinished version at the end",
                    chain.id
                ));
            }
        }
        if let Some(wrong) = wrong {
            self.fail(|| wrong);
        }
    }
}
