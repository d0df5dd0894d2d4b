//! Requests about locks to the metadata server, and how they are taken back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use emberfs_proto::locks::{Range, Ranges, Span};
use emberfs_proto::wire::metadata::MetadataCaller;
use emberfs_proto::{Error, ErrorCode, Result, pb};
use tokio_util::sync::CancellationToken;

use super::book::{Key, Owner};
use super::stopped;
use crate::Creds;
use crate::core::Core;
use crate::meta_rpc::Effect;

/// Longest time for which the server is asked to hold a request; well below the limit of one attempt.
const WAIT: Duration = Duration::from_secs(20);

/// What a request may have left at the server that nobody knows of.
#[derive(Default)]
pub(super) struct Owed {
    /// Ticket of the last request, if its outcome is not known.
    ticket: Option<u64>,
    /// A lock was granted and not believed: a part of it may be left.
    doubtful: bool,
    /// The ticket of the lock that was granted, and what was held before.
    granted: Option<(u64, Ranges)>,
}

impl Owed {
    pub(super) fn asked(&mut self, ticket: u64) {
        self.ticket = Some(ticket);
    }

    /// The last request was refused.
    pub(super) fn refused(&mut self) {
        if !self.doubtful {
            self.ticket = None;
        }
    }

    pub(super) fn doubtful(&mut self) {
        self.doubtful = true;
    }

    pub(super) fn granted(&mut self, before: Ranges) {
        self.granted = self.ticket.take().map(|ticket| (ticket, before));
    }

    /// Nobody has heard of the outcome: a lock that was granted is not wanted.
    pub(super) async fn undo(&mut self, owner: &Owner, span: Span) {
        if let Some((ticket, before)) = self.granted.take() {
            let _turn = owner.turn.lock().await;
            owner.undo(span, &before);
            self.ticket = Some(ticket);
        }
    }
}

impl Core {
    /// For how long the server is asked to hold a request, milliseconds: half of the time after which a
    /// silent server counts as failing.
    pub(super) fn wait_ms(&self) -> u32 {
        let limit = self.config.io_timeout;
        let wait = limit.map_or(WAIT, |limit| WAIT.min(limit / 2));
        wait.as_millis().max(1) as u32
    }

    /// The tenure under which this client locks; begins one if there is none.
    async fn tenure(&self) -> Result<u64> {
        let known = || self.locks.tenure.load(Ordering::Acquire);
        if known() != 0 {
            return Ok(known());
        }
        let _one = self.locks.beginning.lock().await;
        if known() != 0 {
            return Ok(known());
        }
        let send = |server: MetadataCaller, caller| {
            let request = pb::ReclaimLocksRequest {
                caller: Some(caller),
                ..pb::ReclaimLocksRequest::default()
            };
            async move { self.heed(server.reclaim_locks(request).await) }
        };
        let me = Creds::default();
        let reply = self.meta.run("reclaim_locks", &me, Effect::Reads, send);
        let tenure = reply.await?.tenure;
        self.locks.tenure.store(tenure, Ordering::Release);
        Ok(tenure)
    }

    /// A server that does not know this client must be told of it at once.
    pub(super) fn heed<T>(&self, reply: Result<T>) -> Result<T> {
        reply.inspect_err(|error| {
            if error.code == ErrorCode::NoTenure {
                self.locks.owed.store(true, Ordering::Release);
                self.locks.doubt.notify_one();
            }
        })
    }

    /// Asks for a lock. `wait_ms`: takes a place in the queue and waits so long there. Ends when nobody waits
    /// for the outcome any more, without knowing it.
    pub(super) async fn ask_lock(
        &self,
        key: Key,
        ticket: u64,
        range: &Range,
        wait_ms: Option<u32>,
        gone: &CancellationToken,
    ) -> Result<pb::LockState> {
        let send = |server: MetadataCaller, caller| async move {
            let request = pb::LockRequest {
                caller: Some(caller),
                owner: Some(key.into()),
                tenure: self.tenure().await?,
                ticket,
                range: Some((*range).into()),
                wait: wait_ms.is_some(),
                wait_ms: wait_ms.unwrap_or(0),
            };
            self.heed(server.lock(request).await)
        };
        let me = Creds::default();
        tokio::select! {
            biased;
            () = gone.cancelled() => {
                let what = "nobody waits for the lock any more";
                Err(Error::new(ErrorCode::Unavailable, what))
            }
            () = self.stop.cancelled() => Err(stopped()),
            reply = self.meta.run("lock", &me, Effect::Reads, send) => Ok(reply?.state()),
        }
    }

    /// Unlocks.
    pub(super) async fn unlock(&self, owner: &Arc<Owner>, span: Span) -> Result<()> {
        let _turn = owner.turn.lock().await;
        owner.forget_lost(span);
        self.unlock_in_turn(owner, span).await
    }

    /// Unlocks, for a caller that has the owner's turn.
    pub(super) async fn unlock_in_turn(&self, owner: &Arc<Owner>, span: Span) -> Result<()> {
        while owner.may_hold(span) {
            let seen = owner.bump();
            let ticket = self.locks.ticket();
            let send = |server: MetadataCaller, caller| async move {
                let request = pb::UnlockRequest {
                    caller: Some(caller),
                    owner: Some(owner.key.into()),
                    tenure: match self.locks.tenure.load(Ordering::Acquire) {
                        0 => return Ok(nothing_held()),
                        tenure => tenure,
                    },
                    ticket,
                    start: span.start,
                    end: span.end,
                };
                self.heed(server.unlock(request).await)
            };
            let me = Creds::default();
            let reply = self.meta.run("unlock", &me, Effect::Reads, send).await?;
            if reply.state() == pb::LockState::Granted && owner.clear(seen, span) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Takes back what a request of `span` may have left at the server, down to what this client knows that it
    /// holds.
    pub(super) async fn take_back(&self, owner: &Arc<Owner>, span: Span, owed: &Owed) {
        let Some(waiter) = owed.ticket else { return };
        let _turn = owner.turn.lock().await;
        loop {
            let seen = owner.bump();
            let ticket = self.locks.ticket();
            let keep: Vec<pb::LockRange> = owner.held(span).into_iter().map(Into::into).collect();
            let send = |server: MetadataCaller, caller| {
                let request = pb::CancelLockRequest {
                    caller: Some(caller),
                    owner: Some(owner.key.into()),
                    tenure: self.locks.tenure.load(Ordering::Acquire),
                    ticket,
                    waiter,
                    start: span.start,
                    end: span.end,
                    keep: keep.clone(),
                };
                async move {
                    if request.tenure == 0 {
                        return Ok(nothing_held());
                    }
                    self.heed(server.cancel_lock(request).await)
                }
            };
            let (me, limit) = (Creds::default(), Some(self.lease));
            let meta = &self.meta;
            let reply = meta.run_within(limit, "cancel_lock", &me, Effect::Reads, send);
            match reply.await {
                Ok(reply) if reply.state() != pb::LockState::Granted => {}
                // A reclaim in between may have told the server of what is given up here.
                Ok(_) if owner.changes() != seen => {}
                Ok(_) => return,
                Err(error) => {
                    let Key { inode, number, .. } = owner.key;
                    tracing::warn!(%inode, owner = number, %error, "a lock request could not be taken back; closing the file will");
                    owner.set_unsure();
                    return;
                }
            }
        }
    }
}

/// The answer of a server under whose memory this client has no locks.
fn nothing_held() -> pb::LockReply {
    pb::LockReply {
        state: pb::LockState::Granted.into(),
    }
}
