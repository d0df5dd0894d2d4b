//! The client against a small fake cluster over real sockets.

mod allocate;
mod copy;
mod delegations;
mod early;
mod fetch;
mod files;
mod hedged;
mod lock_races;
mod locks;
mod many;
mod namespace;
mod quota;
mod reads;
mod resume;
mod sparse;
mod unnamed;
mod watching;
mod writes;
mod xattr;
