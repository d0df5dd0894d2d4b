//! What is in the trash, for people and for programs.

use emberfs_client::attr::AttrExt;
use emberfs_proto::pb::{self, FileKind, TrashPlace};
use serde::Serialize;

use super::{Desk, removed, text};
use crate::cli::TrashListArgs;
use crate::failure::{Context, Result};
use crate::output::say;
use crate::{cluster_path, show, when};

/// Entries printed at most.
const MAX_SHOWN: usize = 100_000;

/// The shape of `--json`. Fields are added, never changed.
#[derive(Serialize)]
struct Report {
    entries: Vec<View>,
    more: bool,
}

#[derive(Serialize)]
struct View {
    path: String,
    kind: &'static str,
    tree: bool,
    size: u64,
    uid: u32,
    removed: String,
    removed_ms: u64,
    expires_ms: u64,
    inode: u64,
    place: &'static str,
}

impl From<&pb::TrashEntry> for View {
    fn from(entry: &pb::TrashEntry) -> Self {
        Self {
            path: text(&entry.path),
            kind: kind(entry.kind()),
            tree: entry.tree,
            size: entry.size,
            uid: entry.uid,
            removed: when::exact(removed(entry)),
            removed_ms: removed(entry) / 1_000_000,
            expires_ms: entry.expires / 1_000_000,
            inode: entry.inode,
            place: match entry.place() {
                TrashPlace::InTrash => "in-trash",
                TrashPlace::Gone => "gone",
                TrashPlace::Live | TrashPlace::Unspecified => "live",
            },
        }
    }
}

impl Desk {
    pub(super) async fn list(&self, args: &TrashListArgs) -> Result<()> {
        let under = match &args.path {
            Some(path) => {
                cluster_path::resolve(&self.client, &self.creds, path)
                    .await?
                    .id()
                    .0
            }
            None => 0,
        };
        let request = pb::ListTrashRequest {
            under,
            nested: args.all,
            ..pb::ListTrashRequest::default()
        };
        let (mut entries, mut more) = (Vec::new(), false);
        self.each(request, |entry| {
            more = entries.len() == MAX_SHOWN;
            if !more {
                entries.push(entry);
            }
            !more
        })
        .await?;
        entries.sort_by_key(|entry| std::cmp::Reverse(removed(entry)));
        if args.json {
            let entries = entries.iter().map(View::from).collect();
            let report = Report { entries, more };
            return say(serde_json::to_string_pretty(&report).context("cannot write JSON")?);
        }
        say(render(&entries, more))
    }
}

fn render(entries: &[pb::TrashEntry], more: bool) -> String {
    if entries.is_empty() {
        return "Nothing is in the trash".to_owned();
    }
    let header = [
        "removed (UTC)",
        "by",
        "kind",
        "size",
        "expires (UTC)",
        "path",
    ];
    let rows = entries.iter().map(|entry| {
        let size = match entry.kind() {
            FileKind::File => show::bytes(entry.size),
            _ => "-".to_owned(),
        };
        let kind = if entry.tree {
            "tree"
        } else {
            kind(entry.kind())
        };
        let gone = match entry.place() {
            TrashPlace::Gone => "  (its directory is gone: restore with --to)",
            _ => "",
        };
        vec![
            when::to_seconds(removed(entry)),
            entry.uid.to_string(),
            kind.to_owned(),
            size,
            when::to_seconds(entry.expires),
            format!("{}{gone}", entry.path.escape_ascii()),
        ]
    });
    let shown = show::table(&header, rows);
    if more {
        return format!("{shown}\nAnd more than these {MAX_SHOWN}: give a PATH");
    }
    shown
}

fn kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Unspecified => "unknown",
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "char-device",
        FileKind::BlockDevice => "block-device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_says_who_removed_what_when_and_until_when_it_stays() {
        let spot = pb::TrashSpot {
            removed: 951_782_400_000_000_000,
            ..pb::TrashSpot::default()
        };
        let file = pb::TrashEntry {
            spot: Some(spot),
            kind: FileKind::File.into(),
            size: 1536,
            uid: 7,
            expires: 1_709_164_800_000_000_000,
            path: bytes::Bytes::from_static(b"/a/b"),
            place: TrashPlace::Gone.into(),
            ..pb::TrashEntry::default()
        };
        let tree = pb::TrashEntry {
            kind: FileKind::Directory.into(),
            tree: true,
            place: TrashPlace::Live.into(),
            ..file.clone()
        };
        let shown = render(&[file, tree], false);
        let lines: Vec<_> = shown.lines().collect();
        let words = "2000-02-29 00:00:00 7 file 1.5 KiB 2024-02-29 00:00:00 /a/b (its";
        let plain = lines[1].split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(plain.starts_with(words), "{plain}");
        let words = "2000-02-29 00:00:00 7 tree - 2024-02-29 00:00:00 /a/b";
        let plain = lines[2].split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(plain, words);
    }

    #[test]
    fn the_help_names_every_field() {
        let report = Report {
            entries: vec![View::from(&pb::TrashEntry::default())],
            more: false,
        };
        let json = serde_json::to_value(&report).expect("JSON");
        let entry = json["entries"][0].as_object().expect("an object");
        for field in entry
            .keys()
            .chain(json.as_object().expect("an object").keys())
        {
            assert!(super::super::HELP.contains(field.as_str()), "{field}");
        }
    }
}
