use super::*;

const A: InodeId = InodeId(10);
const B: InodeId = InodeId(11);

fn at(start: u64, committed: u64, durable: u64) -> pb::LogPosition {
    pb::LogPosition {
        start,
        committed,
        durable,
    }
}

fn ends(ends: &[(u64, u64)]) -> Vec<pb::LogEnd> {
    let ends = ends.iter();
    ends.map(|&(start, end)| pb::LogEnd { start, end })
        .collect()
}

/// No process before this one.
fn fresh() -> NameChanges {
    let names = NameChanges::default();
    assert_eq!(
        names.open(Some(A)),
        Some(Vec::new()),
        "of an earlier process"
    );
    names.synced(None);
    assert_eq!(names.open(Some(A)), None);
    names
}

#[test]
fn what_is_open_is_what_no_answer_has_called_durable() {
    let names = fresh();
    names.made(Some(at(1, 0, 7)), [A, A]);
    names.made(Some(at(1, 7, 7)), [A, A]);
    assert_eq!(
        names.open(None),
        None,
        "it was durable when it was answered"
    );
    names.made(Some(at(1, 8, 7)), [A, A]);
    names.made(Some(at(1, 9, 7)), [B, B]);
    assert_eq!(names.open(Some(A)), Some(vec![1]));
    names.made(Some(at(1, 10, 8)), [B, B]);
    assert_eq!(names.open(Some(A)), None);
    assert_eq!(names.open(Some(B)), Some(vec![1]));
    names.synced(Some(at(1, 0, 9)));
    assert_eq!(names.open(Some(B)), Some(vec![1]), "the tenth is not");
    names.synced(Some(at(1, 0, 10)));
    assert_eq!(names.open(None), None);
}

#[test]
fn what_a_later_start_calls_durable_says_nothing_of_an_earlier_one() {
    let names = fresh();
    names.made(Some(at(1, 8, 7)), [A, A]);
    names.made(Some(at(2, 9, 8)), [B, B]);
    names.synced(Some(at(2, 0, 99)));
    assert_eq!(names.open(Some(A)), Some(vec![1]));
}

#[test]
fn what_came_after_the_end_of_its_log_is_lost() {
    let names = fresh();
    let before = names.told();
    names.made(Some(at(1, 8, 7)), [A, A]);
    names.made(Some(at(1, 9, 7)), [B, B]);
    let asked = names.open(None).unwrap();
    names.made(Some(at(2, 9, 8)), [A, B]);
    names.settled(at(2, 0, 9), &asked, &ends(&[(1, 8)]));
    assert_eq!(names.open(None), None);
    assert!(!names.tell(A, &before));
    let before = Told::default();
    assert!(names.tell(B, &before));
    assert!(!names.tell(B, &before), "once");
}

#[test]
fn what_the_server_does_not_remember_is_lost() {
    let names = fresh();
    names.made(Some(at(1, 8, 7)), [A, A]);
    let asked = names.open(None).unwrap();
    names.settled(at(9000, 0, 9), &asked, &[]);
    assert!(names.tell(A, &Told::default()));
}

#[test]
fn who_asked_before_a_change_does_not_answer_for_it() {
    let names = fresh();
    names.made(Some(at(2, 8, 7)), [A, A]);
    let asked = names.open(None).unwrap();
    // An answer that took long, of before.
    names.made(Some(at(1, 9, 7)), [B, B]);
    names.settled(at(2, 0, 8), &asked, &[]);
    assert_eq!(names.open(Some(B)), Some(vec![1]));
    assert_eq!(names.open(Some(A)), None);
}

#[test]
fn too_many_changes_stand_for_all_inodes() {
    let names = fresh();
    for n in 0..=MOST as u64 {
        names.made(Some(at(1, 8 + n, 7)), [InodeId(100 + n); 2]);
    }
    assert_eq!(names.open(Some(A)), Some(vec![1]));
    names.made(Some(at(2, 1, 0)), [B, B]);
    let asked = names.open(None).unwrap();
    assert_eq!(asked, [1, 2]);
    names.settled(at(2, 0, 1), &asked, &ends(&[(1, 8)]));
    assert!(names.tell(A, &Told::default()), "perhaps");
    assert_eq!(names.0.lock().open.len(), 0);
}

#[test]
fn too_many_losses_stand_for_all_inodes() {
    let names = fresh();
    for n in 0..=MOST_LOST as u64 {
        names.made(Some(at(n, 8, 7)), [InodeId(100 + n); 2]);
        let asked = names.open(None).unwrap();
        names.settled(at(n + 1, 0, 1), &asked, &[]);
    }
    assert!(names.tell(A, &Told::default()), "perhaps");
    assert_eq!(names.0.lock().lost.len(), 1);
}
