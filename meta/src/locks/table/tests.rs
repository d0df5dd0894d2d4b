use emberfs_proto::ErrorCode;
use emberfs_proto::locks::Hold::{self, Exclusive, Shared};

use super::*;

const FILE: u64 = 7;

/// A table, with short ways to speak of it. Owner `o` is of client `o / 100`, its process is number `o`.
struct Locks {
    table: Table,
    tickets: u64,
}

fn owner(number: u64) -> Owner {
    Owner {
        client: ClientId(u128::from(number / 100)),
        number,
    }
}

fn posix(inode: u64) -> Place {
    Place {
        inode: inode.into(),
        space: LockSpace::Posix,
    }
}

fn flock(inode: u64) -> Place {
    Place {
        inode: inode.into(),
        space: LockSpace::Flock,
    }
}

fn wish(place: Place, number: u64, hold: Hold, start: u64, end: u64) -> Wish {
    Wish {
        place,
        owner: owner(number),
        range: Range {
            span: Span { start, end },
            hold,
            pid: number as u32,
        },
    }
}

impl Locks {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        Self {
            table: Table::with(limits),
            tickets: 0,
        }
    }

    fn ask(&mut self, wish: &Wish, wait: bool) -> Result<Answer> {
        self.tickets += 1;
        self.table.request(wish, self.tickets, wait)
    }

    /// A POSIX lock of [`FILE`], without waiting.
    fn lock(&mut self, number: u64, hold: Hold, start: u64, end: u64) -> Answer {
        self.ask(&wish(posix(FILE), number, hold, start, end), false)
            .unwrap()
    }

    fn wait(&mut self, wish: &Wish) -> u64 {
        assert_eq!(self.ask(wish, true), Ok(Answer::Waiting));
        self.tickets
    }

    /// A request for a POSIX lock of [`FILE`] that has to wait; its ticket.
    fn queue(&mut self, number: u64, hold: Hold, start: u64, end: u64) -> u64 {
        self.wait(&wish(posix(FILE), number, hold, start, end))
    }

    fn unlock(&mut self, number: u64, start: u64, end: u64) {
        let span = Span { start, end };
        let done = self.table.unlock(posix(FILE), owner(number), span);
        done.unwrap();
    }

    fn held(&self, number: u64) -> Vec<(u64, u64, Hold)> {
        let held = self.table.held(posix(FILE), owner(number));
        let held = held.iter().map(|r| (r.span.start, r.span.end, r.hold));
        held.collect()
    }

    /// Tickets granted since the last call.
    fn granted(&mut self) -> Vec<u64> {
        let granted = self.table.take_granted().into_iter();
        granted.map(|(_, ticket)| ticket).collect()
    }
}

#[test]
fn exclusive_locks_conflict_with_all_and_shared_ones_with_exclusive_ones() {
    use Answer::{Blocked, Granted};
    for (first, second, expected) in [
        (Shared, Shared, Granted),
        (Shared, Exclusive, Blocked),
        (Exclusive, Shared, Blocked),
        (Exclusive, Exclusive, Blocked),
    ] {
        let mut l = Locks::new();
        assert_eq!(l.lock(100, first, 10, 19), Granted);
        for (start, end) in [(0, 10), (19, 30), (12, 13), (0, 100)] {
            let mut other = wish(posix(FILE), 200, second, start, end);
            let blocked = l.table.test(&other).is_some();
            assert_eq!(blocked, expected == Blocked, "{first:?} {second:?}");
            other.owner = owner(100);
            assert_eq!(l.table.test(&other), None, "an owner is not in its own way");
        }
        assert_eq!(l.lock(200, second, 15, 15), expected);
        assert_eq!(l.lock(300, Exclusive, 20, 30), Granted, "other bytes");
    }
}

#[test]
fn who_is_in_the_way_is_told_with_range_and_process() {
    let mut l = Locks::new();
    l.lock(100, Exclusive, 10, 19);
    let found = l.table.test(&wish(posix(FILE), 200, Shared, 0, u64::MAX));
    let expected = wish(posix(FILE), 100, Exclusive, 10, 19);
    assert_eq!(found, Some((owner(100), expected.range)));
    // The first one, whoever has it.
    l.lock(150, Exclusive, 0, 0);
    let found = l.table.test(&wish(posix(FILE), 200, Shared, 0, u64::MAX));
    assert_eq!(
        found.map(|(owner, range)| (owner.number, range.span.start)),
        Some((150, 0))
    );
}

#[test]
fn the_two_spaces_and_two_files_do_not_see_each_other() {
    let mut l = Locks::new();
    for (place, number) in [
        (posix(FILE), 100),
        (flock(FILE), 200),
        (posix(8), 300),
        (flock(8), 400),
    ] {
        let answer = l.ask(&wish(place, number, Exclusive, 0, u64::MAX), false);
        assert_eq!(answer, Ok(Answer::Granted));
    }
}

#[test]
fn an_owner_upgrades_downgrades_and_splits_its_own() {
    let mut l = Locks::new();
    l.lock(100, Exclusive, 0, 99);
    l.lock(100, Shared, 40, 59);
    let split = [(0, 39, Exclusive), (40, 59, Shared), (60, 99, Exclusive)];
    assert_eq!(l.held(100), split);
    assert_eq!(l.lock(200, Shared, 45, 50), Answer::Granted);
    assert_eq!(
        l.lock(100, Exclusive, 40, 59),
        Answer::Blocked,
        "not while another reads"
    );
    assert_eq!(l.held(100), split, "a refusal changes nothing");
    l.unlock(200, 0, u64::MAX);
    l.lock(100, Exclusive, 40, 59);
    assert_eq!(l.held(100), [(0, 99, Exclusive)]);
    l.unlock(100, 10, 19);
    assert_eq!(l.held(100), [(0, 9, Exclusive), (20, 99, Exclusive)]);
}

#[test]
fn an_unlock_grants_what_it_frees_in_the_order_of_the_queue() {
    let mut l = Locks::new();
    l.lock(100, Exclusive, 0, 99);
    let first = l.queue(200, Exclusive, 0, 9);
    let second = l.queue(300, Shared, 5, 14);
    let third = l.queue(400, Exclusive, 50, 59);
    assert!(l.granted().is_empty());
    l.unlock(100, 0, 49);
    assert_eq!(l.granted(), [first], "the second waits for the first now");
    l.unlock(200, 0, u64::MAX);
    assert_eq!(l.granted(), [second]);
    l.unlock(100, 50, 99);
    assert_eq!(l.granted(), [third]);
}

#[test]
fn a_downgrade_lets_readers_in() {
    let mut l = Locks::new();
    l.lock(100, Exclusive, 0, 99);
    let readers = [l.queue(200, Shared, 0, 9), l.queue(300, Shared, 0, 99)];
    l.lock(100, Shared, 0, 99);
    assert_eq!(l.granted(), readers);
}

#[test]
fn readers_do_not_keep_a_writer_out() {
    let mut l = Locks::new();
    l.lock(100, Shared, 0, 9);
    let writer = l.queue(200, Exclusive, 0, 9);
    assert_eq!(l.lock(300, Shared, 0, 9), Answer::Blocked);
    let reader = l.queue(300, Shared, 0, 9);
    assert_eq!(l.lock(400, Exclusive, 10, 19), Answer::Granted, "unrelated");
    l.unlock(100, 0, 9);
    assert_eq!(l.granted(), [writer]);
    l.unlock(200, 0, 9);
    assert_eq!(l.granted(), [reader]);
}

#[test]
fn whoever_holds_a_lock_does_not_wait_behind_those_who_may_wait_for_it() {
    let mut l = Locks::new();
    l.lock(100, Shared, 0, 9);
    l.queue(200, Exclusive, 0, 19);
    assert_eq!(
        l.lock(100, Shared, 5, 15),
        Answer::Granted,
        "the same owner"
    );
    // Another owner of the same process: an open file description, or a lock on another file.
    let mut other = wish(posix(FILE), 101, Shared, 16, 17);
    assert_eq!(l.ask(&other, false), Ok(Answer::Blocked));
    other.range.pid = 100;
    assert_eq!(l.ask(&other, false), Ok(Answer::Granted));
}

#[test]
fn a_request_that_is_taken_back_frees_those_behind_it() {
    let mut l = Locks::new();
    l.lock(100, Shared, 0, 9);
    let writer = l.queue(200, Exclusive, 0, 9);
    let reader = l.queue(300, Shared, 0, 9);
    l.table.cancel(&[(owner(200).client, writer)]);
    assert_eq!(l.granted(), [reader]);
    l.unlock(100, 0, 9);
    l.unlock(300, 0, 9);
    assert!(l.granted().is_empty());
    assert!(l.held(200).is_empty());
    assert_eq!(l.table.files.len() + l.table.clients.len(), 0, "no rest");
}

#[test]
fn requests_taken_back_together_are_not_granted_to_each_other() {
    let mut l = Locks::new();
    l.lock(100, Shared, 0, 9);
    let (a, b) = (l.queue(200, Exclusive, 0, 9), l.queue(201, Shared, 0, 9));
    l.table
        .cancel(&[(owner(200).client, a), (owner(201).client, b)]);
    l.unlock(100, 0, 9);
    assert!(l.granted().is_empty());
}

#[test]
fn the_same_request_again_keeps_its_place() {
    let mut l = Locks::new();
    l.lock(100, Exclusive, 0, 9);
    let wanted = wish(posix(FILE), 200, Exclusive, 0, 9);
    let first = l.wait(&wanted);
    let second = l.queue(300, Exclusive, 0, 9);
    assert_eq!(l.table.request(&wanted, first, true), Ok(Answer::Waiting));
    l.unlock(100, 0, 9);
    assert_eq!(l.granted(), [first]);
    // Its answer was lost: it asks again, and has it.
    assert_eq!(l.table.request(&wanted, first, true), Ok(Answer::Granted));
    l.unlock(200, 0, 9);
    assert_eq!(l.granted(), [second]);
}

#[test]
fn a_departed_client_leaves_nothing_and_others_go_on() {
    let mut l = Locks::new();
    l.lock(100, Exclusive, 0, 9);
    l.lock(101, Exclusive, 20, 29);
    l.ask(&wish(flock(9), 100, Exclusive, 0, u64::MAX), false)
        .unwrap();
    let other = l.queue(200, Exclusive, 0, 29);
    let own = l.queue(102, Shared, 0, 9);
    let flocked = l.wait(&wish(flock(9), 200, Shared, 0, u64::MAX));
    let ended = l.table.release_client(owner(100).client);
    assert_eq!(ended, [(owner(100).client, own)]);
    let mut granted = l.granted();
    granted.sort_unstable();
    assert_eq!(granted, [other, flocked]);
    assert_eq!(l.held(100).len() + l.held(101).len(), 0);
    l.table.release_client(owner(200).client);
    assert_eq!(l.table.files.len() + l.table.clients.len(), 0, "no rest");
}

fn deadlock(l: &mut Locks, wish: &Wish) {
    let error = l.ask(wish, true).unwrap_err();
    assert_eq!(error.code, ErrorCode::Deadlock, "{error}");
}

#[test]
fn two_that_wait_for_each_other_are_a_deadlock() {
    let mut l = Locks::new();
    l.lock(100, Exclusive, 0, 0);
    l.lock(200, Exclusive, 1, 1);
    let first = l.queue(100, Exclusive, 1, 1);
    deadlock(&mut l, &wish(posix(FILE), 200, Shared, 0, 0));
    // Whoever was refused gives way.
    l.unlock(200, 1, 1);
    assert_eq!(l.granted(), [first]);
}

#[test]
fn two_readers_that_want_to_write_are_a_deadlock() {
    let mut l = Locks::new();
    l.lock(100, Shared, 0, 9);
    l.lock(200, Shared, 0, 9);
    l.queue(100, Exclusive, 0, 9);
    deadlock(&mut l, &wish(posix(FILE), 200, Exclusive, 0, 9));
}

#[test]
fn a_circle_of_three_over_files_and_clients_is_a_deadlock() {
    let mut l = Locks::new();
    for (inode, number) in [(1, 100), (2, 200), (3, 300)] {
        l.ask(&wish(posix(inode), number, Exclusive, 0, 9), false)
            .unwrap();
    }
    l.wait(&wish(posix(2), 100, Shared, 0, 9));
    l.wait(&wish(posix(3), 200, Shared, 0, 9));
    deadlock(&mut l, &wish(posix(1), 300, Shared, 0, 9));
    // Bytes that nobody holds are no reason to wait.
    let free = l.ask(&wish(posix(1), 300, Shared, 10, 19), true);
    assert_eq!(free, Ok(Answer::Granted));
}

#[test]
fn chains_and_places_in_the_queue_are_no_deadlock() {
    let mut l = Locks::new();
    l.lock(100, Exclusive, 0, 0);
    l.lock(200, Exclusive, 1, 1);
    l.lock(500, Exclusive, 9, 9);
    l.queue(200, Exclusive, 0, 0);
    l.queue(300, Exclusive, 1, 1);
    // It stands before whatever comes now, but holds nothing.
    l.queue(400, Exclusive, 0, 9);
    assert_eq!(l.lock(100, Exclusive, 5, 5), Answer::Granted);
    // 200 waits for 100, and 400 for all; 500 waits for nobody.
    l.queue(100, Exclusive, 9, 9);
}

#[test]
fn an_owner_that_waits_twice_is_no_deadlock_with_itself() {
    let mut l = Locks::new();
    l.lock(100, Exclusive, 0, 9);
    let a = l.queue(200, Exclusive, 0, 4);
    let b = l.queue(200, Exclusive, 0, 9);
    l.unlock(100, 0, 9);
    assert_eq!(l.granted(), [a, b]);
    assert_eq!(l.held(200), [(0, 9, Exclusive)]);
}

#[test]
fn flock_does_not_look_for_deadlocks() {
    let mut l = Locks::new();
    for (inode, number) in [(1, 100), (2, 200)] {
        l.ask(&wish(flock(inode), number, Exclusive, 0, u64::MAX), false)
            .unwrap();
    }
    l.wait(&wish(flock(2), 100, Exclusive, 0, u64::MAX));
    l.wait(&wish(flock(1), 200, Exclusive, 0, u64::MAX));
}

#[test]
fn the_number_of_locks_is_limited_per_client_and_file() {
    let mut l = Locks::with(Limits {
        locks_per_client: 3,
        locks_per_file: 4,
        ..Limits::default()
    });
    let full = |l: &mut Locks, number, start| {
        let error = l
            .ask(&wish(posix(FILE), number, Exclusive, start, start), true)
            .unwrap_err();
        assert_eq!(error.code, ErrorCode::TooManyLocks, "{error}");
    };
    l.lock(100, Exclusive, 0, 9);
    l.lock(101, Exclusive, 20, 29);
    l.lock(100, Exclusive, 40, 49);
    full(&mut l, 100, 60);
    // A hole makes one more; neither end does.
    let hole = Span { start: 5, end: 5 };
    let error = l.table.unlock(posix(FILE), owner(100), hole).unwrap_err();
    assert_eq!(error.code, ErrorCode::TooManyLocks);
    l.unlock(100, 9, 9);
    l.lock(100, Exclusive, 9, 9);
    l.lock(200, Exclusive, 60, 69);
    full(&mut l, 200, 80);
    assert_eq!(l.held(100).len(), 2);
}

#[test]
fn the_number_of_waiting_requests_is_limited() {
    let mut l = Locks::with(Limits {
        waiting_per_client: 2,
        waiting_per_file: 3,
        ..Limits::default()
    });
    l.lock(100, Exclusive, 0, 9);
    l.queue(200, Exclusive, 0, 9);
    l.queue(201, Exclusive, 0, 9);
    for number in [202, 300, 301] {
        let answer = l.ask(&wish(posix(FILE), number, Shared, 0, 9), true);
        let code = answer.map_err(|e| e.code);
        let expected = if number == 300 {
            Ok(Answer::Waiting)
        } else {
            Err(ErrorCode::TooManyLocks)
        };
        assert_eq!(code, expected, "{number}");
    }
}

#[test]
fn what_was_granted_is_taken_back_down_to_what_is_to_stay() {
    let mut l = Locks::new();
    l.lock(100, Shared, 0, 9);
    let keep = l.table.held(posix(FILE), owner(100));
    l.lock(100, Exclusive, 5, 14);
    let waiting = l.queue(200, Shared, 0, 20);
    let span = Span { start: 5, end: 14 };
    l.table
        .weaken(posix(FILE), owner(100), span, &keep)
        .unwrap();
    assert_eq!(l.held(100), [(0, 9, Shared)]);
    assert_eq!(l.granted(), [waiting]);
}

#[test]
fn a_reclaim_is_all_or_nothing() {
    let mut l = Locks::new();
    let ranges = |list: &[(u64, u64)]| -> Ranges {
        let range = |&(start, end): &(u64, u64)| wish(posix(FILE), 0, Exclusive, start, end).range;
        list.iter().map(range).collect()
    };
    let first = ranges(&[(0, 9), (20, 29)]);
    assert!(l.table.restore(posix(FILE), owner(100), &first));
    assert!(l.table.restore(posix(FILE), owner(100), &first), "again");
    assert_eq!(l.held(100).len(), 2);
    let second = ranges(&[(40, 49), (25, 25)]);
    assert!(!l.table.restore(posix(FILE), owner(200), &second));
    assert!(l.held(200).is_empty());
}

#[test]
fn a_list_has_locks_first_and_then_the_queue() {
    let mut l = Locks::new();
    l.lock(200, Exclusive, 0, 9);
    l.queue(300, Exclusive, 0, 9);
    l.queue(100, Shared, 0, 9);
    let list = l.table.list(posix(FILE)).into_iter();
    let list: Vec<_> = list.map(|e| (e.wish.owner.number, e.waiting)).collect();
    assert_eq!(list, [(200, false), (300, true), (100, true)]);
    let first = l.table.first_from(flock(0));
    assert_eq!(first, Some(posix(FILE)));
    assert_eq!(l.table.first_from(flock(FILE + 1)), None);
}
