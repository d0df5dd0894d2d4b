//! Advisory locks across clients: flock, and fcntl locks of processes and of open file descriptions.
//!
//! The metadata server decides; it keeps locks in memory only. This client knows what it holds
//! ([`book`]), and after a restart of the server it reclaims that ([`reclaim`]).
//!
//! **Order.** One change of an owner's locks on a file is under way at a time, so that the list here is what the
//! server has. A request that waits does not count as under way: it may be granted while others are made. A grant
//! that comes after another change began is therefore not believed: the lock is asked for again, which an
//! owner that has it is told at once.
//!
//! **Nobody waits any more.** A call whose future is dropped, or that gave up, may be granted nevertheless. It
//! is taken back in the background: out of the queue, and down to what the list says ([`ask`]). That ends after a
//! lease: a server that was not reached for so long has given this client's locks up.
//!
//! **Lost locks.** Locks that could not be reclaimed are logged, and marked: the owner's further locks on that file
//! fail with [`ErrorCode::LockLost`] (EIO), because the program believes in a protection that was interrupted,
//! until it has unlocked or closed what it lost. Reads and writes are not refused: the locks are advisory.

mod ask;
mod book;
mod reclaim;
mod resume;

use std::sync::Arc;

use emberfs_proto::ids::InodeId;
use emberfs_proto::locks::{Hold, Range, Span};
use emberfs_proto::{Error, ErrorCode, Result, pb};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use self::ask::Owed;
pub(crate) use self::book::Book;
use self::book::{Key, Owner};
use crate::core::Core;
use crate::meta_rpc::rpc;
use crate::{Client, Creds};

pub use emberfs_proto::locks::LockSpace;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// A lock that others may share.
    Shared,
    /// A lock that nobody else may have.
    Exclusive,
    /// No lock.
    Unlock,
}

/// A lock that is wanted, or no longer wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRequest {
    /// flock and fcntl locks do not see each other.
    pub space: LockSpace,
    /// Whose lock: a number for a process or an open file description, unique on this client.
    pub owner: u64,
    /// The process, as others are told; 0: unknown.
    pub pid: u32,
    /// What kind.
    pub kind: LockKind,
    /// The first byte. flock locks are whole files, whatever this says.
    pub start: u64,
    /// The last byte, inclusive.
    pub end: u64,
}

/// A lock that is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockInfo {
    /// Shared or exclusive.
    pub kind: LockKind,
    /// The first byte.
    pub start: u64,
    /// The last byte, inclusive.
    pub end: u64,
    /// The process that holds it; 0 if that runs on another client.
    pub pid: u32,
}

impl LockRequest {
    /// The bytes, and how they are to be locked, if at all.
    fn parse(&self) -> Result<(Span, Option<Range>)> {
        let span = match self.space {
            LockSpace::Flock | LockSpace::Append => Span::WHOLE,
            LockSpace::Posix => Span::new(self.start, self.end)?,
        };
        let hold = match self.kind {
            LockKind::Shared => Hold::Shared,
            LockKind::Exclusive => Hold::Exclusive,
            LockKind::Unlock => return Ok((span, None)),
        };
        let pid = self.pid;
        Ok((span, Some(Range { span, hold, pid })))
    }
}

fn stopped() -> Error {
    let what = "the client was shut down while it waited for a lock";
    Error::new(ErrorCode::Unavailable, what)
}

impl Client {
    /// Locks or unlocks bytes of a file for an owner; what the owner held of them is replaced.
    ///
    /// If others are in the way: waits (`wait`), or fails with [`ErrorCode::LockHeld`] (EAGAIN). Other errors of
    /// their own: [`ErrorCode::Deadlock`] (EDEADLK, POSIX locks only), [`ErrorCode::TooManyLocks`] (ENOLCK),
    /// [`ErrorCode::Stale`] (the file is gone), [`ErrorCode::LockLost`] (EIO; see the module).
    ///
    /// A waiting call has no limit, but for one failure of the metadata server after another
    /// ([`crate::ClientConfig::io_timeout`]). Dropping the future takes the request back. A waiting flock that replaces
    /// another kind gives that up before it waits, as Linux does.
    pub async fn set_lock(&self, inode: InodeId, request: LockRequest, wait: bool) -> Result<()> {
        let (span, range) = request.parse()?;
        let key = Key {
            inode,
            space: request.space,
            number: request.owner,
        };
        let Some(range) = range else {
            return self.unlock(key, span).await;
        };
        let core = self.core.clone();
        let (tell, told) = oneshot::channel();
        let gone = CancellationToken::new();
        let guard = gone.clone().drop_guard();
        // A task, because a lock that was asked for must be accounted for even if this future is dropped.
        let task = async move {
            let owner = core.locks.owner(key);
            let mut owed = Owed::default();
            let result = core.lock(&owner, &range, wait, &gone, &mut owed).await;
            if tell.send(result).is_err() {
                owed.undo(&owner, span).await;
            }
            core.take_back(&owner, span, &owed).await;
            core.locks.tidy(owner);
        };
        self.core.locks.tasks.spawn_on(task, &self.core.runtime);
        let result = told.await;
        drop(guard);
        result.unwrap_or_else(|_| Err(stopped()))
    }

    /// Releases everything that an owner holds of a file: what close(2) does. Costs nothing if that is nothing.
    pub async fn release_locks(&self, inode: InodeId, owner: u64, space: LockSpace) -> Result<()> {
        let key = Key {
            inode,
            space,
            number: owner,
        };
        self.unlock(key, Span::WHOLE).await
    }

    async fn unlock(&self, key: Key, span: Span) -> Result<()> {
        let Some(owner) = self.core.locks.known(key) else {
            return Ok(());
        };
        let core = self.core.clone();
        let (tell, told) = oneshot::channel();
        let task = async move {
            let result = core.unlock(&owner, span).await;
            core.locks.tidy(owner);
            // Whoever does not wait for it wants it done nevertheless.
            let _ = tell.send(result);
        };
        self.core.locks.tasks.spawn_on(task, &self.core.runtime);
        told.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// A lock of another owner that is in the way of this one, if any.
    pub async fn test_lock(
        &self,
        inode: InodeId,
        request: LockRequest,
    ) -> Result<Option<LockInfo>> {
        let (_, range) = request.parse()?;
        let Some(range) = range else {
            return Ok(None);
        };
        let key = Key {
            inode,
            space: request.space,
            number: request.owner,
        };
        let request = pb::TestLockRequest {
            caller: None,
            owner: Some(key.into()),
            range: Some(range.into()),
        };
        let me = Creds::default();
        let reply = rpc!(self.core.meta, &me, Reads, test_lock, request)?;
        let Some(found) = reply.conflict else {
            return Ok(None);
        };
        let range = Range::try_from(&found)?;
        let here = reply.client == self.core.meta.client().to_bytes();
        Ok(Some(LockInfo {
            kind: match range.hold {
                Hold::Shared => LockKind::Shared,
                Hold::Exclusive => LockKind::Exclusive,
            },
            start: range.span.start,
            end: range.span.end,
            pid: if here { range.pid } else { 0 },
        }))
    }
}

impl Core {
    /// Locks. `owed` says afterwards what may have to be taken back.
    async fn lock(
        &self,
        owner: &Arc<Owner>,
        range: &Range,
        wait: bool,
        gone: &CancellationToken,
        owed: &mut Owed,
    ) -> Result<()> {
        loop {
            // 1. As a change of its own: granted, refused, or a place in the queue.
            let turn = owner.turn.lock().await;
            let seen = owner.begin()?;
            let ticket = self.locks.ticket();
            owed.asked(ticket);
            let place = wait.then_some(0);
            let state = self.ask_lock(owner.key, ticket, range, place, gone).await;
            match learn(owner, range, seen, state, owed)? {
                Step::Done => return Ok(()),
                Step::Again => continue,
                Step::Wait => {}
            }
            if owner.key.space == LockSpace::Flock {
                // Two that hold a shared lock and want an exclusive one would wait for each other.
                self.unlock_in_turn(owner, Span::WHOLE).await?;
            }
            let seen = owner.changes();
            drop(turn);
            // 2. Beside other changes.
            loop {
                let place = Some(self.wait_ms());
                let state = self.ask_lock(owner.key, ticket, range, place, gone).await;
                let turn = owner.turn.lock().await;
                let step = learn(owner, range, seen, state, owed)?;
                drop(turn);
                match step {
                    Step::Done => return Ok(()),
                    Step::Again => break,
                    Step::Wait => {}
                }
            }
        }
    }
}

/// What an answer means that was asked for when the owner's locks were as of `seen`.
fn learn(
    owner: &Arc<Owner>,
    range: &Range,
    seen: u64,
    state: Result<pb::LockState>,
    owed: &mut Owed,
) -> Result<Step> {
    match state {
        Ok(pb::LockState::Granted) => match owner.record(seen, range) {
            Some(before) => {
                owed.granted(before);
                Ok(Step::Done)
            }
            None => {
                owed.doubtful();
                Ok(Step::Again)
            }
        },
        Ok(pb::LockState::Superseded) => Ok(Step::Again),
        Ok(pb::LockState::Waiting) => Ok(Step::Wait),
        Ok(pb::LockState::Blocked) => {
            owed.refused();
            let Key { inode, .. } = owner.key;
            let what = format!("another owner holds a lock on inode {inode} that is in the way");
            Err(Error::new(ErrorCode::LockHeld, what))
        }
        Ok(other) => {
            let what = format!("the metadata server answered a lock request with {other:?}");
            Err(Error::new(ErrorCode::Protocol, what))
        }
        Err(error) => {
            let refused = matches!(
                error.code,
                ErrorCode::Deadlock | ErrorCode::TooManyLocks | ErrorCode::InvalidArgument
            );
            if refused {
                owed.refused();
            }
            Err(error)
        }
    }
}

/// How a lock request goes on.
enum Step {
    Done,
    /// With a new ticket.
    Again,
    Wait,
}
