//! copy_file_range(2): through this client, with a few pieces in flight; holes stay holes.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use emberfs_proto::ids::ChunkIndex;
use emberfs_proto::layout::Layout;
use emberfs_proto::{Error, ErrorCode, Result};
use futures::{StreamExt, TryStreamExt};

use crate::chunk_list::Stored;
use crate::core::Core;
use crate::read::{prepare, read_chunks};
use crate::{Allocate, Client, File};

/// Bytes that are read at once, at most.
const PIECE: u64 = 4 << 20;
/// Pieces in memory on their way; what is written counts as buffered writes.
const PIECES_IN_FLIGHT: usize = 4;
/// Bytes of the source whose chunks are looked up at once, about.
const WINDOW: u64 = 256 << 20;

/// A part of the source: bytes, or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    offset: u64,
    len: u64,
    data: bool,
}

struct Copying<'a> {
    core: &'a Arc<Core>,
    from: &'a File,
    from_offset: u64,
    to: &'a File,
    to_offset: u64,
    /// Bytes copied so far, without a gap.
    done: u64,
}

impl Client {
    /// Copies `len` bytes from one open file to another, or within one; answers how many, which is fewer at the end
    /// of the source and after an error that came when something was copied already. Holes stay holes. As with
    /// [`File::write`] the copy may be buffered here, and an error may show later.
    ///
    /// [`ErrorCode::NoSession`]: `from` may not read, or `to` may not write at an offset.
    /// [`ErrorCode::InvalidArgument`]: the ranges overlap in one file. [`ErrorCode::FileTooLarge`]: `to_offset` is
    /// the maximum file size or more. [`ErrorCode::CrossDevice`]: one of the files is another client's.
    pub async fn copy_range(
        &self,
        from: &File,
        from_offset: u64,
        to: &File,
        to_offset: u64,
        len: u64,
    ) -> Result<u64> {
        from.readable()?;
        to.writable()?;
        if to.flags().append {
            let what = format!(
                "the handle on inode {} only appends: nothing can be copied to an offset",
                to.inode()
            );
            return Err(Error::new(ErrorCode::NoSession, what));
        }
        for file in [from, to] {
            if !Arc::ptr_eq(file.core(), &self.core) {
                let what = format!("inode {} was opened by another client", file.inode());
                return Err(Error::new(ErrorCode::CrossDevice, what));
            }
        }
        let max = to.state().layout.max_file_size();
        let room = max.saturating_sub(to_offset);
        if room == 0 && len > 0 {
            let what = format!("offset {to_offset} is beyond the maximum file size {max}");
            return Err(Error::new(ErrorCode::FileTooLarge, what));
        }
        let len = usize::try_from(len.min(room)).unwrap_or(usize::MAX);
        let len = prepare(from, from_offset, len).await? as u64;
        let overlap = from_offset < to_offset + len && to_offset < from_offset + len;
        if from.inode() == to.inode() && overlap {
            let what = format!(
                "{len} bytes from offset {from_offset} to {to_offset} of inode {} overlap",
                to.inode()
            );
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        }
        let mut copy = Copying {
            core: &self.core,
            from,
            from_offset,
            to,
            to_offset,
            done: 0,
        };
        let copied = copy.run(len).await;
        let extended = copy.extend().await;
        match copied.and(extended) {
            Err(error) if copy.done == 0 => Err(error),
            Err(error) => {
                tracing::debug!(%error, copied = copy.done, "a copy ended early");
                Ok(copy.done)
            }
            Ok(()) => Ok(copy.done),
        }
    }
}

impl Copying<'_> {
    async fn run(&mut self, len: u64) -> Result<()> {
        let source = self.from.state();
        let layout = source.layout;
        let end = self.from_offset + len;
        while self.done < len {
            let at = self.from_offset + self.done;
            let (first, last) = (layout.chunk_of(at).0, layout.chunk_of(end - 1).0);
            let next = self.core.first_stored(source, first..=last).await?;
            let Some(next) = next else {
                return self.hole(end - at).await;
            };
            let start = layout.chunk_start(ChunkIndex(next.index));
            if start > at {
                self.hole(start - at).await?;
                continue;
            }
            let chunks = (WINDOW / u64::from(layout.chunk_size)).max(1) as u32;
            let until = first.saturating_add(chunks - 1).min(last);
            let stored = self.core.stored(source, first..=until).await?;
            let behind = layout.chunk_start(ChunkIndex(until)) + u64::from(layout.chunk_size);
            self.window(parts(&layout, &stored, at..behind.min(end)))
                .await?;
        }
        Ok(())
    }

    /// Copies parts that follow each other and what is done.
    async fn window(&mut self, parts: Vec<Part>) -> Result<()> {
        let (core, from) = (self.core, self.from);
        let mut pieces = futures::stream::iter(parts)
            .map(|part| fetch(core, from, part))
            .buffered(PIECES_IN_FLIGHT);
        while let Some((part, data)) = pieces.try_next().await? {
            match data {
                Some(data) => {
                    self.to.write(self.to_offset + self.done, data).await?;
                    self.done += part.len;
                }
                None => self.hole(part.len).await?,
            }
        }
        Ok(())
    }

    /// The next `len` bytes are a hole: what the destination has there goes.
    async fn hole(&mut self, len: u64) -> Result<()> {
        let offset = self.to_offset + self.done;
        if offset < self.to.size() {
            self.to.allocate(offset, len, Allocate::PunchHole).await?;
        }
        self.done += len;
        Ok(())
    }

    /// After a hole at the end the destination has to be told how long it is. If that fails, only what is within
    /// its length is copied.
    async fn extend(&mut self) -> Result<()> {
        let end = self.to_offset + self.done;
        if self.done == 0 || self.to.size() >= end {
            return Ok(());
        }
        let known = self.to.size();
        let extend = self
            .to
            .allocate(self.to_offset, self.done, Allocate::Extend);
        let extended = extend.await;
        if extended.is_err() {
            self.done = known.saturating_sub(self.to_offset).min(self.done);
        }
        extended
    }
}

/// The bytes of a part; `None`: it is a hole.
async fn fetch(core: &Arc<Core>, from: &File, part: Part) -> Result<(Part, Option<Bytes>)> {
    if !part.data {
        return Ok((part, None));
    }
    // No longer than a piece.
    let len = part.len as usize;
    let buf = BytesMut::with_capacity(len);
    let data = read_chunks(core, from.state(), part.offset, len, buf).await?;
    Ok((part, Some(data.freeze())))
}

/// Divides `range` into bytes, in pieces that are aligned in the source, and the holes between them.
fn parts(layout: &Layout, stored: &[Stored], range: Range<u64>) -> Vec<Part> {
    let mut extents: Vec<Range<u64>> = Vec::new();
    for chunk in stored {
        let start = layout.chunk_start(ChunkIndex(chunk.index));
        let end = (start + u64::from(chunk.len)).min(range.end);
        let start = start.max(range.start);
        match extents.last_mut() {
            _ if start >= end => {}
            Some(last) if last.end == start => last.end = end,
            _ => extents.push(start..end),
        }
    }
    let mut parts = Vec::new();
    let mut at = range.start;
    let hole = |from: u64, to: u64| {
        (from < to).then_some(Part {
            offset: from,
            len: to - from,
            data: false,
        })
    };
    for extent in extents {
        parts.extend(hole(at, extent.start));
        at = extent.start;
        while at < extent.end {
            let next = (at - at % PIECE + PIECE).min(extent.end);
            parts.push(Part {
                offset: at,
                len: next - at,
                data: true,
            });
            at = next;
        }
    }
    parts.extend(hole(at, range.end));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use emberfs_proto::ids::{ChainTableId, ChainTableVersion};
    use proptest::prelude::*;

    fn layout() -> Layout {
        Layout {
            chunk_size: 1 << 20,
            page_size: 4096,
            table: ChainTableId(1),
            table_version: ChainTableVersion(1),
            stripe_width: 4,
            seed: 1,
        }
    }

    proptest! {
        #[test]
        fn parts_follow_each_other_and_tell_bytes_from_holes(
            lens in proptest::collection::vec(prop_oneof![Just(0u32), Just(1 << 20), 1u32..1 << 20], 1..20),
            cut: (prop::sample::Index, prop::sample::Index),
        ) {
            let total = lens.len() << 20;
            let (a, b) = (cut.0.index(total), cut.1.index(total));
            let range = a.min(b) as u64..a.max(b) as u64 + 1;
            let stored: Vec<_> = lens
                .iter()
                .zip(0..)
                .filter(|(len, _)| **len > 0)
                .map(|(&len, index)| Stored { index, len })
                .collect();
            let mut at = range.start;
            let mut hole_before = false;
            for part in parts(&layout(), &stored, range.clone()) {
                prop_assert_eq!(part.offset, at);
                prop_assert!(part.len > 0);
                prop_assert!(part.data || !hole_before, "holes are joined");
                prop_assert!(!part.data || part.len <= PIECE);
                for byte in [part.offset, part.offset + part.len / 2, part.offset + part.len - 1] {
                    let within = (byte % (1 << 20)) as u32;
                    prop_assert_eq!(part.data, within < lens[(byte >> 20) as usize]);
                }
                at += part.len;
                hole_before = !part.data;
            }
            prop_assert_eq!(at, range.end);
        }
    }
}
