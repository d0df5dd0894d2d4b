//! The protocol under a seeded scheduler: every action of every replica is an item in one bag, and
//! the seed picks which happens next, which message or answer is lost, and who crashes.

mod world;

use emberfs_proto::ErrorCode;
use emberfs_proto::cluster::{LocalState, PublicState};
use emberfs_proto::ids::{ChainId, ChainVersion, ChunkKey, TargetId};

use super::*;
use world::World;

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
    let mut replica = Replica::new(TargetId(1));
    let view = view(1, PublicState::Serving, true, 2, Some((2, false)));
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
        update: world::update(ChunkKey::new(1u64, 0u32), request, b"x"),
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
        result: Err(emberfs_proto::Error::new(ErrorCode::DiskError, "gone")),
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
    assert!(matches!(actions[..], [Action::Prepare { .. }]));
    let plan = replica.read_plan(key, ChainVersion(1), true).unwrap();
    assert_eq!(plan, ReadPlan::AskTail(TargetId(2)));
    let other = ChunkKey::new(1u64, 1u32);
    assert_eq!(
        replica.read_plan(other, ChainVersion(1), true).unwrap(),
        ReadPlan::Committed
    );
}

#[test]
fn quiet_chains_replicate_everything() {
    for seed in 0..20 {
        let mut world = World::new(seed, 3);
        world.faults = false;
        world.run(2_000);
        world.settle();
        assert!(
            world.acknowledged() > 60,
            "seed {seed}: only {} writes",
            world.acknowledged()
        );
    }
}

/// `EMBERFS_SIM_SEEDS=N` runs seeds 0 to N - 1, `EMBERFS_SIM_SEED=N` replays one.
#[test]
fn lost_messages_and_crashes_lose_nothing_that_was_acknowledged() {
    let mut acknowledged = 0;
    for seed in 0..600 {
        let mut world = World::new(seed, 3);
        world.run(600);
        world.settle();
        acknowledged += world.acknowledged();
    }
    assert!(
        acknowledged > 6_000,
        "only {acknowledged} writes were acknowledged in all"
    );
}
