//! The cluster map: what every server and client knows about nodes, targets and chains.
//!
//! A map is an immutable snapshot with one version number; the manager makes a new one at every
//! change and pushes it. Questions about a chain (who is head, who comes after me) are answered
//! here, once, for servers and clients alike.

mod settings;

use std::collections::BTreeMap;

use crate::error::{Error, ErrorCode, Result};
use crate::ids::{
    ChainId, ChainTableId, ChainTableVersion, ChainVersion, ClusterId, DiskId, IncarnationId,
    MapVersion, NodeId, TargetId,
};
use crate::pb;
pub use crate::pb::{LocalState, PublicState};
pub use settings::Settings;

/// A server process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// `host:port` of its data plane.
    pub data_addr: String,
    /// `host:port` of its management gRPC.
    pub admin_addr: String,
    /// Which run of the process.
    pub incarnation: IncarnationId,
    /// The manager's verdict.
    pub alive: bool,
    /// Its disks.
    pub disks: Vec<Disk>,
}

/// A disk of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its id, drawn when it was formatted.
    pub id: DiskId,
    /// Directory on the node.
    pub path: String,
    /// Bytes.
    pub capacity: u64,
}

/// A replica slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its id.
    pub id: TargetId,
    /// The chain whose data it holds.
    pub chain: ChainId,
    /// The node it is on.
    pub node: NodeId,
    /// The disk it is on.
    pub disk: DiskId,
    /// The manager's verdict.
    pub state: PublicState,
}

/// A chain: targets in order, head first; SERVING ones before all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its id.
    pub id: ChainId,
    /// +1 per change of membership, order or state.
    pub version: ChainVersion,
    /// In chain order.
    pub targets: Vec<TargetId>,
}

/// One snapshot of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterMap {
    /// +1 per change.
    pub version: MapVersion,
    /// Which cluster.
    pub cluster: ClusterId,
    /// Replicas per chain that the operator asked for.
    pub replicas: u32,
    /// All nodes that ever registered and were not removed.
    pub nodes: BTreeMap<NodeId, Node>,
    /// All targets.
    pub targets: BTreeMap<TargetId, Target>,
    /// All chains.
    pub chains: BTreeMap<ChainId, Chain>,
    /// All versions of all chain tables.
    pub tables: BTreeMap<(ChainTableId, ChainTableVersion), Vec<ChainId>>,
    /// What operators have set.
    pub settings: Settings,
}

impl ClusterMap {
    /// The chain, or [`ErrorCode::NoChains`].
    pub fn chain(&self, id: ChainId) -> Result<&Chain> {
        self.chains.get(&id).ok_or_else(|| {
            let what = format!(
                "chain {id} is not in cluster map {}; refresh the map",
                self.version
            );
            Error::new(ErrorCode::NoChains, what)
        })
    }

    /// State of a target; OFFLINE if unknown.
    pub fn state(&self, target: TargetId) -> PublicState {
        self.targets
            .get(&target)
            .map_or(PublicState::Offline, |t| t.state)
    }

    /// Targets that answer reads, in chain order.
    pub fn serving<'a>(&'a self, chain: &'a Chain) -> impl DoubleEndedIterator<Item = &'a Target> {
        self.in_state(chain, |state| state == PublicState::Serving)
    }

    /// Targets that receive writes, in chain order: SERVING, then the SYNCING one.
    pub fn writable<'a>(&'a self, chain: &'a Chain) -> impl DoubleEndedIterator<Item = &'a Target> {
        self.in_state(chain, |s| {
            matches!(s, PublicState::Serving | PublicState::Syncing)
        })
    }

    fn in_state<'a>(
        &'a self,
        chain: &'a Chain,
        wanted: impl Fn(PublicState) -> bool + 'a,
    ) -> impl DoubleEndedIterator<Item = &'a Target> {
        let targets = chain.targets.iter().filter_map(|id| self.targets.get(id));
        targets.filter(move |t| wanted(t.state))
    }

    /// Where client writes enter: the first SERVING target.
    pub fn head<'a>(&'a self, chain: &'a Chain) -> Option<&'a Target> {
        self.serving(chain).next()
    }

    /// Whose word decides which version is committed: the last SERVING target.
    pub fn tail<'a>(&'a self, chain: &'a Chain) -> Option<&'a Target> {
        self.serving(chain).next_back()
    }

    /// The next target after `target` that receives writes.
    pub fn successor<'a>(&'a self, chain: &'a Chain, target: TargetId) -> Option<&'a Target> {
        self.writable(chain).skip_while(|t| t.id != target).nth(1)
    }

    /// The node of a target.
    pub fn node_of(&self, target: &Target) -> Option<&Node> {
        self.nodes.get(&target.node)
    }

    /// Chains of a table version, in table order, or [`ErrorCode::NoChains`].
    pub fn table(&self, id: ChainTableId, version: ChainTableVersion) -> Result<&[ChainId]> {
        self.tables
            .get(&(id, version))
            .map(Vec::as_slice)
            .ok_or_else(|| {
                let what = format!(
                    "chain {id} {version} is not in cluster map {}",
                    self.version
                );
                Error::new(ErrorCode::NoChains, what)
            })
    }

    /// The newest version of a chain table; new files use it.
    pub fn newest_table(&self, id: ChainTableId) -> Option<(ChainTableVersion, &[ChainId])> {
        let mut versions = self
            .tables
            .range((id, ChainTableVersion(0))..=(id, ChainTableVersion(u32::MAX)));
        versions
            .next_back()
            .map(|(&(_, version), chains)| (version, chains.as_slice()))
    }
}

impl From<&ClusterMap> for pb::ClusterMapMsg {
    fn from(map: &ClusterMap) -> Self {
        Self {
            version: map.version.0,
            cluster: map.cluster.to_bytes(),
            replicas: map.replicas,
            nodes: map.nodes.values().map(node_msg).collect(),
            targets: map.targets.values().map(target_msg).collect(),
            chains: map.chains.values().map(chain_msg).collect(),
            tables: map
                .tables
                .iter()
                .map(|(&(id, version), chains)| pb::ChainTableMsg {
                    id: id.0,
                    version: version.0,
                    chains: chains.iter().map(|c| c.0).collect(),
                })
                .collect(),
            settings: Some(map.settings.into()),
        }
    }
}

impl TryFrom<&pb::ClusterMapMsg> for ClusterMap {
    type Error = Error;

    fn try_from(msg: &pb::ClusterMapMsg) -> Result<Self> {
        let mut map = Self {
            version: MapVersion(msg.version),
            cluster: ClusterId::from_bytes(&msg.cluster).ok_or_else(|| malformed("cluster id"))?,
            replicas: msg.replicas,
            // From before there were settings: the defaults.
            settings: match &msg.settings {
                Some(settings) => Settings::default().with(settings)?,
                None => Settings::default(),
            },
            ..Self::default()
        };
        for node in &msg.nodes {
            map.nodes.insert(NodeId(node.id), node_from(node)?);
        }
        for t in &msg.targets {
            let target = Target {
                id: TargetId(t.id),
                chain: ChainId(t.chain),
                node: NodeId(t.node),
                disk: DiskId::from_bytes(&t.disk).ok_or_else(|| malformed("disk id"))?,
                state: t.state(),
            };
            map.targets.insert(target.id, target);
        }
        for c in &msg.chains {
            let targets = c.targets.iter().copied().map(TargetId).collect();
            let chain = Chain {
                id: ChainId(c.id),
                version: ChainVersion(c.version),
                targets,
            };
            map.chains.insert(chain.id, chain);
        }
        for t in &msg.tables {
            let chains = t.chains.iter().copied().map(ChainId).collect();
            map.tables
                .insert((ChainTableId(t.id), ChainTableVersion(t.version)), chains);
        }
        Ok(map)
    }
}

fn node_msg(node: &Node) -> pb::NodeMsg {
    pb::NodeMsg {
        id: node.id.0,
        data_addr: node.data_addr.clone(),
        admin_addr: node.admin_addr.clone(),
        incarnation: node.incarnation.to_bytes(),
        alive: node.alive,
        disks: node.disks.iter().map(pb::DiskMsg::from).collect(),
    }
}

fn node_from(msg: &pb::NodeMsg) -> Result<Node> {
    Ok(Node {
        id: NodeId(msg.id),
        data_addr: msg.data_addr.clone(),
        admin_addr: msg.admin_addr.clone(),
        incarnation: IncarnationId::from_bytes(&msg.incarnation)
            .ok_or_else(|| malformed("incarnation"))?,
        alive: msg.alive,
        disks: msg
            .disks
            .iter()
            .map(Disk::try_from)
            .collect::<Result<_>>()?,
    })
}

impl From<&Disk> for pb::DiskMsg {
    fn from(disk: &Disk) -> Self {
        Self {
            id: disk.id.to_bytes(),
            path: disk.path.clone(),
            capacity: disk.capacity,
        }
    }
}

impl TryFrom<&pb::DiskMsg> for Disk {
    type Error = Error;

    fn try_from(msg: &pb::DiskMsg) -> Result<Self> {
        let id = DiskId::from_bytes(&msg.id).ok_or_else(|| malformed("disk id"))?;
        Ok(Self {
            id,
            path: msg.path.clone(),
            capacity: msg.capacity,
        })
    }
}

fn target_msg(target: &Target) -> pb::TargetMsg {
    pb::TargetMsg {
        id: target.id.0,
        chain: target.chain.0,
        node: target.node.0,
        disk: target.disk.to_bytes(),
        state: target.state as i32,
    }
}

fn chain_msg(chain: &Chain) -> pb::ChainMsg {
    pb::ChainMsg {
        id: chain.id.0,
        version: chain.version.0,
        targets: chain.targets.iter().map(|t| t.0).collect(),
    }
}

fn malformed(what: &str) -> Error {
    Error::new(
        ErrorCode::Protocol,
        format!("malformed cluster map: bad {what}"),
    )
}

#[cfg(test)]
mod tests;
