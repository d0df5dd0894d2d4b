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
        names.unsettled(Some(A)),
        Some(Vec::new()),
        "of an earlier process"
    );
    names.synced(at(1, 0, 0));
    assert_eq!(names.unsettled(Some(A)), None);
    names
}

/// Asks about everything; the server is at `log`.
fn settle(names: &NameChanges, log: pb::LogPosition, known: &[(u64, u64)]) {
    let asked = names.unsettled(None).unwrap();
    names.settled(log, &asked, &ends(known));
}

/// The change of this inode is lost.
fn lose(names: &NameChanges, inode: InodeId) {
    names.made(Some(at(1, 8, 7)), [inode; 2]);
    settle(names, at(2, 0, 9), &[(1, 7)]);
}

#[test]
fn what_is_unsettled_is_what_no_answer_has_called_durable() {
    let names = fresh();
    names.made(Some(at(1, 0, 7)), [A; 2]);
    names.made(Some(at(1, 7, 7)), [A; 2]);
    assert_eq!(names.unsettled(None), None, "durable when it was answered");
    names.made(Some(at(1, 9, 7)), [B; 2]);
    names.made(Some(at(1, 8, 7)), [A; 2]);
    assert_eq!(names.unsettled(Some(A)), Some(vec![1]));
    names.made(Some(at(1, 10, 8)), [B; 2]);
    assert_eq!(names.unsettled(Some(A)), None);
    assert_eq!(names.unsettled(Some(B)), Some(vec![1]));
    names.synced(at(1, 0, 9));
    assert_eq!(names.unsettled(Some(B)), Some(vec![1]), "the tenth is not");
    names.synced(at(1, 0, 10));
    assert_eq!(names.unsettled(None), None);
}

#[test]
fn what_a_later_start_calls_durable_says_nothing_of_an_earlier_one() {
    let names = fresh();
    names.made(Some(at(1, 8, 7)), [A; 2]);
    assert!(names.made(Some(at(2, 9, 8)), [B; 2]), "to be asked about");
    assert!(!names.made(Some(at(2, 10, 8)), [B; 2]), "somebody does");
    names.synced(at(2, 0, 99));
    assert_eq!(names.unsettled(Some(A)), Some(vec![1]));
    names.asked();
    assert!(names.made(Some(at(2, 0, 99)), [B; 2]), "he has not");
    settle(&names, at(2, 0, 99), &[(1, 8)]);
    names.asked();
    assert!(!names.made(Some(at(2, 100, 99)), [B; 2]));
}

#[test]
fn what_came_after_the_end_of_its_log_is_lost() {
    let names = fresh();
    let (a, b) = (names.heard(A), names.heard(B));
    names.made(Some(at(1, 8, 7)), [A; 2]);
    names.made(Some(at(1, 9, 7)), [B; 2]);
    names.made(Some(at(2, 9, 8)), [A, B]);
    settle(&names, at(2, 0, 9), &[(1, 8)]);
    assert_eq!(names.unsettled(None), None);
    assert!(!names.tell(A, &a));
    assert!(names.tell(B, &b));
    assert!(!names.tell(B, &b), "once");
}

#[test]
fn what_the_server_does_not_remember_is_lost() {
    let names = fresh();
    names.made(Some(at(1, 8, 7)), [A; 2]);
    settle(&names, at(9000, 0, 9), &[]);
    assert!(names.tell(A, &LossesHeard::default()));
}

#[test]
fn a_loss_is_told_to_who_had_it_open_and_to_who_opens_it_soon_after_somebody_was_told() {
    let names = fresh();
    let earlier = [names.heard(A), names.heard(A)];
    lose(&names, A);
    let mut state = names.state.lock();
    let start = Instant::now();
    let after = |s| start + Duration::from_secs(s);
    let first = state.heard(A, after(3600));
    assert!(state.tell(A, &first, after(3600)), "nobody was told before");
    let soon = state.heard(A, after(3600) + RECENT / 2);
    let late = state.heard(A, after(3600) + RECENT);
    assert!(state.tell(A, &soon, after(7200)));
    assert!(!state.tell(A, &late, after(7200)));
    for earlier in &earlier {
        assert!(state.tell(A, earlier, after(7200)), "however late");
        assert!(!state.tell(A, earlier, after(7200)), "once");
    }
}

#[test]
fn another_loss_is_told_again() {
    let names = fresh();
    let heard = names.heard(A);
    for _ in 0..2 {
        lose(&names, A);
        assert!(names.tell(A, &heard));
        assert!(!names.tell(A, &heard));
    }
    lose(&names, B);
    assert!(!names.tell(A, &heard));
}

#[test]
fn who_asked_before_a_change_does_not_answer_for_it() {
    let names = fresh();
    names.made(Some(at(2, 8, 7)), [A; 2]);
    let asked = names.unsettled(None).unwrap();
    // An answer that took long, of before.
    names.made(Some(at(1, 9, 7)), [B; 2]);
    names.settled(at(2, 0, 8), &asked, &[]);
    assert_eq!(names.unsettled(Some(B)), Some(vec![1]));
    assert_eq!(names.unsettled(Some(A)), None);
}

#[test]
fn what_an_earlier_process_noted_concerns_every_inode() {
    let names = NameChanges::default();
    names.inherit(1, 8);
    assert_eq!(names.unsettled(Some(A)), Some(vec![1]));
    settle(&names, at(2, 0, 9), &[(1, 7)]);
    assert!(names.tell(A, &LossesHeard::default()));
    assert!(names.tell(B, &LossesHeard::default()));
}

#[test]
fn changes_that_are_not_durable_yet_are_noted() {
    let names = fresh();
    let noted = std::sync::Arc::new(Mutex::new(Vec::new()));
    names.note_by({
        let noted = noted.clone();
        Box::new(move |start, commit| noted.lock().push((start, commit)))
    });
    names.made(Some(at(1, 7, 7)), [A; 2]);
    names.made(Some(at(1, 8, 7)), [A; 2]);
    assert_eq!(*noted.lock(), [(1, 8)]);
}

#[test]
fn too_many_changes_stand_for_all_inodes() {
    let names = fresh();
    names.made(Some(at(2, 1, 0)), [B; 2]);
    for n in 0..MOST as u64 {
        names.made(Some(at(1, 8 + n, 7)), [InodeId(100 + n); 2]);
    }
    assert_eq!(names.unsettled(Some(A)), Some(vec![1, 2]));
    let kept = names.state.lock();
    assert_eq!(kept.unsettled.values().map(VecDeque::len).sum::<usize>(), 2);
    drop(kept);
    settle(&names, at(2, 0, 1), &[(1, 8)]);
    assert!(names.tell(A, &LossesHeard::default()), "perhaps");
    assert_eq!(names.unsettled(None), None);
}

#[test]
fn too_many_losses_stand_for_all_inodes() {
    let names = fresh();
    for n in 0..=MOST_LOST as u64 {
        lose(&names, InodeId(100 + n));
    }
    assert!(names.tell(A, &LossesHeard::default()), "perhaps");
    assert_eq!(names.state.lock().lost.len(), 1);
}
