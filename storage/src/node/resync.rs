//! Brings a SYNCING successor up to date: compares records, sends only what differs.
//!
//! One pass runs under one chain version and ends with SYNC_DONE; a change of the chain ends the
//! pass and the new version begins another. The first write to a chunk that happens meanwhile brings
//! the successor the whole of it by the ordinary path, so the pass only has to bring what was there
//! before and no write has brought yet.
//!
//! A pass compares twice: first only to know how much there is to do, for `status`, then to do it.
//! The unit is the chunk. The node's [pace](super::pace) decides when each may go.

pub(crate) mod compare;
mod progress;

use std::sync::Arc;
use std::time::{Duration, Instant};

use emberfs_proto::ids::{ChainId, ChainVersion, ChunkKey, TargetId};
use emberfs_proto::wire::{Call, Channel, Opcode, Reply};
use emberfs_proto::{Error, ErrorCode, Result, RetryClass, pb};
use futures::{StreamExt, TryStreamExt, stream};

use super::{Node, TargetHost};
use crate::chain::Event;
use compare::{Comparison, Work};
pub(super) use progress::Progress;

/// Longest wait for one answer of the successor.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Sendings of one SYNC_DONE.
const SYNC_DONE_ATTEMPTS: u32 = 3;
/// First and longest wait after a failed pass.
const BACK_OFF: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];

/// Repeats passes until one succeeds or the chain changes.
pub(super) async fn run(
    host: Arc<TargetHost>,
    version: ChainVersion,
    to: TargetId,
    busy: Vec<ChunkKey>,
) {
    let mut wait = BACK_OFF[0];
    loop {
        let Ok(node) = host.node() else { return };
        let pass = Pass {
            host: &host,
            node: &node,
            version,
            to,
        };
        match pass.run(&busy).await {
            Ok(()) => {
                let (sent, differed) = host.progress.bytes();
                tracing::info!(target = %host.id(), %to, %version, sent, differed, "resync complete");
                return;
            }
            Err(error) => {
                tracing::debug!(target = %host.id(), %to, %version, %error, "resync pass failed");
            }
        }
        if host.view().is_none_or(|view| view.version != version) {
            return;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(BACK_OFF[1]);
    }
}

struct Pass<'a> {
    host: &'a Arc<TargetHost>,
    node: &'a Node,
    version: ChainVersion,
    to: TargetId,
}

impl Pass<'_> {
    async fn run(&self, busy: &[ChunkKey]) -> Result<()> {
        let progress = &self.host.progress;
        progress.begin();
        {
            let _turn = self.node.pacer.pass().await?;
            let mut survey = Comparison::default();
            let (mut chunks, mut bytes) = (0, 0);
            while let Some(stretch) = survey.next(self).await? {
                chunks += stretch.compared;
                bytes += stretch
                    .differing
                    .iter()
                    .map(|w| u64::from(w.bytes))
                    .sum::<u64>();
            }
            // All at once: half of it would look like all that is left.
            progress.found(chunks, bytes);
        }
        // Turns are given in order: all that wait have been surveyed before the first of them begins.
        let _turn = self.node.pacer.pass().await?;
        // Work that was in progress when the successor came: it may have missed the outcome, whatever
        // the comparison says, unless this pass or a later write brings it.
        let mut busy = busy.to_vec();
        let mut walk = Comparison::default();
        while let Some(stretch) = walk.next(self).await? {
            busy.retain(|key| stretch.differing.iter().all(|work| work.key != *key));
            progress.done(stretch.compared - stretch.differing.len() as u64);
            self.send(stretch.differing).await?;
        }
        let mut rest = Vec::with_capacity(busy.len());
        for key in busy {
            let meta = self.host.engine().meta(self.host.id(), key).await?;
            let bytes = meta.map_or(0, |meta| meta.max_len());
            progress.found(1, u64::from(bytes));
            rest.push(Work { key, bytes });
        }
        self.send(rest).await?;
        let chain_version = self.version;
        self.host.drive(Event::HandOver { chain_version });
        let body = pb::SyncDoneRequest {
            chain: Some(self.chain()),
            target: self.to.0,
        };
        // Until it has arrived nobody may decide about writes on their way: not worth another pass.
        for attempt in 1.. {
            match self.call(Opcode::SyncDone, &body).await {
                Err(error)
                    if error.retry() == RetryClass::Reconnect && attempt < SYNC_DONE_ATTEMPTS =>
                {
                    tokio::time::sleep(BACK_OFF[0]).await;
                }
                answer => {
                    answer?;
                    break;
                }
            }
        }
        Ok(())
    }

    async fn send(&self, work: Vec<Work>) -> Result<()> {
        let parallel = self.node.config.resync_parallel.max(1);
        stream::iter(work.into_iter().map(|work| self.send_one(work)))
            .buffer_unordered(parallel)
            .try_for_each(|()| async {
                self.host.progress.done(1);
                Ok(())
            })
            .await
    }

    async fn send_one(&self, work: Work) -> Result<()> {
        let Work { key, bytes } = work;
        let brought = || self.host.is_mirrored(self.version, key);
        if brought() {
            return Ok(());
        }
        let transfer = self.node.pacer.admit(bytes).await?;
        if brought() {
            transfer.give_back();
            return Ok(());
        }
        if self
            .host
            .view()
            .is_none_or(|view| view.version != self.version)
        {
            transfer.give_back();
            let what = "the chain changed during the resync pass";
            return Err(Error::new(ErrorCode::StaleChainVersion, what));
        }
        let chain_version = self.version;
        let event = |request| Event::Resync {
            request,
            chain_version,
            key,
        };
        self.host.request(event).await?;
        drop(transfer);
        Ok(())
    }

    fn chain(&self) -> pb::ChainRef {
        let chain = self.host.view().map_or(ChainId(0), |view| view.chain);
        pb::ChainRef::of(chain, self.version)
    }

    async fn call(&self, opcode: Opcode, body: &impl prost::Message) -> Result<Reply> {
        let map = self.node.map();
        let target = map.targets.get(&self.to).and_then(|t| map.node_of(t));
        let Some(peer) = target else {
            let what = format!("target {} is not in the map", self.to);
            return Err(Error::new(ErrorCode::StaleChainVersion, what));
        };
        let call = Call::new(opcode, body, Instant::now() + CALL_TIMEOUT);
        self.node.peers.peer(&peer.data_addr).call(call).await
    }
}
