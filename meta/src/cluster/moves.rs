//! Growth and repair: replicas that change disks, from an operator's wish to an even cluster.
//!
//! ```text
//! verb ──► change (pure: refuse, or set roles) ──► the map: roles, rebalance
//!                                                     │ every evaluation
//!          advance (pure: the next step of each move) ◄┘──► plan (pure: what is left to move)
//! ```
//!
//! What an operator wants is stored as the *role* of each disk; which replicas have to move follows
//! from the map by [`plan`] and is worked out again at each evaluation. So nothing has to be resumed
//! after a crash, a verb may be repeated, and a later wish simply changes the plan.
//!
//! A move goes through these durable steps, each one map:
//! 1. A new target joins the chain as OFFLINE. The state table makes it SYNCING, resync fills it, it
//!    becomes SERVING: nothing here is special to a move.
//! 2. When the chain would keep as many SERVING replicas as asked for without the old one, that one
//!    is *leaving*: its node stops serving it and then says OFFLINE. (A dead one is OFFLINE already.)
//! 3. Once the old target is not SERVING any more it leaves the chain and the map, and its node
//!    deletes its data.
//!
//! What this guarantees:
//! - a chain never has fewer SERVING replicas because of a move than before it;
//! - no target leaves a chain while it may still answer a read: the chain goes on without it only after
//!   its node has said that it has stopped, or is certainly dead;
//! - target ids are never used twice, so a node can tell data that was moved away from data that
//!   the map does not know yet.
//!
//! Rejected: stored lists of moves made by the verb (they go stale with every failure, and two verbs
//! make two lists); taking the old target out in the same step that sees the new one SERVING (its node
//! could answer reads of an old map for a moment while the others accept writes).

mod advance;
mod change;
mod plan;

use std::collections::BTreeMap;

use emberfs_proto::ids::DiskId;

pub(super) use advance::may_begin;
pub(super) use advance::{Pace, advance};
pub(super) use change::Change;
pub(super) use plan::{Plan, plan};

/// What is known of one disk right now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Health {
    /// Its node is alive and names it, and it has not failed.
    pub(super) works: bool,
    /// Bytes in use, as last reported.
    pub(super) used: u64,
    /// Bytes left, as last reported; `None` if nothing was reported yet.
    pub(super) free: Option<u64>,
}

/// What is known of the disks right now; one that is missing does not work.
pub(super) type Facts = BTreeMap<DiskId, Health>;

#[cfg(test)]
mod tests;
