//! Garbage collection: the chunks of files without names.
//!
//! An unlinked file is garbage (`G` record) from the transaction that took its last name. Once nobody has
//! it open it is *condemned*: marked so that nobody opens it any more. Only after the mark is durable,
//! and still nobody has it open, are its chunks removed, on all chains of its stripe; only after
//! every chain has confirmed do the records go. Each step may be interrupted and done again.
//!
//! A file that was created without a name is garbage from the beginning. A link takes it out, by the same
//! record that condemning marks; whoever commits first leaves the other nothing to do.
//!
//! After a start nothing is collected for one client lease: read sessions live in memory, and clients
//! need that time to open again what they had open.

use std::sync::Arc;
use std::time::{Duration, Instant};

use emberfs_proto::Result;
use emberfs_proto::ids::InodeId;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::namespace::Namespace;
use crate::namespace::core::Core;
use crate::namespace::{keys, time};

/// Garbage records read at once.
const PAGE: usize = 256;
/// Files whose chunks are removed at once; each asks all chains of its stripe.
const PARALLEL: usize = 8;

/// One garbage record.
#[derive(Clone, Debug)]
pub(crate) struct Garbage {
    pub(crate) key: Vec<u8>,
    pub(crate) inode: InodeId,
}

/// Where passes begin. Deleted records stay in the store as tombstones for a while, and a pass that
/// began at the first one would step over all of them each time.
#[derive(Debug, Default)]
pub(crate) struct Window {
    oldest: u64,
    passes: u32,
}

impl Window {
    /// Records come in the order of the time at which their transactions began, but not strictly.
    const SLACK: u64 = 60 * 1_000_000_000;
    /// A clock that was set back makes records before the window: every so many passes see all.
    const FULL_EVERY: u32 = 600;

    pub(crate) fn begin(&mut self) -> u64 {
        self.passes += 1;
        if self.passes >= Self::FULL_EVERY {
            *self = Self::default();
        }
        self.oldest.saturating_sub(Self::SLACK)
    }

    /// A whole pass found nothing older.
    pub(crate) fn seen(&mut self, oldest: u64) {
        self.oldest = oldest;
    }
}

/// Of everything that goes by time.
#[derive(Debug, Default)]
struct Windows {
    garbage: Window,
    trash: Window,
}

/// What one pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pass {
    /// Files that are gone.
    pub(crate) removed: u64,
    /// Files that could not be removed and stay for the next pass.
    pub(crate) failed: u64,
}

/// Longest pause between two rounds while something fails.
const MAX_PAUSE: Duration = Duration::from_mins(1);

/// Sweeps in the background until `stop`: departed clients, forgotten truncations, trash, garbage.
pub(crate) async fn run(namespace: Arc<Namespace>, interval: Duration, stop: CancellationToken) {
    let started = Instant::now();
    let mut failures = 0u32;
    let mut windows = Windows::default();
    let mut swept: Option<Instant> = None;
    loop {
        // Unavailable chains are asked less and less often.
        let backed_off = interval.saturating_mul(1 << failures.min(16));
        let pause = backed_off.min(MAX_PAUSE).max(interval);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            // While something fails, new garbage does not shorten the pause.
            () = namespace.core.garbage.notified(), if failures == 0 => {}
        }
        // Looking through all sessions is for the timer, not for every unlink.
        let sweep = swept.is_none_or(|at| at.elapsed() >= interval);
        if sweep {
            swept = Some(Instant::now());
        }
        let collects = started.elapsed() >= namespace.core.sessions.lease();
        let result = tokio::select! {
            () = stop.cancelled() => return,
            result = round(&namespace, &mut windows, sweep, collects) => result,
        };
        match result {
            Ok(Pass { failed: 0, removed }) => {
                failures = 0;
                if removed > 0 {
                    tracing::debug!(removed, "chunks of deleted files removed");
                }
            }
            Ok(Pass { failed, removed }) => {
                failures = failures.saturating_add(1);
                tracing::warn!(removed, failed, "some chunks cannot be removed or cut yet");
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                tracing::warn!(%error, "the background sweep failed; it will be tried again");
            }
        }
    }
}

async fn round(
    namespace: &Arc<Namespace>,
    windows: &mut Windows,
    sweep: bool,
    collects: bool,
) -> Result<Pass> {
    let mut failed = 0;
    if sweep {
        namespace.expire(Instant::now()).await?;
        failed += namespace.sweep_trims().await?;
        namespace.sweep_refills().await?;
        namespace.sweep_trash(&mut windows.trash).await?;
    }
    namespace.sweep_trees().await?;
    if sweep {
        namespace.sweep_quotas().await?;
    }
    let mut pass = Pass::default();
    if collects {
        pass = collect(namespace, &mut windows.garbage).await?;
    }
    pass.failed += failed;
    Ok(pass)
}

/// Removes all garbage that nobody has open. Ends early when nothing of a page can be removed.
pub(crate) async fn collect(namespace: &Arc<Namespace>, window: &mut Window) -> Result<Pass> {
    let mut pass = Pass::default();
    let mut span = keys::garbage_since(window.begin());
    let mut oldest = time::nanos(time::now());
    loop {
        let from = span.clone();
        let page = namespace
            .blocking(move |core| core.read(|tx| tx.scan(&from, PAGE)))
            .await?;
        let Some((last, _)) = page.last() else {
            window.seen(oldest);
            return Ok(pass);
        };
        span = span.after(last);
        let candidates = page.iter().filter_map(|(key, _)| {
            let (since, inode) = keys::parse_garbage(key)?;
            // Whether or not it goes now: the next pass begins here, the one after it later.
            oldest = oldest.min(since);
            let key = key.to_vec();
            Some(Garbage { key, inode })
        });
        let listed: Vec<_> = candidates.collect();
        let results = remove_closed(namespace, listed).await?;
        let mut removed = 0;
        for result in &results {
            match result {
                Ok(()) => removed += 1,
                Err(error) => {
                    pass.failed += 1;
                    tracing::debug!(%error, "cannot remove a deleted file's chunks yet");
                }
            }
        }
        pass.removed += removed;
        if removed == 0 && !results.is_empty() {
            return Ok(pass);
        }
    }
}

/// Removes what nobody has open of garbage that was listed before; one result for each that could go.
pub(crate) async fn remove_closed(
    namespace: &Arc<Namespace>,
    listed: Vec<Garbage>,
) -> Result<Vec<Result<()>>> {
    let mut closed = listed;
    closed.retain(|g| !namespace.core.sessions.is_open(g.inode));
    let condemned = namespace.blocking(move |core| core.condemn(closed)).await?;
    Ok(futures::stream::iter(condemned)
        .map(|garbage| remove(namespace, garbage))
        .buffer_unordered(PARALLEL)
        .collect()
        .await)
}

/// Removes the chunks of a condemned inode, then its records.
async fn remove(namespace: &Arc<Namespace>, garbage: Garbage) -> Result<()> {
    let inode = garbage.inode;
    let record = namespace
        .blocking(move |core| core.read(|tx| tx.inode(inode)))
        .await?;
    if let Some(record) = &record {
        namespace
            .chunks
            .remove(inode, record.file_layout()?)
            .await?;
    }
    namespace
        .blocking(move |core| {
            core.write(|tx| {
                if !tx.exists(&garbage.key)? {
                    // An earlier attempt was carried out after all.
                    return Ok(());
                }
                if let Some(record) = tx.inode(inode)? {
                    tx.drop_inode(&record);
                    tx.delete(&keys::trim(inode));
                }
                tx.delete(&garbage.key);
                tx.add(keys::GARBAGE, -1);
                Ok(())
            })
        })
        .await
}

impl Core {
    /// Marks inodes as not to be opened any more; answers those that nobody has open.
    fn condemn(&self, mut garbage: Vec<Garbage>) -> Result<Vec<Garbage>> {
        let named = self.write(|tx| {
            let mut named = Vec::new();
            for one in &garbage {
                match tx.inode(one.inode)? {
                    // It has been given a name since the garbage was listed.
                    Some(record) if record.nlink > 0 => named.push(one.inode),
                    Some(mut record) if !record.condemned => {
                        record.condemned = true;
                        tx.put_inode(&record);
                    }
                    _ => {}
                }
            }
            Ok(named)
        })?;
        garbage.retain(|one| !named.contains(&one.inode));
        // An open that came first is in the table by now; a later one finds the mark.
        let (open, condemned): (Vec<_>, Vec<_>) = garbage
            .into_iter()
            .partition(|g| self.sessions.is_open(g.inode));
        for one in open {
            self.write(|tx| {
                if let Some(mut record) = tx.inode(one.inode)? {
                    record.condemned = false;
                    tx.put_inode(&record);
                }
                Ok(())
            })?;
        }
        Ok(condemned)
    }
}
