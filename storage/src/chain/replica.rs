//! The state machine of one target: admission and queues. What it knows of a write is in `op`, its steps are in `steps`, what
//! goes to the successor in `send`, what is sent before it is durable in `early`, what the steps decide in
//! `decide`, chain changes in `membership`.

mod decide;
mod early;
mod membership;
mod mirrored;
mod op;
mod send;
mod steps;

use std::collections::{HashMap, HashSet, VecDeque};

use emberfs_proto::cluster::{LocalState, PublicState};
use emberfs_proto::ids::{ChainVersion, ChunkKey, ChunkVersion, TargetId};
use emberfs_proto::{Error, ErrorCode, Result};

use self::op::{Op, Phase, Received, SentEarly, Source};
use super::dedup::{Dedup, Seen};
use super::types::{Action, Event, Forward, OpId, Outcome, RequestId, Update, View};
use crate::engine::ChunkMeta;

/// Work that may wait for one chunk; more is answered [`ErrorCode::Busy`].
const MAX_QUEUE_PER_CHUNK: usize = 1024;

/// How a replica may answer a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadPlan {
    /// With the committed version.
    Committed,
    /// With the newest durable version: this target became the tail while a write was on its way, and
    /// the tail before may have committed and shown it.
    Newest,
    /// With the version that this target, the tail, says is committed.
    AskTail(TargetId),
}

impl ReadPlan {
    /// What a tail that answers with this plan says is committed; 0: nothing.
    pub fn committed(self, meta: Option<&ChunkMeta>) -> ChunkVersion {
        let Some(meta) = meta else {
            return ChunkVersion(0);
        };
        match (&meta.pending, self) {
            (Some(pending), Self::Newest) => pending.version,
            _ => meta.committed,
        }
    }
}

/// The protocol state of one target. See the [module page](super).
pub struct Replica {
    id: TargetId,
    view: Option<View>,
    local: LocalState,
    ops: HashMap<OpId, Op>,
    chunks: HashMap<ChunkKey, VecDeque<OpId>>,
    dedup: Dedup,
    next_op: u64,
    /// [`Action::Recover`] is being carried out.
    recovering: bool,
    /// Under this chain version the SYNCING successor may have become SERVING already.
    handed_over: Option<ChainVersion>,
    /// Chunks that the SYNCING successor has acknowledged whole under the chain version of `view`: it holds
    /// what this target holds, and the next change may go without the rest of the chunk.
    mirrored: HashSet<ChunkKey>,
    /// Of what was last sent early.
    last_sequence: u64,
    /// Under the chain version of `view`, what comes early with a number up to this one is late: that was
    /// confirmed, withdrawn, or sent again in the usual way; or something after it was, and it has to be.
    settled: u64,
    /// Refused by chain version, role, state or lease, since the start.
    refused: u64,
    #[cfg(test)]
    mutant: Option<crate::sim::mutant::Mutant>,
}

impl Replica {
    /// With one rule broken.
    #[cfg(test)]
    pub(crate) fn mutant(id: TargetId, mutant: Option<crate::sim::mutant::Mutant>) -> Self {
        Self {
            mutant,
            ..Self::new(id)
        }
    }

    /// A target that was just opened: its data is there but may be old.
    pub fn new(id: TargetId) -> Self {
        Self {
            id,
            view: None,
            local: LocalState::Online,
            ops: HashMap::new(),
            chunks: HashMap::new(),
            dedup: Dedup::new(),
            next_op: 0,
            recovering: false,
            handed_over: None,
            mirrored: HashSet::new(),
            last_sequence: 0,
            settled: 0,
            refused: 0,
            #[cfg(test)]
            mutant: None,
        }
    }

    /// Chain version under which a piece of work was asked for.
    #[cfg(test)]
    pub(crate) fn asked_under(&self, op: OpId) -> Option<ChainVersion> {
        self.ops.get(&op).map(|op| op.chain_version)
    }

    /// The local state, for heartbeats.
    pub fn local(&self) -> LocalState {
        self.local
    }

    /// The chain as last adopted.
    pub fn view(&self) -> Option<&View> {
        self.view.as_ref()
    }

    /// Requests refused by chain version, role, state or lease since the start.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Chunks with work in progress.
    pub fn busy_chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Takes one event. `lease` says whether the node's lease holds now.
    pub fn handle(&mut self, event: Event, lease: bool) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Write {
                request,
                chain_version,
                update,
                trim,
            } => {
                let op = Op::new(Source::Client, request, chain_version, update);
                self.admit(Op { trim, ..op }, lease, &mut out);
            }
            Event::Forward {
                request,
                chain_version,
                forward,
            } => {
                let Forward {
                    update,
                    version,
                    replace,
                    resync,
                    committed_chain,
                    recent,
                    early,
                    sequence,
                } = forward;
                let received = Some(Received {
                    version,
                    replace,
                    resync,
                    committed_chain,
                    recent,
                    early,
                    sequence,
                });
                let op = Op::new(Source::Predecessor, request, chain_version, update);
                self.admit(Op { received, ..op }, lease, &mut out);
            }
            Event::Confirm {
                request,
                chain_version,
                sent,
            } => self.confirm(request, chain_version, sent, lease, &mut out),
            Event::Withdraw {
                request,
                chain_version,
                sent,
            } => self.withdraw(request, chain_version, sent, lease, &mut out),
            Event::Resync {
                request,
                chain_version,
                key,
            } => {
                let update = Update::resync(key);
                self.admit(
                    Op::new(Source::Resync, request, chain_version, update),
                    lease,
                    &mut out,
                );
            }
            Event::TrimDone { tag } => self.dedup.trim_done(tag),
            Event::Adopt { view } => self.adopt(view, lease, &mut out),
            Event::Recovered {
                chain_version,
                result,
            } => {
                self.recovered(chain_version, result, &mut out);
            }
            Event::HandOver { chain_version } => self.handed_over = Some(chain_version),
            Event::Failed => self.fail(&mut out),
            Event::SyncDone {
                request,
                chain_version,
            } => {
                let result = self.sync_done(chain_version, &mut out);
                out.push(Action::Reply { request, result });
            }
            step => self.step(step, lease, &mut out),
        }
        out
    }

    /// How a read of `key`, asked for under `chain_version`, may be answered.
    pub fn read_plan(
        &self,
        key: ChunkKey,
        chain_version: ChainVersion,
        lease: bool,
    ) -> Result<ReadPlan> {
        let view = self.check_serving(chain_version, lease)?;
        if mutated!(self, DirtyRead) {
            return Ok(ReadPlan::Newest);
        }
        let front = self.chunks.get(&key).and_then(VecDeque::front);
        let Some(op) = front.and_then(|op| self.ops.get(op)) else {
            return Ok(ReadPlan::Committed);
        };
        if view.tail == Some(self.id)
            && self.handed_over == Some(view.version)
            && op.may_be_pending()
        {
            let what = format!("chunk {key}: the successor is about to decide what is committed");
            return Err(Error::new(ErrorCode::Busy, what).retry_after_ms(2));
        }
        match view.tail {
            Some(tail) if tail != self.id && op.may_be_pending() => Ok(ReadPlan::AskTail(tail)),
            _ if op.exposed && !mutated!(self, HideExposed) => Ok(ReadPlan::Newest),
            _ => Ok(ReadPlan::Committed),
        }
    }

    /// What this target, if it is the tail, says of `key` to the others.
    pub fn tail_plan(
        &self,
        key: ChunkKey,
        chain_version: ChainVersion,
        lease: bool,
    ) -> Result<ReadPlan> {
        let plan = self.read_plan(key, chain_version, lease)?;
        match (plan, &self.view) {
            (ReadPlan::Committed | ReadPlan::Newest, Some(view)) if view.tail == Some(self.id) => {
                Ok(plan)
            }
            (_, Some(view)) => Err(self.stale(view, "is not the tail")),
            (_, None) => Err(Error::new(ErrorCode::NotServing, "no chain yet")),
        }
    }

    /// Whether reads may be served under `chain_version`.
    pub fn check_serving(&self, chain_version: ChainVersion, lease: bool) -> Result<&View> {
        let view = self.check_version(chain_version, lease)?;
        if view.state != PublicState::Serving || self.local != LocalState::UpToDate {
            let what = format!(
                "target {} of chain {} is {:?}/{:?}, not serving; refresh the map",
                self.id, view.chain, view.state, self.local
            );
            return Err(Error::new(ErrorCode::NotServing, what).newer_version(view.version.0));
        }
        Ok(view)
    }

    fn check_version(&self, chain_version: ChainVersion, lease: bool) -> Result<&View> {
        if !lease {
            let what = "this storage server's lease has run out; it serves nothing until the cluster manager renews it";
            return Err(Error::new(ErrorCode::LeaseExpired, what));
        }
        let Some(view) = &self.view else {
            let what = format!("target {} has not seen its chain yet", self.id);
            return Err(Error::new(ErrorCode::NotServing, what));
        };
        if view.version != chain_version && !mutated!(self, IgnoreChainVersion) {
            let what = format!(
                "chain {} is at {} here, not {chain_version}",
                view.chain, view.version
            );
            let code = ErrorCode::StaleChainVersion;
            return Err(Error::new(code, what).newer_version(view.version.0));
        }
        Ok(view)
    }

    fn stale(&self, view: &View, what: &str) -> Error {
        let what = format!(
            "target {} {what} of chain {} at {}",
            self.id, view.chain, view.version
        );
        Error::new(ErrorCode::NotHead, what).newer_version(view.version.0)
    }

    /// Checked when work arrives and again when it holds its chunk.
    fn check(&self, op: &Op, lease: bool) -> Result<()> {
        match op.source {
            Source::Client => {
                let view = self.check_serving(op.chain_version, lease)?;
                if view.is_head {
                    Ok(())
                } else {
                    Err(self.stale(view, "is not the head"))
                }
            }
            Source::Predecessor => {
                let view = self.check_version(op.chain_version, lease)?;
                if view.state == PublicState::Syncing && op.came_early().is_none() {
                    return Ok(());
                }
                self.check_serving(op.chain_version, lease).map(|_| ())
            }
            Source::Resync => {
                let view = self.check_serving(op.chain_version, lease)?;
                if view.successor.is_some_and(|s| s.syncing) {
                    return Ok(());
                }
                Err(self.stale(view, "has no syncing successor"))
            }
        }
    }

    fn admit(&mut self, op: Op, lease: bool, out: &mut Vec<Action>) {
        let checked = self.check(&op, lease).and_then(|()| self.in_time(&op));
        if let Err(error) = checked {
            self.refused += 1;
            return answer(&op.waiters, Err(error), out);
        }
        let queue = self.chunks.entry(op.update.key).or_default();
        if queue.len() >= MAX_QUEUE_PER_CHUNK {
            let what = format!(
                "{} writes wait for chunk {} already",
                queue.len(),
                op.update.key
            );
            let error = Error::new(ErrorCode::Busy, what).retry_after_ms(20);
            return answer(&op.waiters, Err(error), out);
        }
        self.next_op += 1;
        let id = OpId(self.next_op);
        queue.push_back(id);
        let front = queue[0];
        self.ops.insert(id, op);
        if front == id {
            self.start(id, lease, out);
        } else {
            self.settle_held(front, lease, out);
        }
    }

    /// `id` holds its chunk: checks again, and begins.
    fn start(&mut self, id: OpId, lease: bool, out: &mut Vec<Action>) {
        let Some(op) = self.ops.get(&id) else { return };
        if let Err(error) = self.check(op, lease)
            && !mutated!(self, SkipSecondCheck)
        {
            self.refused += 1;
            return self.finish(id, Err(error), lease, out);
        }
        if let Some(answer) = self.answer_known(id) {
            return self.finish(id, answer, lease, out);
        }
        self.set_phase(id, Phase::Loading);
        let key = self.ops[&id].update.key;
        out.push(Action::Load { op: id, key });
    }

    /// The answer to work that was done before.
    fn answer_known(&mut self, id: OpId) -> Option<Result<Outcome>> {
        let op = self.ops.get(&id)?;
        if let Some(trim) = op.trim
            && self.dedup.is_trim_done(trim)
        {
            return Some(Ok(Outcome::nothing(op.chain_version)));
        }
        if op.source != Source::Client {
            return None;
        }
        // A trim has one tag for many chunks: each chunk's record tells whether it was there.
        let tag = op.update.tag.filter(|_| op.trim.is_none())?;
        if mutated!(self, ForgetDedupAtHeadChange) {
            return None;
        }
        match self.dedup.check(tag) {
            Seen::New => None,
            Seen::Done(outcome) => Some(Ok(outcome)),
            Seen::Passed => Some(Err(decide::passed(tag))),
        }
    }

    fn set_phase(&mut self, id: OpId, phase: Phase) {
        if let Some(op) = self.ops.get_mut(&id) {
            op.phase = phase;
        }
    }

    /// Ends `id`, answers its requester, and lets the next one have the chunk.
    fn finish(&mut self, id: OpId, result: Result<Outcome>, lease: bool, out: &mut Vec<Action>) {
        let Some(op) = self.ops.remove(&id) else {
            return;
        };
        if let (Ok(outcome), Some(tag), false) =
            (&result, op.update.tag, op.source == Source::Resync)
            && op.trim.is_none()
        {
            self.dedup.record(tag, *outcome);
        }
        if !op.dead {
            answer(&op.waiters, result, out);
            answer(&op.withdrawals, Ok(Outcome::nothing(op.chain_version)), out);
        }
        self.release(op.update.key, id, lease, out);
    }

    fn release(&mut self, key: ChunkKey, id: OpId, lease: bool, out: &mut Vec<Action>) {
        let Some(queue) = self.chunks.get_mut(&key) else {
            return;
        };
        let held = queue.front() == Some(&id);
        queue.retain(|&other| other != id);
        match queue.front().copied() {
            None => drop(self.chunks.remove(&key)),
            Some(next) if held => self.start(next, lease, out),
            Some(_) => {}
        }
    }
}

/// Answers everybody who waits.
fn answer(waiters: &[RequestId], result: Result<Outcome>, out: &mut Vec<Action>) {
    let Some((&request, others)) = waiters.split_last() else {
        return;
    };
    out.extend(others.iter().map(|&request| Action::Reply {
        request,
        result: result.clone(),
    }));
    out.push(Action::Reply { request, result });
}

/// The chain changed during a resync pass.
fn pass_over() -> Error {
    Error::new(
        ErrorCode::StaleChainVersion,
        "the chain changed during the resync pass",
    )
}
