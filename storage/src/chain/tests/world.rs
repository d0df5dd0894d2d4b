//! A cluster of replicas with model disks, a model network and a model manager.

mod actions;
mod client;
mod manager;

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
    number: u64,
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
            committed: ChunkVersion(self.committed.number),
            committed_len: self.committed.bytes.len() as u32,
            committed_chain: ChainVersion(self.committed.chain),
            tag: self.committed.tag,
            checksum: crc32(&self.committed.bytes),
            pending: self.pending.as_ref().map(|p| PendingMeta {
                version: ChunkVersion(p.number),
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
    pub(in crate::chain::tests) fn new(seed: u64, replicas: usize) -> Self {
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

    pub(in crate::chain::tests) fn acknowledged(&self) -> u64 {
        self.writers.values().map(|w| w.acknowledged).sum()
    }

    fn pick(&mut self, n: usize) -> usize {
        (splitmix64(&mut self.random) % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.faults && self.pick(n) == 0
    }

    pub(in crate::chain::tests) fn run(&mut self, steps: usize) {
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
    pub(in crate::chain::tests) fn settle(&mut self) {
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
}

fn unreachable() -> Error {
    Error::new(ErrorCode::Unreachable, "lost")
}
