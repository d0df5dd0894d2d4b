//! A whole cluster in one thread: simulated time, one seed, the production state machines.
//!
//! What runs here is what runs in production: the chain protocol ([`Replica`](crate::chain::Replica)), the
//! node's lease ([`Term`](crate::node::lease::Term)) and its comparison of two listings, the cluster
//! manager's members, state table and evaluation (`emberfs_meta::cluster::model`), the clients' retry
//! decisions (`emberfs_client::plan`). What surrounds them is modelled: [`disk`] stands for the engine,
//! [`net`] for the network, [`host`], [`heartbeat`], [`target`], [`service`] and [`resync`] for the drivers in
//! `crate::node`,
//! [`manager`] and [`client`] for theirs.
//!
//! After every step the [`invariants`] are checked; at the end everything is healed, all replicas
//! must be equal and SERVING, and each chunk's [`history`] must be linearizable. [`mutant`] proves that
//! the checks can fail. `docs/simulation.md` is the page for users.

mod client;
mod disk;
mod family;
mod faults;
mod heartbeat;
mod history;
mod host;
mod invariants;
mod long;
mod manager;
mod minimise;
pub(crate) mod mutant;
mod net;
mod random;
mod resync;
mod service;
mod target;
mod world;

#[cfg(test)]
mod tests;
