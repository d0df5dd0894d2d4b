//! A namespace without a cluster: a map with a few chains, chunks as one number per file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use emberfs_proto::cluster::ClusterMap;
use emberfs_proto::ids::{ChainId, ClientId, ClusterId, InodeId, MapVersion};
use emberfs_proto::layout::Layout;
use emberfs_proto::{Error, ErrorCode, Result, pb};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::chunks::ChunkStore;
use crate::config::MetaConfig;
use crate::kv::{Engine, MemoryEngine};
use crate::namespace::Namespace;

pub(super) const ROOT: u64 = 1;
pub(super) const CLUSTER: ClusterId = ClusterId(77);

/// Chunks of files as the place where each file's data ends.
#[derive(Default)]
pub(super) struct FakeChunks {
    pub(super) ends: Mutex<BTreeMap<InodeId, u64>>,
    pub(super) cuts: Mutex<Vec<(InodeId, u64)>>,
    pub(super) removed: Mutex<BTreeSet<InodeId>>,
    /// While set, every call fails.
    pub(super) down: Mutex<bool>,
    /// While set, cuts wait for [`Self::go`].
    pub(super) slow: Mutex<bool>,
    pub(super) waiting: Notify,
    pub(super) go: Notify,
}

impl FakeChunks {
    pub(super) fn write(&self, inode: u64, end: u64) {
        let mut ends = self.ends.lock();
        let now = ends.entry(InodeId(inode)).or_default();
        *now = end.max(*now);
    }

    pub(super) fn end_of(&self, inode: u64) -> Option<u64> {
        self.ends.lock().get(&InodeId(inode)).copied()
    }

    fn check(&self) -> Result<()> {
        if *self.down.lock() {
            return Err(Error::new(ErrorCode::Unavailable, "no replica answers"));
        }
        Ok(())
    }
}

impl ChunkStore for FakeChunks {
    fn cut(&self, inode: InodeId, _: Layout, size: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.check()?;
            if *self.slow.lock() {
                self.waiting.notify_one();
                self.go.notified().await;
            }
            self.cuts.lock().push((inode, size));
            if let Some(end) = self.ends.lock().get_mut(&inode) {
                *end = size.min(*end);
            }
            Ok(())
        })
    }

    fn remove(&self, inode: InodeId, _: Layout) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.check()?;
            self.ends.lock().remove(&inode);
            self.removed.lock().insert(inode);
            Ok(())
        })
    }

    fn end(&self, inode: InodeId, _: Layout) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            self.check()?;
            Ok(self.ends.lock().get(&inode).copied().unwrap_or(0))
        })
    }
}

/// A namespace and what is around it.
pub(super) struct Fixture {
    pub(super) ns: Arc<Namespace>,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) chunks: Arc<FakeChunks>,
    pub(super) map: watch::Sender<Arc<ClusterMap>>,
}

/// Request numbers grow over restarts too.
static REQUESTS: AtomicU64 = AtomicU64::new(1);

pub(super) fn config() -> MetaConfig {
    MetaConfig {
        stripe_width: 4,
        ..MetaConfig::default()
    }
}

pub(super) fn map_with_chains() -> ClusterMap {
    let mut map = ClusterMap {
        version: MapVersion(1),
        cluster: CLUSTER,
        replicas: 2,
        ..ClusterMap::default()
    };
    map.tables
        .insert((1.into(), 3.into()), (1..=8).map(ChainId).collect());
    map
}

impl Fixture {
    pub(super) fn new() -> Self {
        Self::over(Arc::new(MemoryEngine::new()), Arc::default())
    }

    pub(super) fn over(engine: Arc<dyn Engine>, chunks: Arc<FakeChunks>) -> Self {
        Self::configured(&config(), engine, chunks)
    }

    pub(super) fn configured(
        config: &MetaConfig,
        engine: Arc<dyn Engine>,
        chunks: Arc<FakeChunks>,
    ) -> Self {
        let (map, updates) = watch::channel(Arc::new(map_with_chains()));
        let space = Box::new(|| pb::Space {
            capacity: 1000,
            used: 400,
            free: 600,
        });
        let store: Arc<dyn ChunkStore> = chunks.clone();
        let ns = Namespace::open(config, engine.clone(), CLUSTER, updates, store, space);
        Self {
            ns: ns.unwrap(),
            engine,
            chunks,
            map,
        }
    }

    /// A server that starts over the same store and chunks. Sessions in memory are gone.
    pub(super) fn restart(self) -> Self {
        Self::over(self.engine.clone(), self.chunks.clone())
    }

    /// Root's next request.
    pub(super) fn root(&self) -> Option<pb::Caller> {
        self.user(0)
    }

    /// A user's next request; the group has the user's number.
    pub(super) fn user(&self, uid: u32) -> Option<pb::Caller> {
        self.client(1, uid)
    }

    /// The next request of a user on a client.
    #[expect(
        clippy::unnecessary_wraps,
        clippy::unused_self,
        reason = "requests hold an optional caller; reads better at the fixture"
    )]
    pub(super) fn client(&self, client: u128, uid: u32) -> Option<pb::Caller> {
        Some(pb::Caller {
            client: ClientId(client).to_bytes(),
            request: REQUESTS.fetch_add(1, Ordering::Relaxed),
            uid,
            gid: uid,
            groups: Vec::new(),
            acknowledged: 0,
            cluster: Bytes::new(),
            instance: 0,
        })
    }

    pub(super) async fn mkdir(&self, parent: u64, name: &str) -> pb::Attr {
        self.try_mkdir(self.root(), parent, name, 0o755)
            .await
            .unwrap()
    }

    pub(super) async fn try_mkdir(
        &self,
        caller: Option<pb::Caller>,
        parent: u64,
        name: &str,
        mode: u32,
    ) -> Result<pb::Attr> {
        let name = bytes(name);
        let request = pb::MkdirRequest {
            caller,
            parent,
            name,
            mode,
            ..Default::default()
        };
        Ok(self.ns.mkdir(request).await?.attr.unwrap())
    }

    /// Creates and closes a file.
    pub(super) async fn file(&self, parent: u64, name: &str) -> pb::Attr {
        let opened = self.create(self.root(), parent, name, 0o644).await.unwrap();
        let attr = opened.attr.unwrap();
        self.close(attr.inode, opened.session).await;
        attr
    }

    /// Creates a file open for writing.
    pub(super) async fn create(
        &self,
        caller: Option<pb::Caller>,
        parent: u64,
        name: &str,
        mode: u32,
    ) -> Result<pb::OpenReply> {
        let request = pb::CreateRequest {
            caller,
            parent,
            name: bytes(name),
            mode,
            exclusive: true,
            truncate: false,
            write: true,
            ..Default::default()
        };
        self.ns.create(request).await
    }

    pub(super) async fn open(&self, inode: u64, write: bool) -> Result<pb::OpenReply> {
        self.open_as(self.root(), inode, write, false).await
    }

    pub(super) async fn open_as(
        &self,
        caller: Option<pb::Caller>,
        inode: u64,
        write: bool,
        truncate: bool,
    ) -> Result<pb::OpenReply> {
        let read = !write;
        self.ns
            .open_inode(pb::OpenRequest {
                execute: false,
                caller,
                inode,
                read,
                write,
                truncate,
            })
            .await
    }

    /// Closes without a report.
    pub(super) async fn close(&self, inode: u64, session: u64) -> pb::Attr {
        let caller = self.root();
        let request = pb::SyncRequest {
            caller,
            inode,
            session,
            ..Default::default()
        };
        self.ns.close(request).await.unwrap().attr.unwrap()
    }

    /// Reports an end.
    pub(super) async fn sync(
        &self,
        inode: u64,
        session: u64,
        end: u64,
        epoch: u64,
    ) -> Result<pb::Attr> {
        let request = pb::SyncRequest {
            caller: self.root(),
            inode,
            session,
            end: Some(end),
            truncate_epoch: epoch,
            mtime: None,
            sparse: false,
            settle: false,
            starts: Vec::new(),
        };
        Ok(self.ns.sync(request).await?.attr.unwrap())
    }

    pub(super) async fn truncate(&self, inode: u64, size: u64) -> Result<pb::Attr> {
        let request = pb::SetAttrRequest {
            caller: self.root(),
            inode,
            size: Some(size),
            ..Default::default()
        };
        Ok(self.ns.setattr(request).await?.attr.unwrap())
    }

    pub(super) async fn unlink(&self, parent: u64, name: &str) -> Result<pb::Attr> {
        Ok(self
            .ns
            .unlink(self.named(parent, name))
            .await?
            .attr
            .unwrap())
    }

    pub(super) async fn rmdir(&self, parent: u64, name: &str) -> Result<pb::Attr> {
        Ok(self.ns.rmdir(self.named(parent, name)).await?.attr.unwrap())
    }

    pub(super) async fn lookup(&self, parent: u64, name: &str) -> Result<pb::Attr> {
        Ok(self
            .ns
            .lookup(self.named(parent, name))
            .await?
            .attr
            .unwrap())
    }

    pub(super) async fn attr(&self, inode: u64) -> Result<pb::Attr> {
        let caller = self.root();
        Ok(self
            .ns
            .getattr(pb::GetAttrRequest { caller, inode })
            .await?
            .attr
            .unwrap())
    }

    pub(super) async fn rename(
        &self,
        parent: u64,
        name: &str,
        new_parent: u64,
        new_name: &str,
    ) -> Result<pb::RenameReply> {
        self.rename_with(parent, name, new_parent, new_name, false, false)
            .await
    }

    pub(super) async fn rename_with(
        &self,
        parent: u64,
        name: &str,
        new_parent: u64,
        new_name: &str,
        no_replace: bool,
        exchange: bool,
    ) -> Result<pb::RenameReply> {
        let request = pb::RenameRequest {
            caller: self.root(),
            parent,
            name: bytes(name),
            new_parent,
            new_name: bytes(new_name),
            no_replace,
            exchange,
        };
        self.ns.rename(request).await
    }

    /// All names of a directory, in pages of three.
    pub(super) async fn names(&self, inode: u64) -> Vec<String> {
        let mut names = Vec::new();
        let mut after = Bytes::new();
        loop {
            let caller = self.root();
            let request = pb::ReadDirRequest {
                caller,
                inode,
                after: after.clone(),
                limit: 3,
            };
            let page = self.ns.readdir(request).await.unwrap();
            names.extend(
                page.entries
                    .iter()
                    .map(|e| String::from_utf8(e.name.to_vec()).unwrap()),
            );
            match page.entries.last() {
                Some(last) if !page.end => after = last.name.clone(),
                _ => return names,
            }
        }
    }

    pub(super) fn named(&self, parent: u64, name: &str) -> pb::NameRequest {
        let name = bytes(name);
        pb::NameRequest {
            caller: self.root(),
            parent,
            name,
        }
    }

    pub(super) async fn collect(&self) -> crate::gc::Pass {
        self.collect_in(&mut crate::gc::Window::default()).await
    }

    pub(super) async fn collect_in(&self, window: &mut crate::gc::Window) -> crate::gc::Pass {
        crate::gc::collect(&self.ns, window).await.unwrap()
    }

    /// Lets so much time pass for clients' leases.
    pub(super) async fn expire_after(&self, time: Duration) {
        self.ns
            .expire(std::time::Instant::now() + time)
            .await
            .unwrap();
    }

    pub(super) async fn summary(&self) -> pb::SummaryReply {
        self.ns.summary().await.unwrap()
    }
}

pub(super) fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// The code of an expected failure.
pub(super) fn code<T: std::fmt::Debug>(result: Result<T>) -> ErrorCode {
    result.unwrap_err().code
}
