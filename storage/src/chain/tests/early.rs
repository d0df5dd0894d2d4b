//! What is sent on before it is durable.

use super::*;

const KEY: ChunkKey = ChunkKey {
    inode: emberfs_proto::ids::InodeId(1),
    index: emberfs_proto::ids::ChunkIndex(0),
};

/// A target that serves behind target 1 under version 1, in front of `successor`.
fn behind(successor: Option<u64>) -> Replica {
    let mut replica = Replica::new(TargetId(2));
    let syncing = view(1, PublicState::Syncing, false, 1, None);
    replica.handle(Event::Adopt { view: syncing }, true);
    let done = Event::SyncDone {
        request: RequestId(100),
        chain_version: ChainVersion(1),
    };
    replica.handle(done, true);
    let serving = view(
        2,
        PublicState::Serving,
        false,
        successor.unwrap_or(2),
        successor.map(|next| (next, false)),
    );
    replica.handle(Event::Adopt { view: serving }, true);
    assert_eq!(replica.local(), LocalState::UpToDate);
    replica
}

const AT: ChainVersion = ChainVersion(2);
/// The predecessor's number of what is sent first.
const SENT: u64 = 1;

/// Version 1 of the chunk, made by write `n`, comes from the predecessor: early as this number, or in the usual
/// way.
fn comes(request: u64, n: u64, early: Option<u64>) -> Event {
    Event::Forward {
        request: RequestId(request),
        chain_version: AT,
        forward: Forward {
            update: update(KEY, tag(0, n)),
            version: ChunkVersion(1),
            replace: false,
            resync: false,
            committed_chain: ChainVersion(0),
            recent: Arc::default(),
            early: early.is_some(),
            sequence: early.unwrap_or(SENT),
        },
    }
}

fn unknown(op: u64) -> Event {
    Event::Loaded {
        op: OpId(op),
        result: Ok(None),
    }
}

fn sent(sequence: u64) -> Sent {
    Sent { key: KEY, sequence }
}

fn confirm(request: u64, sequence: u64) -> Event {
    Event::Confirm {
        request: RequestId(request),
        chain_version: AT,
        sent: sent(sequence),
    }
}

fn withdraw(request: u64, sequence: u64) -> Event {
    Event::Withdraw {
        request: RequestId(request),
        chain_version: AT,
        sent: sent(sequence),
    }
}

fn answered(attempt: u32, result: Result<Outcome, Error>) -> Event {
    Event::Forwarded {
        op: OpId(1),
        attempt,
        result,
    }
}

fn first_version() -> Outcome {
    Outcome {
        version: ChunkVersion(1),
        len: 1,
        checksum: 5,
        chain: AT,
    }
}

fn aborted(op: u64) -> Event {
    Event::Aborted {
        op: OpId(op),
        result: Ok(()),
    }
}

fn committed(op: u64) -> Event {
    Event::Committed {
        op: OpId(op),
        result: Ok(()),
    }
}

/// Requests that are answered, in order, and whether well.
fn answers(actions: &[Action]) -> Vec<(u64, bool)> {
    let answer = |action: &Action| match action {
        Action::Reply { request, result } => (request.0, result.is_ok()),
        other => panic!("not an answer: {other:?}"),
    };
    actions.iter().map(answer).collect()
}

/// What is told to the successor, if that is all.
fn told(actions: &[Action]) -> &Message {
    match actions {
        [Action::Send { message, .. }] => message,
        other => panic!("expected one sending, got {other:?}"),
    }
}

/// What is sent early while it is stored here.
fn early(actions: &[Action]) -> &Forward {
    match actions {
        [
            Action::Send {
                message: Message::Forward(forward),
                ..
            },
            Action::Prepare { .. },
        ] if forward.early => forward,
        other => panic!("not sent early: {other:?}"),
    }
}

/// A target at the end of the chain, or before `successor`, that holds write 1 as sending 1.
fn holding(successor: Option<u64>) -> Replica {
    let mut replica = behind(successor);
    replica.handle(comes(1, 1, Some(1)), true);
    replica.handle(unknown(1), true);
    let actions = replica.handle(stored(1, 1), true);
    assert_eq!(answers(&actions), [(1, true)], "it is held");
    replica
}

#[test]
fn a_write_goes_on_while_it_is_stored_and_is_confirmed_afterwards() {
    let mut replica = head();
    replica.handle(write(1, 1), true);
    let actions = replica.handle(unknown(1), true);
    assert_eq!(early(&actions).sequence, 1);
    let actions = replica.handle(stored(1, 1), true);
    let Message::Confirm(confirmed) = told(&actions) else {
        panic!("not confirmed: {actions:?}");
    };
    assert_eq!(*confirmed, sent(1));
    let actions = replica.handle(answered(2, Ok(first_version())), true);
    assert!(matches!(actions[..], [Action::Commit { .. }]));
    assert_eq!(answers(&replica.handle(committed(1), true)), [(1, true)]);
}

#[test]
fn what_came_early_is_held_until_it_is_confirmed() {
    let mut replica = holding(None);
    let plan = replica.read_plan(KEY, AT, true);
    assert_eq!(plan.unwrap(), ReadPlan::Committed);
    let actions = replica.handle(confirm(2, 1), true);
    assert!(matches!(actions[..], [Action::Commit { .. }]));
    assert_eq!(answers(&replica.handle(committed(1), true)), [(2, true)]);
}

#[test]
fn a_confirmation_that_comes_before_it_is_stored_counts() {
    let mut replica = behind(None);
    replica.handle(comes(1, 1, Some(1)), true);
    replica.handle(unknown(1), true);
    assert!(replica.handle(confirm(2, 1), true).is_empty());
    let actions = replica.handle(stored(1, 1), true);
    assert!(matches!(actions[..], [Action::Commit { .. }]));
    let actions = replica.handle(committed(1), true);
    assert_eq!(answers(&actions), [(1, true), (2, true)]);
}

#[test]
fn the_middle_of_a_chain_passes_on_both() {
    let mut replica = behind(Some(3));
    replica.handle(comes(1, 1, Some(7)), true);
    let actions = replica.handle(unknown(1), true);
    assert_eq!(early(&actions).sequence, 1, "its own number");
    replica.handle(stored(1, 1), true);
    let actions = replica.handle(confirm(2, 7), true);
    assert!(matches!(told(&actions), Message::Confirm(s) if *s == sent(1)));
}

#[test]
fn a_syncing_successor_is_sent_nothing_early() {
    let mut replica = leading(1, Some((2, true)));
    replica.handle(write(1, 1), true);
    let actions = replica.handle(unknown(1), true);
    assert!(matches!(actions[..], [Action::Prepare { .. }]));
}

#[test]
fn what_the_successor_does_not_hold_is_sent_again_in_the_usual_way() {
    assert_eq!(
        refusal(&behind(None).handle(confirm(1, 1), true)),
        ErrorCode::MissingVersion
    );
    let missing = || Err(Error::new(ErrorCode::MissingVersion, "not held"));
    let usual = |actions: &[Action]| {
        let message = told(actions);
        matches!(message, Message::Forward(f) if !f.early && !f.replace && f.sequence == 1)
    };
    let mut replica = head();
    forwarding(&mut replica);
    assert!(usual(&replica.handle(answered(2, missing()), true)));
    // The refusal came before there was anything to confirm.
    let mut replica = head();
    replica.handle(write(1, 1), true);
    replica.handle(unknown(1), true);
    assert!(replica.handle(answered(1, missing()), true).is_empty());
    assert!(usual(&replica.handle(stored(1, 1), true)));
}

#[test]
fn a_write_that_cannot_be_stored_is_withdrawn_before_its_client_hears_of_it() {
    let mut replica = head();
    replica.handle(write(1, 1), true);
    replica.handle(unknown(1), true);
    let full = Event::Prepared {
        op: OpId(1),
        result: Err(Error::new(ErrorCode::NoSpace, "full")),
    };
    let actions = replica.handle(full, true);
    assert!(matches!(told(&actions), Message::Withdraw(s) if *s == sent(1)));
    // Until it has said so, the successor may hold it.
    let broken = Error::new(ErrorCode::Unreachable, "reset");
    let actions = replica.handle(answered(2, Err(broken)), true);
    assert!(matches!(actions[..], [Action::RetryAfter { .. }]));
    let again = Event::RetryDue {
        op: OpId(1),
        attempt: 2,
    };
    let actions = replica.handle(again, true);
    assert!(matches!(told(&actions), Message::Withdraw(_)));
    let nothing = Outcome::nothing(ChainVersion(1));
    let actions = replica.handle(answered(3, Ok(nothing)), true);
    assert_eq!(refusal(&actions), ErrorCode::NoSpace);
}

#[test]
fn withdrawing_undoes_what_is_held_here_and_then_below() {
    let mut replica = holding(Some(3));
    let actions = replica.handle(withdraw(2, 1), true);
    assert!(matches!(actions[..], [Action::Abort { .. }]));
    let actions = replica.handle(aborted(1), true);
    assert!(matches!(told(&actions), Message::Withdraw(_)));
    let actions = replica.handle(answered(2, Ok(Outcome::nothing(AT))), true);
    assert_eq!(answers(&actions), [(2, true)]);
    assert_eq!(replica.busy_chunks(), 0);
}

#[test]
fn withdrawing_waits_for_what_is_still_being_stored() {
    let mut replica = behind(None);
    replica.handle(comes(1, 1, Some(1)), true);
    replica.handle(unknown(1), true);
    assert!(replica.handle(withdraw(2, 1), true).is_empty());
    let actions = replica.handle(stored(1, 1), true);
    assert!(matches!(actions[..], [Action::Abort { .. }]));
    let actions = replica.handle(aborted(1), true);
    assert_eq!(answers(&actions), [(1, false), (2, true)]);
}

#[test]
fn what_was_settled_is_not_taken_when_it_comes_late() {
    let mut replica = behind(None);
    assert_eq!(answers(&replica.handle(withdraw(1, 4), true)), [(1, true)]);
    for late in [3, 4] {
        assert_eq!(
            refusal(&replica.handle(comes(2, 1, Some(late)), true)),
            ErrorCode::MissingVersion
        );
    }
    let actions = replica.handle(comes(3, 1, Some(5)), true);
    assert!(matches!(actions[..], [Action::Load { .. }]));
}

#[test]
fn a_change_that_came_early_is_undone_when_the_chain_changes() {
    let mut replica = holding(None);
    let alone = view(3, PublicState::Serving, true, 2, None);
    let actions = replica.handle(Event::Adopt { view: alone }, true);
    assert!(
        actions.iter().any(|a| matches!(a, Action::Abort { .. })),
        "{actions:?}"
    );
    // Nobody below has committed it, so nobody may see it.
    let plan = replica.read_plan(KEY, ChainVersion(3), true);
    assert_eq!(plan.unwrap(), ReadPlan::Committed);
    replica.handle(aborted(1), true);
    assert_eq!(replica.busy_chunks(), 0);
}

#[test]
fn another_change_does_not_wait_behind_what_is_held() {
    let mut replica = holding(None);
    let actions = replica.handle(comes(2, 2, Some(2)), true);
    assert!(matches!(actions[..], [Action::Abort { .. }]));
    let actions = replica.handle(aborted(1), true);
    assert!(matches!(actions[..], [Action::Load { .. }]), "{actions:?}");
}

#[test]
fn the_same_change_in_the_usual_way_confirms_what_is_held() {
    let mut replica = holding(None);
    let actions = replica.handle(comes(2, 1, None), true);
    assert!(matches!(actions[..], [Action::Commit { .. }]));
    assert_eq!(answers(&replica.handle(committed(1), true)), [(2, true)]);
    // Also if it came while the first was being stored.
    let mut replica = behind(None);
    replica.handle(comes(1, 1, Some(1)), true);
    replica.handle(unknown(1), true);
    replica.handle(comes(2, 1, None), true);
    let actions = replica.handle(stored(1, 1), true);
    let [Action::Reply { .. }, Action::Commit { .. }] = &actions[..] else {
        panic!("not committed: {actions:?}");
    };
}

#[test]
fn a_full_successor_is_withdrawn_from_as_well() {
    let mut replica = head();
    forwarding(&mut replica);
    let full = Error::new(ErrorCode::NoSpace, "full");
    let actions = replica.handle(answered(2, Err(full)), true);
    assert!(matches!(actions[..], [Action::Abort { .. }]));
    // A late copy of the early message must not find room there.
    let actions = replica.handle(aborted(1), true);
    assert!(matches!(told(&actions), Message::Withdraw(_)));
}

#[test]
fn a_sending_that_comes_after_its_change_in_the_usual_way_is_late() {
    let mut replica = behind(None);
    let actions = replica.handle(comes(1, 1, None), true);
    assert!(matches!(actions[..], [Action::Load { .. }]));
    assert_eq!(
        refusal(&replica.handle(comes(2, 1, Some(SENT)), true)),
        ErrorCode::MissingVersion
    );
}
