use super::*;
use crate::engine::record::Stamp;
use emberfs_proto::checksum::fragment_checksums;
use proptest::prelude::*;
use std::sync::Arc;

const PAGE: u32 = 16384;
const CHUNK: u32 = 1 << 18;

fn content(bytes: &[u8], capacity: u32, high_water: u32) -> Content {
    let len = bytes.len() as u32;
    Content {
        stamp: Stamp {
            version: 1.into(),
            chain: 1.into(),
            tag: emberfs_proto::ids::WriteTag::default(),
        },
        len,
        high_water,
        block: (len > 0).then(|| Loc {
            class: Class::for_len(capacity).unwrap(),
            number: 0,
        }),
        sums: fragment_checksums(0, bytes, PAGE).into(),
        recent: Arc::default(),
    }
}

/// Carries a plan out on byte vectors, as the engine does on a disk.
fn carry_out(plan: &Plan, base: &Content, block: &[u8], data: &[u8]) -> (Vec<u8>, Vec<u32>) {
    let mut target = match plan.placement {
        Placement::Keep(_) | Placement::InPlace(_) => block.to_vec(),
        Placement::Fresh(class) => vec![0xEE; class.capacity() as usize],
        Placement::Nothing => Vec::new(),
    };
    let at = |r: &Range<u32>, base: u32| (r.start - base) as usize..(r.end - base) as usize;
    let mut read = Vec::new();
    for region in &plan.regions {
        let mut buf = vec![0xDD; region.buf.len()];
        buf[at(&region.read, region.buf.start.min(region.read.start)).start..][..region.read.len()]
            .copy_from_slice(&block[at(&region.read, 0)]);
        for (n, valid) in plan.pages_to_verify(region) {
            assert_eq!(
                crc32(&buf[at(&valid, region.buf.start)]),
                base.sums[n as usize]
            );
        }
        read.push((region.clone(), buf));
    }
    let data_sums = fragment_checksums(plan.data().start, data, PAGE);
    let sums = plan.sums(&base.sums, &data_sums, |range| {
        let (region, buf) = read
            .iter()
            .find(|(r, _)| r.read.start <= range.start && range.end <= r.read.end)
            .expect("bytes that a checksum needs were read");
        assert!(
            plan.pages_to_verify(region)
                .any(|(_, v)| v.start <= range.start && range.end <= v.end)
        );
        crc32(&buf[at(&range, region.buf.start)])
    });
    for (region, mut buf) in read {
        plan.fill(&region, &mut buf, data);
        if !region.write.is_empty() {
            target[at(&region.write, 0)].copy_from_slice(&buf[at(&region.write, region.buf.start)]);
        }
    }
    if !plan.direct.is_empty() {
        let from = at(&plan.direct, plan.data().start);
        target[at(&plan.direct, 0)].copy_from_slice(&data[from]);
    }
    target.truncate(plan.len() as usize);
    (target, sums)
}

fn bytes(len: u32, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed)
        .collect()
}

proptest! {
    #[test]
    fn any_change_gives_the_bytes_and_checksums_that_a_plain_buffer_would(
        old_len in prop_oneof![0u32..100_000, (0u32..24).prop_map(|n| n * 4096)],
        high in 0u32..3, room in 0u32..100_000,
        offset in prop_oneof![0u32..120_000, (0u32..30).prop_map(|n| n * 4096)],
        n in prop_oneof![0u32..100_000, (0u32..30).prop_map(|n| n * 4096)],
        truncate: bool, aligned: bool, hint in 0u32..CHUNK,
    ) {
        let old = bytes(old_len, 1);
        let high = if high == 0 { (old_len + room).min(CHUNK) } else { old_len };
        let base = content(&old, high.max(old_len + room).min(CHUNK), high);
        let capacity = base.block.map_or(0, |b| b.class.capacity()) as usize;
        // What lies behind the committed bytes is rubbish.
        let mut block = old.clone();
        block.resize(capacity, 0xCC);
        let data = if truncate { Vec::new() } else { bytes(n, 77) };
        let edit = if truncate { Edit::truncate(offset) } else { Edit::write(old_len, offset, n, hint) };
        let mut expect = old.clone();
        if truncate {
            expect.resize(offset as usize, 0);
        } else if n > 0 {
            expect.resize(expect.len().max((offset + n) as usize), 0);
            expect[offset as usize..(offset + n) as usize].copy_from_slice(&data);
        }
        let address = if aligned { 1 << 20 | (offset % SECTOR) as usize } else { 8 };
        let plan = plan(Some(&base), edit, address, PAGE, CHUNK).unwrap();
        let (got, sums) = carry_out(&plan, &base, &block, &data);
        prop_assert_eq!(&got, &expect);
        prop_assert_eq!(&sums, &fragment_checksums(0, &expect, PAGE));
        match plan.placement {
            Placement::InPlace(_) => {
                // No committed byte changes, not even one that an older version had.
                prop_assert!(base.high_water == old_len && expect.len() <= capacity);
                prop_assert!(plan.regions.iter().all(|r| r.write.start >= sector_down(old_len)));
                prop_assert!(plan.direct.is_empty() || plan.direct.start >= old_len);
            }
            Placement::Keep(_) => prop_assert!(plan.high_water >= plan.len()),
            Placement::Fresh(class) => {
                prop_assert!(class.capacity() as usize >= expect.len());
                prop_assert_eq!(plan.high_water, plan.len());
            }
            Placement::Nothing => prop_assert!(expect.is_empty()),
        }
    }
}

#[test]
fn aligned_bytes_of_a_whole_chunk_are_not_copied() {
    let plan = plan(None, Edit::write(0, 0, CHUNK, 0), 4096, PAGE, CHUNK).unwrap();
    assert_eq!((plan.direct, plan.regions), (0..CHUNK, vec![]));
}

#[test]
fn growing_by_small_appends_moves_the_chunk_a_logarithmic_number_of_times() {
    let mut base = content(&[], 0, 0);
    let mut moves = 0;
    while base.len < CHUNK {
        let edit = Edit::write(base.len, base.len, 4096, 0);
        let plan = plan(Some(&base), edit, 0, PAGE, CHUNK).unwrap();
        let len = plan.len();
        let block = match plan.placement {
            Placement::Fresh(class) => {
                moves += 1;
                Loc { class, number: 0 }
            }
            Placement::InPlace(loc) => loc,
            other => panic!("an append was planned as {other:?}"),
        };
        let sums: Arc<[u32]> = vec![0; len.div_ceil(PAGE) as usize].into();
        base = Content {
            len,
            high_water: len,
            block: Some(block),
            sums,
            ..base
        };
    }
    assert!(moves <= 8, "{moves} moves for 64 appends");
}

#[test]
fn the_size_hint_and_a_wasteful_cut_choose_the_block() {
    let hinted = plan(None, Edit::write(0, 0, 4096, 100_000), 0, PAGE, CHUNK).unwrap();
    assert_eq!(
        hinted.placement,
        Placement::Fresh(Class::for_len(100_000).unwrap())
    );
    let base = content(&bytes(100_000, 0), 100_000, 100_000);
    let cut = |len| {
        plan(Some(&base), Edit::truncate(len), 0, PAGE, CHUNK)
            .unwrap()
            .placement
    };
    assert_eq!(cut(90_000), Placement::Keep(base.block.unwrap()));
    assert_eq!(cut(5_000), Placement::Fresh(Class::for_len(5_000).unwrap()));
    assert_eq!(cut(0), Placement::Nothing);
}
