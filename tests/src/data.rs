//! Bytes that can be told apart, and caches that can be dropped.

use std::fs::File;

use anyhow::Result;
use emberfs_proto::layout::splitmix64;
use rustix::fs::Advice;

/// `length` bytes that only this `salt` makes.
pub fn pattern(length: usize, salt: u64) -> Vec<u8> {
    let mut state = salt;
    let word = || splitmix64(&mut state).to_le_bytes();
    let mut bytes: Vec<u8> = std::iter::repeat_with(word)
        .take(length / 8 + 1)
        .flatten()
        .collect();
    bytes.truncate(length);
    bytes
}

/// Forgets the page cache of a file, so that the next read comes from the servers.
pub fn drop_cache(file: &File) -> Result<()> {
    Ok(rustix::fs::fadvise(file, 0, None, Advice::DontNeed)?)
}

/// A number from the environment: the size of a test that can be made larger by hand.
pub fn scale(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}
