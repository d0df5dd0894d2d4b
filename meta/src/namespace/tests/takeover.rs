//! A client that goes on in another process.

use std::time::{Duration, Instant};

use emberfs_proto::ErrorCode::*;
use emberfs_proto::ids::ClientId;
use emberfs_proto::{Result, pb};

use super::fixture::*;

const CLIENT: u128 = 9;

/// The next request of a process of the client.
fn process(f: &Fixture, instance: u32, uid: u32) -> Option<pb::Caller> {
    f.client(CLIENT, uid)
        .map(|caller| pb::Caller { instance, ..caller })
}

async fn attach(f: &Fixture, instance: u32) -> Result<pb::AttachReply> {
    attach_as(f, process(f, instance, 0)).await
}

async fn attach_as(f: &Fixture, caller: Option<pb::Caller>) -> Result<pb::AttachReply> {
    let request = pb::AttachRequest {
        caller,
        protocol_version: 1,
        host: "h:1".to_owned(),
        ..Default::default()
    };
    f.ns.attach(request).await
}

async fn beat(f: &Fixture, instance: u32) -> Result<pb::KeepAliveReply> {
    let caller = process(f, instance, 0);
    f.ns.keep_alive(pb::KeepAliveRequest { caller }).await
}

fn open(f: &Fixture, instance: u32, inode: u64, write: bool) -> pb::OpenRequest {
    pb::OpenRequest {
        execute: false,
        caller: process(f, instance, 0),
        inode,
        read: true,
        write,
        truncate: false,
    }
}

/// Lets a lease pass in which the client was heard of.
async fn a_lease_passes(f: &Fixture) {
    let later = Instant::now() + config().client_lease() + Duration::from_secs(1);
    let sessions = &f.ns.core.sessions;
    sessions.keep_alive(ClientId(CLIENT), 0, later);
    f.ns.expire(later).await.unwrap();
}

#[tokio::test]
async fn what_was_open_stays_for_a_lease_and_what_is_opened_again_for_good() {
    let f = Fixture::new();
    attach(&f, 1).await.unwrap();
    let caller = process(&f, 1, 5);
    let created = f.try_mkdir(f.root(), ROOT, "d", 0o777).await.unwrap();
    let created = f.create(caller, created.inode, "a", 0).await.unwrap();
    let file = created.attr.unwrap().inode;
    f.ns.open_inode(open(&f, 1, file, false)).await.unwrap();
    let dir = f.lookup(ROOT, "d").await.unwrap().inode;
    f.unlink(dir, "a").await.unwrap();

    attach(&f, 2).await.unwrap();
    assert_eq!(f.collect().await.removed, 0);
    let opened = f.ns.open_inode(open(&f, 2, file, true)).await.unwrap();
    assert_eq!(f.summary().await.sessions, 3);
    // The answer to an attach may get lost, and it is repeated.
    attach(&f, 2).await.unwrap();
    a_lease_passes(&f).await;
    assert_eq!(f.summary().await.sessions, 1);
    assert_eq!(f.collect().await.removed, 0, "opened again");
    let close = pb::SyncRequest {
        caller: process(&f, 2, 0),
        inode: file,
        session: opened.session,
        ..Default::default()
    };
    f.ns.close(close).await.unwrap();
    assert_eq!(f.collect().await.removed, 1);
}

#[tokio::test]
async fn an_earlier_process_is_refused_also_after_a_restart() {
    let f = Fixture::new();
    let file = f.file(ROOT, "a").await.inode;
    attach(&f, 1).await.unwrap();
    beat(&f, 1).await.unwrap();
    attach(&f, 2).await.unwrap();
    let f = {
        assert_eq!(code(beat(&f, 1).await), Superseded);
        let late = open(&f, 1, file, true);
        assert_eq!(code(f.ns.open_inode(late).await), Superseded);
        let dir = f.try_mkdir(process(&f, 1, 0), ROOT, "d", 0o755);
        assert_eq!(code(dir.await), Superseded);
        let caller = process(&f, 1, 0);
        let watch = f.ns.watch_inodes(&pb::WatchInodesRequest { caller });
        assert_eq!(watch.err().map(|error| error.code), Some(Superseded));
        let leave = pb::ReclaimLocksRequest {
            caller: process(&f, 1, 0),
            tenure: 1,
            leave: true,
            ..Default::default()
        };
        assert_eq!(code(f.ns.reclaim_locks(leave).await), Superseded);
        f.restart()
    };
    assert_eq!(code(attach(&f, 1).await), Superseded);
    assert_eq!(code(beat(&f, 1).await), Superseded);
    attach(&f, 2).await.unwrap();
    attach(&f, 3).await.unwrap();
    assert_eq!(code(beat(&f, 2).await), Superseded);
}

#[tokio::test]
async fn a_change_of_the_earlier_process_is_answered_from_the_record() {
    let f = Fixture::new();
    attach(&f, 1).await.unwrap();
    let by = |instance, caller: &Option<pb::Caller>| {
        let caller = caller.clone();
        caller.map(|caller| pb::Caller { instance, ..caller })
    };
    let create = pb::CreateRequest {
        caller: process(&f, 1, 0),
        parent: ROOT,
        name: bytes("a"),
        mode: 0o644,
        exclusive: true,
        write: true,
        ..Default::default()
    };
    let first = f.ns.create(create.clone()).await.unwrap();
    let read = open(&f, 1, first.attr.unwrap().inode, false);
    let opened = f.ns.open_inode(read.clone()).await.unwrap();
    attach(&f, 2).await.unwrap();
    let create = pb::CreateRequest {
        caller: by(2, &create.caller),
        ..create
    };
    assert_eq!(f.ns.create(create).await, Ok(first));
    let read = pb::OpenRequest {
        execute: false,
        caller: by(2, &read.caller),
        ..read
    };
    assert_eq!(f.ns.open_inode(read).await, Ok(opened));
    assert_eq!(f.summary().await.sessions, 2);
}

#[tokio::test]
async fn what_the_earlier_process_acknowledged_stays_so() {
    let f = Fixture::new();
    let caller = process(&f, 1, 0).map(|caller| pb::Caller {
        acknowledged: 1 << 40,
        ..caller
    });
    attach_as(&f, caller).await.unwrap();
    attach(&f, 2).await.unwrap();
    let f = f.restart();
    let late = process(&f, 2, 0).map(|caller| pb::Caller {
        request: 1 << 40,
        ..caller
    });
    let late = f.try_mkdir(late, ROOT, "d", 0o755).await;
    assert_eq!(code(late), InvalidArgument);
}

#[tokio::test]
async fn a_length_that_nobody_reported_is_taken_from_the_chunks() {
    let f = Fixture::new();
    let created = f.create(f.root(), ROOT, "a", 0o4600).await.unwrap();
    let (file, session) = (created.attr.unwrap().inode, created.session);
    let mtime = Some(pb::Time {
        seconds: 5,
        nanos: 6,
    });
    let settle = |uid: u32, truncate_epoch: u64, end: Option<u64>| {
        let request = pb::SyncRequest {
            caller: f.user(uid),
            inode: file,
            session,
            end,
            truncate_epoch,
            mtime,
            sparse: true,
            settle: true,
            starts: Vec::new(),
        };
        let ns = f.ns.clone();
        async move { ns.sync(request).await.unwrap().attr.unwrap() }
    };
    let attr = settle(0, 0, None).await;
    assert_eq!((attr.size, attr.sparse), (0, false), "nothing is stored");
    f.chunks.write(file, 70);
    let attr = settle(0, 0, None).await;
    assert_eq!((attr.size, attr.sparse, attr.mtime), (70, true, mtime));
    assert_eq!(attr.mode, 0o4600);
    // A session is enough, whoever asks; and bytes of somebody else than root end set-user-ID.
    assert_eq!(settle(7, 0, None).await.mode, 0o600);
    assert_eq!(
        settle(7, 0, Some(90)).await.size,
        90,
        "seen, not stored yet"
    );
    f.truncate(file, 10).await.unwrap();
    let epoch = f.attr(file).await.unwrap().truncate_epoch;
    assert_eq!(settle(0, 0, Some(90)).await.size, 10, "of before the cut");
    f.chunks.write(file, 30);
    assert_eq!(settle(0, epoch, None).await.size, 30);
}
