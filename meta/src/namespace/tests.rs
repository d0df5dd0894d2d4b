//! Tests of the namespace over the memory engine (and RocksDB where the disk matters), with chunks in
//! memory.

mod durability;
mod exactly_once;
mod fixture;
mod length;
mod model;
mod permissions;
mod posix;
mod races;
mod rename;
mod sessions;
