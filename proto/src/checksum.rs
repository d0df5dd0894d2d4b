//! Page checksums: CRC-32 (IEEE, crc32fast) over each page of a chunk.
//!
//! A chunk is divided into pages of [`crate::layout::Layout::page_size`] bytes. A range of a
//! chunk is divided at page boundaries into *fragments*; data on the wire carries one
//! checksum per fragment. A fragment that covers a whole page (or the page's valid bytes at the
//! end of the chunk) has the very checksum that the engine stores, so such a read or write
//! costs the server no checksum pass.

use std::ops::Range;

/// Algorithm tag in formats: CRC-32 as in IEEE 802.3.
pub const ALGORITHM_CRC32: u8 = 1;

/// Checksum of some bytes.
pub fn crc32(data: &[u8]) -> u32 {
    crc32fast::hash(data)
}

/// Checksum of `a ++ b` from both checksums and the length of `b`, without touching the bytes.
pub fn combine(a: u32, b: u32, len_b: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial_len(a, 0);
    hasher.combine(&crc32fast::Hasher::new_with_initial_len(b, len_b));
    hasher.finalize()
}

/// Splits `[offset, offset + len)` of a chunk at page boundaries, in order.
pub fn fragments(offset: u32, len: u32, page_size: u32) -> impl Iterator<Item = Range<u32>> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let next = (at - at % page_size).saturating_add(page_size).min(end);
            let range = at..next;
            at = next;
            range
        })
    })
}

/// Number of fragments of `[offset, offset + len)`.
pub fn fragment_count(offset: u32, len: u32, page_size: u32) -> usize {
    if len == 0 {
        return 0;
    }
    ((offset + len - 1) / page_size - offset / page_size + 1) as usize
}

/// One checksum per fragment of `data`, which lies at `offset` of its chunk.
pub fn fragment_checksums(offset: u32, data: &[u8], page_size: u32) -> Vec<u32> {
    fragments(offset, data.len() as u32, page_size)
        .map(|r| crc32(&data[(r.start - offset) as usize..(r.end - offset) as usize]))
        .collect()
}

/// Verifies `data` at `offset` against its fragment checksums. On a mismatch returns the
/// range within the chunk of the first bad fragment; a wrong number of checksums is a
/// mismatch of the whole range.
pub fn verify_fragments(
    offset: u32,
    data: &[u8],
    page_size: u32,
    checksums: &[u32],
) -> Result<(), Range<u32>> {
    let len = data.len() as u32;
    if fragment_count(offset, len, page_size) != checksums.len() {
        return Err(offset..offset + len);
    }
    for (range, &sum) in fragments(offset, len, page_size).zip(checksums) {
        if crc32(&data[(range.start - offset) as usize..(range.end - offset) as usize]) != sum {
            return Err(range);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fragments_cover_the_range_and_never_cross_a_page(
            offset in 0u32..200_000, len in 0u32..200_000, shift in 12u32..17,
        ) {
            let page = 1 << shift;
            let mut at = offset;
            let mut count = 0;
            for r in fragments(offset, len, page) {
                prop_assert_eq!(r.start, at);
                prop_assert!(r.end > r.start);
                prop_assert_eq!(r.start / page, (r.end - 1) / page);
                at = r.end;
                count += 1;
            }
            prop_assert_eq!(at, offset + len);
            prop_assert_eq!(count, fragment_count(offset, len, page));
        }

        #[test]
        fn combining_equals_hashing_the_whole(a: Vec<u8>, b: Vec<u8>) {
            let whole = [a.clone(), b.clone()].concat();
            prop_assert_eq!(combine(crc32(&a), crc32(&b), b.len() as u64), crc32(&whole));
        }

        #[test]
        fn one_flipped_bit_is_found(mut data in proptest::collection::vec(any::<u8>(), 1..50_000), offset in 0u32..20_000, at: prop::sample::Index, bit in 0u8..8) {
            let sums = fragment_checksums(offset, &data, 16384);
            prop_assert_eq!(verify_fragments(offset, &data, 16384, &sums), Ok(()));
            let i = at.index(data.len());
            data[i] ^= 1 << bit;
            let bad = verify_fragments(offset, &data, 16384, &sums).unwrap_err();
            prop_assert!(bad.contains(&(offset + i as u32)));
        }
    }
}
