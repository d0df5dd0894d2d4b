//! The network: links that lose, delay, duplicate and reorder, and calls with answers over them.

use std::collections::BTreeMap;

use emberfs_proto::ids::{ChainId, ChainVersion, ChunkKey, ChunkVersion, TargetId, WriteTag};
use emberfs_proto::{Error, ErrorCode, Result};

use super::random::Random;
use super::world::{Event, World};
use crate::chain::{Message, OpId, Outcome, Update};

/// A place on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Manager,
    Host(usize),
    Client(usize),
}

/// What is asked of a storage node.
#[derive(Clone, Debug)]
pub(super) enum Request {
    Read {
        chain: ChainId,
        version: ChainVersion,
        key: ChunkKey,
    },
    Write {
        chain: ChainId,
        version: ChainVersion,
        update: Update,
    },
    /// One chunk's part of a truncate or a removal by the metadata server.
    Trim {
        chain: ChainId,
        version: ChainVersion,
        update: Update,
        tag: WriteTag,
    },
    Tell {
        chain: ChainId,
        version: ChainVersion,
        message: Message,
    },
    QueryVersion {
        chain: ChainId,
        version: ChainVersion,
        key: ChunkKey,
    },
    SyncList {
        chain: ChainId,
        version: ChainVersion,
        after: Option<ChunkKey>,
    },
    SyncDone {
        chain: ChainId,
        version: ChainVersion,
    },
}

/// What a storage node answers.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Read(bytes::Bytes),
    Done(Outcome),
    Version(ChunkVersion),
    Page(Vec<(ChunkKey, crate::engine::ChunkMeta)>, bool),
}

/// Who waits for an answer.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    Lane {
        client: usize,
        lane: usize,
        attempt: u64,
    },
    Forward {
        target: TargetId,
        op: OpId,
        attempt: u32,
    },
    AskTail {
        target: TargetId,
        read: u64,
    },
    Pass {
        target: TargetId,
        pass: u64,
    },
}

/// A call under way.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) from: Place,
    /// Life of the calling process.
    pub(super) life: u64,
    pub(super) to: usize,
    pub(super) caller: Caller,
}

/// What the links are like.
#[derive(Clone, Debug, Default)]
pub(super) struct Weather {
    /// In a thousand messages.
    pub(super) lost: u64,
    pub(super) duplicated: u64,
    /// Usual delay, µs.
    pub(super) delay: u64,
    /// In a thousand maps that are pushed.
    pub(super) slow_maps: u64,
}

/// See the module page.
pub(super) struct Net {
    pub(super) weather: Weather,
    /// Links that carry nothing in this direction, and until when.
    blocked: BTreeMap<(Place, Place), u64>,
    pub(super) calls: BTreeMap<u64, Call>,
    next_call: u64,
    pub(super) random: Random,
}

impl Net {
    pub(super) fn new(weather: Weather, random: Random) -> Self {
        Self {
            weather,
            blocked: BTreeMap::new(),
            calls: BTreeMap::new(),
            next_call: 0,
            random,
        }
    }

    pub(super) fn block(&mut self, from: Place, to: Place, until: u64) {
        self.blocked.insert((from, to), until);
    }

    pub(super) fn heal(&mut self) {
        self.blocked.clear();
        self.weather.lost = 0;
    }

    pub(super) fn is_open(&self, from: Place, to: Place, now: u64) -> bool {
        self.blocked
            .get(&(from, to))
            .is_none_or(|&until| now >= until)
    }

    /// How long a message takes; `None`: it never arrives.
    pub(super) fn travel(&mut self, from: Place, to: Place, now: u64) -> Option<u64> {
        let lost = self.random.chance(self.weather.lost);
        let delay = self.random.around(self.weather.delay);
        (self.is_open(from, to, now) && !lost).then_some(delay)
    }
}

pub(super) fn unreachable() -> Error {
    Error::new(ErrorCode::Unreachable, "the connection broke")
}

impl World {
    /// Sends a request to a host's process; the answer comes to `caller`, if its process still lives.
    pub(super) fn call(
        &mut self,
        from: Place,
        to: usize,
        caller: Caller,
        request: Request,
        timeout: u64,
    ) -> u64 {
        self.net.next_call += 1;
        let id = self.net.next_call;
        let life = self.life_of(from);
        self.net.calls.insert(
            id,
            Call {
                from,
                life,
                to,
                caller,
            },
        );
        self.after(
            timeout,
            Event::CallFails {
                call: id,
                timeout: true,
            },
        );
        match self.net.travel(from, Place::Host(to), self.now) {
            Some(delay) => {
                if self.net.random.chance(self.net.weather.duplicated) {
                    let later = delay + self.net.random.below(300_000);
                    let request = request.clone();
                    self.after(
                        later,
                        Event::Arrives {
                            call: id,
                            from,
                            to,
                            request,
                        },
                    );
                }
                self.after(
                    delay,
                    Event::Arrives {
                        call: id,
                        from,
                        to,
                        request,
                    },
                );
            }
            None => {
                // The connection broke, but what was sent may still be read at the other end.
                if self.net.is_open(from, Place::Host(to), self.now) && self.net.random.chance(400)
                {
                    let late = self.net.random.between(1000, 1_500_000);
                    self.after(
                        late,
                        Event::Arrives {
                            call: id,
                            from,
                            to,
                            request,
                        },
                    );
                }
                self.breaks(id);
            }
        }
        id
    }

    /// The connection under a call breaks: its caller notices soon, later, or by time-out.
    fn breaks(&mut self, call: u64) {
        let notice = match self.net.random.below(4) {
            0 | 1 => self.net.random.between(200, 20_000),
            2 => self.net.random.between(20_000, 2_000_000),
            _ => return,
        };
        self.after(
            notice,
            Event::CallFails {
                call,
                timeout: false,
            },
        );
    }

    /// A host answers.
    pub(super) fn answer(&mut self, call: u64, to: usize, result: Result<Answer>) {
        let Some(from) = self.net.calls.get(&call).map(|c| c.from) else {
            return;
        };
        match self.net.travel(Place::Host(to), from, self.now) {
            Some(delay) => self.after(delay, Event::Answered { call, result }),
            None => self.breaks(call),
        }
    }

    /// Nobody listens at a host.
    pub(super) fn refuse(&mut self, call: u64) {
        let delay = self.net.random.between(100, 3000);
        self.after(
            delay,
            Event::CallFails {
                call,
                timeout: false,
            },
        );
    }

    pub(super) fn resolve(&mut self, call: u64, result: Result<Answer>) {
        let Some(Call {
            from, life, caller, ..
        }) = self.net.calls.remove(&call)
        else {
            return;
        };
        if self.life_of(from) != life {
            return;
        }
        match (from, caller) {
            (
                _,
                Caller::Lane {
                    client,
                    lane,
                    attempt,
                },
            ) => self.lane_answered(client, lane, attempt, result),
            (
                Place::Host(host),
                Caller::Forward {
                    target,
                    op,
                    attempt,
                },
            ) => {
                let result = result.and_then(outcome);
                let event = crate::chain::Event::Forwarded {
                    op,
                    attempt,
                    result,
                };
                self.drive(host, target, event);
            }
            (Place::Host(host), Caller::AskTail { target, read }) => {
                self.tail_answered(host, target, read, result);
            }
            (Place::Host(host), Caller::Pass { target, pass }) => {
                self.pass_answered(host, target, pass, result);
            }
            _ => unreachable!("only hosts forward, ask and sync"),
        }
    }

    /// A host's process is gone: those who called it notice, if its kernel is there to tell them.
    pub(super) fn hang_up(&mut self, host: usize, kernel: bool) {
        let of = self.net.calls.iter().filter(|(_, call)| call.to == host);
        let calls: Vec<_> = of.map(|(&id, _)| id).collect();
        for call in calls {
            if kernel {
                self.refuse(call);
            } else {
                self.breaks(call);
            }
        }
    }
}

pub(super) fn outcome(answer: Answer) -> Result<Outcome> {
    match answer {
        Answer::Done(outcome) => Ok(outcome),
        other => Err(Error::new(ErrorCode::Protocol, format!("{other:?}"))),
    }
}
