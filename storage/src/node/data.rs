//! The data plane of a storage node: what each opcode does.

mod chunks;
mod messages;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use emberfs_proto::convert::{chunk_key, required};
use emberfs_proto::ids::{
    ChainId, ChainVersion, ChunkKey, ChunkVersion, InodeId, TargetId, WriteTag,
};
use emberfs_proto::layout::MAX_CHUNK_SIZE;
use emberfs_proto::wire::server::{Incoming, Outgoing, Service};
use emberfs_proto::wire::{Call, Channel, Opcode, decode, frame::MAX_PAYLOAD};
use emberfs_proto::{Error, ErrorCode, Result, pb};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream;
use tokio::sync::OwnedSemaphorePermit;

use super::repair::{Cause, is_damage};
use super::{Node, TargetHost, Wanted, admin};
use crate::chain::{Event, Forward, Outcome, ReadPlan, Sent, Update, UpdateKind};
use crate::engine::{ReadData, ReadVersion, Verify};
pub(super) use messages::forward_message;
use messages::{marks, read_result, update};

/// Granularity of the read budget, bytes.
pub(super) const BUDGET_UNIT: usize = 4096;
/// Most ranges in one read request.
const MAX_READ_ITEMS: usize = 4096;
/// Ranges of one request that are read at the same time.
const READ_PARALLEL: usize = 32;
/// Attempts to catch a version that the tail named before the chunk moves on.
const READ_ATTEMPTS: usize = 16;
/// Chunks of one trim that are changed at the same time.
const TRIM_PARALLEL: usize = 16;
/// Most chunks per trim call.
const MAX_TRIM: u32 = 4096;

/// The service behind the data port.
pub struct Data {
    node: Arc<Node>,
}

impl Data {
    /// Serves `node`.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

impl Service for Data {
    async fn handle(&self, request: Incoming) -> Result<Outgoing> {
        let body = request.body.clone();
        match request.opcode {
            Opcode::Read => self.read(decode(body)?, request.deadline).await,
            Opcode::Write => self.write(decode(body)?, &request).await,
            Opcode::Forward => self.forward(decode(body)?, &request).await,
            Opcode::QueryVersion => self.query_version(decode(body)?).await,
            Opcode::LastChunk => self.last_chunk(decode(body)?).await,
            Opcode::Trim => self.trim(decode(body)?).await,
            Opcode::InodeChunks => self.inode_chunks(decode(body)?).await,
            Opcode::SyncList => self.sync_list(decode(body)?).await,
            Opcode::SyncDone => self.sync_done(decode(body)?).await,
            Opcode::Fetch => self.fetch(decode(body)?, request.deadline).await,
            Opcode::Hello => Err(Error::new(ErrorCode::Protocol, "HELLO twice")),
            Opcode::Metadata => {
                let what = "a storage server does not answer for names; check the address of the metadata server";
                Err(Error::new(ErrorCode::Unsupported, what))
            }
        }
    }
}

impl Data {
    /// The target that is asked, which has adopted the caller's chain version if it can.
    async fn chain(
        &self,
        chain: Option<&pb::ChainRef>,
        wanted: Wanted,
    ) -> Result<(Arc<TargetHost>, ChainVersion)> {
        let (chain, version) = self.reached(chain).await?;
        Ok((self.node.host_of_chain(chain, wanted)?, version))
    }

    /// As [`Self::chain`], of requests that name their target.
    async fn target(
        &self,
        chain: Option<&pb::ChainRef>,
        target: u64,
    ) -> Result<(Arc<TargetHost>, ChainVersion)> {
        let (_, version) = self.reached(chain).await?;
        Ok((self.node.host(TargetId(target))?, version))
    }

    /// As [`Self::chain`] without a wait: of one of many, which have waited together.
    fn host(&self, chain: Option<&pb::ChainRef>) -> Result<(Arc<TargetHost>, ChainVersion)> {
        let chain = required(chain, "chain")?;
        let host = self.node.host_of_chain(ChainId(chain.chain), Wanted::Any)?;
        Ok((host, ChainVersion(chain.version)))
    }

    async fn reached(&self, chain: Option<&pb::ChainRef>) -> Result<(ChainId, ChainVersion)> {
        let chain = required(chain, "chain")?;
        let (chain, version) = (ChainId(chain.chain), ChainVersion(chain.version));
        self.node.reached(chain, version).await;
        Ok((chain, version))
    }

    async fn read(&self, request: pb::ReadRequest, deadline: Instant) -> Result<Outgoing> {
        let _active = self.node.pacer.foreground();
        let total: u64 = request.items.iter().map(|item| u64::from(item.len)).sum();
        if request.items.len() > MAX_READ_ITEMS || total > u64::from(MAX_PAYLOAD) {
            let what = format!(
                "{} ranges of {total} bytes in one read; at most {MAX_READ_ITEMS} of {MAX_PAYLOAD} bytes",
                request.items.len()
            );
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        }
        // Before any budget is taken, and for all items at the same time.
        let chains = request.items.iter().filter_map(|item| item.chain.as_ref());
        let chains: BTreeSet<_> = chains.map(|c| (c.chain, c.version)).collect();
        let reached = chains
            .into_iter()
            .map(|(chain, version)| self.node.reached(ChainId(chain), ChainVersion(version)));
        let _ = tokio::time::timeout_at(deadline.into(), join_all(reached)).await;
        // Neither: a repair may wait for another server's.
        for item in request.items.iter().filter(|item| item.suspect) {
            self.repair_suspect(item).await?;
        }
        let permit = self.budget(total, deadline).await?;
        let results: Vec<_> =
            stream::iter(request.items.into_iter().map(|item| self.read_item(item)))
                .buffered(READ_PARALLEL)
                .collect()
                .await;
        let mut reply = pb::ReadReply {
            results: Vec::with_capacity(results.len()),
        };
        let mut payload = Vec::with_capacity(results.len());
        for result in results {
            let (message, data) = read_result(result);
            self.node.count_read(data.len() as u64);
            reply.results.push(message);
            if !data.is_empty() {
                payload.push(data);
            }
        }
        // The budget is returned when the last byte has been sent.
        if let Some(last) = payload.pop() {
            payload.push(Bytes::from_owner(Charged {
                data: last,
                _permit: permit,
            }));
        }
        Ok(Outgoing {
            payload,
            ..Outgoing::new(&reply)
        })
    }

    /// The right to hold so many bytes of read data.
    async fn budget(&self, bytes: u64, deadline: Instant) -> Result<OwnedSemaphorePermit> {
        let units = (bytes as usize).div_ceil(BUDGET_UNIT).max(1);
        let units = units.min(self.node.config.read_bytes / BUDGET_UNIT) as u32;
        let budget = self.node.read_budget.clone().acquire_many_owned(units);
        tokio::time::timeout_at(deadline.into(), budget)
            .await
            .map_err(|_| Error::new(ErrorCode::Busy, "read queue full").retry_after_ms(10))?
            .map_err(|_| Error::new(ErrorCode::Unavailable, "this storage server is stopping"))
    }

    /// A client was sent bytes that do not match their checksum.
    async fn repair_suspect(&self, item: &pb::ReadItem) -> Result<()> {
        let (host, _) = self.host(item.chain.as_ref())?;
        let key = ChunkKey::new(item.inode, item.index);
        let committed = ReadVersion::Committed;
        self.node
            .repair(&host, key, committed, Cause::Read)
            .await
            .map(|_| ())
    }

    /// Bytes for another target's repair, which verifies them. Of any state: what they are worth
    /// their checksums tell.
    async fn fetch(&self, request: pb::FetchRequest, deadline: Instant) -> Result<Outgoing> {
        let host = self.node.host(TargetId(request.target))?;
        let key = ChunkKey::new(request.inode, request.index);
        let end = request.offset.checked_add(request.len);
        if end.is_none_or(|end| end > MAX_CHUNK_SIZE) {
            let what = format!("a range of chunk {key} that is out of bounds");
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        }
        let permit = self.budget(request.len.into(), deadline).await?;
        let version = ReadVersion::Exactly(ChunkVersion(request.version));
        let read = host
            .engine()
            .read(host.id(), key, version, request.offset, request.len)
            .await?;
        let len = read.data.len() as u32;
        let data = Bytes::from_owner(Charged {
            data: read.data,
            _permit: permit,
        });
        Ok(Outgoing {
            payload: vec![data],
            ..Outgoing::new(&pb::FetchReply { len })
        })
    }

    async fn read_item(&self, item: pb::ReadItem) -> Result<ReadData> {
        let (host, version) = self.host(item.chain.as_ref())?;
        let key = ChunkKey::new(item.inode, item.index);
        if item
            .offset
            .checked_add(item.len)
            .is_none_or(|end| end > MAX_CHUNK_SIZE)
        {
            let what = format!(
                "range {}+{} of chunk {key} is out of bounds",
                item.offset, item.len
            );
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        }
        let range = item.offset..item.offset + item.len;
        let verify = if item.transfer {
            Verify::Transfer
        } else {
            Verify::Page
        };
        for _ in 0..READ_ATTEMPTS {
            let wanted = match host.read_plan(key, version)? {
                ReadPlan::Committed => ReadVersion::Committed,
                ReadPlan::Newest => ReadVersion::Pending,
                ReadPlan::AskTail(tail) => match self.ask_tail(&host, tail, key, version).await? {
                    ChunkVersion(0) => ReadVersion::Committed,
                    committed => ReadVersion::Exactly(committed),
                },
            };
            match host
                .engine()
                .read_range(host.id(), key, wanted, range.clone(), verify)
                .await
            {
                // The chunk moved on meanwhile: ask again.
                Err(error) if error.code == ErrorCode::StaleChunkVersion => {}
                result => {
                    if let Err(error) = &result
                        && is_damage(&host, error)
                    {
                        self.node.repair_later(&host, key);
                    }
                    // A process that slept between the check and the read must not answer.
                    host.check_serving(version)?;
                    return result;
                }
            }
        }
        let what = format!("chunk {key} changes too fast to be read");
        Err(Error::new(ErrorCode::Busy, what).retry_after_ms(2))
    }

    async fn ask_tail(
        &self,
        host: &TargetHost,
        tail: TargetId,
        key: ChunkKey,
        version: ChainVersion,
    ) -> Result<ChunkVersion> {
        let map = self.node.map();
        let target = map.targets.get(&tail);
        let addr = target.and_then(|t| Some((t.chain, &map.node_of(t)?.data_addr)));
        let Some((chain, addr)) = addr else {
            let what = format!(
                "tail {tail} is not in the map that target {} has",
                host.id()
            );
            return Err(Error::new(ErrorCode::StaleChainVersion, what));
        };
        let body = pb::VersionQuery {
            chain: Some(pb::ChainRef::of(chain, version)),
            inode: key.inode.0,
            index: key.index.0,
        };
        let deadline = Instant::now() + std::time::Duration::from_secs(2);
        let call = Call::new(Opcode::QueryVersion, &body, deadline);
        let peer = self.node.peers.peer(addr);
        let reply = tokio::select! {
            reply = peer.call(call) => reply?,
            // A silent tail is known as dead now: the reader must not wait for it any longer.
            () = self.node.moved_on(chain, version) => {
                let what = format!("the chain moved on while tail {tail} was asked");
                return Err(Error::new(ErrorCode::StaleChainVersion, what));
            }
        };
        let reply: pb::VersionReply = reply.decode()?;
        Ok(ChunkVersion(reply.committed))
    }

    async fn query_version(&self, request: pb::VersionQuery) -> Result<Outgoing> {
        let (host, version) = self.chain(request.chain.as_ref(), Wanted::Tail).await?;
        let key = ChunkKey::new(request.inode, request.index);
        let plan = host.tail_plan(key, version)?;
        let meta = host.engine().meta(host.id(), key).await?;
        host.check_serving(version)?;
        let committed = plan.committed(meta.as_ref()).0;
        Ok(Outgoing::new(&pb::VersionReply { committed }))
    }

    async fn write(&self, message: pb::WriteRequest, request: &Incoming) -> Result<Outgoing> {
        let (host, chain_version) = self.chain(message.chain.as_ref(), Wanted::Any).await?;
        let update = update(&message, request.payload.clone(), false)?;
        if update.tag.is_none() {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                "a client's write needs a tag",
            ));
        }
        let _active = self.node.pacer.foreground();
        let bytes = request.payload.len() as u64;
        let event = |request| Event::Write {
            request,
            chain_version,
            update,
            trim: None,
        };
        let outcome = host.request(event).await?;
        self.node.count_write(bytes);
        let Outcome {
            version,
            len,
            checksum,
            ..
        } = outcome;
        Ok(Outgoing::new(&pb::WriteReply {
            version: version.0,
            len,
            checksum,
        }))
    }

    async fn forward(&self, message: pb::ForwardRequest, request: &Incoming) -> Result<Outgoing> {
        let write = required(message.write.as_ref(), "write")?;
        let _active = (!message.resync).then(|| self.node.pacer.foreground());
        let wanted = Wanted::SuccessorOf(TargetId(message.from_target));
        let (host, chain_version) = self.chain(write.chain.as_ref(), wanted).await?;
        let stage = message.stage();
        let sent = Sent {
            key: write.key(),
            sequence: message.sequence,
        };
        let outcome = match stage {
            pb::ForwardStage::Durable | pb::ForwardStage::Early => {
                let forward = Forward {
                    update: update(write, request.payload.clone(), message.replace)?,
                    version: ChunkVersion(message.version),
                    replace: message.replace,
                    resync: message.resync,
                    committed_chain: ChainVersion(message.committed_chain),
                    recent: marks(&message.recent)?,
                    early: stage == pb::ForwardStage::Early,
                    sequence: message.sequence,
                };
                let event = |request| Event::Forward {
                    request,
                    chain_version,
                    forward,
                };
                host.request(event).await?
            }
            pb::ForwardStage::Confirm => {
                let event = |request| Event::Confirm {
                    request,
                    chain_version,
                    sent,
                };
                host.request(event).await?
            }
            pb::ForwardStage::Withdraw => {
                let event = |request| Event::Withdraw {
                    request,
                    chain_version,
                    sent,
                };
                host.request(event).await?
            }
        };
        Ok(Outgoing::new(&pb::ForwardReply {
            version: outcome.version.0,
            len: outcome.len,
            checksum: outcome.checksum,
            committed_chain: outcome.chain.0,
        }))
    }

    async fn last_chunk(&self, request: pb::LastChunkRequest) -> Result<Outgoing> {
        let (host, version) = self.chain(request.chain.as_ref(), Wanted::Any).await?;
        host.check_serving(version)?;
        let last = host
            .engine()
            .last_chunk(host.id(), InodeId(request.inode))
            .await?;
        host.check_serving(version)?;
        let reply = last.map_or(pb::LastChunkReply::default(), |(index, len)| {
            pb::LastChunkReply {
                found: true,
                index: index.0,
                len,
            }
        });
        Ok(Outgoing::new(&reply))
    }

    async fn trim(&self, request: pb::TrimRequest) -> Result<Outgoing> {
        let (host, chain_version) = self.chain(request.chain.as_ref(), Wanted::Any).await?;
        host.check_serving(chain_version)?;
        let tag = WriteTag::try_from(required(request.tag.as_ref(), "tag")?)?;
        let limit = request.limit.clamp(1, MAX_TRIM) as usize;
        let inode = InodeId(request.inode);
        // Chunks from `from_index` on; those already as short as asked cost only the listing.
        let mut after = request
            .from_index
            .checked_sub(1)
            .map(|index| ChunkKey::new(inode, index));
        let mut trimmed = 0;
        let more = loop {
            let left = limit - trimmed;
            if left == 0 {
                break true;
            }
            let page = host
                .engine()
                .list_inode(host.id(), inode, after, left)
                .await?;
            let Some(&(last, _)) = page.last() else {
                break false;
            };
            after = Some(last);
            let work = page.into_iter().filter_map(|(key, meta)| {
                let keep = if key.index.0 == request.from_index {
                    request.from_len
                } else {
                    0
                };
                let kind = match request.remove {
                    true => UpdateKind::Remove,
                    false if meta.max_len() > keep => UpdateKind::Truncate {
                        len: keep,
                        within: u32::MAX,
                    },
                    false => return None,
                };
                let (chunk_size, page_size) = (meta.chunk_size, meta.page_size);
                Some(Update {
                    key,
                    tag: Some(tag),
                    kind,
                    chunk_size,
                    page_size,
                })
            });
            let results: Vec<_> = stream::iter(work.map(|update| {
                let event = |request| Event::Write {
                    request,
                    chain_version,
                    update,
                    trim: Some(tag),
                };
                host.request(event)
            }))
            .buffer_unordered(TRIM_PARALLEL)
            .collect()
            .await;
            for result in results {
                result?;
                trimmed += 1;
            }
        };
        host.drive(Event::TrimDone { tag });
        Ok(Outgoing::new(&pb::TrimReply {
            trimmed: trimmed as u32,
            more,
        }))
    }

    async fn sync_list(&self, request: pb::SyncListRequest) -> Result<Outgoing> {
        let (host, version) = self.target(request.chain.as_ref(), request.target).await?;
        let current = host.view().map_or(ChainVersion(0), |view| view.version);
        if current != version {
            let what = format!("target {} is at chain version {current}", host.id());
            return Err(Error::new(ErrorCode::StaleChainVersion, what).newer_version(current.0));
        }
        if !host.is_settled() {
            let what = format!(
                "target {} still finishes writes of an earlier membership",
                host.id()
            );
            return Err(Error::new(ErrorCode::Busy, what).retry_after_ms(5));
        }
        let after = if request.after.is_empty() {
            None
        } else {
            Some(chunk_key(&request.after)?)
        };
        let (chunks, end) = admin::list_page(&host, after, request.limit).await?;
        Ok(Outgoing::new(&pb::SyncListReply { chunks, end }))
    }

    async fn sync_done(&self, request: pb::SyncDoneRequest) -> Result<Outgoing> {
        let (host, chain_version) = self.target(request.chain.as_ref(), request.target).await?;
        host.request(|request| Event::SyncDone {
            request,
            chain_version,
        })
        .await?;
        Ok(Outgoing::new(&pb::SyncDoneReply {}))
    }
}

/// Read data that is charged to the read budget until it has been sent.
struct Charged {
    data: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}
