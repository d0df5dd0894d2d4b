use emberfs_proto::ErrorCode;

use super::*;

fn refused(change: Change, map: &ClusterMap) -> String {
    change.apply(map, &facts(map)).unwrap_err().message
}

#[test]
fn draining_below_the_replication_is_refused_with_the_way_out() {
    let map = cluster(&vec![vec![GIB]; 3], 3, 8);
    let why = refused(Change::DrainNode(NodeId(2)), &map);
    assert_eq!(
        why,
        "without node 2 there are 2 nodes left for 3 replicas of each chunk; add a node first, with `emberfs node add`"
    );
    let why = refused(Change::DrainDisk(disk_id(1, 1)), &map);
    assert!(
        why.contains("2 nodes left") && why.contains("emberfs node add"),
        "{why}"
    );
    let alone = cluster(&[vec![GIB]], 1, 8);
    let why = refused(Change::DrainNode(NodeId(1)), &alone);
    assert!(why.contains("0 nodes left for 1 replicas"), "{why}");
}

#[test]
fn draining_what_fits_nowhere_is_refused_with_both_numbers() {
    let map = cluster(&vec![vec![GIB]; 4], 3, 6);
    let mut facts = facts(&map);
    for (disk, health) in &mut facts {
        (health.used, health.free) = (1000, Some(if *disk == disk_id(4, 1) { 5000 } else { 300 }));
    }
    let error = Change::DrainNode(NodeId(4))
        .apply(&map, &facts)
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::NoSpace);
    assert!(
        error.message.contains("1000") && error.message.contains("900"),
        "{error}"
    );
}

#[test]
fn replacing_a_live_disk_is_refused_and_names_drain() {
    let mut map = cluster(&vec![vec![GIB]; 3], 3, 8);
    let disk = disk_id(2, 1);
    let why = refused(Change::RetireDisk(disk), &map);
    assert_eq!(
        why,
        format!("disk {disk} works: drain it instead, with `emberfs drain disk/{disk}`")
    );
    map.nodes.get_mut(&NodeId(2)).unwrap().alive = false;
    let retired = Change::RetireDisk(disk).apply(&map, &facts(&map)).unwrap();
    assert_eq!(retired.role(disk), DiskRole::Retired);
    assert_eq!(
        Change::RetireDisk(disk)
            .apply(&retired, &facts(&retired))
            .unwrap(),
        retired
    );
}

#[test]
fn removing_a_node_that_holds_replicas_or_runs_is_refused() {
    let mut map = cluster(&vec![vec![GIB]; 3], 3, 8);
    let why = refused(Change::RemoveNode(NodeId(1)), &map);
    assert_eq!(
        why,
        "node 1 holds 8 replicas: move them away first, with `emberfs drain node/1`"
    );
    map.nodes.insert(NodeId(4), node(4, &[GIB]));
    let why = refused(Change::RemoveNode(NodeId(4)), &map);
    assert!(
        why.contains("node 4 still runs at host4:1") && why.contains("stop its server"),
        "{why}"
    );
    map.nodes.get_mut(&NodeId(4)).unwrap().alive = false;
    let removed = Change::RemoveNode(NodeId(4))
        .apply(&map, &facts(&map))
        .unwrap();
    assert!(!removed.nodes.contains_key(&NodeId(4)));
}

#[test]
fn what_does_not_exist_or_does_not_work_is_named() {
    let mut map = cluster(&vec![vec![GIB]; 3], 3, 8);
    assert_eq!(
        refused(Change::DrainNode(NodeId(9)), &map),
        "there is no node 9; there are 1, 2, 3"
    );
    assert_eq!(
        refused(Change::AddNode(NodeId(9)), &map),
        "there is no node 9; there are 1, 2, 3"
    );
    let unknown = refused(Change::DrainDisk(DiskId(5)), &map);
    assert!(
        unknown.contains("there is no disk") && unknown.contains("emberfs status"),
        "{unknown}"
    );
    let mut late = node(4, &[GIB]);
    late.alive = false;
    map.nodes.insert(NodeId(4), late);
    let why = refused(Change::AddNode(NodeId(4)), &map);
    assert!(why.contains("does not work now"), "{why}");
}

#[test]
fn a_wish_that_is_granted_already_changes_nothing_and_adding_a_draining_node_takes_it_back() {
    let map = cluster(&vec![vec![GIB]; 4], 3, 6);
    let facts = facts(&map);
    assert_eq!(Change::AddNode(NodeId(1)).apply(&map, &facts).unwrap(), map);
    let drained = Change::DrainNode(NodeId(1)).apply(&map, &facts).unwrap();
    assert_eq!(
        Change::DrainNode(NodeId(1))
            .apply(&drained, &facts)
            .unwrap(),
        drained
    );
    let back = Change::AddNode(NodeId(1)).apply(&drained, &facts).unwrap();
    assert_eq!(back.roles, map.roles);
}
