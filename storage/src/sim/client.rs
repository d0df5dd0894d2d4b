//! Clients: what they ask for is drawn from the seed, when and where they ask again is production's
//! (`emberfs_client::plan`), around it as in `ChunkIo::read` and `ChunkIo::write`.

use std::sync::Arc;

use bytes::Bytes;
use emberfs_client::plan::{
    Pace, READ_ATTEMPT, Role, WRITE_ATTEMPT, elsewhere, holds, map_wakes, readers, transient,
};
use emberfs_proto::cluster::ClusterMap;
use emberfs_proto::ids::{ChainId, ChunkKey, ClientId, MapVersion, TargetId, WriteTag};
use emberfs_proto::{Error, ErrorCode, Result};

use super::family::Setup;
use super::history::{Kind, OpIndex};
use super::net::{Answer, Caller, Place, Request};
use super::world::{Event, World};
use crate::chain::{Update, UpdateKind};

/// Bytes of a chunk: few, so that a history can be searched.
const CHUNK: u32 = 48;

/// One thing at a time, under one channel.
#[derive(Debug)]
pub(super) struct Lane {
    sequence: u64,
    /// Raised by each attempt: what comes later for an earlier one is ignored.
    attempt: u64,
    work: Option<Work>,
}

#[derive(Debug)]
struct Work {
    kind: Kind,
    key: ChunkKey,
    op: OpIndex,
    tag: WriteTag,
    pace: Pace,
    tried: Vec<TargetId>,
    /// When it gives up.
    limit: Option<u64>,
    /// The call under way, and to whom.
    call: Option<(u64, TargetId)>,
    /// While it pauses: the map that it failed with, if a newer one would wake it.
    paused: Option<MapVersion>,
    attempts: u32,
}

/// See the module page. The first one is the metadata server: it alone truncates and removes.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) map: Arc<ClusterMap>,
    /// Chains in the first map that it saw.
    chains: u32,
    pub(super) lanes: Vec<Lane>,
    id: ClientId,
    turn: usize,
    /// Lengths that it knows of chunks, for appends.
    lengths: Vec<u32>,
}

impl Client {
    pub(super) fn new(index: usize, setup: &Setup) -> Self {
        let lane = |_| Lane {
            sequence: 0,
            attempt: 0,
            work: None,
        };
        Self {
            map: Arc::default(),
            chains: 0,
            lanes: (0..setup.lanes).map(lane).collect(),
            id: ClientId(index as u128 + 1),
            turn: index,
            lengths: vec![0; setup.keys as usize],
        }
    }

    /// What a lane works on, if it is at this attempt.
    pub(super) fn key_of(&self, lane: usize, attempt: u64) -> Option<ChunkKey> {
        let lane = &self.lanes[lane];
        let work = lane.work.as_ref().filter(|_| lane.attempt == attempt)?;
        Some(work.key)
    }

    fn chain_of(&self, key: ChunkKey) -> Option<ChainId> {
        // A file keeps the chains that it was made with, whatever comes later.
        let n = self.chains;
        (n > 0).then(|| ChainId(key.index.0 % n + 1))
    }
}

impl World {
    pub(super) fn is_busy(&self) -> bool {
        let mut lanes = self.clients.iter().flat_map(|c| &c.lanes);
        lanes.any(|lane| lane.work.is_some())
    }

    fn lane(&mut self, client: usize, lane: usize) -> &mut Lane {
        &mut self.clients[client].lanes[lane]
    }

    /// The lane thinks of something to do, or its pause is over.
    pub(super) fn lane_due(&mut self, client: usize, lane: usize, attempt: u64) {
        let loaded = self.now < self.setup.load;
        let it = self.lane(client, lane);
        if it.attempt != attempt {
            return;
        }
        match &mut it.work {
            Some(work) => {
                work.paused = None;
                self.attempt(client, lane);
            }
            None if loaded => self.begin_work(client, lane),
            None => {}
        }
    }

    fn rest(&mut self, client: usize, lane: usize) {
        let think = self.setup.think;
        let think = self.history.random(self.setup.seed).around(think);
        let it = self.lane(client, lane);
        it.attempt += 1;
        let attempt = it.attempt;
        self.after(
            think,
            Event::Lane {
                client,
                lane,
                attempt,
            },
        );
    }

    fn begin_work(&mut self, client: usize, lane: usize) {
        let (seed, keys, mix) = (self.setup.seed, u64::from(self.setup.keys), self.setup.mix);
        let first = client == 0 && lane == 0;
        let random = self.history.random(seed);
        let index = random.below(keys) as u32;
        let dice = random.below(100);
        let (a, b) = (random.below(u64::from(CHUNK)), random.below(16) + 1);
        let gives_up = random.below(3) == 0;
        let patience = random.between(300_000, 8_000_000);
        let key = self.history.current(index);
        let known = self.clients[client].lengths[index as usize];
        let read = dice < mix.reads;
        let kind = if first && !read && dice.is_multiple_of(4) {
            if dice.is_multiple_of(8) && self.history.may_remove(key) {
                Kind::Remove
            } else {
                Kind::Truncate {
                    len: (a % 20) as u32,
                }
            }
        } else if read {
            Kind::Read
        } else {
            let append = dice.is_multiple_of(2) && known < CHUNK;
            let offset = if append { known } else { a as u32 };
            let len = (b as u32).min(CHUNK - offset);
            Kind::Write {
                offset,
                data: self.history.content(len),
            }
        };
        if !self.history.may_begin(key, &kind) {
            return self.rest(client, lane);
        }
        let id = self.clients[client].id;
        let it = self.lane(client, lane);
        if kind != Kind::Read {
            it.sequence += 1;
        }
        let tag = WriteTag {
            client: id,
            channel: lane as u32,
            sequence: it.sequence,
        };
        let patient = matches!(kind, Kind::Truncate { .. } | Kind::Remove);
        let limit = (gives_up && !patient).then_some(self.now + patience);
        let op = self.history.invoke(self.step, key, kind.clone());
        self.note(|| {
            format!(
                "client {client}/{lane} op {}: {kind:?} of {key} as {tag}",
                op.0
            )
        });
        self.lane(client, lane).work = Some(Work {
            kind,
            key,
            op,
            tag,
            pace: Pace::default(),
            tried: Vec::new(),
            limit,
            call: None,
            paused: None,
            attempts: 0,
        });
        self.attempt(client, lane);
    }

    fn attempt(&mut self, client: usize, lane: usize) {
        let it = &mut self.clients[client];
        it.turn += 1;
        let (map, turn) = (it.map.clone(), it.turn);
        let Some(chain) = it.lanes[lane]
            .work
            .as_ref()
            .and_then(|w| it.chain_of(w.key))
        else {
            return self.failed(
                client,
                lane,
                &Error::new(ErrorCode::NoChains, "no chains yet"),
            );
        };
        let Some(work) = &mut it.lanes[lane].work else {
            return;
        };
        let of = &map.chains[&chain];
        let serving: Vec<_> = map.serving(of).collect();
        let to = if work.kind == Kind::Read {
            readers(&serving, turn, &work.tried).next()
        } else {
            map.head(of)
        };
        let Some(to) = to else {
            let (code, what) = if serving.is_empty() {
                (ErrorCode::ChainUnavailable, "no replica is SERVING")
            } else {
                (ErrorCode::Unreachable, "every replica failed")
            };
            return self.failed(client, lane, &Error::new(code, what));
        };
        let (target, host, version, key) = (to.id, to.node.0 as usize - 1, of.version, work.key);
        work.tried.push(target);
        work.attempts += 1;
        let update = |kind, tag| Update {
            key,
            tag,
            kind,
            chunk_size: CHUNK,
            page_size: CHUNK,
        };
        let request = match &work.kind {
            Kind::Read => Request::Read {
                chain,
                version,
                key,
            },
            Kind::Write { offset, data } => {
                let data = Bytes::clone(data);
                let kind = UpdateKind::Write {
                    offset: *offset,
                    data,
                    checksums: Vec::new(),
                    size_hint: 0,
                };
                Request::Write {
                    chain,
                    version,
                    update: update(kind, Some(work.tag)),
                }
            }
            Kind::Truncate { len } => {
                let kind = UpdateKind::Truncate {
                    len: *len,
                    within: u32::MAX,
                };
                let update = update(kind, Some(work.tag));
                Request::Trim {
                    chain,
                    version,
                    update,
                    tag: work.tag,
                }
            }
            Kind::Remove => {
                let update = update(UpdateKind::Remove, Some(work.tag));
                Request::Trim {
                    chain,
                    version,
                    update,
                    tag: work.tag,
                }
            }
        };
        let timeout = if work.kind == Kind::Read {
            READ_ATTEMPT
        } else {
            WRITE_ATTEMPT
        };
        let timeout = timeout.as_micros() as u64;
        let timeout = work.limit.map_or(timeout, |limit| {
            timeout.min(limit.saturating_sub(self.now).max(1))
        });
        let it = &mut self.clients[client].lanes[lane];
        it.attempt += 1;
        let caller = Caller::Lane {
            client,
            lane,
            attempt: it.attempt,
        };
        let call = self.call(Place::Client(client), host, caller, request, timeout);
        if let Some(work) = &mut self.lane(client, lane).work {
            work.call = Some((call, target));
        }
    }

    pub(super) fn lane_answered(
        &mut self,
        client: usize,
        lane: usize,
        attempt: u64,
        result: Result<Answer>,
    ) {
        let it = self.lane(client, lane);
        if it.attempt != attempt || it.work.is_none() {
            return;
        }
        match result {
            Ok(answer) => self.finished(client, lane, answer),
            Err(error) => self.failed(client, lane, &error),
        }
    }

    fn finished(&mut self, client: usize, lane: usize, answer: Answer) {
        let Some(work) = self.lane(client, lane).work.take() else {
            return;
        };
        let step = self.step;
        let length = &mut self.clients[client].lengths[work.key.index.0 as usize];
        let shown = match answer {
            Answer::Read(bytes) => {
                *length = bytes.len() as u32;
                Some(bytes)
            }
            Answer::Done(outcome) => {
                *length = outcome.len;
                None
            }
            _ => None,
        };
        self.note(|| format!("client {client}/{lane} op {} done: {shown:?}", work.op.0));
        self.history.finish(step, work.op, shown);
        self.rest(client, lane);
    }

    /// As the loops in `ChunkIo::read` and `ChunkIo::write` go on after an error.
    fn failed(&mut self, client: usize, lane: usize, error: &Error) {
        let jitter = 0.5 + self.net.random.fraction() / 2.0;
        let now = self.now;
        let map = self.clients[client].map.clone();
        let chain = self.lane(client, lane).work.as_ref().map(|w| w.key);
        let chain = chain.and_then(|key| self.clients[client].chain_of(key));
        let Some(work) = &mut self.lane(client, lane).work else {
            return;
        };
        work.call = None;
        let is_read = work.kind == Kind::Read;
        if is_read
            && elsewhere(error)
            && let Some(of) = chain.and_then(|c| map.chains.get(&c))
        {
            let untried = map.serving(of).any(|t| !work.tried.contains(&t.id));
            if untried {
                return self.attempt(client, lane);
            }
        }
        work.tried.clear();
        let pause = work.pace.next(error, jitter).as_micros() as u64;
        let over = work.limit.is_some_and(|limit| now + pause >= limit);
        if !transient(error) || over {
            // Refused for certain only when nothing else was sent: an earlier attempt may arrive yet.
            let never = error.code == ErrorCode::NoSpace && work.attempts == 1;
            let op = work.op;
            self.note(|| format!("client {client}/{lane} op {} gives up: {error}", op.0));
            self.history.give_up(op, never);
            self.lane(client, lane).work = None;
            return self.rest(client, lane);
        }
        work.paused = map_wakes(error.retry()).then_some(map.version);
        let it = self.lane(client, lane);
        it.attempt += 1;
        let attempt = it.attempt;
        self.after(
            pause,
            Event::Lane {
                client,
                lane,
                attempt,
            },
        );
    }

    pub(super) fn client_map(&mut self, client: usize, map: &Arc<ClusterMap>) {
        if map.version <= self.clients[client].map.version {
            return;
        }
        let it = &mut self.clients[client];
        it.map = map.clone();
        if it.chains == 0 {
            it.chains = map.chains.len() as u32;
        }
        for lane in 0..self.clients[client].lanes.len() {
            let it = &self.clients[client];
            let Some(work) = &it.lanes[lane].work else {
                continue;
            };
            let role = if work.kind == Kind::Read {
                Role::Reader
            } else {
                Role::Head
            };
            let deposed = match (work.call, it.chain_of(work.key)) {
                (Some((_, target)), Some(chain)) => !holds(map, chain, target, role),
                _ => false,
            };
            if deposed {
                if let Some((call, _)) = work.call {
                    self.net.calls.remove(&call);
                }
                let error = Error::new(ErrorCode::NotServing, "lost its place");
                self.failed(client, lane, &error);
            } else if work.paused.is_some_and(|used| map.version > used) {
                let attempt = it.lanes[lane].attempt;
                self.after(
                    0,
                    Event::Lane {
                        client,
                        lane,
                        attempt,
                    },
                );
            }
        }
    }
}
