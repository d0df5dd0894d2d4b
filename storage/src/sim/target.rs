//! One target of a node: carries out what its protocol wants, as `crate::node::host` and the data
//! plane do.

use std::collections::BTreeMap;

use emberfs_proto::ids::{ChainId, ChainVersion, ChunkKey, TargetId, WriteTag};
use emberfs_proto::{Error, ErrorCode, Result};

use super::disk::Change;
use super::mutant::Mutant;
use super::net::{Answer, Caller, Place, Request};
use super::resync::Pass;
use super::service::Reading;
use super::world::{Event, World};
use crate::chain::{self, Action, Content, Forward, Message, OpId, Outcome, Replica, RequestId};
use crate::engine::Prepare;

/// As in `crate::node::host`, µs.
const FORWARD_TIMEOUT: u64 = 30_000_000;

/// Who waits for an answer of the protocol.
#[derive(Clone, Debug)]
pub(super) enum Waiter {
    Call(u64),
    Trim { call: u64, tag: WriteTag },
    Pass(u64),
}

/// What the end of a disk's change is told to the protocol as.
#[derive(Clone, Copy, Debug)]
pub(super) enum Done {
    Prepared,
    Committed,
    Aborted,
    Recovered(ChainVersion),
}

/// See the module page.
pub(super) struct TargetHost {
    pub(super) id: TargetId,
    pub(super) chain: ChainId,
    pub(super) replica: Replica,
    pub(super) waiting: BTreeMap<RequestId, Waiter>,
    sends: BTreeMap<OpId, Vec<u64>>,
    pub(super) pass: Option<Pass>,
    /// Its chain is about to go on without it: it serves nothing and says so.
    pub(super) stopped: bool,
    pub(super) reads: BTreeMap<u64, Reading>,
    pub(super) next: u64,
}

impl TargetHost {
    pub(super) fn new(id: TargetId, chain: ChainId, mutant: Option<Mutant>) -> Self {
        Self {
            id,
            chain,
            replica: Replica::mutant(id, mutant),
            waiting: BTreeMap::new(),
            sends: BTreeMap::new(),
            pass: None,
            stopped: false,
            reads: BTreeMap::new(),
            next: 0,
        }
    }

    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl World {
    pub(super) fn has_lease(&self, host: usize) -> bool {
        let it = &self.hosts[host];
        let now = it.clock.at(self.now);
        let left = it.process.as_ref().map(|p| p.term.left(now));
        left.is_some_and(|left| !left.is_zero()) || self.mutated(Mutant::ServePastLease)
    }

    pub(super) fn target(&mut self, host: usize, target: TargetId) -> Option<&mut TargetHost> {
        self.hosts[host].process.as_mut()?.targets.get_mut(&target)
    }

    /// As `TargetHost::drive`.
    pub(super) fn drive(&mut self, host: usize, target: TargetId, event: chain::Event) {
        let lease = self.has_lease(host);
        let Some(it) = self.target(host, target) else {
            return;
        };
        let actions = it.replica.handle(event, lease);
        for action in actions {
            self.perform(host, target, action);
        }
    }

    /// As `TargetHost::request`.
    pub(super) fn request(
        &mut self,
        host: usize,
        target: TargetId,
        waiter: Waiter,
        event: impl FnOnce(RequestId) -> chain::Event,
    ) {
        let Some(it) = self.target(host, target) else {
            return;
        };
        let request = RequestId(it.number());
        it.waiting.insert(request, waiter);
        self.drive(host, target, event(request));
    }

    fn later(&mut self, host: usize, target: TargetId, delay: u64, event: chain::Event) {
        let life = self.hosts[host].life;
        let event = Box::new(event);
        self.after(
            delay,
            Event::Chain {
                host,
                life,
                target,
                event,
            },
        );
    }

    fn change(
        &mut self,
        host: usize,
        target: TargetId,
        key: ChunkKey,
        change: Change,
        op: Option<OpId>,
        what: Done,
    ) {
        let lazy = matches!(change, Change::Commit(..));
        let usual = if lazy { 100 } else { self.setup.disk };
        let takes = self.random.around(usual);
        let life = self.hosts[host].life;
        let (change, at) = self.hosts[host]
            .disk
            .begin((target, key), change, self.now, takes);
        let event = Event::DiskDone {
            host,
            life,
            target,
            change,
            op,
            what,
        };
        self.after(at - self.now, event);
    }

    pub(super) fn disk_done(
        &mut self,
        host: usize,
        target: TargetId,
        change: u64,
        op: Option<OpId>,
        what: Done,
    ) {
        let result = self.hosts[host].disk.finish(change);
        let op = op.unwrap_or(OpId(0));
        let event = match what {
            Done::Prepared => {
                let gone = || Error::new(ErrorCode::ChunkNotFound, "gone");
                let result = result.and_then(|meta| meta.ok_or_else(gone));
                chain::Event::Prepared { op, result }
            }
            Done::Committed => chain::Event::Committed {
                op,
                result: result.map(drop),
            },
            Done::Aborted => chain::Event::Aborted {
                op,
                result: result.map(drop),
            },
            Done::Recovered(chain_version) => chain::Event::Recovered {
                chain_version,
                result: result.map(drop),
            },
        };
        // A stopped process sees it when it goes on.
        if self.hosts[host].stalled_until > self.now {
            let wait = self.hosts[host].stalled_until - self.now;
            return self.later(host, target, wait, event);
        }
        self.drive(host, target, event);
        self.check_step(host);
    }

    fn perform(&mut self, host: usize, target: TargetId, action: Action) {
        let life = self.hosts[host].life;
        match action {
            Action::Load { op, key } => {
                self.check_begins(host, target, op);
                let delay = self.random.around(60);
                self.after(
                    delay,
                    Event::Lookup {
                        host,
                        life,
                        target,
                        op,
                        key,
                    },
                );
            }
            Action::Prepare { op, key, prepare } => {
                self.note(|| {
                    let kind = match &prepare.kind {
                        crate::engine::PrepareKind::Write { offset, data, .. } => {
                            format!("{offset}+{}", data.len())
                        }
                        crate::engine::PrepareKind::Replace { data, .. } => {
                            format!("whole {}", data.len())
                        }
                        other => format!("{other:?}"),
                    };
                    let Prepare { version, tag, .. } = prepare;
                    format!("{target} {op:?} prepares {key} {version} {kind} as {tag}")
                });
                self.change(
                    host,
                    target,
                    key,
                    Change::Prepare(prepare),
                    Some(op),
                    Done::Prepared,
                );
            }
            Action::ReadContent { op, key, version } => {
                let result = self.hosts[host].disk.read((target, key), version);
                let result = result.map(|(_, data)| Content {
                    data,
                    checksums: Vec::new(),
                });
                let delay = self.random.around(200);
                self.later(host, target, delay, chain::Event::Content { op, result });
            }
            Action::Commit {
                op,
                key,
                version,
                chain,
            } => {
                self.note(|| format!("{target} {op:?} commits {key} {version}"));
                self.change(
                    host,
                    target,
                    key,
                    Change::Commit(version, chain),
                    Some(op),
                    Done::Committed,
                );
            }
            Action::Drop { op, key } => {
                self.note(|| format!("{target} {op:?} drops {key}"));
                self.change(host, target, key, Change::Drop, Some(op), Done::Committed);
            }
            Action::Abort { op, key, version } => {
                self.note(|| format!("{target} {op:?} aborts {key} {version}"));
                self.change(
                    host,
                    target,
                    key,
                    Change::Abort(version),
                    Some(op),
                    Done::Aborted,
                );
            }
            Action::Recover { chain_version } => {
                self.note(|| format!("target {target} recovers under {chain_version}"));
                if self.mutated(Mutant::ReviveWithoutPending) {
                    let event = chain::Event::Recovered {
                        chain_version,
                        result: Ok(()),
                    };
                    return self.later(host, target, 500, event);
                }
                let key = ChunkKey::new(u64::MAX, 0);
                self.change(
                    host,
                    target,
                    key,
                    Change::Recover(chain_version),
                    None,
                    Done::Recovered(chain_version),
                );
            }
            Action::Send {
                op,
                attempt,
                to,
                chain_version,
                message,
            } => {
                self.note(|| {
                    let what = match &message {
                        Message::Forward(Forward { version, replace, resync, early, sequence, update, .. }) => {
                            format!("sends {} {version}, replace {replace}, resync {resync}, early {early} {sequence},", update.key)
                        }
                        other => format!("tells {other:?}"),
                    };
                    format!("{target} {op:?} {what} to {to} at {chain_version}")
                });
                let Some(to) = self.host_of(host, to) else {
                    let result = Err(super::net::unreachable());
                    let event = chain::Event::Forwarded {
                        op,
                        attempt,
                        result,
                    };
                    return self.later(host, target, 0, event);
                };
                let chain = self.target(host, target).map_or(ChainId(0), |t| t.chain);
                let caller = Caller::Forward {
                    target,
                    op,
                    attempt,
                };
                let request = Request::Tell {
                    chain,
                    version: chain_version,
                    message,
                };
                let call = self.call(Place::Host(host), to, caller, request, FORWARD_TIMEOUT);
                if let Some(it) = self.target(host, target) {
                    it.sends.entry(op).or_default().push(call);
                }
            }
            Action::CancelSend { op } => {
                let calls = self
                    .target(host, target)
                    .and_then(|it| it.sends.remove(&op));
                for call in calls.into_iter().flatten() {
                    self.net.calls.remove(&call);
                }
            }
            Action::RetryAfter { op, attempt, delay } => {
                let delay = delay.as_micros() as u64;
                self.later(host, target, delay, chain::Event::RetryDue { op, attempt });
            }
            Action::StartResync {
                chain_version,
                to,
                busy,
            } => {
                self.start_resync(host, target, chain_version, to, busy);
            }
            Action::Reply { request, result } => self.reply(host, target, request, result),
            Action::ReportState => self.after(
                10,
                Event::Beat {
                    host,
                    life,
                    report: true,
                },
            ),
            Action::Alarm { message } => {
                self.note(|| format!("target {target} alarm: {message}"));
                if message.contains("has checksum") {
                    self.fail(|| format!("replicas disagree: {message}"));
                }
            }
        }
    }

    pub(super) fn host_of(&self, host: usize, target: TargetId) -> Option<usize> {
        let map = &self.hosts[host].process.as_ref()?.map;
        Some(map.targets.get(&target)?.node.0 as usize - 1)
    }

    fn reply(
        &mut self,
        host: usize,
        target: TargetId,
        request: RequestId,
        result: Result<Outcome>,
    ) {
        let Some(waiter) = self
            .target(host, target)
            .and_then(|t| t.waiting.remove(&request))
        else {
            // One of the mutants answers twice.
            return;
        };
        match waiter {
            Waiter::Call(call) => {
                if let Ok(outcome) = &result {
                    self.check_acknowledged(host, target, call, outcome);
                }
                self.answer(call, host, result.map(Answer::Done));
            }
            Waiter::Trim { call, tag } => {
                if result.is_ok() {
                    self.drive(host, target, chain::Event::TrimDone { tag });
                }
                self.answer(call, host, result.map(Answer::Done));
            }
            Waiter::Pass(pass) => self.chunk_sent(host, target, pass, result.is_ok()),
        }
    }
}
