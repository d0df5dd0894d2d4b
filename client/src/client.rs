//! A connected client.

use std::sync::Arc;

use emberfs_proto::cluster::ClusterMap;
use emberfs_proto::ids::{ClusterId, InodeId};

use crate::{ClientConfig, Error, ErrorCode, Result};

/// A connection to one cluster. Clones share it.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    config: ClientConfig,
    map: Arc<ClusterMap>,
}

impl Client {
    /// Connects: identity checks, the cluster map, and the background tasks.
    pub async fn connect(config: ClientConfig) -> Result<Self> {
        let _ = Self {
            inner: Arc::new(Inner {
                config,
                map: Arc::default(),
            }),
        };
        Err(Error::new(ErrorCode::Unsupported, "not built yet"))
    }

    /// Flushes everything, ends all sessions and stops the background tasks.
    pub async fn shutdown(&self) {}

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.inner.map.cluster
    }

    /// The root directory.
    pub fn root(&self) -> InodeId {
        InodeId::ROOT
    }

    /// The newest cluster map.
    pub fn map(&self) -> Arc<ClusterMap> {
        self.inner.map.clone()
    }

    /// The settings.
    pub fn config(&self) -> &ClientConfig {
        &self.inner.config
    }
}
