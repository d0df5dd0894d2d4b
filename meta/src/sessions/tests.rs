use super::*;

const LEASE: Duration = Duration::from_secs(30);
const A: ClientId = ClientId(1);
const FILE: InodeId = InodeId(7);

fn sessions() -> Arc<Sessions> {
    Arc::new(Sessions::new(LEASE))
}

fn open(sessions: &Arc<Sessions>, client: ClientId, session: u64, write: bool) {
    let held = sessions.hold(FILE, SessionId(session), client, write, session);
    held.unwrap().keep();
}

#[test]
fn a_session_whose_open_fails_is_forgotten() {
    let all = sessions();
    drop(all.hold(FILE, SessionId(1), A, true, 1).unwrap());
    assert!(!all.is_open(FILE));
    assert_eq!(all.counts(), (0, 0));
}

#[test]
fn the_last_close_says_so() {
    let all = sessions();
    open(&all, A, 1, true);
    open(&all, A, 2, false);
    assert_eq!(all.counts(), (2, 1));
    assert!(!all.remove(FILE, SessionId(1)));
    assert!(all.remove(FILE, SessionId(2)));
    assert!(!all.remove(FILE, SessionId(2)));
    assert!(!all.is_open(FILE));
}

#[test]
fn a_silent_client_leaves_orphans_that_count_as_open() {
    let all = sessions();
    let start = Instant::now();
    all.attach(A, "host:1", (5, 0), start);
    open(&all, A, 1, true);
    assert!(all.expire(start + LEASE).is_empty(), "the lease is exact");
    let late = start + LEASE * 2;
    let orphan = Orphan {
        inode: FILE,
        session: SessionId(1),
        write: true,
    };
    assert_eq!(all.expire(late), vec![orphan]);
    assert_eq!(all.check(A, FILE, SessionId(1)), None);
    assert!(all.is_open(FILE));
    assert!(all.gone().is_empty(), "an orphan is left");
    assert!(all.remove(FILE, SessionId(1)));
    assert_eq!(all.gone(), vec![(A, 5)]);
    all.forget(A);
    assert!(all.gone().is_empty());
    assert!(all.keep_alive(A, 0, late).lost);
}

#[test]
fn a_client_known_from_before_a_restart_must_attach_and_its_old_sessions_fade() {
    let all = sessions();
    all.restore_client(A, "host:1".to_owned(), 3, (5, 0));
    all.restore_session(FILE, SessionId(1), A);
    all.restore_session(FILE, SessionId(2), A);
    let now = Instant::now();
    assert!(all.keep_alive(A, 0, now).lost);
    all.attach(A, "host:1", (6, 0), now);
    assert!(!all.keep_alive(A, 0, now).lost);
    assert_eq!(all.check(A, FILE, SessionId(1)), Some(true), "used: stays");
    let later = now + LEASE;
    all.keep_alive(A, 0, later);
    let orphans: Vec<_> = all.expire(later).iter().map(|o| o.session).collect();
    assert_eq!(orphans, vec![SessionId(2)]);
}

#[test]
fn a_late_copy_of_an_acknowledged_request_is_refused() {
    let all = sessions();
    all.touch(A, 5, 4).unwrap();
    all.touch(A, 5, 4).unwrap();
    let error = all.touch(A, 4, 0).unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert_eq!(all.keep_alive(A, 5, Instant::now()).prune, Some(5));
    all.pruned(A, 5);
    assert_eq!(all.keep_alive(A, 5, Instant::now()).prune, None);
}

#[test]
fn a_retried_read_open_finds_its_session() {
    let all = sessions();
    open(&all, A, 9, false);
    assert_eq!(all.opened_by(A, FILE, 9), Some(SessionId(9)));
    assert_eq!(all.opened_by(A, FILE, 8), None);
    assert_eq!(all.opened_by(ClientId(2), FILE, 9), None);
}
