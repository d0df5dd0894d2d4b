//! Is this node, and is each of its disks, what it says it is? Pure.
//!
//! A disk is told from an older copy of itself by a *mark*: each time a server opens a disk it draws
//! a new one at random, writes it to the disk as proposed, and registers with it and with the last one that was
//! accepted. The map remembers the one that it accepted (`ClusterMap::openings`), and only when that map is
//! durable does the server hear of it and write the mark to the disk as accepted. So the true disk always bears
//! the remembered mark as one of its two, whenever either side was killed. A snapshot or a clone bears
//! marks from before, and what it proposes itself is not what the true disk had proposed. A counter
//! would not do: a copy that is one opening behind proposes the very number that is remembered.
//!
//! What this cannot tell: a copy made while the disk was open, put in its place before it was
//! opened again. It is as old as the process that had it open, and resync compares every chunk.

use std::collections::BTreeMap;

use emberfs_proto::cluster::{ClusterMap, Disk, DiskRole, Node};
use emberfs_proto::ids::{DiskId, MapVersion, NodeId};
use emberfs_proto::{Error, ErrorCode, Result};

use super::Members;

/// What a node says of itself when it registers.
#[derive(Clone, Debug)]
pub(in crate::cluster) struct Announcement {
    pub(in crate::cluster) node: Node,
    /// The mark of this opening of each disk.
    pub(in crate::cluster) openings: BTreeMap<DiskId, u64>,
    /// The mark of the last opening that was accepted.
    pub(in crate::cluster) last_openings: BTreeMap<DiskId, u64>,
}

/// A node whose disks bear no marks.
impl From<Node> for Announcement {
    fn from(node: Node) -> Self {
        let (openings, last_openings) = (BTreeMap::new(), BTreeMap::new());
        Self {
            node,
            openings,
            last_openings,
        }
    }
}

/// Refuses disks of other nodes, empty ones in the place of full ones, and older copies.
pub(super) fn check_disks(
    announced: &Announcement,
    members: &Members,
    map: &ClusterMap,
) -> Result<()> {
    for disk in &announced.node.disks {
        check_owner(&announced.node, disk, members, map)?;
        check_opening(announced, disk, map)?;
    }
    Ok(())
}

fn check_owner(node: &Node, disk: &Disk, members: &Members, map: &ClusterMap) -> Result<()> {
    let mut others = members.sessions().filter(|s| s.node.id != node.id);
    if let Some(other) = others.find(|s| s.node.disks.iter().any(|d| d.id == disk.id)) {
        return foreign(format!(
            "disk {} at {} belongs to node {}; move it back, or give node {} an empty disk",
            disk.id, disk.path, other.node.id, node.id
        ));
    }
    // A new disk where one with replicas was: most likely that one is not mounted.
    let before = members.session(node.id);
    let lost = before.into_iter().flat_map(|s| &s.node.disks).find(|old| {
        old.path == disk.path
            && node.disks.iter().all(|d| d.id != old.id)
            && map.role(old.id) != DiskRole::Retired
            && map.targets.values().any(|t| t.disk == old.id)
    });
    lost.map_or(Ok(()), |lost| {
        foreign(format!(
            "{} of node {} holds an empty disk where disk {} with replicas was; mount that one, or give \
             the empty one another directory; if it is dead: `emberfs replace {} {}`",
            disk.path, node.id, lost.id, lost.id, disk.path
        ))
    })
}

fn check_opening(announced: &Announcement, disk: &Disk, map: &ClusterMap) -> Result<()> {
    let mark = map.openings.get(&disk.id);
    let bears = |marks: &BTreeMap<DiskId, u64>| mark == marks.get(&disk.id);
    if mark.is_none() || bears(&announced.openings) || bears(&announced.last_openings) {
        return Ok(());
    }
    foreign(format!(
        "{} of node {} holds an older copy of disk {} (a restored snapshot or a clone): the disk has been in use \
         since; bring the newest one back, or empty the directory and take it in as a new disk with `emberfs replace`",
        disk.path, announced.node.id, disk.id
    ))
}

/// Refuses to speak for a cluster that has seen newer maps than this metadata store holds.
pub(super) fn check_version(node: NodeId, adopted: MapVersion, map: &ClusterMap) -> Result<()> {
    if adopted <= map.version {
        return Ok(());
    }
    let what = format!(
        "node {node} has adopted cluster map {adopted}, the metadata server knows none after {}: its store is older \
         than the cluster, as after restoring an old copy; stop it and bring the newest copy of its `data_dir` back",
        map.version
    );
    Err(Error::new(ErrorCode::MetadataTooOld, what))
}

fn foreign(what: String) -> Result<()> {
    Err(Error::new(ErrorCode::ForeignDisk, what))
}
