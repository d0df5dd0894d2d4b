//! Checks of the whole disk: what the engine believes against what the index says.

use std::collections::HashMap;

use emberfs_proto::ids::{ChunkKey, TargetId};
use emberfs_proto::{Error, ErrorCode, Result};

use super::classes::Loc;
use super::core::Core;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InvariantReport {
    /// Chunks in the index.
    pub chunks: u64,
    /// Chunks with a pending version.
    pub pending: u64,
    /// Blocks that chunks own.
    pub blocks: u64,
    /// Bytes in those blocks.
    pub bytes: u64,
    /// What is wrong, one line each; at most [`MAX_VIOLATIONS`].
    pub violations: Vec<String>,
}

/// More violations than this say nothing new.
pub const MAX_VIOLATIONS: usize = 100;

impl InvariantReport {
    fn violation(&mut self, what: String) {
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(what);
        }
    }
}

impl Core {
    /// See [`Engine::check_invariants`](super::Engine::check_invariants).
    pub(super) async fn check_invariants(&self) -> Result<InvariantReport> {
        let mut targets: Vec<TargetId> = self.targets.read().keys().copied().collect();
        // In order, so that two checks do not wait for each other.
        targets.sort_unstable();
        let mut alone = Vec::new();
        for &target in &targets {
            match self.enter_alone(target).await {
                Ok(guard) => alone.push(guard),
                // Dropped meanwhile.
                Err(error) if error.code == ErrorCode::NotServing => {}
                Err(error) => return Err(error),
            }
        }
        self.flush_index().await?;
        let (owned, pinned) = self.map.allocator.snapshot();
        let totals: HashMap<_, _> = super::classes::Class::all()
            .map(|class| (class, self.map.allocator.total(class)))
            .collect();
        let used = self.map.allocator.used_bytes();
        let (mut report, owners) = self
            .query(move |index| {
                let mut report = InvariantReport::default();
                let mut owners: HashMap<Loc, (TargetId, ChunkKey)> = HashMap::new();
                index.scan(&[], None, |target, chunk, record| {
                    report.chunks += 1;
                    report.pending += u64::from(record.pending.is_some());
                    if !targets.contains(&target) {
                        report.violation(format!("{chunk} belongs to no target ({target})"));
                    }
                    if record.committed.is_none() && record.pending.is_none() {
                        report.violation(format!("{target} {chunk} has no content"));
                    }
                    for loc in record.blocks() {
                        report.blocks += 1;
                        report.bytes += u64::from(loc.class.capacity());
                        if loc.number >= totals[&loc.class] {
                            report.violation(format!("{target} {chunk}: {loc} is beyond its file"));
                        }
                        if let Some((t, c)) = owners.insert(loc, (target, chunk)) {
                            report.violation(format!(
                                "{loc} belongs to {t} {c} and {target} {chunk}"
                            ));
                        }
                    }
                    Ok(true)
                })?;
                Ok((report, owners))
            })
            .await?;
        let mut unseen = owners;
        for loc in owned {
            if unseen.remove(&loc).is_none() {
                report.violation(format!("{loc} is leaked: taken, but no chunk owns it"));
            }
        }
        for (loc, (target, chunk)) in unseen {
            report.violation(format!("{loc} of {target} {chunk} counts as free"));
        }
        if pinned == 0 && used != report.bytes {
            let bytes = report.bytes;
            report.violation(format!("{used} bytes count as used, blocks have {bytes}"));
        }
        drop(alone);
        Ok(report)
    }
}

/// Refuses to go on with an index that gives one block to two chunks.
pub(super) fn doubly_owned(disk: impl std::fmt::Display, what: impl std::fmt::Display) -> Error {
    let what = format!("disk {disk} is damaged: {what}; format it and let it resync");
    Error::new(ErrorCode::ForeignDisk, what)
}
