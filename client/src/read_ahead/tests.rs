//! Which reads fetch ahead, and how far.

use std::sync::Arc;

use futures::FutureExt;
use tokio::sync::Semaphore;

use super::pace::FLOOR;
use super::streams::STREAMS;
use super::*;

const MIB: u64 = 1 << 20;

struct Fixture {
    ahead: ReadAhead,
    budget: Arc<Semaphore>,
    fetched: Vec<(u64, u64)>,
    around: Surroundings,
}

impl Fixture {
    fn new(budget: u64) -> Self {
        Self {
            ahead: ReadAhead::default(),
            budget: Arc::new(Semaphore::new(budget as usize)),
            fetched: Vec::new(),
            around: Surroundings {
                size: 1 << 30,
                limit: 16 * MIB,
                memory: budget,
                now: Instant::now(),
                dirty: false,
            },
        }
    }

    /// No byte is fetched twice, and none of a block is outside the file.
    fn check(&self) {
        let mut fetched = self.fetched.clone();
        fetched.sort_unstable();
        for pair in fetched.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "twice: {pair:?}");
        }
        let last = fetched.last().map_or(0, |(offset, len)| offset + len);
        assert!(last <= self.around.size);
    }

    /// Bytes of the read that were hits.
    fn read(&mut self, offset: u64, len: u64) -> u64 {
        let Self {
            ahead,
            budget,
            fetched,
            around,
        } = self;
        let hits = ahead.access(offset, len, around, |offset, len| {
            let permit = budget.clone().try_acquire_many_owned(len as u32).ok()?;
            fetched.push((offset, len));
            let data: Result<Bytes> = Ok(Bytes::from(vec![0; len as usize]));
            Some((std::future::ready(data).boxed().shared(), permit))
        });
        hits.iter().map(|hit| hit.len as u64).sum()
    }
}

#[test]
fn a_sequential_reader_is_served_from_its_third_read_on() {
    let mut f = Fixture::new(64 * MIB);
    assert_eq!(f.read(0, MIB), 0);
    assert!(f.fetched.is_empty(), "one read is no stream");
    assert_eq!(f.read(MIB, MIB), 0);
    for i in 2..100 {
        assert_eq!(f.read(i * MIB, MIB), MIB, "read {i}");
    }
    let ahead = f.fetched.iter().map(|(o, l)| o + l).max().unwrap() - 100 * MIB;
    assert_eq!(
        ahead,
        16 * MIB,
        "the window grew to its limit and no further"
    );
    let mut starts: Vec<_> = f.fetched.iter().map(|f| f.0).collect();
    starts.dedup();
    assert_eq!(starts.len(), f.fetched.len(), "nothing is fetched twice");
}

#[test]
fn random_reads_fetch_nothing() {
    let mut f = Fixture::new(64 * MIB);
    let mut at = 1u64;
    for _ in 0..1000 {
        at = at
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        f.read((at >> 20) % (1 << 29), 4096);
    }
    assert_eq!(f.fetched, []);
}

#[test]
fn parts_of_a_stream_in_any_order_continue_it() {
    let mut f = Fixture::new(64 * MIB);
    let part = 128 << 10;
    let order = [0, 1, 3, 2, 5, 4, 7, 6, 8, 11, 9, 10, 12, 14, 13, 15];
    let hits: u64 = order.iter().map(|i| f.read(i * part, part)).sum();
    assert!(hits >= 12 * part, "{} of 16 parts were hits", hits / part);
}

#[test]
fn two_streams_in_one_file_are_both_followed() {
    let mut f = Fixture::new(64 * MIB);
    for i in 0..20 {
        let (a, b) = (f.read(i * MIB, MIB), f.read((500 + i) * MIB, MIB));
        assert!(i < 2 || (a == MIB && b == MIB), "read {i}");
    }
}

#[test]
fn streams_of_one_file_share_its_window() {
    let mut f = Fixture::new(256 * MIB);
    for i in 0..40 {
        for stream in 0..4 {
            f.read((stream * 200 + i) * MIB, MIB);
        }
    }
    for stream in 0..4 {
        let from = stream * 200 * MIB;
        let ahead = f.fetched.iter().map(|(o, l)| o + l);
        let last = ahead.filter(|end| *end <= from + 200 * MIB).max().unwrap();
        let ahead = last - (from + 40 * MIB);
        assert!(
            (3 * MIB..=6 * MIB).contains(&ahead),
            "stream {stream} is {ahead} bytes ahead"
        );
    }
    f.check();
}

#[test]
fn memory_bounds_the_window_and_comes_back() {
    let mut f = Fixture::new(4 * MIB);
    for i in 0..50 {
        f.read(i * MIB, MIB);
    }
    let left = f.budget.available_permits() as u64;
    assert!(left <= MIB, "{left} bytes of the budget are unused");
    f.ahead.clear();
    assert_eq!(f.budget.available_permits() as u64, 4 * MIB);
}

#[test]
fn a_write_drops_the_blocks_it_touches_and_buffered_writes_stop_fetching() {
    let mut f = Fixture::new(64 * MIB);
    (0..4).for_each(|i| _ = f.read(i * MIB, MIB));
    f.ahead.invalidate(4 * MIB + 5, 1);
    f.around.dirty = true;
    let before = f.fetched.len();
    assert_eq!(f.read(4 * MIB, MIB), 0);
    assert_eq!(f.read(5 * MIB, MIB), MIB);
    assert_eq!(f.fetched.len(), before);
}

#[test]
fn streams_that_stand_still_give_their_memory_back() {
    let mut f = Fixture::new(64 * MIB);
    (0..4).for_each(|i| _ = f.read(i * MIB, MIB));
    f.ahead.expire(f.around.now);
    assert!(f.budget.available_permits() as u64 != 64 * MIB);
    f.ahead.expire(f.around.now + IDLE);
    assert_eq!(f.budget.available_permits() as u64, 64 * MIB);
}

#[test]
fn the_end_of_the_file_ends_the_read_ahead() {
    let mut f = Fixture::new(64 * MIB);
    f.around.size = 5 * MIB + 123;
    (0..5).for_each(|i| _ = f.read(i * MIB, MIB));
    assert_eq!(
        f.fetched.iter().map(|(o, l)| o + l).max(),
        Some(5 * MIB + 123)
    );
    assert_eq!(f.read(5 * MIB, 123), 123);
}

#[test]
fn a_backward_reader_is_served_down_to_the_first_byte() {
    let mut f = Fixture::new(64 * MIB);
    let step = 256 << 10;
    let start = 40 * MIB + 12_345;
    f.around.size = start;
    let mut at = start;
    let mut missed = 0;
    while at > 0 {
        let len = step.min(at);
        at -= len;
        missed += len - f.read(at, len);
    }
    assert!(missed <= 3 * step, "{missed} bytes were not read ahead");
    f.check();
    let total: u64 = f.fetched.iter().map(|(_, len)| len).sum();
    assert!(total <= start, "nothing but the file is fetched");
}

#[test]
fn a_stream_that_turns_round_is_followed_back() {
    let mut f = Fixture::new(64 * MIB);
    (0..40).for_each(|i| _ = f.read(i * MIB / 4, MIB / 4));
    let hits = (0..36).rev().map(|i| f.read(i * MIB / 4, MIB / 4));
    let hits: u64 = hits.sum();
    assert!(hits >= 5 * MIB, "{hits} bytes of the way back");
}

#[test]
fn strided_reads_fetch_the_next_items_and_no_gaps() {
    for stride in [3i64, 20, 500, -2, -50].map(|lens| lens * 8192 + 512) {
        let mut f = Fixture::new(64 * MIB);
        let at = |i: i64| (500 * MIB).checked_add_signed(i * stride).unwrap();
        let hits: Vec<u64> = (0..100).map(|i| f.read(at(i), 8192)).collect();
        assert!(hits[..4].iter().all(|&hit| hit == 0), "stride {stride}");
        let served = hits[4..].iter().filter(|&&hit| hit == 8192).count();
        assert_eq!(served, 96, "stride {stride}");
        let items: Vec<u64> = (0..200).map(at).collect();
        for &(offset, len) in &f.fetched {
            assert!(len == 8192 && items.contains(&offset), "stride {stride}");
        }
        assert!(f.fetched.len() <= 96 + ITEMS as usize, "not too far ahead");
        f.check();
    }
}

#[test]
fn a_stride_ends_with_the_file_at_both_ends() {
    let mut f = Fixture::new(64 * MIB);
    f.around.size = 100 * 40_000 + 10;
    let up: u64 = (0..100).map(|i| f.read(i * 40_000, 4096)).sum();
    assert_eq!(up, 96 * 4096);
    assert_eq!(f.fetched.len(), 96);
    f.check();
    f.fetched.clear();
    let down: u64 = (0..100)
        .rev()
        .map(|i| f.read(i * 40_000 + 5000, 4096))
        .sum();
    assert_eq!(down, 96 * 4096);
    assert_eq!(f.fetched.len(), 96);
    f.check();
}

#[test]
fn interleaved_strides_and_streams_are_told_apart() {
    let mut f = Fixture::new(64 * MIB);
    let mut served = 0;
    for i in 0..64 {
        served += f.read(i * 300_000, 4096);
        served += f.read((300 * MIB).saturating_sub(i * 500_000), 8192);
        served += f.read(400 * MIB + i * 65_536, 65_536);
        served += f.read(600 * MIB - (i + 1) * 65_536, 65_536);
    }
    let all = 64 * (4096 + 8192 + 2 * 65_536);
    assert!(served >= all * 9 / 10, "{served} of {all} bytes");
    f.check();
}

#[test]
fn items_that_come_in_another_order_are_served_too() {
    let mut f = Fixture::new(64 * MIB);
    (0..6).for_each(|i| _ = f.read(i * MIB, 4096));
    let order = [7, 6, 9, 8, 12, 10, 11, 13, 15, 14];
    let hits: u64 = order.iter().map(|i| f.read(i * MIB, 4096)).sum();
    assert!(hits >= 8 * 4096, "{} of 10 items", hits / 4096);
}

#[test]
fn another_stride_is_found_and_the_old_one_forgotten() {
    let mut f = Fixture::new(64 * MIB);
    (0..50).for_each(|i| _ = f.read(i * 100_000, 4096));
    let start = 200 * MIB;
    let hits: Vec<u64> = (0..50).map(|i| f.read(start + i * 70_000, 4096)).collect();
    assert!(hits[4..].iter().all(|&hit| hit == 4096), "{hits:?}");
    // Sequential now.
    let start = start + 50 * 70_000;
    let hits: Vec<u64> = (0..50).map(|i| f.read(start + i * 4096, 4096)).collect();
    let served = hits.iter().filter(|&&hit| hit == 4096).count();
    assert!(served >= 46, "{hits:?}");
    f.around.now += IDLE;
    f.ahead.expire(f.around.now);
    assert_eq!(f.budget.available_permits() as u64, 64 * MIB);
}

#[test]
fn pages_at_random_within_a_small_file_fetch_next_to_nothing() {
    // Neighbours do come one after the other now and then.
    let mut f = Fixture::new(64 * MIB);
    f.around.size = 4096 * 4096;
    let mut at = 1u64;
    for _ in 0..3000 {
        at = at
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        f.read((at >> 33) % 4096 * 4096, 4096);
    }
    let fetched: u64 = f.fetched.iter().map(|(_, len)| len).sum();
    let read = 3000 * 4096;
    assert!(fetched < read / 10, "{fetched} bytes for {read} at random");
}

#[test]
fn many_workers_share_the_memory() {
    let mut f = Fixture::new(128 * MIB);
    let workers = STREAMS as u64 - 2;
    let part = 32 * MIB;
    let mut served = 0;
    for i in 0..40 {
        for worker in 0..workers {
            // Parts of different sizes: no stride between the workers.
            let start = worker * part + worker * worker * 12_288;
            served += f.read(start + i * (256 << 10), 256 << 10);
        }
    }
    let all = workers * 40 * (256 << 10);
    assert!(served > all * 9 / 10, "{served} of {all} bytes");
    f.check();
}

/// Reads of 1 MiB, one in each interval, with fetches that take so long; the bytes ahead at the end.
fn ahead_at(interval: Duration, delay: Duration) -> u64 {
    let mut f = Fixture::new(64 * MIB);
    for i in 0..200 {
        f.around.now += interval;
        f.ahead.fetched(delay);
        f.read(i * MIB, MIB);
    }
    let end = f.fetched.iter().map(|(offset, len)| offset + len).max();
    end.unwrap() - 200 * MIB
}

#[test]
fn the_window_is_what_the_stream_needs() {
    let ms = Duration::from_millis;
    assert_eq!(ahead_at(ms(100), ms(1)), FLOOR, "10 MiB/s need little");
    // 1000 MiB/s and 4 ms: 4 MiB on their way, twice that and some for the jitter.
    let ahead = ahead_at(ms(1), ms(4));
    assert!((8 * MIB..=12 * MIB).contains(&ahead), "{ahead}");
    assert_eq!(ahead_at(ms(1), ms(100)), 16 * MIB, "the limit");
}

#[test]
fn a_reader_in_bursts_keeps_the_window_of_its_bursts() {
    let mut f = Fixture::new(64 * MIB);
    for i in 0..64 {
        let pause = if i % 16 == 0 { 500 } else { 1 };
        f.around.now += Duration::from_millis(pause);
        f.ahead.fetched(Duration::from_millis(5));
        f.read(i * MIB, MIB);
    }
    let end = f.fetched.iter().map(|(offset, len)| offset + len).max();
    assert!(end.unwrap() - 64 * MIB >= 8 * MIB);
}
