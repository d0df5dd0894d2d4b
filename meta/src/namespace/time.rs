//! Times as the protocol has them.

use std::time::SystemTime;

use emberfs_proto::{Error, ErrorCode, Result, pb};

/// Now.
pub(crate) fn now() -> pb::Time {
    pb::Time::from(SystemTime::now())
}

/// Nanoseconds since 1970, for keys.
pub(crate) fn nanos(time: pb::Time) -> u64 {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::from(time.nanos))
}

/// The later one.
pub(crate) fn later(a: pb::Time, b: pb::Time) -> pb::Time {
    if (a.seconds, a.nanos) >= (b.seconds, b.nanos) {
        a
    } else {
        b
    }
}

/// What a request asks for: a time of its own, now, or nothing.
pub(crate) fn asked(
    explicit: Option<pb::Time>,
    set_to_now: bool,
    now: pb::Time,
) -> Result<Option<pb::Time>> {
    match explicit {
        _ if set_to_now => Ok(Some(now)),
        Some(time) if time.nanos >= 1_000_000_000 => {
            let what = format!("a time has {} nanoseconds, more than a second", time.nanos);
            Err(Error::new(ErrorCode::InvalidArgument, what))
        }
        other => Ok(other),
    }
}
