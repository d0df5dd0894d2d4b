//! What operators ask for: refused with the reason and the right command, or set in the map. Pure.

use std::collections::BTreeSet;

use emberfs_proto::cluster::{ClusterMap, DiskRole, Node};
use emberfs_proto::ids::{DiskId, NodeId};
use emberfs_proto::pb::{self, change_request::Verb};
use emberfs_proto::{Error, ErrorCode, Result};

use super::Facts;

/// One wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cluster) enum Change {
    /// All disks of the node take replicas.
    AddNode(NodeId),
    /// The disk takes replicas.
    AddDisk(DiskId),
    /// All replicas of the node move away.
    DrainNode(NodeId),
    /// All replicas of the disk move away.
    DrainDisk(DiskId),
    /// The disk is dead: its replicas are made anew elsewhere.
    RetireDisk(DiskId),
    /// The node is forgotten.
    RemoveNode(NodeId),
}

impl TryFrom<&pb::ChangeRequest> for Change {
    type Error = Error;

    fn try_from(request: &pb::ChangeRequest) -> Result<Self> {
        let node = NodeId(request.node);
        let disk =
            || DiskId::from_bytes(&request.disk).ok_or_else(|| refuse("a disk id has 16 bytes"));
        Ok(match request.verb() {
            Verb::AddNode => Self::AddNode(node),
            Verb::AddDisk => Self::AddDisk(disk()?),
            Verb::DrainNode => Self::DrainNode(node),
            Verb::DrainDisk => Self::DrainDisk(disk()?),
            Verb::RetireDisk => Self::RetireDisk(disk()?),
            Verb::RemoveNode => Self::RemoveNode(node),
            Verb::Unspecified => {
                return Err(refuse("the request names no verb; upgrade the manager"));
            }
        })
    }
}

impl Change {
    /// The map with this wish in it; its version is the caller's business. What is so already is
    /// answered with the same map.
    pub(in crate::cluster) fn apply(self, map: &ClusterMap, facts: &Facts) -> Result<ClusterMap> {
        let mut new = map.clone();
        match self {
            Self::AddNode(id) => {
                let node = find_node(map, id)?;
                if node.disks.is_empty() {
                    return Err(refuse(format!(
                        "node {} names no disk; check its configuration",
                        id.0
                    )));
                }
                for disk in &node.disks {
                    add(&mut new, facts, node, disk.id)?;
                }
            }
            Self::AddDisk(disk) => add(&mut new, facts, find_disk(map, disk)?, disk)?,
            Self::DrainNode(id) => {
                find_node(map, id)?;
                for disk in disks_of(map, id) {
                    drain(&mut new, disk);
                }
                check_room(&new, facts, &format!("node {}", id.0))?;
            }
            Self::DrainDisk(disk) => {
                check_known(map, disk)?;
                drain(&mut new, disk);
                check_room(&new, facts, &format!("disk {disk}"))?;
            }
            Self::RetireDisk(disk) => {
                check_known(map, disk)?;
                if facts.get(&disk).is_some_and(|health| health.works) {
                    return Err(refuse(format!(
                        "disk {disk} works: drain it instead, with `emberfs drain disk/{disk}`"
                    )));
                }
                new.roles.insert(disk, DiskRole::Retired);
            }
            Self::RemoveNode(id) => remove(&mut new, id)?,
        }
        Ok(new)
    }
}

fn add(new: &mut ClusterMap, facts: &Facts, node: &Node, disk: DiskId) -> Result<()> {
    if !facts.get(&disk).is_some_and(|health| health.works) {
        return Err(refuse(format!(
            "disk {disk} of node {} does not work now; start its server, or see `emberfs status`",
            node.id.0
        )));
    }
    if new.role(disk) != DiskRole::Active {
        new.roles.insert(disk, DiskRole::Active);
        new.rebalance = true;
    }
    Ok(())
}

fn drain(new: &mut ClusterMap, disk: DiskId) {
    if new.roles.get(&disk) != Some(&DiskRole::Retired) {
        new.roles.insert(disk, DiskRole::Draining);
    }
}

/// Enough nodes must be left for the replicas of a chain, and enough bytes for what moves.
fn check_room(new: &ClusterMap, facts: &Facts, what: &str) -> Result<()> {
    let disks = new
        .nodes
        .values()
        .flat_map(|n| n.disks.iter().map(|d| (n.id, d.id)));
    let (mut nodes, mut free, mut moving) = (BTreeSet::new(), 0, 0);
    for (node, disk) in disks {
        let health = facts.get(&disk).copied().unwrap_or_default();
        match new.role(disk) {
            DiskRole::Active if health.works => {
                nodes.insert(node);
                free += health.free.unwrap_or(0);
            }
            DiskRole::Draining | DiskRole::Retired => moving += health.used,
            _ => {}
        }
    }
    if nodes.len() < new.replicas as usize {
        return Err(Error::new(
            ErrorCode::NotEnoughNodes,
            format!(
                "without {what} there are {} nodes left for {} replicas of each chunk; add a node first, with \
                 `emberfs node add`",
                nodes.len(),
                new.replicas
            ),
        ));
    }
    if moving > free {
        return Err(Error::new(
            ErrorCode::NoSpace,
            format!(
                "{what} and others that drain hold {moving} bytes, the other disks have {free} left; add a node first, \
                 with `emberfs node add`"
            ),
        ));
    }
    Ok(())
}

fn remove(new: &mut ClusterMap, id: NodeId) -> Result<()> {
    let node = find_node(new, id)?;
    let held = new.targets.values().filter(|t| t.node == id).count();
    if held > 0 {
        return Err(refuse(format!(
            "node {} holds {held} replicas: move them away first, with `emberfs drain node/{}`",
            id.0, id.0
        )));
    }
    if node.alive {
        return Err(refuse(format!(
            "node {} still runs at {}: stop its server first",
            id.0, node.data_addr
        )));
    }
    new.nodes.remove(&id);
    Ok(())
}

/// Disks that the node names, and those that it does not name any more but holds replicas on.
fn disks_of(map: &ClusterMap, node: NodeId) -> BTreeSet<DiskId> {
    let named = map
        .nodes
        .get(&node)
        .into_iter()
        .flat_map(|n| n.disks.iter().map(|d| d.id));
    let held = map
        .targets
        .values()
        .filter(|t| t.node == node)
        .map(|t| t.disk);
    named.chain(held).collect()
}

fn find_node(map: &ClusterMap, id: NodeId) -> Result<&Node> {
    map.nodes.get(&id).ok_or_else(|| {
        let known: Vec<_> = map.nodes.keys().map(|n| n.0.to_string()).collect();
        refuse(format!(
            "there is no node {}; there are {}",
            id.0,
            known.join(", ")
        ))
    })
}

fn find_disk(map: &ClusterMap, disk: DiskId) -> Result<&Node> {
    let holds = |node: &&Node| node.disks.iter().any(|d| d.id == disk);
    map.nodes.values().find(holds).ok_or_else(|| unknown(disk))
}

fn check_known(map: &ClusterMap, disk: DiskId) -> Result<()> {
    if map.targets.values().any(|t| t.disk == disk) || map.roles.contains_key(&disk) {
        return Ok(());
    }
    find_disk(map, disk).map(|_| ())
}

fn unknown(disk: DiskId) -> Error {
    refuse(format!(
        "there is no disk {disk}; `emberfs status --json` lists them"
    ))
}

fn refuse(what: impl Into<String>) -> Error {
    Error::new(ErrorCode::InvalidArgument, what.into())
}
