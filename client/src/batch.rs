//! A request for many ranges whose node is slow: other replicas are asked as well (see [`crate::hedge`]).

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use emberfs_proto::ids::NodeId;
use emberfs_proto::{Error, ErrorCode, Result};
use futures::future::join_all;

use crate::chunk_io::{ChunkIo, Replica};
use crate::chunk_read::ChunkRange;
use crate::stats::add;

type Wants = [(ChunkRange, Arc<Replica>)];
type Results = Vec<Result<Bytes>>;

/// As [`ChunkIo::read_batch`], hedged.
pub(crate) async fn read(io: &ChunkIo, wants: &Wants) -> Result<Results> {
    let bytes = wants.iter().map(|(want, _)| want.len).sum();
    let begun = Instant::now();
    let wait = io.batch_hedge.begin(bytes);
    let mut answer = pin!(io.read_batch(wants));
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
    let hedged = early.is_none() && io.batch_hedge.take();
    if !hedged {
        let answer = match early {
            Some(answer) => answer,
            None => answer.await,
        };
        if answer.is_ok() {
            io.batch_hedge.record(bytes, begun.elapsed());
        }
        return answer;
    }
    add(&io.counters.hedges, 1);
    let mut others = pin!(elsewhere(io, wants));
    let results = tokio::select! {
        biased;
        results = &mut answer => match results {
            Ok(results) => results,
            Err(_) => others.await,
        },
        results = &mut others => {
            if results.iter().all(Result::is_ok) {
                add(&io.counters.hedge_wins, 1);
                results
            } else {
                // Whatever either of them brought.
                let first = answer.await.unwrap_or_default().into_iter().map(Some);
                let first = first.chain(std::iter::repeat_with(|| None));
                let both = results.into_iter().zip(first);
                both.map(|(other, first)| other.or_else(|error| first.unwrap_or(Err(error))))
                    .collect()
            }
        }
    };
    io.batch_hedge.record(bytes, begun.elapsed());
    Ok(results)
}

/// What one node is asked for.
#[derive(Default)]
struct Share {
    indices: Vec<usize>,
    wants: Vec<(ChunkRange, Arc<Replica>)>,
}

/// The same ranges from other replicas, in the same order.
async fn elsewhere(io: &ChunkIo, wants: &Wants) -> Results {
    let map = io.map.current();
    let none = || Err(Error::new(ErrorCode::Unreachable, "no other replica"));
    let mut results: Results = wants.iter().map(|_| none()).collect();
    let mut nodes: HashMap<NodeId, Share> = HashMap::new();
    for (index, (want, slow)) in wants.iter().enumerate() {
        if let Ok(Some(replica)) = io.reader(&map, want.chain, &[slow.target]) {
            let share = nodes.entry(replica.node).or_default();
            share.indices.push(index);
            share.wants.push((*want, Arc::new(replica)));
        }
    }
    let reads = nodes.into_values().map(|share| async move {
        let read = io.read_batch(&share.wants).await;
        (share.indices, read)
    });
    for (indices, read) in join_all(reads).await {
        for (index, result) in indices.into_iter().zip(read.unwrap_or_default()) {
            results[index] = result;
        }
    }
    results
}
