use super::*;
use PublicState::{LastServing, Offline, Serving, Syncing, Waiting};

/// One chain (id 1, version 7) whose targets 1, 2, … on nodes 1, 2, … have these states.
fn map(states: &[PublicState]) -> ClusterMap {
    let mut map = ClusterMap {
        version: MapVersion(3),
        cluster: ClusterId(9),
        replicas: states.len() as u32,
        ..ClusterMap::default()
    };
    for (i, &state) in (1..).zip(states) {
        let disk = Disk {
            id: DiskId(u128::from(i)),
            path: format!("/d{i}"),
            capacity: 1 << 30,
        };
        let node = Node {
            id: NodeId(i),
            data_addr: format!("host{i}:1"),
            admin_addr: format!("host{i}:2"),
            incarnation: IncarnationId(5),
            alive: true,
            disks: vec![disk],
        };
        map.nodes.insert(node.id, node);
        let target = Target {
            id: TargetId(u64::from(i)),
            chain: ChainId(1),
            node: NodeId(i),
            disk: DiskId(u128::from(i)),
            state,
        };
        map.targets.insert(target.id, target);
    }
    let targets = map.targets.keys().copied().collect();
    map.chains.insert(
        ChainId(1),
        Chain {
            id: ChainId(1),
            version: ChainVersion(7),
            targets,
        },
    );
    map.tables
        .insert((ChainTableId(1), ChainTableVersion(1)), vec![ChainId(1)]);
    map.tables.insert(
        (ChainTableId(1), ChainTableVersion(2)),
        vec![ChainId(1), ChainId(1)],
    );
    map
}

fn ids<'a>(targets: impl Iterator<Item = &'a Target>) -> Vec<u64> {
    targets.map(|t| t.id.0).collect()
}

#[test]
fn a_map_survives_the_wire() {
    let mut map = map(&[Serving, Serving, Syncing]);
    map.settings.migrations = 17;
    assert_eq!(
        ClusterMap::try_from(&pb::ClusterMapMsg::from(&map)),
        Ok(map)
    );
}

#[test]
fn a_malformed_map_is_refused() {
    let good = pb::ClusterMapMsg::from(&map(&[Serving]));
    let bad_cluster = pb::ClusterMapMsg {
        cluster: bytes::Bytes::from_static(b"x"),
        ..good.clone()
    };
    assert_eq!(
        ClusterMap::try_from(&bad_cluster).unwrap_err().code,
        ErrorCode::Protocol
    );
    let mut bad_disk = good;
    bad_disk.targets[0].disk = bytes::Bytes::new();
    assert_eq!(
        ClusterMap::try_from(&bad_disk).unwrap_err().code,
        ErrorCode::Protocol
    );
}

#[test]
fn roles_follow_order_and_state() {
    let map = map(&[Serving, Serving, Syncing, Waiting, Offline, LastServing]);
    let chain = map.chain(ChainId(1)).unwrap();
    assert_eq!(ids(map.serving(chain)), [1, 2]);
    assert_eq!(ids(map.writable(chain)), [1, 2, 3]);
    assert_eq!(map.head(chain).unwrap().id, TargetId(1));
    assert_eq!(map.tail(chain).unwrap().id, TargetId(2));
    let successor = |t| map.successor(chain, TargetId(t)).map(|t| t.id.0);
    assert_eq!([1, 2, 3, 4].map(successor), [Some(2), Some(3), None, None]);
}

#[test]
fn a_chain_without_replicas_has_no_roles() {
    let map = map(&[LastServing, Offline]);
    let chain = map.chain(ChainId(1)).unwrap();
    assert!(map.head(chain).is_none() && map.tail(chain).is_none());
    assert_eq!(map.chain(ChainId(2)).unwrap_err().code, ErrorCode::NoChains);
}

#[test]
fn new_files_use_the_newest_table() {
    let map = map(&[Serving]);
    let (version, chains) = map.newest_table(ChainTableId(1)).unwrap();
    assert_eq!((version, chains.len()), (ChainTableVersion(2), 2));
    assert!(map.newest_table(ChainTableId(2)).is_none());
}
