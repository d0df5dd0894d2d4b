//! Reading ranges of chunks: any SERVING replica will do, and another one when the first will not.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use emberfs_proto::checksum::verify_fragments;
use emberfs_proto::cluster::ClusterMap;
use emberfs_proto::ids::{ChainId, ChunkKey, TargetId};
use emberfs_proto::wire::{Call, Channel as _, Landed, Landing, Opcode};
use emberfs_proto::{Error, ErrorCode, Result, pb};
use tokio::sync::SemaphorePermit;

use crate::Verify;
use crate::chunk_io::{ChunkIo, Replica};
use crate::plan::{READ_ATTEMPT, Role, elsewhere};
use crate::stats::add;

/// Longest wait for a replica that repairs its copy.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(20);
/// Replicas that are told of their damage at the same time; the scrub finds what is not told.
pub(crate) const SUSPICIONS: usize = 16;

/// A range of one chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkRange {
    pub(crate) key: ChunkKey,
    pub(crate) chain: ChainId,
    pub(crate) offset: u32,
    pub(crate) len: u32,
    /// Of the file's layout.
    pub(crate) page_size: u32,
}

impl ChunkRange {
    fn item(&self, replica: &Replica, verify: Verify) -> pb::ReadItem {
        pb::ReadItem {
            chain: Some(pb::ChainRef::of(self.chain, replica.version)),
            inode: self.key.inode.0,
            index: self.key.index.0,
            offset: self.offset,
            len: self.len,
            suspect: false,
            transfer: verify == Verify::Transfer,
        }
    }

    /// For another attempt than the first.
    fn room(&self, pooled: bool) -> Landing {
        if pooled {
            Landing::Aligned
        } else {
            Landing::Buffer(BytesMut::with_capacity(self.len as usize))
        }
    }

    /// Asks a replica that sent damaged bytes to verify and repair its copy; no data comes back.
    fn suspicion(&self, replica: &Replica) -> Call {
        let item = pb::ReadItem {
            len: 0,
            suspect: true,
            ..self.item(replica, Verify::Page)
        };
        let body = pb::ReadRequest { items: vec![item] };
        let mut call = Call::new(Opcode::Read, &body, Instant::now() + REPAIR_TIMEOUT);
        call.landing = Landing::Aligned;
        call
    }

    /// Checks one result against the bytes that came with it.
    fn check(&self, result: &pb::ReadResult, data: &[u8], from: &Replica) -> Result<()> {
        let page_size = if result.page_size == 0 {
            self.page_size
        } else {
            result.page_size
        };
        if !page_size.is_power_of_two() || result.len > self.len {
            let what = format!(
                "reading chunk {}: {} sent a malformed result",
                self.key, from.addr
            );
            return Err(Error::new(ErrorCode::Protocol, what));
        }
        verify_fragments(self.offset, data, page_size, &result.checksums).map_err(|bad| {
            let what = format!(
                "chunk {} bytes {}..{} from target {} at {} do not match their checksum",
                self.key, bad.start, bad.end, from.target, from.addr
            );
            Error::new(ErrorCode::ChecksumMismatch, what)
        })
    }
}

/// The error in a result; `None` when there is data, or a hole.
fn error_of(result: &pb::ReadResult) -> Option<Error> {
    let code = match result.status {
        0 => return None,
        status => ErrorCode::from_number(status),
    };
    if code == ErrorCode::ChunkNotFound {
        return None;
    }
    let body = result.error.clone().unwrap_or_default();
    let error = Error::new(code, body.message);
    Some(
        error
            .retry_after_ms(body.retry_after_ms)
            .newer_version(body.newer_version),
    )
}

/// The replicas that a read has asked since its last pause.
#[derive(Default)]
struct Asked {
    tried: Vec<TargetId>,
    damaged: Vec<Replica>,
}

impl Asked {
    fn failed(&mut self, replica: &Replica, error: Error) -> Error {
        if error.code == ErrorCode::ChecksumMismatch {
            self.damaged.push(replica.clone());
        }
        error
    }
}

impl ChunkIo {
    /// Reads a range into the spare capacity of `buf`, which must be empty. Fewer bytes than asked:
    /// the chunk ends there (none: a hole).
    pub(crate) async fn read(&self, want: ChunkRange, buf: BytesMut) -> Result<BytesMut> {
        Ok(match self.read_to(want, Landing::Buffer(buf)).await? {
            Landed::Buffer(data) => data,
            Landed::Aligned(data) => data.into(),
            Landed::None => BytesMut::new(),
        })
    }

    /// As [`Self::read`], into a buffer of the pool.
    pub(crate) async fn read_pooled(&self, want: ChunkRange) -> Result<Bytes> {
        Ok(match self.read_to(want, Landing::Aligned).await? {
            Landed::Buffer(data) => data.freeze(),
            Landed::Aligned(data) => data,
            Landed::None => Bytes::new(),
        })
    }

    async fn read_to(&self, want: ChunkRange, to: Landing) -> Result<Landed> {
        let _slot = self.reads.acquire().await;
        let pooled = matches!(to, Landing::Aligned);
        let mut first = Some(to);
        let mut asked = Asked::default();
        let mut repair_asked = false;
        let mut patience = self.patience();
        loop {
            let map = self.map.current();
            let error = match self.reader(&map, want.chain, &asked.tried) {
                Ok(Some(replica)) => {
                    // A failed attempt keeps the buffer it was given; the next needs another.
                    let to = first.take().unwrap_or_else(|| want.room(pooled));
                    let deadline = patience.attempt(READ_ATTEMPT);
                    let done = self.attempt(&map, &replica, &want, to, deadline, &mut asked);
                    match done.await {
                        Ok(data) => {
                            add(&self.counters.chunk_reads, 1);
                            add(&self.counters.read_bytes, data.len() as u64);
                            return Ok(data);
                        }
                        Err(error) => error,
                    }
                }
                Ok(None) => Error::new(ErrorCode::Unreachable, "every replica failed"),
                Err(error) => error,
            };
            add(&self.counters.read_retries, 1);
            tracing::debug!(chunk = %want.key, %error, "chunk read failed");
            if error.code == ErrorCode::ChecksumMismatch {
                tracing::warn!(%error, "damaged replica");
            }
            if elsewhere(&error)
                && matches!(self.reader(&map, want.chain, &asked.tried), Ok(Some(_)))
            {
                continue;
            }
            if !asked.damaged.is_empty() && asked.damaged.len() == asked.tried.len() {
                // Each may hold what the other lacks. If not, time will not bring the bytes back.
                if repair_asked {
                    let what = format!(
                        "chunk {} is damaged on every replica; run `emberfs fsck`",
                        want.key
                    );
                    return Err(error.context(what));
                }
                repair_asked = true;
                for replica in asked.damaged.drain(..) {
                    if let Err(error) = self
                        .call(&replica, Role::Reader, want.suspicion(&replica))
                        .await
                    {
                        tracing::warn!(chunk = %want.key, %error, "a damaged replica is not repaired");
                    }
                }
            }
            asked = Asked::default();
            let what = || format!("reading chunk {} of chain {}", want.key, want.chain);
            let wake = self.wake(error.retry(), map.version);
            patience.wait(error, what, wake).await?;
        }
    }

    /// Asks one replica, and another one at the same time if the first is slow: the first good answer
    /// counts. The call of the other is dropped, and with it the memory that it would have filled.
    async fn attempt(
        &self,
        map: &ClusterMap,
        first: &Replica,
        want: &ChunkRange,
        to: Landing,
        deadline: Instant,
        asked: &mut Asked,
    ) -> Result<Landed> {
        let pooled = matches!(to, Landing::Aligned);
        asked.tried.push(first.target);
        let begun = Instant::now();
        let wait = self.hedge.begin(want.len);
        let mut answer = pin!(self.read_from(first, want, to, deadline));
        let slow = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        let early = tokio::select! {
            biased;
            early = &mut answer => Some(early),
            () = slow => None,
        };
        let second = match early {
            Some(_) => None,
            None => self.second(map, want, &asked.tried),
        };
        let Some((second, _slot)) = second else {
            let answer = match early {
                Some(answer) => answer,
                None => answer.await,
            };
            if answer.is_ok() {
                self.hedge.record(want.len, begun.elapsed());
            }
            return answer.map_err(|error| asked.failed(first, error));
        };
        asked.tried.push(second.target);
        add(&self.counters.hedges, 1);
        tracing::debug!(chunk = %want.key, slow = %first.addr, also = %second.addr, "hedged read");
        let mut other = pin!(self.read_from(&second, want, want.room(pooled), deadline));
        let (winner, done) = tokio::select! {
            biased;
            done = &mut answer => (first, done),
            done = &mut other => (&second, done),
        };
        let (winner, done) = match done {
            Ok(data) => (winner, Ok(data)),
            Err(error) => {
                let error = asked.failed(winner, error);
                tracing::debug!(chunk = %want.key, %error, "one of two reads failed");
                if winner.target == first.target {
                    (&second, other.await)
                } else {
                    (first, answer.await)
                }
            }
        };
        if done.is_ok() {
            // If the other one won, this is the least that the first would have taken.
            self.hedge.record(want.len, begun.elapsed());
            add(
                &self.counters.hedge_wins,
                u64::from(winner.target == second.target),
            );
        }
        done.map_err(|error| asked.failed(winner, error))
    }

    /// Another replica to ask, if there is one, and room for one more request here and in the budget.
    fn second(
        &self,
        map: &ClusterMap,
        want: &ChunkRange,
        tried: &[TargetId],
    ) -> Option<(Replica, SemaphorePermit<'_>)> {
        let replica = self.reader(map, want.chain, tried).ok().flatten()?;
        let slot = self.reads.try_acquire().ok()?;
        self.hedge.take().then_some((replica, slot))
    }

    async fn read_from(
        &self,
        replica: &Replica,
        want: &ChunkRange,
        to: Landing,
        deadline: Instant,
    ) -> Result<Landed> {
        let body = pb::ReadRequest {
            items: vec![want.item(replica, self.verify)],
        };
        let mut call = Call::new(Opcode::Read, &body, deadline);
        call.landing = to;
        let reply = match self.call_read(replica, call, want.len.into()).await {
            Err(error) if error.code == ErrorCode::ChunkNotFound => return Ok(Landed::None),
            reply => reply?,
        };
        let decoded: pb::ReadReply = reply.decode()?;
        let data = reply.payload;
        let [result] = decoded.results.as_slice() else {
            return Err(Error::new(
                ErrorCode::Protocol,
                "a read reply with the wrong number of results",
            ));
        };
        if let Some(error) = error_of(result) {
            return Err(error);
        }
        if result.status == 0 && result.len as usize != data.len() {
            return Err(Error::new(
                ErrorCode::Protocol,
                "a read reply whose length does not match",
            ));
        }
        self.check(want, result, &data, replica)?;
        Ok(data)
    }

    /// One request for many ranges, to one replica's node. Each result stands for itself; one that
    /// failed is to be read again on its own.
    pub(crate) async fn read_batch(
        &self,
        wants: &[(ChunkRange, Arc<Replica>)],
    ) -> Result<Vec<Result<Bytes>>> {
        let Some((_, to)) = wants.first() else {
            return Ok(Vec::new());
        };
        let _slot = self.reads.acquire().await;
        let items = wants
            .iter()
            .map(|(want, replica)| want.item(replica, self.verify))
            .collect();
        let deadline = self.patience().attempt(READ_ATTEMPT);
        let mut call = Call::new(Opcode::Read, &pb::ReadRequest { items }, deadline);
        call.landing = Landing::Aligned;
        let bytes = wants.iter().map(|(want, _)| u64::from(want.len)).sum();
        let reply = self.call_read(to, call, bytes).await?;
        let decoded: pb::ReadReply = reply.decode()?;
        let Landed::Aligned(mut payload) = reply.payload else {
            return Err(Error::new(
                ErrorCode::Protocol,
                "a read reply landed elsewhere",
            ));
        };
        let total: u64 = decoded.results.iter().map(|r| u64::from(r.len)).sum();
        if decoded.results.len() != wants.len() || total != payload.len() as u64 {
            return Err(Error::new(
                ErrorCode::Protocol,
                "a read reply whose results do not match",
            ));
        }
        let results = decoded
            .results
            .iter()
            .zip(wants)
            .map(|(result, (want, replica))| {
                let data = payload.split_to(result.len as usize);
                if let Some(error) = error_of(result) {
                    return Err(error);
                }
                self.check(want, result, &data, replica)?;
                add(&self.counters.chunk_reads, 1);
                add(&self.counters.read_bytes, data.len() as u64);
                Ok(data)
            });
        Ok(results.collect())
    }

    /// Checks a result. A replica that sent damaged bytes, which only this client knows, is told, behind
    /// the back of the read.
    fn check(
        &self,
        want: &ChunkRange,
        result: &pb::ReadResult,
        data: &[u8],
        replica: &Replica,
    ) -> Result<()> {
        let checked = want.check(result, data, replica);
        if matches!(&checked, Err(e) if e.code == ErrorCode::ChecksumMismatch) {
            add(&self.counters.checksum_failures, 1);
            if let Ok(place) = Arc::clone(&self.suspicions).try_acquire_owned() {
                let (peer, call) = (self.peer(replica), want.suspicion(replica));
                tokio::spawn(async move {
                    let _place = place;
                    if let Err(error) = peer.call(call).await {
                        tracing::debug!(%error, "a damaged replica was not told");
                    }
                });
            }
        }
        checked
    }
}
