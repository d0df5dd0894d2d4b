//! The namespace: inodes, names, lengths, sessions.
//!
//! A request is decoded, run as **one** transaction ([`ops`]), and answered once that is durable. It is run at once, on the
//! thread that received it, if everything it needs is in memory and nobody else is in its way; otherwise on the
//! blocking pool. The
//! few that touch chunks (truncation, a length from before one, garbage) do so between
//! transactions, and what must not be forgotten in between is a record: see [`length`], [`trim`] and
//! [`crate::gc`].
//!
//! Each request that changes something is carried out exactly once: its answer is stored in its
//! transaction under `(client, request)`, until the client acknowledges it or departs.

mod access;
mod acl;
mod clients;
pub(crate) mod core;
mod expiry;
mod ids;
pub(crate) mod keys;
mod length;
mod locking;
mod names;
mod ops;
pub(crate) mod quotas;
pub(crate) mod records;
mod requests;
mod status;
pub(crate) mod time;
mod trash;
mod trim;
mod tx;
mod usage;
mod xattr;

use std::sync::Arc;
use std::time::Instant;

use emberfs_proto::cluster::ClusterMap;
use emberfs_proto::ids::{ClusterId, InodeId, SessionId};
use emberfs_proto::{Error, ErrorCode, Result, pb};
use tokio::sync::{Semaphore, oneshot, watch};

use self::core::{Answers, Core, LayoutDefaults, Operation, Step, Who};
use crate::chunks::ChunkStore;
use crate::config::{Answer, MetaConfig};
use crate::interests::Watch;
use crate::kv::{CommitVersion, Engine};
use crate::sessions::{Held, Sessions};

/// Transactions that may wait for a disk at once. Each occupies a thread.
const TRANSACTIONS: usize = 256;

/// The space that storage has, for `statfs`.
pub(crate) type SpaceSource = Box<dyn Fn() -> pb::Space + Send + Sync>;

/// See the module.
pub(crate) struct Namespace {
    pub(crate) core: Arc<Core>,
    pub(crate) chunks: Arc<dyn ChunkStore>,
    cluster: ClusterId,
    space: SpaceSource,
    trims: trim::Turns,
    permits: Semaphore,
    started: Instant,
    answers: Answer,
}

impl Namespace {
    /// Opens the namespace in `engine`. Blocks.
    pub(crate) fn open(
        config: &MetaConfig,
        engine: Arc<dyn Engine>,
        cluster: ClusterId,
        map: watch::Receiver<Arc<ClusterMap>>,
        chunks: Arc<dyn ChunkStore>,
        space: SpaceSource,
    ) -> Result<Arc<Self>> {
        let sessions = Arc::new(Sessions::new(config.client_lease()));
        let defaults = LayoutDefaults {
            chunk_size: config.chunk_size,
            page_size: config.page_size,
            stripe_width: config.stripe_width,
        };
        Ok(Arc::new(Self {
            core: Arc::new(Core::open(engine, map, defaults, sessions)?),
            chunks,
            cluster,
            space,
            trims: trim::Turns::default(),
            permits: Semaphore::new(TRANSACTIONS),
            started: Instant::now(),
            answers: config.answer_names,
        }))
    }

    /// Runs `work`, which may block, outside the runtime's workers.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Core) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let stopping = || Error::new(ErrorCode::Unavailable, "the metadata server is stopping");
        let _permit = self.permits.acquire().await.map_err(|_| stopping())?;
        let core = self.core.clone();
        match tokio::task::spawn_blocking(move || work(&core)).await {
            Ok(result) => result,
            Err(failure) if failure.is_panic() => {
                tracing::error!(%failure, "a request panicked");
                let what = "the metadata server failed on this request; its log has the details";
                Err(Error::new(ErrorCode::Internal, what))
            }
            Err(_) => Err(stopping()),
        }
    }

    /// Who asks. Whoever means another cluster is refused: inode numbers of that one mean something here, too. So is an
    /// earlier process of a client that has a later one.
    fn who(&self, caller: Option<&pb::Caller>) -> Result<Who> {
        if let Some(meant) = caller.and_then(|caller| ClusterId::from_bytes(&caller.cluster))
            && meant != self.cluster
        {
            let what = format!(
                "this is the metadata server of cluster {}, the client belongs to {meant}; mount the address of its own \
                 metadata server",
                self.cluster
            );
            return Err(Error::new(ErrorCode::WrongCluster, what));
        }
        let who = Who::of(caller)?;
        self.core
            .sessions
            .check_instance(who.client, who.instance)?;
        Ok(who)
    }

    /// A request that only looks.
    async fn look<T: Send + 'static>(
        &self,
        caller: Option<&pb::Caller>,
        body: impl Fn(&mut tx::Tx<'_>, &Who) -> Result<T> + Send + Sync + 'static,
    ) -> Result<T> {
        let who = self.who(caller)?;
        self.core.sessions.touch(who.client, 0, who.acknowledged)?;
        self.look_as(Arc::new(who), Arc::new(body)).await
    }

    async fn look_as<T: Send + 'static>(
        &self,
        who: Arc<Who>,
        body: Arc<impl Fn(&mut tx::Tx<'_>, &Who) -> Result<T> + Send + Sync + 'static>,
    ) -> Result<T> {
        loop {
            let (who, body) = (who.clone(), body.clone());
            let look = move |core: &Core| core.read_for(who.client, |tx| body(tx, &who));
            let seen = self.blocking(look).await;
            if let Some(seen) = self.unless_withheld(seen).await {
                return seen;
            }
        }
    }

    /// The outcome of an attempt; `None`: somebody else had to report something first and has done so, try again.
    async fn unless_withheld<T>(&self, outcome: Result<T>) -> Option<Result<T>> {
        match outcome {
            Err(error) if error.code == ErrorCode::Delegated => {
                let delegations = &self.core.sessions.delegations;
                delegations.ended(InodeId(error.newer_version)).await;
                None
            }
            outcome => Some(outcome),
        }
    }

    /// As [`Self::look`], for requests that read a few records: they are answered at once if those are in memory,
    /// because a change of threads and back costs more than looking.
    async fn glance<T: Send + 'static>(
        &self,
        caller: Option<&pb::Caller>,
        body: impl Fn(&mut tx::Tx<'_>, &Who) -> Result<T> + Send + Sync + 'static,
    ) -> Result<T> {
        let who = self.who(caller)?;
        self.core.sessions.touch(who.client, 0, who.acknowledged)?;
        let glance = |tx: &mut tx::Tx<'_>| body(tx, &who);
        if let Some(seen) = self.core.read_cached_for(who.client, glance)
            && let Some(seen) = self.unless_withheld(seen).await
        {
            return seen;
        }
        self.look_as(Arc::new(who), Arc::new(body)).await
    }

    /// Tells a client of changes by others to what it is told from now on.
    pub(crate) fn watch_inodes(&self, req: &pb::WatchInodesRequest) -> Result<Watch> {
        let who = self.who(req.caller.as_ref())?;
        self.core.sessions.touch(who.client, 0, who.acknowledged)?;
        let watch = self.core.interests.watch(who.client);
        // Perhaps it was asked while it did not listen.
        let recalled = self.core.sessions.delegations.recalled_from(who.client);
        if !recalled.is_empty() {
            self.core.interests.recall(who.client, &recalled);
        }
        Ok(watch)
    }

    /// A request that changes something within one transaction.
    async fn change<R: prost::Message + Default + Answers + 'static>(
        &self,
        caller: Option<&pb::Caller>,
        operation: Operation,
        body: impl Fn(&mut tx::Tx<'_>, &Who) -> Result<R> + Send + Sync + 'static,
    ) -> Result<R> {
        let who = self.who(caller)?;
        let body = Arc::new(body);
        loop {
            let step = |tx: &mut tx::Tx<'_>| body(tx, &who).map(Step::Done);
            let changed = if let Some(done) = self.core.hurry_step(&who, operation, step) {
                self.hurried(operation, done).await
            } else {
                let (who, body) = (who.clone(), body.clone());
                let change = move |core: &Core| core.mutate(&who, operation, |tx| body(tx, &who));
                self.blocking(change).await
            };
            if let Some(changed) = self.unless_withheld(changed).await {
                return changed;
            }
        }
    }

    /// Waits for the disk, if it must, after what was done at once.
    async fn hurried<R: Answers>(
        &self,
        operation: Operation,
        done: Result<(Step<R>, CommitVersion)>,
    ) -> Result<R> {
        let (Step::Done(mut reply), version) = done? else {
            unreachable!("what nothing blocks is always done");
        };
        let soon = matches!(
            operation,
            Operation::Mkdir
                | Operation::Symlink
                | Operation::Mknod
                | Operation::Unlink
                | Operation::Rmdir
        );
        self.settle(version, soon, &mut reply).await?;
        Ok(reply)
    }

    /// Waits until a commit is durable, and all before it.
    async fn durable(&self, version: CommitVersion) -> Result<()> {
        let (tell, told) = oneshot::channel();
        // Whoever has gone need not be told.
        let tell = Box::new(move |outcome| drop(tell.send(outcome)));
        self.core.engine.when_durable(version, tell);
        let stopping = |_| Error::new(ErrorCode::Unavailable, "the metadata server is stopping");
        Ok(told.await.map_err(stopping)??)
    }

    /// Before an answer. `soon`: it is one that may come before what it says is durable, unless the administrator wants it
    /// otherwise. Then it is durable with the next flush, some milliseconds later, and whoever asks for more
    /// ([`pb::SyncRequest`]) waits for that.
    async fn settle(
        &self,
        version: CommitVersion,
        soon: bool,
        reply: &mut impl Answers,
    ) -> Result<()> {
        if soon && self.answers == Answer::Soon {
            reply.place(self.core.position(Some(version)));
            return Ok(());
        }
        self.durable(version).await
    }

    /// A request that a truncation in progress may block; `truncates`: it may itself begin one,
    /// which is completed before the answer. `soon`: otherwise its answer may come before it is durable, which the
    /// caller sees to before it says so to a program ([`pb::SyncRequest`]).
    async fn step<R: prost::Message + Default + Answers + Clone + 'static>(
        self: &Arc<Self>,
        caller: Option<&pb::Caller>,
        operation: Operation,
        (truncates, soon): (bool, bool),
        about: fn(&R) -> (Option<InodeId>, SessionId),
        body: impl Fn(&mut tx::Tx<'_>, &Who, &mut Option<Held>) -> Result<Step<R>>
        + Send
        + Sync
        + 'static,
    ) -> Result<R> {
        let who = self.who(caller)?;
        let body = Arc::new(body);
        loop {
            // The answer may be that of a copy of this request, which opened its own session.
            let keep = move |step: &Step<R>, held: Option<Held>| {
                if let (Step::Done(reply), Some(held)) = (step, held)
                    && held.session() == about(reply).1
                {
                    held.keep();
                }
            };
            let mut held = None;
            let hurried = self
                .core
                .hurry_step(&who, operation, |tx| body(tx, &who, &mut held));
            let step = if let Some(done) = hurried {
                let Some(done) = self.unless_withheld(done).await else {
                    continue;
                };
                let (mut step, version) = done?;
                keep(&step, held);
                if let Step::Done(reply) = &mut step {
                    let soon = soon && (!truncates || reply.is_new());
                    self.settle(version, soon, reply).await?;
                }
                step
            } else {
                let (who, body) = (who.clone(), body.clone());
                let step = self.blocking(move |core| {
                    // What was begun above may have been committed after all.
                    let mut held = held;
                    let step = core.mutate_step(&who, operation, |tx| body(tx, &who, &mut held))?;
                    keep(&step, held);
                    Ok(step)
                });
                let Some(step) = self.unless_withheld(step.await).await else {
                    continue;
                };
                step?
            };
            match step {
                Step::Blocked(inode) => self.finish_trim(inode).await?,
                Step::Done(reply) => {
                    if truncates
                        && !reply.is_new()
                        && let Some(inode) = about(&reply).0
                    {
                        self.finish_trim(inode).await?;
                    }
                    return Ok(reply);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
