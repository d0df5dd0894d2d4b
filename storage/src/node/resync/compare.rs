//! Both sides' records of their chunks, compared page by page.

use std::cmp::Ordering;

use emberfs_proto::convert::chunk_key;
use emberfs_proto::ids::ChunkKey;
use emberfs_proto::wire::Opcode;
use emberfs_proto::{Result, pb};

use super::Pass;
use crate::engine::ChunkMeta;

/// Chunks per page of a listing.
const PAGE: usize = 1024;

/// A chunk to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) key: ChunkKey,
    /// Its length here, bytes; 0 where it is to be removed.
    pub(crate) bytes: u32,
}

/// One stretch of the comparison.
pub(crate) struct Stretch {
    /// Where the sides differ.
    pub(crate) differing: Vec<Work>,
    /// Chunks in it.
    pub(crate) compared: u64,
}

/// A comparison on its way through both listings.
#[derive(Default)]
pub(super) struct Comparison {
    ours: Listing,
    theirs: Listing,
}

impl Comparison {
    /// The next stretch; `None` at the end.
    pub(super) async fn next(&mut self, pass: &Pass<'_>) -> Result<Option<Stretch>> {
        if self.ours.is_done() && self.theirs.is_done() {
            return Ok(None);
        }
        if self.ours.needs_page() {
            let engine = pass.host.engine();
            let page = engine.list(pass.host.id(), self.ours.after, PAGE).await?;
            let end = page.len() < PAGE;
            let page = page.into_iter().map(|(key, meta)| (key, Copy::ours(&meta)));
            self.ours.extend(page, end);
        }
        if self.theirs.needs_page() {
            let reply = list(pass, self.theirs.after).await?;
            let page = reply
                .chunks
                .iter()
                .map(|c| Ok((chunk_key(&c.key)?, Copy::theirs(c))));
            let page = page.collect::<Result<Vec<_>>>()?;
            self.theirs.extend(page.into_iter(), reply.end);
        }
        Ok(Some(differing(&mut self.ours, &mut self.theirs)))
    }
}

async fn list(pass: &Pass<'_>, after: Option<ChunkKey>) -> Result<pb::SyncListReply> {
    let body = pb::SyncListRequest {
        chain: Some(pass.chain()),
        target: pass.to.0,
        after: after
            .map(|key| key.encode().to_vec().into())
            .unwrap_or_default(),
        limit: PAGE as u32,
    };
    pass.call(Opcode::SyncList, &body).await?.decode()
}

/// What a comparison looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    committed: u64,
    len: u32,
    checksum: u32,
    pending: bool,
}

impl Copy {
    pub(crate) fn ours(meta: &ChunkMeta) -> Self {
        // What is pending here is a live write, which travels by itself.
        Self {
            committed: meta.committed.0,
            len: meta.committed_len,
            checksum: meta.checksum,
            pending: false,
        }
    }

    pub(crate) fn theirs(info: &pb::ChunkInfo) -> Self {
        Self {
            committed: info.committed,
            len: info.len,
            checksum: info.checksum,
            pending: info.pending != 0,
        }
    }
}

/// A sorted listing that is read page by page.
#[derive(Default)]
pub(crate) struct Listing {
    page: std::collections::VecDeque<(ChunkKey, Copy)>,
    pub(crate) after: Option<ChunkKey>,
    end: bool,
}

impl Listing {
    pub(crate) fn needs_page(&self) -> bool {
        self.page.is_empty() && !self.end
    }

    pub(crate) fn is_done(&self) -> bool {
        self.page.is_empty() && self.end
    }

    pub(crate) fn extend(&mut self, page: impl Iterator<Item = (ChunkKey, Copy)>, end: bool) {
        self.page.extend(page);
        self.after = self.page.back().map(|&(key, _)| key).or(self.after);
        self.end = end;
    }
}

/// What differs, as far as the pages at hand tell.
pub(crate) fn differing(ours: &mut Listing, theirs: &mut Listing) -> Stretch {
    let mut stretch = Stretch {
        differing: Vec::new(),
        compared: 0,
    };
    loop {
        let order = match (ours.page.front(), theirs.page.front()) {
            (Some((a, _)), Some((b, _))) => a.cmp(b),
            (Some(_), None) if theirs.end => Ordering::Less,
            (None, Some(_)) if ours.end => Ordering::Greater,
            _ => return stretch,
        };
        let mine = if order == Ordering::Greater {
            None
        } else {
            ours.page.pop_front()
        };
        let other = if order == Ordering::Less {
            None
        } else {
            theirs.page.pop_front()
        };
        stretch.compared += 1;
        let same = matches!((mine, other), (Some((_, a)), Some((_, b))) if a == b);
        // A chunk that is only being created here has nothing committed to send.
        let nothing = other.is_none() && mine.is_some_and(|(_, copy)| copy.committed == 0);
        if let Some((key, _)) = mine.or(other)
            && !same
            && !nothing
        {
            let bytes = mine.map_or(0, |(_, copy)| copy.len);
            stretch.differing.push(Work { key, bytes });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(committed: u64, checksum: u32) -> Copy {
        Copy {
            committed,
            len: 10,
            checksum,
            pending: false,
        }
    }

    fn listing(items: &[(u32, Copy)], end: bool) -> Listing {
        let page = items
            .iter()
            .map(|&(index, copy)| (ChunkKey::new(1, index), copy))
            .collect();
        Listing {
            page,
            after: None,
            end,
        }
    }

    fn keys(mut ours: Listing, mut theirs: Listing) -> Vec<u32> {
        differing(&mut ours, &mut theirs)
            .differing
            .into_iter()
            .map(|work| work.key.index.0)
            .collect()
    }

    #[test]
    fn only_what_differs_is_sent() {
        let ours = listing(
            &[
                (1, copy(3, 7)),
                (2, copy(4, 7)),
                (3, copy(1, 7)),
                (5, copy(1, 1)),
            ],
            true,
        );
        let pending = Copy {
            pending: true,
            ..copy(1, 7)
        };
        let theirs = listing(
            &[
                (1, copy(3, 7)),
                (2, copy(4, 8)),
                (3, pending),
                (4, copy(9, 9)),
                (5, copy(1, 1)),
            ],
            true,
        );
        assert_eq!(keys(ours, theirs), [2, 3, 4]);
    }

    #[test]
    fn a_chunk_that_is_being_created_is_left_to_its_write() {
        assert_eq!(
            keys(listing(&[(1, copy(0, 0))], true), listing(&[], true)),
            [0; 0]
        );
        let theirs = listing(&[(1, copy(2, 2))], true);
        assert_eq!(keys(listing(&[(1, copy(0, 0))], true), theirs), [1]);
    }

    #[test]
    fn an_unfinished_page_decides_nothing_beyond_its_end() {
        let mut ours = listing(&[(1, copy(1, 1)), (9, copy(1, 1))], true);
        let mut theirs = listing(&[(1, copy(1, 1))], false);
        let stretch = differing(&mut ours, &mut theirs);
        assert!(stretch.differing.is_empty() && stretch.compared == 1);
        assert!(theirs.needs_page() && ours.page.len() == 1);
    }
}
