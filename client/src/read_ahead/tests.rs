//! Which reads fetch ahead, and how far.

use std::sync::Arc;

use futures::FutureExt;
use tokio::sync::Semaphore;

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
                dirty: false,
            },
        }
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
    assert!(f.fetched.len() < 3, "{} fetches", f.fetched.len());
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
    f.ahead.expire(Instant::now());
    assert!(f.budget.available_permits() as u64 != 64 * MIB);
    f.ahead.expire(Instant::now() + IDLE);
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
