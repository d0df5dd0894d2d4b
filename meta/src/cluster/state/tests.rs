use super::*;
use LocalState::{Offline as Dead, Online, UpToDate};
use PublicState::{LastServing, Offline, Serving, Syncing, Waiting};
use proptest::prelude::*;

type Row = (PublicState, LocalState);

fn chain(rows: &[Row]) -> Vec<Replica> {
    (1..)
        .zip(rows)
        .map(|(id, &(public, local))| Replica {
            target: TargetId(id),
            public,
            local,
        })
        .collect()
}

fn states(step: &Step) -> Vec<(u64, PublicState)> {
    step.replicas
        .iter()
        .map(|r| (r.target.0, r.public))
        .collect()
}

/// The state that target 1 gets in one step, with these others behind it.
fn row(public: PublicState, local: LocalState, others: &[Row]) -> PublicState {
    let mut rows = vec![(public, local)];
    rows.extend_from_slice(others);
    let step = next(&chain(&rows));
    step.replicas
        .iter()
        .find(|r| r.target == TargetId(1))
        .unwrap()
        .public
}

#[test]
fn every_row_of_the_table() {
    let alive = (Serving, UpToDate);
    let dead = (Serving, Dead);
    let table: &[(PublicState, LocalState, &[Row], PublicState)] = &[
        (Serving, UpToDate, &[], Serving),
        (Serving, Online, &[], Serving),
        (Serving, UpToDate, &[dead], Serving),
        (Serving, Online, &[alive], Serving),
        (Serving, Dead, &[alive], Offline),
        (Serving, Dead, &[(Serving, Online)], Offline),
        (Serving, Dead, &[dead, alive], Offline),
        (Serving, Dead, &[(Syncing, UpToDate)], Offline),
        (Serving, Dead, &[(Syncing, Online)], LastServing),
        (Serving, Dead, &[], LastServing),
        (Serving, Dead, &[dead], LastServing),
        (Serving, Dead, &[(LastServing, Online)], LastServing),
        (Serving, Dead, &[(Waiting, UpToDate)], LastServing),
        (LastServing, UpToDate, &[], Serving),
        (LastServing, Online, &[], Serving),
        (LastServing, Online, &[(LastServing, Online)], Serving),
        (
            LastServing,
            Online,
            &[(Waiting, Online), (Offline, Dead)],
            Serving,
        ),
        (LastServing, Dead, &[], LastServing),
        (LastServing, Dead, &[(LastServing, Online)], LastServing),
        (LastServing, Dead, &[(Waiting, Online)], LastServing),
        (LastServing, Online, &[alive], Offline),
        (LastServing, UpToDate, &[dead], Offline),
        (LastServing, Dead, &[alive], Offline),
        (LastServing, Online, &[(Syncing, UpToDate)], Offline),
        (Syncing, UpToDate, &[alive], Serving),
        (Syncing, UpToDate, &[dead], Serving),
        (Syncing, UpToDate, &[], Serving),
        (Syncing, Online, &[alive], Syncing),
        (Syncing, Online, &[(Serving, Online)], Syncing),
        (Syncing, Online, &[dead], Waiting),
        (Syncing, Online, &[], Waiting),
        (Syncing, Online, &[(LastServing, Online)], Waiting),
        (Syncing, Dead, &[alive], Offline),
        (Syncing, Dead, &[], Offline),
        (Waiting, Online, &[alive], Syncing),
        (Offline, Online, &[alive], Syncing),
        (Waiting, Online, &[alive, (Syncing, Online)], Waiting),
        (Offline, Online, &[alive, (Syncing, Online)], Waiting),
        (Offline, Online, &[alive, (Syncing, UpToDate)], Waiting),
        (Waiting, Online, &[], Waiting),
        (Offline, Online, &[], Waiting),
        (Waiting, Online, &[dead], Waiting),
        (Offline, Online, &[dead], Waiting),
        (Waiting, Online, &[(LastServing, Dead)], Waiting),
        (Waiting, UpToDate, &[alive], Waiting),
        (Offline, UpToDate, &[alive], Waiting),
        (Waiting, UpToDate, &[], Waiting),
        (Offline, UpToDate, &[], Waiting),
        (Waiting, Dead, &[alive], Offline),
        (Offline, Dead, &[alive], Offline),
        (Waiting, Dead, &[], Offline),
        (Offline, Dead, &[], Offline),
    ];
    for &(public, local, others, expected) in table {
        assert_eq!(
            row(public, local, others),
            expected,
            "{public:?} + {local:?} among {others:?}"
        );
    }
}

#[test]
fn unknown_states_of_a_newer_peer_count_as_offline() {
    let unknown = LocalState::Unspecified;
    assert_eq!(row(Serving, unknown, &[(Serving, Online)]), Offline);
    assert_eq!(row(PublicState::Unspecified, unknown, &[]), Offline);
}

#[test]
fn when_all_fail_at_once_each_that_served_may_revive_the_chain() {
    let failed = settle(&chain(&[(Serving, Dead), (Serving, Dead), (Serving, Dead)]));
    assert_eq!(
        states(&failed),
        [(1, LastServing), (2, LastServing), (3, LastServing)]
    );
    // Only the middle one comes back.
    let mut replicas = failed.replicas;
    replicas[1].local = Online;
    let revived = settle(&replicas);
    assert_eq!(states(&revived), [(2, Serving), (1, Offline), (3, Offline)]);
}

#[test]
fn when_all_return_at_once_the_first_serves_and_one_of_the_others_syncs() {
    let all = chain(&[
        (LastServing, Online),
        (LastServing, Online),
        (LastServing, Online),
    ]);
    assert_eq!(
        states(&settle(&all)),
        [(1, Serving), (2, Syncing), (3, Waiting)]
    );
}

#[test]
fn a_replica_that_was_syncing_at_the_crash_may_not_revive_the_chain() {
    let failed = settle(&chain(&[(Serving, Dead), (Syncing, Dead)]));
    assert_eq!(states(&failed), [(1, LastServing), (2, Offline)]);
    let mut replicas = failed.replicas;
    replicas[1].local = Online;
    assert_eq!(states(&settle(&replicas)), [(1, LastServing), (2, Waiting)]);
}

#[test]
fn a_finished_sync_lets_the_next_one_start_in_the_same_evaluation() {
    let step = settle(&chain(&[
        (Serving, UpToDate),
        (Syncing, UpToDate),
        (Waiting, Online),
    ]));
    assert_eq!(states(&step), [(1, Serving), (2, Serving), (3, Syncing)]);
}

#[test]
fn a_stable_chain_is_reported_unchanged() {
    let stable = chain(&[
        (Serving, UpToDate),
        (Serving, Online),
        (Syncing, Online),
        (Offline, Dead),
    ]);
    assert_eq!(
        settle(&stable),
        Step {
            replicas: stable.clone(),
            changed: false
        }
    );
}

#[test]
fn groups_keep_their_inner_order() {
    let step = next(&chain(&[
        (Serving, Dead),
        (Serving, Online),
        (Offline, Dead),
        (Serving, Online),
    ]));
    assert_eq!(
        states(&step),
        [(2, Serving), (4, Serving), (1, Offline), (3, Offline)]
    );
}

fn any_public() -> impl Strategy<Value = PublicState> {
    prop::sample::select(vec![Serving, LastServing, Syncing, Waiting, Offline])
}

fn any_local() -> impl Strategy<Value = LocalState> {
    prop::sample::select(vec![UpToDate, Online, Dead])
}

fn count(replicas: &[Replica], state: PublicState) -> usize {
    replicas.iter().filter(|r| r.public == state).count()
}

fn check(before: &[Replica], after: &Step) {
    assert_eq!(after.changed, after.replicas != before);
    assert!(after.replicas.is_sorted_by_key(|r| rank(r.public)));
    assert!(count(&after.replicas, Syncing) <= 1);
    let mut ids: Vec<_> = after.replicas.iter().map(|r| r.target).collect();
    ids.sort();
    assert_eq!(
        ids,
        (1..=before.len() as u64).map(TargetId).collect::<Vec<_>>()
    );
    let complete = before.iter().any(|r| {
        is_alive(r.local) && r.public == Serving || r.public == Syncing && r.local == UpToDate
    });
    for old in before {
        let new = after
            .replicas
            .iter()
            .find(|r| r.target == old.target)
            .unwrap()
            .public;
        match (old.public, new) {
            (Serving, _) if is_alive(old.local) => assert_eq!(new, Serving, "{before:?}"),
            (Serving, _) if !complete => assert_eq!(new, LastServing, "{before:?}"),
            (Syncing, Serving) => assert_eq!(old.local, UpToDate),
            (LastServing, Serving) => assert!(is_alive(old.local)),
            (Waiting | Offline, Serving | LastServing) => {
                panic!("promoted without a sync: {before:?}")
            }
            _ => {}
        }
    }
}

proptest! {
    #[test]
    fn one_step_of_any_chain_keeps_the_rules(rows in prop::collection::vec((any_public(), any_local()), 1..6)) {
        // A chain of the map has at most one SYNCING; the table mends others.
        let before = chain(&rows);
        if count(&before, Syncing) <= 1 {
            check(&before, &next(&before));
        } else {
            prop_assert!(count(&next(&before).replicas, Syncing) <= 1);
        }
    }

    #[test]
    fn any_history_keeps_the_rules(width in 1usize..6, events in prop::collection::vec((0usize..6, any_local()), 1..60)) {
        let mut now = chain(&vec![(Serving, UpToDate); width]);
        for (at, local) in events {
            let target = TargetId((at % width) as u64 + 1);
            now.iter_mut().find(|r| r.target == target).unwrap().local = local;
            let step = settle(&now);
            check(&now, &step);
            prop_assert!(!next(&step.replicas).changed, "not stable: {:?}", step.replicas);
            let keepers = count(&step.replicas, Serving) + count(&step.replicas, LastServing);
            prop_assert!(keepers > 0, "nobody holds the data any more: {now:?}");
            // Which of the two it is follows from whether anybody can serve.
            prop_assert!(count(&step.replicas, Serving) == 0 || count(&step.replicas, LastServing) == 0);
            now = step.replicas;
        }
    }
}
