//! After a restart of the metadata server: telling it which locks this client holds.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use emberfs_proto::wire::metadata::MetadataCaller;
use emberfs_proto::{Error, ErrorCode, Result, pb};

use super::book::{Book, Owner};
use crate::Creds;
use crate::core::Core;
use crate::meta_rpc::Effect;

/// Ranges of one request, about.
const PAGE: usize = 4096;
/// How often owners are told again whose locks change meanwhile.
const ROUNDS: usize = 16;

/// One owner's locks as they were told.
struct Told {
    owner: Arc<Owner>,
    seen: u64,
}

impl Book {
    /// The server has forgotten this client: [`Core::reclaim_locks`] is due.
    pub(crate) fn forgotten(&self) {
        self.owed.store(true, Ordering::Release);
    }
}

impl Core {
    /// Tells the server what is held, if it may not know. Whatever it does not accept is lost.
    pub(crate) async fn reclaim_locks(&self) -> Result<()> {
        if !self.locks.owed.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let told = self.tell_locks().await;
        self.locks.sweep();
        if told.is_err() {
            self.locks.forgotten();
        }
        told
    }

    async fn tell_locks(&self) -> Result<()> {
        let tenure = self.locks.tenure.load(Ordering::Acquire);
        if tenure == 0 {
            return Ok(());
        }
        let mut owners = self.locks.all();
        // Answers on their way may be those of a server that is no more.
        for owner in &owners {
            owner.bump();
        }
        for _ in 0..ROUNDS {
            match self.tell_owners(tenure, owners).await {
                Ok(changed) if changed.is_empty() => return self.reclaimed(tenure).await,
                Ok(changed) => owners = changed,
                Err(error) if error.code == ErrorCode::LockLost => {
                    self.locks.lose_all();
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        let what = "locks change faster than the metadata server can be told of them";
        Err(Error::new(ErrorCode::Busy, what))
    }

    /// Tells of these owners; answers those whose locks have changed meanwhile.
    async fn tell_owners(&self, tenure: u64, owners: Vec<Arc<Owner>>) -> Result<Vec<Arc<Owner>>> {
        let mut changed = Vec::new();
        let mut owners = owners.into_iter().peekable();
        while owners.peek().is_some() {
            let (mut page, mut told, mut ranges) = (Vec::new(), Vec::new(), 0);
            while ranges < PAGE
                && let Some(owner) = owners.next()
            {
                let ticket = self.locks.ticket();
                let (seen, held) = owner.snapshot();
                if held.is_empty() {
                    continue;
                }
                // An owner with more than a page of its own must not be on one with others.
                if ranges > 0 && ranges + held.len() > PAGE {
                    changed.push(owner);
                    break;
                }
                ranges += held.len();
                page.push(pb::OwnerLocks {
                    owner: Some(owner.key.into()),
                    ticket,
                    ranges: held.into_iter().map(Into::into).collect(),
                });
                told.push(Told { owner, seen });
            }
            if told.is_empty() {
                continue;
            }
            let request = pb::ReclaimLocksRequest {
                tenure,
                owners: page,
                ..pb::ReclaimLocksRequest::default()
            };
            let reply = self.ask_reclaim(request).await?;
            let mut states = reply.states.into_iter();
            for Told { owner, seen } in told {
                let state = states.next().map(pb::LockState::try_from);
                let again = match state {
                    Some(Ok(pb::LockState::Granted)) => false,
                    Some(Ok(pb::LockState::Lost)) => !owner.lose(seen),
                    _ => true,
                };
                if again {
                    changed.push(owner);
                }
            }
        }
        Ok(changed)
    }

    async fn reclaimed(&self, tenure: u64) -> Result<()> {
        let request = pb::ReclaimLocksRequest {
            tenure,
            done: true,
            ..pb::ReclaimLocksRequest::default()
        };
        self.ask_reclaim(request).await.map(drop)
    }

    /// Releases everything at once, when the client is shut down.
    pub(crate) async fn leave_locks(&self) {
        let tenure = self.locks.tenure.load(Ordering::Acquire);
        if tenure == 0 {
            return;
        }
        let request = pb::ReclaimLocksRequest {
            tenure,
            leave: true,
            ..pb::ReclaimLocksRequest::default()
        };
        if let Err(error) = self.ask_reclaim(request).await {
            tracing::warn!(%error, "locks could not be released at shutdown; they go when the lease is over");
        }
    }

    async fn ask_reclaim(&self, request: pb::ReclaimLocksRequest) -> Result<pb::ReclaimLocksReply> {
        let send = |server: MetadataCaller, caller| {
            let mut request = request.clone();
            request.caller = Some(caller);
            async move { server.reclaim_locks(request).await }
        };
        let (me, limit) = (Creds::default(), Some(self.lease));
        let meta = &self.meta;
        meta.run_within(limit, "reclaim_locks", &me, Effect::Reads, send)
            .await
    }
}
