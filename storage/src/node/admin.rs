//! The management service of a storage node.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use emberfs_proto::checksum::{crc32, verify_fragments};
use emberfs_proto::convert::chunk_key;
use emberfs_proto::ids::{ChunkKey, TargetId};
use emberfs_proto::layout::MAX_CHUNK_SIZE;
use emberfs_proto::pb::storage_admin_server::StorageAdmin;
use emberfs_proto::{Error, ErrorCode, Result, pb};
use tonic::{Request, Response, Status};

use super::repair::Cause;
use super::{Node, TargetHost};
use crate::engine::ReadVersion;

/// Most chunks per page of a listing.
const MAX_PAGE: u32 = 4096;
/// Most unrepairable chunks per disk in an answer.
const MAX_LOST: usize = 64;

/// The service behind the management port.
pub struct Admin {
    node: Arc<Node>,
}

impl Admin {
    /// Serves `node`.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    async fn verify(&self, request: pb::VerifyChunkRequest) -> Result<pb::VerifyChunkReply> {
        let host = self.node.host(TargetId(request.target))?;
        let key = chunk_key(&request.key)?;
        let read = host
            .engine()
            .read(host.id(), key, ReadVersion::Committed, 0, MAX_CHUNK_SIZE)
            .await?;
        verify_fragments(0, &read.data, read.page_size, &read.checksums).map_err(|bad| {
            let what = format!(
                "chunk {key} on target {} of node {}: bytes {bad:?} do not match their checksum",
                host.id(),
                self.node.id
            );
            Error::new(ErrorCode::ChecksumMismatch, what)
        })?;
        Ok(pb::VerifyChunkReply {
            committed: read.version.0,
            len: read.data.len() as u32,
            content_crc: crc32(&read.data),
        })
    }
}

#[tonic::async_trait]
impl StorageAdmin for Admin {
    async fn info(&self, _: Request<pb::InfoRequest>) -> Result<Response<pb::InfoReply>, Status> {
        let node = &self.node;
        let counters = &node.counters;
        Ok(Response::new(pb::InfoReply {
            node: node.id.0,
            incarnation: node.incarnation.to_bytes(),
            cluster: node.cluster.to_bytes(),
            lease_left_ms: node.lease.left().as_millis() as u64,
            map_version: node.map().version.0,
            reads: counters.reads.load(Ordering::Relaxed),
            writes: counters.writes.load(Ordering::Relaxed),
            read_bytes: counters.read_bytes.load(Ordering::Relaxed),
            written_bytes: counters.written_bytes.load(Ordering::Relaxed),
            refused: node.refused(),
            resync_bytes: node.resync_bytes(),
        }))
    }

    async fn list_chunks(
        &self,
        request: Request<pb::ListChunksRequest>,
    ) -> Result<Response<pb::ListChunksReply>, Status> {
        let request = request.into_inner();
        let host = self.node.host(TargetId(request.target))?;
        let after = if request.after.is_empty() {
            None
        } else {
            Some(chunk_key(&request.after)?)
        };
        let (chunks, end) = list_page(&host, after, request.limit).await?;
        Ok(Response::new(pb::ListChunksReply { chunks, end }))
    }

    async fn repair_chunk(
        &self,
        request: Request<pb::RepairChunkRequest>,
    ) -> Result<Response<pb::RepairChunkReply>, Status> {
        let request = request.into_inner();
        let host = self.node.host(TargetId(request.target))?;
        let key = chunk_key(&request.key)?;
        let repair = self
            .node
            .repair(&host, key, ReadVersion::Committed, Cause::Fsck);
        let repaired = repair.await?;
        Ok(Response::new(pb::RepairChunkReply {
            repaired_pages: repaired.pages as u64,
            sources: repaired.sources.iter().map(|source| source.0).collect(),
        }))
    }

    async fn scrub_status(
        &self,
        _: Request<pb::ScrubStatusRequest>,
    ) -> Result<Response<pb::ScrubStatusReply>, Status> {
        let node = &self.node;
        let disks = node.disks.iter().map(|disk| {
            let care = node.repairs.care(disk.id);
            let lost = care.all_lost();
            let lost = lost.iter().take(MAX_LOST).map(|lost| pb::LostChunk {
                target: lost.target().0,
                key: lost.key().encode().to_vec().into(),
                why: lost.why.clone(),
            });
            pb::DiskScrub {
                disk: disk.id.to_bytes(),
                path: disk.path.display().to_string(),
                care: Some(care.message(node.scrub_interval())),
                lost: lost.collect(),
            }
        });
        Ok(Response::new(pb::ScrubStatusReply {
            node: node.id.0,
            disks: disks.collect(),
            findings: node.repairs.findings(),
        }))
    }

    async fn start_scrub(
        &self,
        request: Request<pb::StartScrubRequest>,
    ) -> Result<Response<pb::StartScrubReply>, Status> {
        let wanted = request.into_inner().disks;
        let mut disks = Vec::new();
        for disk in &self.node.disks {
            let id = disk.id.to_bytes();
            if wanted.is_empty() || wanted.contains(&id) {
                self.node.repairs.care(disk.id).ask();
                disks.push(id);
            }
        }
        Ok(Response::new(pb::StartScrubReply { disks }))
    }

    async fn resync_target(
        &self,
        request: Request<pb::ResyncTargetRequest>,
    ) -> Result<Response<pb::ResyncTargetReply>, Status> {
        let host = self.node.host(TargetId(request.into_inner().target))?;
        let version = host.leave_to_resync(&self.node.map())?;
        tracing::warn!(target = %host.id(), %version, "taken out of its chain to be synced again");
        self.node.report.notify_one();
        Ok(Response::new(pb::ResyncTargetReply {
            chain_version: version.0,
        }))
    }

    async fn verify_chunk(
        &self,
        request: Request<pb::VerifyChunkRequest>,
    ) -> Result<Response<pb::VerifyChunkReply>, Status> {
        Ok(Response::new(self.verify(request.into_inner()).await?))
    }
}

/// One page of a target's chunks, and whether it is the last.
pub(super) async fn list_page(
    host: &TargetHost,
    after: Option<ChunkKey>,
    limit: u32,
) -> Result<(Vec<pb::ChunkInfo>, bool)> {
    let limit = limit.clamp(1, MAX_PAGE) as usize;
    let page = host.engine().list(host.id(), after, limit).await?;
    let end = page.len() < limit;
    let chunks = page.into_iter().map(|(key, meta)| pb::ChunkInfo {
        key: key.encode().to_vec().into(),
        committed: meta.committed.0,
        committed_chain: meta.committed_chain.0,
        len: meta.committed_len,
        checksum: meta.checksum,
        pending: meta.pending.map_or(0, |p| p.version.0),
    });
    Ok((chunks.collect(), end))
}
