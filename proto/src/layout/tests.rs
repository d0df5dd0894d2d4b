use super::*;
use proptest::prelude::*;

fn layout(width: u32, seed: u64) -> Layout {
    Layout {
        chunk_size: DEFAULT_CHUNK_SIZE,
        page_size: DEFAULT_PAGE_SIZE,
        table: ChainTableId(1),
        table_version: ChainTableVersion(1),
        stripe_width: width,
        seed,
    }
}

fn table(n: u32) -> Vec<ChainId> {
    (100..100 + n).map(ChainId).collect()
}

fn stripe(width: u32, seed: u64, n: u32) -> Vec<u32> {
    layout(width, seed)
        .stripe(&table(n))
        .unwrap()
        .into_iter()
        .map(|c| c.0)
        .collect()
}

/// The published vectors of splitmix64 for seed 1234567 (Vigna's reference implementation).
#[test]
fn splitmix64_matches_its_reference() {
    let mut state = 1_234_567;
    let got: Vec<u64> = (0..5).map(|_| splitmix64(&mut state)).collect();
    let want = [
        6_457_827_717_110_365_317,
        3_203_168_211_198_807_973,
        9_817_491_932_198_370_423,
        4_593_380_528_125_082_431,
        16_408_922_859_458_223_821,
    ];
    assert_eq!(got, want);
}

/// Golden vectors of the whole function. They may never change: files depend on them.
#[test]
fn stripes_match_the_golden_vectors() {
    assert_eq!(stripe(1, 0, 1), [100]);
    assert_eq!(stripe(4, 0, 8), GOLDEN_4_OF_8_SEED_0);
    assert_eq!(stripe(16, 42, 8), GOLDEN_8_OF_8_SEED_42);
    assert_eq!(stripe(5, u64::MAX, 1000), GOLDEN_5_OF_1000_SEED_MAX);
}

const GOLDEN_4_OF_8_SEED_0: [u32; 4] = [107, 102, 103, 100];
const GOLDEN_8_OF_8_SEED_42: [u32; 8] = [105, 106, 102, 107, 101, 100, 103, 104];
const GOLDEN_5_OF_1000_SEED_MAX: [u32; 5] = [1036, 404, 481, 946, 1010];

#[test]
fn spans_split_at_chunk_boundaries() {
    let layout = layout(1, 0);
    let size = DEFAULT_CHUNK_SIZE;
    let spans = layout
        .spans(u64::from(size) - 10, size as usize + 30)
        .unwrap();
    let span = |index, offset, len, at| ChunkSpan {
        index: ChunkIndex(index),
        offset,
        len,
        at,
    };
    assert_eq!(
        spans,
        [
            span(0, size - 10, 10, 0),
            span(1, 0, size, 10),
            span(2, 0, 20, size as usize + 10)
        ]
    );
    assert_eq!(layout.spans(5, 0).unwrap(), []);
}

#[test]
fn a_range_past_the_largest_file_is_refused() {
    let layout = layout(1, 0);
    let max = layout.max_file_size();
    assert!(layout.spans(max - 1, 1).is_ok());
    for (offset, len) in [(max, 1), (u64::MAX, 1), (max - 1, 2)] {
        assert_eq!(
            layout.spans(offset, len).unwrap_err().code,
            ErrorCode::FileTooLarge
        );
    }
}

#[test]
fn limits_are_checked() {
    let good = layout(1, 0);
    good.validate().unwrap();
    let bad = [
        Layout {
            chunk_size: 32 << 10,
            ..good
        },
        Layout {
            chunk_size: 128 << 20,
            ..good
        },
        Layout {
            chunk_size: 3 << 20,
            ..good
        },
        Layout {
            page_size: 2048,
            ..good
        },
        Layout {
            page_size: 8 << 20,
            ..good
        },
        Layout {
            stripe_width: 0,
            ..good
        },
    ];
    for layout in bad {
        assert_eq!(
            layout.validate().unwrap_err().code,
            ErrorCode::InvalidArgument
        );
    }
    assert_eq!(good.stripe(&[]).unwrap_err().code, ErrorCode::NoChains);
}

proptest! {
    #[test]
    fn spans_cover_the_range_exactly(offset in 0u64..1 << 40, len in 0usize..64 << 20, shift in 16u32..27) {
        let layout = Layout { chunk_size: 1 << shift, ..layout(3, 9) };
        let mut at = 0;
        for span in layout.spans(offset, len).unwrap() {
            prop_assert_eq!(span.at, at);
            prop_assert_eq!(layout.chunk_start(span.index) + u64::from(span.offset), offset + at as u64);
            prop_assert!(span.len > 0 && span.offset + span.len <= layout.chunk_size);
            at += span.len as usize;
        }
        prop_assert_eq!(at, len);
    }

    #[test]
    fn a_stripe_never_repeats_a_chain(width in 1u32..64, seed: u64, n in 1u32..200) {
        let mut got = stripe(width, seed, n);
        prop_assert_eq!(got.len() as u32, width.min(n));
        got.sort_unstable();
        got.dedup();
        prop_assert_eq!(got.len() as u32, width.min(n));
    }
}
