//! How long to keep trying, and at what pace.

use std::future::Future;
use std::time::{Duration, Instant};

use emberfs_proto::{Error, ErrorCode, Result};
use tokio_util::sync::CancellationToken;

use crate::plan::{Pace, transient};

/// How often a call that is still waiting says so in the log.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// The patience of one call: all its attempts share one limit, or none.
pub(crate) struct Patience {
    limit: Option<Duration>,
    started: Instant,
    warned: Instant,
    pace: Pace,
    stop: CancellationToken,
}

impl Patience {
    /// `limit`: for all attempts together; `None`: until `stop`.
    pub(crate) fn new(limit: Option<Duration>, stop: &CancellationToken) -> Self {
        let now = Instant::now();
        Self {
            limit,
            started: now,
            warned: now,
            pace: Pace::default(),
            stop: stop.clone(),
        }
    }

    /// When an attempt that may last `most` must end.
    pub(crate) fn attempt(&self, most: Duration) -> Instant {
        let end = Instant::now() + most;
        self.limit
            .map_or(end, |limit| end.min(self.started + limit))
    }

    /// After a failed attempt: waits until the next one makes sense, or until `wake`. An error that
    /// no retry helps against, or that came when time is up, comes back.
    pub(crate) async fn wait(
        &mut self,
        error: Error,
        what: impl FnOnce() -> String,
        wake: impl Future<Output = ()>,
    ) -> Result<()> {
        if !transient(&error) {
            return Err(error);
        }
        if self.stop.is_cancelled() {
            let why = format!("{}: the client is shut down; last error: {error}", what());
            return Err(Error::new(ErrorCode::Unavailable, why));
        }
        let waited = self.started.elapsed();
        let pause = self.pace.next(&error, rand::random_range(0.5..1.0));
        if let Some(limit) = self.limit
            && waited + pause >= limit
        {
            let seconds = waited.as_secs_f32();
            let why = format!(
                "{}: gave up after {seconds:.1} s; last error: {error}",
                what()
            );
            return Err(Error::new(ErrorCode::DeadlineExceeded, why));
        }
        if self.warned.elapsed() >= WARN_EVERY {
            self.warned = Instant::now();
            tracing::warn!(waited_s = waited.as_secs(), %error, "{}: still waiting", what());
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // What failed is over: the next pause, if there is one, is for another reason.
            () = wake => self.pace = Pace::default(),
            () = self.stop.cancelled() => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn attempts(limit: Option<Duration>, error: Error) -> (u32, Error) {
        let mut patience = Patience::new(limit, &CancellationToken::new());
        let mut count = 1;
        loop {
            let wake = std::future::pending();
            match patience
                .wait(error.clone(), || "test".to_owned(), wake)
                .await
            {
                Ok(()) => count += 1,
                Err(error) => return (count, error),
            }
        }
    }

    #[tokio::test]
    async fn permanent_errors_come_back_at_once() {
        let (count, error) = attempts(None, Error::new(ErrorCode::NoSpace, "full")).await;
        assert_eq!((count, error.code), (1, ErrorCode::NoSpace));
    }

    #[tokio::test]
    async fn transient_errors_are_retried_within_the_limit_and_the_last_is_told() {
        let limit = Some(Duration::from_millis(200));
        let (count, error) = attempts(limit, Error::new(ErrorCode::Busy, "queue full")).await;
        assert!((3..10).contains(&count), "{count} attempts");
        assert_eq!(error.code, ErrorCode::DeadlineExceeded);
        assert!(error.message.contains("queue full"), "{error}");
    }

    #[tokio::test]
    async fn an_event_ends_the_pause_and_the_next_one_is_short_again() {
        let mut patience = Patience::new(None, &CancellationToken::new());
        let error = Error::new(ErrorCode::Unreachable, "killed");
        for _ in 0..10 {
            patience.pace.next(&error, 1.0);
        }
        let event = std::future::ready(());
        let waited = patience.wait(error, || "test".to_owned(), event).await;
        assert!(waited.is_ok() && patience.pace == Pace::default());
    }

    #[tokio::test]
    async fn a_hint_that_exceeds_the_limit_ends_the_wait_early() {
        let error = Error::new(ErrorCode::Busy, "x").retry_after_ms(5000);
        let (count, _) = attempts(Some(Duration::from_millis(500)), error).await;
        assert_eq!(count, 1);
    }
}
