use super::*;
use crate::engine::alloc::Allocator;
use emberfs_proto::ErrorCode;
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
            ring.write(file, at, data, pin, None)
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
        ring.write(&file, n * 4096, Bytes::from(vec![1; 4096]), &pin, None)
            .await
            .unwrap()
            .unwrap();
    }
    ring.close();
    thread.join().unwrap();
}
