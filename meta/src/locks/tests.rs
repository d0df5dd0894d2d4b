use std::sync::Arc;

use emberfs_proto::locks::Hold;

use super::*;

const LEASE: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(10);
const A: ClientId = ClientId(1);
const B: ClientId = ClientId(2);

fn place() -> Place {
    Place {
        inode: InodeId(7),
        space: LockSpace::Posix,
    }
}

fn exclusive(client: ClientId) -> Wish {
    Wish {
        place: place(),
        owner: Owner { client, number: 1 },
        range: Range {
            span: Span::WHOLE,
            hold: Hold::Exclusive,
            pid: 0,
        },
    }
}

fn claim(client: ClientId, ticket: u64) -> Claim {
    // Tenures of the tests are the clients' numbers.
    let tenure = client.0 as u64;
    Claim {
        client,
        tenure,
        ticket,
    }
}

/// Two clients that may lock.
fn locks() -> Arc<Locks> {
    let locks = Locks::new(LEASE);
    for client in [A, B] {
        locks.begin(client, client.0 as u64);
    }
    Arc::new(locks)
}

async fn ask(
    locks: &Locks,
    client: ClientId,
    ticket: u64,
    wait: Option<Duration>,
) -> Result<LockState> {
    let wish = exclusive(client);
    locks.request(claim(client, ticket), &wish, wait).await
}

fn unlock(locks: &Locks, client: ClientId, ticket: u64) -> LockState {
    let Wish { place, owner, .. } = exclusive(client);
    locks
        .unlock(claim(client, ticket), place, owner, Span::WHOLE)
        .unwrap()
}

/// A request of `client` that waits in a task.
async fn waiting(
    locks: &Arc<Locks>,
    client: ClientId,
    ticket: u64,
) -> tokio::task::JoinHandle<Result<LockState>> {
    let theirs = locks.clone();
    let task = tokio::spawn(async move { ask(&theirs, client, ticket, Some(LONG)).await });
    while !locks.state.lock().waits.contains_key(&(client, ticket)) {
        tokio::task::yield_now().await;
    }
    task
}

#[tokio::test]
async fn a_held_request_is_answered_when_the_lock_is_free() {
    let locks = locks();
    assert_eq!(ask(&locks, A, 1, None).await, Ok(LockState::Granted));
    assert_eq!(ask(&locks, B, 1, None).await, Ok(LockState::Blocked));
    let waiter = waiting(&locks, B, 2).await;
    assert_eq!(unlock(&locks, A, 2), LockState::Granted);
    assert_eq!(waiter.await.unwrap(), Ok(LockState::Granted));
    assert_eq!(ask(&locks, A, 3, None).await, Ok(LockState::Blocked));
    assert!(locks.state.lock().waits.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_place_in_the_queue_outlives_the_request_but_not_the_lease() {
    let locks = locks();
    ask(&locks, A, 1, None).await.unwrap();
    let short = Some(Duration::from_millis(10));
    assert_eq!(ask(&locks, B, 1, short).await, Ok(LockState::Waiting));
    let at_once = Some(Duration::ZERO);
    assert_eq!(ask(&locks, B, 1, at_once).await, Ok(LockState::Waiting));
    locks.forget_unattended(Instant::now());
    assert_eq!(locks.state.lock().waits.len(), 1);
    // It is granted although nobody listens, and told when it is asked for again.
    unlock(&locks, A, 2);
    assert_eq!(ask(&locks, A, 3, None).await, Ok(LockState::Blocked));
    assert_eq!(ask(&locks, B, 1, short).await, Ok(LockState::Granted));
    // One that nobody asks for any more goes.
    assert_eq!(ask(&locks, A, 4, short).await, Ok(LockState::Waiting));
    locks.forget_unattended(Instant::now() + LEASE * 2);
    assert!(locks.state.lock().waits.is_empty());
    unlock(&locks, B, 2);
    assert_eq!(ask(&locks, B, 3, None).await, Ok(LockState::Granted));
}

#[tokio::test]
async fn a_held_request_counts_as_attended() {
    let locks = locks();
    ask(&locks, A, 1, None).await.unwrap();
    let waiter = waiting(&locks, B, 1).await;
    locks.forget_unattended(Instant::now() + LEASE * 2);
    unlock(&locks, A, 2);
    assert_eq!(waiter.await.unwrap(), Ok(LockState::Granted));
}

#[tokio::test]
async fn a_repeated_request_replaces_the_one_before() {
    let locks = locks();
    ask(&locks, A, 1, None).await.unwrap();
    let first = waiting(&locks, B, 1).await;
    let theirs = locks.clone();
    let second = tokio::spawn(async move { ask(&theirs, B, 1, Some(LONG)).await });
    assert_eq!(first.await.unwrap(), Ok(LockState::Waiting));
    unlock(&locks, A, 2);
    assert_eq!(second.await.unwrap(), Ok(LockState::Granted));
}

#[tokio::test]
async fn late_copies_do_nothing() {
    let locks = locks();
    assert_eq!(ask(&locks, A, 5, None).await, Ok(LockState::Granted));
    assert_eq!(ask(&locks, A, 5, None).await, Ok(LockState::Granted));
    assert_eq!(unlock(&locks, A, 6), LockState::Granted);
    let late = ask(&locks, A, 5, Some(LONG)).await;
    assert_eq!(late, Ok(LockState::Superseded));
    assert_eq!(ask(&locks, B, 1, None).await, Ok(LockState::Granted));
    assert_eq!(unlock(&locks, A, 5), LockState::Superseded);
}

#[tokio::test]
async fn a_request_taken_back_is_gone_whether_it_waits_or_was_granted() {
    let locks = locks();
    let take_back = |ticket, waiter| {
        let Wish { place, owner, .. } = exclusive(B);
        let keep = Ranges::default();
        let done = locks.take_back(claim(B, ticket), waiter, (place, owner), Span::WHOLE, &keep);
        assert_eq!(done, Ok(LockState::Granted));
    };
    ask(&locks, A, 1, None).await.unwrap();
    let waiter = waiting(&locks, B, 1).await;
    take_back(2, 1);
    assert_eq!(waiter.await.unwrap(), Ok(LockState::Waiting));
    unlock(&locks, A, 2);
    assert_eq!(ask(&locks, A, 3, None).await, Ok(LockState::Granted));
    let waiter = waiting(&locks, B, 4).await;
    unlock(&locks, A, 5);
    assert_eq!(waiter.await.unwrap(), Ok(LockState::Granted));
    take_back(6, 4);
    assert_eq!(ask(&locks, A, 7, None).await, Ok(LockState::Granted));
    // Taken back before it came.
    take_back(9, 8);
    assert_eq!(
        ask(&locks, B, 8, Some(LONG)).await,
        Ok(LockState::Superseded)
    );
}

#[tokio::test]
async fn a_stop_answers_those_who_wait() {
    let locks = locks();
    ask(&locks, A, 1, None).await.unwrap();
    let waiter = waiting(&locks, B, 1).await;
    locks.stop();
    let error = waiter.await.unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
}

#[tokio::test]
async fn the_locks_of_a_client_that_is_gone_go_to_others() {
    let locks = locks();
    ask(&locks, A, 1, None).await.unwrap();
    let waiter = waiting(&locks, B, 1).await;
    let now = Instant::now();
    assert_eq!(locks.overdue(now, |client| client != A), [A]);
    locks.release_client(A, now);
    assert_eq!(waiter.await.unwrap(), Ok(LockState::Granted));
    let error = ask(&locks, A, 2, None).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NoTenure);
    assert_eq!(
        locks.check_reclaim(A, 1).unwrap_err().code,
        ErrorCode::LockLost
    );
}

fn reclaim(locks: &Locks, client: ClientId, ticket: u64) -> LockState {
    let wish = exclusive(client);
    let ranges: Ranges = [wish.range].into_iter().collect();
    locks.reclaim(claim(client, ticket), wish.place, wish.owner, &ranges)
}

#[tokio::test]
async fn after_a_start_locks_are_reclaimed_before_new_ones_are_granted() {
    let locks = Locks::new(LEASE);
    locks.restore(A, 1);
    locks.restore(B, 2);
    locks.begin(B, 2);
    let error = ask(&locks, B, 1, None).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(error.retry_after_ms > 0);
    let test = locks.test(&exclusive(B)).unwrap_err();
    assert_eq!(
        test.code,
        ErrorCode::Unavailable,
        "who holds what is not known"
    );
    locks.reclaimed(B);
    assert!(
        ask(&locks, B, 2, None).await.is_err(),
        "the other is awaited"
    );
    locks.begin(A, 1);
    assert_eq!(reclaim(&locks, A, 1), LockState::Granted);
    locks.reclaimed(A);
    assert_eq!(ask(&locks, B, 3, None).await, Ok(LockState::Blocked));
    // A client that has not been away may say it again; nothing more.
    assert_eq!(reclaim(&locks, A, 2), LockState::Granted);
    assert_eq!(reclaim(&locks, B, 4), LockState::Lost);
    assert_eq!(unlock(&locks, A, 3), LockState::Granted);
    assert_eq!(reclaim(&locks, A, 2), LockState::Superseded);
}

#[tokio::test]
async fn a_list_pages_by_file() {
    let locks = locks();
    for inode in [3, 5, 9] {
        for space in [LockSpace::Flock, LockSpace::Posix] {
            let place = Place {
                inode: InodeId(inode),
                space,
            };
            let wish = Wish {
                place,
                ..exclusive(A)
            };
            let done = locks.request(claim(A, inode), &wish, None).await;
            assert_eq!(done, Ok(LockState::Granted));
        }
    }
    let inodes = |(entries, end): (Vec<Entry>, bool)| {
        let inodes: Vec<_> = entries.iter().map(|e| e.wish.place.inode.0).collect();
        (inodes, end)
    };
    assert_eq!(inodes(locks.list(InodeId(0), 3)), (vec![3, 3, 5, 5], false));
    assert_eq!(inodes(locks.list(InodeId(5), 3)), (vec![9, 9], true));
    assert_eq!(inodes(locks.list(InodeId(9), 3)), (vec![], true));
}

#[tokio::test]
async fn what_a_client_holds_is_told_file_by_file() {
    let locks = locks();
    let mut ticket = 0;
    for inode in [3, 1, 2] {
        for number in [2, 1] {
            for space in [LockSpace::Posix, LockSpace::Append] {
                ticket += 1;
                let wish = Wish {
                    place: Place {
                        inode: InodeId(inode),
                        space,
                    },
                    owner: Owner { client: A, number },
                    range: Range {
                        span: Span::WHOLE,
                        hold: Hold::Shared,
                        pid: 0,
                    },
                };
                locks.request(claim(A, ticket), &wish, None).await.unwrap();
            }
        }
    }
    ask(&locks, B, 1, None).await.unwrap();
    let (mut after, mut told) = (InodeId(0), Vec::new());
    loop {
        let page = locks.resume(A, ticket + 1, after, 3).unwrap();
        assert_eq!(
            (page.tenure, page.held.len()),
            (1, 4),
            "a file is not split"
        );
        after = page.held[3].0.inode;
        told.extend(
            page.held
                .iter()
                .map(|(place, owner, _)| (place.inode.0, owner.number)),
        );
        if !page.more {
            break;
        }
    }
    assert_eq!(told.len(), 12);
    assert!(told.is_sorted_by_key(|(inode, _)| *inode));
    let late = locks.request(claim(A, ticket), &exclusive(A), None).await;
    assert_eq!(
        late,
        Ok(LockState::Superseded),
        "of an owner that was not seen before, too"
    );
}
