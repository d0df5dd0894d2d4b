//! Calls to the metadata server: numbered, retried, patient.
//!
//! Every change carries a request number that its retries repeat, so the server answers a retry
//! from its record instead of doing the change again. `acknowledged` tells the server which records
//! no retry can ask for any more.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use emberfs_proto::ids::{ClientId, ClusterId};
use emberfs_proto::pb::{self, cluster_client::ClusterClient, metadata_client::MetadataClient};
use emberfs_proto::wire::client::{Identity as WireIdentity, Peer};
use emberfs_proto::wire::metadata::MetadataCaller;
use emberfs_proto::{Error, ErrorCode, Result};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::numbers::Numbers;
use crate::retry::Patience;
use crate::{Creds, Identity, request_scope};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A silent stream is tested this often, and given up when no answer comes as long again.
const PING_EVERY: Duration = Duration::from_secs(5);
/// Longest wait for one answer; then the request is repeated.
const ATTEMPT_TIMEOUT: Duration = Duration::from_mins(1);
/// Largest message accepted: a cluster map of a few hundred thousand targets.
const MAX_MESSAGE: usize = 64 << 20;

/// Whether a request changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// No: it needs no number.
    Reads,
    /// Yes: once, whoever repeats it.
    Changes,
    /// Yes, and no later process repeats it: what may be done twice (a report), or concerns this process only (its
    /// sessions).
    Own,
}

/// The metadata server, as seen by one client.
pub(crate) struct MetaRpc {
    server: Arc<Peer>,
    /// What frames do not carry.
    streams: MetadataClient<Channel>,
    cluster: ClusterClient<Channel>,
    addr: String,
    identity: Identity,
    /// The cluster that this client belongs to, once it is known.
    own: OnceLock<ClusterId>,
    numbers: Arc<Numbers>,
    limit: Option<Duration>,
    stop: CancellationToken,
}

impl MetaRpc {
    /// Connects lazily to `addr` (`host:port`), and again whenever the connection breaks.
    pub(crate) fn new(
        addr: &str,
        identity: Identity,
        limit: Option<Duration>,
        stop: CancellationToken,
    ) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{addr}")).map_err(|e| {
            let what = format!("metadata server address {addr:?} is not host:port ({e})");
            Error::new(ErrorCode::InvalidArgument, what)
        })?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_EVERY)
            .keep_alive_while_idle(true);
        // Earlier processes of this client are refused request by request, because this one may attach beside them.
        let caller = WireIdentity {
            cluster: None,
            client: identity.client,
            instance: 0,
        };
        let channel = endpoint.connect_lazy();
        let cluster = ClusterClient::new(channel.clone());
        Ok(Self {
            server: Peer::metadata_server(addr, caller),
            streams: MetadataClient::new(channel),
            cluster: cluster.max_decoding_message_size(MAX_MESSAGE),
            addr: addr.to_owned(),
            identity,
            own: OnceLock::new(),
            numbers: Numbers::new(identity),
            limit,
            stop,
        })
    }

    /// From now on only the metadata server of this cluster may answer; the first one counts.
    pub(crate) fn belong_to(&self, cluster: ClusterId) {
        self.own.get_or_init(|| cluster);
    }

    /// Who this client is.
    pub(crate) fn client(&self) -> ClientId {
        self.identity.client
    }

    /// The numbers of this client's changes.
    pub(crate) fn numbers(&self) -> &Arc<Numbers> {
        &self.numbers
    }

    /// The metadata service's streams.
    pub(crate) fn streams(&self) -> MetadataClient<Channel> {
        self.streams.clone()
    }

    /// The cluster service.
    pub(crate) fn cluster(&self) -> ClusterClient<Channel> {
        self.cluster.clone()
    }

    /// Calls until an answer comes or the client's patience ends.
    pub(crate) async fn run<T, F>(
        &self,
        verb: &'static str,
        creds: &Creds,
        effect: Effect,
        send: impl Fn(MetadataCaller, pb::Caller) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.run_within(self.limit, verb, creds, effect, send).await
    }

    /// As [`Self::run`], with another limit.
    pub(crate) async fn run_within<T, F>(
        &self,
        limit: Option<Duration>,
        verb: &'static str,
        creds: &Creds,
        effect: Effect,
        send: impl Fn(MetadataCaller, pb::Caller) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let numbered = match effect {
            Effect::Reads => None,
            Effect::Changes => Some(request_scope::number(&self.numbers, verb)),
            Effect::Own => Some(self.numbers.draw()),
        };
        let mut patience = Patience::new(limit, &self.stop);
        loop {
            let caller = self.caller(creds, numbered.as_ref().map_or(0, |n| n.number));
            let deadline = patience.attempt(ATTEMPT_TIMEOUT);
            let server = MetadataCaller::new(self.server.clone(), deadline);
            let error = match send(server, caller).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            tracing::debug!(verb, %error, "metadata request failed");
            let what = || format!("{verb} at metadata server {}", self.addr);
            patience.wait(error, what, std::future::pending()).await?;
        }
    }

    pub(crate) fn caller(&self, creds: &Creds, request: u64) -> pb::Caller {
        pb::Caller {
            client: self.identity.client.to_bytes(),
            request,
            uid: creds.uid,
            gid: creds.gid,
            groups: creds.groups.clone(),
            acknowledged: self.numbers.acknowledged(),
            instance: self.identity.instance,
            cluster: self.own.get().map(|id| id.to_bytes()).unwrap_or_default(),
        }
    }
}

/// One call of the metadata service: `rpc!(meta, creds, Effect, method, request)`. The request's
/// `caller` is filled in, anew for each attempt.
macro_rules! rpc {
    ($meta:expr, $creds:expr, $effect:ident, $method:ident, $request:expr) => {{
        let request = $request;
        let send = |server: emberfs_proto::wire::metadata::MetadataCaller, caller| {
            let mut request = request.clone();
            request.caller = Some(caller);
            async move { server.$method(request).await }
        };
        $meta
            .run(
                stringify!($method),
                $creds,
                crate::meta_rpc::Effect::$effect,
                send,
            )
            .await
    }};
}
pub(crate) use rpc;

/// The attributes in an answer; their absence is a fault of the server.
pub(crate) fn attr_of(attr: Option<pb::Attr>) -> Result<pb::Attr> {
    attr.ok_or_else(|| {
        Error::new(
            ErrorCode::Protocol,
            "the metadata server's answer carries no attributes",
        )
    })
}
