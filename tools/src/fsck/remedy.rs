//! What would put a fault right. Pure functions.
//!
//! A damaged copy takes the right bytes from another replica. A replica whose record differs although
//! nothing is in progress leaves its chain and comes back by resync, which copies the others' state;
//! so it must be certain which of them is right: the highest version is (the tail commits first, and a
//! version is acknowledged only when all have it), and among copies of one version the majority.
//! An orphan is removed. What cannot be decided is left alone.

use super::compare::{Chunk, View};

/// What to do about a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// These targets repair their damaged pages from other replicas.
    Pages(Vec<u64>),
    /// These targets leave the chain and come back by resync.
    Resync(Vec<u64>),
    /// The chunks of this inode on this chain are removed.
    Remove,
    /// Nothing, for this reason.
    Nothing(&'static str),
}

impl Remedy {
    /// A sentence for reports.
    pub(super) fn describe(&self) -> String {
        let list = |targets: &[u64]| {
            let targets: Vec<_> = targets.iter().map(|id| format!("target {id}")).collect();
            targets.join(", ")
        };
        match self {
            Self::Pages(targets) => {
                format!("{}: repair the pages from other replicas", list(targets))
            }
            Self::Resync(targets) => {
                format!("{}: leave the chain and be synced again", list(targets))
            }
            Self::Remove => "remove the chunks of this inode from the chain".to_owned(),
            Self::Nothing(why) => format!("nothing: {why}"),
        }
    }
}

/// The remedy for a fault of a chunk that looks like this on its replicas.
pub(super) fn remedy(code: &str, views: &[View]) -> Remedy {
    match code {
        "unreadable" => {
            let bad = views.iter().filter(|v| matches!(v.content, Some(Err(_))));
            Remedy::Pages(bad.map(|view| view.target).collect())
        }
        "orphan" => Remedy::Remove,
        "missing-replica" | "version-differs" | "length-differs" | "checksum-differs"
        | "unfinished-write" => resync(views),
        "beyond-end" => {
            Remedy::Nothing("the file's length is what counts, its reader sees no more")
        }
        _ => Remedy::Nothing(
            "no rule tells which replica is right; keep the cluster as it is and report this",
        ),
    }
}

fn resync(views: &[View]) -> Remedy {
    let serving: Vec<_> = views.iter().filter(|view| view.serving).collect();
    let settled = |view: &&View| view.chunk.filter(|chunk| chunk.pending == 0);
    let same =
        |a: &Chunk, b: &Chunk| (a.committed, a.len, a.checksum) == (b.committed, b.len, b.checksum);
    let records: Vec<_> = serving.iter().filter_map(settled).collect();
    let Some(newest) = records.iter().map(|chunk| chunk.committed).max() else {
        return Remedy::Nothing("a write is pending on every replica; look at the servers' logs");
    };
    let newest: Vec<_> = records.iter().filter(|c| c.committed == newest).collect();
    let votes = |chunk: &Chunk| newest.iter().filter(|other| same(chunk, other)).count();
    let Some(right) = newest.iter().max_by_key(|chunk| votes(chunk)) else {
        return Remedy::Nothing("no replica has a settled record");
    };
    if votes(right) * 2 <= newest.len() {
        return Remedy::Nothing(
            "copies of the same version differ and no majority tells which is right; restore the file",
        );
    }
    let wrong = serving
        .iter()
        .filter(|view| !settled(view).is_some_and(|chunk| same(&chunk, right)));
    let wrong: Vec<_> = wrong.map(|view| view.target).collect();
    if wrong.is_empty() {
        return Remedy::Nothing("the replica that differs is being synced already");
    }
    Remedy::Resync(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use emberfs_proto::ids::ChunkKey;

    fn view(target: u64, record: Option<(u64, u32, u64)>) -> View {
        let chunk = record.map(|(committed, checksum, pending)| Chunk {
            key: ChunkKey::new(5u64, 0u32),
            committed,
            len: 10,
            checksum,
            pending,
        });
        View {
            target,
            serving: true,
            chunk,
            ..View::default()
        }
    }

    #[test]
    fn the_newest_version_and_then_the_majority_is_right() {
        let cases = [
            (
                "version-differs",
                vec![
                    view(1, Some((3, 7, 0))),
                    view(2, Some((3, 7, 0))),
                    view(3, Some((4, 8, 0))),
                ],
                Some(vec![1, 2]),
            ),
            (
                "checksum-differs",
                vec![
                    view(1, Some((3, 7, 0))),
                    view(2, Some((3, 8, 0))),
                    view(3, Some((3, 7, 0))),
                ],
                Some(vec![2]),
            ),
            (
                "checksum-differs",
                vec![view(1, Some((3, 7, 0))), view(2, Some((3, 8, 0)))],
                None,
            ),
            (
                "missing-replica",
                vec![view(1, None), view(2, Some((3, 7, 0)))],
                Some(vec![1]),
            ),
            (
                "unfinished-write",
                vec![view(1, Some((3, 7, 4))), view(2, Some((3, 7, 0)))],
                Some(vec![1]),
            ),
            (
                "unfinished-write",
                vec![view(1, Some((3, 7, 4))), view(2, Some((3, 7, 4)))],
                None,
            ),
        ];
        for (code, views, expected) in cases {
            match (remedy(code, &views), expected) {
                (Remedy::Resync(targets), Some(expected)) => {
                    assert_eq!(targets, expected, "{code}");
                }
                (Remedy::Nothing(_), None) => {}
                (remedy, _) => panic!("{code}: {remedy:?}"),
            }
        }
    }

    #[test]
    fn a_replica_that_is_being_synced_is_left_to_its_sync() {
        let mut syncing = view(2, Some((3, 8, 0)));
        syncing.serving = false;
        let views = [view(1, Some((3, 7, 0))), syncing];
        assert!(matches!(
            remedy("checksum-differs", &views),
            Remedy::Nothing(_)
        ));
    }

    #[test]
    fn damaged_copies_are_repaired_where_they_are() {
        let mut bad = view(2, Some((3, 7, 0)));
        bad.content = Some(Err("page 3".to_owned()));
        let views = [view(1, Some((3, 7, 0))), bad];
        assert_eq!(remedy("unreadable", &views), Remedy::Pages(vec![2]));
        assert_eq!(remedy("orphan", &views), Remedy::Remove);
    }
}
