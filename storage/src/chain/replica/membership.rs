//! Chain changes: a new view, recovery, the end of a resync.

use std::collections::HashSet;

use emberfs_proto::cluster::{LocalState, PublicState};
use emberfs_proto::ids::ChainVersion;
use emberfs_proto::{Error, ErrorCode, Result};

use super::steps::{MAX_RETRY, RECOVERY};
use super::{Op, Phase, Replica, Source, answer, pass_over};
use crate::chain::types::{Action, Outcome, View};

impl Replica {
    pub(super) fn adopt(&mut self, view: View, lease: bool, out: &mut Vec<Action>) {
        if self
            .view
            .as_ref()
            .is_some_and(|old| old.version >= view.version)
        {
            return;
        }
        let successor = view.successor;
        let version = view.version;
        let state = view.state;
        // Also when a target that this one had handed over to was the tail meanwhile, in maps that
        // never came here.
        let becomes_tail = view.tail == Some(self.id)
            && self.view.as_ref().is_some_and(|old| {
                old.tail != Some(self.id) || self.handed_over == Some(old.version)
            });
        if becomes_tail {
            for op in self.ops.values_mut().filter(|op| op.may_be_pending()) {
                // What was not confirmed, or is being undone, nobody below has committed.
                let sent = !matches!(op.phase, Phase::Preparing | Phase::Held);
                op.exposed |= sent && op.undone.is_none();
            }
        }
        self.view = Some(view);
        if !mutated!(self, KeepMirroredAcrossChains) {
            self.mirrored = HashSet::new();
        }
        // What was sent under an older chain version cannot be stored any more once the receiver has
        // taken something under this one.
        self.ops.values_mut().for_each(|op| op.unsure = false);
        self.settled = 0;
        if !matches!(state, PublicState::Serving | PublicState::Syncing) {
            self.local = LocalState::Online;
            self.drop_all(out);
        }
        if state == PublicState::Syncing && self.local == LocalState::UpToDate {
            // Synced under an older membership: only a pass of this one counts.
            self.local = LocalState::Online;
        }
        self.drop_unconfirmed(lease, out);
        self.redirect(lease, out);
        self.recover_if_due(out);
        if state == PublicState::Serving
            && self.local == LocalState::UpToDate
            && let Some(next) = successor
            && next.syncing
        {
            let mut busy: Vec<_> = self.chunks.keys().copied().collect();
            busy.sort_unstable();
            out.push(Action::StartResync {
                chain_version: version,
                to: next.target,
                busy,
            });
        }
        out.push(Action::ReportState);
    }

    /// This target has left the chain: nobody may rely on it any more.
    fn drop_all(&mut self, out: &mut Vec<Action>) {
        let mut ids: Vec<_> = self.ops.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let Some(op) = self.ops.get_mut(&id) else {
                continue;
            };
            if !op.dead {
                let what = format!("target {} has left its chain; refresh the map", self.id);
                let result = Err(Error::new(ErrorCode::NotServing, what));
                answer(&op.waiters, result.clone(), out);
                answer(&op.withdrawals, result, out);
                op.dead = true;
            }
            if op.phase == Phase::Forwarding || op.early.is_some() {
                out.push(Action::CancelSend { op: id });
            }
            if !op.phase.in_engine() {
                let key = op.update.key;
                self.ops.remove(&id);
                if let Some(queue) = self.chunks.get_mut(&key) {
                    queue.retain(|&other| other != id);
                    if queue.is_empty() {
                        self.chunks.remove(&key);
                    }
                }
            }
        }
    }

    /// Sends again what is on its way to a successor of an older chain version.
    fn redirect(&mut self, lease: bool, out: &mut Vec<Action>) {
        let sent = |op: &Op| {
            op.early.is_some() || matches!(op.phase, Phase::Forwarding | Phase::RetryWait)
        };
        let mut ids: Vec<_> = self
            .ops
            .iter()
            .filter(|(_, op)| sent(op) && !op.dead)
            .map(|(&id, _)| id)
            .collect();
        ids.sort_unstable();
        for id in ids {
            let Some(op) = self.ops.get(&id) else {
                continue;
            };
            let waits = matches!(op.phase, Phase::Forwarding | Phase::RetryWait);
            if op.phase == Phase::Forwarding || op.early.is_some() {
                out.push(Action::CancelSend { op: id });
            }
            if op.source == Source::Resync {
                // The new membership has its own pass.
                self.finish(id, Err(pass_over()), lease, out);
            } else if waits && op.undone.is_none() && mutated!(self, CommitOnChainChange) {
                self.commit_now(id, out);
            } else if waits {
                self.dispatch(id, lease, out);
            }
        }
    }

    /// See [`Event::Failed`](crate::chain::Event::Failed).
    pub(super) fn fail(&mut self, out: &mut Vec<Action>) {
        if self.local != LocalState::Offline {
            self.local = LocalState::Offline;
            out.push(Action::ReportState);
        }
    }

    /// A target that becomes SERVING without having been synced begins the chain, or begins it again,
    /// with its own data: what is pending becomes committed. Nothing else may be in progress then:
    /// recovery must neither miss a version that is still being prepared nor commit one of a live write.
    pub(in crate::chain) fn recover_if_due(&mut self, out: &mut Vec<Action>) {
        let Some(view) = &self.view else { return };
        let due = view.state == PublicState::Serving && self.local == LocalState::Online;
        if due && !self.recovering && self.ops.is_empty() {
            self.recovering = true;
            out.push(Action::Recover {
                chain_version: view.version,
            });
        }
    }

    /// Whether nothing of an earlier membership is still on its way to the disk. Until then the
    /// target's contents are not fit for comparison.
    pub fn is_settled(&self) -> bool {
        !self.ops.values().any(|op| op.dead)
    }

    pub(super) fn recovered(
        &mut self,
        chain_version: ChainVersion,
        result: Result<()>,
        out: &mut Vec<Action>,
    ) {
        self.recovering = false;
        let Some(view) = &self.view else { return };
        if view.state != PublicState::Serving || self.local == LocalState::UpToDate {
            return;
        }
        match result {
            Ok(()) => {
                self.local = LocalState::UpToDate;
                let successor = view.successor;
                let version = view.version;
                out.push(Action::ReportState);
                if let Some(next) = successor
                    && next.syncing
                {
                    let busy = Vec::new();
                    out.push(Action::StartResync {
                        chain_version: version,
                        to: next.target,
                        busy,
                    });
                }
            }
            Err(error) => {
                let what = format!(
                    "target {}: recovery under {chain_version} failed: {error}",
                    self.id
                );
                out.push(Action::Alarm { message: what });
                out.push(Action::RetryAfter {
                    op: RECOVERY,
                    attempt: 0,
                    delay: MAX_RETRY,
                });
            }
        }
    }

    pub(super) fn sync_done(
        &mut self,
        chain_version: ChainVersion,
        out: &mut Vec<Action>,
    ) -> Result<Outcome> {
        // The lease does not matter here: nothing is served.
        let view = self.check_version(chain_version, true)?;
        if view.state != PublicState::Syncing {
            return Err(self.stale(view, "is not syncing as a member"));
        }
        self.local = LocalState::UpToDate;
        out.push(Action::ReportState);
        Ok(Outcome::nothing(chain_version))
    }
}
