//! The index record of a chunk and its byte format.
//!
//! Little-endian; `page_size` and `chunk_size` once, then the committed and the pending content:
//!
//! ```text
//! 0   u8   format version: 2, or 1 when no content has marks (which is all that 1 can say)
//! 1   u8   checksum algorithm of pages and of this record (1: CRC-32)
//! 2   u8   1: committed content follows, 2: then pending content, 4: then a pending removal
//! 3   u8   0
//! 4   u32  page size        8   u32  chunk size
//! 12  contents, each:
//!     u64 version  u64 chain version  u128 client  u32 channel  u64 sequence      (a removal ends here)
//!     u32 length   u32 high water     u8 size class  u32 block number      (class 255: no block)
//!     u32 checksum of each page: ceil(length / page size) of them
//!     format 2: u8 number of marks, each: u128 client  u32 channel  u64 sequence  u64 version  u32 length
//! end u32  CRC-32 of all bytes before
//! ```

use std::sync::Arc;

use emberfs_proto::checksum::{ALGORITHM_CRC32, crc32};
use emberfs_proto::ids::{ChainVersion, ChunkVersion, ClientId, WriteTag};

use super::classes::{Class, LARGEST, Loc};
use super::types::{ChunkMeta, Mark, PendingKind, PendingMeta, REMEMBERED_WRITES, remember};

/// Without marks of earlier writes, as written until 0.1.
const FORMAT_PLAIN: u8 = 1;
/// With marks.
const FORMAT_MARKS: u8 = 2;
const HAS_COMMITTED: u8 = 1;
const HAS_PENDING: u8 = 2;
const HAS_REMOVAL: u8 = 4;
const NO_CLASS: u8 = 255;

/// Everything that is known of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) page_size: u32,
    pub(super) chunk_size: u32,
    pub(super) committed: Option<Content>,
    pub(super) pending: Option<Pending>,
}

/// Which write made a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) version: ChunkVersion,
    pub(super) chain: ChainVersion,
    pub(super) tag: WriteTag,
}

/// The bytes of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) stamp: Stamp,
    pub(super) len: u32,
    /// Highest end that any committed content had in this block: bytes below may be in use by a
    /// reader of an older version, or come back with a crash, and are not overwritten.
    pub(super) high_water: u32,
    /// `None` exactly when `len` is 0.
    pub(super) block: Option<Loc>,
    /// One per page.
    pub(super) sums: Arc<[u32]>,
    /// Writes before this one, newest first.
    pub(super) recent: Arc<[Mark]>,
}

/// A durable version that waits for its commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pending {
    Write(Content),
    Remove(Stamp),
}

impl Content {
    /// The marks of a version that `next` makes on top of this one.
    pub(super) fn remembered(&self, next: WriteTag) -> Arc<[Mark]> {
        let last = Mark {
            tag: self.stamp.tag,
            version: self.stamp.version,
            len: self.len,
        };
        remember(&self.recent, last, next)
    }

    /// One number for all bytes: CRC-32 over the length and the page checksums.
    pub(super) fn checksum(&self) -> u32 {
        let mut bytes = Vec::with_capacity(4 + 4 * self.sums.len());
        bytes.extend(self.len.to_le_bytes());
        self.sums
            .iter()
            .for_each(|sum| bytes.extend(sum.to_le_bytes()));
        crc32(&bytes)
    }
}

impl Pending {
    pub(super) fn stamp(&self) -> &Stamp {
        match self {
            Self::Write(content) => &content.stamp,
            Self::Remove(stamp) => stamp,
        }
    }
}

impl Record {
    /// The committed version; 0 without one.
    pub(super) fn committed_version(&self) -> ChunkVersion {
        self.committed
            .as_ref()
            .map_or(ChunkVersion(0), |c| c.stamp.version)
    }

    /// Blocks that this record owns: none, one or two.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Loc> + use<> {
        let committed = self.committed.as_ref().and_then(|c| c.block);
        let pending = match &self.pending {
            Some(Pending::Write(content)) => content.block.filter(|&b| Some(b) != committed),
            _ => None,
        };
        committed.into_iter().chain(pending)
    }

    /// What the callers of the engine see.
    pub(super) fn meta(&self) -> ChunkMeta {
        let committed = self.committed.as_ref();
        ChunkMeta {
            committed: self.committed_version(),
            committed_len: committed.map_or(0, |c| c.len),
            committed_chain: committed.map_or(ChainVersion(0), |c| c.stamp.chain),
            tag: committed.map_or_else(WriteTag::default, |c| c.stamp.tag),
            checksum: committed.map_or(0, Content::checksum),
            recent: committed.map_or_else(Arc::default, |c| Arc::clone(&c.recent)),
            pending: self.pending.as_ref().map(|pending| {
                let stamp = *pending.stamp();
                let (len, checksum, kind, recent) = match pending {
                    Pending::Write(c) => {
                        let recent = Arc::clone(&c.recent);
                        (c.len, c.checksum(), PendingKind::Write, recent)
                    }
                    Pending::Remove(_) => (0, 0, PendingKind::Remove, Arc::default()),
                };
                let Stamp {
                    version,
                    chain,
                    tag,
                } = stamp;
                PendingMeta {
                    version,
                    len,
                    chain,
                    tag,
                    checksum,
                    recent,
                    kind,
                }
            }),
            page_size: self.page_size,
            chunk_size: self.chunk_size,
        }
    }

    /// The bytes that the index stores.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        let mut flags = 0;
        flags |= if self.committed.is_some() {
            HAS_COMMITTED
        } else {
            0
        };
        flags |= match &self.pending {
            None => 0,
            Some(Pending::Write(_)) => HAS_PENDING,
            Some(Pending::Remove(_)) => HAS_REMOVAL,
        };
        let pending = match &self.pending {
            Some(Pending::Write(content)) => Some(content),
            _ => None,
        };
        let mut contents = self.committed.iter().chain(pending);
        let marks = contents.any(|content| !content.recent.is_empty());
        let format = if marks { FORMAT_MARKS } else { FORMAT_PLAIN };
        out.extend([format, ALGORITHM_CRC32, flags, 0]);
        out.extend(self.page_size.to_le_bytes());
        out.extend(self.chunk_size.to_le_bytes());
        if let Some(content) = &self.committed {
            encode_content(&mut out, content, marks);
        }
        match &self.pending {
            None => {}
            Some(Pending::Write(content)) => encode_content(&mut out, content, marks),
            Some(Pending::Remove(stamp)) => encode_stamp(&mut out, stamp),
        }
        let sum = crc32(&out);
        out.extend(sum.to_le_bytes());
        out
    }

    /// Reads [`Self::encode`] back; else what is wrong with the bytes.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let (body, sum) = bytes.split_last_chunk().ok_or("too short")?;
        if crc32(body) != u32::from_le_bytes(*sum) {
            return Err("its checksum does not match");
        }
        let mut input = Input(body);
        let [format, algorithm, flags, zero] = input.take()?;
        let marks = format == FORMAT_MARKS;
        if !(marks || format == FORMAT_PLAIN) || algorithm != ALGORITHM_CRC32 {
            return Err("unknown format: written by a newer version");
        }
        if zero != 0 || flags > (HAS_COMMITTED | HAS_REMOVAL) {
            return Err("unknown flags");
        }
        let (page_size, chunk_size) = (input.u32()?, input.u32()?);
        check_sizes(page_size, chunk_size)?;
        let record = Self {
            page_size,
            chunk_size,
            committed: (flags & HAS_COMMITTED != 0)
                .then(|| decode_content(&mut input, page_size, chunk_size, marks))
                .transpose()?,
            pending: if flags & HAS_PENDING != 0 {
                let content = decode_content(&mut input, page_size, chunk_size, marks)?;
                Some(Pending::Write(content))
            } else if flags & HAS_REMOVAL != 0 {
                Some(Pending::Remove(decode_stamp(&mut input)?))
            } else {
                None
            },
        };
        let marked = |content: &Content| !content.recent.is_empty();
        let pending = match &record.pending {
            Some(Pending::Write(content)) => marked(content),
            _ => false,
        };
        if marks && !pending && !record.committed.as_ref().is_some_and(marked) {
            return Err("format 2 without marks");
        }
        if input.0.is_empty() {
            Ok(record)
        } else {
            Err("too long")
        }
    }
}

/// Checks the limits of page and chunk size.
pub(super) fn check_sizes(page_size: u32, chunk_size: u32) -> Result<(), &'static str> {
    if !chunk_size.is_power_of_two() || chunk_size > LARGEST {
        return Err("chunk size is no power of two up to 64 MiB");
    }
    if !page_size.is_power_of_two() || !(4096..=chunk_size).contains(&page_size) {
        return Err("page size is no power of two from 4 KiB to the chunk size");
    }
    Ok(())
}

fn encode_stamp(out: &mut Vec<u8>, stamp: &Stamp) {
    out.extend(stamp.version.0.to_le_bytes());
    out.extend(stamp.chain.0.to_le_bytes());
    encode_tag(out, stamp.tag);
}

fn encode_content(out: &mut Vec<u8>, content: &Content, marks: bool) {
    out.reserve(64 + 4 * content.sums.len());
    encode_stamp(out, &content.stamp);
    out.extend(content.len.to_le_bytes());
    out.extend(content.high_water.to_le_bytes());
    out.push(content.block.map_or(NO_CLASS, |loc| loc.class.number()));
    out.extend(content.block.map_or(0, |loc| loc.number).to_le_bytes());
    content
        .sums
        .iter()
        .for_each(|sum| out.extend(sum.to_le_bytes()));
    if marks {
        // `remember` keeps no more than fit.
        out.push(content.recent.len() as u8);
        for mark in &*content.recent {
            encode_tag(out, mark.tag);
            out.extend(mark.version.0.to_le_bytes());
            out.extend(mark.len.to_le_bytes());
        }
    }
}

fn encode_tag(out: &mut Vec<u8>, tag: WriteTag) {
    out.extend(tag.client.0.to_le_bytes());
    out.extend(tag.channel.to_le_bytes());
    out.extend(tag.sequence.to_le_bytes());
}

/// What is left to decode.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (head, rest) = self.0.split_first_chunk().ok_or("too short")?;
        self.0 = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, &'static str> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, &'static str> {
        Ok(u64::from_le_bytes(self.take()?))
    }
}

fn decode_stamp(input: &mut Input<'_>) -> Result<Stamp, &'static str> {
    Ok(Stamp {
        version: ChunkVersion(input.u64()?),
        chain: ChainVersion(input.u64()?),
        tag: decode_tag(input)?,
    })
}

fn decode_tag(input: &mut Input<'_>) -> Result<WriteTag, &'static str> {
    Ok(WriteTag {
        client: ClientId(u128::from_le_bytes(input.take()?)),
        channel: input.u32()?,
        sequence: input.u64()?,
    })
}

fn decode_marks(input: &mut Input<'_>) -> Result<Arc<[Mark]>, &'static str> {
    let [count] = input.take()?;
    if usize::from(count) > REMEMBERED_WRITES {
        return Err("more marks than there may be");
    }
    let mark = |_| {
        Ok(Mark {
            tag: decode_tag(input)?,
            version: ChunkVersion(input.u64()?),
            len: input.u32()?,
        })
    };
    (0..count).map(mark).collect()
}

fn decode_content(
    input: &mut Input<'_>,
    page: u32,
    chunk: u32,
    marks: bool,
) -> Result<Content, &'static str> {
    let stamp = decode_stamp(input)?;
    let (len, high_water) = (input.u32()?, input.u32()?);
    let ([class], number) = (input.take()?, input.u32()?);
    let block = match class {
        NO_CLASS => None,
        class => Some(Loc {
            class: Class::from_number(class).ok_or("unknown size class")?,
            number,
        }),
    };
    let fits = block.map_or(0, |loc| loc.class.capacity());
    if len > chunk || high_water < len || high_water > fits || block.is_some() != (len > 0) {
        return Err("length and block do not fit");
    }
    let sums = (0..len.div_ceil(page))
        .map(|_| input.u32())
        .collect::<Result<_, _>>()?;
    let recent = if marks {
        decode_marks(input)?
    } else {
        Arc::default()
    };
    Ok(Content {
        stamp,
        len,
        high_water,
        block,
        sums,
        recent,
    })
}

#[cfg(test)]
mod tests;
