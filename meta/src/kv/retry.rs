//! The one loop that runs transactions again.
//!
//! [`run`] is for transactions that must not run twice: a commit of unknown outcome is returned
//! as [`ErrorCode::MaybeCommitted`]. [`run_idempotent`] is for those that record their request
//! id in the same transaction and look for it first: a second run finds the first one's record,
//! so an unknown outcome is settled by running again.

use std::time::{Duration, Instant};

use emberfs_proto::{Error, ErrorCode, Result};

use super::{Engine, Transaction};

/// How long and how often a transaction is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// No attempt starts later than this after the first one.
    pub deadline: Duration,
    /// No more attempts than this.
    pub max_attempts: u32,
    /// The longest wait after the first attempt; it doubles from attempt to attempt. The wait
    /// itself is drawn evenly from zero up, so that those who collided spread out.
    pub first_wait: Duration,
    /// The longest wait after any attempt.
    pub max_wait: Duration,
}

impl Default for RetryPolicy {
    /// Ten seconds, which outlives a fail-over; waits from 1 ms, about one group commit, to 200 ms.
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            max_attempts: 200,
            first_wait: Duration::from_millis(1),
            max_wait: Duration::from_millis(200),
        }
    }
}

impl RetryPolicy {
    fn wait(&self, attempt: u32, hint_ms: u32) -> Duration {
        let ceiling = self
            .first_wait
            .saturating_mul(1 << (attempt - 1).min(20))
            .min(self.max_wait);
        let nanos = rand::random_range(0..=ceiling.as_nanos() as u64);
        Duration::from_nanos(nanos).max(Duration::from_millis(hint_ms.into()))
    }
}

/// Runs `body` and commits, again after [`ErrorCode::Conflict`], [`ErrorCode::TransactionTooOld`]
/// and [`ErrorCode::Busy`], within `policy`. Other errors of `body` and of the commit are returned,
/// also [`ErrorCode::MaybeCommitted`]. `body` may run many times: it must act only on the
/// transaction. Blocks the thread.
pub fn run<T>(
    engine: &dyn Engine,
    policy: &RetryPolicy,
    body: impl FnMut(&mut dyn Transaction) -> Result<T>,
) -> Result<T> {
    attempt(engine, policy, false, body)
}

/// Like [`run`], and runs again after an unknown outcome too. `body` must first look for the
/// record of its own success and write that record in the same transaction. Answers
/// [`ErrorCode::MaybeCommitted`] only when the outcome could not be settled within `policy`.
pub fn run_idempotent<T>(
    engine: &dyn Engine,
    policy: &RetryPolicy,
    body: impl FnMut(&mut dyn Transaction) -> Result<T>,
) -> Result<T> {
    attempt(engine, policy, true, body)
}

/// Whether the loop runs again after this code, idempotent or not.
pub(crate) fn is_retried(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::Conflict | ErrorCode::TransactionTooOld | ErrorCode::Busy
    )
}

fn attempt<T>(
    engine: &dyn Engine,
    policy: &RetryPolicy,
    idempotent: bool,
    mut body: impl FnMut(&mut dyn Transaction) -> Result<T>,
) -> Result<T> {
    let started = Instant::now();
    let mut unsettled = false;
    let mut attempts = 0;
    loop {
        attempts += 1;
        let mut transaction = engine.begin();
        let error = match body(&mut *transaction) {
            Ok(value) => match transaction.commit() {
                Ok(_) => return Ok(value),
                Err(error) => Error::from(error),
            },
            Err(error) => error,
        };
        unsettled |= error.code == ErrorCode::MaybeCommitted;
        let again =
            is_retried(error.code) || (idempotent && error.code == ErrorCode::MaybeCommitted);
        if !again {
            // The store broke before the earlier attempt's outcome was known: say so. Any other
            // error comes from a body that looked for its record and did not find it.
            let broken = matches!(error.code, ErrorCode::DiskError | ErrorCode::Unavailable);
            return Err(if unsettled && broken {
                unknown(error)
            } else {
                error
            });
        }
        let left = policy.deadline.saturating_sub(started.elapsed());
        let wait = policy.wait(attempts, error.retry_after_ms);
        if attempts >= policy.max_attempts || wait >= left {
            let error = error.context(format_args!(
                "gave up after {attempts} attempts in {} ms",
                started.elapsed().as_millis()
            ));
            return Err(if unsettled { unknown(error) } else { error });
        }
        engine.pause(wait);
    }
}

fn unknown(mut error: Error) -> Error {
    error.code = ErrorCode::MaybeCommitted;
    error.context("an earlier attempt may have been carried out")
}

#[cfg(test)]
mod tests;
