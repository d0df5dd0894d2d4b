//! Numbers for inodes and sessions, from one sequence that is never reused.
//!
//! A batch is reserved in the store at a time, so that creates do not meet at the counter. A restart
//! skips the rest of the batch.

use emberfs_proto::{Error, ErrorCode, Result};
use parking_lot::Mutex;

use super::keys;
use crate::kv::{self, Engine, RetryPolicy};

/// Numbers reserved at once: 10,000 creates per second reserve ten times per second.
const BATCH: u64 = 2000;
/// The root has number 1.
const FIRST: u64 = 2;

/// See the module.
#[derive(Default)]
pub(crate) struct Ids {
    /// Next and end of the reserved batch.
    reserved: Mutex<(u64, u64)>,
}

impl Ids {
    /// A number that nobody else has. May block on the store.
    pub(crate) fn next(&self, engine: &dyn Engine, policy: &RetryPolicy) -> Result<u64> {
        let mut reserved = self.reserved.lock();
        if reserved.0 == reserved.1 {
            // Reserving twice after an unknown outcome only skips numbers.
            *reserved = kv::run_idempotent(engine, policy, |txn| {
                let next = match txn.get(keys::NEXT_ID)? {
                    None => FIRST,
                    Some(bytes) => u64::from_be_bytes(bytes[..].try_into().map_err(|_| damaged())?),
                };
                txn.put(keys::NEXT_ID, &(next + BATCH).to_be_bytes());
                Ok((next, next + BATCH))
            })?;
        }
        let id = reserved.0;
        reserved.0 += 1;
        Ok(id)
    }
}

fn damaged() -> Error {
    let what = "the inode counter in the metadata store is damaged; restore it from a backup";
    Error::new(ErrorCode::Internal, what)
}
