//! A storage server that slept through its own death serves nothing stale when it wakes up.

use std::fs::{self, File};
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use bytes::BytesMut;
use emberfs_client::{Client, ClientConfig};
use emberfs_proto::cluster::ClusterMap;
use emberfs_proto::ids::{ClientId, NodeId};
use emberfs_proto::layout::Layout;
use emberfs_proto::wire::client::{Identity, PeerPool};
use emberfs_proto::wire::{Call, Channel, Landed, Landing, Opcode};
use emberfs_proto::{ErrorCode, pb};
use emberfs_tests::{TestCluster, pattern};
use std::os::unix::fs::MetadataExt;

const LENGTH: usize = 100_000;

/// Reads the first chunk of a file straight from one node, under the chain version of `map`.
async fn read_from(
    pool: &PeerPool,
    node: NodeId,
    map: &ClusterMap,
    inode: u64,
    layout: &Layout,
) -> Result<Vec<u8>, ErrorCode> {
    let table = map
        .table(layout.table, layout.table_version)
        .map_err(|e| e.code)?;
    let chain = map
        .chain(layout.stripe(table).map_err(|e| e.code)?[0])
        .map_err(|e| e.code)?;
    let item = pb::ReadItem {
        chain: Some(pb::ChainRef::of(chain.id, chain.version)),
        inode,
        index: 0,
        offset: 0,
        len: LENGTH as u32,
        suspect: false,
        transfer: false,
    };
    let body = pb::ReadRequest { items: vec![item] };
    let landing = Landing::Buffer(BytesMut::with_capacity(LENGTH));
    let deadline = Instant::now() + Duration::from_secs(10);
    let call = Call {
        landing,
        ..Call::new(Opcode::Read, &body, deadline)
    };
    let peer = pool.peer(&map.nodes[&node].data_addr);
    let reply = peer.call(call).await.map_err(|e| e.code)?;
    let result: pb::ReadReply = reply.decode().map_err(|e| e.code)?;
    match (result.results.first(), reply.payload) {
        (Some(pb::ReadResult { status: 0, .. }), Landed::Buffer(data)) => Ok(data.to_vec()),
        (Some(result), _) => Err(ErrorCode::from_number(result.status)),
        _ => Err(ErrorCode::Protocol),
    }
}

#[test]
fn a_server_stopped_past_its_lease_serves_nothing_stale_when_it_goes_on() -> Result<()> {
    let cluster = TestCluster::start(3, 3)?;
    let path = cluster.mount().join("file");
    let (before, after) = (pattern(LENGTH, 1), pattern(LENGTH, 2));
    fs::write(&path, &before)?;
    let inode = fs::metadata(&path)?.ino();

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let meta = cluster.address()?;
    runtime.block_on(async {
        let client = Client::connect(ClientConfig {
            meta,
            ..ClientConfig::default()
        })
        .await?;
        let attr = client.getattr(inode.into()).await?;
        let layout = Layout::try_from(&attr.layout.unwrap_or_default())?;
        let old_map: Arc<ClusterMap> = client.map();
        let identity = Identity {
            cluster: Some(client.cluster()),
            client: ClientId(77),
            instance: 0,
        };
        // A reader with an old map and a connection from before.
        let pool = PeerPool::new(identity, 1);
        let victim = NodeId(3);
        match read_from(&pool, victim, &old_map, inode, &layout).await {
            Ok(data) => ensure!(data == before, "the healthy replica serves other bytes"),
            Err(code) => bail!("the healthy replica answers {code:?}"),
        }

        cluster.sigstop("storage-3")?;
        // The write needs the chain without the silent server: it waits for the lease to run out.
        let start = Instant::now();
        let mut file = File::options().write(true).open(&path)?;
        file.write_all(&after)?;
        file.sync_all()?;
        drop(file);
        ensure!(
            start.elapsed() < Duration::from_secs(30),
            "fail-over took {:?}",
            start.elapsed()
        );
        ensure!(
            fs::read(&path)? == after,
            "the mount shows other bytes than were acknowledged"
        );

        cluster.sigcont("storage-3")?;
        let woken = Instant::now();
        let mut refused = 0;
        while woken.elapsed() < Duration::from_secs(3) {
            match read_from(&pool, victim, &old_map, inode, &layout).await {
                Ok(data) if data == before => {
                    bail!("served stale bytes after {:?}", woken.elapsed())
                }
                Ok(_) => bail!("served under a chain version that has passed"),
                Err(_) => refused += 1,
            }
            // Under the newest map it either refuses or has been brought up to date.
            if let Ok(data) = read_from(&pool, victim, &client.map(), inode, &layout).await {
                ensure!(data == after, "served stale bytes under the newest map");
            }
        }
        ensure!(refused > 0, "nothing was asked");
        client.shutdown().await;
        Ok(())
    })?;
    cluster.wait_status(0, Duration::from_mins(1))?;
    cluster.fsck()?.expect_code(0)?;
    Ok(())
}
