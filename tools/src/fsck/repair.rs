//! `emberfs fsck --repair`: carries remedies out, each by the way that the cluster itself would take.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use emberfs_proto::cluster::{ClusterMap, PublicState};
use emberfs_proto::ids::{ChainId, ChunkKey, ClientId, InodeId, TargetId, WriteTag};
use emberfs_proto::pb;
use emberfs_proto::wire::client::{Identity, PeerPool};
use emberfs_proto::wire::{Call, Channel as _, Opcode};
use futures::future::try_join_all;

use crate::cluster_dir::storage_name;
use crate::failure::{Failure, Result};
use crate::progress::Progress;
use crate::rpc;

use super::Found;
use super::inodes::InodeTable;
use super::remedy::Remedy;

/// How long a repair of one chunk may take: 64 MiB, asked of every replica.
const REPAIR_LIMIT: Duration = Duration::from_mins(1);
/// How long one batch of removals may take.
const REMOVE_LIMIT: Duration = Duration::from_secs(30);
/// Chunks removed by one call.
const REMOVE_BATCH: u32 = 256;
/// How long a replica may take to leave its chain, and how often to look.
const LEAVE_LIMIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long to wait for replicas to come back; a longer resync goes on without fsck.
const RESYNC_LIMIT: Duration = Duration::from_mins(10);
/// This many orphaned inodes are removed in any case. More must be fewer than the inodes that there
/// are: a metadata store that was set back would make orphans of everything newer.
const FEW_ORPHANS: usize = 100;

/// Carries out what can be; what went wrong, one line each.
pub(super) async fn repair(
    address: &str,
    found: &[Found],
    inodes: &mut InodeTable,
    progress: &Progress,
) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    let map = ClusterMap::try_from(&rpc::map(address).await?)?;
    let mut orphans = BTreeSet::new();
    let mut resyncs: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
    for (done, one) in found.iter().enumerate() {
        match &one.remedy {
            Remedy::Pages(targets) => {
                progress.step(format!("Repairing {} of {}", done + 1, found.len()));
                for &target in targets {
                    if let Err(failure) = pages(&map, target, one.key).await {
                        failures.push(failure.to_string());
                    }
                }
            }
            Remedy::Resync(targets) => resyncs.entry(one.chain).or_default().extend(targets),
            Remedy::Remove => {
                orphans.insert((one.chain, one.key.inode));
            }
            Remedy::Nothing(_) => {}
        }
    }
    let many = orphans
        .iter()
        .map(|(_, inode)| inode)
        .collect::<BTreeSet<_>>()
        .len();
    if many > FEW_ORPHANS.max(inodes.len()) {
        failures.push(format!(
            "{many} inodes are orphans and only {} are known: the metadata is older than the data; nothing was removed, restore the metadata",
            inodes.len()
        ));
    } else {
        progress.step(format!("Removing the chunks of {many} orphans"));
        remove(address, &map, &orphans, inodes, &mut failures).await?;
    }
    for (chain, targets) in resyncs {
        progress.step(format!("Syncing replicas of chain {chain} again"));
        if let Err(failure) = resync(address, chain, &targets).await {
            failures.push(failure.to_string());
        }
    }
    Ok(failures)
}

async fn pages(map: &ClusterMap, target: u64, key: ChunkKey) -> Result<()> {
    let (name, address) = admin_of(map, target)?;
    let mut admin = rpc::storage_admin(&address).await?;
    let request = pb::RepairChunkRequest {
        target,
        key: Bytes::copy_from_slice(&key.encode()),
    };
    rpc::answer(&name, REPAIR_LIMIT, admin.repair_chunk(request)).await?;
    Ok(())
}

/// Removes what still has no inode now, as the metadata server removes a deleted file.
async fn remove(
    address: &str,
    map: &ClusterMap,
    orphans: &BTreeSet<(u32, InodeId)>,
    inodes: &mut InodeTable,
    failures: &mut Vec<String>,
) -> Result<()> {
    let client = ClientId(rand::random());
    let identity = Identity {
        cluster: Some(map.cluster),
        client,
        instance: 0,
    };
    let pool = PeerPool::new(identity, 1);
    let ids: Vec<InodeId> = orphans.iter().map(|&(_, inode)| inode).collect();
    inodes.refresh(address, &ids).await?;
    let mut sequence = 0;
    for &(chain, inode) in orphans.iter().filter(|(_, inode)| !inodes.knows(*inode)) {
        let of = map.chain(ChainId(chain))?;
        let head = map.head(of).and_then(|head| map.node_of(head));
        let Some(head) = head else {
            failures.push(format!("chain {chain} has no head; bring its servers back"));
            continue;
        };
        let peer = pool.peer(&head.data_addr);
        loop {
            sequence += 1;
            let request = pb::TrimRequest {
                chain: Some(pb::ChainRef::of(of.id, of.version)),
                inode: inode.0,
                tag: Some(
                    WriteTag {
                        client,
                        channel: 0,
                        sequence,
                    }
                    .into(),
                ),
                remove: true,
                from_index: 0,
                from_len: 0,
                limit: REMOVE_BATCH,
            };
            let call = Call::new(Opcode::Trim, &request, Instant::now() + REMOVE_LIMIT);
            let reply = match peer.call(call).await {
                Ok(reply) => reply.decode::<pb::TrimReply>(),
                Err(error) => Err(error),
            };
            match reply {
                Ok(reply) if reply.more => {}
                Ok(_) => break,
                Err(error) => {
                    failures.push(format!(
                        "orphan {inode} on chain {chain}: {error}; run fsck again"
                    ));
                    break;
                }
            }
        }
    }
    Ok(())
}

/// Takes replicas out of a chain together, so that none is synced from another that is wrong as well,
/// and waits until they serve again.
async fn resync(address: &str, chain: u32, targets: &BTreeSet<u64>) -> Result<()> {
    let map = ClusterMap::try_from(&rpc::map(address).await?)?;
    let of = map.chain(ChainId(chain))?;
    if map.serving(of).all(|t| targets.contains(&t.id.0)) {
        return Err(Failure::new(format!(
            "chain {chain}: every serving replica would have to be synced again; bring the others back first"
        )));
    }
    try_join_all(targets.iter().map(|&target| leave(address, chain, target))).await?;
    let started = Instant::now();
    while started.elapsed() < RESYNC_LIMIT {
        let map = ClusterMap::try_from(&rpc::map(address).await?)?;
        let back = |&target: &u64| map.state(TargetId(target)) == PublicState::Serving;
        if targets.iter().all(back) {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Err(Failure::new(format!(
        "chain {chain}: the replicas are still being synced; `emberfs status` shows how far they are"
    )))
}

/// Has one replica leave. It may be back before anybody looks: only the chain's version tells.
async fn leave(address: &str, chain: u32, target: u64) -> Result<()> {
    let started = Instant::now();
    let mut left = None;
    loop {
        let map = ClusterMap::try_from(&rpc::map(address).await?)?;
        let version = map.chain(ChainId(chain))?.version.0;
        let serves = map.state(TargetId(target)) == PublicState::Serving;
        if !serves || left.is_some_and(|left| version > left) {
            return Ok(());
        }
        if started.elapsed() > LEAVE_LIMIT {
            return Err(Failure::new(format!(
                "target {target} does not leave chain {chain}; look at the log of its server"
            )));
        }
        if left.is_none() {
            let (name, admin) = admin_of(&map, target)?;
            let mut admin = rpc::storage_admin(&admin).await?;
            let request = admin.resync_target(pb::ResyncTargetRequest { target });
            // Refused while the server does not know the newest map yet.
            if let Ok(reply) = rpc::answer(&name, rpc::CALL_LIMIT, request).await {
                left = Some(reply.chain_version);
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn admin_of(map: &ClusterMap, target: u64) -> Result<(String, String)> {
    let node = map
        .targets
        .get(&TargetId(target))
        .and_then(|t| map.node_of(t));
    let node = node.ok_or_else(|| {
        Failure::new(format!(
            "target {target} is gone from the cluster map; run fsck again"
        ))
    })?;
    Ok((storage_name(node.id.0 as usize), node.admin_addr.clone()))
}
