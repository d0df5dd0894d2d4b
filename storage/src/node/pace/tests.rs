use std::sync::Arc;

use super::*;

const MIB: u32 = 1 << 20;

fn pacer(parallel: usize, bytes_per_second: u64, share_percent: u32) -> Pacer {
    let pacer = Pacer::new(parallel);
    pacer.configure(&settings(bytes_per_second, share_percent));
    pacer
}

fn settings(bytes_per_second: u64, share_percent: u32) -> Settings {
    Settings {
        resync_bytes_per_second: bytes_per_second,
        resync_share_percent: share_percent,
        ..Settings::default()
    }
}

/// Sends chunks one after the other, each `took` on its way, for `seconds`; answers how many.
async fn run(pacer: &Pacer, seconds: u64, took: Duration, clients: bool) -> u32 {
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut chunks = 0;
    while Instant::now() < end {
        if clients {
            drop(pacer.foreground());
        }
        let transfer = pacer.admit(MIB).await.expect("never closed");
        tokio::time::sleep(took).await;
        drop(transfer);
        chunks += 1;
    }
    chunks
}

#[tokio::test(start_paused = true)]
async fn without_limits_and_clients_nothing_waits() {
    let pacer = pacer(8, 0, 30);
    let chunks = run(&pacer, 10, Duration::from_millis(10), false).await;
    assert!(chunks >= 990, "{chunks}");
}

#[tokio::test(start_paused = true)]
async fn the_rate_holds_over_all_passes_and_bursts_stay_small() {
    let pacer = Arc::new(pacer(8, 4 << 20, 100));
    let start = Instant::now();
    let passes = (0..5).map(|_| {
        let pacer = pacer.clone();
        tokio::spawn(async move {
            for _ in 0..20 {
                drop(pacer.admit(MIB).await.expect("never closed"));
            }
        })
    });
    for pass in passes.collect::<Vec<_>>() {
        pass.await.expect("no panic");
    }
    // 100 MiB at 4 MiB/s.
    let took = start.elapsed().as_secs_f64();
    assert!((24.0..26.0).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn a_transfer_that_is_stuck_does_not_stop_the_others() {
    let pacer = pacer(8, 0, 20);
    let _client = pacer.foreground();
    let stuck = pacer.admit(MIB).await.expect("never closed");
    let start = Instant::now();
    drop(pacer.admit(MIB).await.expect("never closed"));
    assert_eq!(start.elapsed(), MAX_REST);
    drop(stuck);
}

#[tokio::test(start_paused = true)]
async fn a_chunk_larger_than_the_bucket_goes_and_is_paid_for() {
    let pacer = pacer(8, 1 << 20, 100);
    let start = Instant::now();
    for _ in 0..3 {
        drop(pacer.admit(64 * MIB).await.expect("never closed"));
    }
    let took = start.elapsed().as_secs();
    assert!((127..=129).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn a_new_rate_takes_effect_in_the_middle_of_a_wait() {
    let pacer = Arc::new(pacer(1, 1, 100));
    tokio::time::sleep(Duration::from_secs(2)).await;
    drop(pacer.admit(MIB).await.expect("never closed"));
    let start = Instant::now();
    // At one byte per second this would wait for twelve days.
    let next = tokio::spawn({
        let pacer = pacer.clone();
        async move { drop(pacer.admit(MIB).await.expect("never closed")) }
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!next.is_finished());
    pacer.configure(&settings(0, 100));
    next.await.expect("no panic");
    assert!(start.elapsed() < Duration::from_secs(6));
}

#[tokio::test(start_paused = true)]
async fn clients_keep_their_share_and_the_pass_its_own() {
    let pacer = pacer(8, 0, 30);
    let took = Duration::from_millis(30);
    let chunks = run(&pacer, 10, took, true).await;
    // Moving may take 3 of the 10 seconds.
    assert!((95..=101).contains(&chunks), "{chunks}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_disk_does_not_starve_the_pass() {
    let pacer = pacer(8, 0, 1);
    let chunks = run(&pacer, 100, Duration::from_secs(3), true).await;
    assert!(chunks >= 25, "{chunks}");
}

#[tokio::test(start_paused = true)]
async fn one_chunk_at_a_time_while_clients_are_active_and_many_when_they_are_not() {
    let pacer = pacer(8, 0, 30);
    let idle: Vec<_> = futures::future::join_all((0..8).map(|_| pacer.admit(MIB))).await;
    assert_eq!(pacer.limits.lock().in_flight, 8);
    drop(idle);
    let request = pacer.foreground();
    let first = pacer.admit(MIB).await;
    assert!(first.is_ok());
    let mut second = Box::pin(pacer.admit(MIB));
    let early = tokio::time::timeout(MAX_REST / 2, &mut second).await;
    assert!(early.is_err(), "a second chunk moved");
    drop(request);
    // Clients have gone quiet: it need not wait any longer.
    assert!(second.await.is_ok());
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_need_not_be_sent_costs_nothing() {
    let pacer = pacer(8, 1 << 20, 30);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = Instant::now();
    for _ in 0..100 {
        drop(pacer.foreground());
        pacer.admit(MIB).await.expect("never closed").give_back();
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
}
