//! The metadata server as a process: one port, two services, one store.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use emberfs_proto::ids::{ClientId, NodeId};
use emberfs_proto::pb::cluster_server::ClusterServer;
use emberfs_proto::pb::metadata_server::MetadataServer;
use emberfs_proto::wire::metadata::MetadataFrames;
use emberfs_proto::wire::port;
use emberfs_proto::wire::server::{Host, Limits, serve};
use emberfs_proto::{Error, ErrorCode, Result};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::chunks::{Patience, WireChunks};
use crate::cluster::{Manager, ManagerConfig};
use crate::config::MetaConfig;
use crate::gc;
use crate::kv::{Engine, RocksEngine};
use crate::namespace::{Namespace, quotas};
use crate::service::MetadataService;

/// An idle connection is asked whether its peer is still there this often.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A peer that does not answer that within this time is gone.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests in progress per connection; further ones wait at the client. Waiting for a lock is one.
const REQUESTS_PER_CONNECTION: u32 = 1024;
/// Clients connected at once.
const CONNECTIONS: usize = 64 << 10;

/// Runs a metadata server until `stop`, then finishes the requests in progress and closes the store.
/// `ready` is told the address once requests are answered.
///
/// Fails with a message for the operator if the configuration is wrong, the port is taken, or
/// another server uses the same data directory.
pub async fn run(
    config: MetaConfig,
    stop: CancellationToken,
    ready: impl FnOnce(SocketAddr) + Send,
) -> Result<()> {
    config.validate()?;
    let listener = listen(&config.listen).await?;
    let address = listener
        .local_addr()
        .map_err(|e| local(&config.listen, &e))?;
    let engine = open_store(&config.data_dir).await?;
    let manager = Manager::open(engine.clone(), manager_config(&config)).await?;
    let namespace = open_namespace(&config, engine, &manager, stop.clone()).await?;

    let mut background = JoinSet::new();
    // Background work outlives the last request: those below stop when serving has stopped.
    let served = CancellationToken::new();
    {
        let (manager, stop) = (manager.clone(), served.clone());
        background.spawn(async move { manager.run(stop).await });
    }
    {
        let interval = Duration::from_millis(config.gc_interval_ms);
        let (namespace, stop) = (namespace.clone(), served.clone());
        background.spawn(async move {
            gc::run(namespace, interval, stop).await;
            Ok(())
        });
    }
    {
        let (namespace, stop) = (namespace.clone(), served.clone());
        background.spawn(async move {
            quotas::run(namespace, stop).await;
            Ok(())
        });
    }

    let port::Split {
        frames,
        grpc,
        accepting,
    } = port::split(listener);
    let service = MetadataService::new(namespace.clone(), stop.clone());
    let host = Host {
        cluster: manager.cluster(),
        node: NodeId::default(),
    };
    let limits = Limits {
        requests_per_connection: REQUESTS_PER_CONNECTION as usize,
        connections: CONNECTIONS,
        ..Limits::default()
    };
    let grace = Duration::from_millis(config.stop_grace_ms);
    let (stop_frames, stopped) = watch::channel(false);
    let by_frames = serve(
        frames,
        host,
        limits,
        Arc::new(MetadataFrames(service.clone())),
        stopped,
        grace,
    );
    let by_grpc = Server::builder()
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .max_concurrent_streams(Some(REQUESTS_PER_CONNECTION))
        .add_service(MetadataServer::new(service))
        .add_service(ClusterServer::new(manager.service()))
        .serve_with_incoming_shutdown(ReceiverStream::new(grpc), stop.clone().cancelled_owned());
    let serving = async {
        let both = async { tokio::join!(by_grpc, by_frames).0 };
        tokio::select! {
            ended = both => ended,
            () = accepting => Ok(()),
        }
    };
    tokio::pin!(serving);
    tracing::info!(
        cluster = %manager.cluster(),
        %address,
        advertise = config.advertise.as_deref().unwrap_or(&config.listen),
        "metadata server ready"
    );
    ready(address);

    // 1. Serve until told to stop, or until a part fails.
    let mut failure = None;
    let ended = tokio::select! {
        result = &mut serving => Some(result),
        () = stop.cancelled() => None,
        Some(result) = background.join_next() => {
            failure = Some(part_ended(result));
            None
        }
    };
    // 2. Requests in progress get their answers. Watchers would stay for ever, so the manager ends
    //    their streams now; and whoever waits for a lock asks again elsewhere or later.
    stop.cancel();
    stop_frames.send_replace(true);
    namespace.core.locks.stop();
    drop(namespace);
    served.cancel();
    let ended = match ended {
        Some(result) => Some(result),
        None => tokio::time::timeout(grace, &mut serving).await.ok(),
    };
    // 3. Background work ends; the store closes when its last user is gone.
    while let Some(result) = background.join_next().await {
        if !matches!(result, Ok(Ok(()))) {
            failure.get_or_insert(part_ended(result));
        }
    }
    tracing::info!(%address, "metadata server stopped");
    match (failure, ended) {
        (Some(error), _) => Err(error),
        (None, Some(Err(error))) => {
            let what = format!("the metadata server's port {address} failed: {error}");
            Err(Error::new(ErrorCode::Internal, what))
        }
        (None, _) => Ok(()),
    }
}

async fn listen(address: &str) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|e| local(address, &e))
}

fn local(address: &str, error: &std::io::Error) -> Error {
    let hint = match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "another process, perhaps another metadata server, listens there; stop it, or choose \
             another address with the configuration key `listen`"
        }
        std::io::ErrorKind::AddrNotAvailable => {
            "this host has no such address; set the configuration key `listen` to one that it has"
        }
        std::io::ErrorKind::PermissionDenied => {
            "ports below 1024 need privileges; choose another with the configuration key `listen`"
        }
        _ => "set the configuration key `listen` to host:port",
    };
    let what = format!("the metadata server cannot listen on {address}: {error}; {hint}");
    Error::new(ErrorCode::InvalidArgument, what)
}

async fn open_store(data_dir: &Path) -> Result<Arc<dyn Engine>> {
    let directory = data_dir.join("kv");
    let opened = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&directory).map_err(|e| {
            let what = format!(
                "the metadata server cannot create {}: {e}; check the configuration key \
                 `data_dir` and the permissions",
                directory.display()
            );
            Error::new(ErrorCode::DiskError, what)
        })?;
        let engine = RocksEngine::open(&directory)?;
        engine.make_ready()?;
        let engine: Arc<dyn Engine> = Arc::new(engine);
        Ok(engine)
    });
    opened
        .await
        .unwrap_or_else(|e| Err(crashed("the metadata store", &e)))
}

fn manager_config(config: &MetaConfig) -> ManagerConfig {
    ManagerConfig {
        replicas: config.replicas,
        expected_nodes: config.expected_nodes,
        targets_per_disk: config.targets_per_disk,
        lease: Duration::from_millis(config.lease_ms),
        heartbeat: Duration::from_millis(config.heartbeat_ms),
    }
}

async fn open_namespace(
    config: &MetaConfig,
    engine: Arc<dyn Engine>,
    manager: &Arc<Manager>,
    stop: CancellationToken,
) -> Result<Arc<Namespace>> {
    let (cluster, map) = (manager.cluster(), manager.watch());
    let client = ClientId(rand::random());
    let chunks = Arc::new(WireChunks::new(
        cluster,
        client,
        map.clone(),
        Patience::default(),
        stop,
    ));
    let space = {
        let manager = manager.clone();
        Box::new(move || manager.space())
    };
    let config = config.clone();
    let opened = tokio::task::spawn_blocking(move || {
        Namespace::open(&config, engine, cluster, map, chunks, space)
    });
    opened
        .await
        .unwrap_or_else(|e| Err(crashed("the namespace", &e)))
}

fn part_ended(result: Result<Result<()>, tokio::task::JoinError>) -> Error {
    match result {
        Ok(Ok(())) => {
            let what =
                "a background task of the metadata server ended by itself; restart the server";
            Error::new(ErrorCode::Internal, what)
        }
        Ok(Err(error)) => error,
        Err(error) => crashed("a background task of the metadata server", &error),
    }
}

fn crashed(what: &str, error: &tokio::task::JoinError) -> Error {
    Error::new(
        ErrorCode::Internal,
        format!("{what} crashed: {error}; its log has the details"),
    )
}

#[cfg(test)]
mod tests;
