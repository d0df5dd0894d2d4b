//! Short conversations with servers: every call of a diagnostic verb has its own time limit.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use emberfs_proto::pb;
use emberfs_proto::pb::cluster_client::ClusterClient;
use emberfs_proto::pb::metadata_client::MetadataClient;
use emberfs_proto::pb::storage_admin_client::StorageAdminClient;
use tonic::transport::{Channel, Endpoint};

use crate::cli::DirArg;
use crate::cluster_dir::{ClusterDir, Plan};
use crate::failure::{Failure, Result};

/// How long a connection may take.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// How long an answer about state may take.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Largest answer that is accepted: maps of big clusters and pages of inodes.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Which cluster a verb is about.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    /// `host:port` of its metadata server.
    pub(crate) address: String,
    /// The cluster of this host, if that is how it was named.
    pub(crate) local: Option<(ClusterDir, Plan)>,
}

impl Seat {
    /// From `--cluster` or `EMBERFS_CLUSTER`, else from the directory of a cluster on this host.
    pub(crate) fn find(cluster: Option<String>, dir: &DirArg) -> Result<Self> {
        // An empty variable of the environment names none.
        if let Some(address) = cluster.filter(|address| !address.is_empty()) {
            return Ok(Self {
                address,
                local: None,
            });
        }
        let dir = ClusterDir::at(&dir.dir)?;
        let plan = dir.load()?.ok_or_else(|| {
            Failure::new(format!(
                "no cluster in {}: name one with --cluster HOST:PORT, EMBERFS_CLUSTER or --dir",
                dir.root().display()
            ))
            .broken()
        })?;
        Ok(Self {
            address: plan.address(),
            local: Some((dir, plan)),
        })
    }
}

/// Connects to the cluster manager.
pub(crate) async fn cluster(address: &str) -> Result<ClusterClient<Channel>> {
    let channel = connect(address).await?;
    Ok(ClusterClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

/// Connects to the namespace service.
pub(crate) async fn metadata(address: &str) -> Result<MetadataClient<Channel>> {
    let channel = connect(address).await?;
    Ok(MetadataClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

/// Connects to a storage server's management service.
pub(crate) async fn storage_admin(address: &str) -> Result<StorageAdminClient<Channel>> {
    let channel = connect(address).await?;
    Ok(StorageAdminClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

async fn connect(address: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| {
        Failure::new(format!(
            "{address} is not an address: write HOST:PORT, such as db1:7400"
        ))
    })?;
    let endpoint = endpoint.connect_timeout(CONNECT_LIMIT).tcp_nodelay(true);
    match tokio::time::timeout(CONNECT_LIMIT, endpoint.connect()).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(Failure::new(format!(
            "cannot reach {address}: {}",
            root(&error)
        ))),
        Err(_) => Err(silent(address, CONNECT_LIMIT)),
    }
}

/// Waits for an answer for at most `limit`.
pub(crate) async fn answer<T>(
    address: &str,
    limit: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => {
            let error = emberfs_proto::Error::from(status);
            Err(Failure::new(format!("{address} answers: {error}")))
        }
        Err(_) => Err(silent(address, limit)),
    }
}

/// The cluster map once.
pub(crate) async fn map(address: &str) -> Result<pb::ClusterMapMsg> {
    let mut client = cluster(address).await?;
    answer(
        address,
        CALL_LIMIT,
        client.get_map(pb::WatchRequest::default()),
    )
    .await
}

fn silent(address: &str, limit: Duration) -> Failure {
    Failure::new(format!(
        "{address} does not answer within {} s",
        limit.as_secs()
    ))
}

/// "transport error" says nothing; its innermost cause does.
fn root(error: &dyn std::error::Error) -> impl Display {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
