use super::*;
use emberfs_proto::RetryClass;

/// One of each; the match makes the compiler ask for a new variant here.
fn every_error() -> Vec<KvError> {
    let all = vec![
        KvError::Conflict,
        KvError::TooOld,
        KvError::TooLarge,
        KvError::KeyTooLarge(10_001),
        KvError::ValueTooLarge(100_001),
        KvError::ReservedKey,
        KvError::AboveLimit,
        KvError::Throttled,
        KvError::MaybeCommitted("disk".into()),
        KvError::Io("disk".into()),
        KvError::NotCached,
        KvError::Closed("disk".into()),
    ];
    for error in &all {
        match error {
            KvError::Conflict
            | KvError::TooOld
            | KvError::TooLarge
            | KvError::KeyTooLarge(_)
            | KvError::ValueTooLarge(_)
            | KvError::ReservedKey
            | KvError::AboveLimit
            | KvError::Throttled
            | KvError::MaybeCommitted(_)
            | KvError::Io(_)
            | KvError::NotCached
            | KvError::Closed(_) => {}
        }
    }
    all
}

#[test]
fn what_is_retried_here_is_retried_by_remote_callers_too() {
    for error in every_error() {
        let retry = error.retry();
        let wire = Error::from(error.clone());
        match retry {
            KvRetry::Again => assert_eq!(wire.retry(), RetryClass::BackOff, "{error:?}"),
            KvRetry::IfIdempotent => assert_eq!(wire.code, ErrorCode::MaybeCommitted),
            KvRetry::Never => {
                assert_ne!(wire.code, ErrorCode::MaybeCommitted, "{error:?}");
                assert!(!is_retried(wire.code), "{error:?}");
            }
        }
        assert_eq!(retry == KvRetry::Again, is_retried(wire.code), "{error:?}");
    }
}
