use proptest::prelude::*;

use super::*;

/// Deviation from a share in proportion to capacity, in targets; all must be below one, or a tenth.
fn assert_even(map: &ClusterMap, active: &[DiskId]) {
    let held = held(map);
    let weight = |id: &DiskId| {
        let mut disks = map.nodes.values().flat_map(|n| &n.disks);
        disks.find(|d| d.id == *id).unwrap().capacity as f64
    };
    let whole: f64 = active.iter().map(weight).sum();
    for disk in active {
        let ideal = map.targets.len() as f64 * weight(disk) / whole;
        let has = held.get(disk).copied().unwrap_or(0) as f64;
        let off = (has - ideal).abs();
        assert!(
            off <= 1.0 || off <= ideal * 0.1,
            "{disk} holds {has}, ideal {ideal}: {held:?}"
        );
    }
}

fn add_node(map: &mut ClusterMap, id: u32, capacities: &[u64]) {
    let node = node(id, capacities);
    for disk in &node.disks {
        map.roles.insert(disk.id, DiskRole::Active);
    }
    map.nodes.insert(node.id, node);
    map.rebalance = true;
}

fn active(map: &ClusterMap) -> Vec<DiskId> {
    let disks = map
        .nodes
        .values()
        .flat_map(|n| n.disks.iter().map(|d| d.id));
    disks.filter(|&d| map.role(d) == DiskRole::Active).collect()
}

#[test]
fn a_new_cluster_has_nothing_to_move_even_if_asked_to_balance() {
    for nodes in [1, 2, 3, 5, 8] {
        let mut map = cluster(&vec![vec![GIB; 2]; nodes], 3.min(nodes as u32), 8);
        map.rebalance = true;
        assert_eq!(plan(&map, &facts(&map)), Plan::default(), "{nodes} nodes");
    }
}

#[test]
fn a_node_that_registers_takes_nothing_before_it_is_added() {
    let mut map = cluster(&vec![vec![GIB]; 3], 3, 8);
    map.rebalance = true;
    map.nodes.insert(NodeId(4), node(4, &[GIB]));
    assert_eq!(plan(&map, &facts(&map)), Plan::default());
}

#[test]
fn a_fourth_node_takes_its_share_and_nothing_else_moves() {
    let mut map = cluster(&vec![vec![GIB]; 3], 3, 8);
    add_node(&mut map, 4, &[GIB]);
    let plan = plan(&map, &facts(&map));
    assert_eq!(plan.steps.len(), 6, "24 targets, 6 for each of four");
    assert!(plan.steps.iter().all(|s| s.node == NodeId(4)));
    carry_out(&mut map, &plan);
    assert!(held(&map).values().all(|&n| n == 6), "{:?}", held(&map));
    check(&map);
}

#[test]
fn a_disk_of_twice_the_size_takes_twice_as_much() {
    let mut map = cluster(&vec![vec![GIB]; 3], 2, 20);
    add_node(&mut map, 4, &[2 * GIB]);
    let plan = plan(&map, &facts(&map));
    carry_out(&mut map, &plan);
    assert_eq!(held(&map)[&disk_id(4, 1)], 24);
    check(&map);
}

#[test]
fn a_second_disk_of_a_node_takes_from_the_first_when_no_other_node_may() {
    // Every chain is on all three nodes, so only the node itself can share its load.
    let mut map = cluster(&vec![vec![GIB]; 3], 3, 8);
    let more = node(1, &[GIB, GIB]);
    map.nodes.insert(NodeId(1), more);
    map.roles.insert(disk_id(1, 2), DiskRole::Active);
    map.rebalance = true;
    let plan = plan(&map, &facts(&map));
    carry_out(&mut map, &plan);
    assert_eq!(
        (held(&map)[&disk_id(1, 1)], held(&map)[&disk_id(1, 2)]),
        (4, 4)
    );
    check(&map);
}

#[test]
fn a_drained_node_is_emptied_onto_the_others_and_what_has_no_place_is_counted() {
    let mut map = cluster(&vec![vec![GIB]; 4], 3, 6);
    let before = held(&map)[&disk_id(2, 1)];
    map.roles.insert(disk_id(2, 1), DiskRole::Draining);
    let away = plan(&map, &facts(&map));
    assert_eq!((away.steps.len() as u64, away.stuck.len()), (before, 0));
    carry_out(&mut map, &away);
    assert!(!held(&map).contains_key(&disk_id(2, 1)));
    assert_even(&map, &active(&map));
    // One more is one too many.
    map.roles.insert(disk_id(3, 1), DiskRole::Retired);
    let none = plan(&map, &facts(&map));
    assert!(none.steps.is_empty() && none.stuck.len() == 8, "{none:?}");
}

#[test]
fn a_full_or_broken_disk_takes_nothing() {
    let mut map = cluster(&vec![vec![GIB]; 3], 3, 8);
    add_node(&mut map, 4, &[GIB, GIB]);
    let mut facts = facts(&map);
    facts.get_mut(&disk_id(4, 1)).unwrap().free = Some(GIB / 30);
    facts.get_mut(&disk_id(4, 2)).unwrap().works = false;
    assert_eq!(plan(&map, &facts), Plan::default());
}

#[test]
fn a_large_cluster_is_planned_in_a_moment() {
    let mut map = cluster(&vec![vec![GIB; 16]; 60], 3, 6);
    add_node(&mut map, 61, &[GIB; 16]);
    let started = std::time::Instant::now();
    let plan = plan(&map, &facts(&map));
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
    carry_out(&mut map, &plan);
    check(&map);
    assert_even(&map, &active(&map));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Add nodes and disks, drain, retire, in any order: plans end even, with replicas apart, and a plan
    /// that was carried out leaves nothing to plan.
    #[test]
    fn every_plan_ends_even_and_apart(
        nodes in prop::collection::vec(1usize..4, 3..7),
        replicas in 1u32..4,
        added in prop::collection::vec(1usize..4, 0..4),
        drained in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
    ) {
        let sizes: Vec<Vec<u64>> = nodes.iter().map(|&n| vec![GIB; n]).collect();
        let mut map = cluster(&sizes, replicas, 8);
        for (id, &disks) in (nodes.len() as u32 + 1..).zip(&added) {
            add_node(&mut map, id, &vec![GIB; disks]);
        }
        for index in drained {
            let nodes: BTreeSet<NodeId> = map.nodes.values()
                .filter(|n| n.disks.iter().any(|d| map.role(d.id) == DiskRole::Active)).map(|n| n.id).collect();
            if nodes.len() > replicas as usize {
                let all: Vec<NodeId> = nodes.into_iter().collect();
                let gone = *index.get(&all);
                for disk in map.nodes[&gone].disks.clone() {
                    map.roles.insert(disk.id, DiskRole::Draining);
                }
            }
        }
        map.rebalance = true;
        let facts = facts(&map);
        let first = plan(&map, &facts);
        prop_assert_eq!(&first, &plan(&map, &facts), "the same plan from the same map");
        prop_assert!(first.stuck.is_empty(), "{:?}", first);
        // A plan leaves alone what it has moved once; what is left after that ends soon.
        let mut rounds = 0;
        loop {
            let next = plan(&map, &facts);
            if next.steps.is_empty() { break; }
            carry_out(&mut map, &next);
            check(&map);
            rounds += 1;
            prop_assert!(rounds < 5, "plans do not end");
        }
        let active = active(&map);
        for target in map.targets.values() {
            prop_assert!(active.contains(&target.disk));
        }
        // Where no node is so large that distinct nodes forbid it, disks are even.
        let mut per_node: BTreeMap<NodeId, usize> = BTreeMap::new();
        for disk in &active {
            let node = map.nodes.values().find(|n| n.disks.iter().any(|d| d.id == *disk)).unwrap();
            *per_node.entry(node.id).or_default() += 1;
        }
        let largest = per_node.values().max().copied().unwrap_or(0);
        if largest * replicas as usize <= active.len() {
            assert_even(&map, &active);
        }
    }
}
