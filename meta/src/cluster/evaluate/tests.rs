//! The rules of promotion, against nodes that adopt maps late, skip some, die and return.
//!
//! The model of a storage node is a careless one: it believes the newest map it sees, stays
//! UP_TO_DATE for as long as what it sees lets it, and never notices a map that it skipped.

use std::time::Duration;

use emberfs_proto::cluster::{Disk, LocalState};
use emberfs_proto::ids::{DiskId, IncarnationId, NodeId};
use emberfs_proto::pb;
use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::cluster::members::{Admission, StreamId, Suspect};

const CHAIN: ChainId = ChainId(1);
const LAYOUT: Layout = Layout {
    replicas: 3,
    expected_nodes: 3,
    targets_per_disk: 1,
};

const PACE: Pace = Pace {
    migrations: 4,
    paused: false,
    targets_per_disk: 1,
};

struct Sim {
    now: Instant,
    map: ClusterMap,
    members: Members,
    nodes: Vec<SimNode>,
    /// Writes acknowledged so far.
    acknowledged: u64,
}

struct SimNode {
    id: NodeId,
    incarnation: u128,
    stream: Option<StreamId>,
    running: bool,
    /// The chain as the process last saw it: version and own state.
    adopted: (ChainVersion, PublicState),
    local: LocalState,
    /// How many of the writes its disk holds.
    holds: u64,
    /// It holds one more, as the head of a chain that did not get any further.
    pending: bool,
}

impl Sim {
    fn new() -> Self {
        let (now, map) = (Instant::now(), ClusterMap::default());
        let mut members = Members::from_map(&map, Duration::from_secs(5), now);
        members.tick(&map, now);
        let nodes = (1..=3)
            .map(|id| SimNode {
                id: NodeId(id),
                incarnation: 1,
                stream: None,
                running: true,
                adopted: (ChainVersion(0), PublicState::Offline),
                local: LocalState::Online,
                holds: 0,
                pending: false,
            })
            .collect();
        let mut sim = Self {
            now,
            map,
            members,
            nodes,
            acknowledged: 0,
        };
        for n in 0..3 {
            sim.connect(n);
        }
        sim.evaluate();
        assert_eq!(sim.map.chains.len(), 1);
        sim
    }

    fn evaluate(&mut self) {
        if let Some(map) = evaluate(&self.map, &self.members, &LAYOUT, PACE).map {
            self.check_change(&map);
            self.members.adopt(&map);
            self.map = map;
        }
        self.check();
    }

    fn target(&self, n: usize) -> &Target {
        self.map
            .targets
            .values()
            .find(|t| t.node == self.nodes[n].id)
            .unwrap()
    }

    /// Registers if need be and opens a stream.
    fn connect(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if !node.running || node.stream.is_some() {
            return;
        }
        let id = node.id;
        let disk = Disk {
            id: DiskId(id.0.into()),
            path: String::new(),
            capacity: 1,
        };
        let incarnation = IncarnationId(node.incarnation);
        let (data_addr, admin_addr) = (format!("host{id}"), String::new());
        let record = Node {
            id,
            data_addr,
            admin_addr,
            incarnation,
            alive: true,
            disks: vec![disk],
        };
        let admitted = self
            .members
            .register(record.into(), &self.map, self.now)
            .unwrap();
        assert_eq!(admitted, Admission::Admitted);
        node.stream = Some(self.members.attach(id, incarnation).unwrap());
    }

    fn kill(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.running = false;
        if let Some(stream) = node.stream.take() {
            self.members.detach(node.id, stream);
        }
    }

    fn refuse(&mut self, n: usize) {
        let node = &self.nodes[n];
        if !node.running {
            let (incarnation, addr) = (IncarnationId(node.incarnation), String::new());
            self.members.refused(
                &Suspect {
                    node: node.id,
                    incarnation,
                    addr,
                },
                &self.map,
            );
        }
    }

    fn restart(&mut self, n: usize) {
        self.kill(n);
        let node = &mut self.nodes[n];
        node.running = true;
        node.incarnation += 1;
        node.local = LocalState::Online;
        node.adopted = (ChainVersion(0), PublicState::Offline);
        self.connect(n);
    }

    /// The manager believes the node dead; the process lives on and reconnects some time.
    fn partition(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if let Some(stream) = node.stream.take() {
            self.members.detach(node.id, stream);
            let (incarnation, addr) = (IncarnationId(node.incarnation), String::new());
            assert!(self.members.refused(
                &Suspect {
                    node: node.id,
                    incarnation,
                    addr
                },
                &self.map
            ));
        }
    }

    fn adopt(&mut self, n: usize) {
        let (version, state) = (self.map.chains[&CHAIN].version, self.target(n).state);
        let node = &mut self.nodes[n];
        // `Register` answers only once a map names the process.
        let named = self.map.nodes[&node.id].incarnation.0 == node.incarnation;
        if !node.running || !named {
            return;
        }
        let revives = state == PublicState::Serving && node.local != LocalState::UpToDate;
        if revives && std::mem::take(&mut node.pending) {
            // Nobody knows whether it was acknowledged, so it is committed.
            node.holds += 1;
            self.acknowledged += 1;
        }
        node.adopted = (version, state);
        node.local = match (state, node.local) {
            (PublicState::Serving, _) => LocalState::UpToDate,
            (PublicState::Syncing, local) => local,
            _ => LocalState::Online,
        };
    }

    fn report(&mut self, n: usize) {
        let target = self.target(n).id.0;
        let node = &self.nodes[n];
        let Some(stream) = node.stream else { return };
        let report = pb::TargetReport {
            target,
            state: node.local.into(),
            chain_version: node.adopted.0.0,
            ..Default::default()
        };
        let request = pb::HeartbeatRequest {
            node: node.id.0,
            incarnation: IncarnationId(node.incarnation).to_bytes(),
            targets: vec![report],
            ..Default::default()
        };
        self.members
            .heartbeat(stream, request, &self.map, self.now)
            .unwrap();
    }

    fn is_current(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        node.running && node.adopted.0 == self.map.chains[&CHAIN].version
    }

    /// A whole sync, if both ends are under the version in force.
    fn sync(&mut self, n: usize) {
        let serves =
            |sim: &Self, m: usize| sim.is_current(m) && sim.target(m).state == PublicState::Serving;
        let source = (0..3).find(|&m| serves(self, m));
        if let Some(source) =
            source.filter(|_| self.is_current(n) && self.target(n).state == PublicState::Syncing)
        {
            self.nodes[n].holds = self.nodes[source].holds;
            self.nodes[n].pending = false;
            self.nodes[n].local = LocalState::UpToDate;
        }
    }

    /// A write travels down the chain; each hop checks the version. The chain breaks where one
    /// has not adopted it, or is not there.
    fn write(&mut self) {
        let receives = |t: &Target| matches!(t.state, PublicState::Serving | PublicState::Syncing);
        let order: Vec<usize> = self.map.chains[&CHAIN]
            .targets
            .iter()
            .map(|id| &self.map.targets[id])
            .filter(|t| receives(t))
            .map(|t| t.node.0 as usize - 1)
            .collect();
        let serving = order
            .iter()
            .any(|&n| self.target(n).state == PublicState::Serving);
        if serving && order.iter().all(|&n| self.is_current(n)) {
            self.acknowledged += 1;
            for n in order {
                // A SYNCING replica gets the chunk, not the ones before it.
                if self.nodes[n].holds == self.acknowledged - 1 {
                    self.nodes[n].holds += 1;
                }
                self.nodes[n].pending = false;
            }
        }
    }

    /// A write that the only SERVING replica applies and then cannot forward.
    fn half_write(&mut self) {
        let serving = |&n: &usize| self.target(n).state == PublicState::Serving;
        let serving: Vec<usize> = (0..3).filter(serving).collect();
        if let [head] = serving[..] {
            self.nodes[head].pending |= self.is_current(head);
        }
    }

    /// Invariant 5 and 6: who may be read, or may revive the chain, holds every acknowledged write.
    fn check(&self) {
        let mut keepers = 0;
        for n in 0..3 {
            if matches!(
                self.target(n).state,
                PublicState::Serving | PublicState::LastServing
            ) {
                keepers += 1;
                let holds = self.nodes[n].holds;
                assert_eq!(
                    holds, self.acknowledged,
                    "node {n} serves without every write"
                );
            }
        }
        assert!(keepers > 0);
    }

    fn check_change(&self, new: &ClusterMap) {
        assert_eq!(new.version.0, self.map.version.0 + 1);
        for (id, chain) in &self.map.chains {
            let states = |m: &ClusterMap| {
                m.chains[id]
                    .targets
                    .iter()
                    .map(|t| (*t, m.state(*t)))
                    .collect::<Vec<_>>()
            };
            let bumped = new.chains[id].version.0 - chain.version.0;
            assert!(bumped <= 1);
            assert!(
                bumped == 1 || states(new) == states(&self.map),
                "changed without a new version"
            );
        }
    }
}

#[derive(Clone, Debug)]
enum Event {
    Kill(usize),
    Refuse(usize),
    Restart(usize),
    Partition(usize),
    Connect(usize),
    Adopt(usize),
    Report(usize),
    Sync(usize),
    Write,
    HalfWrite,
    Evaluate,
}

fn any_event() -> impl Strategy<Value = Event> {
    let n = 0usize..3;
    prop_oneof![
        1 => n.clone().prop_map(Event::Kill),
        1 => n.clone().prop_map(Event::Refuse),
        1 => n.clone().prop_map(Event::Restart),
        1 => n.clone().prop_map(Event::Partition),
        2 => n.clone().prop_map(Event::Connect),
        6 => n.clone().prop_map(Event::Adopt),
        6 => n.clone().prop_map(Event::Report),
        5 => n.prop_map(Event::Sync),
        4 => Just(Event::Write),
        3 => Just(Event::HalfWrite),
        6 => Just(Event::Evaluate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]
    #[test]
    fn nobody_serves_without_every_acknowledged_write(events in prop::collection::vec(any_event(), 1..120)) {
        let mut sim = Sim::new();
        for event in events {
            match event {
                Event::Kill(n) => sim.kill(n),
                Event::Refuse(n) => sim.refuse(n),
                Event::Restart(n) => sim.restart(n),
                Event::Partition(n) => sim.partition(n),
                Event::Connect(n) => sim.connect(n),
                Event::Adopt(n) => sim.adopt(n),
                Event::Report(n) => sim.report(n),
                Event::Sync(n) => sim.sync(n),
                Event::Write => sim.write(),
                Event::HalfWrite => sim.half_write(),
                Event::Evaluate => sim.evaluate(),
            }
        }
        // Whatever happened, everybody comes back in the end.
        for n in 0..3 {
            if sim.nodes[n].running { sim.connect(n) } else { sim.restart(n) }
        }
        for _ in 0..12 {
            sim.evaluate();
            for n in 0..3 {
                sim.adopt(n);
            }
            for n in 0..3 {
                sim.sync(n);
                sim.report(n);
            }
        }
        let states: Vec<_> = (0..3).map(|n| sim.target(n).state).collect();
        prop_assert_eq!(states, vec![PublicState::Serving; 3]);
    }
}

/// All three nodes know the map in force, and the manager knows that.
fn calm() -> Sim {
    let mut sim = Sim::new();
    for n in 0..3 {
        sim.adopt(n);
        sim.report(n);
    }
    sim.evaluate();
    sim
}

fn states(sim: &Sim) -> [PublicState; 3] {
    [0, 1, 2].map(|n| sim.target(n).state)
}

#[test]
fn a_restart_costs_a_replica_its_place_in_one_map() {
    let mut sim = calm();
    let before = sim.map.clone();
    sim.restart(0);
    sim.evaluate();
    assert_eq!(
        states(&sim),
        [
            PublicState::Syncing,
            PublicState::Serving,
            PublicState::Serving
        ]
    );
    assert_eq!(sim.map.version.0, before.version.0 + 1);
    assert_eq!(
        sim.map.chains[&CHAIN].version.0,
        before.chains[&CHAIN].version.0 + 1
    );
}

#[test]
fn when_all_restart_at_once_one_revives_the_chain_under_a_new_version() {
    let mut sim = calm();
    let before = sim.map.chains[&CHAIN].version.0;
    for n in 0..3 {
        sim.restart(n);
    }
    sim.evaluate();
    let mut now = states(&sim);
    now.sort();
    assert_eq!(
        now,
        [
            PublicState::Serving,
            PublicState::Syncing,
            PublicState::Waiting
        ]
    );
    assert_eq!(sim.map.chains[&CHAIN].version.0, before + 1);
}

#[test]
fn a_replica_that_was_taken_out_and_does_not_know_it_is_not_promoted() {
    let mut sim = calm();
    sim.partition(0);
    sim.evaluate();
    sim.connect(0);
    sim.report(0); // UP_TO_DATE, as of before.
    sim.evaluate();
    assert_eq!(states(&sim)[0], PublicState::Offline);
    sim.adopt(0);
    sim.report(0);
    sim.evaluate();
    assert_eq!(states(&sim)[0], PublicState::Syncing);
}

#[test]
fn a_sync_whose_only_source_restarted_does_not_count() {
    let mut sim = calm();
    sim.restart(1);
    sim.kill(2);
    sim.refuse(2);
    sim.evaluate();
    assert_eq!(states(&sim)[1], PublicState::Syncing);
    sim.adopt(0);
    sim.adopt(1);
    sim.sync(1); // Done, but not yet reported when the source restarts.
    sim.restart(0);
    sim.evaluate();
    sim.report(1);
    sim.evaluate();
    assert_eq!(
        states(&sim)[..2],
        [PublicState::Serving, PublicState::Waiting]
    );
}
