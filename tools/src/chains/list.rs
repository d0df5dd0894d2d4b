//! The chains of the running cluster.

use emberfs_proto::cluster::{ClusterMap, Target};
use serde::Serialize;

use crate::cluster_dir::storage_name;
use crate::show;
use crate::status::public_state;

/// The shape of `emberfs chains --json`. Fields are added, never changed.
#[derive(Debug, Serialize)]
pub(super) struct ChainList {
    cluster: String,
    address: String,
    map_version: u64,
    replicas: u32,
    chains: Vec<Chain>,
}

#[derive(Debug, Serialize)]
struct Chain {
    id: u32,
    version: u64,
    serving: usize,
    /// Head first.
    targets: Vec<Place>,
}

#[derive(Debug, Serialize)]
struct Place {
    id: u64,
    node: u32,
    disk: String,
    /// Directory on the node; empty if the node does not report the disk now.
    path: String,
    state: &'static str,
}

impl ChainList {
    pub(super) fn of(address: String, map: &ClusterMap) -> Self {
        let place = |target: &Target| {
            let disks = map.node_of(target).map_or(&[][..], |node| &node.disks);
            let disk = disks.iter().find(|disk| disk.id == target.disk);
            Place {
                id: target.id.0,
                node: target.node.0,
                disk: target.disk.to_string(),
                path: disk.map_or_else(String::new, |disk| disk.path.clone()),
                state: public_state(target.state),
            }
        };
        let chains = map.chains.values().map(|chain| Chain {
            id: chain.id.0,
            version: chain.version.0,
            serving: map.serving(chain).count(),
            targets: chain
                .targets
                .iter()
                .filter_map(|id| map.targets.get(id))
                .map(place)
                .collect(),
        });
        Self {
            cluster: map.cluster.to_string(),
            address,
            map_version: map.version.0,
            replicas: map.replicas,
            chains: chains.collect(),
        }
    }

    pub(super) fn render(&self) -> String {
        if self.chains.is_empty() {
            return "no chains yet: they are made when the expected storage servers have joined (emberfs status)"
                .to_owned();
        }
        let place = |place: &Place| {
            let node = storage_name(place.node as usize);
            let disk = if place.path.is_empty() {
                &place.disk
            } else {
                &place.path
            };
            format!("{node}:{disk} {}", place.state)
        };
        let rows = self.chains.iter().map(|chain| {
            let mut row = vec![
                chain.id.to_string(),
                format!("v{}", chain.version),
                format!("{}/{}", chain.serving, self.replicas),
            ];
            row.extend(chain.targets.iter().map(place));
            row
        });
        let widest = self.chains.iter().map(|chain| chain.targets.len()).max();
        let mut header = vec!["chain", "version", "serving", "head"];
        header.extend((1..widest.unwrap_or(1)).map(|_| ""));
        show::table(&header, rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chains::plan::tests::map;

    #[test]
    fn targets_are_listed_head_first_with_their_place_and_state() {
        let list = ChainList::of("a:1".to_owned(), &map());
        let json = serde_json::to_value(&list).expect("JSON");
        assert_eq!(json["map_version"], 7);
        let targets = &json["chains"][0]["targets"];
        assert_eq!(
            targets[0]["node"], 2,
            "the head is the first of the chain, not the lowest id"
        );
        assert_eq!(targets[0]["path"], "/disk-2");
        assert_eq!(targets[1]["state"], "offline");
        assert_eq!(json["chains"][0]["serving"], 1);
        let shown = list.render();
        let line = shown.lines().nth(1).expect("a chain");
        let (head, tail) = (
            line.find("storage-2:/disk-2 serving"),
            line.find("storage-1:/disk-1 offline"),
        );
        assert!(head.is_some() && head < tail, "{shown}");
        assert!(line.contains("1/2"), "{shown}");
    }

    #[test]
    fn a_cluster_without_chains_says_when_there_will_be_some() {
        let list = ChainList::of("a:1".to_owned(), &ClusterMap::default());
        assert!(list.render().contains("emberfs status"));
    }
}
