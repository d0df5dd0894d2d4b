//! Decides how a change of a chunk's bytes reaches the disk. Pure: no I/O, no locks.
//!
//! - What overlaps committed bytes goes to a **fresh** block, together with the bytes it keeps.
//! - A pure append that fits goes **in place**, behind the committed bytes. The last sector that they
//!   reach into is written again with the very same bytes in front, so a reader, or a torn
//!   sector, sees them unchanged. Not below the block's high water mark: there may be bytes of an
//!   older version that a reader still has, or that come back with a crash.
//! - A cut keeps the block, unless a much smaller one would do.
//!
//! The caller's bytes go to the disk straight from where they are, as far as whole sectors of them have
//! an aligned address ([`Plan::direct`]); only the edges are assembled in buffers ([`Region`]).

use std::ops::Range;

use emberfs_proto::checksum::{combine, crc32};

use super::classes::{Class, Loc, SECTOR, sector_down, sector_up};
use super::record::Content;

/// A change: the bytes of `data` take the place of what was there, up to `len`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Edit {
    /// Where the new bytes lie; empty if there are none.
    pub(super) data: Range<u32>,
    /// Length of the chunk afterwards.
    pub(super) len: u32,
    /// Room to leave for later appends: expected final length.
    pub(super) expect: u32,
}

impl Edit {
    /// A write of `n` bytes to a chunk of `old` bytes. No bytes change nothing.
    pub(super) fn write(old: u32, offset: u32, n: u32, expect: u32) -> Self {
        if n == 0 {
            return Self::truncate(old);
        }
        let end = offset + n;
        Self {
            data: offset..end,
            len: old.max(end),
            expect,
        }
    }

    /// A cut or an extension by zeros.
    pub(super) fn truncate(len: u32) -> Self {
        Self {
            data: len..len,
            len,
            expect: 0,
        }
    }
}

/// Which block the new version uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    /// None: the chunk is empty.
    Nothing,
    /// The committed one, as it is.
    Keep(Loc),
    /// The committed one, behind its bytes.
    InPlace(Loc),
    /// A new one.
    Fresh(Class),
}

/// Bytes to be assembled in a buffer. All ranges are in the chunk and whole sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Region {
    /// What the buffer holds.
    pub(super) buf: Range<u32>,
    /// What is read into it from the committed block; may be empty.
    pub(super) read: Range<u32>,
    /// What is written from it; may be empty.
    pub(super) write: Range<u32>,
}

/// All steps of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) placement: Placement,
    /// Of the block afterwards, see [`Content::high_water`].
    pub(super) high_water: u32,
    /// Committed bytes that stay: those below this, except where the data lies.
    kept: u32,
    /// Length of the committed content.
    old_len: u32,
    edit: Edit,
    page: u32,
    /// At most two.
    pub(super) regions: Vec<Region>,
    /// Written straight from the caller's bytes; may be empty.
    pub(super) direct: Range<u32>,
}

/// Plans `edit` of `base`. `address` is where the caller's bytes are in memory.
pub(super) fn plan(
    base: Option<&Content>,
    edit: Edit,
    address: usize,
    page: u32,
    chunk: u32,
) -> Option<Plan> {
    let old_len = base.map_or(0, |b| b.len);
    let kept = old_len.min(edit.len);
    let placement = place(base, &edit, chunk)?;
    let mut plan = Plan {
        placement,
        high_water: edit.len,
        kept,
        old_len,
        page,
        regions: Vec::new(),
        direct: 0..0,
        edit,
    };
    match placement {
        Placement::Nothing => {}
        Placement::Keep(_) => {
            plan.high_water = base.map_or(0, |b| b.high_water);
            // The page that is cut needs a new checksum.
            if kept < old_len && !kept.is_multiple_of(page) {
                let read = plan.pages_around(kept - 1..kept);
                plan.regions.push(Region {
                    buf: read.clone(),
                    read,
                    write: 0..0,
                });
            }
        }
        Placement::InPlace(_) => {
            let tail = sector_down(old_len)..sector_up(old_len);
            plan.lay_out(tail.start, address, |_| tail.clone());
        }
        Placement::Fresh(_) => {
            let expand = |plan: &Plan, r: Range<u32>| plan.pages_around(r);
            let this = plan.clone();
            plan.lay_out(0, address, |kept| expand(&this, kept));
        }
    }
    Some(plan)
}

/// `None`: larger than the largest block.
fn place(base: Option<&Content>, edit: &Edit, chunk: u32) -> Option<Placement> {
    if edit.len == 0 {
        return Some(Placement::Nothing);
    }
    let Some((base, block)) = base.and_then(|b| Some((b, b.block?))) else {
        return Some(Placement::Fresh(Class::for_len(
            edit.expect.min(chunk).max(edit.len),
        )?));
    };
    let fitting = Class::for_len(edit.len)?;
    if edit.data.is_empty() && edit.len <= base.len {
        let wasteful = fitting.capacity() <= block.class.capacity() / 2;
        let keep = edit.len == base.len || !wasteful;
        return Some(if keep {
            Placement::Keep(block)
        } else {
            Placement::Fresh(fitting)
        });
    }
    let append = edit.data.start >= base.len && base.high_water == base.len;
    if append && edit.len <= block.class.capacity() {
        return Some(Placement::InPlace(block));
    }
    let mut expect = edit.expect.min(chunk).max(edit.len);
    if edit.len > base.len {
        // Growing by small appends: doubling keeps the copying linear.
        expect = expect.max(base.len.saturating_mul(2).min(chunk));
    }
    Some(Placement::Fresh(Class::for_len(expect)?))
}

impl Plan {
    /// Length of the chunk afterwards.
    pub(super) fn len(&self) -> u32 {
        self.edit.len
    }

    /// Where the caller's bytes lie.
    pub(super) fn data(&self) -> Range<u32> {
        self.edit.data.clone()
    }

    /// Whole pages of the committed content around `range`, up to its end in whole sectors.
    fn pages_around(&self, range: Range<u32>) -> Range<u32> {
        let end = range
            .end
            .next_multiple_of(self.page)
            .min(sector_up(self.old_len));
        range.start - range.start % self.page..end
    }

    /// Divides what is written, from `start` to the end of the chunk, into direct and assembled.
    fn lay_out(&mut self, start: u32, address: usize, expand: impl Fn(Range<u32>) -> Range<u32>) {
        let end = sector_up(self.edit.len);
        let data = self.edit.data.clone();
        let inner = sector_up(data.start).max(start)..sector_down(data.end);
        let aligned = inner.start < inner.end
            && (address + (inner.start - data.start) as usize).is_multiple_of(SECTOR as usize);
        if aligned {
            self.direct = inner.clone();
            self.assemble(start..inner.start, &expand);
            self.assemble(inner.end..end, &expand);
        } else {
            self.assemble(start..end, &expand);
        }
    }

    fn assemble(&mut self, write: Range<u32>, expand: impl Fn(Range<u32>) -> Range<u32>) {
        if write.is_empty() {
            return;
        }
        let head = write.start..write.end.min(self.edit.data.start).min(self.kept);
        let tail = write.start.max(self.edit.data.end)..write.end.min(self.kept);
        let read = match (head.is_empty(), tail.is_empty()) {
            (true, true) => 0..0,
            (false, true) => expand(head),
            (true, false) => expand(tail),
            (false, false) => expand(head.start..tail.end),
        };
        let buf = if read.is_empty() {
            write.clone()
        } else {
            write.start.min(read.start)..write.end.max(read.end)
        };
        self.regions.push(Region { buf, read, write });
    }

    /// Pages of the committed content that were read and must be verified before any of their bytes
    /// is used, each with its valid range. None for an append in place, which changes no
    /// committed byte and needs none for its checksums.
    pub(super) fn pages_to_verify(
        &self,
        region: &Region,
    ) -> impl Iterator<Item = (u32, Range<u32>)> {
        let read = match self.placement {
            Placement::InPlace(_) => 0..0,
            _ => region.read.clone(),
        };
        let (page, old_len, kept, data) =
            (self.page, self.old_len, self.kept, self.edit.data.clone());
        (read.start / page..read.end.div_ceil(page)).filter_map(move |n| {
            let valid = n * page..((n + 1) * page).min(old_len);
            let head = valid.start < kept.min(data.start);
            let tail = valid.start.max(data.end) < valid.end.min(kept);
            (head || tail).then_some((n, valid))
        })
    }

    /// Puts zeros and the caller's bytes over what was read. `buf` holds `region.buf`.
    pub(super) fn fill(&self, region: &Region, buf: &mut [u8], data: &[u8]) {
        let at = |range: &Range<u32>| {
            (range.start - region.buf.start) as usize..(range.end - region.buf.start) as usize
        };
        let clip = |range: Range<u32>| {
            range.start.max(region.write.start)..range.end.min(region.write.end)
        };
        for zeros in [
            clip(self.kept..self.edit.data.start),
            clip(self.edit.len..u32::MAX),
        ] {
            if !zeros.is_empty() {
                buf[at(&zeros)].fill(0);
            }
        }
        let new = clip(self.edit.data.clone());
        if !new.is_empty() {
            let from = (new.start - self.edit.data.start) as usize;
            buf[at(&new)].copy_from_slice(&data[from..][..new.len()]);
        }
    }

    /// The page checksums afterwards: from the committed ones `old`, those of the caller's fragments
    /// `new`, and where a page is cut by the data, from its verified bytes through `old_crc`.
    pub(super) fn sums(
        &self,
        old: &[u32],
        new: &[u32],
        mut old_crc: impl FnMut(Range<u32>) -> u32,
    ) -> Vec<u32> {
        let data = &self.edit.data;
        let mut zeros = (0, 0);
        let pages = self.edit.len.div_ceil(self.page);
        let mut sums = Vec::with_capacity(pages as usize);
        for n in 0..pages {
            let start = n * self.page;
            let end = (start + self.page).min(self.edit.len);
            let old_page = start..(start + self.page).min(self.old_len);
            let mut page = Joined { sum: 0, len: 0 };
            let mut kept = |page: &mut Joined, piece: Range<u32>| {
                if !piece.is_empty() {
                    let whole = piece == old_page;
                    let sum = if whole {
                        old[n as usize]
                    } else {
                        old_crc(piece.clone())
                    };
                    page.add(sum, piece.len());
                }
            };
            kept(&mut page, start..end.min(data.start).min(self.kept));
            let gap = start.max(self.kept)..end.min(data.start);
            if !gap.is_empty() {
                if zeros.0 != gap.len() {
                    zeros = (gap.len(), crc32(&vec![0; gap.len()]));
                }
                page.add(zeros.1, gap.len());
            }
            let fragment = start.max(data.start)..end.min(data.end);
            if !fragment.is_empty() {
                page.add(new[(n - data.start / self.page) as usize], fragment.len());
            }
            kept(&mut page, start.max(data.end)..end.min(self.kept));
            sums.push(page.sum);
        }
        sums
    }
}

/// Checksum of pieces put together.
struct Joined {
    sum: u32,
    len: usize,
}

impl Joined {
    fn add(&mut self, sum: u32, len: usize) {
        self.sum = if self.len == 0 {
            sum
        } else {
            combine(self.sum, sum, len as u64)
        };
        self.len += len;
    }
}

#[cfg(test)]
mod tests;
