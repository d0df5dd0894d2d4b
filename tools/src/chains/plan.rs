//! How even a placement is, for people and as JSON.

use emberfs_meta::cluster::placement::balance::{Balance, Load, Spread};
use emberfs_meta::cluster::placement::restore::equal_nodes;
use emberfs_meta::cluster::placement::{self, Candidate, Slot};
use emberfs_proto::cluster::{ClusterMap, PublicState};
use serde::Serialize;

use crate::cli::PlanArgs;
use crate::failure::Result;
use crate::show;

/// The shape of `emberfs chains plan --json`. Fields are added, never changed.
#[derive(Debug, Serialize)]
pub(super) struct PlanReport {
    nodes: usize,
    disks: usize,
    chains: usize,
    targets_per_disk: SpreadReport,
    heads_per_disk: SpreadReport,
    pairs: SpreadReport,
    reads: LoadReport,
    resync: LoadReport,
    disk_reads: LoadReport,
    deaths: Vec<DeathReport>,
    not_serving: Option<usize>,
    steps: Option<u64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct SpreadReport {
    min: u64,
    mean: f64,
    max: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct LoadReport {
    mean: f64,
    busiest: u64,
    ratio: f64,
    ideal: f64,
}

#[derive(Debug, Serialize)]
struct DeathReport {
    node: u32,
    reads: LoadReport,
    resync: LoadReport,
    disk_reads: LoadReport,
}

impl PlanReport {
    /// Plans for nodes that need not exist, and measures the plan. Takes seconds at most.
    pub(super) fn plan(nodes: u32, args: &PlanArgs) -> Result<Self> {
        let candidates = equal_nodes(nodes, args.disks);
        let per_disk = args.targets_per_disk.unwrap_or_else(|| {
            let disks = candidates.iter().map(|c| c.disks.len()).sum();
            let wanted = placement::default_targets(disks);
            placement::targets_per_disk(&candidates, args.replicas, wanted)
        });
        let plan = placement::plan(&candidates, args.replicas, per_disk)?;
        let mut report = Self::new(&Balance::of(&candidates, &plan.chains));
        report.steps = Some(plan.steps);
        Ok(report)
    }

    /// Measures the running cluster.
    pub(super) fn of_map(map: &ClusterMap) -> Self {
        let candidates: Vec<Candidate> = map
            .nodes
            .values()
            .map(|node| Candidate {
                node: node.id,
                disks: node.disks.iter().map(|disk| disk.id).collect(),
            })
            .collect();
        let slots = |chain: &emberfs_proto::cluster::Chain| {
            let targets = chain.targets.iter().filter_map(|id| map.targets.get(id));
            targets
                .map(|target| Slot {
                    node: target.node,
                    disk: target.disk,
                })
                .collect()
        };
        let chains: Vec<Vec<Slot>> = map.chains.values().map(slots).collect();
        let serving = |state| state == PublicState::Serving;
        let mut report = Self::new(&Balance::of(&candidates, &chains));
        let missing = map.targets.values().filter(|target| !serving(target.state));
        report.not_serving = Some(missing.count());
        report
    }

    fn new(balance: &Balance) -> Self {
        let death = |death: &placement::balance::Death| DeathReport {
            node: death.node.0,
            reads: death.reads.into(),
            resync: death.resync.into(),
            disk_reads: death.disk_reads.into(),
        };
        Self {
            nodes: balance.nodes,
            disks: balance.disks,
            chains: balance.chains,
            targets_per_disk: balance.targets_per_disk.into(),
            heads_per_disk: balance.heads_per_disk.into(),
            pairs: balance.pairs.into(),
            reads: balance.worst_reads().into(),
            resync: balance.worst_resync().into(),
            disk_reads: balance.worst_disk_reads().into(),
            deaths: balance.deaths.iter().map(death).collect(),
            not_serving: None,
            steps: None,
        }
    }

    pub(super) fn render(&self) -> String {
        let spread = |name: &str, spread: SpreadReport| {
            let ideal = if spread.mean.fract() == 0.0 {
                format!("{:.0}", spread.mean)
            } else {
                format!("{:.0} or {:.0}", spread.mean.floor(), spread.mean.ceil())
            };
            vec![
                name.to_owned(),
                spread.min.to_string(),
                format!("{:.2}", spread.mean),
                spread.max.to_string(),
                ideal,
            ]
        };
        let load = |name: &str, load: LoadReport| {
            vec![
                name.to_owned(),
                format!("{:.2}", load.mean),
                load.busiest.to_string(),
                format!("{:.3}", load.ratio),
                format!("{:.3}", load.ideal),
            ]
        };
        let mut parts = vec![
            format!(
                "{}, {}, {}",
                show::count(self.nodes, "node"),
                show::count(self.disks, "disk"),
                show::count(self.chains, "chain"),
            ),
            show::table(
                &["chains", "fewest", "mean", "most", "ideal"],
                [
                    spread("with a target on a disk", self.targets_per_disk),
                    spread("with their head on a disk", self.heads_per_disk),
                    spread("that two nodes share", self.pairs),
                ],
            ),
            show::table(
                &[
                    "when any one node dies",
                    "mean",
                    "busiest",
                    "busiest/mean",
                    "ideal",
                ],
                [
                    load("chains to read for it, per node", self.reads),
                    load("chains to send it anew, per node", self.resync),
                    load("chains to read for it, per disk", self.disk_reads),
                ],
            ),
        ];
        if let Some(missing) = self.not_serving.filter(|&missing| missing > 0) {
            parts.push(format!(
                "{} not serving now (emberfs status): measured as if all did",
                show::count(missing, "target")
            ));
        }
        parts.join("\n\n")
    }
}

impl From<Spread> for SpreadReport {
    fn from(Spread { min, mean, max }: Spread) -> Self {
        Self { min, mean, max }
    }
}

impl From<Load> for LoadReport {
    fn from(load: Load) -> Self {
        Self {
            mean: load.mean,
            busiest: load.busiest,
            ratio: load.ratio,
            ideal: load.ideal,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use clap::Parser;
    use emberfs_proto::cluster::{Chain, Disk, Node, Target};
    use emberfs_proto::ids::{
        ChainId, ChainVersion, DiskId, IncarnationId, MapVersion, NodeId, TargetId,
    };

    use crate::cli::{ChainsCommand, Cli, Command};

    /// Two nodes, one chain: node 2 is its head, node 1 is down.
    pub(in crate::chains) fn map() -> ClusterMap {
        let mut map = ClusterMap {
            version: MapVersion(7),
            replicas: 2,
            ..ClusterMap::default()
        };
        for id in [1, 2] {
            let disk = Disk {
                id: DiskId(u128::from(id)),
                path: format!("/disk-{id}"),
                capacity: 1,
            };
            let node = Node {
                id: NodeId(id),
                data_addr: String::new(),
                admin_addr: String::new(),
                incarnation: IncarnationId(1),
                alive: id == 2,
                disks: vec![disk],
            };
            map.nodes.insert(node.id, node);
            let target = Target {
                id: TargetId(u64::from(id)),
                chain: ChainId(1),
                node: NodeId(id),
                disk: DiskId(u128::from(id)),
                state: if id == 2 {
                    PublicState::Serving
                } else {
                    PublicState::Offline
                },
            };
            map.targets.insert(target.id, target);
        }
        let chain = Chain {
            id: ChainId(1),
            version: ChainVersion(3),
            targets: vec![TargetId(2), TargetId(1)],
        };
        map.chains.insert(chain.id, chain);
        map
    }

    pub(in crate::chains) fn arguments(rest: &[&str]) -> PlanArgs {
        let all = [&["emberfs", "chains", "plan"], rest].concat();
        match Cli::try_parse_from(all).expect("valid").command {
            Command::Chains(args) => match args.command {
                Some(ChainsCommand::Plan(plan)) => plan,
                None => panic!("no plan"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_plan_shows_its_balance_beside_the_ideal() {
        let args = arguments(&["--nodes", "6", "--targets-per-disk", "9"]);
        let report = PlanReport::plan(6, &args).expect("a plan");
        let json = serde_json::to_value(&report).expect("JSON");
        assert_eq!(json["chains"], 18);
        assert_eq!(json["pairs"]["max"], 4);
        assert_eq!(json["reads"]["busiest"], 4);
        assert!((json["reads"]["ratio"].as_f64().expect("a number") - 10.0 / 9.0).abs() < 1e-9);
        assert_eq!(json["deaths"].as_array().map(Vec::len), Some(6));
        assert!(json["not_serving"].is_null() && json["steps"].is_u64());
        let shown = report.render();
        assert!(shown.starts_with("6 nodes, 6 disks, 18 chains"), "{shown}");
        assert!(
            shown.contains("3 or 4") && shown.contains("1.111"),
            "{shown}"
        );
    }

    #[test]
    fn the_number_of_targets_asked_for_is_taken() {
        let args = arguments(&["--nodes", "6", "--targets-per-disk", "8"]);
        assert_eq!(PlanReport::plan(6, &args).expect("a plan").chains, 16);
        let args = arguments(&["--nodes", "2", "--replicas", "3"]);
        let failure = PlanReport::plan(2, &args)
            .expect_err("too few nodes")
            .to_string();
        assert!(
            failure.contains("needs 3 nodes") && failure.contains("lower replicas"),
            "{failure}"
        );
    }

    #[test]
    fn a_running_cluster_is_measured_with_a_word_on_what_is_down() {
        let report = PlanReport::of_map(&map());
        assert_eq!(
            (report.nodes, report.chains, report.not_serving),
            (2, 1, Some(1))
        );
        assert_eq!((report.pairs.min, report.pairs.max), (1, 1));
        assert!(report.render().contains("1 target not serving now"));
    }
}
