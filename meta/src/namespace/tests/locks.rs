//! Advisory locks as requests see them, with leases and restarts.

use std::sync::Arc;
use std::time::Duration;

use emberfs_proto::ErrorCode::*;
use emberfs_proto::pb::LockState;
use emberfs_proto::{Result, pb};

use super::fixture::*;

const LONG: Duration = Duration::from_mins(1);

/// A client of the locks.
#[derive(Clone, Copy)]
struct Locker {
    id: u128,
    tenure: u64,
}

impl Locker {
    async fn attach(f: &Fixture, id: u128) -> Self {
        let request = pb::AttachRequest {
            caller: f.client(id, 0),
            protocol_version: 1,
            host: format!("host:{id}"),
            ..Default::default()
        };
        f.ns.attach(request).await.unwrap();
        Self { id, tenure: 0 }
    }

    /// Attaches and begins a tenure.
    async fn new(f: &Fixture, id: u128) -> Self {
        let this = Self::attach(f, id).await;
        let tenure = this.say(f, &[], false).await.unwrap().tenure;
        Self { tenure, ..this }
    }

    fn owner(inode: u64) -> pb::LockOwner {
        pb::LockOwner {
            inode,
            space: pb::LockSpace::Posix.into(),
            owner: 1,
        }
    }

    fn range() -> pb::LockRange {
        pb::LockRange {
            start: 0,
            end: 99,
            kind: pb::LockKind::Exclusive.into(),
            pid: 4,
        }
    }

    fn request(&self, f: &Fixture, inode: u64, wait: Option<u32>) -> pb::LockRequest {
        let caller = f.client(self.id, 0);
        // Tickets grow as request numbers do.
        let ticket = caller.as_ref().unwrap().request;
        pb::LockRequest {
            caller,
            owner: Some(Self::owner(inode)),
            tenure: self.tenure,
            ticket,
            range: Some(Self::range()),
            wait: wait.is_some(),
            wait_ms: wait.unwrap_or(0),
        }
    }

    async fn lock(&self, f: &Fixture, inode: u64) -> Result<LockState> {
        let request = self.request(f, inode, None);
        Ok(f.ns.lock(request).await?.state())
    }

    async fn unlock(&self, f: &Fixture, inode: u64) -> Result<LockState> {
        let caller = f.client(self.id, 0);
        let ticket = caller.as_ref().unwrap().request;
        let request = pb::UnlockRequest {
            caller,
            owner: Some(Self::owner(inode)),
            tenure: self.tenure,
            ticket,
            start: 0,
            end: u64::MAX,
        };
        Ok(f.ns.unlock(request).await?.state())
    }

    async fn say(&self, f: &Fixture, inodes: &[u64], done: bool) -> Result<pb::ReclaimLocksReply> {
        let caller = f.client(self.id, 0);
        let ticket = caller.as_ref().unwrap().request;
        let owners = inodes.iter().map(|&inode| pb::OwnerLocks {
            owner: Some(Self::owner(inode)),
            ticket,
            ranges: vec![Self::range()],
        });
        let request = pb::ReclaimLocksRequest {
            caller,
            tenure: self.tenure,
            owners: owners.collect(),
            done,
            leave: false,
        };
        f.ns.reclaim_locks(request).await
    }

    /// Attaches again, and reclaims a lock on the file.
    async fn reclaim(&self, f: &Fixture, inode: u64) -> Result<LockState> {
        Self::attach(f, self.id).await;
        let reply = self.say(f, &[inode], true).await?;
        Ok(reply.states().next().unwrap())
    }
}

async fn all(f: &Fixture) -> pb::ListLocksReply {
    let request = pb::ListLocksRequest::default();
    f.ns.list_locks(request).await.unwrap()
}

#[tokio::test]
async fn locks_are_for_attached_clients_and_files_that_exist() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    let stranger = Locker { id: 9, tenure: 0 };
    assert_eq!(code(stranger.say(&f, &[], false).await), NoTenure);
    assert_eq!(code(stranger.lock(&f, file).await), NoTenure);
    let a = Locker::new(&f, 2).await;
    assert_eq!(a.lock(&f, file).await, Ok(LockState::Granted));
    assert_eq!(code(a.lock(&f, 999).await), Stale);
    let nothing = pb::LockRequest {
        range: None,
        ..a.request(&f, file, None)
    };
    assert_eq!(code(f.ns.lock(nothing).await), InvalidArgument);
    let again = Locker { tenure: 0, ..a };
    let tenure = again.say(&f, &[], false).await.unwrap().tenure;
    assert_eq!(tenure, a.tenure, "one tenure, however often it is begun");
}

#[tokio::test]
async fn who_is_in_the_way_is_told_and_listed() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    let (a, b) = (Locker::new(&f, 2).await, Locker::new(&f, 3).await);
    a.lock(&f, file).await.unwrap();
    assert_eq!(b.lock(&f, file).await, Ok(LockState::Blocked));
    let test = |locker: &Locker| pb::TestLockRequest {
        caller: f.client(locker.id, 0),
        owner: Some(Locker::owner(file)),
        range: Some(Locker::range()),
    };
    let found = f.ns.test_lock(test(&b)).await.unwrap();
    assert_eq!(found.conflict, Some(Locker::range()));
    assert_eq!(found.client, f.client(2, 0).unwrap().client);
    assert_eq!(f.ns.test_lock(test(&a)).await.unwrap().conflict, None);
    f.ns.lock(b.request(&f, file, Some(0))).await.unwrap();
    let list = all(&f).await;
    assert!(list.end && !list.grace);
    let list: Vec<_> = list
        .locks
        .iter()
        .map(|lock| (lock.host.as_str(), lock.waiting))
        .collect();
    assert_eq!(list, [("host:2", false), ("host:3", true)]);
}

#[tokio::test]
async fn a_waiting_request_gets_the_lock_at_unlock_and_holds_no_permit() {
    let f = Arc::new(Fixture::new());
    let file = f.file(ROOT, "a").await.inode;
    let (a, b) = (Locker::new(&f, 2).await, Locker::new(&f, 3).await);
    a.lock(&f, file).await.unwrap();
    let waits: Vec<_> = (0..400)
        .map(|number| {
            let f = f.clone();
            tokio::spawn(async move {
                loop {
                    let mut request = b.request(&f, file, Some(20_000));
                    request.owner.as_mut().unwrap().owner = number;
                    let state = f.ns.lock(request).await.unwrap().state();
                    // Tickets of owners that share a number may overtake each other.
                    if state != LockState::Superseded {
                        return state;
                    }
                }
            })
        })
        .collect();
    while all(&f).await.locks.len() < 401 {
        tokio::task::yield_now().await;
    }
    // More wait than transactions may run at once.
    f.lookup(ROOT, "a").await.unwrap();
    assert_eq!(a.unlock(&f, file).await, Ok(LockState::Granted));
    let locks = all(&f).await.locks;
    assert_eq!(locks.iter().filter(|lock| !lock.waiting).count(), 1);
    let first = locks[0].owner.unwrap().owner as usize;
    let mut waits = waits;
    let granted = waits.swap_remove(first).await.unwrap();
    assert_eq!(granted, LockState::Granted);
    for wait in waits {
        wait.abort();
    }
}

#[tokio::test]
async fn a_silent_client_loses_its_locks_to_those_who_wait() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    let (a, b) = (Locker::new(&f, 2).await, Locker::new(&f, 3).await);
    a.lock(&f, file).await.unwrap();
    let wait = {
        let (ns, request) = (f.ns.clone(), b.request(&f, file, Some(20_000)));
        tokio::spawn(async move { ns.lock(request).await })
    };
    while all(&f).await.locks.len() < 2 {
        tokio::task::yield_now().await;
    }
    f.expire_after(Duration::from_secs(20)).await;
    assert_eq!(all(&f).await.locks.len(), 2, "the lease is not over");
    // Only the first is silent: the other is back before the sweep looks for tenures.
    let end = std::time::Instant::now() + LONG;
    f.ns.core.sessions.expire(end);
    Locker::attach(&f, b.id).await;
    f.ns.expire_locks(end).await.unwrap();
    let granted = wait.await.unwrap().unwrap();
    assert_eq!(granted.state(), LockState::Granted);
    assert_eq!(code(a.lock(&f, file).await), NoTenure);
    // Its return does not bring the lock back, now or after a restart.
    assert_eq!(code(a.reclaim(&f, file).await), LockLost);
    let f = f.restart();
    assert_eq!(code(a.reclaim(&f, file).await), LockLost);
    assert_eq!(b.reclaim(&f, file).await, Ok(LockState::Granted));
}

#[tokio::test]
async fn after_a_restart_nobody_gets_a_lock_that_is_not_reclaimed_yet() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    let (a, b) = (Locker::new(&f, 2).await, Locker::new(&f, 3).await);
    a.lock(&f, file).await.unwrap();
    let f = f.restart();
    assert_eq!(code(a.unlock(&f, file).await), NoTenure, "not attached");
    assert!(all(&f).await.grace);
    b.reclaim(&f, 0).await.unwrap();
    b.unlock(&f, 0).await.unwrap();
    assert_eq!(code(b.lock(&f, file).await), Unavailable);
    assert_eq!(a.reclaim(&f, file).await, Ok(LockState::Granted));
    assert!(!all(&f).await.grace, "all are back");
    assert_eq!(b.lock(&f, file).await, Ok(LockState::Blocked));
    a.unlock(&f, file).await.unwrap();
    assert_eq!(b.lock(&f, file).await, Ok(LockState::Granted));
    assert_eq!(a.reclaim(&f, file).await, Ok(LockState::Lost));
}

#[tokio::test]
async fn two_restarts_in_a_row_lose_nothing() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    let a = Locker::new(&f, 2).await;
    a.lock(&f, file).await.unwrap();
    let f = f.restart();
    Locker::attach(&f, a.id).await;
    let f = f.restart();
    assert_eq!(a.reclaim(&f, file).await, Ok(LockState::Granted));
}

#[tokio::test]
async fn the_grace_period_ends_with_the_lease_and_the_late_have_lost() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    let (a, b) = (Locker::new(&f, 2).await, Locker::new(&f, 3).await);
    a.lock(&f, file).await.unwrap();
    let f = f.restart();
    b.reclaim(&f, 0).await.unwrap();
    f.expire_after(Duration::from_secs(20)).await;
    assert!(all(&f).await.grace);
    f.expire_after(LONG).await;
    assert!(!all(&f).await.grace);
    assert_eq!(code(a.reclaim(&f, file).await), LockLost);
    let f = f.restart();
    assert_eq!(code(a.reclaim(&f, file).await), LockLost, "for good");
}

#[tokio::test]
async fn clients_that_never_lock_or_have_left_are_not_waited_for() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    Locker::attach(&f, 5).await;
    let a = Locker::new(&f, 2).await;
    a.lock(&f, file).await.unwrap();
    let leave = pb::ReclaimLocksRequest {
        caller: f.client(a.id, 0),
        tenure: a.tenure,
        leave: true,
        ..Default::default()
    };
    f.ns.reclaim_locks(leave).await.unwrap();
    assert!(all(&f).await.locks.is_empty());
    let f = f.restart();
    assert!(!all(&f).await.grace);
    let b = Locker::new(&f, 3).await;
    assert_eq!(b.lock(&f, file).await, Ok(LockState::Granted));
}

fn resume(client: &Locker, f: &Fixture) -> pb::ResumeLocksRequest {
    let caller = f.client(client.id, 0);
    let ticket = caller.as_ref().unwrap().request;
    pb::ResumeLocksRequest {
        caller,
        ticket,
        after: 0,
    }
}

#[tokio::test]
async fn a_later_process_is_told_what_its_client_holds_and_late_requests_are_refused() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    let other = f.file(ROOT, "b").await.inode;
    let (a, b) = (Locker::new(&f, 2).await, Locker::new(&f, 3).await);
    a.lock(&f, file).await.unwrap();
    b.lock(&f, other).await.unwrap();
    let waits = a.request(&f, other, Some(0));
    let waiting = f.ns.lock(waits.clone()).await.unwrap();
    assert_eq!(waiting.state(), LockState::Waiting);
    let late = a.request(&f, 1, None);

    let told = f.ns.resume_locks(resume(&a, &f)).await.unwrap();
    let held = pb::OwnerLocks {
        owner: Some(Locker::owner(file)),
        ticket: 0,
        ranges: vec![Locker::range()],
    };
    assert_eq!(
        (told.tenure, told.owners, told.end),
        (a.tenure, vec![held], true)
    );
    assert!(all(&f).await.locks.iter().all(|lock| !lock.waiting));
    for request in [waits, late] {
        let reply = f.ns.lock(request).await.unwrap();
        assert_eq!(reply.state(), LockState::Superseded);
    }
    assert_eq!(b.unlock(&f, other).await, Ok(LockState::Granted));
    assert_eq!(a.lock(&f, other).await, Ok(LockState::Granted));
    assert_eq!(a.unlock(&f, file).await, Ok(LockState::Granted));
    let fresh = Locker::attach(&f, 4).await;
    let nothing = f.ns.resume_locks(resume(&fresh, &f)).await.unwrap();
    assert_eq!((nothing.tenure, nothing.end), (0, true));
    let stranger = Locker { id: 9, tenure: 0 };
    assert_eq!(
        code(f.ns.resume_locks(resume(&stranger, &f)).await),
        NoTenure
    );
}

#[tokio::test]
async fn locks_that_only_the_earlier_process_knew_are_lost_with_a_restart_and_keep_nobody_waiting()
{
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    let (a, b) = (Locker::new(&f, 2).await, Locker::new(&f, 3).await);
    a.lock(&f, file).await.unwrap();
    let f = f.restart();
    let a = Locker {
        tenure: a.tenure,
        ..Locker::attach(&f, 2).await
    };
    b.reclaim(&f, file).await.unwrap();
    assert_eq!(code(b.lock(&f, file).await), Unavailable);
    assert_eq!(code(f.ns.resume_locks(resume(&a, &f)).await), LockLost);
    let told = f.ns.resume_locks(resume(&a, &f)).await.unwrap();
    assert_eq!((told.tenure, told.owners.len()), (a.tenure, 0));
    let again = Locker::new(&f, 3).await;
    assert_eq!(again.lock(&f, file).await, Ok(LockState::Granted));
}
