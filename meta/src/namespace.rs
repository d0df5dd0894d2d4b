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
use emberfs_proto::{Error, ErrorCode, Result, pb, wire};
use tokio::sync::{Semaphore, oneshot, watch};

use self::core::{Answers, Core, LayoutDefaults, Operation, Step, Who};
use self::ops::sync::{Report, Settled};
use self::records::ClientRecord;
use crate::chunks::ChunkStore;
use crate::config::{Answer, MetaConfig};
use crate::interests::Watch;
use crate::kv::{CommitVersion, Engine};
use crate::sessions::{Held, Sessions, superseded};

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
        body: impl Fn(&mut tx::Tx<'_>, &Who) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let who = self.who(caller)?;
        self.core.sessions.touch(who.client, 0, who.acknowledged)?;
        self.blocking(move |core| core.read_for(who.client, |tx| body(tx, &who)))
            .await
    }

    /// As [`Self::look`], for requests that read a few records: they are answered at once if those are in memory,
    /// because a change of threads and back costs more than looking.
    async fn glance<T: Send + 'static>(
        &self,
        caller: Option<&pb::Caller>,
        body: impl Fn(&mut tx::Tx<'_>, &Who) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let who = self.who(caller)?;
        self.core.sessions.touch(who.client, 0, who.acknowledged)?;
        let glance = |tx: &mut tx::Tx<'_>| body(tx, &who);
        if let Some(seen) = self.core.read_cached_for(who.client, glance) {
            return seen;
        }
        self.blocking(move |core| core.read_for(who.client, |tx| body(tx, &who)))
            .await
    }

    /// Tells a client of changes by others to what it is told from now on.
    pub(crate) fn watch_inodes(&self, req: &pb::WatchInodesRequest) -> Result<Watch> {
        let who = self.who(req.caller.as_ref())?;
        self.core.sessions.touch(who.client, 0, who.acknowledged)?;
        Ok(self.core.interests.watch(who.client))
    }

    /// A request that changes something within one transaction.
    async fn change<R: prost::Message + Default + Answers + 'static>(
        &self,
        caller: Option<&pb::Caller>,
        operation: Operation,
        mut body: impl FnMut(&mut tx::Tx<'_>, &Who) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let who = self.who(caller)?;
        let step = |tx: &mut tx::Tx<'_>| body(tx, &who).map(Step::Done);
        if let Some(done) = self.core.hurry_step(&who, operation, step) {
            let (Step::Done(reply), version) = done? else {
                unreachable!("the step above is always done");
            };
            let soon = matches!(
                operation,
                Operation::Mkdir
                    | Operation::Symlink
                    | Operation::Mknod
                    | Operation::Unlink
                    | Operation::Rmdir
            );
            self.settle(version, soon).await?;
            return Ok(reply);
        }
        self.blocking(move |core| core.mutate(&who, operation, |tx| body(tx, &who)))
            .await
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
    async fn settle(&self, version: CommitVersion, soon: bool) -> Result<()> {
        if soon && self.answers == Answer::Soon {
            return Ok(());
        }
        self.durable(version).await
    }

    /// A request that a truncation in progress may block; `truncates`: it may itself begin one,
    /// which is completed before the answer. `opens`: what it does is undone by nobody but the caller, who makes sure that it
    /// is durable before it says so to a program ([`pb::SyncRequest`]).
    async fn step<R: prost::Message + Default + Answers + Clone + 'static>(
        self: &Arc<Self>,
        caller: Option<&pb::Caller>,
        operation: Operation,
        (truncates, opens): (bool, bool),
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
                let (step, version) = done?;
                keep(&step, held);
                if let Step::Done(reply) = &step {
                    let soon = opens && (!truncates || reply.is_new());
                    self.settle(version, soon).await?;
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
                step.await?
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

    pub(crate) async fn attach(&self, req: pb::AttachRequest) -> Result<pb::AttachReply> {
        let who = self.who(req.caller.as_ref())?;
        if !req.cluster.is_empty() && ClusterId::from_bytes(&req.cluster) != Some(self.cluster) {
            let what = format!(
                "this metadata server belongs to cluster {}, the client to another; check the address",
                self.cluster
            );
            return Err(Error::new(ErrorCode::WrongCluster, what));
        }
        if !(wire::MIN_VERSION..=wire::MAX_VERSION).contains(&req.protocol_version) {
            let what = format!(
                "the client speaks protocol version {}, this server {} to {}; upgrade the older one",
                req.protocol_version,
                wire::MIN_VERSION,
                wire::MAX_VERSION
            );
            return Err(Error::new(ErrorCode::IncompatibleVersion, what));
        }
        let (cluster, lease) = (self.cluster, self.core.sessions.lease());
        self.blocking(move |core| {
            let attach = rand::random_range(1..=u64::MAX);
            let (root, tenure) = core.write(|tx| {
                // The locks of a client that was not given up stay its own.
                let before: Option<ClientRecord> = tx.get(&keys::client(who.client))?;
                let before = before.unwrap_or_default();
                if before.instance > who.instance {
                    return Err(superseded(who.client, who.instance, before.instance));
                }
                let tenure = before.tenure;
                let record = ClientRecord {
                    host: req.host.clone(),
                    // A later process does not know at first what an earlier one has acknowledged.
                    acknowledged: before.acknowledged.max(who.acknowledged),
                    attach,
                    tenure,
                    instance: who.instance,
                };
                tx.put(&keys::client(who.client), &record);
                let root = tx.live(InodeId::ROOT)?;
                Ok((tx.attr(&root)?, tenure))
            })?;
            core.sessions.attach(
                who.client,
                &req.host,
                (attach, who.instance),
                Instant::now(),
            );
            if tenure != 0 {
                core.locks.begin(who.client, tenure);
            }
            tracing::info!(client = %who.client, host = req.host, "client attached");
            Ok(pb::AttachReply {
                cluster: cluster.to_bytes(),
                protocol_version: wire::MAX_VERSION.min(req.protocol_version),
                root: Some(root),
                lease_ms: lease.as_millis() as u32,
            })
        })
        .await
    }

    pub(crate) async fn keep_alive(&self, req: pb::KeepAliveRequest) -> Result<pb::KeepAliveReply> {
        let who = self.who(req.caller.as_ref())?;
        let sessions = &self.core.sessions;
        let pulse = sessions.keep_alive(who.client, who.acknowledged, Instant::now());
        if let Some(upto) = pulse.prune {
            self.blocking(move |core| core.forget_answers(who.client, upto))
                .await?;
        }
        Ok(pb::KeepAliveReply {
            lease_ms: self.core.sessions.lease().as_millis() as u32,
            sessions_lost: pulse.lost,
        })
    }

    pub(crate) async fn lookup(&self, req: pb::NameRequest) -> Result<pb::AttrReply> {
        let caller = req.caller.clone();
        self.glance(caller.as_ref(), move |tx, who| {
            ops::lookup::lookup(tx, &who.cred, &req)
        })
        .await
    }

    pub(crate) async fn lookup_many(
        &self,
        req: pb::LookupManyRequest,
    ) -> Result<pb::LookupManyReply> {
        let caller = req.caller.clone();
        self.look(caller.as_ref(), move |tx, who| {
            ops::lookup::lookup_many(tx, who, &req)
        })
        .await
    }

    pub(crate) async fn getattr(&self, req: pb::GetAttrRequest) -> Result<pb::AttrReply> {
        let inode = InodeId(req.inode);
        self.glance(req.caller.as_ref(), move |tx, _| {
            ops::lookup::getattr(tx, inode)
        })
        .await
    }

    pub(crate) async fn readlink(&self, req: pb::GetAttrRequest) -> Result<pb::ReadlinkReply> {
        let inode = InodeId(req.inode);
        self.glance(req.caller.as_ref(), move |tx, _| {
            ops::lookup::readlink(tx, inode)
        })
        .await
    }

    pub(crate) async fn readdir(&self, req: pb::ReadDirRequest) -> Result<pb::ReadDirReply> {
        let caller = req.caller.clone();
        self.look(caller.as_ref(), move |tx, who| {
            ops::readdir::readdir(tx, &who.cred, &req)
        })
        .await
    }

    pub(crate) async fn setattr(
        self: &Arc<Self>,
        req: pb::SetAttrRequest,
    ) -> Result<pb::AttrReply> {
        let (caller, truncates) = (req.caller.clone(), req.size.is_some());
        let body =
            move |tx: &mut tx::Tx<'_>, who: &Who, _: &mut _| ops::setattr::setattr(tx, who, &req);
        self.step(
            caller.as_ref(),
            Operation::SetAttr,
            (truncates, false),
            changed,
            body,
        )
        .await
    }

    pub(crate) async fn create(self: &Arc<Self>, req: pb::CreateRequest) -> Result<pb::OpenReply> {
        self.core.note(req.caller.as_ref(), &[req.parent]);
        let (caller, truncates) = (req.caller.clone(), req.truncate);
        let body = move |tx: &mut tx::Tx<'_>, who: &Who, held: &mut _| {
            ops::create::create(tx, who, &req, held)
        };
        self.step(
            caller.as_ref(),
            Operation::Create,
            (truncates, true),
            opened,
            body,
        )
        .await
    }

    pub(crate) async fn create_unnamed(
        self: &Arc<Self>,
        req: pb::CreateUnnamedRequest,
    ) -> Result<pb::OpenReply> {
        let caller = req.caller.clone();
        let body = move |tx: &mut tx::Tx<'_>, who: &Who, held: &mut _| {
            ops::unnamed::create(tx, who, &req, held)
        };
        let operation = Operation::CreateUnnamed;
        self.step(caller.as_ref(), operation, (false, true), opened, body)
            .await
    }

    pub(crate) async fn open_inode(
        self: &Arc<Self>,
        req: pb::OpenRequest,
    ) -> Result<pb::OpenReply> {
        if !req.write && !req.truncate {
            return self.open_read(&req).await;
        }
        let (caller, truncates) = (req.caller.clone(), req.truncate);
        let body = move |tx: &mut tx::Tx<'_>, who: &Who, held: &mut _| {
            ops::open::open(tx, who, &req, held)
        };
        self.step(
            caller.as_ref(),
            Operation::Open,
            (truncates, true),
            opened,
            body,
        )
        .await
    }

    /// An open for reading writes nothing: its session is in memory only.
    async fn open_read(self: &Arc<Self>, req: &pb::OpenRequest) -> Result<pb::OpenReply> {
        let inode = InodeId(req.inode);
        loop {
            let who = self.who(req.caller.as_ref())?;
            self.core
                .sessions
                .touch(who.client, who.request, who.acknowledged)?;
            let sessions = &self.core.sessions;
            let (session, held) = match sessions.opened_by(who.client, inode, who.request) {
                Some(session) => (session, None),
                None => {
                    let session = SessionId(self.core.next_id()?);
                    let held = sessions.hold(inode, session, who.client, false, who.request)?;
                    (session, Some(held))
                }
            };
            let client = who.client;
            let body = move |tx: &mut tx::Tx<'_>| ops::open::open_read(tx, &who, inode, session);
            let step = match self.core.read_cached_for(client, &body) {
                Some(step) => step?,
                None => {
                    self.blocking(move |core| core.read_for(client, body))
                        .await?
                }
            };
            if let (Step::Done(_), Some(held)) = (&step, held) {
                held.keep();
            }
            match step {
                Step::Blocked(inode) => self.finish_trim(inode).await?,
                Step::Done(reply) => return Ok(reply),
            }
        }
    }

    pub(crate) async fn mkdir(&self, req: pb::MkdirRequest) -> Result<pb::AttrReply> {
        self.core.note(req.caller.as_ref(), &[req.parent]);
        let caller = req.caller.clone();
        let body = move |tx: &mut tx::Tx<'_>, who: &Who| ops::directory::mkdir(tx, &who.cred, &req);
        self.change(caller.as_ref(), Operation::Mkdir, body).await
    }

    pub(crate) async fn rmdir(&self, req: pb::NameRequest) -> Result<pb::UnlinkReply> {
        self.core.note(req.caller.as_ref(), &[req.parent]);
        let caller = req.caller.clone();
        let body = move |tx: &mut tx::Tx<'_>, who: &Who| ops::directory::rmdir(tx, &who.cred, &req);
        self.change(caller.as_ref(), Operation::Rmdir, body).await
    }

    pub(crate) async fn symlink(&self, req: pb::SymlinkRequest) -> Result<pb::AttrReply> {
        self.core.note(req.caller.as_ref(), &[req.parent]);
        let caller = req.caller.clone();
        let body = move |tx: &mut tx::Tx<'_>, who: &Who| ops::link::symlink(tx, &who.cred, &req);
        self.change(caller.as_ref(), Operation::Symlink, body).await
    }

    pub(crate) async fn mknod(&self, req: pb::MknodRequest) -> Result<pb::AttrReply> {
        self.core.note(req.caller.as_ref(), &[req.parent]);
        let caller = req.caller.clone();
        let body = move |tx: &mut tx::Tx<'_>, who: &Who| ops::create::mknod(tx, &who.cred, &req);
        self.change(caller.as_ref(), Operation::Mknod, body).await
    }

    pub(crate) async fn link(&self, req: pb::LinkRequest) -> Result<pb::AttrReply> {
        self.core.note(req.caller.as_ref(), &[req.parent]);
        let caller = req.caller.clone();
        let body = move |tx: &mut tx::Tx<'_>, who: &Who| ops::link::link(tx, &who.cred, &req);
        self.change(caller.as_ref(), Operation::Link, body).await
    }

    pub(crate) async fn unlink(&self, req: pb::NameRequest) -> Result<pb::UnlinkReply> {
        self.core.note(req.caller.as_ref(), &[req.parent]);
        let caller = req.caller.clone();
        let body = move |tx: &mut tx::Tx<'_>, who: &Who| ops::link::unlink(tx, &who.cred, &req);
        let reply = self
            .change(caller.as_ref(), Operation::Unlink, body)
            .await?;
        self.note_garbage(reply.attr.as_ref());
        Ok(reply)
    }

    /// Removes a directory with all that is in it.
    pub(crate) async fn remove_tree(&self, req: pb::NameRequest) -> Result<pb::UnlinkReply> {
        let caller = req.caller.clone();
        let body = move |tx: &mut tx::Tx<'_>, who: &Who| ops::tree::remove(tx, &who.cred, &req);
        let reply = self
            .change(caller.as_ref(), Operation::RemoveTree, body)
            .await?;
        self.core.garbage.notify_one();
        Ok(reply)
    }

    /// Empties directories whose trees were removed.
    pub(crate) async fn sweep_trees(&self) -> Result<()> {
        while self.blocking(|core| core.write(ops::tree::step)).await? {}
        Ok(())
    }

    pub(crate) async fn rename(&self, req: pb::RenameRequest) -> Result<pb::RenameReply> {
        self.core
            .note(req.caller.as_ref(), &[req.parent, req.new_parent]);
        let caller = req.caller.clone();
        let body = move |tx: &mut tx::Tx<'_>, who: &Who| ops::rename::rename(tx, &who.cred, &req);
        let reply = self
            .change(caller.as_ref(), Operation::Rename, body)
            .await?;
        self.note_garbage(reply.replaced.as_ref());
        Ok(reply)
    }

    /// Tells garbage collection about a file without names that nobody has open.
    fn note_garbage(&self, removed: Option<&pb::Attr>) {
        let collectable = removed.is_some_and(|attr| {
            attr.nlink == 0
                && attr.kind() == pb::FileKind::File
                && !self.core.sessions.is_open(InodeId(attr.inode))
        });
        if collectable {
            self.core.garbage.notify_one();
        }
    }

    pub(crate) async fn sync(self: &Arc<Self>, req: pb::SyncRequest) -> Result<pb::AttrReply> {
        self.report(req, false).await
    }

    pub(crate) async fn close(self: &Arc<Self>, req: pb::SyncRequest) -> Result<pb::AttrReply> {
        let (inode, session) = (InodeId(req.inode), SessionId(req.session));
        let who = self.who(req.caller.as_ref())?;
        let kind = self.core.sessions.check(who.client, inode, session);
        let reply = if kind == Some(false) && req.end.is_none() {
            self.look(req.caller.as_ref(), move |tx, _| {
                ops::lookup::getattr(tx, inode)
            })
            .await
        } else {
            self.report(req, true).await
        };
        // The session ends whatever became of the inode, but not if its report may still succeed.
        let ends = match &reply {
            Ok(_) => true,
            Err(error) => error.code == ErrorCode::Stale,
        };
        if ends && kind.is_some() && self.core.sessions.remove(inode, session) {
            let unlinked = |reply: &pb::AttrReply| reply.attr.is_some_and(|attr| attr.nlink == 0);
            if reply.as_ref().is_ok_and(unlinked) {
                self.core.garbage.notify_one();
            }
        }
        reply
    }

    /// Ends sessions that have nothing to report.
    pub(crate) async fn close_many(&self, req: pb::CloseManyRequest) -> Result<pb::CloseManyReply> {
        const MOST: usize = 4096;
        let who = self.who(req.caller.as_ref())?;
        self.core.sessions.touch(who.client, 0, who.acknowledged)?;
        let mut sessions = req.sessions;
        if sessions.len() > MOST {
            let what = format!("{} sessions in one request; at most {MOST}", sessions.len());
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        }
        sessions.retain(|one| {
            let (inode, session) = (InodeId(one.inode), SessionId(one.session));
            let known = self.core.sessions.check(who.client, inode, session);
            known.is_some()
        });
        let ended = sessions.clone();
        let garbage = self
            .blocking(move |core| {
                core.write(|tx| ops::sync::close_many(tx, &who, &sessions))?;
                core.read(ops::report::counts).map(|(_, garbage)| garbage)
            })
            .await?;
        let last = ended.iter().fold(false, |last, one| {
            let (inode, session) = (InodeId(one.inode), SessionId(one.session));
            last | self.core.sessions.remove(inode, session)
        });
        if last && garbage > 0 {
            self.core.garbage.notify_one();
        }
        Ok(pb::CloseManyReply {})
    }

    /// Applies a report of a writer, settling the length from the chunks where it must.
    async fn report(self: &Arc<Self>, req: pb::SyncRequest, close: bool) -> Result<pb::AttrReply> {
        let who = Arc::new(self.who(req.caller.as_ref())?);
        self.core.sessions.touch(who.client, 0, who.acknowledged)?;
        let inode = InodeId(req.inode);
        let req = Arc::new(req);
        let mut settled = None;
        loop {
            let (who, req) = (who.clone(), req.clone());
            let client = Some(who.client);
            let body = move |tx: &mut tx::Tx<'_>| ops::sync::sync(tx, &who, &req, close, settled);
            let attempt = if let Some(done) = self.core.hurry_for(client, &body) {
                let (report, version) = done?;
                if matches!(report, Report::Done(_)) {
                    self.durable(version).await?;
                }
                report
            } else {
                self.blocking(move |core| core.write_for(client, body))
                    .await?
            };
            match attempt {
                Report::Done(reply) => return Ok(reply),
                Report::Blocked(inode) => self.finish_trim(inode).await?,
                Report::Settle(layout, epoch) => {
                    let end = self.chunks.end(inode, layout).await?;
                    settled = Some(Settled { epoch, end });
                }
            }
        }
    }
}

fn changed(reply: &pb::AttrReply) -> (Option<InodeId>, SessionId) {
    (reply.attr.map(|attr| InodeId(attr.inode)), SessionId(0))
}

fn opened(reply: &pb::OpenReply) -> (Option<InodeId>, SessionId) {
    (
        reply.attr.map(|attr| InodeId(attr.inode)),
        SessionId(reply.session),
    )
}

#[cfg(test)]
mod tests;
