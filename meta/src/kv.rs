//! The transactional key-value layer under the metadata service.
//!
//! The contract is FoundationDB's: transactions are *strictly serializable* and *optimistic*.
//! A transaction reads from one snapshot, taken at its first read; it sees its own writes;
//! nothing it writes is visible to anybody before [`Transaction::commit`]; and the commit fails
//! with [`KvError::Conflict`] when a key or a range that it read was written by a transaction
//! that committed after the snapshot. Commit versions are unique and their order is a serial
//! order of the transactions.
//!
//! The limits below hold in *every* engine, so code that runs on one runs on all: the strictest
//! engine's limits are the contract, not the most generous one's.
//!
//! The traits are synchronous on purpose. RocksDB is synchronous, a commit waits for a disk, and
//! an asynchronous face over it would only hide a blocking call. Run transactions on a blocking
//! pool (`tokio::task::spawn_blocking`), never on a runtime's worker. An engine that lives behind
//! a network bridges to its own runtime inside.
//!
//! Engines: [`rocks`] (embedded, the default) and [`memory`] (tests and simulation only). Both
//! pass the `conformance` suite, which any later engine must pass as well.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use emberfs_proto::{Error, ErrorCode};

pub mod clock;
mod conflict;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod memory;
mod mutations;
pub mod retry;
pub mod rocks;
mod transaction;

pub use clock::Clock;
pub use memory::MemoryEngine;
pub(crate) use retry::is_retried;
pub use retry::{RetryPolicy, run, run_idempotent};
pub use rocks::RocksEngine;

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 10_000;
/// The longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 100_000;
/// The largest transaction, in bytes: keys and values written, plus twice the length of every key
/// in a conflict set. Each call counts, also when a later one overwrites it.
pub const MAX_TRANSACTION_BYTES: usize = 10_000_000;
/// How long a transaction may live, from `begin` to `commit`.
pub const MAX_TRANSACTION_AGE: Duration = Duration::from_secs(5);
/// Keys from here on belong to the engine. A range may end here and not later.
pub const FIRST_SYSTEM_KEY: &[u8] = &[0xff];

/// What every call on a transaction answers.
pub type KvResult<T> = Result<T, KvError>;

/// The position of a committed transaction in the serial order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitVersion(pub u64);

/// Why a transaction failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// Something this transaction read was written meanwhile. Nothing was written; run it again.
    #[error("the metadata transaction lost against a concurrent one; run it again")]
    Conflict,
    /// The transaction outlived [`MAX_TRANSACTION_AGE`] or the engine's memory of recent commits.
    #[error("the metadata transaction took longer than {} s; run it again, in smaller pieces if it repeats", MAX_TRANSACTION_AGE.as_secs())]
    TooOld,
    /// The transaction exceeds [`MAX_TRANSACTION_BYTES`].
    #[error("the metadata transaction exceeds {MAX_TRANSACTION_BYTES} bytes; split it")]
    TooLarge,
    /// A key exceeds [`MAX_KEY_BYTES`]; holds its length.
    #[error("a metadata key of {0} bytes exceeds the limit of {MAX_KEY_BYTES}")]
    KeyTooLarge(usize),
    /// A value exceeds [`MAX_VALUE_BYTES`]; holds its length.
    #[error("a metadata value of {0} bytes exceeds the limit of {MAX_VALUE_BYTES}")]
    ValueTooLarge(usize),
    /// A key or a range reaches into the engine's own keys (from [`FIRST_SYSTEM_KEY`] on).
    #[error("a metadata key begins with 0xff, which is reserved for the engine")]
    ReservedKey,
    /// A number would exceed what [`Transaction::add_at_most`] allows; nothing was written. Run it again: it
    /// then reads how much there is.
    #[error("a number in the metadata store would exceed its limit; run the transaction again")]
    AboveLimit,
    /// The engine is overloaded and did nothing. Wait, then run the transaction again.
    #[error("the metadata store is overloaded; wait and try again")]
    Throttled,
    /// The commit may or may not have happened, and may still happen.
    #[error("the metadata store failed during a commit, which may or may not have happened: {0}")]
    MaybeCommitted(String),
    /// Reading failed; nothing was written.
    #[error(
        "the metadata store cannot be read: {0}; check its disk, then restart the metadata server"
    )]
    Io(String),
    /// A transaction of [`Engine::begin_cached`] met something that is not in memory.
    #[error("the metadata store would have to read its disk")]
    NotCached,
    /// The engine takes no commits any more; nothing was written.
    #[error("the metadata store takes no more commits: {0}")]
    Closed(String),
}

/// What to do after a [`KvError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvRetry {
    /// Run the transaction again, after a back-off.
    Again,
    /// Run it again only if it recognises its own earlier success (a recorded request id).
    IfIdempotent,
    /// Running it again fails again.
    Never,
}

impl KvError {
    /// What the caller should do.
    pub fn retry(&self) -> KvRetry {
        match self {
            Self::Conflict | Self::TooOld | Self::AboveLimit | Self::Throttled => KvRetry::Again,
            Self::MaybeCommitted(_) => KvRetry::IfIdempotent,
            Self::NotCached
            | Self::TooLarge
            | Self::KeyTooLarge(_)
            | Self::ValueTooLarge(_)
            | Self::ReservedKey
            | Self::Io(_)
            | Self::Closed(_) => KvRetry::Never,
        }
    }
}

impl From<KvError> for Error {
    fn from(error: KvError) -> Self {
        let code = match &error {
            KvError::Conflict | KvError::AboveLimit => ErrorCode::Conflict,
            KvError::TooOld => ErrorCode::TransactionTooOld,
            KvError::TooLarge | KvError::KeyTooLarge(_) | KvError::ValueTooLarge(_) => {
                ErrorCode::TransactionTooLarge
            }
            KvError::ReservedKey => ErrorCode::InvalidArgument,
            KvError::Throttled => ErrorCode::Busy,
            KvError::MaybeCommitted(_) => ErrorCode::MaybeCommitted,
            KvError::NotCached => ErrorCode::NotCached,
            KvError::Io(_) => ErrorCode::DiskError,
            KvError::Closed(_) => ErrorCode::Unavailable,
        };
        Self::new(code, error.to_string())
    }
}

/// Told once whether something is durable, or may not be.
pub type TellDurable = Box<dyn FnOnce(KvResult<()>) + Send>;

/// Where an engine's log stands. An engine that loses nothing with its power has one start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPosition {
    /// How often the store had been opened. A version that was lost is given again under a later start.
    pub start: u64,
    /// Every commit of this start up to here survives a loss of power.
    pub durable: CommitVersion,
}

/// A store of ordered keys that runs transactions.
pub trait Engine: Send + Sync + 'static {
    /// Starts a transaction. It costs nothing until the first read takes the snapshot, and it
    /// may outlive the engine, in which case its commit answers [`KvError::Closed`].
    fn begin(&self) -> Box<dyn Transaction>;

    /// Starts a transaction for a look that never waits for a disk: what is not in memory is
    /// answered [`KvError::NotCached`]. An engine that keeps everything there need not tell.
    fn begin_cached(&self) -> Box<dyn Transaction> {
        self.begin()
    }

    /// Tells when every commit up to `version` survives a loss of power, at once if it does by now;
    /// [`KvError::MaybeCommitted`]: nobody knows whether it will. On any thread, which must not be held up.
    fn when_durable(&self, version: CommitVersion, tell: TellDurable);

    /// Where the log stands now.
    fn position(&self) -> LogPosition;

    /// The last commit of an earlier start that was not lost; `None` if that is not known (any more).
    fn end_of(&self, start: u64) -> Option<CommitVersion>;

    /// The engine's name, as configuration and logs print it.
    fn name(&self) -> &'static str;

    /// Waits for `time` between two attempts of a transaction. A simulation's engine does not
    /// really wait.
    fn pause(&self, time: Duration) {
        clock::park(time);
    }
}

/// One transaction. Dropping it without `commit` forgets everything it did.
///
/// The writing calls return nothing: the first limit one of them violates is remembered, and
/// every later read and the commit answer with it.
///
/// A range is `begin..end`, without `end`; an inverted one is empty. Numbers changed by
/// [`Self::add_i64`] and [`Self::max_u64`] are 8 bytes, little-endian; an absent key counts as 0,
/// a shorter value as padded with zeros, and of a longer one the first 8 bytes count and remain.
pub trait Transaction: Send {
    /// The value of `key`. The commit conflicts if somebody writes the key meanwhile, unless
    /// this transaction itself has fully determined the value.
    fn get(&mut self, key: &[u8]) -> KvResult<Option<Bytes>>;

    /// Like [`Self::get`], without a conflict.
    fn get_snapshot(&mut self, key: &[u8]) -> KvResult<Option<Bytes>>;

    /// Up to `limit` pairs of the range, in key order, or from its end when `reverse`. The commit
    /// conflicts if somebody writes meanwhile into the part that was read: all of the range, or
    /// up to and including the last pair returned when `limit` cut it.
    fn get_range(
        &mut self,
        range: Range<&[u8]>,
        limit: usize,
        reverse: bool,
    ) -> KvResult<Vec<(Bytes, Bytes)>>;

    /// Like [`Self::get_range`], without a conflict.
    fn get_range_snapshot(
        &mut self,
        range: Range<&[u8]>,
        limit: usize,
        reverse: bool,
    ) -> KvResult<Vec<(Bytes, Bytes)>>;

    /// Makes the commit conflict as if `key` had been read.
    fn add_read_conflict_key(&mut self, key: &[u8]);

    /// Makes the commit conflict as if the range had been read.
    fn add_read_conflict_range(&mut self, range: Range<&[u8]>);

    /// Makes others that read `key` conflict as if it had been written. Writes nothing.
    fn add_write_conflict_key(&mut self, key: &[u8]);

    /// Sets `key`.
    fn put(&mut self, key: &[u8], value: &[u8]);

    /// Removes `key` if it exists.
    fn delete(&mut self, key: &[u8]);

    /// Removes every key of the range.
    fn delete_range(&mut self, range: Range<&[u8]>);

    /// Adds `delta` to the number at `key` when the transaction commits, wrapping around. Reads
    /// nothing, so any number of transactions may add to one key at once.
    fn add_i64(&mut self, key: &[u8], delta: i64);

    /// As [`Self::add_i64`], and the commit fails with [`KvError::AboveLimit`] if the number would be greater than
    /// `max` afterwards, everything counted that this transaction does to it. Reads nothing either: of many that add
    /// at once, as many commit as fit.
    fn add_at_most(&mut self, key: &[u8], delta: i64, max: i64);

    /// Raises the number at `key` to at least `value` when the transaction commits; reads nothing.
    fn max_u64(&mut self, key: &[u8], value: u64);

    /// Makes everything durable and visible at once, or nothing. A transaction that wrote nothing
    /// always succeeds and answers the version it read at (0 if it read nothing), which is durable then.
    fn commit(self: Box<Self>) -> KvResult<CommitVersion>;

    /// As [`Self::commit`], and does not wait until it is durable, which is soon: after everything committed before,
    /// and not without that. See [`Engine::when_durable`].
    fn commit_soon(self: Box<Self>) -> KvResult<CommitVersion>;
}

#[cfg(test)]
mod tests;
