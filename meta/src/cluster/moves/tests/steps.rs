//! Moves step by step, with a chain that follows the state table.

use emberfs_proto::cluster::LocalState;
use proptest::prelude::*;

use super::*;
use crate::cluster::state::{self, Replica};

/// One evaluation as the manager makes it: states, then moves, one map.
struct World {
    map: ClusterMap,
    pace: Pace,
    /// Nodes whose process does not run.
    down: BTreeSet<NodeId>,
    /// New replicas that are complete.
    complete: BTreeSet<TargetId>,
    /// Leaving replicas that have stopped.
    stopped: BTreeSet<TargetId>,
}

impl World {
    fn new(map: ClusterMap) -> Self {
        Self {
            map,
            pace: PACE,
            down: BTreeSet::new(),
            complete: BTreeSet::new(),
            stopped: BTreeSet::new(),
        }
    }

    fn local(&self, target: &Target) -> LocalState {
        let up = !self.down.contains(&target.node);
        match (up && !self.stopped.contains(&target.id), target.state) {
            (false, _) => LocalState::Offline,
            (true, PublicState::Serving) => LocalState::UpToDate,
            (true, PublicState::Syncing) if self.complete.contains(&target.id) => {
                LocalState::UpToDate
            }
            (true, _) => LocalState::Online,
        }
    }

    /// Answers whether anything changed.
    fn evaluate(&mut self) -> bool {
        let mut new = self.map.clone();
        for node in new.nodes.values_mut() {
            node.alive = !self.down.contains(&node.id);
        }
        for chain in self.map.chains.values() {
            let replicas: Vec<Replica> = chain
                .targets
                .iter()
                .map(|id| &self.map.targets[id])
                .map(|t| Replica {
                    target: t.id,
                    public: t.state,
                    local: self.local(t),
                })
                .collect();
            let step = state::settle(&replicas);
            if step.changed {
                let changed = new.chains.get_mut(&chain.id).unwrap();
                changed.version.0 += 1;
                changed.targets = step.replicas.iter().map(|r| r.target).collect();
                for replica in &step.replicas {
                    new.targets.get_mut(&replica.target).unwrap().state = replica.public;
                }
            }
        }
        let facts = facts(&new);
        advance(&self.map, &mut new, &facts, self.pace);
        let changed = new != self.map;
        self.check_step(&new);
        self.map = new;
        check(&self.map);
        changed
    }

    /// A target leaves only when it does not serve, and no chain loses its last complete replica to a move.
    fn check_step(&self, new: &ClusterMap) {
        for (id, chain) in &self.map.chains {
            let next = &new.chains[id];
            let steps = next.version.0 - chain.version.0;
            assert!(steps <= 1, "{steps} versions in one map");
            let states = |map: &ClusterMap, chain: &Chain| -> Vec<_> {
                chain.targets.iter().map(|t| (*t, map.state(*t))).collect()
            };
            let leaving = |map: &ClusterMap| map.moves.get(id).is_some_and(|m| m.leaving);
            let same =
                states(&self.map, chain) == states(new, next) && leaving(&self.map) == leaving(new);
            assert_eq!(
                same,
                steps == 0,
                "a version for each change: {chain:?} {next:?}"
            );
            for gone in chain.targets.iter().filter(|t| !next.targets.contains(t)) {
                let target = &self.map.targets[gone];
                let stopped = self.local(target) == LocalState::Offline;
                assert!(
                    stopped || target.state != PublicState::Serving,
                    "{gone} left while it served"
                );
                let complete = matches!(
                    target.state,
                    PublicState::Serving | PublicState::LastServing
                );
                assert!(!complete || serving(new, next) > 0, "{gone} was the last");
            }
        }
    }

    /// Everything that nodes do by themselves happens: syncs end, those that are to leave stop.
    fn nodes_work(&mut self) {
        for moving in self.map.moves.values() {
            if moving.leaving {
                self.stopped.insert(moving.replaces);
            }
        }
        self.stopped.retain(|id| self.map.is_leaving(*id));
        let syncing = self
            .map
            .targets
            .values()
            .filter(|t| t.state == PublicState::Syncing);
        self.complete.extend(syncing.map(|t| t.id));
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.nodes_work();
            if !self.evaluate() && !self.map.moves.values().any(|m| m.leaving) {
                return;
            }
        }
        panic!("does not come to rest: {:#?}", self.map.moves);
    }

    fn all_serve(&self) -> bool {
        let all = self
            .map
            .targets
            .values()
            .all(|t| t.state == PublicState::Serving);
        all && self.map.moves.is_empty()
    }
}

fn grown() -> World {
    let mut map = cluster(&vec![vec![GIB]; 3], 3, 8);
    map.nodes.insert(NodeId(4), node(4, &[GIB]));
    let facts = facts(&map);
    World::new(Change::AddNode(NodeId(4)).apply(&map, &facts).unwrap())
}

#[test]
fn a_node_that_is_added_fills_up_and_the_cluster_comes_to_rest() {
    let mut world = grown();
    assert!(world.evaluate());
    assert_eq!(world.map.moves.len(), 4, "no more at a time");
    let mut least = 3;
    for _ in 0..100 {
        world.nodes_work();
        world.evaluate();
        least = least.min(
            world
                .map
                .chains
                .values()
                .map(|c| serving(&world.map, c))
                .min()
                .unwrap(),
        );
    }
    assert_eq!(least, 3, "redundancy was never less");
    assert!(world.all_serve() && !world.map.rebalance);
    assert!(held(&world.map).values().all(|&n| n == 6));
}

#[test]
fn the_old_replica_stays_until_it_says_that_it_has_stopped() {
    let mut world = grown();
    world.evaluate();
    world.nodes_work(); // nothing to complete yet
    world.evaluate(); // SYNCING
    world.nodes_work();
    world.evaluate(); // SERVING, and the old ones are to leave
    assert!(world.map.moves.values().all(|m| m.leaving));
    assert!(!world.evaluate(), "nobody has stopped");
    let one = *world.map.moves.values().next().unwrap();
    world.stopped.insert(one.replaces);
    world.evaluate();
    assert!(!world.map.targets.contains_key(&one.replaces));
    assert_eq!(serving(&world.map, &world.map.chains[&one.chain]), 3);
}

#[test]
fn a_destination_that_dies_is_waited_for_and_holds_up_no_other_move() {
    let mut world = grown();
    world.map.nodes.insert(NodeId(5), node(5, &[GIB]));
    world.map.roles.insert(disk_id(5, 1), DiskRole::Active);
    world.evaluate();
    world.down.insert(NodeId(4));
    world.settle();
    let waiting = world.map.moves.len();
    assert!(
        waiting > 0
            && world
                .map
                .moves
                .values()
                .all(|m| world.map.targets[&m.target].node == NodeId(4))
    );
    assert!(
        held(&world.map)[&disk_id(5, 1)] >= 4,
        "{:?}",
        held(&world.map)
    );
    world.down.clear();
    world.settle();
    assert!(world.all_serve());
}

#[test]
fn a_destination_that_is_drained_meanwhile_is_given_up() {
    let mut world = grown();
    world.map.nodes.insert(NodeId(5), node(5, &[GIB]));
    world.map.roles.insert(disk_id(5, 1), DiskRole::Active);
    world.evaluate();
    world.down.insert(NodeId(4));
    world.evaluate();
    world.map = Change::RetireDisk(disk_id(4, 1))
        .apply(&world.map, &facts(&world.map))
        .unwrap();
    world.settle();
    assert!(world.all_serve());
    assert!(!held(&world.map).contains_key(&disk_id(4, 1)));
}

#[test]
fn a_dead_disk_is_replaced_by_one_on_the_same_node() {
    let mut world = World::new(cluster(&vec![vec![GIB]; 3], 3, 8));
    world.down.insert(NodeId(2));
    world.settle();
    world.map = Change::RetireDisk(disk_id(2, 1))
        .apply(&world.map, &facts(&world.map))
        .unwrap();
    world.settle();
    assert_eq!(plan(&world.map, &facts(&world.map)).stuck.len(), 8);
    // It comes back with another disk.
    let mut back = node(2, &[GIB]);
    back.disks[0].id = DiskId(77);
    world.map.nodes.insert(NodeId(2), back);
    world.down.clear();
    // The dead disk's replicas are not there any more.
    let dead: Vec<TargetId> = world
        .map
        .targets
        .values()
        .filter(|t| t.disk == disk_id(2, 1))
        .map(|t| t.id)
        .collect();
    world.stopped.extend(dead);
    world.map = Change::AddDisk(DiskId(77))
        .apply(&world.map, &facts(&world.map))
        .unwrap();
    for _ in 0..200 {
        let stopped = world.stopped.clone();
        world.nodes_work();
        world.stopped.extend(stopped);
        world.evaluate();
    }
    assert!(world.all_serve(), "{:#?}", world.map.moves);
    assert_eq!(held(&world.map)[&DiskId(77)], 8);
    assert!(!world.map.roles.contains_key(&disk_id(2, 1)), "forgotten");
}

#[test]
fn a_complete_replica_takes_a_dead_members_place_before_a_living_ones() {
    let mut world = grown();
    world.evaluate();
    let moving = *world.map.moves.values().next().unwrap();
    let chain = world.map.chains[&moving.chain].clone();
    // Another member than the one that is replaced dies for good.
    let other = chain
        .targets
        .iter()
        .find(|&&t| t != moving.replaces && t != moving.target)
        .unwrap();
    let dead = world.map.targets[other].clone();
    world.down.insert(dead.node);
    world.evaluate();
    world.map = Change::RetireDisk(dead.disk)
        .apply(&world.map, &facts(&world.map))
        .unwrap();
    while world.map.targets.contains_key(other) {
        world.nodes_work();
        world.evaluate();
    }
    assert!(world.map.targets.contains_key(&moving.replaces));
    assert_eq!(serving(&world.map, &world.map.chains[&moving.chain]), 3);
}

#[test]
fn if_all_others_fail_the_leaving_replica_is_needed_again() {
    let mut world = World::new(cluster(&vec![vec![GIB]; 2], 1, 8));
    world.map.roles.insert(disk_id(1, 1), DiskRole::Draining);
    while !world.map.moves.values().any(|m| m.leaving) {
        let syncing = world
            .map
            .targets
            .values()
            .filter(|t| t.state == PublicState::Syncing);
        let syncing: Vec<_> = syncing.map(|t| t.id).collect();
        world.complete.extend(syncing);
        world.evaluate();
    }
    let leaving: Vec<_> = world
        .map
        .moves
        .values()
        .filter(|m| m.leaving)
        .copied()
        .collect();
    world.down.insert(NodeId(2));
    world.stopped.extend(leaving.iter().map(|m| m.replaces));
    world.evaluate();
    for moving in &leaving {
        assert!(world.map.targets.contains_key(&moving.replaces));
        assert!(!world.map.is_leaving(moving.replaces), "{moving:?}");
    }
    world.settle();
    for moving in &leaving {
        assert!(
            serving(&world.map, &world.map.chains[&moving.chain]) > 0,
            "nobody serves"
        );
    }
}

#[test]
fn a_cluster_that_grows_tenfold_gets_chains_for_its_new_disks_once_its_data_is_spread() {
    let mut map = cluster(&vec![vec![GIB]; 3], 3, 8);
    for id in 4..=30 {
        map.nodes.insert(NodeId(id), node(id, &[GIB]));
        map.roles.insert(disk_id(id, 1), DiskRole::Active);
    }
    map.rebalance = true;
    let mut world = World::new(map);
    world.settle();
    assert!(world.all_serve());
    let (first, second) = (ChainTableVersion(1), ChainTableVersion(2));
    let table = |version| &world.map.tables[&(ChainTableId(1), version)];
    assert_eq!((table(first).len(), table(second).len()), (8, 80));
    assert_eq!(
        table(first)[..],
        table(second)[..8],
        "old files find what they have"
    );
    let held = held(&world.map);
    assert!(
        held.len() == 30 && held.values().all(|&n| n == 8),
        "{held:?}"
    );
    let mut old: BTreeMap<DiskId, u64> = BTreeMap::new();
    for target in world.map.targets.values().filter(|t| t.chain <= ChainId(8)) {
        *old.entry(target.disk).or_default() += 1;
    }
    assert!(
        old.values().all(|&n| n == 1),
        "what was stored is spread as well: {old:?}"
    );
}

#[test]
fn nothing_begins_while_moves_are_paused() {
    let mut world = grown();
    world.pace.paused = true;
    assert!(!world.evaluate());
    world.pace.paused = false;
    assert!(world.evaluate());
}

#[derive(Clone, Debug)]
enum Event {
    Work,
    Evaluate,
    Down(u32),
    Up(u32),
    Drain(u32),
    Add(u32),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::Work),
        6 => Just(Event::Evaluate),
        1 => (1u32..7).prop_map(Event::Down),
        2 => (1u32..7).prop_map(Event::Up),
        1 => (1u32..7).prop_map(Event::Drain),
        1 => (1u32..7).prop_map(Event::Add),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever fails and whoever asks for what in between: no chain loses its last replica to a move, and when all
    /// is well again the cluster comes to rest, whole, with nothing on what is drained.
    #[test]
    fn moves_survive_any_order_of_failures_and_wishes(
        replicas in 1u32..4,
        events in prop::collection::vec(event(), 0..120),
    ) {
        let mut map = cluster(&vec![vec![GIB]; 4], replicas, 6);
        map.nodes.insert(NodeId(5), node(5, &[GIB, GIB]));
        map.nodes.insert(NodeId(6), node(6, &[GIB]));
        let mut world = World::new(map);
        for event in events {
            match event {
                Event::Work => world.nodes_work(),
                Event::Evaluate => drop(world.evaluate()),
                Event::Down(node) => drop(world.down.insert(NodeId(node))),
                Event::Up(node) => drop(world.down.remove(&NodeId(node))),
                Event::Drain(id) | Event::Add(id) => {
                    let change = match event {
                        Event::Drain(_) => Change::DrainNode(NodeId(id)),
                        _ => Change::AddNode(NodeId(id)),
                    };
                    if let Ok(map) = change.apply(&world.map, &facts(&world.map)) {
                        world.map = map;
                    }
                }
            }
        }
        world.down.clear();
        world.settle();
        prop_assert!(world.all_serve(), "{:#?}", world.map);
        for (disk, role) in &world.map.roles {
            if *role == DiskRole::Draining {
                prop_assert!(!held(&world.map).contains_key(disk), "{:?}", held(&world.map));
            }
        }
    }
}
