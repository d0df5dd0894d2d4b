use super::*;
use crate::engine::alloc::Allocator;
use crate::engine::lane::Received;
use emberfs_proto::ErrorCode;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

fn started(depth: u32) -> (Ring, std::thread::JoinHandle<()>) {
    let (ring, end) = ring(depth).unwrap();
    let (told, started) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::spawn(move || {
        run(&end, Arc::default(), |result| told.send(result).unwrap());
    });
    started.recv().unwrap().unwrap();
    (ring, thread)
}

fn plain(at: u64, data: Bytes) -> BlockWrite {
    BlockWrite {
        at,
        data,
        durable: at.is_multiple_of(8192),
    }
}

fn pin() -> Arc<Block> {
    let class = Class::for_len(1).unwrap();
    let allocator = Arc::new(Allocator::new(u64::MAX));
    allocator.grown(class, 0..1);
    Arc::new(allocator.allocate(class).unwrap().unwrap())
}

#[tokio::test]
async fn more_requests_than_the_ring_is_deep_are_all_answered() {
    let (ring, thread) = started(4);
    let file = Arc::new(tempfile::tempfile().unwrap());
    let pin = pin();
    let io = (0..200u8).map(|n| {
        let (ring, file, pin) = (&ring, &file, &pin);
        async move {
            let at = u64::from(n) * 4096;
            let data = Bytes::from(vec![n; 4096]);
            ring.write(file, plain(at, data), pin, None)
                .await
                .unwrap()
                .unwrap();
            ring.flush(Class::for_len(1).unwrap(), file)
                .await
                .unwrap()
                .unwrap();
            let buf = ring
                .read(file, at, AlignedBuf::new(4096), pin)
                .await
                .unwrap()
                .unwrap();
            assert!(buf.iter().all(|&b| b == n));
        }
    });
    futures::future::join_all(io).await;
    // Beyond the end of the file.
    let eof = ring
        .read(&file, 1 << 30, AlignedBuf::new(4096), &pin)
        .await
        .unwrap();
    assert_eq!(eof.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    ring.close();
    thread.join().unwrap();
    let late = ring.read(&file, 0, AlignedBuf::new(4096), &pin).await;
    assert_eq!(late.err().unwrap().code, ErrorCode::Unavailable);
}

#[tokio::test]
async fn the_thread_wakes_for_each_of_many_lone_requests() {
    let (ring, thread) = started(4);
    let file = Arc::new(tempfile::tempfile().unwrap());
    let pin = pin();
    for n in 0..500u64 {
        if n % 50 == 0 {
            // Asleep for certain.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        ring.write(&file, plain(n * 4096, vec![1; 4096].into()), &pin, None)
            .await
            .unwrap()
            .unwrap();
    }
    ring.close();
    thread.join().unwrap();
}

/// A file whose sector `n` is full of the byte `n`.
fn numbered(sectors: u8) -> Arc<File> {
    let file = tempfile::tempfile().unwrap();
    for n in 0..sectors {
        file.write_all_at(&[n; 4096], u64::from(n) * 4096).unwrap();
    }
    Arc::new(file)
}

/// Requests one at a time from several threads: a wake-up that is lost stops its sender for good, since
/// nothing else would wake the thread.
#[test]
fn no_wake_up_is_lost_when_senders_race_with_a_thread_that_falls_asleep() {
    const SENDERS: u64 = 3;
    let (ring, thread) = started(4);
    let (file, pin) = (numbered(8), pin());
    let (done, finished) = std::sync::mpsc::channel();
    for sender in 0..SENDERS {
        let (ring, file, pin, done) = (ring.clone(), file.clone(), pin.clone(), done.clone());
        std::thread::spawn(move || {
            let mut pause = sender + 1;
            for n in 0..3000u64 {
                let at = n % 8;
                let read = ring.read(&file, at * 4096, AlignedBuf::new(4096), &pin);
                let buf = futures::executor::block_on(read).unwrap().unwrap();
                assert!(buf.iter().all(|&b| u64::from(b) == at));
                // As long as the thread needs to fall asleep, give or take: any of its steps may be met.
                pause = (pause * 31 + 7) % 257;
                (0..pause * 4).for_each(|_| std::hint::spin_loop());
            }
            done.send(()).unwrap();
        });
    }
    for _ in 0..SENDERS {
        finished
            .recv_timeout(Duration::from_mins(1))
            .expect("a sender was never answered");
    }
    ring.close();
    thread.join().unwrap();
}

#[tokio::test]
async fn of_many_reads_at_once_only_the_bad_ones_fail() {
    let (ring, thread) = started(64);
    let (file, pin) = (numbered(32), pin());
    let reads = (0..48u8).map(|n| {
        let (ring, file, pin) = (&ring, &file, &pin);
        let at = u64::from(n) * 4096;
        async move { ring.read(file, at, AlignedBuf::new(4096), pin).await }
    });
    let answers = futures::future::join_all(reads).await;
    for (n, answer) in (0u8..).zip(answers) {
        match answer.unwrap() {
            Ok(buf) => assert!(n < 32 && buf.iter().all(|&b| b == n), "{n}"),
            Err(error) => {
                assert!(n >= 32, "{n}: {error}");
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            }
        }
    }
    ring.close();
    thread.join().unwrap();
}

#[tokio::test]
async fn the_rest_of_a_short_read_is_asked_for_until_the_file_ends() {
    let (ring, thread) = started(4);
    let (file, pin) = (numbered(2), pin());
    file.set_len(6000).unwrap();
    let short = ring
        .read(&file, 0, AlignedBuf::new(8192), &pin)
        .await
        .unwrap();
    assert_eq!(short.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    let whole = ring.read(&file, 0, AlignedBuf::new(6000), &pin).await;
    assert_eq!(whole.unwrap().unwrap()[5999], 1);
    ring.close();
    thread.join().unwrap();
}

#[test]
fn a_completion_of_a_part_leaves_the_rest_to_do() {
    let (lane, jobs) = lane("test", 1);
    let read = IoJob::Read {
        file: numbered(1),
        at: 0,
        buf: AlignedBuf::new(8192),
        pin: pin(),
        reply: oneshot::channel().0,
    };
    futures::executor::block_on(lane.send(read)).unwrap();
    let Received::Job(job) = jobs.try_recv() else {
        panic!("it was sent");
    };
    let mut flight = flight::Flight::new(job);
    for (result, done) in [(4096, 4096), (-libc::EAGAIN, 4096), (-libc::EINTR, 4096)] {
        assert!(flight.progress(result).is_none(), "{result}");
        assert_eq!(flight.done, done);
    }
    assert!(matches!(flight.progress(4096), Some(Ok(()))));
    assert!(matches!(flight.progress(-libc::EIO), Some(Err(_))));
}

#[test]
fn jobs_that_queue_at_the_shutdown_are_answered_one_way_or_the_other() {
    for round in 0..50 {
        let (ring, thread) = started(2);
        let (file, pin) = (numbered(8), pin());
        let (done, answered) = std::sync::mpsc::channel();
        let senders: Vec<_> = (0..8u8)
            .map(|n| {
                let (ring, file, pin) = (ring.clone(), file.clone(), pin.clone());
                let done = done.clone();
                std::thread::spawn(move || {
                    let at = u64::from(n) * 4096;
                    // The close ends it.
                    loop {
                        let read = ring.read(&file, at, AlignedBuf::new(4096), &pin);
                        match futures::executor::block_on(read) {
                            Ok(read) => assert!(read.unwrap().iter().all(|&b| b == n)),
                            Err(error) => {
                                assert_eq!(error.code, ErrorCode::Unavailable);
                                return;
                            }
                        }
                        // Nobody counts any more once the ring is closed.
                        let _ = done.send(());
                    }
                })
            })
            .collect();
        // Closed while reads are in work: after none of them, after one, and so on.
        for _ in 0..round {
            answered
                .recv_timeout(Duration::from_mins(1))
                .expect("reads are answered");
        }
        ring.close();
        thread.join().unwrap();
        for sender in senders {
            sender.join().unwrap();
        }
    }
}
