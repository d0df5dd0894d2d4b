use super::fixture::*;
use emberfs_proto::ErrorCode::*;
use emberfs_proto::ids::InodeId;
use emberfs_proto::pb;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_mins(1);

#[tokio::test]
async fn an_unlinked_file_keeps_its_data_until_the_last_close() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    f.chunks.write(file, 100);
    let reader = f.open(file, false).await.unwrap().session;
    let writer = f.open(file, true).await.unwrap().session;
    assert_eq!(f.unlink(ROOT, "a").await.unwrap().nlink, 0);
    assert_eq!(f.collect().await.removed, 0);
    assert_eq!(f.attr(file).await.unwrap().nlink, 0);
    assert_eq!(f.sync(file, writer, 200, 0).await.unwrap().size, 200);
    f.close(file, writer).await;
    assert_eq!(f.collect().await.removed, 0, "the reader is still there");
    f.close(file, reader).await;
    let pass = f.collect().await;
    assert_eq!((pass.removed, pass.failed), (1, 0));
    assert_eq!(code(f.attr(file).await), Stale);
    assert_eq!(code(f.open(file, false).await), Stale);
    assert!(f.chunks.removed.lock().contains(&InodeId(file)));
    let summary = f.summary().await;
    assert_eq!(
        (summary.inodes, summary.garbage, summary.sessions),
        (1, 0, 0)
    );
}

#[tokio::test]
async fn garbage_survives_unavailable_chains_and_restarts() {
    let f = Fixture::new();
    for name in ["a", "b", "c"] {
        f.file(ROOT, name).await;
        f.unlink(ROOT, name).await.unwrap();
    }
    *f.chunks.down.lock() = true;
    let pass = f.collect().await;
    assert_eq!((pass.removed, pass.failed), (0, 3));
    assert_eq!(
        f.summary().await.garbage,
        3,
        "records stay until every chain has confirmed"
    );
    let f = f.restart();
    *f.chunks.down.lock() = false;
    assert_eq!(f.collect().await.removed, 3);
    assert_eq!(f.collect().await.removed, 0);
    assert_eq!(f.chunks.removed.lock().len(), 3);
}

#[tokio::test]
async fn passes_that_begin_late_miss_nothing() {
    let f = Fixture::new();
    let mut window = crate::gc::Window::default();
    let held = f.create(f.root(), ROOT, "held", 0o644).await.unwrap();
    let file = held.attr.unwrap().inode;
    f.unlink(ROOT, "held").await.unwrap();
    for i in 0..5 {
        let name = format!("f{i}");
        f.file(ROOT, &name).await;
        f.unlink(ROOT, &name).await.unwrap();
        assert_eq!(f.collect_in(&mut window).await.removed, 1);
    }
    f.close(file, held.session).await;
    assert_eq!(f.collect_in(&mut window).await.removed, 1);
    assert_eq!(f.summary().await.garbage, 0);
}

#[tokio::test]
async fn an_unknown_outcome_of_a_removal_is_counted_once() {
    let engine = Arc::new(crate::kv::MemoryEngine::new());
    let f = Fixture::over(engine.clone(), Arc::default());
    for name in ["a", "b", "c", "d"] {
        f.file(ROOT, name).await;
        f.unlink(ROOT, name).await.unwrap();
    }
    engine.inject_randomly(7, 2);
    let pass = f.collect().await;
    engine.inject_randomly(7, 0);
    assert_eq!((pass.removed, pass.failed), (4, 0));
    let summary = f.summary().await;
    assert_eq!((summary.inodes, summary.garbage), (1, 0));
}

#[tokio::test]
async fn a_condemned_file_is_not_opened_any_more() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    f.unlink(ROOT, "a").await.unwrap();
    let held = f.open(file, false).await.unwrap().session;
    f.close(file, held).await;
    *f.chunks.down.lock() = true;
    assert_eq!(f.collect().await.failed, 1);
    assert_eq!(code(f.open(file, false).await), Stale);
    assert_eq!(code(f.open(file, true).await), Stale);
    let f = f.restart();
    assert_eq!(
        code(f.open(file, false).await),
        Stale,
        "also after a restart"
    );
    assert_eq!(f.summary().await.sessions, 0);
}

#[tokio::test]
async fn a_dead_writers_length_is_settled_from_the_chunks() {
    let f = Fixture::new();
    let opened = f.create(f.root(), ROOT, "a", 0o644).await.unwrap();
    let file = opened.attr.unwrap().inode;
    f.sync(file, opened.session, 100, 0).await.unwrap();
    f.chunks.write(file, 777);
    f.expire_after(Duration::from_secs(20)).await;
    assert_eq!(
        f.attr(file).await.unwrap().size,
        100,
        "the lease is not over"
    );
    *f.chunks.down.lock() = true;
    f.expire_after(LONG).await;
    assert_eq!(
        f.summary().await.write_sessions,
        1,
        "stays until it can be settled"
    );
    *f.chunks.down.lock() = false;
    f.expire_after(LONG).await;
    assert_eq!(f.attr(file).await.unwrap().size, 777);
    let summary = f.summary().await;
    assert_eq!((summary.sessions, summary.write_sessions), (0, 0));
    // The record is gone as well.
    assert_eq!(f.restart().summary().await.write_sessions, 0);
}

#[tokio::test]
async fn write_sessions_outlive_a_restart_and_settle_if_their_client_does_not_come_back() {
    let f = Fixture::new();
    let opened = f.create(f.root(), ROOT, "a", 0o644).await.unwrap();
    let file = opened.attr.unwrap().inode;
    f.chunks.write(file, 55);
    let f = f.restart();
    assert_eq!(f.summary().await.write_sessions, 1);
    assert_eq!(f.sync(file, opened.session, 50, 0).await.unwrap().size, 50);
    let f = f.restart();
    f.expire_after(LONG).await;
    assert_eq!(f.attr(file).await.unwrap().size, 55);
}

#[tokio::test]
async fn a_client_learns_that_its_sessions_are_lost_and_attaches_again() {
    let f = Fixture::new();
    let attach = |f: &Fixture| {
        let request = pb::AttachRequest {
            caller: f.root(),
            protocol_version: 1,
            host: "h:1".to_owned(),
            ..Default::default()
        };
        let ns = f.ns.clone();
        async move { ns.attach(request).await.unwrap() }
    };
    let beat = |f: &Fixture| {
        let request = pb::KeepAliveRequest { caller: f.root() };
        let ns = f.ns.clone();
        async move { ns.keep_alive(request).await.unwrap().sessions_lost }
    };
    attach(&f).await;
    assert!(!beat(&f).await);
    let file = f.file(ROOT, "a").await.inode;
    let opened = f.open(file, true).await.unwrap();
    f.expire_after(LONG).await;
    assert_eq!(f.summary().await.clients, 0);
    assert!(beat(&f).await);
    assert!(beat(&f).await, "until it attaches");
    attach(&f).await;
    assert!(!beat(&f).await);
    assert_eq!(f.summary().await.client_list[0].host, "h:1");
    // Its session is gone. Root may write the file, so its report counts nevertheless; others' do not.
    assert_eq!(f.sync(file, opened.session, 9, 0).await.unwrap().size, 9);
    let request = pb::SyncRequest {
        caller: f.user(5),
        inode: file,
        session: opened.session,
        end: Some(1000),
        ..Default::default()
    };
    assert_eq!(code(f.ns.sync(request).await), NoSession);
    let f = f.restart();
    assert!(beat(&f).await, "a restart forgets read sessions");
}

#[tokio::test]
async fn close_may_be_repeated() {
    let f = Fixture::new();
    let opened = f.create(f.root(), ROOT, "a", 0o600).await.unwrap();
    let file = opened.attr.unwrap().inode;
    let close = pb::SyncRequest {
        caller: f.root(),
        inode: file,
        session: opened.session,
        end: Some(10),
        ..Default::default()
    };
    let first = f.ns.close(close.clone()).await.unwrap();
    assert_eq!(first.attr.unwrap().size, 10);
    assert_eq!(f.ns.close(close).await, Ok(first));
    assert_eq!(f.summary().await.write_sessions, 0);
}

#[tokio::test]
async fn a_repeated_read_open_is_one_session() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    let request = pb::OpenRequest {
        caller: f.root(),
        inode: file,
        read: true,
        ..Default::default()
    };
    let first = f.ns.open_inode(request.clone()).await.unwrap();
    assert_eq!(f.ns.open_inode(request).await, Ok(first));
    assert_eq!(f.summary().await.sessions, 1);
}

#[tokio::test]
async fn records_of_departed_clients_go() {
    let f = Fixture::new();
    let request = pb::AttachRequest {
        caller: f.client(9, 0),
        protocol_version: 1,
        host: "h:9".to_owned(),
        ..Default::default()
    };
    f.ns.attach(request).await.unwrap();
    let caller = f.client(9, 0);
    f.try_mkdir(caller, ROOT, "d", 0o755).await.unwrap();
    f.expire_after(LONG).await;
    let mut txn = f.engine.begin();
    let span: [&[u8]; 2] = [b"L", b"M"];
    assert!(
        txn.get_range(span[0]..span[1], 10, false)
            .unwrap()
            .is_empty()
    );
    let span: [&[u8]; 2] = [b"R", b"S"];
    assert!(
        txn.get_range(span[0]..span[1], 10, false)
            .unwrap()
            .is_empty()
    );
    f.lookup(ROOT, "d").await.unwrap();
}

#[tokio::test]
async fn the_sweeper_waits_one_lease_and_then_works_by_itself() {
    let f = Fixture::new();
    let forgotten = f
        .create(f.root(), ROOT, "b", 0o644)
        .await
        .unwrap()
        .attr
        .unwrap()
        .inode;
    f.chunks.write(forgotten, 33);
    f.file(ROOT, "a").await;
    f.unlink(ROOT, "a").await.unwrap();
    let lease = Duration::from_millis(150);
    let config = crate::config::MetaConfig {
        client_lease_ms: lease.as_millis() as u64,
        ..config()
    };
    let f = Fixture::configured(&config, f.engine.clone(), f.chunks.clone());
    let (stop, started) = (CancellationToken::new(), Instant::now());
    let sweeper = crate::gc::run(f.ns.clone(), Duration::from_millis(10), stop.clone());
    let watch = async {
        while f.summary().await.garbage > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(
            started.elapsed() >= lease,
            "somebody could still have come back"
        );
        while f.summary().await.write_sessions > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(f.attr(forgotten).await.unwrap().size, 33);
        // New garbage does not wait for the timer.
        f.file(ROOT, "c").await;
        f.unlink(ROOT, "c").await.unwrap();
        while f.summary().await.garbage > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        stop.cancel();
    };
    let both = async { tokio::join!(sweeper, watch) };
    tokio::time::timeout(Duration::from_secs(20), both)
        .await
        .unwrap();
}

#[tokio::test]
async fn nobody_ends_the_session_of_another() {
    let f = Fixture::new();
    let opened = f.create(f.root(), ROOT, "a", 0o666).await.unwrap();
    let close = pb::SyncRequest {
        caller: f.client(2, 0),
        inode: opened.attr.unwrap().inode,
        session: opened.session,
        ..Default::default()
    };
    f.ns.close(close).await.unwrap();
    assert_eq!(f.summary().await.write_sessions, 1);
    assert_eq!(f.restart().summary().await.write_sessions, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_open_that_races_with_collection_succeeds_or_finds_nothing() {
    let f = Arc::new(Fixture::new());
    for i in 0..60 {
        let name = format!("f{i}");
        let file = f.file(ROOT, &name).await.inode;
        f.unlink(ROOT, &name).await.unwrap();
        let (opener, collector) = (f.clone(), f.clone());
        let write = i % 2 == 0;
        let open = tokio::spawn(async move { opener.open(file, write).await });
        let collect = tokio::spawn(async move { collector.collect().await });
        let (opened, pass) = (open.await.unwrap(), collect.await.unwrap());
        match opened {
            Ok(opened) => {
                assert_eq!(pass.removed, 0, "collected under an open file");
                f.attr(file).await.unwrap();
                f.close(file, opened.session).await;
                assert_eq!(f.collect().await.removed, 1);
            }
            Err(error) => {
                assert_eq!(error.code, Stale);
                // The pass may have met the open before it failed and spared the file. It must not
                // be there for the next round, which counts what its own pass removes.
                assert_eq!(pass.removed + f.collect().await.removed, 1);
            }
        }
    }
}

#[tokio::test]
async fn many_sessions_end_by_one_request_and_only_ones_own() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    let mut sessions = Vec::new();
    for write in [true, false, true] {
        let session = f.open(file, write).await.unwrap().session;
        sessions.push(pb::SessionRef {
            inode: file,
            session,
        });
    }
    let foreign = pb::CloseManyRequest {
        caller: f.client(9, 0),
        sessions: sessions.clone(),
        returned: Vec::new(),
    };
    f.ns.close_many(foreign).await.unwrap();
    assert_eq!(f.summary().await.sessions, 3);
    let own = pb::CloseManyRequest {
        caller: f.root(),
        sessions,
        returned: Vec::new(),
    };
    for _ in 0..2 {
        f.ns.close_many(own.clone()).await.unwrap();
        let summary = f.summary().await;
        assert_eq!((summary.sessions, summary.write_sessions), (0, 0));
    }
    // Nothing comes back with a restart.
    let f = f.restart();
    assert_eq!(f.summary().await.sessions, 0);
}
