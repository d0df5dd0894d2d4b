//! The cluster manager: its production state machines, driven as `emberfs_meta`'s `Manager` drives them.

use std::sync::Arc;
use std::time::Duration;

use emberfs_meta::cluster::model::{Model, Probe, Stream};
use emberfs_proto::cluster::{ClusterMap, DiskRole, PublicState};
use emberfs_proto::ids::{ChainId, ClusterId, IncarnationId, NodeId};
use emberfs_proto::pb::{self, change_request::Verb};
use tokio::time::Instant;

use super::family::Setup;
use super::host::Clock;
use super::mutant::Mutant;
use super::net::Place;
use super::random::Random;
use super::world::{Event, World};

/// As `TICK` there, µs.
const TICK: u64 = 100_000;
/// How often a watcher's stream is looked after, µs.
const WATCH: u64 = 250_000;

/// Names a probe that is under way.
pub(super) type ProbeId = u64;

/// See the module page.
pub(super) struct Manager {
    model: Option<Model>,
    pub(super) clock: Clock,
    /// Where simulated time is put on the scale of `Instant`; only differences matter.
    base: Instant,
    /// The map that is durable: it is in force, published or not.
    pub(super) stored: Arc<ClusterMap>,
    published: Arc<ClusterMap>,
    saving: Option<ClusterMap>,
    /// Raised by each start.
    epoch: u64,
    /// The stream of each host, as attached.
    streams: Vec<Option<(u64, Stream)>>,
    registering: Vec<(usize, u64, IncarnationId)>,
    leaving: Vec<(usize, u64, IncarnationId)>,
    probes: Vec<(ProbeId, Probe)>,
    next_probe: ProbeId,
    pub(super) random: Random,
}

impl Manager {
    pub(super) fn new(setup: &Setup, random: &mut Random) -> Self {
        Self {
            model: None,
            clock: Clock::new(setup, random),
            base: Instant::now(),
            stored: Arc::new(ClusterMap {
                cluster: ClusterId(7),
                ..ClusterMap::default()
            }),
            published: Arc::default(),
            saving: None,
            epoch: 0,
            streams: (0..setup.hosts).map(|_| None).collect(),
            registering: Vec::new(),
            leaving: Vec::new(),
            probes: Vec::new(),
            next_probe: 0,
            random: Random::new(setup.seed, 4),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.model.is_some()
    }
}

impl World {
    fn manager_time(&self) -> Instant {
        self.manager.base + self.manager.clock.at(self.now)
    }

    pub(super) fn manager_start(&mut self) {
        if self.manager.is_up() {
            return;
        }
        let now = self.manager_time();
        let hosts = self.setup.hosts as u32;
        let replicas = match self.setup.replicas {
            0 => hosts,
            replicas => replicas,
        };
        let map = ClusterMap::clone(&self.manager.stored);
        let lease = Duration::from_micros(self.setup.lease);
        let model = Model::start(map, replicas, hosts, self.setup.chains, lease, now);
        let it = &mut self.manager;
        it.published = it.stored.clone();
        it.model = Some(model);
        it.epoch += 1;
        self.note(|| "manager starts".to_owned());
        self.after(TICK, Event::ManagerTick);
    }

    pub(super) fn manager_crash(&mut self) {
        let it = &mut self.manager;
        if it.model.take().is_none() {
            return;
        }
        // A save that was under way may have happened.
        if let Some(map) = it.saving.take()
            && it.random.chance(500)
        {
            self.note(|| "manager is killed after a save".to_owned());
            self.in_force(map);
        } else {
            self.note(|| "manager is killed".to_owned());
        }
        let it = &mut self.manager;
        it.registering.clear();
        it.leaving.clear();
        it.probes.clear();
        let streams: Vec<_> = it.streams.iter_mut().map(Option::take).collect();
        for (host, stream) in streams.into_iter().enumerate() {
            if let Some((stream, _)) = stream {
                let life = self.hosts[host].life;
                let after = self.random.between(100, 50_000);
                self.after(after, Event::StreamLost { host, life, stream });
            }
        }
    }

    pub(super) fn manager_tick(&mut self) {
        let now = self.manager_time();
        let Some(model) = &mut self.manager.model else {
            return;
        };
        for probe in model.tick(now) {
            self.probe(probe);
        }
        let contested: Vec<_> = std::mem::take(&mut self.manager.registering);
        for (host, life, incarnation) in contested {
            let node = NodeId(host as u32 + 1);
            let model = self.manager.model.as_ref();
            if model.is_some_and(|m| m.is_registered(node, incarnation)) {
                self.manager.registering.push((host, life, incarnation));
            } else {
                // Contested: asked again, as the loop in `register` does.
                self.try_register(host, life, incarnation);
            }
        }
        self.manager_works();
        self.after(TICK, Event::ManagerTick);
    }

    /// The manager connects to a node's port.
    fn probe(&mut self, probe: Probe) {
        let node = probe.node();
        let host = node.0 as usize - 1;
        self.manager.next_probe += 1;
        let id = self.manager.next_probe;
        self.manager.probes.push((id, probe));
        let (there, back) = (
            self.net
                .is_open(Place::Manager, Place::Host(host), self.now),
            self.net
                .is_open(Place::Host(host), Place::Manager, self.now),
        );
        let it = &self.hosts[host];
        let refused = there && back && it.process.is_none() && it.kernel;
        let delay = if refused { 500 } else { 200_000 };
        self.after(delay, Event::Probed { refused, probe: id });
    }

    pub(super) fn probed(&mut self, refused: bool, probe: ProbeId) {
        let Some(at) = self.manager.probes.iter().position(|p| p.0 == probe) else {
            return;
        };
        let (_, probe) = self.manager.probes.swap_remove(at);
        if refused && let Some(model) = &mut self.manager.model {
            model.refused(&probe);
            let node = probe.node();
            self.note(|| format!("manager: {node} refuses, so it is dead"));
            self.manager_works();
        }
    }

    pub(super) fn register_at_manager(&mut self, host: usize, life: u64) {
        if self.hosts[host].life != life {
            return;
        }
        let Some(process) = &self.hosts[host].process else {
            return;
        };
        let incarnation = process.incarnation;
        self.try_register(host, life, incarnation);
        self.manager_works();
    }

    fn try_register(&mut self, host: usize, life: u64, incarnation: IncarnationId) {
        let now = self.manager_time();
        // The caller hung up.
        if self.hosts[host].life != life {
            return;
        }
        let node = self.hosts[host].describe(incarnation);
        let Some(model) = &mut self.manager.model else {
            return;
        };
        match model.register(&node, now) {
            Ok(probe) => {
                self.manager.registering.retain(|r| r.0 != host);
                self.manager.registering.push((host, life, incarnation));
                if let Some(probe) = probe {
                    self.probe(probe);
                }
                self.answer_registered();
            }
            Err(error) => self.fail(|| format!("the manager refuses host {host}: {error}")),
        }
    }

    /// Answers those whom the published map names.
    fn answer_registered(&mut self) {
        let map = self.manager.published.clone();
        let names = |host: usize, incarnation| {
            let node = map.nodes.get(&NodeId(host as u32 + 1));
            node.is_some_and(|n| n.incarnation == incarnation)
        };
        let waiting = std::mem::take(&mut self.manager.registering);
        for (host, life, incarnation) in waiting {
            let node = NodeId(host as u32 + 1);
            let model = self.manager.model.as_ref();
            let current = model.is_some_and(|m| m.is_registered(node, incarnation));
            if names(host, incarnation) && current {
                if let Some(delay) = self.net.travel(Place::Manager, Place::Host(host), self.now) {
                    self.after(delay, Event::Registered { host, life });
                }
            } else {
                self.manager.registering.push((host, life, incarnation));
            }
        }
        let leaving = std::mem::take(&mut self.manager.leaving);
        for (host, life, incarnation) in leaving {
            let node = map.nodes.get(&NodeId(host as u32 + 1));
            if node.is_none_or(|n| !n.alive || n.incarnation != incarnation) {
                if let Some(delay) = self.net.travel(Place::Manager, Place::Host(host), self.now) {
                    self.after(delay, Event::Left { host, life });
                }
            } else {
                self.manager.leaving.push((host, life, incarnation));
            }
        }
    }

    pub(super) fn heartbeat_at_manager(
        &mut self,
        host: usize,
        life: u64,
        stream: u64,
        first: bool,
        request: pb::HeartbeatRequest,
    ) {
        let now = self.manager_time();
        let Some(model) = &mut self.manager.model else {
            let after = self.random.between(100, 5000);
            return self.after(after, Event::StreamLost { host, life, stream });
        };
        let node = NodeId(host as u32 + 1);
        let incarnation = IncarnationId::from_bytes(&request.incarnation).unwrap_or_default();
        let known = match self.manager.streams[host] {
            Some((id, known)) if id == stream => Ok(known),
            _ if first => model.attach(node, incarnation).inspect(|&known| {
                self.manager.streams[host] = Some((stream, known));
            }),
            // The stream broke here, or was opened at the manager before this one.
            _ => {
                let after = self.random.between(100, 5000);
                return self.after(after, Event::StreamLost { host, life, stream });
            }
        };
        let reply = known.and_then(|known| model.heartbeat(known, request, now));
        self.manager_works();
        match self.net.travel(Place::Manager, Place::Host(host), self.now) {
            Some(delay) => {
                let last = self.hosts[host]
                    .process
                    .as_mut()
                    .and_then(|p| p.stream.as_mut());
                let mut at = self.now + delay;
                if let Some(ours) = last.filter(|s| s.id == stream) {
                    at = at.max(ours.last_reply + 1);
                    ours.last_reply = at;
                }
                self.after(
                    at - self.now,
                    Event::HeartbeatAnswer {
                        host,
                        life,
                        stream,
                        reply,
                    },
                );
            }
            None => self.break_stream(host, stream),
        }
    }

    pub(super) fn detached(&mut self, host: usize, stream: u64) {
        if let Some((id, known)) = self.manager.streams[host]
            && id == stream
        {
            self.manager.streams[host] = None;
            if let Some(model) = &mut self.manager.model {
                model.detach(NodeId(host as u32 + 1), known);
                self.manager_works();
            }
        }
    }

    pub(super) fn leave_at_manager(&mut self, host: usize, life: u64) {
        let Some(model) = &mut self.manager.model else {
            return;
        };
        let Some(process) = self.hosts[host].process.as_ref() else {
            return;
        };
        let incarnation = process.incarnation;
        if self.hosts[host].life == life
            && model.leave(NodeId(host as u32 + 1), incarnation).is_ok()
        {
            self.manager.leaving.push((host, life, incarnation));
            self.manager_works();
            self.answer_registered();
        }
    }

    /// An operator asks for the next thing that can be done with a host: drain it, give its dead disk up, or let
    /// it take replicas again. Refusals are as good.
    pub(super) fn wish(&mut self, host: usize) {
        let node = NodeId(host as u32 + 1);
        let disk = self.hosts[host].disk_id();
        let map = &self.manager.stored;
        let gone = map.roles.values().any(|role| *role == DiskRole::Retired);
        let verb = match map.role(disk) {
            DiskRole::Draining | DiskRole::Retired => Verb::AddNode,
            // Only one at a time: what is left must find room.
            _ if self.hosts[host].process.is_none() && !gone => Verb::RetireDisk,
            _ => Verb::DrainNode,
        };
        let request = pb::ChangeRequest {
            verb: verb.into(),
            node: node.0,
            disk: disk.to_bytes(),
            ..pb::ChangeRequest::default()
        };
        let Some(model) = self.manager.model.as_mut() else {
            return;
        };
        if self.manager.saving.is_some() {
            return;
        }
        let Ok(Some(map)) = model.change(&request) else {
            return;
        };
        self.note(|| format!("an operator asks for {verb:?} of {node}"));
        self.save(map);
    }

    /// One evaluation at a time: saved, then published.
    fn manager_works(&mut self) {
        if self.manager.saving.is_some() {
            return;
        }
        let Some(model) = &mut self.manager.model else {
            return;
        };
        let Some(mut next) = model.evaluate() else {
            return;
        };
        if self.mutated(Mutant::ReviveFromStale) {
            revive_stale(&self.manager.stored, &mut next);
        }
        self.save(next);
    }

    fn save(&mut self, next: ClusterMap) {
        self.manager.saving = Some(next);
        let epoch = self.manager.epoch;
        let takes = self.manager.random.around(3000);
        let ok = self.healed || !self.manager.random.chance(20);
        self.after(takes, Event::Saved { epoch, ok });
    }

    pub(super) fn saved(&mut self, epoch: u64, ok: bool) {
        if self.manager.epoch != epoch {
            return;
        }
        let Some(map) = self.manager.saving.take() else {
            return;
        };
        let Some(model) = &mut self.manager.model else {
            return;
        };
        if !ok {
            model.unsaved();
            return;
        }
        model.publish(map.clone());
        self.in_force(map);
        self.manager.published = self.manager.stored.clone();
        self.answer_registered();
        let watchers = (0..self.hosts.len()).map(Place::Host);
        let watchers: Vec<_> = watchers
            .chain((0..self.clients.len()).map(Place::Client))
            .collect();
        for to in watchers {
            self.push_map(to);
        }
        self.manager_works();
    }

    fn in_force(&mut self, map: ClusterMap) {
        let map = Arc::new(map);
        let over = |chain: &&ChainId| !map.moves.contains_key(chain);
        self.moves += self.manager.stored.moves.keys().filter(over).count() as u64;
        self.check_promotions(&map);
        self.manager.stored = map.clone();
        self.chains_changed(&map);
    }

    fn push_map(&mut self, to: Place) {
        if !self.manager.is_up() {
            return;
        }
        let life = self.life_of(to);
        let map = self.manager.published.clone();
        if let Some(delay) = self.net.travel(Place::Manager, to, self.now) {
            // Each watcher has a stream of its own, and some are slow.
            let slow = if self.net.random.chance(self.net.weather.slow_maps) {
                self.net.random.between(1000, 800_000)
            } else {
                0
            };
            self.after(delay + slow, Event::Map { to, life, map });
        }
    }

    /// A stream that lost something is opened again and brings the newest map.
    pub(super) fn watch(&mut self, to: Place, life: u64) {
        if self.life_of(to) != life {
            return;
        }
        let known = match to {
            Place::Host(host) if self.hosts[host].stalled_until > self.now => {
                let wait = self.hosts[host].stalled_until - self.now;
                let again = wait + self.random.between(1000, WATCH);
                return self.after(again, Event::Watch { to, life });
            }
            Place::Host(host) => match &self.hosts[host].process {
                Some(process) => process.map.version,
                None => return,
            },
            Place::Client(client) => self.clients[client].map.version,
            Place::Manager => return,
        };
        if known < self.manager.published.version && self.net.is_open(to, Place::Manager, self.now)
        {
            self.push_map(to);
        }
        let again = self.random.between(WATCH / 2, WATCH * 2);
        self.after(again, Event::Watch { to, life });
    }
}

/// The mutant: any live replica will do when none is SERVING.
fn revive_stale(old: &ClusterMap, next: &mut ClusterMap) {
    for chain in old.chains.values() {
        let Some(now) = next.chains.get(&chain.id) else {
            continue;
        };
        if next.serving(now).next().is_some() {
            continue;
        }
        let alive = |id| {
            let target = next.targets.get(id)?;
            let node = next.nodes.get(&target.node)?;
            let left = matches!(target.state, PublicState::Waiting | PublicState::Offline);
            (node.alive && left).then_some(*id)
        };
        let Some(stale) = now.targets.iter().find_map(alive) else {
            continue;
        };
        let mut targets = now.targets.clone();
        targets.retain(|t| *t != stale);
        targets.insert(0, stale);
        if let Some(target) = next.targets.get_mut(&stale) {
            target.state = PublicState::Serving;
        }
        if let Some(chain) = next.chains.get_mut(&chain.id) {
            chain.version = emberfs_proto::ids::ChainVersion(
                old.chains.get(&chain.id).map_or(0, |c| c.version.0) + 1,
            );
            chain.targets = targets;
        }
    }
}
