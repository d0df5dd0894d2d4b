//! Layout arithmetic: file offset → chunk → chain, specified to the bit.
//!
//! A layout is fixed when a file is created and never changes, so every client and server,
//! of any version, on any platform, must compute the same chain for the same chunk. Nothing
//! here may therefore use a library's random numbers or shuffle (3FS lost files to a
//! compiler's `std::shuffle`; its issue #368).
//!
//! **Specification.** Let `chains` be the `n` chain ids of the layout's chain table version, in
//! table order, and `w = min(stripe_width, n)`.
//! 1. `splitmix64(s)`: `s += 0x9E3779B97F4A7C15`; `z = s`; `z = (z ^ z>>30) * 0xBF58476D1CE4E5B9`;
//!    `z = (z ^ z>>27) * 0x94D049BB133111EB`; the output is `z ^ z>>31` (all modulo 2^64).
//! 2. Let `p = [0, 1, …, n-1]`. For `i` in `0..w`: `j = i + next() mod (n - i)`; swap `p[i]`, `p[j]`, where `next()`
//!    are the successive outputs of splitmix64 started with `s = seed`.
//! 3. Chunk `c` lives on `chains[p[c mod w]]`.
//!
//! The test vectors below pin it.

use crate::error::{Error, ErrorCode, Result};
use crate::ids::{ChainId, ChainTableId, ChainTableVersion, ChunkIndex};

/// Smallest chunk size, bytes.
pub const MIN_CHUNK_SIZE: u32 = 64 << 10;
/// Largest chunk size, bytes.
pub const MAX_CHUNK_SIZE: u32 = 64 << 20;
/// Chunk size unless the directory says otherwise, bytes.
pub const DEFAULT_CHUNK_SIZE: u32 = 4 << 20;
/// Checksum page size unless the directory says otherwise, bytes.
pub const DEFAULT_PAGE_SIZE: u32 = 16 << 10;
/// Chains that a file is striped over unless the directory says otherwise.
pub const DEFAULT_STRIPE_WIDTH: u32 = 16;
/// Most chunks of one file: a chunk index is 32 bits, and the last is kept free.
pub const MAX_CHUNKS: u64 = u32::MAX as u64;

/// How a file's bytes map to chunks and chains. Fixed at create.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Bytes per chunk: a power of two from 64 KiB to 64 MiB.
    pub chunk_size: u32,
    /// Bytes per checksum page: a power of two from 4 KiB to the chunk size.
    pub page_size: u32,
    /// Which chain table.
    pub table: ChainTableId,
    /// Which version of it.
    pub table_version: ChainTableVersion,
    /// Chains that the file is striped over, at least 1.
    pub stripe_width: u32,
    /// Seed of the shuffle that picks those chains.
    pub seed: u64,
}

/// A part of a byte range that lies in one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkSpan {
    /// Which chunk.
    pub index: ChunkIndex,
    /// First byte within the chunk.
    pub offset: u32,
    /// Number of bytes, at least 1.
    pub len: u32,
    /// Where this part begins within the whole range.
    pub at: usize,
}

impl Layout {
    /// Checks the limits of every field.
    pub fn validate(&self) -> Result<()> {
        let bad = |what: String| Err(Error::new(ErrorCode::InvalidArgument, what));
        let size = self.chunk_size;
        if !size.is_power_of_two() || !(MIN_CHUNK_SIZE..=MAX_CHUNK_SIZE).contains(&size) {
            return bad(format!(
                "chunk size {size} is no power of two from 64 KiB to 64 MiB"
            ));
        }
        if !self.page_size.is_power_of_two() || !(4096..=size).contains(&self.page_size) {
            let page = self.page_size;
            return bad(format!(
                "page size {page} is no power of two from 4 KiB to the chunk size"
            ));
        }
        if self.stripe_width == 0 {
            return bad("stripe width 0: a file needs at least one chain".to_owned());
        }
        Ok(())
    }

    /// Largest size of a file with this layout, bytes.
    pub fn max_file_size(&self) -> u64 {
        (MAX_CHUNKS * u64::from(self.chunk_size)).min(i64::MAX as u64)
    }

    /// The chunk that holds byte `offset`.
    pub fn chunk_of(&self, offset: u64) -> ChunkIndex {
        ChunkIndex((offset / u64::from(self.chunk_size)) as u32)
    }

    /// First byte of a chunk within the file.
    pub fn chunk_start(&self, index: ChunkIndex) -> u64 {
        u64::from(index.0) * u64::from(self.chunk_size)
    }

    /// Splits `[offset, offset + len)` at chunk boundaries, in order. The range must lie
    /// within [`Self::max_file_size`]; [`ErrorCode::FileTooLarge`] otherwise.
    pub fn spans(&self, offset: u64, len: usize) -> Result<Vec<ChunkSpan>> {
        let end = offset
            .checked_add(len as u64)
            .filter(|&end| end <= self.max_file_size());
        let Some(end) = end else {
            let max = self.max_file_size();
            let what = format!("offset {offset} + {len} bytes exceeds the maximum file size {max}");
            return Err(Error::new(ErrorCode::FileTooLarge, what));
        };
        let size = u64::from(self.chunk_size);
        let mut spans = Vec::with_capacity(len / self.chunk_size as usize + 2);
        let mut at = offset;
        while at < end {
            let next = (at - at % size + size).min(end);
            spans.push(ChunkSpan {
                index: self.chunk_of(at),
                offset: (at % size) as u32,
                len: (next - at) as u32,
                at: (at - offset) as usize,
            });
            at = next;
        }
        Ok(spans)
    }

    /// The chains that this file is striped over, in stripe order: chunk `c` lives on element
    /// `c mod len`. `table` is the layout's chain table version, in table order.
    pub fn stripe(&self, table: &[ChainId]) -> Result<Vec<ChainId>> {
        if table.is_empty() {
            let what = format!("chain {} {} is empty", self.table, self.table_version);
            return Err(Error::new(ErrorCode::NoChains, what));
        }
        let n = table.len();
        let width = (self.stripe_width.max(1) as usize).min(n);
        let mut order: Vec<usize> = (0..n).collect();
        let mut state = self.seed;
        for i in 0..width {
            let j = i + (splitmix64(&mut state) % (n - i) as u64) as usize;
            order.swap(i, j);
        }
        Ok(order[..width].iter().map(|&i| table[i]).collect())
    }
}

/// Vigna's splitmix64, step 1 of the specification above.
pub fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
