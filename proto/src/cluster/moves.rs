//! Replicas that change disks: the part of the map that growth and repair use.

use super::{ClusterMap, DiskRole};
use crate::ids::{ChainId, DiskId, TargetId};
use crate::pb;

/// A replica of a chain on its way to another disk: a new target joins the chain, is brought up to
/// date like any other, and takes the old one's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Whose replica.
    pub chain: ChainId,
    /// The new one.
    pub target: TargetId,
    /// The one that goes.
    pub replaces: TargetId,
    /// The new one serves. The old one must stop serving, and leaves the chain once it has.
    pub leaving: bool,
}

impl ClusterMap {
    /// What is wanted of a disk. One that nobody has spoken of is in use if it holds replicas, and
    /// otherwise new ([`DiskRole::Unspecified`]): it holds nothing before it is added.
    pub fn role(&self, disk: DiskId) -> DiskRole {
        let in_use = || {
            if self.targets.values().any(|t| t.disk == disk) {
                DiskRole::Active
            } else {
                DiskRole::Unspecified
            }
        };
        self.roles.get(&disk).copied().unwrap_or_else(in_use)
    }

    /// Whether the target must stop serving because it is about to leave its chain.
    pub fn is_leaving(&self, target: TargetId) -> bool {
        let chain = self.targets.get(&target).map(|t| t.chain);
        let moving = chain.and_then(|chain| self.moves.get(&chain));
        moving.is_some_and(|m| m.leaving && m.replaces == target)
    }
}

impl From<&Move> for pb::MoveMsg {
    fn from(m: &Move) -> Self {
        Self {
            chain: m.chain.0,
            target: m.target.0,
            replaces: m.replaces.0,
            leaving: m.leaving,
        }
    }
}

impl From<&pb::MoveMsg> for Move {
    fn from(msg: &pb::MoveMsg) -> Self {
        Self {
            chain: ChainId(msg.chain),
            target: TargetId(msg.target),
            replaces: TargetId(msg.replaces),
            leaving: msg.leaving,
        }
    }
}

pub(super) fn role_msg((disk, role): (&DiskId, &DiskRole)) -> pb::DiskRoleMsg {
    pb::DiskRoleMsg {
        disk: disk.to_bytes(),
        role: *role as i32,
    }
}
