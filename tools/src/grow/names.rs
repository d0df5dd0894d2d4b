//! What people call nodes and disks, and what the map knows of them.

use std::path::{Path, PathBuf};

use emberfs_proto::ids::{DiskId, NodeId};
use emberfs_proto::pb;

use crate::failure::{Failure, Result, fail};

/// Digits of a disk's id that are enough to name it, if no other begins with them.
const ENOUGH: usize = 6;

/// A node or a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thing {
    Node(NodeId),
    Disk(DiskId),
}

/// `storage-1`, `node/1` or `1`.
pub(super) fn node(text: &str) -> Result<NodeId> {
    let number = text
        .strip_prefix("storage-")
        .or(text.strip_prefix("node/"))
        .unwrap_or(text);
    match number.parse() {
        Ok(id) if id > 0 => Ok(NodeId(id)),
        _ => fail(format!("{text} is no node: write storage-1 or node/1")),
    }
}

/// A node as of [`node`], or a disk as of [`disk`] after `disk/`.
pub(super) fn thing(map: &pb::ClusterMapMsg, text: &str) -> Result<Thing> {
    if text.starts_with("disk/") {
        return disk(map, text).map(Thing::Disk);
    }
    node(text).map(Thing::Node).map_err(|_| {
        Failure::new(format!(
            "{text} is no node and no disk: write node/1 or disk/ID"
        ))
    })
}

/// A disk by its id or the beginning of it, with or without `disk/`.
pub(super) fn disk(map: &pb::ClusterMapMsg, text: &str) -> Result<DiskId> {
    let id = text
        .strip_prefix("disk/")
        .unwrap_or(text)
        .to_ascii_lowercase();
    let mut known: Vec<DiskId> = all_disks(map);
    known.sort_unstable();
    known.dedup();
    known.retain(|disk| disk.to_string().starts_with(&id));
    match known[..] {
        [disk] if id.len() >= ENOUGH => Ok(disk),
        [] => fail(format!(
            "there is no disk {text}; `emberfs status --json` lists them"
        )),
        _ => fail(format!(
            "disk {text} could be any of {}: write more of its id",
            known.len()
        )),
    }
}

/// Disks that nodes name, and those on which replicas are although their nodes do not name them.
fn all_disks(map: &pb::ClusterMapMsg) -> Vec<DiskId> {
    let named = map
        .nodes
        .iter()
        .flat_map(|node| node.disks.iter().map(|disk| &disk.id));
    let held = map.targets.iter().map(|target| &target.disk);
    let roles = map.roles.iter().map(|role| &role.disk);
    let all = named.chain(held).chain(roles);
    all.filter_map(|id| DiskId::from_bytes(id)).collect()
}

pub(super) fn knows(map: &pb::ClusterMapMsg, node: NodeId) -> bool {
    map.nodes.iter().any(|n| n.id == node.0)
}

/// The node's disk in this directory.
pub(super) fn disk_at(map: &pb::ClusterMapMsg, node: NodeId, path: &Path) -> Option<DiskId> {
    let node = map.nodes.iter().find(|n| n.id == node.0)?;
    let disk = node.disks.iter().find(|d| Path::new(&d.path) == path)?;
    DiskId::from_bytes(&disk.id)
}

/// Where the disk is, if its node names it.
pub(super) fn path_of(map: &pb::ClusterMapMsg, disk: DiskId) -> Option<PathBuf> {
    let mut disks = map.nodes.iter().flat_map(|node| &node.disks);
    disks
        .find(|d| d.id == disk.to_bytes())
        .map(|d| d.path.clone().into())
}

/// The node that has the disk or has replicas on it.
pub(super) fn node_of(map: &pb::ClusterMapMsg, disk: DiskId) -> Result<NodeId> {
    let id = disk.to_bytes();
    let named = map
        .nodes
        .iter()
        .find(|node| node.disks.iter().any(|d| d.id == id))
        .map(|n| n.id);
    let held = || map.targets.iter().find(|t| t.disk == id).map(|t| t.node);
    named.or_else(held).map(NodeId).ok_or_else(|| {
        Failure::new(format!(
            "no node has disk {disk} any more; `emberfs disk add` takes a new one"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> pb::ClusterMapMsg {
        let disk = |id: u128| pb::DiskMsg {
            id: DiskId(id << 64).to_bytes(),
            path: format!("/d{id}"),
            capacity: 1,
            ..Default::default()
        };
        let node = pb::NodeMsg {
            id: 1,
            disks: vec![disk(0xabcd_ef01_0000_0000), disk(0xabcd_ef02_0000_0000)],
            ..Default::default()
        };
        pb::ClusterMapMsg {
            nodes: vec![node],
            ..Default::default()
        }
    }

    #[test]
    fn nodes_have_three_names_and_anything_else_is_refused() {
        for text in ["storage-7", "node/7", "7"] {
            assert_eq!(node(text).expect("valid"), NodeId(7));
        }
        for bad in ["storage-", "0", "-1", "disk/7", "storage-0"] {
            let error = node(bad).expect_err("refused").to_string();
            assert!(error.contains("storage-1"), "{error}");
        }
    }

    #[test]
    fn a_disk_is_named_by_enough_of_its_id() {
        let map = map();
        let found = disk(&map, "disk/abcdef01").expect("one");
        assert_eq!(found, disk(&map, &found.to_string()).expect("whole id"));
        assert_eq!(
            thing(&map, "disk/ABCDEF01").expect("one"),
            Thing::Disk(found)
        );
        for bad in ["disk/abcdef", "disk/ab", "disk/ffffff", "disk/"] {
            assert!(disk(&map, bad).is_err(), "{bad}");
        }
        assert_eq!(
            disk_at(&map, NodeId(1), Path::new("/d12379813738877118345")),
            None
        );
        assert_eq!(node_of(&map, found).expect("named"), NodeId(1));
    }
}
