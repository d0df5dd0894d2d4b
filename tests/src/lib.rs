//! End-to-end tests of EmberFS: real processes, a real mount, real failures.
//!
//! [`TestCluster`] brings up a cluster with the real binary in a temporary directory and takes it away
//! again, whatever happens in between. Nothing here looks inside a server: tests see what users see.

mod binary;
mod cluster;
mod command;
mod data;
mod posix;
mod power;
mod rot;

pub use binary::emberfs_binary;
pub use cluster::{ClusterOptions, SecondMount, TestCluster, is_alive, wait};
pub use command::{Outcome, run};
pub use data::{drop_cache, pattern, scale};
pub use posix::{ALICE, BOB, CAROL, Checks, ROOT, User, as_user};
pub use power::PowerDisk;
pub use rot::rot_blocks;
