//! The locks of the fake metadata server: a list, a queue, tenures and restarts; no deadlocks, no limits.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use emberfs_proto::locks::{Range, Ranges, Span};
use emberfs_proto::pb::LockState;
use emberfs_proto::{Error, ErrorCode, Result, pb};

use super::meta::FakeMeta;

/// How often a held request looks again.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Client and owner.
type Who = (Bytes, pb::LockOwner);

#[derive(Default)]
pub(crate) struct FakeLocks {
    /// (client, inode, space, owner).
    held: HashMap<(Bytes, u64, i32, u64), Ranges>,
    queue: Vec<(Who, u64, Range)>,
    /// Newest ticket per owner.
    newest: HashMap<(Bytes, u64, i32, u64), u64>,
    /// Tickets of a client below this one are those of an earlier process.
    floors: HashMap<Bytes, u64>,
    tenures: HashMap<Bytes, u64>,
    drawn: u64,
    /// Clients that have attached since the last restart; `None`: there was none.
    known: Option<HashSet<Bytes>>,
    /// Clients that may still reclaim.
    awaited: HashSet<Bytes>,
    /// Requests, by verb.
    pub(crate) calls: Vec<&'static str>,
}

fn key((client, owner): &Who) -> (Bytes, u64, i32, u64) {
    (client.clone(), owner.inode, owner.space, owner.owner)
}

fn client(caller: Option<&pb::Caller>) -> Bytes {
    caller.unwrap().client.clone()
}

fn reply(state: LockState) -> pb::LockReply {
    pb::LockReply {
        state: state.into(),
    }
}

impl FakeLocks {
    /// Forgets everything but what its store would say.
    pub(crate) fn restart(&mut self) {
        *self = Self {
            awaited: self.tenures.keys().cloned().collect(),
            tenures: std::mem::take(&mut self.tenures),
            drawn: self.drawn,
            known: Some(HashSet::new()),
            calls: std::mem::take(&mut self.calls),
            ..Self::default()
        };
    }

    /// Gives up the locks of all clients, as if they had been silent.
    pub(crate) fn expire(&mut self) {
        self.restart();
        self.tenures.clear();
        self.awaited.clear();
    }

    pub(crate) fn attached(&mut self, caller: Option<&pb::Caller>) {
        if let Some(known) = &mut self.known {
            known.insert(client(caller));
        }
    }

    /// Whether the client must attach again.
    pub(crate) fn forgot(&self, caller: Option<&pb::Caller>) -> bool {
        let known = self.known.as_ref();
        known.is_some_and(|known| !known.contains(&client(caller)))
    }

    /// All ranges of an owner number, of whatever client and file.
    pub(crate) fn of(&self, number: u64) -> Vec<Range> {
        let held = self.held.iter().filter(|(key, _)| key.3 == number);
        held.flat_map(|(_, ranges)| ranges.iter().copied())
            .collect()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    fn check(&self, who: &Who, tenure: u64) -> Result<()> {
        if self.tenures.get(&who.0) != Some(&tenure)
            || self.known.as_ref().is_some_and(|k| !k.contains(&who.0))
        {
            return Err(Error::new(ErrorCode::NoTenure, "attach and reclaim"));
        }
        Ok(())
    }

    fn admit(&mut self, who: &Who, ticket: u64) -> bool {
        let newest = self.newest.entry(key(who)).or_default();
        let floor = self.floors.get(&who.0).copied().unwrap_or_default();
        let fresh = ticket >= floor.max(*newest);
        *newest = ticket.max(*newest);
        fresh
    }

    fn conflict(&self, who: &Who, range: &Range) -> Option<(Bytes, Range)> {
        let (me, file) = (key(who), (who.1.inode, who.1.space));
        let others = self.held.iter();
        others
            .filter(|(key, _)| **key != me && (key.1, key.2) == file)
            .find_map(|(key, ranges)| Some((key.0.clone(), ranges.conflict(range)?)))
    }

    fn lock(&mut self, request: &pb::LockRequest) -> Result<LockState> {
        let who = (
            client(request.caller.as_ref()),
            request.owner.unwrap_or_default(),
        );
        self.check(&who, request.tenure)?;
        if !self.awaited.is_empty() {
            return Err(Error::new(ErrorCode::Unavailable, "others reclaim"));
        }
        let range = Range::try_from(&request.range.unwrap_or_default())?;
        let mut queue = self.queue.iter();
        let place = queue.position(|(w, ticket, _)| *w == who && *ticket == request.ticket);
        if place.is_none() && !self.admit(&who, request.ticket) {
            return Ok(LockState::Superseded);
        }
        let before = &self.queue[..place.unwrap_or(self.queue.len())];
        let behind = before
            .iter()
            .any(|(w, _, r)| *w != who && w.1.inode == who.1.inode && r.conflicts(&range));
        if !behind && self.conflict(&who, &range).is_none() {
            if let Some(place) = place {
                self.queue.remove(place);
            }
            self.held.entry(key(&who)).or_default().set(range);
            return Ok(LockState::Granted);
        }
        if !request.wait {
            return Ok(LockState::Blocked);
        }
        if place.is_none() {
            self.queue.push((who, request.ticket, range));
        }
        Ok(LockState::Waiting)
    }

    fn weaken(
        &mut self,
        who: &Who,
        (tenure, ticket): (u64, u64),
        span: Span,
        keep: &Ranges,
    ) -> Result<LockState> {
        self.check(who, tenure)?;
        if !self.admit(who, ticket) {
            return Ok(LockState::Superseded);
        }
        self.held.entry(key(who)).or_default().weaken(span, keep);
        Ok(LockState::Granted)
    }

    /// One file per page.
    fn resume(&mut self, request: &pb::ResumeLocksRequest) -> pb::ResumeLocksReply {
        let me = client(request.caller.as_ref());
        self.floors.insert(me.clone(), request.ticket);
        self.queue
            .retain(|(w, ticket, _)| w.0 != me || *ticket >= request.ticket);
        let mut held: Vec<_> = self.held.iter().collect();
        held.retain(|(key, ranges)| key.0 == me && key.1 > request.after && !ranges.is_empty());
        held.sort_by_key(|(key, _)| (key.1, key.2, key.3));
        let inode = held.first().map(|(key, _)| key.1);
        let end = held.last().map(|(key, _)| key.1) == inode;
        held.retain(|(key, _)| Some(key.1) == inode);
        let owners = held.into_iter().map(|(key, ranges)| pb::OwnerLocks {
            owner: Some(pb::LockOwner {
                inode: key.1,
                space: key.2,
                owner: key.3,
            }),
            ticket: 0,
            ranges: ranges.iter().copied().map(Into::into).collect(),
        });
        let tenure = self.tenures.get(&me).copied().unwrap_or_default();
        pb::ResumeLocksReply {
            tenure,
            owners: owners.collect(),
            end,
        }
    }

    fn reclaim(&mut self, request: &pb::ReclaimLocksRequest) -> Result<pb::ReclaimLocksReply> {
        let me = client(request.caller.as_ref());
        if request.tenure == 0 {
            self.drawn += 1;
            let tenure = *self.tenures.entry(me).or_insert(self.drawn);
            return Ok(pb::ReclaimLocksReply {
                tenure,
                states: Vec::new(),
            });
        }
        if self.tenures.get(&me) != Some(&request.tenure) {
            return Err(Error::new(ErrorCode::LockLost, "tenure ended"));
        }
        let mut states = Vec::new();
        for owned in &request.owners {
            let (owner, ranges) = owned.parse()?;
            let who = (me.clone(), *owner);
            let state = if !self.admit(&who, owned.ticket) {
                LockState::Superseded
            } else if self.awaited.contains(&me)
                && ranges.iter().all(|r| self.conflict(&who, r).is_none())
            {
                self.held.insert(key(&who), ranges);
                LockState::Granted
            } else {
                let held = self.held.get(&key(&who)).cloned().unwrap_or_default();
                if ranges.iter().all(|range| held.covers(range)) {
                    LockState::Granted
                } else {
                    LockState::Lost
                }
            };
            states.push(state.into());
        }
        if request.done {
            self.awaited.remove(&me);
        }
        if request.leave {
            self.tenures.remove(&me);
            self.held.retain(|key, _| key.0 != me);
        }
        let tenure = request.tenure;
        Ok(pb::ReclaimLocksReply { tenure, states })
    }
}

impl FakeMeta {
    /// Restarts the lock server: clients learn of it by their next keep-alive, or when they lock.
    pub(crate) fn restart_locks(&self) {
        self.state.lock().locks.restart();
    }

    /// Carries a request out, with the faults that were asked for.
    fn locking<T>(
        &self,
        verb: &'static str,
        caller: Option<&pb::Caller>,
        run: impl FnOnce(&mut FakeLocks) -> Result<T>,
    ) -> Result<T> {
        let mut state = self.state.lock();
        state.check_instance(caller)?;
        state.locks.calls.push(verb);
        let fault = state.take_fault(verb);
        if let Some((code, false)) = fault {
            return Err(Error::new(code, "told to fail"));
        }
        let done = run(&mut state.locks);
        match fault {
            Some((code, true)) => Err(Error::new(code, "told to lose the answer")),
            _ => done,
        }
    }

    pub(super) async fn fake_lock(&self, request: pb::LockRequest) -> Result<pb::LockReply> {
        let end = Instant::now() + Duration::from_millis(request.wait_ms.into());
        let mut state = self.locking("lock", request.caller.as_ref(), |locks| {
            locks.lock(&request)
        })?;
        while state == LockState::Waiting && Instant::now() < end {
            tokio::time::sleep(LOOK_EVERY).await;
            state = self.state.lock().locks.lock(&request)?;
        }
        Ok(reply(state))
    }

    pub(super) fn fake_unlock(&self, request: &pb::UnlockRequest) -> Result<pb::LockReply> {
        let who = (
            client(request.caller.as_ref()),
            request.owner.unwrap_or_default(),
        );
        let span = Span::new(request.start, request.end)?;
        let claim = (request.tenure, request.ticket);
        let state = self.locking("unlock", request.caller.as_ref(), |locks| {
            locks.weaken(&who, claim, span, &Ranges::default())
        });
        state.map(reply)
    }

    pub(super) fn fake_cancel(&self, request: &pb::CancelLockRequest) -> Result<pb::LockReply> {
        let who = (
            client(request.caller.as_ref()),
            request.owner.unwrap_or_default(),
        );
        let span = Span::new(request.start, request.end)?;
        let keep: Ranges = request
            .keep
            .iter()
            .map(Range::try_from)
            .collect::<Result<_>>()?;
        let claim = (request.tenure, request.ticket);
        let state = self.locking("cancel_lock", request.caller.as_ref(), |locks| {
            locks
                .queue
                .retain(|(w, ticket, _)| *w != who || *ticket != request.waiter);
            locks.weaken(&who, claim, span, &keep)
        });
        state.map(reply)
    }

    pub(super) fn fake_test(&self, request: &pb::TestLockRequest) -> Result<pb::TestLockReply> {
        let who = (
            client(request.caller.as_ref()),
            request.owner.unwrap_or_default(),
        );
        let range = Range::try_from(&request.range.unwrap_or_default())?;
        let found = self.locking("test_lock", request.caller.as_ref(), |locks| {
            Ok(locks.conflict(&who, &range))
        })?;
        let (client, conflict) = found.unzip();
        Ok(pb::TestLockReply {
            conflict: conflict.map(Into::into),
            client: client.unwrap_or_default(),
        })
    }

    pub(super) fn fake_reclaim(
        &self,
        request: &pb::ReclaimLocksRequest,
    ) -> Result<pb::ReclaimLocksReply> {
        self.locking("reclaim_locks", request.caller.as_ref(), |locks| {
            locks.reclaim(request)
        })
    }

    pub(super) fn fake_resume(
        &self,
        request: &pb::ResumeLocksRequest,
    ) -> Result<pb::ResumeLocksReply> {
        self.locking("resume_locks", request.caller.as_ref(), |locks| {
            Ok(locks.resume(request))
        })
    }
}
