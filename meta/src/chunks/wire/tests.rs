use emberfs_proto::cluster::{Chain, Node, PublicState};
use emberfs_proto::convert::required;
use emberfs_proto::ids::{ChainVersion, DiskId, IncarnationId, MapVersion, NodeId, TargetId};
use emberfs_proto::wire;
use emberfs_proto::wire::server::{Host, Incoming, Limits, Outgoing, Service, serve};
use tokio::net::TcpListener;

use super::*;

const CLUSTER: ClusterId = ClusterId(5);
const FILE: InodeId = InodeId(9);

/// A storage server that notes what it is asked.
#[derive(Default)]
struct Storage {
    trims: Mutex<Vec<pb::TrimRequest>>,
    /// Refuse requests made under an older chain version.
    version: AtomicU64,
    /// Answers `more` so many times.
    batches: AtomicU64,
    ends: Mutex<std::collections::HashMap<u32, (u32, u32)>>,
}

impl Service for Storage {
    async fn handle(&self, request: Incoming) -> Result<Outgoing> {
        let check = |chain: Option<&pb::ChainRef>| -> Result<u32> {
            let chain = required(chain, "chain")?;
            if chain.version < self.version.load(Ordering::SeqCst) {
                return Err(Error::new(ErrorCode::StaleChainVersion, "old"));
            }
            Ok(chain.chain)
        };
        match request.opcode {
            Opcode::Trim => {
                let trim: pb::TrimRequest = wire::decode(request.body.clone())?;
                let fresh = check(trim.chain.as_ref());
                self.trims.lock().push(trim);
                fresh?;
                let left = self
                    .batches
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
                Ok(Outgoing::new(&pb::TrimReply {
                    trimmed: 1,
                    more: left.is_ok(),
                }))
            }
            Opcode::LastChunk => {
                let ask: pb::LastChunkRequest = wire::decode(request.body.clone())?;
                let chain = check(ask.chain.as_ref())?;
                let last = self.ends.lock().get(&chain).copied();
                let (index, len) = last.unwrap_or_default();
                Ok(Outgoing::new(&pb::LastChunkReply {
                    found: last.is_some(),
                    index,
                    len,
                }))
            }
            other => Err(Error::new(ErrorCode::Unsupported, format!("{other:?}"))),
        }
    }
}

struct Fixture {
    storage: Arc<Storage>,
    chunks: WireChunks,
    map: watch::Sender<Arc<ClusterMap>>,
    layout: Layout,
    _stop: watch::Sender<bool>,
}

async fn fixture() -> Fixture {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let data_addr = listener.local_addr().unwrap().to_string();
    let storage = Arc::new(Storage::default());
    let (stop, stopped) = watch::channel(false);
    let host = Host {
        cluster: CLUSTER,
        node: NodeId(1),
    };
    tokio::spawn(serve(
        listener,
        host,
        Limits::default(),
        storage.clone(),
        stopped,
        Duration::ZERO,
    ));

    let mut map = ClusterMap {
        version: MapVersion(1),
        cluster: CLUSTER,
        ..ClusterMap::default()
    };
    let node = Node {
        id: NodeId(1),
        data_addr,
        admin_addr: String::new(),
        incarnation: IncarnationId(1),
        alive: true,
        disks: Vec::new(),
    };
    map.nodes.insert(NodeId(1), node);
    for id in 1..=3u32 {
        let chain = ChainId(id);
        let target = Target {
            id: TargetId(id.into()),
            chain,
            node: NodeId(1),
            disk: DiskId(1),
            state: PublicState::Serving,
        };
        let version = ChainVersion(1);
        map.chains.insert(
            chain,
            Chain {
                id: chain,
                version,
                targets: vec![target.id],
            },
        );
        map.targets.insert(target.id, target);
    }
    map.tables
        .insert((1.into(), 1.into()), (1..=3).map(ChainId).collect());
    let (map, updates) = watch::channel(Arc::new(map));
    let patience = Patience {
        call: Duration::from_secs(2),
        chain: Duration::from_secs(5),
    };
    let layout = Layout {
        chunk_size: 64 << 10,
        page_size: 4096,
        table: 1.into(),
        table_version: 1.into(),
        stripe_width: 2,
        seed: 3,
    };
    let chunks = WireChunks::new(
        CLUSTER,
        ClientId(4),
        updates,
        patience,
        CancellationToken::new(),
    );
    Fixture {
        storage,
        chunks,
        map,
        layout,
        _stop: stop,
    }
}

impl Fixture {
    fn stripe(&self) -> Vec<u32> {
        let map = self.map.borrow().clone();
        let table = map.table(1.into(), 1.into()).unwrap();
        let mut stripe: Vec<_> = self
            .layout
            .stripe(table)
            .unwrap()
            .iter()
            .map(|c| c.0)
            .collect();
        stripe.sort_unstable();
        stripe
    }

    fn asked(&self) -> Vec<u32> {
        let trims = self.storage.trims.lock();
        let mut chains: Vec<_> = trims.iter().map(|t| t.chain.unwrap().chain).collect();
        chains.sort_unstable();
        chains
    }
}

#[tokio::test]
async fn a_cut_names_its_place_on_every_chain_of_the_stripe() {
    let f = fixture().await;
    f.chunks
        .cut(FILE, f.layout, 5 * (64 << 10) + 7)
        .await
        .unwrap();
    assert_eq!(f.asked(), f.stripe());
    for trim in f.storage.trims.lock().iter() {
        assert_eq!((trim.inode, trim.remove), (FILE.0, false));
        assert_eq!((trim.from_index, trim.from_len), (5, 7));
    }
    f.storage.trims.lock().clear();
    f.chunks.remove(FILE, f.layout).await.unwrap();
    assert_eq!(f.asked(), f.stripe());
    assert!(f.storage.trims.lock().iter().all(|t| t.remove));
}

#[tokio::test]
async fn a_repetition_keeps_its_name_and_the_next_batch_has_a_new_one() {
    let f = fixture().await;
    f.storage.version.store(2, Ordering::SeqCst);
    f.storage.batches.store(1, Ordering::SeqCst);
    let layout = Layout {
        stripe_width: 1,
        ..f.layout
    };
    let cut = f.chunks.cut(FILE, layout, 0);
    let newer = async {
        while f.storage.trims.lock().len() < 2 {
            tokio::task::yield_now().await;
        }
        f.map.send_modify(|map| {
            let map = Arc::make_mut(map);
            map.version.0 += 1;
            for chain in map.chains.values_mut() {
                chain.version.0 = 2;
            }
        });
    };
    let (result, ()) = tokio::join!(cut, newer);
    result.unwrap();
    let trims = f.storage.trims.lock();
    let seen: Vec<_> = trims
        .iter()
        .map(|t| (t.chain.unwrap().version, t.tag.clone().unwrap()))
        .collect();
    let (last, repeated) = seen.split_last().unwrap();
    assert!(
        repeated.iter().all(|(_, tag)| *tag == seen[0].1),
        "{seen:?}"
    );
    assert_eq!(
        seen[seen.len() - 2].0,
        2,
        "the newer chain version was used"
    );
    assert_eq!(last.1.sequence, seen[0].1.sequence + 1);
    assert_eq!(last.1.channel, seen[0].1.channel);
}

#[tokio::test]
async fn the_end_is_the_farthest_of_all_chains() {
    let f = fixture().await;
    assert_eq!(f.chunks.end(FILE, f.layout).await, Ok(0));
    let stripe = f.stripe();
    f.storage.ends.lock().insert(stripe[0], (8, 10));
    f.storage.ends.lock().insert(stripe[1], (7, 64 << 10));
    assert_eq!(f.chunks.end(FILE, f.layout).await, Ok(8 * (64 << 10) + 10));
}

#[tokio::test]
async fn without_replicas_patience_ends_with_a_request_to_come_back() {
    let f = fixture().await;
    f.map.send_modify(|map| {
        let targets = &mut Arc::make_mut(map).targets;
        for target in targets.values_mut() {
            target.state = PublicState::Offline;
        }
    });
    let patience = Patience {
        call: Duration::from_millis(100),
        chain: Duration::from_millis(300),
    };
    let chunks = WireChunks::new(
        CLUSTER,
        ClientId(4),
        f.map.subscribe(),
        patience,
        CancellationToken::new(),
    );
    let error = chunks.end(FILE, f.layout).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert_eq!(error.retry(), RetryClass::BackOff);
    assert!(error.message.contains("no serving replica"), "{error}");
}

#[tokio::test]
async fn a_stop_ends_the_waits() {
    let f = fixture().await;
    f.map.send_modify(|map| Arc::make_mut(map).nodes.clear());
    let stop = CancellationToken::new();
    let chunks = WireChunks::new(
        CLUSTER,
        ClientId(4),
        f.map.subscribe(),
        Patience::default(),
        stop.clone(),
    );
    let end = chunks.end(FILE, f.layout);
    let stopper = async {
        tokio::task::yield_now().await;
        stop.cancel();
    };
    let both = async { tokio::join!(end, stopper) };
    let (result, ()) = tokio::time::timeout(Duration::from_secs(10), both)
        .await
        .unwrap();
    assert_eq!(result.unwrap_err().code, ErrorCode::Unavailable);
}
