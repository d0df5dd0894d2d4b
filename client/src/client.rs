//! A connected client.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use emberfs_proto::cluster::ClusterMap;
use emberfs_proto::ids::{ClientId, ClusterId, InodeId};
use emberfs_proto::wire::metadata::MetadataCaller;
use emberfs_proto::{Error, ErrorCode, Result, pb, wire};
use futures::StreamExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attr::AttrExt;
use crate::budget::Budget;
use crate::chunk_io::ChunkIo;
use crate::core::Core;
use crate::delegations::Delegations;
use crate::early_read::Credit;
use crate::ends::Ends;
use crate::locks::Book;
use crate::map_watch::MapWatch;
use crate::meta_rpc::{Effect, MetaRpc, attr_of};
use crate::name_changes::NameChanges;
use crate::stats::Stats;
use crate::{ClientConfig, Creds, Identity, background};

/// Longest [`Client::shutdown`], when the client has no limit of its own.
const SHUTDOWN_LIMIT: Duration = Duration::from_mins(1);
/// Files closed at the same time at shutdown.
const SHUTDOWN_CLOSES: usize = 16;

/// A connection to one cluster. Clones share it. Must be used within the tokio runtime it was
/// connected in.
#[derive(Clone)]
pub struct Client {
    pub(crate) core: Arc<Core>,
}

impl Client {
    /// Connects: identity checks, the cluster map, and the background tasks.
    pub async fn connect(config: ClientConfig) -> Result<Self> {
        let identity = Identity::of(config.identity)?;
        let stop = CancellationToken::new();
        let meta = MetaRpc::new(&config.meta, identity, config.io_timeout, stop.clone())?;
        // Ends the tasks that were started if a later step fails.
        let guard = stop.clone().drop_guard();
        let limit = config.connect_timeout;
        let hello = attach(&meta, &config, Some(limit)).await?;
        let cluster = ClusterId::from_bytes(&hello.cluster).ok_or_else(|| {
            Error::new(
                ErrorCode::Protocol,
                "the metadata server did not say which cluster it serves",
            )
        })?;
        meta.belong_to(cluster);
        let root = attr_of(hello.root)?.id();
        let map = MapWatch::start(meta.cluster(), cluster, limit, stop.clone()).await?;
        let io = ChunkIo::new(map, identity, &config, stop.clone());
        let core = Arc::new(Core {
            budget: Budget::new(config.memory_bytes),
            config,
            cluster,
            root,
            lease: Duration::from_millis(u64::from(hello.lease_ms.max(1))),
            meta,
            io,
            inodes: parking_lot::Mutex::default(),
            locks: Book::new(identity),
            ends: Ends::default(),
            delegations: Delegations::default(),
            names: NameChanges::default(),
            early: Credit::default(),
            parents: OnceLock::new(),
            closing: TaskTracker::new(),
            runtime: tokio::runtime::Handle::current(),
            stop,
        });
        // From here on the core's own drop ends the tasks.
        drop(guard.disarm());
        background::start(&core);
        Ok(Self { core })
    }

    /// Flushes everything, ends all sessions and stops the background tasks. Waits for servers no
    /// longer than [`ClientConfig::io_timeout`] (one minute if that is unlimited).
    pub async fn shutdown(&self) {
        let end = async {
            let open = self.core.all_known().into_iter().flat_map(|state| {
                let handles = state.open_handles();
                handles
                    .into_iter()
                    .map(move |handle| (state.clone(), handle))
            });
            let open: Vec<_> = open.collect();
            let closes = futures::stream::iter(open).map(|(state, handle)| async move {
                if handle.closed.swap(true, std::sync::atomic::Ordering::AcqRel) {
                    return;
                }
                if let Err(error) = self.core.end_session(&state, &handle).await {
                    tracing::warn!(inode = %state.inode, %error, "closing a file at shutdown failed");
                }
            });
            closes
                .buffer_unordered(SHUTDOWN_CLOSES)
                .collect::<()>()
                .await;
            self.core.closing.close();
            self.core.closing.wait().await;
            self.core.leave_locks().await;
            Ok(())
        };
        if let Err(error) = self.within_shutdown(end).await {
            tracing::warn!(%error, "shutdown");
        }
        self.core.stop.cancel();
    }

    /// Does what a process still does before it stops, as long as it may take.
    pub(crate) async fn within_shutdown(
        &self,
        work: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let limit = self.core.config.io_timeout.unwrap_or(SHUTDOWN_LIMIT);
        let done = tokio::time::timeout(limit, work).await;
        done.unwrap_or_else(|_| {
            let what = format!(
                "not everything could be flushed within {} s",
                limit.as_secs()
            );
            Err(Error::new(ErrorCode::DeadlineExceeded, what))
        })
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.core.cluster
    }

    /// Who this client is, to servers.
    pub fn id(&self) -> ClientId {
        self.core.meta.client()
    }

    /// The root directory.
    pub fn root(&self) -> InodeId {
        self.core.root
    }

    /// The newest cluster map.
    pub fn map(&self) -> Arc<ClusterMap> {
        self.core.io.map.current()
    }

    /// The settings.
    pub fn config(&self) -> &ClientConfig {
        &self.core.config
    }

    /// What this client has done so far.
    pub fn stats(&self) -> Stats {
        self.core.io.counters.snapshot()
    }

    /// Bytes of memory in use: (buffered writes, read-ahead).
    pub fn memory_used(&self) -> (usize, usize) {
        self.core.budget.used()
    }
}

/// Introduces this client to the metadata server.
pub(crate) async fn attach(
    meta: &MetaRpc,
    config: &ClientConfig,
    limit: Option<Duration>,
) -> Result<pb::AttachReply> {
    let send = |server: MetadataCaller, caller| {
        let request = pb::AttachRequest {
            caller: Some(caller),
            cluster: config.cluster.map(ClusterId::to_bytes).unwrap_or_default(),
            protocol_version: wire::MAX_VERSION,
            host: config.host.clone(),
        };
        async move { server.attach(request).await }
    };
    let reply = meta
        .run_within(limit, "attach", &Creds::default(), Effect::Reads, send)
        .await?;
    if !(wire::MIN_VERSION..=wire::MAX_VERSION).contains(&reply.protocol_version) {
        let what = format!(
            "the metadata server speaks protocol version {}, this client {} to {}; upgrade the older side",
            reply.protocol_version,
            wire::MIN_VERSION,
            wire::MAX_VERSION
        );
        return Err(Error::new(ErrorCode::IncompatibleVersion, what));
    }
    Ok(reply)
}
