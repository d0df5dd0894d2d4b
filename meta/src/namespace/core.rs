//! What every operation of the namespace works with: the store, numbers, sessions, the map. All of it is
//! synchronous and may block; [`super::Namespace`] is the asynchronous face.

use std::sync::Arc;

use emberfs_proto::cluster::ClusterMap;
use emberfs_proto::ids::{ChainTableId, ChainTableVersion, ClientId, InodeId};
use emberfs_proto::layout::Layout;
use emberfs_proto::pb::{self, FileKind};
use emberfs_proto::{Error, ErrorCode, Result, convert};
use prost::Message;
use tokio::sync::{Notify, watch};

use super::access::Cred;
use super::ids::Ids;
use super::keys;
use super::records::{Answer, ClientRecord, InodeRecord, SessionRecord, decode};
use super::trash;
use super::tx::Tx;
use super::usage::table::Quotas;
use crate::interests::Interests;
use crate::kv::{self, CommitVersion, Engine, LogPosition, RetryPolicy, Transaction};
use crate::locks::Locks;
use crate::sessions::Sessions;

/// The chain table that new files use.
const TABLE: ChainTableId = ChainTableId(1);
/// Records read at once while loading.
const LOAD_PAGE: usize = 1000;

/// What new files get unless their directory says otherwise.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayoutDefaults {
    pub(crate) chunk_size: u32,
    pub(crate) page_size: u32,
    pub(crate) stripe_width: u32,
}

/// See the module.
pub(crate) struct Core {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) policy: RetryPolicy,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) locks: Locks,
    /// What clients have cached.
    pub(crate) interests: Arc<Interests>,
    pub(crate) map: watch::Receiver<Arc<ClusterMap>>,
    pub(crate) defaults: LayoutDefaults,
    /// Told when an inode may have become garbage that nobody has open.
    pub(crate) garbage: Notify,
    pub(crate) quotas: Quotas,
    pub(crate) trash: trash::Switch,
    ids: Ids,
}

/// On whose behalf, and which request.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    pub(crate) client: ClientId,
    /// Which process of the client; 0: it has only one.
    pub(crate) instance: u32,
    pub(crate) request: u64,
    pub(crate) acknowledged: u64,
    pub(crate) cred: Cred,
}

impl Who {
    pub(crate) fn of(caller: Option<&pb::Caller>) -> Result<Self> {
        let caller = convert::required(caller, "caller")?;
        let client = ClientId::from_bytes(&caller.client).ok_or_else(|| {
            let what = "the caller's client id is not 16 bytes; the peer is not an EmberFS client";
            Error::new(ErrorCode::InvalidArgument, what)
        })?;
        Ok(Self {
            client,
            instance: caller.instance,
            request: caller.request,
            acknowledged: caller.acknowledged,
            cred: Cred::of(caller),
        })
    }
}

/// Names operations in [`Answer`] records. Numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Operation {
    SetAttr = 1,
    Create = 2,
    Mkdir = 3,
    Symlink = 4,
    Mknod = 5,
    Link = 6,
    Unlink = 7,
    Rmdir = 8,
    Rename = 9,
    Open = 10,
    CreateUnnamed = 30,
    SetXattr = 20,
    RemoveXattr = 21,
    RemoveTree = 40,
    SetTrash = 60,
    RestoreTrash = 61,
    PurgeTrash = 62,
}

/// An answer to a change.
pub(crate) trait Answers {
    /// Adds the directories whose entries were changed.
    fn tell(&mut self, _parents: Vec<pb::Attr>) {}
    /// Adds where the change stands in the log: it may not be durable yet.
    fn place(&mut self, _log: pb::LogPosition) {}
    /// Whether it is of a file that was not there before.
    fn is_new(&self) -> bool {
        false
    }
}

macro_rules! comes_early {
    ($($reply:ident $new:expr;)+) => {
        $(impl Answers for pb::$reply {
            fn tell(&mut self, parents: Vec<pb::Attr>) {
                self.parents = parents;
            }
            fn place(&mut self, log: pb::LogPosition) {
                self.log = Some(log);
            }
            fn is_new(&self) -> bool {
                $new(self)
            }
        })+
    };
}

comes_early! {
    AttrReply |_| false;
    UnlinkReply |_| false;
    OpenReply |reply: &Self| reply.created;
}

impl Answers for pb::RenameReply {
    fn tell(&mut self, parents: Vec<pb::Attr>) {
        self.parents = parents;
    }
}

impl Answers for pb::TrashPolicy {}
impl Answers for pb::RestoreTrashReply {}
impl Answers for pb::PurgeTrashReply {}

/// What an attempt of an operation came to.
#[derive(Debug, PartialEq)]
pub(crate) enum Step<R> {
    /// Committed.
    Done(R),
    /// Nothing was done: a truncation of this inode must be completed on its chains first.
    Blocked(InodeId),
}

impl Core {
    /// Opens the namespace of a store, creating the root in an empty one, and loads who had what
    /// open.
    pub(crate) fn open(
        engine: Arc<dyn Engine>,
        map: watch::Receiver<Arc<ClusterMap>>,
        defaults: LayoutDefaults,
        sessions: Arc<Sessions>,
    ) -> Result<Self> {
        let core = Self {
            locks: Locks::new(sessions.lease()),
            engine,
            policy: RetryPolicy::default(),
            sessions,
            interests: Arc::default(),
            map,
            defaults,
            garbage: Notify::new(),
            quotas: Quotas::default(),
            trash: trash::Switch::default(),
            ids: Ids::default(),
        };
        core.load_quotas()?;
        core.format()?;
        core.load()?;
        Ok(core)
    }

    fn format(&self) -> Result<()> {
        self.write(|tx| {
            if tx.inode(InodeId::ROOT)?.is_none() {
                let now = tx.now;
                tx.add_inode(&InodeRecord {
                    id: InodeId::ROOT.0,
                    kind: FileKind::Directory as i32,
                    mode: 0o755,
                    atime: now,
                    mtime: now,
                    ctime: now,
                    parent: InodeId::ROOT.0,
                    ..InodeRecord::default()
                });
            }
            Ok(())
        })
    }

    fn load(&self) -> Result<()> {
        self.read(|tx| self.trash.load(tx))?;
        self.each(keys::clients(), |key, value| {
            if let Some(id) = keys::parse_client(key) {
                let record: ClientRecord = decode(value)?;
                let ClientRecord {
                    host,
                    acknowledged,
                    attach,
                    tenure,
                    instance,
                } = record;
                if tenure != 0 {
                    self.locks.restore(id, tenure);
                }
                self.sessions
                    .restore_client(id, host, acknowledged, (attach, instance));
            }
            Ok(())
        })?;
        self.each(keys::sessions(), |key, value| {
            let record: SessionRecord = decode(value)?;
            if let (Some((inode, session)), Some(client)) = (
                keys::parse_session(key),
                ClientId::from_bytes(&record.client),
            ) {
                self.sessions.restore_session(inode, session, client);
                if record.delegated {
                    self.sessions.delegations.grant(inode, session, client);
                }
            }
            Ok(())
        })
    }

    /// Visits every record of a span, in pages of one transaction each.
    pub(super) fn each(
        &self,
        mut span: keys::Span,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<()>,
    ) -> Result<()> {
        loop {
            let page = self.read(|tx| tx.scan(&span, LOAD_PAGE))?;
            for (key, value) in &page {
                visit(key, value)?;
            }
            match page.last() {
                Some((key, _)) if page.len() == LOAD_PAGE => span = span.after(key),
                _ => return Ok(()),
            }
        }
    }

    /// Looks at one snapshot.
    pub(crate) fn read<T>(&self, body: impl FnOnce(&mut Tx<'_>) -> Result<T>) -> Result<T> {
        let mut txn = self.engine.begin();
        body(&mut Tx::read_only(self, &mut *txn, None))
    }

    /// As [`Self::read`], for a client that may cache what it is told: what changes meanwhile is either in the
    /// answer or told afterwards.
    pub(crate) fn read_for<T>(
        &self,
        client: ClientId,
        body: impl Fn(&mut Tx<'_>) -> Result<T>,
    ) -> Result<T> {
        self.look_with(|| self.engine.begin(), client, body)
    }

    /// As [`Self::read_for`], without ever waiting for the disk; `None` if it would have to.
    pub(crate) fn read_cached_for<T>(
        &self,
        client: ClientId,
        body: impl Fn(&mut Tx<'_>) -> Result<T>,
    ) -> Option<Result<T>> {
        match self.look_with(|| self.engine.begin_cached(), client, body) {
            Err(error) if error.code == ErrorCode::NotCached => None,
            seen => Some(seen),
        }
    }

    fn look_with<T>(
        &self,
        begin: impl Fn() -> Box<dyn Transaction>,
        client: ClientId,
        body: impl Fn(&mut Tx<'_>) -> Result<T>,
    ) -> Result<T> {
        let noter = self.interests.noter(client);
        let look = || {
            let mut txn = begin();
            let mut tx = Tx::read_only(self, &mut *txn, noter.clone()).asked_by(Some(client));
            let seen = body(&mut tx)?;
            tx.check_withheld()?;
            Ok(seen)
        };
        let clocks = || {
            let changes = noter.is_some().then(|| self.interests.clock());
            (changes, self.sessions.delegations.clock())
        };
        let before = clocks();
        let seen = look();
        if clocks() == before {
            return seen;
        }
        // Everything is noted now: what changes after this look is told. What was withheld when it began and is not now
        // is in this one.
        look()
    }

    /// Runs a transaction that may run twice without harm.
    pub(crate) fn write<T>(&self, body: impl FnMut(&mut Tx<'_>) -> Result<T>) -> Result<T> {
        self.write_for(None, body)
    }

    /// As [`Self::write`], on behalf of a client, who need not be told of its own changes.
    pub(crate) fn write_for<T>(
        &self,
        client: Option<ClientId>,
        mut body: impl FnMut(&mut Tx<'_>) -> Result<T>,
    ) -> Result<T> {
        let noter = client.and_then(|client| self.interests.noter(client));
        let (value, changed) = {
            let _gate = self.quotas.gate.read();
            kv::run_idempotent(&*self.engine, &self.policy, |txn| {
                let mut tx = Tx::new(self, txn, noter.clone()).asked_by(client);
                let value = body(&mut tx)?;
                tx.check_withheld()?;
                tx.settle_usage()?;
                Ok((value, tx.into_changed()))
            })?
        };
        self.interests.changed(client, &changed);
        Ok(value)
    }

    /// As [`Self::write_for`], at once or not at all: one attempt that waits for no disk and nobody else. What it did is
    /// visible, and durable soon. `None`: it would have to wait, or lost against another one, and nothing was done.
    pub(crate) fn hurry_for<T>(
        &self,
        client: Option<ClientId>,
        body: impl FnOnce(&mut Tx<'_>) -> Result<T>,
    ) -> Option<Result<(T, CommitVersion)>> {
        let noter = client.and_then(|client| self.interests.noter(client));
        let gate = self.quotas.gate.try_read()?;
        let mut txn = self.engine.begin_cached();
        let mut tx = Tx::new(self, &mut *txn, noter).asked_by(client);
        let done = body(&mut tx).and_then(|value| {
            tx.check_withheld()?;
            tx.settle_usage()?;
            Ok(value)
        });
        let changed = tx.into_changed();
        let done = done.and_then(|value| Ok((value, txn.commit_soon()?)));
        drop(gate);
        match done {
            Err(error) if needs_time(error.code) => None,
            Err(error) => Some(Err(error)),
            Ok(done) => {
                self.interests.changed(client, &changed);
                Some(Ok(done))
            }
        }
    }

    /// As [`Self::mutate_step`], in the way of [`Self::hurry_for`].
    pub(crate) fn hurry_step<R: Message + Default + Answers>(
        &self,
        who: &Who,
        operation: Operation,
        body: impl FnOnce(&mut Tx<'_>) -> Result<Step<R>>,
    ) -> Option<Result<(Step<R>, CommitVersion)>> {
        if let Err(error) = self.admit(who) {
            return Some(Err(error));
        }
        let step = |tx: &mut Tx<'_>| {
            let step = once(tx, who, operation, body)?;
            Ok((step, tx.parents()?))
        };
        let done = self.hurry_for(Some(who.client), step)?;
        Some(done.map(|((mut step, parents), version)| {
            if let Step::Done(reply) = &mut step {
                // Not recorded: for who asks again it may not be true any more.
                reply.tell(parents);
            }
            (step, version)
        }))
    }

    /// For an answer: where the log stands, and the commit of what it answers, unless that is durable.
    pub(crate) fn position(&self, commit: Option<CommitVersion>) -> pb::LogPosition {
        let LogPosition { start, durable } = self.engine.position();
        let open = commit.filter(|commit| *commit > durable);
        pb::LogPosition {
            start,
            committed: open.map_or(0, |commit| commit.0),
            durable: durable.0,
        }
    }

    /// This client is told of changes to these from now on.
    pub(crate) fn note(&self, caller: Option<&pb::Caller>, inodes: &[u64]) {
        let client = caller.and_then(|caller| ClientId::from_bytes(&caller.client));
        if let Some(noter) = client.and_then(|client| self.interests.noter(client)) {
            for &inode in inodes {
                noter.attributes(InodeId(inode));
            }
        }
    }

    /// Runs a request exactly once: its answer is recorded in the same transaction, and a retry
    /// is given that.
    pub(crate) fn mutate<R: Message + Default>(
        &self,
        who: &Who,
        operation: Operation,
        mut body: impl FnMut(&mut Tx<'_>) -> Result<R>,
    ) -> Result<R> {
        match self.mutate_step(who, operation, |tx| body(tx).map(Step::Done))? {
            Step::Done(reply) => Ok(reply),
            Step::Blocked(inode) => {
                let what = format!("inode {inode} blocks an operation that nothing blocks");
                Err(Error::new(ErrorCode::Internal, what))
            }
        }
    }

    /// Like [`Self::mutate`], for an operation that a truncation in progress may block.
    pub(crate) fn mutate_step<R: Message + Default>(
        &self,
        who: &Who,
        operation: Operation,
        mut body: impl FnMut(&mut Tx<'_>) -> Result<Step<R>>,
    ) -> Result<Step<R>> {
        self.admit(who)?;
        self.write_for(Some(who.client), |tx| once(tx, who, operation, &mut body))
    }

    /// Lets a request with a number in.
    fn admit(&self, who: &Who) -> Result<()> {
        if who.request == 0 {
            let what = "the request has no number, so that a retry of it could not be recognised";
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        }
        self.sessions
            .touch(who.client, who.request, who.acknowledged)
    }

    /// A number for an inode or a session.
    pub(crate) fn next_id(&self) -> Result<u64> {
        self.ids.next(&*self.engine, &self.policy)
    }

    /// What children of this directory get; the chain table version and the seed are drawn later.
    pub(crate) fn inherited_layout(&self, dir: &InodeRecord) -> pb::LayoutMsg {
        dir.layout.unwrap_or(pb::LayoutMsg {
            chunk_size: self.defaults.chunk_size,
            page_size: self.defaults.page_size,
            table: TABLE.0,
            table_version: 0,
            stripe_width: self.defaults.stripe_width,
            seed: 0,
        })
    }

    /// The layout of a new file in this directory, or [`ErrorCode::NoChains`].
    pub(crate) fn new_layout(&self, dir: &InodeRecord) -> Result<Layout> {
        let inherited = self.inherited_layout(dir);
        let table = ChainTableId(inherited.table);
        let map = self.map.borrow().clone();
        let newest = map
            .newest_table(table)
            .filter(|(_, chains)| !chains.is_empty());
        let (version, _): (ChainTableVersion, _) = newest.ok_or_else(|| {
            let what = "no storage is available yet: not enough storage servers have joined the \
                        cluster; start them, then try again";
            Error::new(ErrorCode::NoChains, what).retry_after_ms(500)
        })?;
        Ok(Layout {
            chunk_size: inherited.chunk_size,
            page_size: inherited.page_size,
            table,
            table_version: version,
            stripe_width: inherited.stripe_width,
            seed: rand::random(),
        })
    }
}

/// Whether what did not work at once may work for who takes his time (and finds out, if need be, whether it has worked).
fn needs_time(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::NotCached | ErrorCode::MaybeCommitted) || kv::is_retried(code)
}

/// The request itself, or the answer that an earlier run of it has left.
fn once<R: Message + Default>(
    tx: &mut Tx<'_>,
    who: &Who,
    operation: Operation,
    body: impl FnOnce(&mut Tx<'_>) -> Result<Step<R>>,
) -> Result<Step<R>> {
    let key = keys::answer(who.client, who.request);
    if let Some(answer) = tx.get::<Answer>(&key)? {
        return replay(who, operation, answer).map(Step::Done);
    }
    let step = body(tx)?;
    if let Step::Done(reply) = &step {
        let answer = Answer {
            operation: operation as u32,
            reply: reply.encode_to_vec().into(),
        };
        tx.put(&key, &answer);
    }
    Ok(step)
}

fn replay<R: Message + Default>(who: &Who, operation: Operation, answer: Answer) -> Result<R> {
    if answer.operation != operation as u32 {
        let what = format!(
            "client {} used request number {} for two operations",
            who.client, who.request
        );
        return Err(Error::new(ErrorCode::InvalidArgument, what));
    }
    R::decode(answer.reply).map_err(|e| {
        let what = format!(
            "the recorded answer to request {} is damaged: {e}",
            who.request
        );
        Error::new(ErrorCode::Internal, what)
    })
}
