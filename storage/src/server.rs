//! The storage server process: opens disks, joins the cluster, serves until told to stop.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use emberfs_proto::ids::{ClusterId, DiskId, IncarnationId, MapVersion, NodeId};
use emberfs_proto::pb::storage_admin_server::StorageAdminServer;
use emberfs_proto::wire::server::{Host, Limits, serve};
use emberfs_proto::{Error, ErrorCode, Result, pb};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

use crate::config::{Durability, StorageConfig};
use crate::engine::identity::{DiskIdentity, DiskLock};
use crate::engine::{self, Engine, EngineConfig};
use crate::node::{self, Admin, Data, Node, OpenDisk, Registration};

/// Logs of a disk's index need not grow before they are this long, bytes.
const READY_LOG_BYTES: usize = 8 << 20;
/// Longest wait at a clean stop for requests in progress.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Runs a storage server until `stop`. `ready` hears the data plane's address once the node is
/// registered and serves.
pub async fn run(
    config: StorageConfig,
    stop: CancellationToken,
    ready: impl FnOnce(SocketAddr) + Send,
) -> Result<()> {
    config.validate()?;
    let node = NodeId(config.node);
    let data = bind(&config.listen, "listen").await?;
    let admin = bind(&config.admin_listen, "admin_listen").await?;
    let data_addr = data.local_addr().map_err(|e| io("listen", &e))?;
    let admin_addr = admin.local_addr().map_err(|e| io("admin_listen", &e))?;
    let incarnation = IncarnationId(rand::random());

    let found = blocking({
        let config = config.clone();
        move || {
            config
                .disks
                .iter()
                .map(|path| Found::look(path, node))
                .collect::<Result<Vec<_>>>()
        }
    })
    .await?;
    let cluster = one_cluster(&found)?;
    let registration = Registration {
        meta: config.meta.clone(),
        cluster,
        node,
        incarnation,
        data_addr: advertised(&config, data_addr),
        admin_addr: advertised(&config, admin_addr),
        disks: found.iter().map(Found::describe).collect(),
        seen: found.iter().map(Found::map).max().unwrap_or_default(),
    };
    // Disks in use are opened first: that may take long, and a registered node must beat.
    let mut opened: Vec<Option<Engine>> = Vec::new();
    for disk in &found {
        let engine = match disk.identity {
            Some(_) => open(&config, &disk.lock).await.map(Some),
            None => Ok(None),
        };
        match engine {
            Ok(engine) => opened.push(engine),
            Err(error) => return Err(given_up(opened, error).await),
        }
    }
    let membership = match registration.register(MapVersion(0), &stop).await {
        Ok(membership) => membership,
        Err(error) => {
            let error = match found.iter().find(|disk| disk.identity.is_some()) {
                Some(disk) if error.code == ErrorCode::WrongCluster => {
                    error.context(format!("foreign disk {}", disk.lock.path().display()))
                }
                _ => error,
            };
            return Err(given_up(opened, error).await);
        }
    };
    let mut disks = Vec::new();
    for (disk, engine) in found.into_iter().zip(opened) {
        let path = disk.lock.path().to_owned();
        let (map, opening) = (membership.map, disk.opening);
        let engine = match (engine, disk.identity) {
            (Some(engine), Some(identity)) => {
                blocking(move || identity.accept(&path, map)).await?;
                engine
            }
            _ => {
                let mut identity = DiskIdentity::new(membership.cluster, node, disk.id);
                identity.openings.accepted = opening;
                identity.map = map;
                blocking(move || DiskIdentity::format(&path, identity)).await?;
                open(&config, &disk.lock).await?
            }
        };
        disks.push((
            OpenDisk {
                id: disk.id,
                path: disk.lock.path().to_owned(),
                engine,
            },
            disk.lock,
        ));
    }
    let (disks, locks): (Vec<_>, Vec<_>) = disks.into_iter().unzip();

    let limits = Limits {
        payload_bytes_per_hop: config.payload_bytes,
        ..Limits::default()
    };
    let shared = Node::new(config, membership.cluster, incarnation, disks);
    let (closing, closed) = watch::channel(false);
    let host = Host {
        cluster: membership.cluster,
        node,
    };
    let service = Arc::new(Data::new(shared.clone()));
    let data = tokio::spawn(serve(
        data,
        host,
        limits,
        service,
        closed.clone(),
        STOP_GRACE,
    ));
    let admin = tokio::spawn(serve_admin(admin, shared.clone(), closed));
    let leaving = CancellationToken::new();
    let member = {
        let (registration, node, leaving) = (registration.clone(), shared.clone(), leaving.clone());
        tokio::spawn(async move { registration.keep(node, membership, leaving).await })
    };
    let scrub = tokio::spawn(node::scrub(shared.clone(), leaving.clone()));
    tracing::info!(%node, %data_addr, cluster = %membership.cluster, "storage server ready");
    ready(data_addr);

    stop.cancelled().await;
    tracing::info!(%node, "stopping: leaving the chains");
    // Once the manager knows, the chains go on without this node, whose map may be older still.
    shared.lease.resign();
    if let Err(error) = registration.leave().await {
        tracing::warn!(%error, "left without the cluster manager's consent; fail-over waits for the closed port");
    }
    // The listener closes last (within `serve`), when nothing is served any more.
    let _ = closing.send(true);
    for task in [data, admin] {
        if let Err(error) = task.await {
            tracing::error!(%error, "server task failed");
        }
    }
    leaving.cancel();
    let _ = member.await;
    let _ = scrub.await;
    shared.shutdown().await;
    drop(locks);
    tracing::info!(%node, "stopped");
    Ok(())
}

/// The start has failed: ends the engines that run already. A process that exits beside their threads may crash.
async fn given_up(opened: Vec<Option<Engine>>, error: Error) -> Error {
    for engine in opened.into_iter().flatten() {
        engine.shutdown().await;
    }
    error
}

/// A disk directory before it is opened.
struct Found {
    lock: DiskLock,
    id: DiskId,
    /// `None`: it is to be formatted.
    identity: Option<DiskIdentity>,
    /// The mark of this opening.
    opening: u64,
    capacity: u64,
}

impl Found {
    fn look(path: &Path, node: NodeId) -> Result<Self> {
        // Made by the operator only: in place of a disk that is not mounted there must be no empty one.
        let unusable = |why: &dyn std::fmt::Display| {
            let what = format!(
                "disk directory {} {why}; mount the disk, make the directory of a new one, or correct `disks`",
                path.display()
            );
            Error::new(ErrorCode::DiskError, what)
        };
        match std::fs::metadata(path) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(unusable(&"is not a directory")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(unusable(&"does not exist"));
            }
            Err(error) => return Err(unusable(&format_args!("cannot be used: {error}"))),
        }
        let lock = DiskLock::acquire(path)?;
        let mut identity = DiskIdentity::load(path)?;
        if let Some(identity) = &identity
            && identity.node != node
        {
            let what = format!(
                "disk {} belongs to node {}, this is node {node}; correct `disks` or `node`",
                path.display(),
                identity.node
            );
            return Err(Error::new(ErrorCode::ForeignDisk, what));
        }
        let stat = rustix::fs::statvfs(path).map_err(|e| {
            Error::new(
                ErrorCode::DiskError,
                format!("disk directory {}: {e}", path.display()),
            )
        })?;
        let mut opening = rand::random::<u64>() | 1;
        if let Some(identity) = &mut identity {
            identity.propose(path, opening)?;
            opening = identity.openings.proposed;
        }
        Ok(Self {
            id: identity.map_or_else(|| DiskId(rand::random()), |identity| identity.disk),
            identity,
            opening,
            capacity: stat.f_blocks * stat.f_frsize,
            lock,
        })
    }

    /// As the cluster manager is told.
    fn describe(&self) -> pb::DiskMsg {
        pb::DiskMsg {
            id: self.id.to_bytes(),
            path: self.lock.path().display().to_string(),
            capacity: self.capacity,
            opening: self.opening,
            last_opening: self
                .identity
                .map_or(0, |identity| identity.openings.accepted),
        }
    }

    /// A map that the cluster has certainly seen.
    fn map(&self) -> MapVersion {
        self.identity.map_or(MapVersion(0), |identity| identity.map)
    }
}

fn one_cluster(found: &[Found]) -> Result<Option<ClusterId>> {
    let mut cluster = None;
    for disk in found {
        match (cluster, disk.identity.map(|identity| identity.cluster)) {
            (Some(a), Some(b)) if a != b => {
                let what = format!(
                    "disk {} belongs to cluster {b}, another disk of this node to {a}; remove one from `disks`",
                    disk.lock.path().display()
                );
                return Err(Error::new(ErrorCode::ForeignDisk, what));
            }
            (None, b) => cluster = b,
            _ => {}
        }
    }
    Ok(cluster)
}

async fn open(config: &StorageConfig, lock: &DiskLock) -> Result<Engine> {
    let engine_config = EngineConfig {
        durability: match config.durability {
            Durability::Power => engine::Durability::Power,
            Durability::Process => engine::Durability::Process,
        },
        reserve_bytes: config.reserve_bytes,
        cache_entries: config.cache_entries,
        queue_depth: config.queue_depth,
        capacity_bytes: (config.capacity_bytes > 0).then_some(config.capacity_bytes),
        index_cache_bytes: config.index_cache_bytes,
        io_buffer_bytes: config.io_buffer_bytes,
        ready_log_bytes: READY_LOG_BYTES,
        ..EngineConfig::new(lock.path())
    };
    blocking(move || Engine::open(engine_config)).await
}

async fn serve_admin(listener: TcpListener, node: Arc<Node>, mut closed: watch::Receiver<bool>) {
    let incoming = TcpListenerStream::new(listener);
    let stop = async move {
        // An error means that the sender is gone: stop as well.
        let _ = closed.wait_for(|closed| *closed).await;
    };
    let served = tonic::transport::Server::builder()
        .add_service(StorageAdminServer::new(Admin::new(node)))
        .serve_with_incoming_shutdown(incoming, stop)
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "management service failed");
    }
}

async fn bind(addr: &str, key: &str) -> Result<TcpListener> {
    TcpListener::bind(addr).await.map_err(|e| {
        let what = format!("cannot listen on {addr}: {e}; free the port or change `{key}`");
        Error::new(ErrorCode::Unavailable, what)
    })
}

/// Where others reach a listener of this node.
fn advertised(config: &StorageConfig, addr: SocketAddr) -> String {
    if config.advertise.is_empty() {
        addr.to_string()
    } else {
        format!("{}:{}", config.advertise, addr.port())
    }
}

fn io(what: &str, error: &std::io::Error) -> Error {
    Error::new(ErrorCode::Unavailable, format!("{what}: {error}"))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        Err(Error::new(
            ErrorCode::Internal,
            format!("start-up task failed: {e}"),
        ))
    })
}
