//! The calling end: connections to one peer, and the pool of all peers.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::frame::{Header, Kind, Opcode};
use super::io::{OutFrame, broken, discard, read_head, read_into};
use super::send::FrameSender;
use super::{Call, Channel, Landed, Landing, MAX_VERSION, MIN_VERSION, Reply};
use crate::buf::AlignedBuf;
use crate::error::{Error, ErrorCode, Result};
use crate::ids::{ClientId, ClusterId};
use crate::pb;

/// Frames that may wait for the socket of one connection.
const SEND_QUEUE: usize = 128;
/// Bytes read ahead of a header; payloads bypass this buffer.
const READ_BUFFER: usize = 16 << 10;
/// Longest wait for a connection and its HELLO.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A host that acknowledges nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(10);

/// What a caller says of itself on each new connection.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The cluster it belongs to; `None` accepts any.
    pub cluster: Option<ClusterId>,
    /// Who it is.
    pub client: ClientId,
    /// Which of the processes that act as this client, one after the other: servers shut the earlier ones out.
    /// 0: there is one.
    pub instance: u32,
}

/// All peers that a process calls; connections are made when first used and replaced when broken.
pub struct PeerPool {
    identity: Identity,
    connections_per_peer: usize,
    peers: Mutex<HashMap<String, Arc<Peer>>>,
}

impl PeerPool {
    /// A pool that keeps up to `connections_per_peer` connections to each address.
    pub fn new(identity: Identity, connections_per_peer: usize) -> Self {
        Self {
            identity,
            connections_per_peer: connections_per_peer.max(1),
            peers: Mutex::default(),
        }
    }

    /// The peer at `host:port`.
    pub fn peer(&self, addr: &str) -> Arc<Peer> {
        let mut peers = self.peers.lock();
        if let Some(peer) = peers.get(addr) {
            return peer.clone();
        }
        let name = Name {
            role: "storage server",
            addr: addr.to_owned(),
        };
        let peer = Arc::new(Peer::new(name, self.identity, self.connections_per_peer));
        peers.insert(addr.to_owned(), peer.clone());
        peer
    }

    /// Drops peers that no map names any more.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.peers.lock().retain(|addr, _| keep(addr));
    }
}

/// Whom we talk to, for messages.
#[derive(Clone, Debug)]
struct Name {
    role: &'static str,
    /// `host:port`.
    addr: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.addr)
    }
}

impl Name {
    fn unreachable(&self, why: &str) -> Error {
        let what = format!("{self} is unreachable: {why}");
        Error::new(ErrorCode::Unreachable, what)
    }
}

/// One peer: a few connections, which take calls in turn.
pub struct Peer {
    name: Name,
    identity: Identity,
    slots: Vec<Slot>,
    next: AtomicUsize,
}

#[derive(Default)]
struct Slot {
    current: Mutex<Option<Arc<Connection>>>,
    connecting: tokio::sync::Mutex<()>,
}

impl Peer {
    /// The metadata server at `host:port`, by one connection: what is large there is short-lived.
    pub fn metadata_server(addr: &str, identity: Identity) -> Arc<Self> {
        let name = Name {
            role: "metadata server",
            addr: addr.to_owned(),
        };
        Arc::new(Self::new(name, identity, 1))
    }

    fn new(name: Name, identity: Identity, connections: usize) -> Self {
        let slots = (0..connections).map(|_| Slot::default()).collect();
        Self {
            name,
            identity,
            slots,
            next: AtomicUsize::new(0),
        }
    }

    /// `host:port`.
    pub fn addr(&self) -> &str {
        &self.name.addr
    }

    /// Connects if there is no connection: afterwards the server knows of this process, and has shut earlier ones of the
    /// same client out.
    pub async fn greet(&self, deadline: Instant) -> Result<()> {
        self.connection(deadline).await.map(drop)
    }

    async fn connection(&self, deadline: Instant) -> Result<Arc<Connection>> {
        let slot = &self.slots[self.next.fetch_add(1, Ordering::Relaxed) % self.slots.len()];
        if let Some(connection) = slot.usable() {
            return Ok(connection);
        }
        // One caller connects; the others wait for it and share the outcome.
        let limit = deadline.min(Instant::now() + CONNECT_TIMEOUT);
        let connect = async {
            let _turn = slot.connecting.lock().await;
            if let Some(connection) = slot.usable() {
                return Ok(connection);
            }
            let connection = Arc::new(Connection::open(&self.name, self.identity).await?);
            *slot.current.lock() = Some(connection.clone());
            Ok(connection)
        };
        match tokio::time::timeout_at(limit.into(), connect).await {
            Ok(result) => result.map_err(|e: Error| e.context(&self.name)),
            Err(_) => Err(self.name.unreachable("no answer to the connection attempt")),
        }
    }
}

impl Slot {
    fn usable(&self) -> Option<Arc<Connection>> {
        self.current
            .lock()
            .clone()
            .filter(|c| !c.shared.broken.load(Ordering::Acquire))
    }
}

impl Channel for Peer {
    fn call(&self, call: Call) -> Pin<Box<dyn Future<Output = Result<Reply>> + Send + '_>> {
        Box::pin(async move {
            let connection = self.connection(call.deadline).await?;
            connection.call(call, &self.name).await
        })
    }
}

struct Waiter {
    opcode: Opcode,
    landing: Landing,
    done: oneshot::Sender<Result<Reply>>,
}

struct Shared {
    waiting: Mutex<HashMap<u64, Waiter>>,
    broken: AtomicBool,
}

impl Shared {
    /// Fails every call in flight and refuses new ones.
    fn fail(&self, error: &Error) {
        let waiting = {
            let mut waiting = self.waiting.lock();
            self.broken.store(true, Ordering::Release);
            std::mem::take(&mut *waiting)
        };
        for waiter in waiting.into_values() {
            // A caller that stopped waiting needs no answer.
            let _ = waiter.done.send(Err(error.clone()));
        }
    }
}

struct Connection {
    shared: Arc<Shared>,
    send: FrameSender,
    version: u8,
    next_id: AtomicU64,
    tasks: [AbortHandle; 2],
}

impl Drop for Connection {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Connection {
    async fn open(name: &Name, identity: Identity) -> Result<Self> {
        let stream = TcpStream::connect(resolve(name).await?)
            .await
            .map_err(|e| name.unreachable(&e.to_string()))?;
        stream.set_nodelay(true).map_err(broken)?;
        notice_silence(&stream).map_err(broken)?;
        let (read, write) = stream.into_split();
        let mut read = BufReader::with_capacity(READ_BUFFER, read);
        let (send, write) = FrameSender::new(write, SEND_QUEUE);
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            broken: AtomicBool::new(false),
        });
        let writer = {
            let shared = shared.clone();
            tokio::spawn(async move {
                if let Err(e) = write.await {
                    shared.fail(&broken(e));
                }
            })
        };
        let version = match hello(&send, &mut read, identity).await {
            Ok(version) => version,
            Err(error) => {
                writer.abort();
                return Err(error);
            }
        };
        let reader = {
            let shared = shared.clone();
            tokio::spawn(async move {
                let error = match read_replies(&mut read, &shared).await {
                    Ok(()) => broken(io::ErrorKind::UnexpectedEof.into()),
                    Err(error) => error,
                };
                shared.fail(&error);
            })
        };
        let tasks = [writer.abort_handle(), reader.abort_handle()];
        Ok(Self {
            shared,
            send,
            version,
            next_id: AtomicU64::new(1),
            tasks,
        })
    }

    async fn call(&self, call: Call, name: &Name) -> Result<Reply> {
        let request_id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (done, answer) = oneshot::channel();
        let opcode = call.opcode;
        let waiter = Waiter {
            opcode,
            landing: call.landing,
            done,
        };
        {
            let mut waiting = self.shared.waiting.lock();
            if self.shared.broken.load(Ordering::Acquire) {
                return Err(name.unreachable("connection lost"));
            }
            waiting.insert(request_id, waiter);
        }
        // From here on the entry must go when this future is dropped or ends.
        let _entry = Entry {
            shared: &self.shared,
            request_id,
        };
        let left = call.deadline.saturating_duration_since(Instant::now());
        let header = Header {
            version: self.version,
            kind: Kind::Request,
            opcode,
            request_id,
            status: 0,
            body_len: 0,
            payload_len: 0,
            body_crc: 0,
            deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1),
            hop: call.hop,
            trace_id: 0,
        };
        let exchange = async {
            let frame = OutFrame::new(header, call.body, call.payload);
            if self.send.send(frame).await.is_err() {
                return Err(name.unreachable("connection lost"));
            }
            answer
                .await
                .unwrap_or_else(|_| Err(name.unreachable("connection lost")))
        };
        tokio::time::timeout_at(call.deadline.into(), exchange)
            .await
            .unwrap_or_else(|_| {
                let what = format!("{name} did not answer {opcode:?} in time");
                Err(Error::new(ErrorCode::DeadlineExceeded, what))
            })
    }
}

struct Entry<'a> {
    shared: &'a Shared,
    request_id: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.shared.waiting.lock().remove(&self.request_id);
    }
}

async fn hello(
    send: &FrameSender,
    read: &mut BufReader<OwnedReadHalf>,
    identity: Identity,
) -> Result<u8> {
    let body = pb::Hello {
        min_version: MIN_VERSION,
        max_version: MAX_VERSION,
        cluster: identity
            .cluster
            .map(ClusterId::to_bytes)
            .unwrap_or_default(),
        client: identity.client.to_bytes(),
        instance: identity.instance,
    };
    let header = Header {
        version: 0,
        kind: Kind::Request,
        opcode: Opcode::Hello,
        request_id: 0,
        status: 0,
        body_len: 0,
        payload_len: 0,
        body_crc: 0,
        deadline_ms: 0,
        hop: 0,
        trace_id: 0,
    };
    let lost = || broken(io::ErrorKind::UnexpectedEof.into());
    let frame = OutFrame::new(header, super::encode(&body), Vec::new());
    send.send(frame).await.map_err(|_| lost())?;
    let (header, body) = read_head(read).await?.ok_or_else(lost)?;
    if header.kind != Kind::Reply || header.opcode != Opcode::Hello || header.payload_len != 0 {
        return Err(Error::new(
            ErrorCode::Protocol,
            "the peer did not answer HELLO",
        ));
    }
    if header.status != 0 {
        return Err(error_of(header.status, body));
    }
    let reply: pb::HelloReply = super::decode(body)?;
    if !(MIN_VERSION..=MAX_VERSION).contains(&reply.version) {
        let what = format!(
            "the peer chose protocol version {}, this build speaks {MIN_VERSION} to {MAX_VERSION}",
            reply.version
        );
        return Err(Error::new(ErrorCode::IncompatibleVersion, what));
    }
    Ok(reply.version as u8)
}

async fn read_replies(read: &mut BufReader<OwnedReadHalf>, shared: &Shared) -> Result<()> {
    while let Some((header, body)) = read_head(read).await? {
        if header.kind != Kind::Reply {
            return Err(Error::new(
                ErrorCode::Protocol,
                "the peer sent a request on a client connection",
            ));
        }
        let payload_len = header.payload_len as usize;
        let waiter = shared.waiting.lock().remove(&header.request_id);
        let Some(waiter) = waiter else {
            discard(read, payload_len).await?;
            continue;
        };
        if waiter.opcode != header.opcode {
            return Err(Error::new(
                ErrorCode::Protocol,
                "reply to another kind of request",
            ));
        }
        let received = if header.status == 0 {
            receive(read, waiter.landing, payload_len)
                .await
                .map(|payload| Ok(Reply { body, payload }))
        } else {
            discard(read, payload_len)
                .await
                .map(|()| Err(error_of(header.status, body)))
        };
        match received {
            // A caller that stopped waiting needs no answer.
            Ok(result) => drop(waiter.done.send(result)),
            Err(error) => {
                let _ = waiter.done.send(Err(error.clone()));
                return Err(error);
            }
        }
    }
    Ok(())
}

async fn receive(
    read: &mut BufReader<OwnedReadHalf>,
    landing: Landing,
    len: usize,
) -> Result<Landed> {
    match landing {
        Landing::None | Landing::Fresh if len == 0 => Ok(Landed::None),
        Landing::Buffer(mut buf) if len <= buf.capacity() - buf.len() => {
            read_into(read, &mut buf, len).await?;
            Ok(Landed::Buffer(buf))
        }
        Landing::Aligned | Landing::Fresh => {
            let mut buf = AlignedBuf::new(len);
            read.read_exact(&mut buf).await.map_err(broken)?;
            Ok(Landed::Aligned(buf.freeze()))
        }
        _ => Err(Error::new(
            ErrorCode::Protocol,
            "reply payload larger than the caller's buffer",
        )),
    }
}

fn error_of(status: u32, body: Bytes) -> Error {
    let code = ErrorCode::from_number(status);
    match super::decode::<pb::ErrorBody>(body) {
        Ok(body) => Error::new(code, body.message)
            .retry_after_ms(body.retry_after_ms)
            .newer_version(body.newer_version),
        Err(_) => Error::new(code, "the server's error message was malformed"),
    }
}

/// Breaks the connection when the other host has fallen silent, so that nobody waits for his patience's end: a server that
/// lives acknowledges bytes at once, whatever it takes to answer a request.
fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    let probes = TcpKeepalive::new()
        .with_time(SILENCE / 2)
        .with_interval(SILENCE / 4)
        .with_retries(2);
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(SILENCE))
}

async fn resolve(name: &Name) -> Result<SocketAddr> {
    // A numeric address needs no resolver thread.
    if let Ok(addr) = name.addr.parse() {
        return Ok(addr);
    }
    let mut found = tokio::net::lookup_host(&name.addr)
        .await
        .map_err(|e| name.unreachable(&e.to_string()))?;
    found
        .next()
        .ok_or_else(|| name.unreachable("the name has no address"))
}
