//! The pure write buffer against its promises.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use emberfs_proto::ErrorCode;
use emberfs_proto::ids::{ChainTableId, ChainTableVersion};
use proptest::prelude::*;

const CHUNK: u32 = 64 << 10;

fn layout() -> Layout {
    Layout {
        chunk_size: CHUNK,
        page_size: 4096,
        table: ChainTableId(1),
        table_version: ChainTableVersion(1),
        stripe_width: 1,
        seed: 0,
    }
}

fn bytes(len: u32, value: u8) -> Bytes {
    Bytes::from(vec![value; len as usize])
}

fn contents(run: &Run) -> Vec<u8> {
    run.pieces.concat()
}

#[test]
fn sequential_writes_become_one_run_per_chunk() {
    let mut buffers = Buffers::new(layout(), false);
    for i in 0..16u32 {
        let ready = buffers.add(0, i * 4096, bytes(4096, i as u8), None);
        assert_eq!(ready, i == 15, "only a full chunk goes by itself");
    }
    let run = buffers.next(0).unwrap();
    assert_eq!((run.offset, run.len, run.size_hint), (0, CHUNK, CHUNK));
    assert!(
        contents(&run)
            .chunks(4096)
            .enumerate()
            .all(|(i, page)| page.iter().all(|&b| b == i as u8))
    );
    assert!(run.pieces.len() <= 2, "{} pieces", run.pieces.len());
    buffers.done(0, run.number, None);
    assert!(buffers.next(0).is_none() && buffers.is_clean());
}

#[test]
fn writes_that_do_not_continue_keep_their_order() {
    let mut buffers = Buffers::new(layout(), false);
    assert!(!buffers.add(0, 0, bytes(100, 1), None));
    assert!(
        buffers.add(0, 50, bytes(100, 2), None),
        "the first run goes at once"
    );
    let first = buffers.next(0).unwrap();
    assert_eq!((first.offset, first.len), (0, 100));
    let (ready, number) = buffers.seal_all(Why::Flush);
    assert!(
        ready.is_empty(),
        "the worker that has the first takes the second"
    );
    assert_eq!(buffers.watermark(), 0);
    buffers.done(0, first.number, None);
    let second = buffers.next(0).unwrap();
    assert_eq!((second.offset, second.number), (50, number));
    buffers.done(0, second.number, None);
    assert_eq!(buffers.watermark(), number);
}

#[test]
fn the_size_hint_tells_small_files_from_growing_ones() {
    let hint = |index: u32, len: u32, why: Why| {
        let mut buffers = Buffers::new(layout(), false);
        buffers.add(index, 0, bytes(len, 0), None);
        buffers.seal(index, why);
        buffers.next(index).unwrap().size_hint
    };
    assert_eq!(hint(0, 100, Why::Flush), 0);
    assert_eq!(hint(0, CHUNK, Why::Close), CHUNK);
    assert_eq!(hint(3, 100, Why::Flush), CHUNK);
    assert_eq!(hint(3, 100, Why::Close), 0);
}

#[test]
fn a_read_waits_only_for_its_own_chunks() {
    let mut buffers = Buffers::new(layout(), false);
    buffers.add(0, 0, bytes(10, 1), None);
    buffers.add(5, 0, bytes(10, 1), None);
    assert_eq!(buffers.seal_range(1, 4), (vec![], 0));
    let (ready, number) = buffers.seal_range(5, 9);
    assert_eq!((ready, number), (vec![5], 1));
    let run = buffers.next(5).unwrap();
    assert_eq!(
        buffers.seal_range(5, 5),
        (vec![], 1),
        "what is in flight counts"
    );
    buffers.done(5, run.number, None);
    assert_eq!(buffers.seal_range(5, 5), (vec![], 0));
}

#[test]
fn a_hurried_chunk_gathers_while_its_worker_is_busy() {
    let mut buffers = Buffers::new(layout(), false);
    buffers.add(0, 0, bytes(10, 1), None);
    assert_eq!(buffers.hurry(Instant::now()), vec![0]);
    let first = buffers.next(0).unwrap();
    buffers.add(0, 10, bytes(10, 2), None);
    assert!(buffers.hurry(Instant::now()).is_empty());
    buffers.add(0, 20, bytes(10, 3), None);
    buffers.done(0, first.number, None);
    let second = buffers.next(0).unwrap();
    assert_eq!((second.offset, second.len), (10, 20));
}

#[test]
fn a_truncate_drops_what_lies_beyond_and_nothing_else() {
    let mut buffers = Buffers::new(layout(), false);
    buffers.add(0, 0, bytes(1000, 1), None);
    buffers.add(2, 0, bytes(1000, 2), None);
    buffers.add(2, 5000, bytes(1000, 3), None);
    let size = 2 * u64::from(CHUNK) + 400;
    buffers.discard_from(size);
    assert_eq!(buffers.end(), size);
    let (ready, last) = buffers.seal_all(Why::Flush);
    assert_eq!(ready, vec![0], "chunk 2 has its worker already");
    for (index, len) in [(0, 1000), (2, 400)] {
        let run = buffers.next(index).unwrap();
        assert_eq!(
            (run.offset, run.len, contents(&run).len()),
            (0, len, len as usize)
        );
        buffers.done(index, run.number, None);
        assert!(buffers.next(index).is_none());
    }
    assert_eq!(buffers.watermark(), last);
    assert!(buffers.is_clean());
}

#[test]
fn a_failure_is_counted_and_the_next_run_goes_on() {
    let mut buffers = Buffers::new(layout(), false);
    buffers.add(0, 0, bytes(10, 1), None);
    buffers.seal_all(Why::Flush);
    let run = buffers.next(0).unwrap();
    buffers.done(0, run.number, Some(Error::new(ErrorCode::NoSpace, "full")));
    assert_eq!(buffers.failures().0, 1);
    assert_eq!(buffers.watermark(), run.number);
    assert_eq!(buffers.end(), 0);
}

/// Bytes that count their end.
struct Counted(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn kept_pieces_live_as_long_as_any_part_of_them_waits() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let counted = |len: usize| Bytes::from_owner(Counted(vec![1; len], dropped.clone()));
    let gone = || dropped.load(Ordering::Relaxed);
    let mut buffers = Buffers::new(layout(), true);
    for at in [0, 100, 200] {
        buffers.add(0, at, counted(100), None);
    }
    // One that spans two chunks.
    let mut spans = counted(200);
    let second = spans.split_off(100);
    buffers.add(0, CHUNK - 100, spans, None);
    buffers.add(1, 0, second, None);
    assert_eq!(gone(), 0);
    buffers.discard_from(u64::from(CHUNK));
    assert_eq!(gone(), 0, "its first half is below");
    buffers.discard_from(150);
    assert_eq!(gone(), 2, "the third piece, and the one of two chunks");
    buffers.seal_all(Why::Flush);
    let run = buffers.next(0).unwrap();
    assert_eq!((run.len, contents(&run).len(), gone()), (150, 150, 2));
    buffers.done(0, run.number, None);
    drop(run);
    assert_eq!(gone(), 4);

    let mut buffers = Buffers::new(layout(), false);
    buffers.add(0, 0, counted(100), None);
    assert_eq!(gone(), 5, "copied and dropped, unless kept");
}

proptest! {
    /// Whatever is written in whatever pieces, replaying the runs gives the bytes of a plain file.
    #[test]
    fn runs_replay_to_the_bytes_written(
        writes in proptest::collection::vec((0u32..3 * CHUNK, 1u32..20_000, any::<u8>()), 1..40),
        seals in proptest::collection::vec(any::<bool>(), 40),
    ) {
        let layout = layout();
        let mut buffers = Buffers::new(layout, false);
        let mut model = vec![0u8; 8 * CHUNK as usize];
        let mut replica = model.clone();
        let mut drain = |buffers: &mut Buffers| {
            for index in 0..8 {
                while let Some(run) = buffers.next(index) {
                    let at = (index * CHUNK + run.offset) as usize;
                    let data = contents(&run);
                    assert_eq!(data.len(), run.len as usize);
                    replica[at..at + data.len()].copy_from_slice(&data);
                    buffers.done(index, run.number, None);
                }
            }
        };
        for ((offset, len, value), seal) in writes.into_iter().zip(seals) {
            model[offset as usize..(offset + len) as usize].fill(value);
            for span in layout.spans(offset.into(), len as usize).unwrap() {
                buffers.add(span.index.0, span.offset, bytes(span.len, value), None);
            }
            if seal {
                drain(&mut buffers);
            }
        }
        let (_, last) = buffers.seal_all(Why::Flush);
        drain(&mut buffers);
        prop_assert_eq!(buffers.watermark(), last);
        prop_assert!(buffers.is_clean());
        prop_assert!(model == replica);
    }
}
