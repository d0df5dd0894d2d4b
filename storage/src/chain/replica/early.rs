//! A change is sent on while it is still being stored, so that the targets of a chain flush side by side and
//! not in turn.
//!
//! A target that begins to store a write sends it to its successor at the same time, *early*. The
//! successor stores it, sends it on early itself, and *holds* it: pending, and not to be committed. A sender
//! whose own copy is durable, and confirmed unless it is the head, *confirms*: from there on everything is as
//! if the change had been sent only now. So a version is committed after the same events, in the same order,
//! as without early sending; what moved is when the disks begin.
//!
//! What can go wrong, and why nothing is lost or shown too soon:
//! - The sender cannot store it. It *withdraws* it, and answers its own requester only once the successor says
//!   that it is nowhere below. What was withdrawn or confirmed, or sent before that, is not taken any more when
//!   it comes late; the change of another write that this hits by chance is sent in the usual way.
//! - The chain changes. What is held and not confirmed is undone everywhere: nobody below can have committed
//!   it. Its sender sends it again, as it would anyway.
//! - The successor refused it, lost it or never got it: confirming finds nothing, and the change is sent in
//!   the usual way.

use emberfs_proto::cluster::PublicState;
use emberfs_proto::ids::{ChainVersion, ChunkKey};
use emberfs_proto::{Error, ErrorCode, Result};

use super::{Op, Phase, Replica, SentEarly, Source, answer};
use crate::chain::types::{
    Action, Forward, Message, OpId, Outcome, RequestId, Sent, Successor, UpdateKind,
};

impl Replica {
    /// `id` is about to be stored here: sends it on, if the successor may take it now.
    pub(super) fn send_early(&mut self, id: OpId, out: &mut Vec<Action>) {
        let Some(view) = &self.view else { return };
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        let Some(next) = view.successor.filter(|next| !next.syncing) else {
            return;
        };
        let whole = op.received.as_ref().is_some_and(|r| r.replace);
        let writes = matches!(op.update.kind, UpdateKind::Write { .. });
        if view.state != PublicState::Serving || whole || !writes {
            return;
        }
        self.last_sequence += 1;
        op.attempt += 1;
        let sent = SentEarly {
            sequence: self.last_sequence,
            attempt: op.attempt,
            chain_version: view.version,
            confirming: false,
            refused: false,
        };
        op.early = Some(sent);
        let forward = Forward {
            early: true,
            ..op.forward()
        };
        out.push(Action::Send {
            op: id,
            attempt: sent.attempt,
            to: next.target,
            chain_version: view.version,
            message: Message::Forward(forward),
        });
    }

    /// Tells the successor that what it holds of `id` may be committed; `false`: it does not hold it.
    pub(super) fn send_confirm(
        &mut self,
        id: OpId,
        next: Successor,
        chain_version: ChainVersion,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(op) = self.ops.get_mut(&id) else {
            return true;
        };
        let key = op.update.key;
        let usable = |sent: &&mut SentEarly| !sent.refused && sent.chain_version == chain_version;
        let Some(sent) = op.early.as_mut().filter(usable) else {
            return false;
        };
        sent.confirming = true;
        let sequence = sent.sequence;
        let message = Message::Confirm(Sent { key, sequence });
        self.tell(id, next, chain_version, message, out);
        true
    }

    /// Refuses what comes early after it was settled. Of what was sent early and comes in the usual way, notes
    /// that it is.
    pub(super) fn in_time(&mut self, op: &Op) -> Result<()> {
        let Some(received) = op.received.as_ref().filter(|r| r.sequence > 0) else {
            return Ok(());
        };
        if !received.early {
            self.settled = self.settled.max(received.sequence);
        } else if received.sequence <= self.settled && !mutated!(self, TakeSettled) {
            return Err(not_held(op.update.key));
        }
        Ok(())
    }

    /// See [`Message::Confirm`].
    pub(super) fn confirm(
        &mut self,
        request: RequestId,
        chain_version: ChainVersion,
        sent: Sent,
        lease: bool,
        out: &mut Vec<Action>,
    ) {
        let held = self.settle(chain_version, sent, lease);
        let id = match held.and_then(|id| id.ok_or_else(|| not_held(sent.key))) {
            Ok(id) => id,
            Err(error) => return answer(&[request], Err(error), out),
        };
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        op.waiters.push(request);
        op.confirmed = op.undone.is_none();
        if op.confirmed && op.phase == Phase::Held {
            self.dispatch(id, lease, out);
        }
    }

    /// See [`Message::Withdraw`].
    pub(super) fn withdraw(
        &mut self,
        request: RequestId,
        chain_version: ChainVersion,
        sent: Sent,
        lease: bool,
        out: &mut Vec<Action>,
    ) {
        let id = match self.settle(chain_version, sent, lease) {
            Ok(Some(id)) => id,
            Ok(None) => return answer(&[request], Ok(Outcome::nothing(chain_version)), out),
            Err(error) => return answer(&[request], Err(error), out),
        };
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        if op.confirmed {
            // A duplicate from before: the sender has nothing to withdraw any more.
            let what = format!("chunk {} was confirmed before it was withdrawn", sent.key);
            let error = Error::new(ErrorCode::ReplicaMismatch, what);
            return answer(&[request], Err(error), out);
        }
        op.withdrawals.push(request);
        self.supersede(id, not_held(sent.key), lease, out);
    }

    /// The work that came as `sent`, which from now on is settled: what comes early up to its number is late.
    fn settle(
        &mut self,
        chain_version: ChainVersion,
        sent: Sent,
        lease: bool,
    ) -> Result<Option<OpId>> {
        if let Err(error) = self.check_serving(chain_version, lease) {
            self.refused += 1;
            return Err(error);
        }
        self.settled = self.settled.max(sent.sequence);
        let is = |op: &Op| {
            op.came_early() == Some(sent.sequence) && op.chain_version == chain_version && !op.dead
        };
        let mut queue = self.chunks.get(&sent.key).into_iter().flatten().copied();
        Ok(queue.find(|id| self.ops.get(id).is_some_and(is)))
    }

    /// `id`, at the front of its chunk, may be held: it goes on if it is confirmed. If the predecessor has
    /// gone on to something else it ends, and so does not stand in the way of that.
    pub(super) fn settle_held(&mut self, id: OpId, lease: bool, out: &mut Vec<Action>) {
        let Some(op) = self.ops.get(&id).filter(|op| op.phase == Phase::Held) else {
            return;
        };
        if op.confirmed {
            return self.dispatch(id, lease, out);
        }
        let key = op.update.key;
        let of_predecessor = |id: &OpId| {
            let op = self.ops.get(id);
            op.is_some_and(|op| op.source == Source::Predecessor)
        };
        let mut queue = self.chunks.get(&key).into_iter().flatten().copied().skip(1);
        let Some(next) = queue.find(of_predecessor) else {
            return;
        };
        let behind = &self.ops[&next];
        if behind.came_early() == op.came_early() {
            return self.finish(next, Err(not_held(key)), lease, out);
        }
        if !behind.is_same_in_order(op) {
            return self.give_up(id, not_held(key), out);
        }
        // The change came again in the usual way: it is durable at the predecessor.
        let Some(again) = self.ops.remove(&next) else {
            return;
        };
        if let Some(queue) = self.chunks.get_mut(&key) {
            queue.retain(|&other| other != next);
        }
        if let Some(op) = self.ops.get_mut(&id) {
            op.waiters.extend(again.waiters);
            op.confirmed = true;
        }
        self.dispatch(id, lease, out);
    }

    /// The chain has changed: what is held for its predecessor to confirm is undone.
    pub(super) fn drop_unconfirmed(&mut self, lease: bool, out: &mut Vec<Action>) {
        if mutated!(self, KeepHeldAcrossChains) {
            return;
        }
        let unconfirmed =
            |op: &Op| op.came_early().is_some() && !op.confirmed && !op.dead && op.undone.is_none();
        let mut ids: Vec<_> = self
            .ops
            .iter()
            .filter(|(_, op)| unconfirmed(op))
            .map(|(&id, _)| id)
            .collect();
        ids.sort_unstable();
        for id in ids {
            let what = "the chain changed before this was durable at the predecessor";
            let error = Error::new(ErrorCode::StaleChainVersion, what);
            self.supersede(id, error, lease, out);
        }
    }

    /// Ends what came early and is not confirmed, as soon as the engine allows.
    fn supersede(&mut self, id: OpId, error: Error, lease: bool, out: &mut Vec<Action>) {
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        match op.phase {
            Phase::Queued => self.finish(id, Err(error), lease, out),
            Phase::Held => self.give_up(id, error, out),
            Phase::Loading | Phase::Preparing if op.undone.is_none() => op.undone = Some(error),
            // It is being undone already.
            _ => {}
        }
    }

    /// Undoes what is pending here, then below.
    pub(super) fn give_up(&mut self, id: OpId, error: Error, out: &mut Vec<Action>) {
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        op.undone.get_or_insert(error);
        op.phase = Phase::Aborting;
        out.push(Action::Abort {
            op: id,
            key: op.update.key,
            version: op.version,
        });
    }

    /// Nothing of `id` is stored here (any more): ends it with `error`, or the reason it has already, once
    /// nothing is stored below either.
    pub(super) fn take_back(&mut self, id: OpId, error: Error, lease: bool, out: &mut Vec<Action>) {
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        let error = op.undone.get_or_insert(error).clone();
        let view = self.view.as_ref();
        let next = view.and_then(|v| Some((v.version, v.successor.filter(|s| !s.syncing)?)));
        let (Some(sent), Some((chain_version, next))) = (op.early, next) else {
            return self.finish(id, Err(error), lease, out);
        };
        if mutated!(self, ForgetWithdraw) {
            return self.finish(id, Err(error), lease, out);
        }
        let key = op.update.key;
        let sequence = sent.sequence;
        let message = Message::Withdraw(Sent { key, sequence });
        self.tell(id, next, chain_version, message, out);
    }
}

fn not_held(key: ChunkKey) -> Error {
    let what = format!("chunk {key}: what was sent early is not held here");
    Error::new(ErrorCode::MissingVersion, what)
}

impl Op {
    /// The predecessor's number, of what came before it was durable there.
    pub(super) fn came_early(&self) -> Option<u64> {
        let received = self.received.as_ref().filter(|r| r.early)?;
        Some(received.sequence)
    }

    /// Whether this is the change of `held`, sent in the usual way.
    fn is_same_in_order(&self, held: &Self) -> bool {
        let usual = |r: &&super::Received| !r.early && !r.replace;
        let number = self.received.as_ref().filter(usual).map(|r| r.sequence);
        number == held.came_early()
    }
}
