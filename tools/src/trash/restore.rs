//! Getting something back.

use emberfs_client::ErrorCode;
use emberfs_client::attr::AttrExt;
use emberfs_proto::ids::InodeId;
use emberfs_proto::pb;

use super::{Desk, removed, text};
use crate::cli::TrashRestoreArgs;
use crate::failure::{Context, Failure, Result, fail};
use crate::output::say;
use crate::{cluster_path, when};

/// Times that a message names at most.
const MAX_NAMED: usize = 10;

impl Desk {
    pub(super) async fn restore(&self, args: &TrashRestoreArgs) -> Result<()> {
        let path = &args.path;
        let found = self.removals(path).await?;
        let chosen = choose(path, &found, args.at.as_deref())?;
        let spot = chosen.spot.clone().unwrap_or_default();
        let to = match &args.to {
            Some(to) => Some(self.destination(to, &spot.name).await?),
            None => None,
        };
        let to = to.as_ref().map(|(parent, name)| (*parent, &name[..]));
        let restored = self.client.restore_trash(&self.creds, spot, to).await;
        let restored = restored.context(path)?;
        let with = match (chosen.kind(), chosen.tree) {
            (pb::FileKind::Directory, false) => ", with what had been removed from it",
            (pb::FileKind::Directory, true) => ", with what is in it",
            _ => "",
        };
        say(format!("{} restored{with}", text(&restored.path)))
    }

    /// Every removal of a path, the newest first.
    pub(super) async fn removals(&self, path: &str) -> Result<Vec<pb::TrashEntry>> {
        let (parent, name) = cluster_path::split(path)?;
        let request = match self.client.resolve(&self.creds, parent).await {
            Ok(parent) => pb::ListTrashRequest {
                parent: parent.inode,
                name: bytes::Bytes::copy_from_slice(name.as_bytes()),
                ..pb::ListTrashRequest::default()
            },
            // Its directory is in the trash itself, or gone: then its path is what the list shows.
            Err(error) if error.code == ErrorCode::NotFound => pb::ListTrashRequest {
                nested: true,
                ..pb::ListTrashRequest::default()
            },
            Err(error) => return Err(error).context(path),
        };
        let trimmed = path.trim_end_matches('/').as_bytes();
        let by_path = request.parent == 0;
        let mut found = Vec::new();
        self.each(request, |entry| {
            if !by_path || entry.path == trimmed {
                found.push(entry);
            }
            true
        })
        .await?;
        found.sort_by_key(|entry| std::cmp::Reverse(removed(entry)));
        if found.is_empty() {
            let hint = cluster_path::hint(path, ErrorCode::NotFound);
            return fail(format!(
                "{path}: is not in the trash; `emberfs trash list` shows what is{hint}"
            ));
        }
        Ok(found)
    }

    /// As mv(1): a directory that is there is gone into, anything else is the new name.
    async fn destination(&self, to: &str, name: &[u8]) -> Result<(InodeId, Vec<u8>)> {
        if to.starts_with('/')
            && let Ok(there) = self.client.resolve(&self.creds, to).await
            && there.is_dir()
        {
            return Ok((there.id(), name.to_vec()));
        }
        let (parent, name) = cluster_path::split(to)?;
        let parent = cluster_path::parent(&self.client, &self.creds, to, parent).await?;
        Ok((parent, name.as_bytes().to_vec()))
    }
}

/// The removal that is meant: the newest, or the one whose time begins as is said.
fn choose<'a>(
    path: &str,
    found: &'a [pb::TrashEntry],
    at: Option<&str>,
) -> Result<&'a pb::TrashEntry> {
    let at = at
        .unwrap_or_default()
        .trim_end_matches('Z')
        .replace(' ', "T");
    let mut matching = found
        .iter()
        .filter(|entry| when::exact(removed(entry)).starts_with(&at));
    let first = matching.next();
    if at.is_empty()
        && let Some(first) = first
    {
        return Ok(first);
    }
    match (first, matching.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(ambiguous(path, found, "was not removed then")),
        (Some(_), Some(_)) => Err(ambiguous(path, found, "was removed more than once then")),
    }
}

fn ambiguous(path: &str, found: &[pb::TrashEntry], what: &str) -> Failure {
    let times = found
        .iter()
        .take(MAX_NAMED)
        .map(|e| when::exact(removed(e)));
    let times = times.collect::<Vec<_>>().join(", ");
    Failure::new(format!(
        "{path}: {what}; say --at and one of (UTC): {times}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seconds: u64) -> pb::TrashEntry {
        let removed = seconds * 1_000_000_000;
        pb::TrashEntry {
            spot: Some(pb::TrashSpot {
                removed,
                ..pb::TrashSpot::default()
            }),
            ..pb::TrashEntry::default()
        }
    }

    #[test]
    fn the_newest_is_meant_unless_a_time_tells_one() {
        let found = [entry(951_868_799), entry(951_782_460), entry(951_782_400)];
        let chosen = |at| choose("/a", &found, at).map(removed);
        assert_eq!(chosen(None).ok(), Some(951_868_799_000_000_000));
        for at in [
            "2000-02-29 00:01",
            "2000-02-29T00:01:00Z",
            "2000-02-29T00:01:00.000000000",
        ] {
            assert_eq!(chosen(Some(at)).ok(), Some(951_782_460_000_000_000), "{at}");
        }
        let line = |at| chosen(Some(at)).expect_err("no choice").to_string();
        assert!(line("2000-02-29 00").contains("more than once"));
        let none = line("1999");
        assert!(none.contains("not removed then") && none.contains("2000-02-29T23:59:59"));
    }
}
