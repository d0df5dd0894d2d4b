//! Where a directory is, as text, and whether it can be reached: by the names that directories' records hold, up to the
//! root. Nothing here conflicts with anything: it is for people, or for a decision that a race may turn either way.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use emberfs_proto::Result;
use emberfs_proto::ids::InodeId;
use emberfs_proto::pb::TrashPlace;

use crate::namespace::keys;
use crate::namespace::records::{Dentry, InodeRecord, decode};
use crate::namespace::tx::Tx;

/// Directories deeper than this are not followed to the root.
pub(super) const MAX_DEPTH: usize = 10_000;
/// Longest path that an entry records, bytes; of a longer one the end counts.
const MAX_RECORDED: usize = 4096;
/// Names looked through for one that a directory's record does not hold.
const SEARCHED: usize = 1000;

/// A directory, seen from the root.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) standing: TrashPlace,
    /// From the root on, without a slash at the end: the root's is empty. Nothing if it is gone.
    pub(super) path: Vec<u8>,
    /// If it is in the trash: the uppermost directory of its path that is.
    pub(super) topmost: Option<Bytes>,
    /// It is the directory that is asked about, or below it.
    pub(super) below: bool,
}

impl Place {
    /// The path as people write it.
    pub(super) fn shown(&self) -> Bytes {
        if self.path.is_empty() {
            return Bytes::from_static(b"/");
        }
        Bytes::copy_from_slice(&self.path)
    }

    /// The path of a name in it.
    pub(super) fn child(&self, name: &[u8]) -> Bytes {
        [&self.path, &b"/"[..], name].concat().into()
    }

    fn gone() -> Self {
        Self {
            standing: TrashPlace::Gone,
            path: Vec::new(),
            topmost: None,
            below: false,
        }
    }
}

/// Remembers what it has seen; of one transaction.
#[derive(Default)]
pub(super) struct Walk {
    /// Which directory is asked about.
    under: InodeId,
    seen: HashMap<InodeId, Arc<Place>>,
}

impl Walk {
    pub(super) fn below(under: InodeId) -> Self {
        Self {
            under,
            ..Self::default()
        }
    }

    pub(super) fn place(&mut self, tx: &mut Tx<'_>, dir: InodeId) -> Result<Arc<Place>> {
        // 1. Up to the root, or to something known.
        let mut chain: Vec<InodeRecord> = Vec::new();
        let mut at = dir;
        let top = loop {
            if let Some(known) = self.seen.get(&at) {
                break known.clone();
            }
            if at == InodeId::ROOT {
                break Arc::new(Place {
                    standing: TrashPlace::Live,
                    path: Vec::new(),
                    topmost: None,
                    below: self.under == at,
                });
            }
            let record = tx.peek_inode(at)?.filter(|record| !record.condemned);
            match record {
                Some(record) if record.is_dir() && chain.len() < MAX_DEPTH => {
                    at = InodeId(record.parent);
                    chain.push(record);
                }
                _ => break Arc::new(Place::gone()),
            }
        };
        // 2. Down again.
        self.seen.insert(at, top.clone());
        let mut place = top;
        for record in chain.iter().rev() {
            place = Arc::new(self.step(tx, &place, record)?);
            self.seen.insert(record.id(), place.clone());
        }
        Ok(place)
    }

    fn step(&self, tx: &mut Tx<'_>, above: &Place, record: &InodeRecord) -> Result<Place> {
        if above.standing == TrashPlace::Gone {
            return Ok(Place::gone());
        }
        let path = above.child(&name_of(tx, record)?);
        let trashed = record.trashed != 0;
        let topmost = match &above.topmost {
            Some(topmost) => Some(topmost.clone()),
            None => trashed.then(|| path.clone()),
        };
        Ok(Place {
            standing: if topmost.is_some() {
                TrashPlace::InTrash
            } else {
                TrashPlace::Live
            },
            path: path.into(),
            topmost,
            below: above.below || record.id() == self.under,
        })
    }
}

/// The path of a directory for an entry to record.
pub(super) fn recorded(tx: &mut Tx<'_>, dir: InodeId) -> Result<Bytes> {
    let path = Walk::default().place(tx, dir)?.shown();
    Ok(path.slice(path.len().saturating_sub(MAX_RECORDED)..))
}

/// The name of a directory in its parent. Records of old ones do not hold it until they move.
fn name_of(tx: &mut Tx<'_>, record: &InodeRecord) -> Result<Bytes> {
    if !record.name.is_empty() {
        return Ok(record.name.clone());
    }
    for (key, value) in tx.peek_span(&keys::dentries(InodeId(record.parent)), SEARCHED)? {
        if decode::<Dentry>(&value)?.id() == record.id() {
            return Ok(key.slice_ref(keys::dentry_name(&key)));
        }
    }
    Ok(Bytes::from(format!("(directory {})", record.id())))
}
