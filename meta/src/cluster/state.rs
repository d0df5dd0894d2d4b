//! The target state table: a pure function over one chain.
//!
//! [`next`] applies each row once, looking only at the states before it. [`settle`] applies
//! `next` until nothing changes: that is one evaluation, and it becomes at most one new chain
//! version, because the states in between are never in force anywhere.
//!
//! | public | local | others | next |
//! |---|---|---|---|
//! | SERVING | ONLINE, UP_TO_DATE | | SERVING |
//! | SERVING | OFFLINE | another replica has everything and is alive | OFFLINE |
//! | SERVING | OFFLINE | none | LAST_SERVING |
//! | LAST_SERVING | any | a SERVING exists | OFFLINE |
//! | LAST_SERVING | ONLINE, UP_TO_DATE | no SERVING, first such in order | SERVING |
//! | LAST_SERVING | any | otherwise | LAST_SERVING |
//! | SYNCING | UP_TO_DATE | | SERVING |
//! | SYNCING | ONLINE | a SERVING is alive | SYNCING |
//! | SYNCING | ONLINE | none | WAITING |
//! | SYNCING | OFFLINE | | OFFLINE |
//! | WAITING, OFFLINE | ONLINE | a SERVING is alive, nobody SYNCING, first such in order | SYNCING |
//! | WAITING, OFFLINE | ONLINE | otherwise | WAITING |
//! | WAITING, OFFLINE | UP_TO_DATE | | WAITING |
//! | WAITING, OFFLINE | OFFLINE | | OFFLINE |
//!
//! "Has everything" is a SERVING replica, or a SYNCING one that is UP_TO_DATE. A LAST_SERVING
//! replica held every acknowledged write when the last SERVING ones failed together, so any of
//! them may revive the chain; the others then sync from it.
//!
//! A SERVING replica that says ONLINE instead of UP_TO_DATE is a reviver: it serves once it has
//! committed what it held pending, and then says UP_TO_DATE.
//!
//! The caller evaluates a restarted process with local OFFLINE first and ONLINE after that; the
//! table itself knows no processes.

use emberfs_proto::cluster::{LocalState, PublicState};
use emberfs_proto::ids::TargetId;

/// One replica of a chain, as the table sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Which.
    pub target: TargetId,
    /// What the map says.
    pub public: PublicState,
    /// What its node says, or what the manager knows of the node.
    pub local: LocalState,
}

/// What an evaluation of a chain came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The chain in its new order.
    pub replicas: Vec<Replica>,
    /// Whether the order or a state differs from before.
    pub changed: bool,
}

/// More than any chain needs to become stable: revive, retire the other LAST_SERVING ones, start
/// a sync. A table with a cycle would be a bug; this keeps it from hanging the manager.
const MAX_STEPS: usize = 16;

/// Applies the table until it is stable.
pub fn settle(chain: &[Replica]) -> Step {
    let mut now = Step {
        replicas: chain.to_vec(),
        changed: false,
    };
    for _ in 0..MAX_STEPS {
        let step = next(&now.replicas);
        if !step.changed {
            return now;
        }
        now = step;
    }
    debug_assert!(false, "the state table has a cycle: {chain:?}");
    now
}

/// Applies the table once.
pub fn next(chain: &[Replica]) -> Step {
    let around = Around::of(chain);
    let mut replicas = Vec::with_capacity(chain.len());
    let (mut revived, mut syncing) = (false, around.syncing);
    let mut first_syncing = true;
    for replica in chain {
        let alive = is_alive(replica.local);
        let public = match replica.public {
            PublicState::Serving if alive => PublicState::Serving,
            PublicState::Serving if around.complete_alive => PublicState::Offline,
            PublicState::LastServing if around.serving => PublicState::Offline,
            PublicState::LastServing if alive && !revived => {
                revived = true;
                PublicState::Serving
            }
            PublicState::Serving | PublicState::LastServing => PublicState::LastServing,
            PublicState::Syncing if !alive => PublicState::Offline,
            PublicState::Syncing => {
                let first = std::mem::take(&mut first_syncing);
                match replica.local {
                    LocalState::UpToDate if first => PublicState::Serving,
                    _ if first && around.serving_alive => PublicState::Syncing,
                    _ => PublicState::Waiting,
                }
            }
            PublicState::Waiting | PublicState::Offline | PublicState::Unspecified => {
                match replica.local {
                    LocalState::Online if around.serving_alive && !syncing => {
                        syncing = true;
                        PublicState::Syncing
                    }
                    LocalState::Online | LocalState::UpToDate => PublicState::Waiting,
                    LocalState::Offline | LocalState::Unspecified => PublicState::Offline,
                }
            }
        };
        replicas.push(Replica { public, ..*replica });
    }
    replicas.sort_by_key(|replica| rank(replica.public));
    let changed = replicas != chain;
    Step { replicas, changed }
}

/// What a row may ask about the rest of the chain.
struct Around {
    /// A SERVING replica exists, dead or alive, or becomes one in this step.
    serving: bool,
    /// A SERVING replica is alive: a source to sync from.
    serving_alive: bool,
    /// A replica that holds everything is alive.
    complete_alive: bool,
    /// Somebody is SYNCING.
    syncing: bool,
}

impl Around {
    fn of(chain: &[Replica]) -> Self {
        let serving = |r: &Replica| r.public == PublicState::Serving;
        let first_syncing = chain
            .iter()
            .find(|r| r.public == PublicState::Syncing && is_alive(r.local));
        let synced = first_syncing.is_some_and(|r| r.local == LocalState::UpToDate);
        let serving_alive = chain.iter().any(|r| serving(r) && is_alive(r.local));
        Self {
            serving: synced || chain.iter().any(serving),
            serving_alive,
            complete_alive: serving_alive || synced,
            syncing: chain.iter().any(|r| r.public == PublicState::Syncing),
        }
    }
}

fn is_alive(local: LocalState) -> bool {
    matches!(local, LocalState::Online | LocalState::UpToDate)
}

/// Position of a state's group in a chain.
fn rank(state: PublicState) -> u8 {
    match state {
        PublicState::Serving => 0,
        PublicState::LastServing => 1,
        PublicState::Syncing => 2,
        PublicState::Waiting => 3,
        PublicState::Offline | PublicState::Unspecified => 4,
    }
}

#[cfg(test)]
mod tests;
