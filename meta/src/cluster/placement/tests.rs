use std::collections::BTreeMap;

use proptest::prelude::*;

use super::balance::Balance;
use super::*;

/// Dice thrown by the largest plan at most: some 30 ns each on a slow core, so a second, not ten.
const MAX_STEPS: u64 = 20_000_000;

fn candidates(disks: &[usize]) -> Vec<Candidate> {
    let node = |(n, &disks): (u32, &usize)| Candidate {
        node: NodeId(n),
        disks: (0..disks)
            .map(|d| DiskId(u128::from(n) * 1000 + d as u128))
            .collect(),
    };
    (1..).zip(disks).map(node).collect()
}

/// Fewest and most of what was counted, over everybody who could have been.
fn spread<K: Ord>(all: impl Iterator<Item = K>, seen: impl Iterator<Item = K>) -> (usize, usize) {
    let mut counts: BTreeMap<K, usize> = all.map(|k| (k, 0)).collect();
    for key in seen {
        *counts.get_mut(&key).unwrap() += 1;
    }
    (
        *counts.values().min().unwrap(),
        *counts.values().max().unwrap(),
    )
}

fn check_chains(plan: &Plan, replicas: u32) {
    for chain in &plan.chains {
        assert_eq!(chain.len(), replicas as usize);
        for (i, a) in chain.iter().enumerate() {
            assert!(
                chain[..i].iter().all(|b| a.node != b.node),
                "a chain twice on one node"
            );
        }
    }
}

#[test]
fn usual_clusters_are_balanced() {
    // nodes, disks on each, replicas, chains, pair counts at best and at worst
    let cases: &[(usize, usize, u32, usize, u64, u64)] = &[
        (1, 1, 1, 8, 0, 0),
        (1, 4, 1, 32, 0, 0),
        (3, 1, 3, 8, 8, 8),
        (2, 1, 2, 8, 8, 8),
        (2, 1, 1, 16, 0, 0),
        (3, 1, 2, 12, 4, 4),
        (4, 2, 3, 24, 12, 12),
        (5, 1, 3, 15, 4, 5),
        (6, 1, 3, 16, 3, 4),
        (25, 1, 3, 75, 0, 2),
        (25, 8, 3, 600, 5, 7),
        (50, 2, 2, 400, 0, 2),
    ];
    for &(nodes, disks, replicas, chains, low, high) in cases {
        let from = candidates(&vec![disks; nodes]);
        let plan = plan(&from, replicas, 8).unwrap();
        let found = Balance::of(&from, &plan.chains);
        let name = format!("{nodes} nodes x {disks} disks, k {replicas}");
        check_chains(&plan, replicas);
        assert_eq!(plan.chains.len(), chains, "{name}");
        let targets = found.targets_per_disk;
        assert_eq!(targets.min, targets.max, "{name}: targets per disk");
        let heads = found.heads_per_disk;
        assert!(heads.max - heads.min <= 1, "{name}: heads {heads:?}");
        let pairs = found.pairs;
        assert!(
            pairs.min >= low && pairs.max <= high,
            "{name}: pairs {pairs:?}"
        );
    }
}

/// The clusters that the design promises to serve: nodes, disks on each, replicas, and the targets
/// per disk that [`targets_per_disk`] makes of the default.
const PROMISED: [(usize, usize, u32, u32); 9] = [
    (1, 1, 1, 20),
    (2, 1, 2, 20),
    (3, 1, 2, 20),
    (3, 1, 3, 20),
    (4, 1, 3, 21),
    (6, 1, 3, 20),
    (25, 8, 3, 9),
    (127, 1, 5, 30),
    (180, 16, 3, 10),
];

#[test]
fn any_nodes_death_falls_on_all_others_as_evenly_as_whole_numbers_allow() {
    for (nodes, disks, replicas, expected) in PROMISED {
        let from = candidates(&vec![disks; nodes]);
        let per_disk = targets_per_disk(&from, replicas, default_targets(nodes * disks));
        assert_eq!(per_disk, expected, "{nodes} nodes x {disks} disks");
        for per_disk in [FEW_TARGETS, per_disk] {
            let name = format!("{nodes} nodes x {disks} disks x {per_disk} targets, k {replicas}");
            let plan = plan(&from, replicas, per_disk).unwrap();
            assert!(plan.steps < MAX_STEPS, "{name}: {} steps", plan.steps);
            check_chains(&plan, replicas);
            let found = Balance::of(&from, &plan.chains);
            assert_eq!(found.deaths.len(), nodes);
            for death in &found.deaths {
                assert!(death.reads.is_good(), "{name}: {death:?}");
                assert!(death.resync.is_good(), "{name}: {death:?}");
            }
            let (targets, heads) = (found.targets_per_disk, found.heads_per_disk);
            assert_eq!(targets.min, targets.max, "{name}: targets per disk");
            assert!(heads.max - heads.min <= 1, "{name}: heads {heads:?}");
            let best = found.pairs.mean.ceil() as u64;
            assert!(found.pairs.max <= best, "{name}: pairs {:?}", found.pairs);
        }
        // What the raised number is for: with it the reads are spread within the promised ratio.
        let reads = plan(&from, replicas, per_disk).unwrap();
        let reads = Balance::of(&from, &reads.chains).worst_reads();
        assert!(reads.ratio <= GOOD_RATIO, "{nodes} nodes: {reads:?}");
    }
}

#[test]
fn more_targets_are_taken_only_where_they_help() {
    let per_disk = |disks: &[usize], replicas| targets_per_disk(&candidates(disks), replicas, 8);
    assert_eq!(per_disk(&[4, 4, 2], 2), 8, "unequal nodes");
    assert_eq!(per_disk(&[4], 1), 8, "nothing to spread");
    assert_eq!(per_disk(&[4], 3), 8, "too few nodes: the plan says so");
    assert_eq!(per_disk(&[], 3), 8);
    assert_eq!(per_disk(&[1; 1000], 2), 8, "out of reach");
    assert_eq!(
        per_disk(&[0, 1, 1, 1], 3),
        8,
        "nodes without disks take no part"
    );
}

#[test]
fn a_node_with_too_many_disks_gets_no_chain_twice() {
    let from = candidates(&[1, 3]);
    let plan = plan(&from, 2, 8).unwrap();
    check_chains(&plan, 2);
    assert_eq!(
        plan.chains.len(),
        8,
        "the small node bounds the number of chains"
    );
    let big = plan
        .chains
        .iter()
        .flatten()
        .filter(|slot| slot.node == NodeId(2));
    let big = spread(from[1].disks.iter().copied(), big.map(|slot| slot.disk));
    assert_eq!(big, (2, 3), "8 slots over 3 disks");
}

#[test]
fn too_few_nodes_are_an_error_that_says_what_to_do() {
    let error = plan(&candidates(&[4, 0, 2]), 3, 8).unwrap_err();
    assert_eq!(error.code, ErrorCode::NotEnoughNodes);
    let expected =
        "replication 3 needs 3 nodes with a disk, there are 2; start more nodes or lower replicas";
    assert_eq!(error.message, expected);
    assert_eq!(plan(&[], 1, 8).unwrap_err().code, ErrorCode::NotEnoughNodes);
    assert_eq!(
        plan(&candidates(&[1]), 0, 8).unwrap_err().code,
        ErrorCode::InvalidArgument
    );
    assert_eq!(
        plan(&candidates(&[1]), 1, 0).unwrap_err().code,
        ErrorCode::InvalidArgument
    );
}

#[test]
fn the_plan_does_not_depend_on_the_order_of_registration() {
    let mut from = candidates(&[2, 1, 2, 2]);
    let first = plan(&from, 3, 8).unwrap();
    from.reverse();
    assert_eq!(plan(&from, 3, 8).unwrap(), first);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_cluster_gets_a_legal_and_even_plan(disks in prop::collection::vec(1usize..6, 1..12), k in 1u32..6, r in 1u32..12) {
        let from = candidates(&disks);
        prop_assume!(disks.len() >= k as usize);
        let plan = plan(&from, k, r).unwrap();
        check_chains(&plan, k);
        prop_assert!(!plan.chains.is_empty());
        // Even on the disks of each node; and over all disks unless a node hits the cap.
        let counts: Vec<_> = from.iter().map(|c| {
            plan.chains.iter().flatten().filter(|s| s.node == c.node).count()
        }).collect();
        for (candidate, &count) in from.iter().zip(&counts) {
            let own = plan.chains.iter().flatten().filter(|s| s.node == candidate.node);
            let (low, high) = spread(candidate.disks.iter().copied(), own.map(|s| s.disk));
            prop_assert!(high - low <= 1);
            prop_assert!(count <= plan.chains.len());
        }
        if counts.iter().all(|&count| count < plan.chains.len()) {
            let targets = Balance::of(&from, &plan.chains).targets_per_disk;
            prop_assert!(targets.max - targets.min <= 1, "{targets:?}");
        }
    }

    #[test]
    fn equal_nodes_get_even_heads(nodes in 1usize..10, disks in 1usize..4, k in 1u32..5, r in 1u32..10) {
        prop_assume!(nodes >= k as usize);
        let from = candidates(&vec![disks; nodes]);
        let found = Balance::of(&from, &plan(&from, k, r).unwrap().chains);
        let (targets, heads) = (found.targets_per_disk, found.heads_per_disk);
        prop_assert_eq!(targets.min, targets.max);
        prop_assert!(heads.max - heads.min <= 1, "{heads:?}");
    }
}
