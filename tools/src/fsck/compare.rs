//! Is one chunk the same on all its replicas? Pure functions.

use emberfs_proto::ids::ChunkKey;
use serde::Serialize;

/// What one replica says about one chunk.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// The replica.
    pub(super) target: u64,
    /// Node of the replica.
    pub(super) node: u32,
    /// It answers reads; otherwise it is being brought up to date.
    pub(super) serving: bool,
    /// Its record, if it has one.
    pub(super) chunk: Option<Chunk>,
    /// What reading the bytes gave, if they were read.
    pub(super) content: Option<Result<Content, String>>,
}

/// A replica's record of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) key: ChunkKey,
    pub(super) committed: u64,
    pub(super) len: u32,
    pub(super) checksum: u32,
    pub(super) pending: u64,
}

/// The bytes of a chunk, as just read from disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) committed: u64,
    pub(super) len: u32,
    pub(super) crc: u32,
}

/// Something wrong with a chunk.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Fault {
    pub(super) code: &'static str,
    pub(super) chain: u32,
    pub(super) inode: u64,
    pub(super) index: u32,
    pub(super) what: String,
    /// What `--repair` does about it.
    pub(super) repair: String,
}

impl Fault {
    pub(super) fn new(
        code: &'static str,
        chain: u32,
        key: ChunkKey,
        what: String,
        repair: String,
    ) -> Self {
        Self {
            code,
            chain,
            inode: key.inode.0,
            index: key.index.0,
            what,
            repair,
        }
    }
}

/// Whether a replica cannot give its bytes: no write in progress makes that right.
pub(super) fn unreadable(views: &[View]) -> bool {
    views
        .iter()
        .any(|view| matches!(view.content, Some(Err(_))))
}

/// The first thing that is wrong with a chunk, as a code and a sentence.
pub(super) fn compare(views: &[View]) -> Option<(&'static str, String)> {
    let serving: Vec<_> = views.iter().filter(|view| view.serving).collect();
    if let Some(view) = views
        .iter()
        .find(|view| matches!(view.content, Some(Err(_))))
    {
        let why = view
            .content
            .as_ref()
            .and_then(|c| c.as_ref().err())
            .cloned();
        let why = why.unwrap_or_default();
        return Some(("unreadable", format!("storage-{}: {why}", view.node)));
    }
    if let Some((view, chunk)) = records(&serving).find(|(_, chunk)| chunk.pending != 0) {
        let what = format!(
            "storage-{} has version {} pending over {}",
            view.node, chunk.pending, chunk.committed
        );
        return Some(("unfinished-write", what));
    }
    let (first, reference) = records(&serving).max_by_key(|(_, chunk)| chunk.committed)?;
    for view in views {
        let Some(chunk) = view.chunk else {
            if view.serving {
                let what = format!(
                    "storage-{} lacks it, storage-{} has it",
                    view.node, first.node
                );
                return Some(("missing-replica", what));
            }
            continue;
        };
        if chunk.committed != reference.committed {
            if view.serving {
                let versions = ((view, chunk.committed), (first, reference.committed));
                return Some(differ("version-differs", versions.0, versions.1));
            }
            continue;
        }
        if chunk.len != reference.len {
            return Some(differ(
                "length-differs",
                (view, chunk.len),
                (first, reference.len),
            ));
        }
        if chunk.checksum != reference.checksum {
            return Some(differ(
                "checksum-differs",
                (view, chunk.checksum),
                (first, reference.checksum),
            ));
        }
        let contents = view.content.as_ref().zip(first.content.as_ref());
        if let Some((Ok(here), Ok(there))) = contents
            && here != there
        {
            return Some(differ(
                "content-differs",
                (view, here.crc),
                (first, there.crc),
            ));
        }
    }
    None
}

fn records<'a>(views: &'a [&'a View]) -> impl Iterator<Item = (&'a View, Chunk)> {
    views.iter().filter_map(|view| Some((*view, view.chunk?)))
}

fn differ<T: std::fmt::Display>(
    code: &'static str,
    (here, a): (&View, T),
    (there, b): (&View, T),
) -> (&'static str, String) {
    (
        code,
        format!(
            "storage-{} has {a}, storage-{} has {b}",
            here.node, there.node
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(committed: u64, len: u32, checksum: u32) -> Chunk {
        Chunk {
            key: ChunkKey::new(5u64, 0u32),
            committed,
            len,
            checksum,
            pending: 0,
        }
    }

    fn view(node: u32, serving: bool, chunk: Option<Chunk>) -> View {
        let read = |c: Chunk| {
            Ok(Content {
                committed: c.committed,
                len: c.len,
                crc: c.checksum,
            })
        };
        View {
            target: node.into(),
            node,
            serving,
            chunk,
            content: chunk.map(read),
        }
    }

    fn code(views: &[View]) -> Option<&'static str> {
        compare(views).map(|(code, _)| code)
    }

    #[test]
    fn equal_replicas_are_fine_and_each_difference_has_its_code() {
        let good = || view(1, true, Some(chunk(3, 100, 7)));
        assert_eq!(code(&[good(), view(2, true, Some(chunk(3, 100, 7)))]), None);
        let cases = [
            (None, "missing-replica"),
            (Some(chunk(2, 100, 7)), "version-differs"),
            (Some(chunk(4, 100, 7)), "version-differs"),
            (Some(chunk(3, 99, 7)), "length-differs"),
            (Some(chunk(3, 100, 8)), "checksum-differs"),
        ];
        for (other, expected) in cases {
            assert_eq!(code(&[good(), view(2, true, other)]), Some(expected));
            assert_eq!(code(&[view(2, true, other), good()]), Some(expected));
        }
    }

    #[test]
    fn bytes_that_differ_under_equal_records_are_found() {
        let mut bad = view(2, true, Some(chunk(3, 100, 7)));
        bad.content = Some(Ok(Content {
            committed: 3,
            len: 100,
            crc: 9,
        }));
        let good = view(1, true, Some(chunk(3, 100, 7)));
        assert_eq!(code(&[good.clone(), bad.clone()]), Some("content-differs"));
        bad.content = Some(Err("page 3 does not match".to_owned()));
        assert_eq!(code(&[good, bad]), Some("unreadable"));
    }

    #[test]
    fn a_replica_that_is_catching_up_may_lag_but_not_lie() {
        let good = || view(1, true, Some(chunk(3, 100, 7)));
        assert_eq!(code(&[good(), view(2, false, None)]), None);
        assert_eq!(code(&[good(), view(2, false, Some(chunk(2, 50, 1)))]), None);
        assert_eq!(
            code(&[good(), view(2, false, Some(chunk(3, 100, 8)))]),
            Some("checksum-differs")
        );
    }

    #[test]
    fn a_pending_version_that_stays_is_an_unfinished_write() {
        let mut pending = chunk(3, 100, 7);
        pending.pending = 4;
        let views = [
            view(1, true, Some(pending)),
            view(2, true, Some(chunk(3, 100, 7))),
        ];
        assert_eq!(code(&views), Some("unfinished-write"));
    }
}
