//! EmberFS for other languages: the C interface of `include/emberfs.h`.
//!
//! Loaders submit reads into memory that they registered (huge pages, pinned memory) and take completions,
//! as with Linux's io_uring; any number of threads may do both. See docs/c-api.md.
//!
//! Handles are numbers in tables, never addresses, so that a stale one is an error and no crash.
//! `unsafe` is in [`memory`] and in the functions of [`exports`], which only turn pointers into references.

pub mod abi;
mod client;
mod error;
pub mod exports;
mod handles;
mod memory;
mod ring;
#[cfg(test)]
mod tests;
