//! Requests about advisory locks: what comes over the wire is checked here and decided in [`crate::locks`].
//!
//! None of it is a transaction of the namespace, but for a client's tenure, which its record holds. A request that waits
//! holds no permit and no thread.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use emberfs_proto::convert::required;
use emberfs_proto::ids::{ClientId, InodeId};
use emberfs_proto::locks::{LockSpace, Range, Ranges, Span};
use emberfs_proto::pb::LockState;
use emberfs_proto::{Error, ErrorCode, Result, pb};

use super::core::{Core, Who};
use super::records::ClientRecord;
use super::{Namespace, keys};
use crate::locks::Claim;
use crate::locks::table::{Entry, Owner, Place, Wish};

/// Most ranges that one request reclaims or keeps: as many as one file may have.
const MAX_RANGES: usize = 1 << 14;
/// Locks of a page of [`Namespace::list_locks`], about.
const PAGE: usize = 4096;

/// Whose locks on what, on this server.
fn parse_owner(who: &Who, owner: &pb::LockOwner) -> Result<(Place, Owner)> {
    let place = Place {
        inode: InodeId(owner.inode),
        space: owner.lock_space()?,
    };
    let owner = Owner {
        client: who.client,
        number: owner.owner,
    };
    Ok((place, owner))
}

fn parse_wish(
    who: &Who,
    owner: Option<&pb::LockOwner>,
    range: Option<&pb::LockRange>,
) -> Result<Wish> {
    let (place, owner) = parse_owner(who, required(owner, "lock owner")?)?;
    let mut range = Range::try_from(required(range, "lock range")?)?;
    range.span = span_of(place, range.span);
    Ok(Wish {
        place,
        owner,
        range,
    })
}

/// flock locks whole files whatever the request says.
fn span_of(place: Place, span: Span) -> Span {
    match place.space {
        LockSpace::Flock | LockSpace::Append => Span::WHOLE,
        LockSpace::Posix => span,
    }
}

fn reply(state: LockState) -> pb::LockReply {
    pb::LockReply {
        state: state.into(),
    }
}

fn too_many_ranges(count: usize) -> Result<()> {
    if count <= MAX_RANGES {
        return Ok(());
    }
    let what = format!("{count} lock ranges in one request; at most {MAX_RANGES}");
    Err(Error::new(ErrorCode::InvalidArgument, what))
}

impl Namespace {
    /// Who asks; renews the lease of a client.
    fn locker(&self, caller: Option<&pb::Caller>) -> Result<Who> {
        let who = self.who(caller)?;
        self.core.sessions.touch(who.client, 0, who.acknowledged)?;
        Ok(who)
    }

    pub(crate) async fn lock(&self, req: pb::LockRequest) -> Result<pb::LockReply> {
        let who = self.locker(req.caller.as_ref())?;
        let wish = parse_wish(&who, req.owner.as_ref(), req.range.as_ref())?;
        let inode = wish.place.inode;
        self.blocking(move |core| core.read(|tx| tx.live(inode).map(drop)))
            .await?;
        let claim = Claim {
            client: who.client,
            tenure: req.tenure,
            ticket: req.ticket,
        };
        if wish.place.space == LockSpace::Append
            && let Some((holder, _)) = self.core.locks.test(&wish)?
        {
            // With each attempt again: an earlier word may have been lost.
            self.core.interests.append_wanted(holder.client, inode);
        }
        let hold = Duration::from_millis(req.wait_ms.into());
        let wait = req.wait.then_some(hold);
        self.core.locks.request(claim, &wish, wait).await.map(reply)
    }

    #[expect(
        clippy::unused_async,
        reason = "the service awaits the answer to every request"
    )]
    pub(crate) async fn unlock(&self, req: pb::UnlockRequest) -> Result<pb::LockReply> {
        let who = self.locker(req.caller.as_ref())?;
        let (place, owner) = parse_owner(&who, required(req.owner.as_ref(), "lock owner")?)?;
        let span = span_of(place, Span::new(req.start, req.end)?);
        let claim = Claim {
            client: who.client,
            tenure: req.tenure,
            ticket: req.ticket,
        };
        self.core.locks.unlock(claim, place, owner, span).map(reply)
    }

    pub(crate) async fn test_lock(&self, req: pb::TestLockRequest) -> Result<pb::TestLockReply> {
        let who = self.locker(req.caller.as_ref())?;
        let wish = parse_wish(&who, req.owner.as_ref(), req.range.as_ref())?;
        let inode = wish.place.inode;
        self.blocking(move |core| core.read(|tx| tx.live(inode).map(drop)))
            .await?;
        let conflict = self.core.locks.test(&wish)?;
        Ok(
            conflict.map_or_else(pb::TestLockReply::default, |(owner, range)| {
                pb::TestLockReply {
                    conflict: Some(range.into()),
                    client: owner.client.to_bytes(),
                }
            }),
        )
    }

    #[expect(
        clippy::unused_async,
        reason = "the service awaits the answer to every request"
    )]
    pub(crate) async fn cancel_lock(&self, req: pb::CancelLockRequest) -> Result<pb::LockReply> {
        let who = self.locker(req.caller.as_ref())?;
        too_many_ranges(req.keep.len())?;
        let (place, owner) = parse_owner(&who, required(req.owner.as_ref(), "lock owner")?)?;
        let span = span_of(place, Span::new(req.start, req.end)?);
        let keep: Ranges = req
            .keep
            .iter()
            .map(Range::try_from)
            .collect::<Result<_>>()?;
        let claim = Claim {
            client: who.client,
            tenure: req.tenure,
            ticket: req.ticket,
        };
        let locks = &self.core.locks;
        locks
            .take_back(claim, req.waiter, (place, owner), span, &keep)
            .map(reply)
    }

    pub(crate) async fn reclaim_locks(
        &self,
        req: pb::ReclaimLocksRequest,
    ) -> Result<pb::ReclaimLocksReply> {
        let who = self.locker(req.caller.as_ref())?;
        let client = who.client;
        let locks = &self.core.locks;
        if req.tenure == 0 {
            let tenure = self.blocking(move |core| core.begin_tenure(client)).await?;
            return Ok(pb::ReclaimLocksReply {
                tenure,
                states: Vec::new(),
            });
        }
        too_many_ranges(req.owners.iter().map(|owner| owner.ranges.len()).sum())?;
        if !self.core.sessions.is_attached(client) {
            return Err(not_attached(client));
        }
        locks.check_reclaim(client, req.tenure)?;
        let mut states = Vec::with_capacity(req.owners.len());
        for owned in &req.owners {
            let (owner, ranges) = owned.parse()?;
            let (place, owner) = parse_owner(&who, owner)?;
            let claim = Claim {
                client,
                tenure: req.tenure,
                ticket: owned.ticket,
            };
            states.push(locks.reclaim(claim, place, owner, &ranges).into());
        }
        if req.done {
            locks.reclaimed(client);
        }
        if req.leave {
            self.end_tenure(client, Instant::now()).await?;
        }
        let tenure = if req.leave { 0 } else { req.tenure };
        Ok(pb::ReclaimLocksReply { tenure, states })
    }

    /// Tells a process that goes on as a client which locks the client holds.
    #[expect(
        clippy::unused_async,
        reason = "the service awaits the answer to every request"
    )]
    pub(crate) async fn resume_locks(
        &self,
        req: pb::ResumeLocksRequest,
    ) -> Result<pb::ResumeLocksReply> {
        let client = self.locker(req.caller.as_ref())?.client;
        if !self.core.sessions.is_attached(client) {
            return Err(not_attached(client));
        }
        let after = InodeId(req.after);
        let resumed = self.core.locks.resume(client, req.ticket, after, PAGE)?;
        let owners = resumed.held.iter().map(|(place, owner, ranges)| {
            let space = pb::LockSpace::from(place.space);
            pb::OwnerLocks {
                owner: Some(pb::LockOwner {
                    inode: place.inode.0,
                    space: space.into(),
                    owner: owner.number,
                }),
                ticket: 0,
                ranges: ranges.iter().copied().map(Into::into).collect(),
            }
        });
        Ok(pb::ResumeLocksReply {
            tenure: resumed.tenure,
            owners: owners.collect(),
            end: !resumed.more,
        })
    }

    /// First in the store, then in memory: see `locks/tenure.rs`.
    async fn end_tenure(&self, client: ClientId, now: Instant) -> Result<()> {
        self.blocking(move |core| core.end_tenure(client)).await?;
        self.core.locks.release_client(client, now);
        Ok(())
    }

    /// Takes the locks of clients that went away.
    pub(crate) async fn expire_locks(&self, now: Instant) -> Result<()> {
        let sessions = &self.core.sessions;
        let attached = |client| sessions.is_attached(client);
        for client in self.core.locks.overdue(now, attached) {
            tracing::info!(%client, "the client's locks are released: it went away or did not reclaim them");
            self.end_tenure(client, now).await?;
        }
        self.core.locks.forget_unattended(now);
        Ok(())
    }

    /// A page of all locks, in the order of inodes.
    #[expect(
        clippy::unused_async,
        reason = "the service awaits the answer to every request"
    )]
    pub(crate) async fn list_locks(&self, req: pb::ListLocksRequest) -> Result<pb::ListLocksReply> {
        let limit = match req.limit as usize {
            0 => PAGE,
            limit => limit.min(PAGE),
        };
        let hosts = self.core.sessions.clients(Instant::now()).into_iter();
        let hosts: HashMap<ClientId, String> = hosts.map(|c| (c.client, c.host)).collect();
        let (entries, end) = self.core.locks.list(InodeId(req.after), limit);
        let locks = entries.into_iter().map(|Entry { wish, waiting }| {
            let Wish {
                place,
                owner,
                range,
            } = wish;
            let space = pb::LockSpace::from(place.space);
            pb::LockEntry {
                owner: Some(pb::LockOwner {
                    inode: place.inode.0,
                    space: space.into(),
                    owner: owner.number,
                }),
                client: owner.client.to_bytes(),
                host: hosts.get(&owner.client).cloned().unwrap_or_default(),
                range: Some(range.into()),
                waiting,
            }
        });
        Ok(pb::ListLocksReply {
            locks: locks.collect(),
            end,
            grace: self.core.locks.grace(),
        })
    }
}

fn not_attached(client: ClientId) -> Error {
    let what = format!("client {client} is not attached to this metadata server");
    Error::new(ErrorCode::NoTenure, what)
}

impl Core {
    /// The tenure of an attached client, drawn if it has none.
    fn begin_tenure(&self, client: ClientId) -> Result<u64> {
        if !self.sessions.is_attached(client) {
            return Err(not_attached(client));
        }
        let fresh = rand::random_range(1..=u64::MAX);
        let tenure = self.write(|tx| {
            let record: Option<ClientRecord> = tx.get(&keys::client(client))?;
            let mut record = record.ok_or_else(|| not_attached(client))?;
            if record.tenure == 0 {
                record.tenure = fresh;
                tx.put(&keys::client(client), &record);
            }
            Ok(record.tenure)
        })?;
        self.locks.begin(client, tenure);
        Ok(tenure)
    }

    /// From now on the client's locks may go to others, whatever happens to this server.
    fn end_tenure(&self, client: ClientId) -> Result<()> {
        self.write(|tx| {
            if let Some(mut record) = tx.get::<ClientRecord>(&keys::client(client))?
                && record.tenure != 0
            {
                record.tenure = 0;
                tx.put(&keys::client(client), &record);
            }
            Ok(())
        })
    }
}
