//! Storage nodes that share one map of chunks and can be told to misbehave.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use emberfs_proto::checksum::{fragment_checksums, verify_fragments};
use emberfs_proto::ids::{ChainId, ChunkKey, NodeId, WriteTag};
use emberfs_proto::wire::server::{Host, Incoming, Limits, Outgoing, Service, serve};
use emberfs_proto::wire::{Opcode, decode, encode};
use emberfs_proto::{Error, ErrorCode, Result, pb};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use super::{CLUSTER, Shared};

/// What a node does with its next request instead of answering it well.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Refuses.
    Error(ErrorCode),
    /// Does what is asked, and answers with an error.
    Lost(ErrorCode),
    /// Sends damaged bytes.
    Corrupt,
    /// Answers late.
    Slow(Duration),
}

/// One write as a node saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeenWrite {
    pub(crate) node: u32,
    pub(crate) tag: WriteTag,
    pub(crate) key: ChunkKey,
    pub(crate) offset: u32,
    pub(crate) len: u32,
    pub(crate) size_hint: u32,
    /// False: answered from memory, as a repetition.
    pub(crate) applied: bool,
}

/// One read frame as a node saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeenRead {
    pub(crate) node: u32,
    pub(crate) items: Vec<(ChunkKey, u32, u32)>,
    /// How many of them ask for [`crate::Verify::Transfer`].
    pub(crate) transfers: usize,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) chunks: HashMap<ChunkKey, BytesMut>,
    pub(crate) writes: Vec<SeenWrite>,
    pub(crate) reads: Vec<SeenRead>,
    /// Cuts that were carried out: chunk and new length.
    pub(crate) cuts: Vec<(ChunkKey, u32)>,
    /// Requests for lists of chunks, refused ones not counted.
    pub(crate) lists: usize,
    /// Chunks in one such list; `None`: as many as asked for.
    pub(crate) list_page: Option<usize>,
    /// Reads of this chunk fail for good.
    pub(crate) broken: Option<ChunkKey>,
    /// The chains of every file, in stripe order.
    pub(crate) stripe: Vec<ChainId>,
    last: HashMap<(u128, u32), u64>,
    faults: HashMap<(u32, Opcode), VecDeque<Fault>>,
    pub(crate) writing: usize,
    pub(crate) most_writing: usize,
}

pub(crate) struct FakeStorage {
    pub(crate) state: Shared<State>,
    version: Arc<AtomicU64>,
    nodes: Mutex<Vec<(String, AbortHandle)>>,
}

struct NodeService {
    node: u32,
    state: Shared<State>,
    version: Arc<AtomicU64>,
}

impl FakeStorage {
    pub(crate) async fn start(nodes: u32) -> Self {
        let this = Self {
            state: Arc::default(),
            version: Arc::new(AtomicU64::new(1)),
            nodes: Mutex::default(),
        };
        for node in 1..=nodes {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let started = this.serve(node, listener);
            this.nodes.lock().push(started);
        }
        this
    }

    fn serve(&self, node: u32, listener: TcpListener) -> (String, AbortHandle) {
        let addr = listener.local_addr().unwrap().to_string();
        let service = NodeService {
            node,
            state: self.state.clone(),
            version: self.version.clone(),
        };
        let host = Host {
            cluster: CLUSTER,
            node: NodeId(node),
        };
        let (keep, stop) = tokio::sync::watch::channel(false);
        let task = tokio::spawn(async move {
            let grace = Duration::from_millis(100);
            serve(
                listener,
                host,
                Limits::default(),
                Arc::new(service),
                stop,
                grace,
            )
            .await;
            drop(keep);
        });
        (addr, task.abort_handle())
    }

    pub(crate) fn addr(&self, node: u32) -> String {
        self.nodes.lock()[node as usize - 1].0.clone()
    }

    /// Cuts all connections of a node and refuses new ones.
    pub(crate) fn kill(&self, node: u32) {
        self.nodes.lock()[node as usize - 1].1.abort();
    }

    /// Brings a killed node back at its address.
    pub(crate) async fn revive(&self, node: u32) {
        let addr = self.addr(node);
        let mut tries = 0;
        let listener = loop {
            match TcpListener::bind(&addr).await {
                Ok(listener) => break listener,
                Err(error) => {
                    tries += 1;
                    assert!(tries < 100, "{addr}: {error}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        };
        let started = self.serve(node, listener);
        self.nodes.lock()[node as usize - 1] = started;
    }

    /// From now on only the next chain version is accepted.
    pub(crate) fn next_version(&self) -> u64 {
        self.version.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(crate) fn fault(&self, node: u32, opcode: Opcode, fault: Fault, times: usize) {
        let mut state = self.state.lock();
        let faults = state.faults.entry((node, opcode)).or_default();
        faults.extend(std::iter::repeat_n(fault, times));
    }

    pub(crate) fn writes(&self) -> Vec<SeenWrite> {
        self.state.lock().writes.clone()
    }

    pub(crate) fn reads(&self) -> Vec<SeenRead> {
        self.state.lock().reads.clone()
    }

    /// Puts a chunk there without a write.
    pub(crate) fn plant(&self, inode: u64, index: u32, data: &Bytes) {
        self.state
            .lock()
            .chunks
            .insert(ChunkKey::new(inode, index), BytesMut::from(&data[..]));
    }

    /// All chunks of a file, one after the other, up to `len`.
    pub(crate) fn contents(&self, inode: u64, chunk_size: u32, len: usize) -> Vec<u8> {
        let state = self.state.lock();
        let mut out = vec![0; len];
        for (key, chunk) in state.chunks.iter().filter(|(key, _)| key.inode.0 == inode) {
            let at = (u64::from(key.index.0) * u64::from(chunk_size)) as usize;
            if at < len {
                let n = chunk.len().min(len - at);
                out[at..at + n].copy_from_slice(&chunk[..n]);
            }
        }
        out
    }
}

impl Service for NodeService {
    async fn handle(&self, request: Incoming) -> Result<Outgoing> {
        let fault = {
            let mut state = self.state.lock();
            state
                .faults
                .get_mut(&(self.node, request.opcode))
                .and_then(VecDeque::pop_front)
        };
        match &fault {
            Some(Fault::Error(code)) => return Err(Error::new(*code, "told to fail")),
            Some(Fault::Slow(time)) => tokio::time::sleep(*time).await,
            _ => {}
        }
        let done = match request.opcode {
            Opcode::Read => self.read(&request, matches!(fault, Some(Fault::Corrupt))),
            Opcode::Write => self.write(&request).await,
            Opcode::InodeChunks => self.inode_chunks(&request),
            _ => Err(Error::new(ErrorCode::Unsupported, "not faked")),
        };
        match fault {
            Some(Fault::Lost(code)) => Err(Error::new(code, "told to lose the answer")),
            _ => done,
        }
    }
}

impl State {
    fn cut(&mut self, key: ChunkKey, len: u32, within: u32) -> Result<Outgoing> {
        if let Some(chunk) = self.chunks.get_mut(&key)
            && chunk.len() > len as usize
        {
            if within > 0 && chunk.len() > within as usize {
                return Err(Error::new(ErrorCode::StaleChunkVersion, "it has grown"));
            }
            chunk.truncate(len as usize);
            self.cuts.push((key, len));
        }
        Ok(Outgoing::new(&pb::WriteReply::default()))
    }
}

impl NodeService {
    fn inode_chunks(&self, request: &Incoming) -> Result<Outgoing> {
        let body: pb::InodeChunksRequest = decode(request.body.clone())?;
        self.current(body.chain.as_ref())?;
        let chain = ChainId(body.chain.unwrap().chain);
        let mut state = self.state.lock();
        state.lists += 1;
        let here = |index: u32| state.stripe[index as usize % state.stripe.len()] == chain;
        let chunks = state.chunks.iter().filter(|(key, chunk)| {
            let asked = (body.first..=body.last).contains(&key.index.0);
            key.inode.0 == body.inode && asked && here(key.index.0) && !chunk.is_empty()
        });
        let chunks = chunks.map(|(key, chunk)| pb::InodeChunk {
            index: key.index.0,
            len: chunk.len() as u32,
        });
        let mut chunks: Vec<_> = chunks.collect();
        chunks.sort_by_key(|chunk| chunk.index);
        let limit = state.list_page.unwrap_or(4096).min(body.limit as usize);
        let next = chunks.get(limit).map(|chunk| chunk.index);
        chunks.truncate(limit);
        Ok(Outgoing::new(&pb::InodeChunksReply {
            chunks,
            more: next.is_some(),
            next: next.unwrap_or(0),
        }))
    }

    fn current(&self, chain: Option<&pb::ChainRef>) -> Result<()> {
        let current = self.version.load(Ordering::SeqCst);
        if chain.unwrap().version == current {
            return Ok(());
        }
        Err(Error::new(ErrorCode::StaleChainVersion, "stale").newer_version(current))
    }

    fn read(&self, request: &Incoming, corrupt: bool) -> Result<Outgoing> {
        let body: pb::ReadRequest = decode(request.body.clone())?;
        let mut state = self.state.lock();
        let mut results = Vec::new();
        let mut payload = BytesMut::new();
        let mut seen = SeenRead {
            node: self.node,
            items: Vec::new(),
            transfers: 0,
        };
        for item in &body.items {
            let key = ChunkKey::new(item.inode, item.index);
            seen.items.push((key, item.offset, item.len));
            seen.transfers += usize::from(item.transfer);
            let mut result = pb::ReadResult {
                page_size: 4096,
                ..pb::ReadResult::default()
            };
            match (self.current(item.chain.as_ref()), state.chunks.get(&key)) {
                (Err(error), _) => {
                    result.status = error.code as u32;
                    let newer_version = error.newer_version;
                    result.error = Some(pb::ErrorBody {
                        newer_version,
                        ..pb::ErrorBody::default()
                    });
                }
                (Ok(()), _) if state.broken == Some(key) => {
                    result.status = ErrorCode::NoSpace as u32;
                }
                (Ok(()), None) => result.status = ErrorCode::ChunkNotFound as u32,
                (Ok(()), Some(chunk)) => {
                    let start = chunk.len().min(item.offset as usize);
                    let end = chunk.len().min((item.offset + item.len) as usize);
                    let data = &chunk[start..end];
                    result.len = data.len() as u32;
                    result.checksums = fragment_checksums(item.offset, data, 4096);
                    payload.put_slice(data);
                }
            }
            results.push(result);
        }
        state.reads.push(seen);
        if corrupt && !payload.is_empty() {
            payload[0] ^= 1;
        }
        let body = encode(&pb::ReadReply { results });
        Ok(Outgoing {
            body,
            payload: vec![payload.freeze()],
        })
    }

    async fn write(&self, request: &Incoming) -> Result<Outgoing> {
        let body: pb::WriteRequest = decode(request.body.clone())?;
        let (tag, key, data) = (
            WriteTag::try_from(body.tag.as_ref().unwrap())?,
            body.key(),
            &request.payload,
        );
        {
            let mut state = self.state.lock();
            state.writing += 1;
            state.most_writing = state.most_writing.max(state.writing);
        }
        // Others get a chance to be in flight at the same time.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut state = self.state.lock();
        state.writing -= 1;
        let mut seen = SeenWrite {
            node: self.node,
            tag,
            key,
            offset: body.offset,
            len: body.len,
            size_hint: body.size_hint,
            applied: false,
        };
        if let Err(error) = self.current(body.chain.as_ref()) {
            state.writes.push(seen);
            return Err(error);
        }
        let cuts = body.kind() == pb::WriteKind::Truncate;
        assert!(cuts || body.len as usize == data.len());
        verify_fragments(body.offset, data, body.page_size, &body.checksums)
            .map_err(|_| Error::new(ErrorCode::ChecksumMismatch, "damaged on the way"))?;
        let last = state.last.entry((tag.client.0, tag.channel)).or_default();
        if tag.sequence < *last {
            return Err(Error::new(ErrorCode::StaleSequence, "an old write"));
        }
        seen.applied = tag.sequence > *last;
        *last = tag.sequence;
        if cuts {
            if seen.applied {
                let within = body.within;
                return state.cut(key, body.len, within);
            }
            return Ok(Outgoing::new(&pb::WriteReply::default()));
        }
        if seen.applied {
            let chunk = state.chunks.entry(key).or_default();
            let end = body.offset as usize + data.len();
            if chunk.len() < end {
                chunk.resize(end, 0);
            }
            chunk[body.offset as usize..end].copy_from_slice(data);
        }
        let len = state.chunks.get(&key).map_or(0, |chunk| chunk.len() as u32);
        state.writes.push(seen);
        Ok(Outgoing::new(&pb::WriteReply {
            version: 1,
            len,
            checksum: 0,
        }))
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} chunks", self.chunks.len())
    }
}
