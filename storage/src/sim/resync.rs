//! Resync passes, as `crate::node::resync` runs them, with its own comparison.

use emberfs_proto::ids::{ChainId, ChainVersion, ChunkKey, TargetId};
use emberfs_proto::{Error, ErrorCode, Result, pb};

use super::mutant::Mutant;
use super::net::{Answer, Caller, Place, Request};
use super::target::Waiter;
use super::world::{Event, World};
use crate::chain;
use crate::engine::ChunkMeta;
use crate::node::resync::compare::{Copy, Listing, differing};

/// Chunks per page: few, so that passes have several.
const PAGE: usize = 2;
/// Longest wait for one answer, µs.
const CALL_TIMEOUT: u64 = 10_000_000;

/// One pass.
pub(super) struct Pass {
    id: u64,
    version: ChainVersion,
    to: TargetId,
    /// Work that was in progress when the successor came.
    busy: Vec<ChunkKey>,
    /// Of it, what the comparison of this attempt has not found to differ.
    rest: Vec<ChunkKey>,
    outstanding: usize,
    failed: bool,
    ours: Listing,
    theirs: Listing,
    wait: u64,
}

/// As the wire would carry it.
fn info(meta: &ChunkMeta) -> pb::ChunkInfo {
    pb::ChunkInfo {
        committed: meta.committed.0,
        len: meta.committed_len,
        checksum: meta.checksum,
        pending: meta.pending.as_ref().map_or(0, |p| p.version.0),
        ..pb::ChunkInfo::default()
    }
}

impl World {
    pub(super) fn start_resync(
        &mut self,
        host: usize,
        target: TargetId,
        version: ChainVersion,
        to: TargetId,
        busy: Vec<ChunkKey>,
    ) {
        let busy = if self.mutated(Mutant::ForgetBusyChunks) {
            Vec::new()
        } else {
            busy
        };
        let life = self.hosts[host].life;
        let Some(it) = self.target(host, target) else {
            return;
        };
        let id = it.number();
        it.pass = Some(Pass {
            id,
            version,
            to,
            rest: busy.clone(),
            busy,
            outstanding: 0,
            failed: false,
            ours: Listing::default(),
            theirs: Listing::default(),
            wait: 20_000,
        });
        self.note(|| format!("target {target} syncs {to} under {version}"));
        self.after(
            0,
            Event::PassAgain {
                host,
                life,
                target,
                pass: id,
            },
        );
    }

    fn pass(&mut self, host: usize, target: TargetId, pass: u64) -> Option<&mut Pass> {
        let it = self.target(host, target)?;
        it.pass.as_mut().filter(|p| p.id == pass)
    }

    /// Begins the pass, or begins it again.
    pub(super) fn pass_again(&mut self, host: usize, target: TargetId, pass: u64) {
        let at = self.adopted(host, target);
        let early = self.mutated(Mutant::ServeBeforeSyncComplete);
        let Some(it) = self.target(host, target) else {
            return;
        };
        // Answers to the attempt before must not count for this one.
        let id = it.number();
        let Some(pass) = it.pass.as_mut().filter(|p| p.id == pass) else {
            return;
        };
        if at != Some(pass.version) {
            it.pass = None;
            return;
        }
        pass.id = id;
        pass.failed = false;
        pass.ours = Listing::default();
        pass.theirs = Listing::default();
        pass.rest = pass.busy.clone();
        if early {
            return self.pass_done(host, target, id);
        }
        self.compare(host, target, id);
    }

    fn send_chunks(&mut self, host: usize, target: TargetId, id: u64, keys: Vec<ChunkKey>) {
        let Some(it) = self.target(host, target) else {
            return;
        };
        let Some(pass) = it.pass.as_mut().filter(|p| p.id == id) else {
            return;
        };
        let chain_version = pass.version;
        let mut keys = keys;
        keys.retain(|&key| !it.replica.is_mirrored(chain_version, key));
        pass.outstanding = keys.len();
        if keys.is_empty() {
            return self.compare(host, target, id);
        }
        for key in keys {
            self.request(host, target, Waiter::Pass(id), |request| {
                chain::Event::Resync {
                    request,
                    chain_version,
                    key,
                }
            });
        }
    }

    pub(super) fn chunk_sent(&mut self, host: usize, target: TargetId, id: u64, ok: bool) {
        let Some(pass) = self.pass(host, target, id) else {
            return;
        };
        pass.outstanding -= 1;
        pass.failed |= !ok;
        if pass.outstanding > 0 {
            return;
        }
        if pass.failed {
            self.pass_failed(host, target, id);
        } else {
            self.compare(host, target, id);
        }
    }

    fn pass_failed(&mut self, host: usize, target: TargetId, id: u64) {
        let life = self.hosts[host].life;
        let Some(pass) = self.pass(host, target, id) else {
            return;
        };
        let wait = pass.wait;
        pass.wait = (wait * 2).min(1_000_000);
        self.after(
            wait,
            Event::PassAgain {
                host,
                life,
                target,
                pass: id,
            },
        );
    }

    fn compare(&mut self, host: usize, target: TargetId, id: u64) {
        let Some(pass) = self.pass(host, target, id) else {
            return;
        };
        if pass.ours.needs_page() {
            let after = pass.ours.after;
            let Ok(page) = self.hosts[host].disk.list(target, after, PAGE) else {
                return self.pass_failed(host, target, id);
            };
            let Some(pass) = self.pass(host, target, id) else {
                return;
            };
            let end = page.len() < PAGE;
            pass.ours.extend(
                page.into_iter().map(|(key, meta)| (key, Copy::ours(&meta))),
                end,
            );
        }
        let Some(pass) = self.pass(host, target, id) else {
            return;
        };
        if pass.theirs.needs_page() {
            let (version, after, to) = (pass.version, pass.theirs.after, pass.to);
            let request = |chain| Request::SyncList {
                chain,
                version,
                after,
            };
            return self.ask(host, target, id, to, request);
        }
        let found = differing(&mut pass.ours, &mut pass.theirs).differing;
        let mut keys: Vec<_> = found.into_iter().map(|work| work.key).collect();
        pass.rest.retain(|key| !keys.contains(key));
        if keys.is_empty() && pass.ours.is_done() && pass.theirs.is_done() {
            keys = std::mem::take(&mut pass.rest);
            if keys.is_empty() {
                return self.pass_done(host, target, id);
            }
        }
        self.send_chunks(host, target, id, keys);
    }

    fn pass_done(&mut self, host: usize, target: TargetId, id: u64) {
        let Some(pass) = self.pass(host, target, id) else {
            return;
        };
        let (version, to) = (pass.version, pass.to);
        let chain_version = version;
        self.drive(host, target, chain::Event::HandOver { chain_version });
        self.ask(host, target, id, to, |chain| Request::SyncDone {
            chain,
            version,
        });
    }

    fn ask(
        &mut self,
        host: usize,
        target: TargetId,
        pass: u64,
        to: TargetId,
        request: impl FnOnce(ChainId) -> Request,
    ) {
        let chain = self.target(host, target).map_or(ChainId(0), |t| t.chain);
        let Some(to) = self.host_of(host, to) else {
            return self.pass_failed(host, target, pass);
        };
        let caller = Caller::Pass { target, pass };
        self.call(Place::Host(host), to, caller, request(chain), CALL_TIMEOUT);
    }

    pub(super) fn pass_answered(
        &mut self,
        host: usize,
        target: TargetId,
        id: u64,
        result: Result<Answer>,
    ) {
        let Some(pass) = self.pass(host, target, id) else {
            return;
        };
        match result {
            Ok(Answer::Page(chunks, end)) => {
                let page = chunks
                    .iter()
                    .map(|(key, meta)| (*key, Copy::theirs(&info(meta))));
                pass.theirs.extend(page, end);
                self.compare(host, target, id);
            }
            Ok(_) => {
                let to = pass.to;
                self.note(|| format!("target {target} has synced {to}"));
                if let Some(it) = self.target(host, target) {
                    it.pass = None;
                }
            }
            Err(_) => self.pass_failed(host, target, id),
        }
    }

    /// As `Data::sync_list`.
    pub(super) fn sync_list(
        &mut self,
        host: usize,
        target: TargetId,
        call: u64,
        version: ChainVersion,
        after: Option<ChunkKey>,
    ) {
        let current = self.adopted(host, target);
        let settled = self
            .target(host, target)
            .is_some_and(|t| t.replica.is_settled());
        let result = if current != Some(version) {
            Err(Error::new(
                ErrorCode::StaleChainVersion,
                "another chain version",
            ))
        } else if settled {
            let page = self.hosts[host].disk.list(target, after, PAGE);
            page.map(|page| {
                let end = page.len() < PAGE;
                Answer::Page(page, end)
            })
        } else {
            Err(Error::new(ErrorCode::Busy, "not settled").retry_after_ms(5))
        };
        self.answer(call, host, result);
    }
}
