//! Both ends over a real loopback socket.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::client::{Identity, PeerPool};
use super::frame::{HEADER_LEN, Header, Kind};
use super::server::{Host, Incoming, Limits, Outgoing, Service, serve};
use super::*;
use crate::ids::{ClientId, ClusterId, NodeId};
use crate::pb;

const HOST: Host = Host {
    cluster: ClusterId(7),
    node: NodeId(3),
};

/// Echoes the payload; the body picks an error or a delay.
struct Echo;

impl Service for Echo {
    async fn handle(&self, request: Incoming) -> Result<Outgoing> {
        let error: pb::ErrorBody = decode(request.body.clone())?;
        match error.message.as_str() {
            "fail" => Err(Error::new(ErrorCode::Busy, "later")
                .retry_after_ms(7)
                .newer_version(8)),
            "hang" => std::future::pending().await,
            _ => Ok(Outgoing {
                body: request.body.clone(),
                payload: vec![request.payload.clone()],
            }),
        }
    }
}

async fn start() -> (String, watch::Sender<bool>, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let (stop, stopped) = watch::channel(false);
    let limits = Limits::default();
    let grace = Duration::from_millis(200);
    let task = tokio::spawn(serve(
        listener,
        HOST,
        limits,
        Arc::new(Echo),
        stopped,
        grace,
    ));
    (addr, stop, task)
}

fn pool(cluster: Option<ClusterId>) -> PeerPool {
    PeerPool::new(
        Identity {
            cluster,
            client: ClientId(1),
            instance: 0,
        },
        2,
    )
}

fn call(message: &str, payload: Bytes, landing: Landing) -> Call {
    let body = pb::ErrorBody {
        message: message.to_owned(),
        ..pb::ErrorBody::default()
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    Call {
        payload: vec![payload],
        landing,
        ..Call::new(Opcode::Read, &body, deadline)
    }
}

#[tokio::test]
async fn payloads_land_in_the_callers_buffer() {
    let (addr, _stop, _task) = start().await;
    let pool = pool(Some(HOST.cluster));
    let data: Bytes = (0..3_000_000u32).map(|i| i as u8).collect();
    let buf = BytesMut::with_capacity(data.len() + 10);
    let at = buf.as_ptr();
    let reply = pool
        .peer(&addr)
        .call(call("", data.clone(), Landing::Buffer(buf)))
        .await
        .unwrap();
    let Landed::Buffer(buf) = reply.payload else {
        panic!("landed elsewhere")
    };
    assert!(buf == data && buf.as_ptr() == at);
    let reply = pool
        .peer(&addr)
        .call(call("", data.clone(), Landing::Aligned))
        .await
        .unwrap();
    assert!(matches!(reply.payload, Landed::Aligned(bytes) if bytes == data));
}

#[tokio::test]
async fn many_calls_share_a_connection_and_errors_keep_their_details() {
    let (addr, _stop, _task) = start().await;
    let pool = pool(None);
    let peer = pool.peer(&addr);
    let calls = (0..200u32).map(|i| {
        let peer = peer.clone();
        async move {
            let text = if i % 3 == 0 {
                "fail".to_owned()
            } else {
                i.to_string()
            };
            (
                text.clone(),
                peer.call(call(&text, Bytes::new(), Landing::None)).await,
            )
        }
    });
    for (text, result) in futures_join(calls).await {
        if text == "fail" {
            let error = result.unwrap_err();
            assert_eq!(
                (error.code, error.retry_after_ms, error.newer_version),
                (ErrorCode::Busy, 7, 8)
            );
        } else {
            assert_eq!(
                result.unwrap().decode::<pb::ErrorBody>().unwrap().message,
                text
            );
        }
    }
}

async fn futures_join<F: Future + Send + 'static>(calls: impl Iterator<Item = F>) -> Vec<F::Output>
where
    F::Output: Send,
{
    let tasks: Vec<_> = calls.map(tokio::spawn).collect();
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.unwrap());
    }
    results
}

#[tokio::test]
async fn a_silent_server_costs_the_deadline_and_no_more() {
    let (addr, _stop, _task) = start().await;
    let pool = pool(None);
    let mut slow = call("hang", Bytes::new(), Landing::None);
    slow.deadline = Instant::now() + Duration::from_millis(50);
    let error = pool.peer(&addr).call(slow).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    // The connection is still good.
    pool.peer(&addr)
        .call(call("x", Bytes::new(), Landing::None))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_reply_larger_than_the_buffer_is_refused() {
    let (addr, _stop, _task) = start().await;
    let pool = pool(None);
    let landing = Landing::Buffer(BytesMut::with_capacity(10));
    let big = Bytes::from(vec![1; 100_000]);
    let error = pool
        .peer(&addr)
        .call(call("", big, landing))
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::Protocol);
}

#[tokio::test]
async fn another_clusters_caller_is_turned_away_with_both_ids() {
    let (addr, _stop, _task) = start().await;
    let error = pool(Some(ClusterId(8)))
        .peer(&addr)
        .call(call("", Bytes::new(), Landing::None))
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::WrongCluster);
    assert!(error.message.contains(&ClusterId(7).to_string()), "{error}");
    assert!(error.message.contains(&ClusterId(8).to_string()), "{error}");
}

#[tokio::test]
async fn a_dead_peer_is_unreachable_and_found_again_when_it_returns() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    drop(listener);
    let pool = pool(None);
    let peer = pool.peer(&addr);
    let ask = || peer.call(call("", Bytes::new(), Landing::None));
    assert_eq!(ask().await.unwrap_err().code, ErrorCode::Unreachable);
    let listener = TcpListener::bind(&addr).await.unwrap();
    let (stop, stopped) = watch::channel(false);
    let grace = Duration::from_millis(100);
    let limits = Limits::default();
    let task = tokio::spawn(serve(
        listener,
        HOST,
        limits,
        Arc::new(Echo),
        stopped,
        grace,
    ));
    ask().await.unwrap();
    stop.send(true).unwrap();
    task.await.unwrap();
    assert_eq!(ask().await.unwrap_err().code, ErrorCode::Unreachable);
}

/// Holds every request until it is let go.
struct Slow {
    begun: std::sync::atomic::AtomicUsize,
    ended: std::sync::atomic::AtomicUsize,
    go: tokio::sync::Semaphore,
}

impl Service for Slow {
    async fn handle(&self, request: Incoming) -> Result<Outgoing> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.go.acquire().await.unwrap().forget();
        self.ended.fetch_add(1, Ordering::SeqCst);
        Ok(Outgoing::new(&decode::<pb::ErrorBody>(request.body)?))
    }
}

fn process(instance: u32) -> PeerPool {
    let identity = Identity {
        cluster: None,
        client: ClientId(5),
        instance,
    };
    PeerPool::new(identity, 1)
}

#[tokio::test]
async fn what_an_earlier_process_left_in_the_socket_is_never_carried_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let (_stop, stopped) = watch::channel(false);
    // The second request waits for the first, the third behind it in the socket.
    let limits = Limits {
        requests_per_connection: 1,
        ..Limits::default()
    };
    let service = Arc::new(Slow {
        begun: 0.into(),
        ended: 0.into(),
        go: tokio::sync::Semaphore::new(0),
    });
    let grace = Duration::from_millis(100);
    tokio::spawn(serve(
        listener,
        HOST,
        limits,
        service.clone(),
        stopped,
        grace,
    ));
    let begun = || service.begun.load(Ordering::SeqCst);
    let ended = || service.ended.load(Ordering::SeqCst);

    let first = process(1).peer(&addr);
    let writes: Vec<_> = (0..3u8)
        .map(|i| {
            let first = first.clone();
            let write = call("old", Bytes::from(vec![i; 100_000]), Landing::None);
            tokio::spawn(async move { first.call(write).await })
        })
        .collect();
    while begun() == 0 {
        tokio::task::yield_now().await;
    }
    let second = process(2).peer(&addr);
    let next = tokio::spawn({
        let second = second.clone();
        async move { second.call(call("new", Bytes::new(), Landing::None)).await }
    });
    // The earlier process hears that its connection is gone, or has no answer.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(
        (begun(), ended()),
        (1, 0),
        "HELLO waits for what is in progress"
    );
    service.go.add_permits(10);
    next.await.unwrap().unwrap();
    let mut answered = 0;
    for write in writes {
        answered += usize::from(write.await.unwrap().is_ok());
    }
    assert!(
        answered <= 1,
        "only what was in progress may have an answer"
    );
    assert_eq!((begun(), ended()), (2, 2), "one of each");
    let late = first.call(call("late", Bytes::new(), Landing::None)).await;
    assert_eq!(late.unwrap_err().code, ErrorCode::Superseded);
    let another = process(1).peer(&addr);
    let late = another
        .call(call("late", Bytes::new(), Landing::None))
        .await;
    assert_eq!(late.unwrap_err().code, ErrorCode::Superseded);
    assert_eq!(begun(), 2);
    second
        .call(call("new", Bytes::new(), Landing::None))
        .await
        .unwrap();
}

fn header(opcode: Opcode, body_len: u32) -> Header {
    Header {
        version: 1,
        kind: Kind::Request,
        opcode,
        request_id: 1,
        status: 0,
        body_len,
        payload_len: 0,
        body_crc: 0,
        deadline_ms: 0,
        hop: 0,
        trace_id: 0,
    }
}

/// Whatever a stranger sends first, the server answers nothing or an error and closes.
#[tokio::test]
async fn malformed_first_frames_close_the_connection() {
    let (addr, _stop, _task) = start().await;
    let mut wrong_crc = header(Opcode::Hello, 4).encode().to_vec();
    wrong_crc.extend(b"oops");
    let truncated = header(Opcode::Hello, 0).encode()[..40].to_vec();
    let cases: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\nHost: somewhere.example\r\nAccept: everything-at-all\r\n\r\n",
        &wrong_crc,
        &truncated,
        &header(Opcode::Read, 0).encode(),
    ];
    for bytes in cases {
        let mut stream = TcpStream::connect(&addr).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        // Closed by the server: a clean end or a reset, but no hang.
        let read = stream.read_to_end(&mut rest);
        let _ = tokio::time::timeout(Duration::from_secs(4), read)
            .await
            .expect("closed in time");
        assert!(rest.is_empty(), "answered {} bytes", rest.len());
    }
}

#[tokio::test]
async fn a_version_gap_is_refused_with_both_ranges() {
    let (addr, _stop, _task) = start().await;
    let mut stream = TcpStream::connect(&addr).await.unwrap();
    let hello = pb::Hello {
        min_version: 90,
        max_version: 99,
        ..pb::Hello::default()
    };
    let body = encode(&hello);
    let mut first = header(Opcode::Hello, body.len() as u32);
    first.body_crc = crate::checksum::crc32(&body);
    stream.write_all(&first.encode()).await.unwrap();
    stream.write_all(&body).await.unwrap();
    let mut raw = [0; HEADER_LEN];
    stream.read_exact(&mut raw).await.unwrap();
    let reply = Header::decode(&raw).unwrap();
    assert_eq!(reply.status, ErrorCode::IncompatibleVersion as u32);
}
