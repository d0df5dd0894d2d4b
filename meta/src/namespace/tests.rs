//! Tests of the namespace over the memory engine (and RocksDB where the disk matters), with chunks in
//! memory.

mod acl;
mod attributes;
mod delegations;
mod durability;
mod exactly_once;
mod fixture;
mod length;
mod locks;
mod model;
mod permissions;
mod posix;
mod quota;
mod races;
mod rename;
mod sessions;
mod takeover;
mod trash;
mod trash_restore;
mod tree;
mod unnamed;
mod xattr;
