//! Single rules of the protocol, each by hand. The whole under faults: `crate::sim`.

mod early;
mod syncing;

use std::sync::Arc;

use bytes::Bytes;
use emberfs_proto::cluster::{LocalState, PublicState};
use emberfs_proto::ids::{
    ChainId, ChainVersion, ChunkKey, ChunkVersion, ClientId, TargetId, WriteTag,
};
use emberfs_proto::{Error, ErrorCode};

use super::*;
use crate::engine::{ChunkMeta, Mark, PendingKind, PendingMeta};

const PAGE: u32 = 4096;

fn tag(channel: u32, sequence: u64) -> WriteTag {
    WriteTag {
        client: ClientId(9),
        channel,
        sequence,
    }
}

/// A write at the start of the chunk.
fn update(key: ChunkKey, tag: WriteTag) -> Update {
    let kind = UpdateKind::Write {
        offset: 0,
        data: Bytes::from_static(b"x"),
        checksums: vec![0],
        size_hint: 0,
    };
    Update {
        key,
        tag: Some(tag),
        kind,
        chunk_size: 65536,
        page_size: PAGE,
    }
}

fn view(
    version: u64,
    state: PublicState,
    head: bool,
    tail: u64,
    next: Option<(u64, bool)>,
) -> View {
    View {
        chain: ChainId(1),
        version: ChainVersion(version),
        state,
        is_head: head,
        tail: Some(TargetId(tail)),
        successor: next.map(|(target, syncing)| Successor {
            target: TargetId(target),
            syncing,
        }),
    }
}

/// A head of two, serving under version 1.
fn head() -> Replica {
    leading(2, Some((2, false)))
}

/// A head, serving under version 1 in a chain with this tail and this successor, which may be syncing.
fn leading(tail: u64, successor: Option<(u64, bool)>) -> Replica {
    let mut replica = Replica::new(TargetId(1));
    let view = view(1, PublicState::Serving, true, tail, successor);
    replica.handle(Event::Adopt { view }, true);
    let chain_version = ChainVersion(1);
    replica.handle(
        Event::Recovered {
            chain_version,
            result: Ok(()),
        },
        true,
    );
    assert_eq!(replica.local(), LocalState::UpToDate);
    replica
}

fn write(request: u64, version: u64) -> Event {
    Event::Write {
        request: RequestId(request),
        chain_version: ChainVersion(version),
        update: update(ChunkKey::new(1u64, 0u32), tag(0, request)),
        trim: None,
    }
}

fn refusal(actions: &[Action]) -> ErrorCode {
    match actions {
        [
            Action::Reply {
                result: Err(error), ..
            },
        ] => error.code,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn nothing_is_served_without_a_lease_or_under_another_chain_version() {
    let mut replica = head();
    assert_eq!(
        refusal(&replica.handle(write(1, 1), false)),
        ErrorCode::LeaseExpired
    );
    assert_eq!(
        refusal(&replica.handle(write(2, 2), true)),
        ErrorCode::StaleChainVersion
    );
    let key = ChunkKey::new(1u64, 0u32);
    let plan = |version, lease| replica.read_plan(key, ChainVersion(version), lease);
    assert_eq!(plan(1, false).unwrap_err().code, ErrorCode::LeaseExpired);
    assert_eq!(
        plan(0, true).unwrap_err().code,
        ErrorCode::StaleChainVersion
    );
    assert_eq!(plan(1, true).unwrap(), ReadPlan::Committed);
    assert_eq!(replica.refused(), 2);
}

#[test]
fn a_restarted_target_serves_nothing_before_it_has_recovered() {
    let mut replica = Replica::new(TargetId(1));
    assert_eq!(
        refusal(&replica.handle(write(1, 1), true)),
        ErrorCode::NotServing
    );
    let view = view(1, PublicState::Serving, true, 1, None);
    let actions = replica.handle(Event::Adopt { view }, true);
    assert!(actions.iter().any(|a| matches!(a, Action::Recover { .. })));
    assert_eq!(
        refusal(&replica.handle(write(1, 1), true)),
        ErrorCode::NotServing
    );
}

#[test]
fn the_chain_version_is_checked_again_when_the_chunk_is_free() {
    let mut replica = head();
    replica.handle(write(1, 1), true);
    assert!(
        replica.handle(write(2, 1), true).is_empty(),
        "queued behind the first"
    );
    let newer = view(2, PublicState::Serving, true, 1, None);
    replica.handle(Event::Adopt { view: newer }, true);
    // The first one ends without a change; the second now holds the chunk under a stale version.
    let loaded = Event::Loaded {
        op: OpId(1),
        result: Err(Error::new(ErrorCode::DiskError, "gone")),
    };
    let actions = replica.handle(loaded, true);
    let codes: Vec<_> = actions
        .iter()
        .map(|a| match a {
            Action::Reply {
                request,
                result: Err(e),
            } => (request.0, e.code),
            other => panic!("unexpected {other:?}"),
        })
        .collect();
    assert_eq!(
        codes,
        [(1, ErrorCode::DiskError), (2, ErrorCode::StaleChainVersion)]
    );
}

#[test]
fn a_replica_asks_the_tail_while_a_write_is_in_progress() {
    let mut replica = head();
    let key = ChunkKey::new(1u64, 0u32);
    replica.handle(write(1, 1), true);
    let actions = replica.handle(
        Event::Loaded {
            op: OpId(1),
            result: Ok(None),
        },
        true,
    );
    assert!(matches!(
        actions[..],
        [Action::Send { .. }, Action::Prepare { .. }]
    ));
    let plan = replica.read_plan(key, ChainVersion(1), true).unwrap();
    assert_eq!(plan, ReadPlan::AskTail(TargetId(2)));
    let other = ChunkKey::new(1u64, 1u32);
    assert_eq!(
        replica.read_plan(other, ChainVersion(1), true).unwrap(),
        ReadPlan::Committed
    );
}

fn meta(version: u64, chain: u64, last: WriteTag, recent: &[Mark]) -> ChunkMeta {
    ChunkMeta {
        committed: ChunkVersion(version),
        committed_len: 1,
        committed_chain: ChainVersion(chain),
        tag: last,
        checksum: 5,
        recent: recent.into(),
        pending: None,
        page_size: PAGE,
        chunk_size: 65536,
    }
}

fn loaded(op: u64, meta: ChunkMeta) -> Event {
    Event::Loaded {
        op: OpId(op),
        result: Ok(Some(meta)),
    }
}

/// The `n`th write, which makes version `n`, is durable.
fn prepared(replica: &mut Replica, n: u64) -> Vec<Action> {
    replica.handle(write(n, 1), true);
    let before = (n > 1).then(|| meta(n - 1, 1, tag(0, n - 1), &[]));
    let loaded = Event::Loaded {
        op: OpId(n),
        result: Ok(before),
    };
    replica.handle(loaded, true);
    replica.handle(stored(n, n), true)
}

/// The engine has made version `n` of write `n` durable for `op`.
fn stored(op: u64, n: u64) -> Event {
    let before = meta(n - 1, 1, tag(0, n - 1), &[]);
    let pending = PendingMeta {
        version: ChunkVersion(n),
        len: 1,
        chain: ChainVersion(1),
        tag: tag(0, n),
        checksum: 5,
        recent: Arc::default(),
        kind: PendingKind::Write,
    };
    let meta = ChunkMeta {
        pending: Some(pending),
        ..before
    };
    Event::Prepared {
        op: OpId(op),
        result: Ok(meta),
    }
}

/// A write that is durable on a head of two and on its way to the successor.
fn forwarding(replica: &mut Replica) {
    let actions = prepared(replica, 1);
    assert!(matches!(actions[..], [Action::Send { .. }]));
}

#[test]
fn a_retry_is_known_by_the_record_after_others_wrote_and_every_process_restarted() {
    let mark = Mark {
        tag: tag(0, 7),
        version: ChunkVersion(3),
        len: 9,
    };
    let retried = |request, sequence| {
        let mut replica = head();
        let key = ChunkKey::new(1u64, 0u32);
        let event = Event::Write {
            request: RequestId(request),
            chain_version: ChainVersion(1),
            update: update(key, tag(0, sequence)),
            trim: None,
        };
        replica.handle(event, true);
        replica.handle(loaded(1, meta(4, 1, tag(1, 2), &[mark])), true)
    };
    match &retried(1, 7)[..] {
        [Action::Reply { result, .. }] => {
            assert_eq!(result.as_ref().unwrap().version, ChunkVersion(3));
        }
        other => panic!("applied again: {other:?}"),
    }
    assert_eq!(refusal(&retried(2, 6)), ErrorCode::StaleSequence);
    assert!(matches!(
        retried(3, 8)[..],
        [Action::Send { .. }, Action::Prepare { .. }]
    ));
}

#[test]
fn a_truncate_that_is_sent_again_after_a_fail_over_cuts_nothing_twice() {
    let mut replica = head();
    let key = ChunkKey::new(1u64, 0u32);
    let event = Event::Write {
        request: RequestId(1),
        chain_version: ChainVersion(1),
        update: Update {
            kind: UpdateKind::Truncate {
                len: 0,
                within: u32::MAX,
            },
            ..update(key, tag(0, 7))
        },
        trim: Some(tag(0, 7)),
    };
    replica.handle(event, true);
    let mark = Mark {
        tag: tag(0, 7),
        version: ChunkVersion(3),
        len: 0,
    };
    let actions = replica.handle(loaded(1, meta(4, 1, tag(1, 2), &[mark])), true);
    assert!(matches!(actions[..], [Action::Reply { result: Ok(_), .. }]));
}

#[test]
fn a_failed_commit_ends_the_target_s_service() {
    let mut replica = head();
    forwarding(&mut replica);
    let outcome = Outcome {
        version: ChunkVersion(1),
        len: 1,
        checksum: 5,
        chain: ChainVersion(1),
    };
    let answer = Event::Forwarded {
        op: OpId(1),
        attempt: 2,
        result: Ok(outcome),
    };
    replica.handle(answer, true);
    let failed = Event::Committed {
        op: OpId(1),
        result: Err(Error::new(ErrorCode::DiskError, "gone")),
    };
    replica.handle(failed, true);
    let key = ChunkKey::new(1u64, 0u32);
    let plan = replica.read_plan(key, ChainVersion(1), true);
    assert_eq!(plan.unwrap_err().code, ErrorCode::NotServing);
    assert_eq!(replica.local(), LocalState::Offline);
}

#[test]
fn a_target_that_reports_a_failed_disk_serves_nothing_more() {
    let mut replica = head();
    replica.handle(Event::Failed, true);
    let key = ChunkKey::new(1u64, 0u32);
    let plan = replica.read_plan(key, ChainVersion(1), true);
    assert_eq!(plan.unwrap_err().code, ErrorCode::NotServing);
    assert_eq!(
        refusal(&replica.handle(write(1, 1), true)),
        ErrorCode::NotServing
    );
}

#[test]
fn a_version_is_given_up_only_if_no_sending_of_it_can_arrive_later() {
    let full = || Err(Error::new(ErrorCode::NoSpace, "full"));
    let answered = |attempt, result| Event::Forwarded {
        op: OpId(1),
        attempt,
        result,
    };
    let mut replica = head();
    forwarding(&mut replica);
    let actions = replica.handle(answered(2, full()), true);
    assert!(matches!(actions[..], [Action::Abort { .. }]));

    let mut replica = head();
    forwarding(&mut replica);
    let broken = Error::new(ErrorCode::Unreachable, "reset");
    replica.handle(answered(2, Err(broken)), true);
    let again = Event::RetryDue {
        op: OpId(1),
        attempt: 2,
    };
    replica.handle(again, true);
    let actions = replica.handle(answered(3, full()), true);
    assert!(matches!(actions[..], [Action::RetryAfter { .. }]));
}

#[test]
fn a_recovery_that_failed_is_tried_again() {
    let mut replica = Replica::new(TargetId(1));
    let view = view(1, PublicState::Serving, true, 1, None);
    replica.handle(Event::Adopt { view }, true);
    let failed = Event::Recovered {
        chain_version: ChainVersion(1),
        result: Err(Error::new(ErrorCode::DiskError, "a read failed")),
    };
    let actions = replica.handle(failed, true);
    let timer = actions.iter().find_map(|action| match action {
        &Action::RetryAfter { op, attempt, .. } => Some(Event::RetryDue { op, attempt }),
        _ => None,
    });
    let actions = replica.handle(timer.expect("a timer"), true);
    assert!(matches!(actions[..], [Action::Recover { .. }]));
}

#[test]
fn a_write_that_is_being_undone_is_not_shown_by_a_new_tail() {
    let mut replica = head();
    forwarding(&mut replica);
    let refused = Event::Forwarded {
        op: OpId(1),
        attempt: 2,
        result: Err(Error::new(ErrorCode::NoSpace, "full")),
    };
    let actions = replica.handle(refused, true);
    assert!(matches!(actions[..], [Action::Abort { .. }]), "{actions:?}");
    // The successor that had no room dies before the undoing is done.
    let alone = view(2, PublicState::Serving, true, 1, None);
    replica.handle(Event::Adopt { view: alone }, true);
    let plan = replica.read_plan(ChunkKey::new(1u64, 0u32), ChainVersion(2), true);
    assert_eq!(plan.unwrap(), ReadPlan::Committed);
}
