//! A client that goes on in another process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use emberfs_proto::ids::{ClientId, InodeId};
use emberfs_proto::wire::Opcode;
use emberfs_proto::{ErrorCode, pb};
use parking_lot::Mutex;

use crate::testing::*;
use crate::{
    Client, ClientConfig, CreateFlags, File, Identity, LockKind, LockRequest, LockSpace, OpenFlags,
    RequestLog, Result,
};

/// Numbers of the first process are above this.
const FIRST: u64 = 1 << 40;

const WRITE: OpenFlags = OpenFlags {
    execute: false,
    read: true,
    write: true,
    truncate: false,
    append: false,
    direct: false,
    sync: false,
};

async fn process(cluster: &Cluster, instance: u32) -> Client {
    let identity = Identity {
        client: ClientId(9),
        instance,
    };
    let config = ClientConfig {
        identity: Some(identity),
        ..cluster.config()
    };
    Client::connect(config).await.unwrap()
}

/// What is written down about one request.
#[derive(Default)]
struct Log {
    earlier: Vec<(&'static str, u64)>,
    drawn: Mutex<Vec<(&'static str, u64)>>,
}

impl RequestLog for Log {
    fn earlier(&self, verb: &'static str) -> Option<u64> {
        let found = self.earlier.iter().find(|(known, _)| *known == verb);
        found.map(|(_, number)| *number)
    }

    fn drawn(&self, verb: &'static str, number: u64) {
        self.drawn.lock().push((verb, number));
    }
}

async fn create_new(client: &Client, name: &str) -> Result<File> {
    let flags = CreateFlags {
        exclusive: true,
        write: true,
        ..CreateFlags::default()
    };
    let root = client.root();
    client
        .create(&me(), root, name.as_bytes(), 0o644, flags)
        .await
        .map(|(_, file)| file)
}

/// The numbers that a verb came with.
fn numbers(cluster: &Cluster, verb: &str) -> Vec<u64> {
    let state = cluster.meta.state.lock();
    let changes = state.changes.iter().filter(|(v, ..)| *v == verb);
    changes.map(|(_, number, _)| *number).collect()
}

async fn acknowledges(cluster: &Cluster, wanted: impl Fn(u64) -> bool) {
    let acknowledged = || wanted(cluster.meta.state.lock().acknowledged);
    eventually("a keep-alive acknowledges that", acknowledged).await;
}

#[tokio::test]
async fn a_change_is_repeated_under_the_number_of_the_earlier_process() {
    let cluster = Cluster::start().await;
    let first = process(&cluster, 1).await;
    let log = Arc::new(Log::default());
    let scope = first.request_scope(log.clone());
    let file = scope.run(create_new(&first, "f")).await.unwrap();
    let drawn = log.drawn.lock().clone();
    assert_eq!(drawn, [("create", FIRST + 1)]);
    // A number that a caller may have to be answered for again is not acknowledged, whatever else is.
    create_new(&first, "g").await.unwrap();
    acknowledges(&cluster, |upto| upto == FIRST).await;
    // The process dies: nothing of it is closed.
    let inode = file.inode();
    std::mem::forget((file, scope));

    let second = process(&cluster, 2).await;
    acknowledges(&cluster, |upto| upto == 0).await;
    second.hold_numbers(&[FIRST + 1, FIRST + 3]);
    acknowledges(&cluster, |upto| upto == FIRST).await;
    let log = Arc::new(Log {
        earlier: drawn,
        ..Log::default()
    });
    let scope = second.request_scope(log.clone());
    let work = async {
        let again = create_new(&second, "f").await.unwrap();
        (again, create_new(&second, "h").await.unwrap())
    };
    let (again, other) = scope.run(work).await;
    assert_eq!(again.inode(), inode, "not made again");
    let [_, _, repeated, fresh] = numbers(&cluster, "create")[..] else {
        panic!("four creates");
    };
    assert_eq!(repeated, FIRST + 1);
    assert!(
        fresh > 2 * FIRST,
        "a verb has one number of the earlier process"
    );
    assert_eq!(*log.drawn.lock(), [("create", fresh)]);

    acknowledges(&cluster, |upto| upto == FIRST).await;
    drop(scope);
    acknowledges(&cluster, |upto| upto == FIRST + 2).await;
    second.release_numbers();
    acknowledges(&cluster, |upto| upto >= fresh).await;
    drop((again, other));
}

#[tokio::test]
async fn a_scope_keeps_its_number_when_all_others_are_released() {
    let cluster = Cluster::start().await;
    let client = process(&cluster, 2).await;
    let number = FIRST + 7;
    client.hold_numbers(&[FIRST + 1, number]);
    let log = Log {
        earlier: vec![("create", number)],
        ..Log::default()
    };
    let scope = client.request_scope(Arc::new(log));
    client.release_numbers();
    acknowledges(&cluster, |upto| upto == number - 1).await;
    scope.run(create_new(&client, "f")).await.unwrap();
    assert_eq!(numbers(&cluster, "create"), [number]);
    drop(scope);
    acknowledges(&cluster, |upto| upto >= 2 * FIRST).await;
}

#[tokio::test]
async fn an_earlier_process_is_shut_out_of_every_storage_server() {
    let cluster = Cluster::start().await;
    let first = process(&cluster, 1).await;
    let file = create(&first, "f").await;
    let second = process(&cluster, 2).await;
    second.shut_out_earlier().await.unwrap();
    // Whether the metadata server's word has reached the first one or not.
    file.write(0, pattern(1000, 1)).await.unwrap();
    let error = file.sync().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Superseded, "{error}");
    assert!(cluster.storage.writes().is_empty());
    cluster.storage.kill(2);
    cluster.next_map_without(2);
    let third = process(&cluster, 3).await;
    third.shut_out_earlier().await.unwrap();
}

#[tokio::test]
async fn scopes_concern_the_changes_of_their_own_client() {
    let cluster = Cluster::start().await;
    let (one, two) = (process(&cluster, 1).await, cluster.client().await);
    let log = Arc::new(Log::default());
    let scope = one.request_scope(log.clone());
    scope.run(create_new(&two, "a")).await.unwrap();
    create_new(&one, "b").await.unwrap();
    let file = scope.run(create_new(&one, "c")).await.unwrap();
    let work = async {
        file.write(0, pattern(10, 1)).await.unwrap();
        file.sync().await.unwrap();
    };
    scope.run(work).await;
    let drawn = log.drawn.lock().clone();
    assert_eq!(drawn, [("create", FIRST + 2)], "reports need no log");
}

#[tokio::test]
async fn a_file_that_was_open_is_opened_again_with_the_length_of_its_chunks() {
    let cluster = Cluster::start().await;
    let client = process(&cluster, 2).await;
    let inode = cluster.meta.plant("f", pb::FileKind::File, 100, "");
    cluster.meta.state.lock().stored.insert(inode, 5000);
    let resumed = client.resume_file(InodeId(inode), WRITE, &me()).await;
    let (attr, file) = resumed.unwrap();
    assert_eq!((attr.size, attr.sparse, file.size()), (5000, true, 5000));
    assert_eq!(
        cluster.meta.state.lock().opens,
        [(inode, 0)],
        "as root, whatever its mode says now"
    );
    file.write(5000, pattern(10, 1)).await.unwrap();
    assert_eq!(file.sync().await.unwrap().size, 5010);
    cluster.meta.state.lock().stored.insert(inode, 9000);
    let read = OpenFlags {
        read: true,
        ..OpenFlags::default()
    };
    for (flags, all_told) in [(read, false), (WRITE, true)] {
        let opened = if all_told {
            client.reopen_file(InodeId(inode), flags, &me()).await
        } else {
            client.resume_file(InodeId(inode), flags, &me()).await
        };
        assert_eq!(opened.unwrap().0.size, 5010, "nothing to settle");
    }
}

#[tokio::test]
async fn a_file_whose_length_cannot_be_settled_is_not_opened() {
    let cluster = Cluster::start().await;
    let client = process(&cluster, 2).await;
    let inode = cluster.meta.plant("f", pb::FileKind::File, 100, "");
    let refused = ErrorCode::InvalidArgument;
    cluster.meta.fault("sync", refused, false, 1);
    let resumed = client.resume_file(InodeId(inode), WRITE, &me()).await;
    assert_eq!(resumed.err().unwrap().code, refused);
    let ended = || cluster.meta.state.lock().sessions.is_empty();
    eventually("the session ends", ended).await;
}

#[tokio::test]
async fn a_renewed_file_has_another_session_and_the_old_one_ends() {
    let cluster = Cluster::start().await;
    let client = process(&cluster, 1).await;
    let file = create_new(&client, "f").await.unwrap();
    let old = file.session();
    file.renew().await.unwrap();
    assert_ne!(file.session(), old);
    let ended = || {
        let sessions = &cluster.meta.state.lock().sessions;
        !sessions.contains_key(&old) && sessions.contains_key(&file.session())
    };
    eventually("the old one ends, the new one does not", ended).await;
    file.write(0, pattern(10, 1)).await.unwrap();
    assert_eq!(file.sync().await.unwrap().size, 10);
}

#[tokio::test]
async fn a_process_that_hands_over_has_told_all_and_ends_nothing() {
    let cluster = Cluster::start().await;
    let first = process(&cluster, 1).await;
    let file = create(&first, "f").await;
    let inode = file.inode();
    file.write(0, pattern(1000, 1)).await.unwrap();
    let lock = LockRequest {
        space: LockSpace::Flock,
        owner: 1,
        pid: 0,
        kind: LockKind::Exclusive,
        start: 0,
        end: 0,
    };
    first.set_lock(inode, lock, false).await.unwrap();
    first.hand_over().await.unwrap();
    assert_eq!(cluster.meta.attr(inode.0).size, 1000);
    assert!(file.write(0, pattern(1, 1)).await.is_err());
    drop((file, first));
    tokio::time::sleep(Duration::from_millis(50)).await;
    {
        let state = cluster.meta.state.lock();
        assert_eq!(state.sessions.len(), 1);
        assert_eq!(state.locks.of(1).len(), 1);
    }
    let second = process(&cluster, 2).await;
    second.resume_locks().await.unwrap();
    let reopened = second.reopen_file(inode, WRITE, &me()).await.unwrap().1;
    assert!(reopened.read(0, 2000).await.unwrap() == pattern(1000, 1));
    second
        .release_locks(inode, 1, LockSpace::Flock)
        .await
        .unwrap();
    assert!(cluster.meta.state.lock().locks.of(1).is_empty());
}

#[tokio::test]
async fn handing_over_fails_if_something_could_not_be_stored() {
    let cluster = Cluster::start().await;
    let client = process(&cluster, 1).await;
    let file = create(&client, "f").await;
    let full = Fault::Error(ErrorCode::NoSpace);
    cluster.storage.fault(1, Opcode::Write, full, 1);
    file.write(0, pattern(1000, 1)).await.unwrap();
    let error = client.hand_over().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NoSpace);
}

#[tokio::test]
async fn a_superseded_process_stops() {
    let cluster = Cluster::start().await;
    let first = process(&cluster, 1).await;
    let second = process(&cluster, 2).await;
    eventually("the first one stops", || first.core.stop.is_cancelled()).await;
    assert!(!second.core.stop.is_cancelled());
    let wrong = ClientConfig {
        identity: first.config().identity,
        ..cluster.config()
    };
    let error = Client::connect(wrong).await.err().unwrap();
    assert_eq!(error.code, ErrorCode::Superseded);
}

/// Bytes of a caller's memory, and what counts those that are given back.
fn lent(len: usize, back: &Arc<AtomicUsize>) -> Bytes {
    struct Lent(Bytes, Arc<AtomicUsize>);
    impl AsRef<[u8]> for Lent {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Lent {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }
    Bytes::from_owner(Lent(pattern(len, 1), back.clone()))
}

#[tokio::test]
async fn lent_bytes_are_given_back_when_the_chain_has_them_and_not_before() {
    let cluster = Cluster::with_chunks(1 << 20).await;
    let config = ClientConfig {
        keep_pieces: true,
        ..cluster.config()
    };
    let client = Client::connect(config).await.unwrap();
    let file = create(&client, "f").await;
    let back = Arc::new(AtomicUsize::new(0));
    // Small ones, a large one, and one on the border of two chunks.
    let mut at = 0;
    for len in [100, 4000, 200_000, 900_000] {
        file.write(at, lent(len, &back)).await.unwrap();
        at += len as u64;
    }
    let slow = Fault::Slow(Duration::from_millis(200));
    cluster.storage.fault(1, Opcode::Write, slow, 8);
    let syncing = tokio::spawn({
        let file = file.clone();
        async move { file.sync().await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(back.load(Ordering::Relaxed), 0, "on their way");
    syncing.await.unwrap().unwrap();
    assert_eq!(back.load(Ordering::Relaxed), 4);
}
