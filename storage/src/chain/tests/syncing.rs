//! What goes to a replica that is being brought up to date, and what it takes.

use super::*;

/// A target that is being synced under version 4, and what it does with a whole chunk.
fn synced(holds: ChunkMeta, version: u64) -> Vec<Action> {
    let mut replica = Replica::new(TargetId(2));
    let view = view(4, PublicState::Syncing, false, 1, None);
    replica.handle(Event::Adopt { view }, true);
    let event = Event::Forward {
        request: RequestId(1),
        chain_version: ChainVersion(4),
        forward: Forward {
            update: update(ChunkKey::new(1u64, 0u32), tag(0, 1)),
            version: ChunkVersion(version),
            replace: true,
            resync: true,
            committed_chain: ChainVersion(2),
            recent: Arc::default(),
            early: false,
            sequence: 0,
        },
    };
    replica.handle(event, true);
    replica.handle(loaded(1, holds), true)
}

#[test]
fn a_late_copy_does_not_undo_a_write_of_the_same_membership() {
    let live = meta(12, 4, tag(0, 2), &[]);
    assert!(matches!(
        synced(live, 11)[..],
        [Action::Reply { result: Ok(_), .. }]
    ));
    // Of an older membership it may be anything, also ahead.
    let stale = meta(12, 3, tag(0, 2), &[]);
    assert!(matches!(synced(stale, 11)[..], [Action::Prepare { .. }]));
}

#[test]
fn a_tail_that_handed_over_decides_nothing_about_a_write_on_its_way() {
    let mut replica = leading(1, Some((2, true)));
    let chain_version = ChainVersion(1);
    replica.handle(write(1, 1), true);
    let unknown = Event::Loaded {
        op: OpId(1),
        result: Ok(None),
    };
    replica.handle(unknown, true);
    let key = ChunkKey::new(1u64, 0u32);
    let plan = |replica: &Replica| replica.read_plan(key, chain_version, true);
    assert_eq!(plan(&replica).unwrap(), ReadPlan::Committed);
    replica.handle(Event::HandOver { chain_version }, true);
    assert_eq!(plan(&replica).unwrap_err().code, ErrorCode::Busy);
}

#[test]
fn a_tail_again_shows_what_the_one_it_handed_over_to_may_have_shown() {
    let mut replica = leading(1, Some((2, true)));
    let chain_version = ChainVersion(1);
    let actions = prepared(&mut replica, 1);
    assert!(matches!(actions[..], [Action::ReadContent { .. }]));
    replica.handle(Event::HandOver { chain_version }, true);
    // Version 2, in which the successor was the tail, never came; now it is dead.
    let alone = view(3, PublicState::Serving, true, 1, Some((2, true)));
    replica.handle(Event::Adopt { view: alone }, true);
    let key = ChunkKey::new(1u64, 0u32);
    let plan = replica.read_plan(key, ChainVersion(3), true);
    assert_eq!(plan.unwrap(), ReadPlan::Newest);
}

#[test]
fn a_syncing_successor_gets_a_chunk_whole_once_and_then_what_changes() {
    let mut replica = leading(1, Some((2, true)));
    let key = ChunkKey::new(1u64, 0u32);
    let actions = prepared(&mut replica, 1);
    assert!(matches!(actions[..], [Action::ReadContent { .. }]));
    let content = Event::Content {
        op: OpId(1),
        result: Ok(Content {
            data: Bytes::from_static(b"x"),
            checksums: vec![5],
        }),
    };
    let [
        Action::Send {
            attempt,
            message: Message::Forward(forward),
            ..
        },
    ] = &replica.handle(content, true)[..]
    else {
        panic!("not sent");
    };
    assert!(forward.replace && !replica.is_mirrored(ChainVersion(1), key));
    let outcome = Outcome {
        version: ChunkVersion(1),
        len: 1,
        checksum: 5,
        chain: ChainVersion(1),
    };
    let acknowledged = Event::Forwarded {
        op: OpId(1),
        attempt: *attempt,
        result: Ok(outcome),
    };
    replica.handle(acknowledged, true);
    let committed = Event::Committed {
        op: OpId(1),
        result: Ok(()),
    };
    replica.handle(committed, true);
    assert!(replica.is_mirrored(ChainVersion(1), key));
    let [
        Action::Send {
            message: Message::Forward(forward),
            ..
        },
    ] = &prepared(&mut replica, 2)[..]
    else {
        panic!("not sent");
    };
    assert!(!forward.replace, "the successor holds the rest");
    // It came again: what it holds is unknown, also of a write that is on its way.
    let newer = view(2, PublicState::Serving, true, 1, Some((2, true)));
    let actions = replica.handle(Event::Adopt { view: newer }, true);
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::ReadContent { .. }))
    );
    assert!(!replica.is_mirrored(ChainVersion(2), key));
}

#[test]
fn a_syncing_target_takes_a_part_only_of_what_it_holds() {
    let send = |held: Option<ChunkMeta>, version: u64| {
        let mut replica = Replica::new(TargetId(1));
        let syncing = view(3, PublicState::Syncing, false, 1, None);
        replica.handle(Event::Adopt { view: syncing }, true);
        let part = Forward {
            update: update(ChunkKey::new(1u64, 0u32), tag(0, 9)),
            version: ChunkVersion(version),
            replace: false,
            resync: false,
            committed_chain: ChainVersion(0),
            recent: Arc::default(),
            early: false,
            sequence: 0,
        };
        let event = Event::Forward {
            request: RequestId(1),
            chain_version: ChainVersion(3),
            forward: part,
        };
        replica.handle(event, true);
        let loaded = Event::Loaded {
            op: OpId(1),
            result: Ok(held),
        };
        replica.handle(loaded, true)
    };
    let held = || meta(7, 2, tag(0, 8), &[]);
    assert!(matches!(
        send(Some(held()), 8)[..],
        [Action::Prepare { .. }]
    ));
    for version in [7, 9] {
        assert_eq!(
            refusal(&send(Some(held()), version)),
            ErrorCode::MissingVersion
        );
    }
    assert_eq!(refusal(&send(None, 1)), ErrorCode::MissingVersion);
}
