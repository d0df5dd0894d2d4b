//! Chain replication, CRAQ style (Terrace and Freedman, USENIX ATC 2009), as 3FS uses it.
//!
//! [`Replica`] is the protocol of one target as a state machine without I/O: events go in, actions
//! come out, and there is no clock, socket, disk or thread inside. The server (`crate::server`)
//! drives it with the engine and the network; a simulator can drive it with a seed.
//!
//! What it guarantees, given an engine that keeps what it has prepared and a manager that keeps
//! its leases:
//! 1. A write is acknowledged only when it is durable on every SERVING and SYNCING target of the
//!    chain version in force. A target forwards what is durable in its own engine; what it sends before
//!    that (early) its successor stores and holds until it is confirmed. A target commits only after its
//!    successor did, so along a chain committed versions never decrease.
//! 2. Every request is checked against chain version, role, local state and lease before it queues
//!    for the chunk and again when it holds it.
//! 3. A version names one write for ever once it was forwarded or confirmed: it is finished by an
//!    acknowledgement or by a chain change, never dropped by a time-out. The one exception is a write that the
//!    successor refused for certain without storing it (its disk is full): it is undone where it is pending
//!    before its client hears of it, and so is one that was only sent early and failed.
//! 4. A retried write (same [`WriteTag`](emberfs_proto::ids::WriteTag)) is answered, not applied again: by the table of
//!    finished writes that every target of the chain keeps, and by the tags in the chunk's record: those
//!    of the last write and of the last of each of the
//!    [`REMEMBERED_WRITES`](crate::engine::REMEMBERED_WRITES) channels before.
//! 5. A reader sees a version only when the tail has committed it: while a write is in progress
//!    a replica asks the tail which version that is.
//!
//! One write holds its chunk from the first check to the commit; writes of other chunks
//! run beside it.

/// Whether the simulator wants this rule broken; never in production.
#[cfg(test)]
macro_rules! mutated {
    ($replica:expr, $mutant:ident) => {
        $replica.mutant == Some(crate::sim::mutant::Mutant::$mutant)
    };
}
#[cfg(not(test))]
macro_rules! mutated {
    ($replica:expr, $mutant:ident) => {
        false
    };
}

mod dedup;
mod replica;
mod types;

pub use replica::{ReadPlan, Replica};
pub use types::{
    Action, Content, Event, Forward, Message, OpId, Outcome, RequestId, Sent, Successor, Update,
    UpdateKind, View,
};

#[cfg(test)]
mod tests;
