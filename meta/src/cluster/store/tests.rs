use emberfs_proto::cluster::{Chain, Disk, Node, PublicState, Target};
use emberfs_proto::ids::{
    ChainId, ChainTableId, ChainTableVersion, ChainVersion, DiskId, IncarnationId, NodeId, TargetId,
};

use super::*;
use crate::kv::memory::Fault;
use crate::kv::{MemoryEngine, RocksEngine};

fn next_of(map: &ClusterMap) -> ClusterMap {
    let mut new = map.clone();
    new.version.0 += 1;
    new
}

fn grown(map: &ClusterMap, chains: u32) -> ClusterMap {
    let mut new = next_of(map);
    let disk = Disk {
        id: DiskId(7),
        path: "/disk".into(),
        capacity: 1 << 40,
    };
    let node = Node {
        id: NodeId(1),
        data_addr: "host:1".into(),
        admin_addr: "host:2".into(),
        incarnation: IncarnationId(3),
        alive: true,
        disks: vec![disk],
    };
    new.nodes.insert(node.id, node);
    for c in 1..=chains {
        let target = Target {
            id: TargetId(c.into()),
            chain: ChainId(c),
            node: NodeId(1),
            disk: DiskId(7),
            state: PublicState::Serving,
        };
        let chain = Chain {
            id: ChainId(c),
            version: ChainVersion(1),
            targets: vec![target.id],
        };
        new.targets.insert(target.id, target);
        new.chains.insert(chain.id, chain);
    }
    let all = (1..=chains).map(ChainId).collect();
    new.tables
        .insert((ChainTableId(1), ChainTableVersion(1)), all);
    new
}

#[test]
fn a_map_survives_a_reopen_on_disk_and_the_id_is_drawn_once() {
    let dir = tempfile::tempdir().unwrap();
    let open = || -> Arc<dyn Engine> { Arc::new(RocksEngine::open(dir.path()).unwrap()) };
    let (store, fresh) = Store::open(open(), 3).unwrap();
    assert_eq!((fresh.version, fresh.replicas), (MapVersion(1), 3));
    let mut full = grown(&fresh, 5);
    full.settings.migrations = 17;
    store.save(&fresh, &full).unwrap();
    drop(store);
    assert_eq!(Store::open(open(), 1).unwrap().1, full);
}

#[test]
fn more_records_than_a_page_are_all_loaded_and_removed_ones_stay_away() {
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
    let (store, fresh) = Store::open(Arc::clone(&engine), 1).unwrap();
    let full = grown(&fresh, PAGE as u32 + 3);
    store.save(&fresh, &full).unwrap();
    let mut less = next_of(&full);
    less.targets.remove(&TargetId(2));
    store.save(&full, &less).unwrap();
    assert_eq!(Store::open(engine, 1).unwrap().1, less);
}

#[test]
fn a_deposed_primary_cannot_write() {
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
    let (old, map) = Store::open(Arc::clone(&engine), 1).unwrap();
    let (new, _) = Store::open(Arc::clone(&engine), 1).unwrap();
    let change = next_of(&map);
    assert_eq!(
        old.save(&map, &change).unwrap_err().code,
        ErrorCode::NotPrimary
    );
    new.save(&map, &change).unwrap();
    assert_eq!(
        old.save(&map, &change).unwrap_err().code,
        ErrorCode::NotPrimary
    );
}

#[test]
fn a_save_from_another_map_than_the_stored_one_is_refused() {
    let (store, map) = Store::open(Arc::new(MemoryEngine::new()), 1).unwrap();
    let second = next_of(&map);
    let third = next_of(&second);
    assert_eq!(
        store.save(&second, &third).unwrap_err().code,
        ErrorCode::Internal
    );
}

#[test]
fn a_commit_of_unknown_outcome_is_settled() {
    let engine = Arc::new(MemoryEngine::new());
    let (store, fresh) = Store::open(Arc::clone(&engine) as Arc<dyn Engine>, 1).unwrap();
    let full = grown(&fresh, 2);
    engine.inject(Fault::MaybeCommitted { applied: true });
    store.save(&fresh, &full).unwrap();
    let more = grown(&full, 3);
    engine.inject(Fault::MaybeCommitted { applied: false });
    store.save(&full, &more).unwrap();
    assert_eq!(Store::open(engine, 1).unwrap().1, more);
}
