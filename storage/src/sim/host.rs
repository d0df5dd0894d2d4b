//! A storage node: its machine, its clock, its process. The driver of membership, as `crate::node::manager`
//! and `crate::node::Node::adopt` are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use emberfs_proto::cluster::{self, ClusterMap, Disk as DiskInfo};
use emberfs_proto::ids::{ChainId, ChainVersion, DiskId, IncarnationId, NodeId, TargetId};

use super::disk::Disk;
use super::family::Setup;
use super::mutant::Mutant;
use super::net::Place;
use super::random::Random;
use super::target::TargetHost;
use super::world::{Event, World};
use crate::chain::{self, View};
use crate::node::lease::Term;
use crate::node::names;

/// Longest wait for the manager to let a node go, as `LEAVE_TIMEOUT`.
const LEAVE_TIMEOUT: u64 = 3_000_000;

/// A clock that runs at its own rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    /// Parts in ten thousand that it is too fast (or, negative, too slow).
    pub(super) drift: i64,
    offset: u64,
}

impl Clock {
    pub(super) fn new(setup: &Setup, random: &mut Random) -> Self {
        let bound = setup.drift;
        // Half of them at the edge: that is where a margin is used up.
        let drift = match random.below(4) {
            0 => bound,
            1 => -bound,
            _ => random.below(2 * bound as u64 + 1) as i64 - bound,
        };
        Self {
            drift,
            offset: random.below(1_000_000_000),
        }
    }

    /// What it shows at a moment.
    pub(super) fn at(self, now: u64) -> Duration {
        let shown = now as i64 + now as i64 * self.drift / 10_000;
        Duration::from_micros(shown as u64 + self.offset)
    }

    /// How long a span of its own takes.
    pub(super) fn lasts(self, span: u64) -> u64 {
        (span as i64 - span as i64 * self.drift / 10_000) as u64
    }
}

/// One heartbeat stream, as the host sees it.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u64,
    pub(super) sequence: u64,
    pub(super) sent: BTreeMap<u64, Duration>,
    /// Messages of one stream arrive in order.
    pub(super) last_arrival: u64,
    pub(super) last_reply: u64,
}

/// One run of the server.
pub(super) struct Process {
    pub(super) incarnation: IncarnationId,
    pub(super) term: Term,
    pub(super) map: Arc<ClusterMap>,
    pub(super) targets: BTreeMap<TargetId, TargetHost>,
    pub(super) stream: Option<Stream>,
    pub(super) registered: bool,
    pub(super) leaving: bool,
    pub(super) beat_due: u64,
}

/// See the module page.
pub(super) struct Host {
    pub(super) id: NodeId,
    pub(super) clock: Clock,
    pub(super) disk: Disk,
    pub(super) process: Option<Process>,
    /// The machine itself runs: its kernel refuses connections when the process is gone.
    pub(super) kernel: bool,
    pub(super) life: u64,
    /// The process is stopped (SIGSTOP, a suspended machine) until then.
    pub(super) stalled_until: u64,
    pub(super) next_stream: u64,
}

impl Host {
    pub(super) fn new(index: usize, setup: &Setup, random: &mut Random) -> Self {
        Self {
            id: NodeId(index as u32 + 1),
            clock: Clock::new(setup, random),
            disk: Disk::new(setup.mutant == Some(Mutant::AcknowledgeBeforeDurable)),
            process: None,
            kernel: true,
            life: 0,
            stalled_until: 0,
            next_stream: 0,
        }
    }

    /// As it registers.
    pub(super) fn describe(&self, incarnation: IncarnationId) -> cluster::Node {
        let n = self.id.0;
        cluster::Node {
            id: self.id,
            data_addr: format!("host-{n}:1"),
            admin_addr: format!("host-{n}:2"),
            incarnation,
            alive: true,
            disks: vec![DiskInfo {
                id: self.disk_id(),
                path: format!("/disk-{n}"),
                capacity: 1 << 30,
            }],
        }
    }

    pub(super) fn disk_id(&self) -> DiskId {
        DiskId(u128::from(self.id.0))
    }

    pub(super) fn target_of(&self, chain: ChainId) -> Option<TargetId> {
        let map = &self.process.as_ref()?.map;
        let targets = &map.chains.get(&chain)?.targets;
        let mine = |id: &&TargetId| map.targets.get(id).is_some_and(|t| t.node == self.id);
        targets.iter().find(mine).copied()
    }
}

impl World {
    /// Starts a process, if none runs.
    pub(super) fn start(&mut self, host: usize) {
        if self.hosts[host].process.is_some() {
            return;
        }
        let it = &mut self.hosts[host];
        it.life += 1;
        it.kernel = true;
        it.stalled_until = 0;
        let incarnation = IncarnationId(u128::from(it.life) << 32 | host as u128);
        it.process = Some(Process {
            incarnation,
            term: Term::default(),
            map: Arc::default(),
            targets: BTreeMap::new(),
            stream: None,
            registered: false,
            leaving: false,
            beat_due: 0,
        });
        let life = it.life;
        self.note(|| format!("host {host} starts, life {life}"));
        self.after(1000, Event::Register { host, life });
    }

    /// The process dies; with `power` the whole machine.
    pub(super) fn crash(&mut self, host: usize, power: bool) {
        let it = &mut self.hosts[host];
        let Some(process) = it.process.take() else {
            return;
        };
        it.life += 1;
        it.stalled_until = 0;
        it.kernel = !power;
        it.disk.crash(power, &mut self.random);
        self.note(|| {
            format!(
                "host {host} {}",
                if power { "loses power" } else { "is killed" }
            )
        });
        self.gone(host, process.stream);
    }

    fn gone(&mut self, host: usize, stream: Option<Stream>) {
        let kernel = self.hosts[host].kernel;
        self.hang_up(host, kernel);
        if let Some(stream) = stream {
            let told = kernel
                && self
                    .net
                    .is_open(Place::Host(host), Place::Manager, self.now);
            let after = if told {
                self.random.between(100, 3000)
            } else {
                self.random.between(2_000_000, 6_000_000)
            };
            self.after(
                after,
                Event::Detached {
                    host,
                    stream: stream.id,
                },
            );
        }
    }

    /// A clean stop begins: out of the chains first.
    pub(super) fn leave(&mut self, host: usize) {
        let serves_on = self.mutated(Mutant::ServeWhileLeaving);
        let life = self.hosts[host].life;
        let Some(process) = self.hosts[host].process.as_mut().filter(|p| !p.leaving) else {
            return;
        };
        process.leaving = true;
        if !serves_on {
            process.term.resign();
        }
        self.note(|| format!("host {host} leaves"));
        if let Some(delay) = self.net.travel(Place::Host(host), Place::Manager, self.now) {
            self.after(delay, Event::LeaveAtManager { host, life });
        }
        self.after(LEAVE_TIMEOUT, Event::Left { host, life });
    }

    pub(super) fn host_event(&mut self, event: Event) {
        let (host, life) = match &event {
            Event::Chain { host, life, .. }
            | Event::DiskDone { host, life, .. }
            | Event::Lookup { host, life, .. }
            | Event::ReadDone { host, life, .. }
            | Event::PassAgain { host, life, .. }
            | Event::Register { host, life }
            | Event::Registered { host, life }
            | Event::Beat { host, life, .. }
            | Event::HeartbeatAnswer { host, life, .. }
            | Event::StreamLost { host, life, .. }
            | Event::Left { host, life } => (*host, *life),
            other => unreachable!("not of a host: {other:?}"),
        };
        let it = &self.hosts[host];
        if it.life != life || it.process.is_none() {
            return;
        }
        if it.stalled_until > self.now && !matches!(event, Event::DiskDone { .. }) {
            let wait = it.stalled_until - self.now;
            return self.after(wait, event);
        }
        match event {
            Event::Chain { target, event, .. } => self.drive(host, target, *event),
            Event::DiskDone {
                target,
                change,
                op,
                what,
                ..
            } => {
                self.disk_done(host, target, change, op, what);
            }
            Event::Lookup {
                target, op, key, ..
            } => {
                let result = self.hosts[host].disk.meta((target, key));
                self.drive(host, target, chain::Event::Loaded { op, result });
            }
            Event::ReadDone { target, read, .. } => self.read_done(host, target, read),
            Event::PassAgain { target, pass, .. } => self.pass_again(host, target, pass),
            Event::Register { .. } => self.register(host),
            Event::Registered { .. } => self.registered(host),
            Event::Beat { report, .. } => self.beat(host, report),
            Event::HeartbeatAnswer { stream, reply, .. } => {
                self.heartbeat_answer(host, stream, reply);
            }
            Event::StreamLost { stream, .. } => self.stream_lost(host, stream),
            Event::Left { .. } => self.left(host),
            _ => {}
        }
    }

    pub(super) fn process(&mut self, host: usize) -> &mut Process {
        self.hosts[host]
            .process
            .as_mut()
            .expect("host_event checked that the process runs")
    }

    fn register(&mut self, host: usize) {
        let life = self.hosts[host].life;
        if self.process(host).registered {
            return;
        }
        if let Some(delay) = self.net.travel(Place::Host(host), Place::Manager, self.now) {
            self.after(delay, Event::RegisterAtManager { host, life });
        }
        // Until there is an answer.
        let again = self.random.between(300_000, 900_000);
        self.after(again, Event::Register { host, life });
    }

    fn registered(&mut self, host: usize) {
        if std::mem::replace(&mut self.process(host).registered, true) {
            return;
        }
        self.note(|| format!("host {host} is registered"));
        let life = self.hosts[host].life;
        self.after(
            0,
            Event::Watch {
                to: Place::Host(host),
                life,
            },
        );
        self.after(
            0,
            Event::Beat {
                host,
                life,
                report: false,
            },
        );
    }

    /// As a stop in production: what is in progress has been refused or finishes elsewhere.
    fn left(&mut self, host: usize) {
        if !self.process(host).leaving {
            return;
        }
        self.note(|| format!("host {host} stops"));
        let it = &mut self.hosts[host];
        it.disk.close();
        it.life += 1;
        let stream = it.process.take().and_then(|p| p.stream);
        self.gone(host, stream);
        if self.healed {
            self.after(100_000, Event::Start { host });
        }
    }

    /// A map for a watcher; a host takes it as `Node::adopt` does.
    pub(super) fn map_arrives(&mut self, to: Place, life: u64, map: Arc<ClusterMap>) {
        match to {
            Place::Client(client) => self.client_map(client, &map),
            Place::Host(host) => {
                if self.hosts[host].life != life || self.hosts[host].process.is_none() {
                    return;
                }
                if self.hosts[host].stalled_until > self.now {
                    // Some streams do not outlive the pause.
                    if self.hosts[host].stalled_until.is_multiple_of(2) {
                        return;
                    }
                    let wait = self.hosts[host].stalled_until - self.now;
                    return self.after(wait, Event::Map { to, life, map });
                }
                self.adopt(host, &map);
            }
            Place::Manager => {}
        }
    }

    fn adopt(&mut self, host: usize, map: &Arc<ClusterMap>) {
        let credulous = self.mutated(Mutant::BelievePredecessorsMap);
        let mutant = self.setup.mutant;
        let id = self.hosts[host].id;
        let process = self.process(host);
        let known = credulous || names(map, id, process.incarnation);
        if map.version <= process.map.version || !known {
            return;
        }
        for target in map.targets.values().filter(|t| t.node == id) {
            let fresh = || TargetHost::new(target.id, target.chain, mutant);
            process.targets.entry(target.id).or_insert_with(fresh);
        }
        process.map = map.clone();
        let targets: Vec<_> = process.targets.keys().copied().collect();
        for &target in &targets {
            if let Some(view) = View::of(map, target) {
                let leaves = map.is_leaving(target);
                if let Some(it) = self.target(host, target) {
                    it.stopped = leaves;
                }
                let view = if leaves && !self.mutated(Mutant::ServeAfterMoving) {
                    view.left()
                } else {
                    view
                };
                self.drive(host, target, chain::Event::Adopt { view });
            }
        }
        self.delete_moved(host, map);
        self.process(host).term.adopted(map.version);
    }

    /// As `Node::delete_moved`.
    fn delete_moved(&mut self, host: usize, map: &Arc<ClusterMap>) {
        for target in self.hosts[host].disk.targets() {
            if map.targets.contains_key(&target) {
                continue;
            }
            if target > map.last_target {
                let version = map.version;
                return self.fail(|| {
                    format!(
                        "host {host} holds target {target}, which map {version} has not made yet"
                    )
                });
            }
            self.note(|| format!("host {host} deletes target {target}"));
            self.hosts[host].disk.delete(target);
        }
        let process = self.process(host);
        let gone = |target: &&TargetId| !map.targets.contains_key(target);
        let gone: Vec<_> = process.targets.keys().filter(gone).copied().collect();
        for target in gone {
            let view = self.process(host).targets[&target].replica.view().cloned();
            if let Some(view) = view {
                // It was taken out without having been asked to leave: its node counted as dead.
                let version = ChainVersion(view.version.0 + 1);
                let view = View { version, ..view }.left();
                self.drive(host, target, chain::Event::Adopt { view });
            }
            self.process(host).targets.remove(&target);
        }
    }
}
