//! Removing for good what is in the trash.

use emberfs_client::attr::AttrExt;
use emberfs_proto::pb;

use super::Desk;
use crate::failure::{Context, Result};
use crate::output::say;

/// Entries removed by one request, at most.
const BATCH: usize = 500;

impl Desk {
    /// What was removed below a directory; of any other path what had that name.
    pub(super) async fn empty(&self, path: &str) -> Result<()> {
        let purged = match self.client.resolve(&self.creds, path).await {
            Ok(dir) if path.starts_with('/') && dir.is_dir() => self.empty_below(dir.inode).await?,
            _ => {
                let found = self.removals(path).await?;
                self.purge(path, found).await?
            }
        };
        let entries = match purged {
            1 => "1 entry".to_owned(),
            _ => format!("{purged} entries"),
        };
        say(format!(
            "{path}: {entries} removed for good; space comes back in the background"
        ))
    }

    /// Page by page: what is on a page is gone before the next one is asked for. What was removed from directories that
    /// go goes with them.
    async fn empty_below(&self, under: u64) -> Result<u64> {
        let mut request = pb::ListTrashRequest {
            under,
            ..pb::ListTrashRequest::default()
        };
        let mut purged = 0;
        loop {
            let page = self.client.list_trash(&self.creds, request.clone()).await?;
            purged += self.purge("trash", page.entries).await?;
            if page.end {
                return Ok(purged);
            }
            request.after = page.next;
        }
    }

    async fn purge(&self, what: &str, entries: Vec<pb::TrashEntry>) -> Result<u64> {
        let spots: Vec<_> = entries.into_iter().filter_map(|entry| entry.spot).collect();
        let mut purged = 0;
        for batch in spots.chunks(BATCH) {
            let gone = self.client.purge_trash(&self.creds, batch.to_vec()).await;
            purged += gone.context(what)?;
        }
        Ok(purged)
    }
}
