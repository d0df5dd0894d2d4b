//! `emberfs trash`: which directories keep what is removed from them, what there is, and getting it back.

mod empty;
mod list;
mod policy;
mod restore;

use emberfs_client::{Client, ClientConfig, Creds};
use emberfs_proto::pb;

use crate::cli::{DirArg, TrashArgs, TrashCommand};
use crate::cluster_path;
use crate::failure::{Context, Exit, Result};
use crate::rpc::Seat;

/// Examples, and the shape of `--json`, for `--help`.
pub(crate) const HELP: &str = "\
Examples:
  emberfs trash on /datasets --keep 7d          keep what is removed below /datasets for a week
  emberfs trash off /datasets/scratch           but not what is removed below this one
  emberfs trash list /datasets                  what is there, the newest first
  emberfs trash restore /datasets/imagenet      the newest of that name, with all that was in it
  emberfs trash restore /datasets/a.bin --at '2026-11-30 02:43' --to /datasets/a-old.bin
  emberfs trash empty /datasets                 remove it for good now; its space comes back in the background

Kept are names removed through any mount or client: by unlink and rmdir, so by `rm -r`, as the target of a rename, and by
`emberfs rm -r`. Files in the trash take their space until they expire. Paths are those in the cluster, from its
root on. All of it is for root.

JSON of list (fields are only ever added): entries [{path, kind, tree, size, uid, removed, removed_ms, expires_ms,
  inode, place}], the newest first; `removed` is what --at takes; tree: a directory that was
  removed with all that was in it; place is live, in-trash (its directory is in the trash itself) or gone (it was removed for
  good: restore elsewhere with --to). more is true if there are too many to print.
JSON of status: {path, own_seconds, keep_seconds, from}; keep_seconds 0: nothing is kept; own_seconds null: the
  directory itself says nothing";

/// What a verb needs.
struct Desk {
    client: Client,
    creds: Creds,
}

/// `emberfs trash`.
pub(crate) async fn trash(cluster: Option<String>, args: TrashArgs) -> Result<Exit> {
    let seat = Seat::find(cluster, &DirArg { dir: args.dir })?;
    let config = ClientConfig {
        meta: seat.address,
        ..ClientConfig::default()
    };
    let client = Client::connect(config)
        .await
        .context("cannot reach the cluster")?;
    let desk = Desk {
        client,
        creds: cluster_path::creds(),
    };
    let outcome = match &args.command {
        TrashCommand::On(on) => desk.set(&on.path, Some(on.keep)).await,
        TrashCommand::Off(off) => desk.set(&off.path, Some(0)).await,
        TrashCommand::Inherit(inherit) => desk.set(&inherit.path, None).await,
        TrashCommand::Status(status) => desk.status(&status.path, status.json).await,
        TrashCommand::List(list) => desk.list(list).await,
        TrashCommand::Restore(restore) => desk.restore(restore).await,
        TrashCommand::Empty(empty) => desk.empty(&empty.path).await,
    };
    desk.client.shutdown().await;
    outcome.map(|()| Exit::Success)
}

impl Desk {
    /// Visits what matches, page by page, until `visit` says that it has enough.
    async fn each(
        &self,
        mut request: pb::ListTrashRequest,
        mut visit: impl FnMut(pb::TrashEntry) -> bool,
    ) -> Result<()> {
        loop {
            let page = self.client.list_trash(&self.creds, request.clone()).await?;
            for entry in page.entries {
                if !visit(entry) {
                    return Ok(());
                }
            }
            if page.end {
                return Ok(());
            }
            request.after = page.next;
        }
    }
}

/// A path of an answer as text.
fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// When the name was removed, nanoseconds.
fn removed(entry: &pb::TrashEntry) -> u64 {
    entry.spot.as_ref().map_or(0, |spot| spot.removed)
}
