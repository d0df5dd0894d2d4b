//! The cluster manager: who is a member, who is alive, and what every chain looks like.
//!
//! ```text
//! nodes ──Register/Heartbeat/Leave──► members ──facts──► evaluate ──new map──► store ──► watchers
//!          a broken stream ► probe ──► (sessions,        (pure: state,         (one fenced
//!                                       claims)      ┌─►  placement, moves)     transaction)
//! operators ──Change──────────────────► roles ───────┘
//! ```
//!
//! What the parts guarantee together:
//! - Only a durable map is published, and its version grows by one with each change.
//! - A node is declared dead only when it certainly serves nothing any more: its host refused a
//!   connection to its port, another process has taken the port over, it said so itself
//!   (`Leave`), or the lease last granted to it has run out.
//! - A chain's states follow [`state`], and a chain's version grows by exactly one per map in
//!   which its order or one of its states changed, however many rows of the table were applied.
//! - Every promotion (to SYNCING, to SERVING) rests on a claim that the node made under the chain
//!   version in force, or on a process that is new since the replica was last part of the chain.
//!   A late or repeated report can take a replica out, never in.
//! - A process that restarted is first evaluated as failed, then as back, in one step.
//! - After a start the manager *settles*: it judges nobody until every live node of the stored map
//!   was heard of or its lease has run out, and then judges all at once. So a crash of the whole
//!   cluster counts as a failure of all replicas at one time, and every one that was SERVING may
//!   revive its chain.

mod evaluate;
mod manager;
mod members;
#[doc(hidden)]
pub mod model;
mod moves;
pub mod placement;
mod probe;
mod service;
pub mod state;
mod store;

pub use manager::{Manager, ManagerConfig};
pub use service::ClusterService;
