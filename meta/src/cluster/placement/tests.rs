use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

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

struct Balance {
    targets: (usize, usize),
    heads: (usize, usize),
    pairs: (usize, usize),
}

fn balance(plan: &Plan, from: &[Candidate]) -> Balance {
    let disks = || from.iter().flat_map(|c| c.disks.iter().copied());
    let slots = || plan.chains.iter().flatten();
    let nodes = || from.iter().map(|c| c.node);
    let pairs = nodes().flat_map(|a| nodes().filter(move |&b| a < b).map(move |b| (a, b)));
    let met = plan.chains.iter().flat_map(|chain| {
        let pair = |a: &Slot, b: &Slot| (a.node.min(b.node), a.node.max(b.node));
        (1..chain.len()).flat_map(move |i| (0..i).map(move |j| pair(&chain[i], &chain[j])))
    });
    let none = from.len() < 2;
    Balance {
        targets: spread(disks(), slots().map(|s| s.disk)),
        heads: spread(disks(), plan.chains.iter().map(|c| c[0].disk)),
        pairs: if none { (0, 0) } else { spread(pairs, met) },
    }
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
    let cases: &[(usize, usize, u32, usize, usize, usize)] = &[
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
        let found = balance(&plan, &from);
        let name = format!("{nodes} nodes x {disks} disks, k {replicas}");
        check_chains(&plan, replicas);
        assert_eq!(plan.chains.len(), chains, "{name}");
        assert_eq!(found.targets.0, found.targets.1, "{name}: targets per disk");
        assert!(
            found.heads.1 - found.heads.0 <= 1,
            "{name}: heads per disk {:?}",
            found.heads
        );
        assert!(
            found.pairs.0 >= low && found.pairs.1 <= high,
            "{name}: pairs {:?}",
            found.pairs
        );
    }
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
            let found = balance(&plan, &from);
            prop_assert!(found.targets.1 - found.targets.0 <= 1, "{:?}", found.targets);
        }
    }

    #[test]
    fn equal_nodes_get_even_heads(nodes in 1usize..10, disks in 1usize..4, k in 1u32..5, r in 1u32..10) {
        prop_assume!(nodes >= k as usize);
        let from = candidates(&vec![disks; nodes]);
        let found = balance(&plan(&from, k, r).unwrap(), &from);
        prop_assert_eq!(found.targets.0, found.targets.1);
        prop_assert!(found.heads.1 - found.heads.0 <= 1, "{:?}", found.heads);
    }
}
