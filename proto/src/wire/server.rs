//! The answering end: accepts connections, checks HELLO, runs requests.
//!
//! Memory is bounded: a request's payload is received only after its bytes were taken from the
//! budget of its hop class, and until then nothing more is read from that connection. A forward at
//! hop `h` waits only for budgets of hop `h + 1`, so chains that cross cannot wait in a circle.

mod fence;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use self::fence::{Admission, Fences};
use super::frame::{Header, Kind, Opcode};
use super::io::{OutFrame, broken, read_head};
use super::send::FrameSender;
use super::{MAX_VERSION, MIN_VERSION};
use crate::buf::AlignedBuf;
use crate::error::{Error, ErrorCode, Result};
use crate::ids::{ClientId, ClusterId, NodeId};
use crate::pb;

/// Hop classes: a client's own requests and those of up to seven forwardings.
pub const HOP_CLASSES: usize = 8;
/// Replies that may wait for the socket of one connection.
const SEND_QUEUE: usize = 64;
/// Bytes read ahead of a header; payloads bypass this buffer.
const READ_BUFFER: usize = 16 << 10;
/// Longest wait for the first frame of a connection.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Granularity of the payload budgets, bytes: a semaphore counts in 32 bits.
const BUDGET_UNIT: usize = 4096;

/// Limits of a server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests in progress per connection; further ones wait in the socket.
    pub requests_per_connection: usize,
    /// Bytes of request payload in memory, per hop class. At least the largest payload.
    pub payload_bytes_per_hop: usize,
    /// Connections; further ones are closed at once.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_per_connection: 64,
            payload_bytes_per_hop: 64 << 20,
            connections: 4096,
        }
    }
}

/// Who this server is, for HELLO.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its node id.
    pub node: NodeId,
}

/// A request as the handler sees it.
pub struct Incoming {
    /// What is asked.
    pub opcode: Opcode,
    /// Encoded protobuf body.
    pub body: Bytes,
    /// The payload, in an aligned buffer.
    pub payload: Bytes,
    /// When the caller gives up.
    pub deadline: Instant,
    /// Hop class; a forwarding adds one.
    pub hop: u8,
    /// Who asks.
    pub client: ClientId,
    // Returned when the request is dropped, that is, when its payload is.
    _budget: Option<OwnedSemaphorePermit>,
}

/// A successful answer.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// Encoded protobuf body.
    pub body: Bytes,
    /// Payload in pieces, sent in order without a copy.
    pub payload: Vec<Bytes>,
}

impl Outgoing {
    /// An answer without payload.
    pub fn new(body: &impl prost::Message) -> Self {
        Self {
            body: super::encode(body),
            payload: Vec::new(),
        }
    }
}

/// What a server does with requests.
pub trait Service: Send + Sync + 'static {
    /// Answers one request. Runs in its own task; keeps `request` alive as long as it uses the payload.
    fn handle(&self, request: Incoming) -> impl Future<Output = Result<Outgoing>> + Send;
}

/// Where connections come from.
pub trait Accept: Send {
    /// The next one, and who is at its other end. An error does not end the server.
    fn accept(&mut self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send;
}

impl Accept for TcpListener {
    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        Self::accept(self).await
    }
}

/// Connections that somebody else has accepted.
impl Accept for mpsc::Receiver<(TcpStream, SocketAddr)> {
    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        match self.recv().await {
            Some(accepted) => Ok(accepted),
            None => std::future::pending().await,
        }
    }
}

/// Serves what `listener` accepts until `stop` turns true, then closes all connections after the requests in
/// progress have been answered (within `grace`).
pub async fn serve(
    mut listener: impl Accept,
    host: Host,
    limits: Limits,
    service: Arc<impl Service>,
    mut stop: watch::Receiver<bool>,
    grace: Duration,
) {
    let budgets = Arc::new(Budgets::new(limits.payload_bytes_per_hop));
    let slots = Arc::new(Semaphore::new(limits.connections));
    let fences = Arc::new(Fences::new());
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or the connection died in the queue: neither ends the server.
                tracing::warn!(%error, "accept failed");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            tracing::warn!(%peer, "connection refused: {} are open already", limits.connections);
            continue;
        };
        let (service, stop) = (service.clone(), stop.clone());
        let shared = Shared {
            host,
            limits,
            budgets: budgets.clone(),
            fences: fences.clone(),
        };
        connections.spawn(async move {
            let _slot = slot;
            if let Err(error) = connection(stream, shared, service, stop).await {
                tracing::debug!(%peer, %error, "connection closed");
            }
        });
    }
    // The listener closes only after the service stopped: a refused connection proves that it has.
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(grace, drained).await.is_err() {
        tracing::warn!("requests still in progress after {grace:?}; closing their connections");
    }
    drop(listener);
}

/// What all connections of a server have in common.
struct Shared {
    host: Host,
    limits: Limits,
    budgets: Arc<Budgets>,
    fences: Arc<Fences>,
}

struct Budgets {
    hops: [Arc<Semaphore>; HOP_CLASSES],
    units: usize,
}

impl Budgets {
    fn new(bytes: usize) -> Self {
        let units = (bytes / BUDGET_UNIT).max(super::frame::MAX_PAYLOAD as usize / BUDGET_UNIT);
        Self {
            hops: std::array::from_fn(|_| Arc::new(Semaphore::new(units))),
            units,
        }
    }

    async fn take(&self, hop: u8, bytes: usize) -> Option<OwnedSemaphorePermit> {
        if bytes == 0 {
            return None;
        }
        let hop = (hop as usize).min(HOP_CLASSES - 1);
        let units = bytes.div_ceil(BUDGET_UNIT).min(self.units) as u32;
        self.hops[hop].clone().acquire_many_owned(units).await.ok()
    }
}

async fn connection(
    stream: TcpStream,
    shared: Shared,
    service: Arc<impl Service>,
    mut stop: watch::Receiver<bool>,
) -> Result<()> {
    stream.set_nodelay(true).map_err(broken)?;
    let peer = stream.peer_addr().map_err(broken)?;
    let (read, write) = stream.into_split();
    let mut read = BufReader::with_capacity(READ_BUFFER, read);
    let (send, write) = FrameSender::new(write, SEND_QUEUE);
    let mut writer = tokio::spawn(write);

    let greeted = tokio::time::timeout(HELLO_TIMEOUT, greet(&mut read, &send, &shared, peer)).await;
    let Greeting {
        client,
        version,
        admission,
    } = greeted.map_err(|_| Error::new(ErrorCode::Protocol, "no HELLO within five seconds"))??;
    let mut superseded = admission.watch();

    let slots = Arc::new(Semaphore::new(shared.limits.requests_per_connection));
    let mut requests = JoinSet::new();
    let result = loop {
        let head = tokio::select! {
            head = read_head(&mut read) => head,
            _ = stop.wait_for(|stop| *stop) => break Ok(()),
            () = superseded.wait() => break Ok(()),
        };
        let (header, body) = match head {
            Ok(Some(head)) => head,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        if header.kind != Kind::Request || header.opcode == Opcode::Hello {
            break Err(Error::new(
                ErrorCode::Protocol,
                "unexpected frame: not a request",
            ));
        }
        while requests.try_join_next().is_some() {}
        let rest = async {
            let Ok(slot) = slots.clone().acquire_owned().await else {
                return Ok(None);
            };
            let len = header.payload_len as usize;
            let budget = shared.budgets.take(header.hop, len).await;
            let mut payload = AlignedBuf::new(len);
            read.read_exact(&mut payload).await.map_err(broken)?;
            Ok(Some((slot, budget, payload)))
        };
        let rest = tokio::select! {
            biased;
            () = superseded.wait() => break Ok(()),
            rest = rest => rest,
        };
        let (slot, budget, payload) = match rest {
            Ok(Some(rest)) => rest,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        let left = if header.deadline_ms == 0 {
            u32::MAX
        } else {
            header.deadline_ms
        };
        let incoming = Incoming {
            opcode: header.opcode,
            body,
            payload: payload.freeze(),
            deadline: Instant::now() + Duration::from_millis(u64::from(left)),
            hop: header.hop,
            client,
            _budget: budget,
        };
        let (service, send, mut superseded) = (service.clone(), send.clone(), superseded.clone());
        requests.spawn(async move {
            let _slot = slot;
            let result = service.handle(incoming).await;
            tokio::select! {
                // A broken connection is noticed by its reader; this answer has nowhere to go.
                _ = send.send(answer(&header, version, result)) => {}
                // Nobody reads it, and the next process must not wait for that.
                () = superseded.wait() => {}
            }
        });
    };
    // Requests run to their end even when the client has gone: a write that was begun is finished.
    while requests.join_next().await.is_some() {}
    drop(admission);
    drop(send);
    tokio::select! {
        // It ends when everything is written, or has failed already.
        _ = &mut writer => {}
        () = superseded.wait() => writer.abort(),
    }
    result
}

fn answer(request: &Header, version: u8, result: Result<Outgoing>) -> OutFrame {
    let (status, body, payload) = match result {
        Ok(out) => (0, out.body, out.payload),
        Err(error) => {
            let body = pb::ErrorBody {
                message: error.message,
                retry_after_ms: error.retry_after_ms,
                newer_version: error.newer_version,
            };
            (error.code as u32, super::encode(&body), Vec::new())
        }
    };
    let header = Header {
        version,
        kind: Kind::Reply,
        status,
        ..*request
    };
    OutFrame::new(header, body, payload)
}

/// Who a connection is from, and what was agreed on.
struct Greeting {
    client: ClientId,
    version: u8,
    admission: Admission,
}

async fn greet(
    read: &mut BufReader<tokio::net::tcp::OwnedReadHalf>,
    send: &FrameSender,
    shared: &Shared,
    peer: SocketAddr,
) -> Result<Greeting> {
    let lost = || broken(io::ErrorKind::UnexpectedEof.into());
    let (header, body) = read_head(read).await?.ok_or_else(lost)?;
    if header.kind != Kind::Request || header.opcode != Opcode::Hello || header.payload_len != 0 {
        return Err(Error::new(
            ErrorCode::Protocol,
            "the first frame is not HELLO",
        ));
    }
    let hello: pb::Hello = super::decode(body)?;
    let host = shared.host;
    let client = ClientId::from_bytes(&hello.client).unwrap_or_default();
    let verdict = async {
        let version = check_hello(&hello, host)?;
        let admission = shared.fences.admit(client, hello.instance).await?;
        Ok((version, admission))
    };
    let verdict: Result<_> = verdict.await;
    let result = match &verdict {
        Ok((version, _)) => {
            let (version, node) = (*version, host.node.0);
            let reply = pb::HelloReply {
                version,
                cluster: host.cluster.to_bytes(),
                node,
            };
            Ok(Outgoing::new(&reply))
        }
        Err(error) => {
            tracing::warn!(%peer, %error, "connection refused");
            Err(error.clone())
        }
    };
    send.send(answer(&header, 0, result))
        .await
        .map_err(|_| lost())?;
    verdict.map(|(version, admission)| Greeting {
        client,
        version: version as u8,
        admission,
    })
}

fn check_hello(hello: &pb::Hello, host: Host) -> Result<u32> {
    let theirs = ClusterId::from_bytes(&hello.cluster);
    if let Some(theirs) = theirs
        && theirs != host.cluster
    {
        let what = format!(
            "node {} belongs to cluster {}, the caller to {theirs}; check the address",
            host.node, host.cluster
        );
        return Err(Error::new(ErrorCode::WrongCluster, what));
    }
    let version = MAX_VERSION.min(hello.max_version);
    if version < MIN_VERSION.max(hello.min_version) {
        let what = format!(
            "this server speaks protocol versions {MIN_VERSION} to {MAX_VERSION}, the caller {} to {}; upgrade the older side",
            hello.min_version, hello.max_version
        );
        return Err(Error::new(ErrorCode::IncompatibleVersion, what));
    }
    Ok(version)
}
