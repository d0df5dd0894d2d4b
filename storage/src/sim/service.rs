//! The data plane of a node: what each request does, as in `crate::node::data`.

use bytes::Bytes;
use emberfs_proto::ids::{ChainVersion, ChunkKey, ChunkVersion, TargetId, WriteTag};
use emberfs_proto::{Error, ErrorCode, Result};

use super::net::{Answer, Caller, Place, Request};
use super::target::Waiter;
use super::world::{Event, World};
use crate::chain::{self, Message, Outcome, ReadPlan, Update, UpdateKind};
use crate::engine::ReadVersion;

/// Longest wait for the tail's word, µs.
const ASK_TIMEOUT: u64 = 2_000_000;
/// Attempts to catch a version that the tail named.
const READ_ATTEMPTS: u32 = 16;

/// A read on its way.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub(super) call: u64,
    pub(super) version: ChainVersion,
    pub(super) key: ChunkKey,
    attempts: u32,
    found: Option<Result<(u64, Bytes)>>,
}

impl World {
    /// A request reaches a host's port, as `crate::node::data` takes it.
    pub(super) fn arrives(&mut self, call: u64, host: usize, request: Request) {
        if self.hosts[host].process.is_none() {
            if self.hosts[host].kernel {
                self.refuse(call);
            }
            return;
        }
        let chain = match &request {
            Request::Read { chain, .. }
            | Request::Write { chain, .. }
            | Request::Trim { chain, .. }
            | Request::Tell { chain, .. }
            | Request::QueryVersion { chain, .. }
            | Request::SyncList { chain, .. }
            | Request::SyncDone { chain, .. } => *chain,
        };
        let here = self.hosts[host].target_of(chain);
        let Some(target) = here.filter(|&t| self.target(host, t).is_some()) else {
            let error = Error::new(ErrorCode::NotServing, "no target of this chain here");
            return self.answer(call, host, Err(error));
        };
        match request {
            Request::Read { version, key, .. } => {
                let Some(it) = self.target(host, target) else {
                    return;
                };
                let read = it.number();
                let reading = Reading {
                    call,
                    version,
                    key,
                    attempts: 0,
                    found: None,
                };
                it.reads.insert(read, reading);
                self.read_step(host, target, read);
            }
            Request::Write {
                version: chain_version,
                update,
                ..
            } => {
                self.request(host, target, Waiter::Call(call), |request| {
                    chain::Event::Write {
                        request,
                        chain_version,
                        update,
                        trim: None,
                    }
                });
            }
            Request::Trim {
                version,
                update,
                tag,
                ..
            } => self.trim(host, target, call, version, update, tag),
            Request::Tell {
                version: chain_version,
                message,
                ..
            } => {
                self.request(host, target, Waiter::Call(call), |request| match message {
                    Message::Forward(forward) => chain::Event::Forward {
                        request,
                        chain_version,
                        forward,
                    },
                    Message::Confirm(sent) => chain::Event::Confirm {
                        request,
                        chain_version,
                        sent,
                    },
                    Message::Withdraw(sent) => chain::Event::Withdraw {
                        request,
                        chain_version,
                        sent,
                    },
                });
            }
            Request::QueryVersion { version, key, .. } => {
                let lease = self.has_lease(host);
                let Some(it) = self.target(host, target) else {
                    return;
                };
                let plan = it.replica.tail_plan(key, version, lease);
                let meta = self.hosts[host].disk.meta((target, key));
                let result =
                    plan.and_then(|plan| Ok(Answer::Version(plan.committed(meta?.as_ref()))));
                self.answer(call, host, result);
            }
            Request::SyncList { version, after, .. } => {
                self.sync_list(host, target, call, version, after);
            }
            Request::SyncDone {
                version: chain_version,
                ..
            } => {
                self.request(host, target, Waiter::Call(call), |request| {
                    chain::Event::SyncDone {
                        request,
                        chain_version,
                    }
                });
            }
        }
        self.check_step(host);
    }

    /// As `Data::trim`, for a file of one chunk.
    fn trim(
        &mut self,
        host: usize,
        target: TargetId,
        call: u64,
        version: ChainVersion,
        update: Update,
        tag: WriteTag,
    ) {
        let lease = self.has_lease(host);
        let Some(it) = self.target(host, target) else {
            return;
        };
        if let Err(error) = it.replica.check_serving(version, lease) {
            return self.answer(call, host, Err(error));
        }
        let meta = match self.hosts[host].disk.meta((target, update.key)) {
            Ok(meta) => meta,
            Err(error) => return self.answer(call, host, Err(error)),
        };
        let due = match update.kind {
            UpdateKind::Truncate { len, .. } => meta.is_some_and(|m| m.max_len() > len),
            _ => meta.is_some(),
        };
        if !due {
            self.drive(host, target, chain::Event::TrimDone { tag });
            let outcome = Outcome {
                version: ChunkVersion(0),
                len: 0,
                checksum: 0,
                chain: version,
            };
            return self.answer(call, host, Ok(Answer::Done(outcome)));
        }
        self.request(host, target, Waiter::Trim { call, tag }, |request| {
            chain::Event::Write {
                request,
                chain_version: version,
                update,
                trim: Some(tag),
            }
        });
    }

    /// As `Data::read_item`, up to the engine.
    fn read_step(&mut self, host: usize, target: TargetId, read: u64) {
        let lease = self.has_lease(host);
        let Some(it) = self.target(host, target) else {
            return;
        };
        let Some(reading) = it.reads.get_mut(&read) else {
            return;
        };
        reading.attempts += 1;
        let (key, version, call) = (reading.key, reading.version, reading.call);
        if reading.attempts > READ_ATTEMPTS {
            it.reads.remove(&read);
            let error = Error::new(ErrorCode::Busy, "changes too fast").retry_after_ms(2);
            return self.answer(call, host, Err(error));
        }
        let chain = it.chain;
        match it.replica.read_plan(key, version, lease) {
            Err(error) => {
                it.reads.remove(&read);
                self.answer(call, host, Err(error));
            }
            Ok(ReadPlan::Committed) => self.pick(host, target, read, ReadVersion::Committed),
            Ok(ReadPlan::Newest) => self.pick(host, target, read, ReadVersion::Pending),
            Ok(ReadPlan::AskTail(tail)) => {
                let Some(to) = self.host_of(host, tail) else {
                    return self.tail_answered(host, target, read, Err(super::net::unreachable()));
                };
                let caller = Caller::AskTail { target, read };
                let request = Request::QueryVersion {
                    chain,
                    version,
                    key,
                };
                self.call(Place::Host(host), to, caller, request, ASK_TIMEOUT);
            }
        }
    }

    pub(super) fn tail_answered(
        &mut self,
        host: usize,
        target: TargetId,
        read: u64,
        result: Result<Answer>,
    ) {
        match result {
            Ok(Answer::Version(ChunkVersion(0))) => {
                self.pick(host, target, read, ReadVersion::Committed);
            }
            Ok(Answer::Version(version)) => {
                self.pick(host, target, read, ReadVersion::Exactly(version));
            }
            other => {
                let Some(it) = self.target(host, target) else {
                    return;
                };
                let Some(reading) = it.reads.remove(&read) else {
                    return;
                };
                let error = other.err().unwrap_or_else(super::net::unreachable);
                self.answer(reading.call, host, Err(error));
            }
        }
    }

    /// The engine chooses and pins the version at once; the bytes come later.
    fn pick(&mut self, host: usize, target: TargetId, read: u64, which: ReadVersion) {
        let Some(key) = self
            .target(host, target)
            .and_then(|t| Some(t.reads.get(&read)?.key))
        else {
            return;
        };
        let found = self.hosts[host].disk.read((target, key), which);
        if let Err(error) = &found
            && error.code == ErrorCode::StaleChunkVersion
        {
            return self.read_step(host, target, read);
        }
        if let Some(reading) = self
            .target(host, target)
            .and_then(|t| t.reads.get_mut(&read))
        {
            reading.found = Some(found);
        }
        let life = self.hosts[host].life;
        let delay = self.random.around(150);
        self.after(
            delay,
            Event::ReadDone {
                host,
                life,
                target,
                read,
            },
        );
    }

    pub(super) fn read_done(&mut self, host: usize, target: TargetId, read: u64) {
        let lease = self.has_lease(host);
        let Some(it) = self.target(host, target) else {
            return;
        };
        let Some(reading) = it.reads.remove(&read) else {
            return;
        };
        if let Err(error) = it.replica.check_serving(reading.version, lease) {
            return self.answer(reading.call, host, Err(error));
        }
        let found = reading
            .found
            .unwrap_or_else(|| Err(super::net::unreachable()));
        let found = match found {
            Err(error) if error.code == ErrorCode::ChunkNotFound => Ok((0, Bytes::new())),
            found => found,
        };
        if let Ok((version, _)) = found {
            self.check_shown(host, target, reading.key, version);
        }
        let result = found.map(|(_, bytes)| Answer::Read(bytes));
        self.answer(reading.call, host, result);
    }
}
