use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::wire::frame::{HEADER_LEN, Header, Kind, Opcode};

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = TcpStream::connect(listener.local_addr().unwrap());
    let (here, there) = tokio::join!(listener.accept(), there);
    (here.unwrap().0, there.unwrap())
}

fn frame(id: u64, payload: usize) -> OutFrame {
    let header = Header {
        version: 1,
        kind: Kind::Reply,
        opcode: Opcode::Read,
        request_id: id,
        status: 0,
        body_len: 0,
        payload_len: 0,
        body_crc: 0,
        deadline_ms: 0,
        hop: 0,
        trace_id: 0,
    };
    let payload = vec![Bytes::from(vec![id as u8; payload])];
    OutFrame::new(header, Bytes::new(), payload)
}

/// Reads frames until the other end closes; each payload must be whole and of its own frame.
async fn read_all(mut stream: TcpStream, pause: Duration) -> Vec<u64> {
    let mut ids = Vec::new();
    let mut raw = [0; HEADER_LEN];
    loop {
        match stream.read_exact(&mut raw).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return ids,
            read => read.unwrap(),
        };
        let header = Header::decode(&raw).unwrap();
        let mut payload = vec![0; header.payload_len as usize];
        // A reader that is slower than the senders: their socket is full most of the time.
        tokio::time::sleep(pause).await;
        stream.read_exact(&mut payload).await.unwrap();
        assert!(payload.iter().all(|&b| b == header.request_id as u8));
        ids.push(header.request_id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn frames_of_many_senders_arrive_whole_and_the_task_ends_with_the_last_sender() {
    for (payload, pause) in [(10, Duration::ZERO), (300_000, Duration::from_millis(1))] {
        let (here, there) = pair().await;
        let (read_half, half) = here.into_split();
        let (sender, task) = FrameSender::new(half, 4);
        let task = tokio::spawn(task);
        let reader = tokio::spawn(read_all(there, pause));
        let senders: Vec<_> = (0..8u64)
            .map(|s| {
                let sender = sender.clone();
                tokio::spawn(async move {
                    for n in 0..25 {
                        sender.send(frame(s * 25 + n, payload)).await.unwrap();
                    }
                })
            })
            .collect();
        drop(sender);
        for sender in senders {
            sender.await.unwrap();
        }
        task.await.unwrap().unwrap();
        drop(read_half);
        let ids = reader.await.unwrap();
        // Everything, and each sender's frames in its order.
        assert_eq!(ids.len(), 200);
        for s in 0..8 {
            let mine: Vec<_> = ids.iter().filter(|id| *id / 25 == s).collect();
            assert!(mine.is_sorted() && mine.len() == 25);
        }
    }
}

#[tokio::test]
async fn a_full_queue_waits_and_a_broken_connection_ends_everybody() {
    let (here, there) = pair().await;
    let (_read, half) = here.into_split();
    let (sender, task) = FrameSender::new(half, 2);
    let task = tokio::spawn(task);
    // Nobody reads: the socket fills up, then the queue, then a sender waits.
    let limit = Duration::from_millis(300);
    let mut sent = 0;
    while let Ok(done) = tokio::time::timeout(limit, sender.send(frame(1, 1 << 20))).await {
        done.unwrap();
        sent += 1;
        assert!(sent < 1000, "nothing bounds the queue");
    }
    let waiting = sender.clone();
    let waiting = tokio::spawn(async move { waiting.send(frame(2, 10)).await.is_err() });
    drop(there);
    assert!(task.await.unwrap().is_err());
    assert!(waiting.await.unwrap());
    assert!(sender.send(frame(3, 10)).await.is_err());
}
