//! What decides a retry, without I/O: whether, when and where to ask again. `retry`, `chunk_io`,
//! `chunk_read` and `chunk_write` carry the decisions out; the simulator of `emberfs-storage` drives
//! them with a seed, which is the only reason why this module can be reached from outside.

use std::time::Duration;

use emberfs_proto::cluster::{ClusterMap, Target};
use emberfs_proto::ids::{ChainId, TargetId};
use emberfs_proto::{Error, ErrorCode, RetryClass};

/// First pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause, unless the server asks for more.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause when a newer cluster map is all that is missing: it may be here already, and only the
/// server not know it yet.
const LONGEST_MAP_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause that a server may ask for.
const LONGEST_HINT: Duration = Duration::from_secs(10);

/// Longest wait for one replica's answer to a read before another is asked.
pub const READ_ATTEMPT: Duration = Duration::from_secs(10);
/// Longest wait for one acknowledgement before a write is sent again, under the same tag.
pub const WRITE_ATTEMPT: Duration = Duration::from_secs(30);

/// Where a read or a write may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Any SERVING target.
    Reader,
    /// The head.
    Head,
}

/// Is it worth asking again?
///
/// A deadline that passed is that of one attempt: the call as a whole has its own limit.
pub fn transient(error: &Error) -> bool {
    error.retry() != RetryClass::Never || error.code == ErrorCode::DeadlineExceeded
}

/// Does the error speak against this one replica, so that another may answer at once?
pub fn elsewhere(error: &Error) -> bool {
    error.retry() == RetryClass::Reconnect || error.code == ErrorCode::DeadlineExceeded
}

/// Does a newer map end the pause after an error of this class?
pub fn map_wakes(class: RetryClass) -> bool {
    // With BackOff the server only asks for time.
    class != RetryClass::BackOff
}

/// May `target` still play `role` on `chain`? If not, there is no use in waiting for its answer.
pub fn holds(map: &ClusterMap, chain: ChainId, target: TargetId, role: Role) -> bool {
    let Some(chain) = map.chains.get(&chain) else {
        return false;
    };
    match role {
        Role::Reader => map.serving(chain).any(|t| t.id == target),
        Role::Head => map.head(chain).is_some_and(|t| t.id == target),
    }
}

/// SERVING replicas of a chain that are not among `tried`, beginning with the `turn`th.
pub fn readers<'a>(
    serving: &'a [&'a Target],
    turn: usize,
    tried: &'a [TargetId],
) -> impl Iterator<Item = &'a Target> {
    let rotated = (0..serving.len()).map(move |i| serving[(turn + i) % serving.len()]);
    rotated.filter(|t| !tried.contains(&t.id))
}

/// The pauses between the attempts of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { pause: FIRST_PAUSE }
    }
}

impl Pace {
    /// The pause after `error`: exponential, times `jitter` (0.5 to 1), and at least what the server
    /// asks for.
    pub fn next(&mut self, error: &Error, jitter: f64) -> Duration {
        let hint = Duration::from_millis(u64::from(error.retry_after_ms)).min(LONGEST_HINT);
        let longest = match error.retry() {
            RetryClass::RefreshMap => LONGEST_MAP_PAUSE,
            _ => LONGEST_PAUSE,
        };
        let pause = self.pause.min(longest).mul_f64(jitter);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        pause.max(hint)
    }
}
