//! A cluster of replicas with model disks, a model network and a model manager.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use emberfs_proto::checksum::{crc32, fragment_checksums};
use emberfs_proto::cluster::{LocalState, PublicState};
use emberfs_proto::ids::{
    ChainId, ChainVersion, ChunkKey, ChunkVersion, ClientId, TargetId, WriteTag,
};
use emberfs_proto::layout::splitmix64;
use emberfs_proto::{Error, ErrorCode, Result};

use crate::chain::*;
use crate::engine::{ChunkMeta, PendingKind, PendingMeta, Prepare, PrepareKind, ReadVersion};

const PAGE: u32 = 4096;
const CHUNK: u32 = 65536;
const KEYS: u32 = 3;

/// A client's write that puts `text` at the start of the chunk.
pub(super) fn update(key: ChunkKey, sequence: u64, text: &[u8]) -> Update {
    let data = Bytes::copy_from_slice(text);
    let tag = WriteTag {
        client: ClientId(9),
        channel: key.index.0,
        sequence,
    };
    let checksums = fragment_checksums(0, &data, PAGE);
    let kind = UpdateKind::Write {
        offset: 0,
        data,
        checksums,
        size_hint: 0,
    };
    Update {
        key,
        tag: Some(tag),
        kind,
        chunk_size: CHUNK,
        page_size: PAGE,
    }
}

#[derive(Clone, Default)]
struct Version {
    version: u64,
    bytes: Vec<u8>,
    tag: WriteTag,
    chain: u64,
}

#[derive(Clone, Default)]
struct Stored {
    committed: Version,
    pending: Option<Version>,
}

impl Stored {
    fn meta(&self) -> ChunkMeta {
        ChunkMeta {
            committed: ChunkVersion(self.committed.version),
            committed_len: self.committed.bytes.len() as u32,
            committed_chain: ChainVersion(self.committed.chain),
            tag: self.committed.tag,
            checksum: crc32(&self.committed.bytes),
            pending: self.pending.as_ref().map(|p| PendingMeta {
                version: ChunkVersion(p.version),
                len: p.bytes.len() as u32,
                chain: ChainVersion(p.chain),
                tag: p.tag,
                checksum: crc32(&p.bytes),
                kind: PendingKind::Write,
            }),
            page_size: PAGE,
            chunk_size: CHUNK,
        }
    }
}

struct Host {
    replica: Replica,
    disk: BTreeMap<ChunkKey, Stored>,
    up: bool,
    /// Raised by a crash: answers meant for the process before are lost.
    life: u32,
}

/// Something that can happen next.
enum Item {
    /// A replica's action.
    Do {
        host: usize,
        life: u32,
        action: Action,
    },
    /// A request's answer on its way back to a forwarding replica.
    Answer {
        host: usize,
        life: u32,
        event: Event,
    },
}

/// Who waits for a request at a host.
enum Waiter {
    Client {
        key: ChunkKey,
    },
    Forwarder {
        host: usize,
        life: u32,
        op: OpId,
        attempt: u32,
    },
    Resync {
        pass: (usize, u64, u64),
    },
    SyncDone,
}

#[derive(Default)]
struct Writer {
    /// Last write sent, acknowledged or not.
    sequence: u64,
    in_flight: bool,
    acknowledged: u64,
    /// The newest write that a reader has seen.
    seen: u64,
}

/// See the module page.
pub(super) struct World {
    pub(super) faults: bool,
    random: u64,
    hosts: Vec<Host>,
    version: u64,
    states: Vec<(usize, PublicState)>,
    bag: Vec<Item>,
    waiting: BTreeMap<(usize, u32, u64), Waiter>,
    next_request: u64,
    writers: BTreeMap<ChunkKey, Writer>,
    /// Chunks that a resync pass still waits for.
    passes: BTreeMap<(usize, u64, u64), BTreeSet<ChunkKey>>,
    /// Chunks that were busy when a membership began.
    busy: BTreeMap<(usize, u64), Vec<ChunkKey>>,
    trace: Vec<String>,
}

impl World {
    pub(super) fn new(seed: u64, replicas: usize) -> Self {
        let hosts = (0..replicas).map(|i| Host {
            replica: Replica::new(TargetId(i as u64)),
            disk: BTreeMap::new(),
            up: true,
            life: 0,
        });
        let writers = (0..KEYS)
            .map(|i| (ChunkKey::new(1u64, i), Writer::default()))
            .collect();
        let mut world = Self {
            faults: true,
            random: seed,
            hosts: hosts.collect(),
            version: 1,
            states: (0..replicas).map(|i| (i, PublicState::Serving)).collect(),
            bag: Vec::new(),
            waiting: BTreeMap::new(),
            next_request: 0,
            writers,
            passes: BTreeMap::new(),
            busy: BTreeMap::new(),
            trace: vec![format!("seed {seed}")],
        };
        world.publish();
        world
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.writers.values().map(|w| w.acknowledged).sum()
    }

    fn pick(&mut self, n: usize) -> usize {
        (splitmix64(&mut self.random) % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.faults && self.pick(n) == 0
    }

    pub(super) fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            match self.pick(20) {
                0..3 => self.client_write(),
                3..5 => self.client_read(),
                5 if self.one_in(12) => self.crash(),
                6 if self.pick(4) == 0 => self.restart(),
                7 => self.manage(),
                _ => self.happen(),
            }
            self.check();
        }
    }

    /// Faults end, everybody returns, everything is finished: all replicas must be equal.
    pub(super) fn settle(&mut self) {
        self.faults = false;
        for _ in 0..20_000 {
            self.restart();
            self.manage();
            self.happen();
            self.check();
            let quiet = self.bag.is_empty()
                && self
                    .hosts
                    .iter()
                    .all(|h| h.up && h.replica.busy_chunks() == 0)
                && self.states.iter().all(|s| s.1 == PublicState::Serving);
            if quiet {
                return self.check_equal();
            }
        }
        let states: Vec<_> = self
            .hosts
            .iter()
            .map(|h| (h.up, h.replica.local()))
            .collect();
        panic!(
            "never settles: {:?} {states:?}\n{}",
            self.states,
            self.trace.join("\n")
        );
    }

    fn happen(&mut self) {
        if self.bag.is_empty() {
            return;
        }
        let at = self.pick(self.bag.len());
        match self.bag.swap_remove(at) {
            Item::Do { host, life, action } if self.lives(host, life) => self.act(host, action),
            Item::Answer { host, life, event } if self.lives(host, life) => self.feed(host, event),
            _ => {}
        }
    }

    fn lives(&self, host: usize, life: u32) -> bool {
        self.hosts[host].up && self.hosts[host].life == life
    }

    fn feed(&mut self, host: usize, event: Event) {
        let life = self.hosts[host].life;
        let actions = self.hosts[host].replica.handle(event, true);
        for action in actions {
            // Answers and cancellations take effect at once; all else takes its time.
            match action {
                Action::Reply { request, result } => self.answered(host, request, result),
                Action::CancelSend { .. } | Action::ReportState => {}
                Action::Alarm { message } => panic!("{message}\n{}", self.trace.join("\n")),
                action => self.bag.push(Item::Do { host, life, action }),
            }
        }
    }

    fn request(&mut self, host: usize, waiter: Waiter, event: impl FnOnce(RequestId) -> Event) {
        self.next_request += 1;
        let request = self.next_request;
        self.waiting
            .insert((host, self.hosts[host].life, request), waiter);
        self.feed(host, event(RequestId(request)));
    }

    fn answered(&mut self, host: usize, request: RequestId, result: Result<Outcome>) {
        let life = self.hosts[host].life;
        let Some(waiter) = self.waiting.remove(&(host, life, request.0)) else {
            panic!("two answers to one request\n{}", self.trace.join("\n"));
        };
        match waiter {
            Waiter::Client { key } => {
                let lost = self.one_in(6);
                let writer = self.writers.get_mut(&key).unwrap();
                writer.in_flight = false;
                if result.is_ok() && !lost {
                    self.trace.push(format!("ack {key} {}", writer.sequence));
                    writer.acknowledged = writer.sequence;
                }
            }
            Waiter::Forwarder {
                host,
                life,
                op,
                attempt,
            } => {
                let result = if self.one_in(8) {
                    Err(unreachable())
                } else {
                    result
                };
                let event = Event::Forwarded {
                    op,
                    attempt,
                    result,
                };
                self.bag.push(Item::Answer { host, life, event });
            }
            Waiter::Resync { pass } => {
                let Some(keys) = self.passes.get_mut(&pass) else {
                    return;
                };
                match result {
                    // `pop` is enough: the pass only counts answers.
                    Ok(_) => drop(keys.pop_first()),
                    Err(_) => {
                        self.passes.remove(&pass);
                        let busy = self
                            .busy
                            .get(&(pass.0, pass.1))
                            .cloned()
                            .unwrap_or_default();
                        return self.start_pass(pass.0, pass.1, &busy);
                    }
                }
                self.end_pass(pass);
            }
            Waiter::SyncDone => {}
        }
    }

    fn act(&mut self, host: usize, action: Action) {
        let event = match action {
            Action::Load { op, key } => {
                let meta = self.hosts[host].disk.get(&key).map(Stored::meta);
                Event::Loaded {
                    op,
                    result: Ok(meta),
                }
            }
            Action::Prepare { op, key, prepare } => {
                let result = self.prepare(host, key, &prepare);
                Event::Prepared { op, result }
            }
            Action::ReadContent { op, key, version } => {
                let stored = &self.hosts[host].disk[&key];
                let bytes = match version {
                    ReadVersion::Committed => &stored.committed.bytes,
                    ReadVersion::Exactly(v) if v.0 == stored.committed.version => {
                        &stored.committed.bytes
                    }
                    _ => {
                        &stored
                            .pending
                            .as_ref()
                            .expect("pending while it is being forwarded")
                            .bytes
                    }
                };
                let checksums = fragment_checksums(0, bytes, PAGE);
                let content = Content {
                    data: Bytes::copy_from_slice(bytes),
                    checksums,
                };
                Event::Content {
                    op,
                    result: Ok(content),
                }
            }
            Action::Commit {
                op,
                key,
                version,
                chain,
            } => {
                let trace = &self.trace;
                let stored = self.hosts[host]
                    .disk
                    .get_mut(&key)
                    .expect("prepared before");
                let Some(pending) = stored.pending.take() else {
                    panic!("{host} commits {key} {version} twice\n{}", trace.join("\n"));
                };
                assert_eq!(pending.version, version.0);
                stored.committed = Version {
                    chain: chain.0,
                    ..pending
                };
                Event::Committed { op, result: Ok(()) }
            }
            Action::Recover { chain_version } => {
                for stored in self.hosts[host].disk.values_mut() {
                    if let Some(pending) = stored.pending.take() {
                        stored.committed = pending;
                    }
                }
                self.trace
                    .push(format!("{host} recovers under {chain_version}"));
                Event::Recovered {
                    chain_version,
                    result: Ok(()),
                }
            }
            Action::Drop { op, key } => {
                self.hosts[host].disk.remove(&key);
                Event::Committed { op, result: Ok(()) }
            }
            Action::RetryAfter { op, attempt, .. } => Event::RetryDue { op, attempt },
            Action::Send {
                op,
                attempt,
                to,
                chain_version,
                forward,
            } => {
                let (to, life) = (to.0 as usize, self.hosts[host].life);
                if !self.hosts[to].up || self.one_in(8) {
                    Event::Forwarded {
                        op,
                        attempt,
                        result: Err(unreachable()),
                    }
                } else {
                    let waiter = Waiter::Forwarder {
                        host,
                        life,
                        op,
                        attempt,
                    };
                    return self.request(to, waiter, |request| Event::Forward {
                        request,
                        chain_version,
                        forward,
                    });
                }
            }
            Action::StartResync {
                chain_version,
                busy,
                ..
            } => {
                self.busy.insert((host, chain_version.0), busy.clone());
                return self.start_pass(host, chain_version.0, &busy);
            }
            other => panic!("unexpected {other:?}"),
        };
        self.feed(host, event);
    }

    fn prepare(&mut self, host: usize, key: ChunkKey, prepare: &Prepare) -> Result<ChunkMeta> {
        let stored = self.hosts[host].disk.entry(key).or_default();
        let bytes = match &prepare.kind {
            PrepareKind::Write { data, .. } => {
                let mut bytes = stored.committed.bytes.clone();
                bytes.resize(bytes.len().max(data.len()), 0);
                bytes[..data.len()].copy_from_slice(data);
                bytes
            }
            PrepareKind::Replace { data, .. } => data.to_vec(),
            other => panic!("unexpected {other:?}"),
        };
        if !matches!(prepare.kind, PrepareKind::Replace { .. }) {
            assert_eq!(
                prepare.version.0,
                stored.committed.version + 1,
                "version gap"
            );
            assert!(stored.pending.is_none(), "two pending versions");
        }
        stored.pending = Some(Version {
            version: prepare.version.0,
            bytes,
            tag: prepare.tag,
            chain: prepare.chain_version.0,
        });
        Ok(stored.meta())
    }

    fn start_pass(&mut self, host: usize, version: u64, busy: &[ChunkKey]) {
        if version != self.version || !self.hosts[host].up {
            return;
        }
        // Answers to an earlier pass must not count for this one.
        self.next_request += 1;
        let pass = (host, version, self.next_request);
        let Some(&(to, _)) = self.states.iter().find(|s| s.1 == PublicState::Syncing) else {
            return;
        };
        if !self.hosts[to].up || !self.hosts[to].replica.is_settled() {
            let life = self.hosts[host].life;
            let (to, busy) = (TargetId(to as u64), busy.to_vec());
            let action = Action::StartResync {
                chain_version: ChainVersion(version),
                to,
                busy,
            };
            return self.bag.push(Item::Do { host, life, action });
        }
        let view = |h: &Host, k: &ChunkKey| {
            h.disk.get(k).map(|s| {
                (
                    s.committed.version,
                    crc32(&s.committed.bytes),
                    s.pending.is_some(),
                )
            })
        };
        let (ours, theirs) = (&self.hosts[host], &self.hosts[to]);
        let all: BTreeSet<_> = ours
            .disk
            .keys()
            .chain(theirs.disk.keys())
            .copied()
            .collect();
        let differs = |key: &ChunkKey| {
            let (a, b) = (view(ours, key), view(theirs, key));
            let same = a.map(|a| (a.0, a.1)) == b.map(|b| (b.0, b.1)) && b.is_none_or(|b| !b.2);
            !same || busy.contains(key)
        };
        let keys: BTreeSet<_> = all.into_iter().filter(differs).collect();
        self.trace.push(format!(
            "resync {host} -> {to} v{version}: {} chunks",
            keys.len()
        ));
        self.passes.insert(pass, keys.clone());
        for key in keys {
            let chain_version = ChainVersion(version);
            self.request(host, Waiter::Resync { pass }, |request| Event::Resync {
                request,
                chain_version,
                key,
            });
        }
        self.end_pass(pass);
    }

    fn end_pass(&mut self, pass: (usize, u64, u64)) {
        if self.passes.get(&pass).is_some_and(BTreeSet::is_empty) && pass.1 == self.version {
            self.passes.remove(&pass);
            let Some(&(to, _)) = self.states.iter().find(|s| s.1 == PublicState::Syncing) else {
                return;
            };
            if self.hosts[to].up {
                let chain_version = ChainVersion(pass.1);
                self.request(to, Waiter::SyncDone, |request| Event::SyncDone {
                    request,
                    chain_version,
                });
            }
        }
    }

    fn view_of(&self, host: usize) -> View {
        let serving = || {
            self.states
                .iter()
                .filter(|s| s.1 == PublicState::Serving)
                .map(|s| s.0)
        };
        let mut writable = self
            .states
            .iter()
            .filter(|s| matches!(s.1, PublicState::Serving | PublicState::Syncing));
        let next = writable.by_ref().skip_while(|s| s.0 != host).nth(1);
        View {
            chain: ChainId(1),
            version: ChainVersion(self.version),
            state: self.states.iter().find(|s| s.0 == host).unwrap().1,
            is_head: serving().next() == Some(host),
            tail: serving().last().map(|t| TargetId(t as u64)),
            successor: next.map(|&(target, state)| Successor {
                target: TargetId(target as u64),
                syncing: state == PublicState::Syncing,
            }),
        }
    }

    /// A new map reaches every live host (in the order of the dice).
    fn publish(&mut self) {
        let mut hosts: Vec<_> = (0..self.hosts.len())
            .filter(|&h| self.hosts[h].up)
            .collect();
        while !hosts.is_empty() {
            let host = hosts.swap_remove(self.pick(hosts.len()));
            let view = self.view_of(host);
            self.feed(host, Event::Adopt { view });
        }
    }

    /// The manager: dead SERVING members leave unless they are the last; returning ones sync, one at a time.
    fn manage(&mut self) {
        use PublicState::{LastServing, Offline, Serving, Syncing, Waiting};
        let before = self.states.clone();
        let synced = |world: &Self, host: usize| {
            let replica = &world.hosts[host].replica;
            let current = replica.view().map(|v| v.version.0) == Some(world.version);
            world.hosts[host].up && current && replica.local() == LocalState::UpToDate
        };
        // A target that completes its sync in the very step in which the last other one dies is the
        // survivor: the dead one must not keep a claim to revive the chain.
        let survives = |s: &&(usize, PublicState)| match s.1 {
            Serving => self.hosts[s.0].up,
            Syncing => synced(self, s.0),
            _ => false,
        };
        let survivor = self.states.iter().any(|s| survives(&s));
        for i in 0..self.states.len() {
            let (host, state) = self.states[i];
            let up = self.hosts[host].up;
            let synced = synced(self, host);
            let serving = self.states.iter().any(|s| s.1 == Serving);
            let syncing = self.states.iter().any(|s| s.1 == Syncing);
            self.states[i].1 = match state {
                Serving if !up && survivor => Offline,
                Serving if !up => LastServing,
                LastServing if serving => Offline,
                LastServing if up => Serving,
                Syncing if !up => Offline,
                Syncing if synced => Serving,
                Syncing if !serving => Waiting,
                Offline | Waiting if up && serving && !syncing => Syncing,
                other => other,
            };
        }
        if self.states != before {
            self.states.sort_by_key(|s| match s.1 {
                Serving => 0,
                LastServing => 1,
                Syncing => 2,
                Waiting => 3,
                _ => 4,
            });
            self.version += 1;
            self.trace
                .push(format!("chain v{}: {:?}", self.version, self.states));
            self.publish();
        }
    }

    fn crash(&mut self) {
        let host = self.pick(self.hosts.len());
        if self.hosts[host].up {
            self.trace.push(format!("crash {host}"));
            self.hosts[host].up = false;
            self.hosts[host].life += 1;
            self.hosts[host].replica = Replica::new(TargetId(host as u64));
            let lost: Vec<_> = self
                .waiting
                .keys()
                .filter(|k| k.0 == host)
                .copied()
                .collect();
            for key in lost {
                match self.waiting.remove(&key) {
                    Some(Waiter::Client { key }) => {
                        self.writers.get_mut(&key).unwrap().in_flight = false
                    }
                    Some(Waiter::Forwarder {
                        host,
                        life,
                        op,
                        attempt,
                    }) => {
                        let event = Event::Forwarded {
                            op,
                            attempt,
                            result: Err(unreachable()),
                        };
                        self.bag.push(Item::Answer { host, life, event });
                    }
                    _ => {}
                }
            }
            // The manager sees it before the process can return.
            self.manage();
        }
    }

    fn restart(&mut self) {
        let host = self.pick(self.hosts.len());
        let state = self.states.iter().find(|s| s.0 == host).unwrap().1;
        if !self.hosts[host].up && state != PublicState::Serving {
            self.trace.push(format!("restart {host}"));
            self.hosts[host].up = true;
            let view = self.view_of(host);
            self.feed(host, Event::Adopt { view });
        }
    }

    fn client_write(&mut self) {
        let keys: Vec<_> = self.writers.keys().copied().collect();
        let key = keys[self.pick(keys.len())];
        let Some(head) = self
            .states
            .iter()
            .find(|s| s.1 == PublicState::Serving)
            .map(|s| s.0)
        else {
            return;
        };
        let writer = self.writers.get_mut(&key).unwrap();
        if writer.in_flight || !self.hosts[head].up {
            return;
        }
        // What was not acknowledged is sent again, as the same write.
        if writer.acknowledged == writer.sequence {
            writer.sequence += 1;
        }
        writer.in_flight = true;
        let sequence = writer.sequence;
        let update = update(key, sequence, &sequence.to_be_bytes());
        let chain_version = ChainVersion(self.version);
        self.request(head, Waiter::Client { key }, |request| Event::Write {
            request,
            chain_version,
            update,
            trim: None,
        });
    }

    /// Any SERVING replica must show the newest acknowledged write or one after it, and never less
    /// than a reader has seen before.
    fn client_read(&mut self) {
        let keys: Vec<_> = self.writers.keys().copied().collect();
        let key = keys[self.pick(keys.len())];
        let host = self.pick(self.hosts.len());
        let plan = self.hosts[host].replica.read_plan(
            key,
            ChainVersion(self.version),
            self.hosts[host].up,
        );
        let Ok(plan) = plan else { return };
        let stored = self.hosts[host].disk.get(&key).cloned().unwrap_or_default();
        let bytes = match plan {
            ReadPlan::Committed => stored.committed.bytes,
            ReadPlan::Newest => stored.pending.map_or(stored.committed.bytes, |p| p.bytes),
            ReadPlan::AskTail(tail) => {
                let tail = &self.hosts[tail.0 as usize];
                let plan = tail
                    .replica
                    .tail_plan(key, ChainVersion(self.version), tail.up);
                let theirs = tail.disk.get(&key).cloned().unwrap_or_default();
                let committed = match (plan, theirs.pending) {
                    (Err(_), _) => return,
                    (Ok(ReadPlan::Newest), Some(pending)) => pending.version,
                    _ => theirs.committed.version,
                };
                if stored.committed.version >= committed {
                    stored.committed.bytes
                } else {
                    let pending = stored.pending.filter(|p| p.version == committed);
                    pending
                        .expect("a replica holds what its tail has committed")
                        .bytes
                }
            }
        };
        let shown = bytes.first_chunk().map_or(0, |b| u64::from_be_bytes(*b));
        let writer = self.writers.get_mut(&key).unwrap();
        let floor = writer.acknowledged.max(writer.seen);
        assert!(
            (floor..=writer.sequence).contains(&shown),
            "{key}: host {host} shows {shown}, expected {floor}..={}\n{}",
            writer.sequence,
            self.trace.join("\n")
        );
        writer.seen = shown;
    }

    /// The invariants that hold at every moment.
    fn check(&self) {
        let serving: Vec<_> = self
            .states
            .iter()
            .filter(|s| s.1 == PublicState::Serving)
            .map(|s| &self.hosts[s.0])
            .collect();
        for (key, writer) in &self.writers {
            let mut newest = 0;
            for host in &serving {
                let stored = host.disk.get(key).cloned().unwrap_or_default();
                let text =
                    |v: &Version| v.bytes.first_chunk().map_or(0, |b| u64::from_be_bytes(*b));
                let durable = stored
                    .pending
                    .as_ref()
                    .map_or(0, text)
                    .max(text(&stored.committed));
                assert!(
                    durable >= writer.acknowledged,
                    "{key}: {} was acknowledged, a SERVING replica holds only {durable}\n{}",
                    writer.acknowledged,
                    self.trace.join("\n")
                );
                assert!(
                    stored.committed.version >= newest,
                    "{key}: committed versions decrease along the chain\n{}",
                    self.trace.join("\n")
                );
                newest = stored.committed.version;
            }
        }
    }

    fn check_equal(&self) {
        for key in self.writers.keys() {
            let copies: Vec<_> = self
                .hosts
                .iter()
                .map(|h| {
                    h.disk
                        .get(key)
                        .map(|s| (s.committed.version, &s.committed.bytes, s.pending.is_some()))
                })
                .collect();
            assert!(
                copies.windows(2).all(|w| w[0] == w[1]) && copies[0].is_none_or(|c| !c.2),
                "{key}: replicas differ: {copies:?}\n{}",
                self.trace.join("\n")
            );
        }
    }
}

fn unreachable() -> Error {
    Error::new(ErrorCode::Unreachable, "lost")
}
