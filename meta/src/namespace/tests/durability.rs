use super::fixture::*;
use crate::config::{Answer, MetaConfig};
use crate::kv::{
    CommitVersion, Engine, KvError, LogPosition, MemoryEngine, RocksEngine, TellDurable,
    Transaction,
};
use crate::namespace::keys;
use emberfs_proto::ids::InodeId;
use emberfs_proto::pb;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::sync::Arc;

#[tokio::test]
async fn a_restart_on_rocksdb_keeps_everything() {
    let directory = tempfile::tempdir().unwrap();
    let open = || Arc::new(RocksEngine::open(directory.path()).unwrap());
    let f = Fixture::over(open(), Arc::default());
    let dir = f.mkdir(ROOT, "d").await;
    let file = f.file(dir.inode, "f").await;
    f.truncate(file.inode, 12345).await.unwrap();
    f.file(dir.inode, "gone").await;
    f.unlink(dir.inode, "gone").await.unwrap();
    let before = [
        f.attr(ROOT).await,
        f.attr(dir.inode).await,
        f.attr(file.inode).await,
    ];
    let chunks = f.chunks.clone();
    drop(f);

    let f = Fixture::over(open(), chunks);
    assert_eq!(
        [
            f.attr(ROOT).await,
            f.attr(dir.inode).await,
            f.attr(file.inode).await
        ],
        before
    );
    let summary = f.summary().await;
    assert_eq!((summary.inodes, summary.garbage), (4, 1));
    let new = f.file(dir.inode, "new").await;
    assert!(new.inode > file.inode + 1, "numbers are never used again");
    assert_eq!(f.names(dir.inode).await, ["f", "new"]);
    assert_eq!(f.collect().await.removed, 1);
}

#[tokio::test]
async fn what_is_only_on_disk_is_found_as_what_is_in_memory() {
    let directory = tempfile::tempdir().unwrap();
    let open = || Arc::new(RocksEngine::open(directory.path()).unwrap());
    let f = Fixture::over(open(), Arc::default());
    let mut files = Vec::new();
    // Long names, so that they fill more than the few blocks that a start reads.
    let name = |i: usize| format!("{i:0200}");
    for i in 0..200 {
        files.push(f.file(ROOT, &name(i)).await);
    }
    let chunks = f.chunks.clone();
    drop(f);

    let engine = open();
    let f = Fixture::over(engine.clone(), chunks);
    let key = keys::dentry(InodeId(ROOT), name(100).as_bytes());
    let cached = engine.begin_cached().get(&key);
    assert_eq!(cached, Err(KvError::NotCached));
    let found = f.lookup(ROOT, &name(100)).await.unwrap();
    assert_eq!(found.inode, files[100].inode);
    assert!(engine.begin_cached().get(&key).unwrap().is_some());
    assert_eq!(f.lookup(ROOT, &name(100)).await.unwrap(), found);
}

/// A store whose disk answers when the test says so.
#[derive(Default)]
struct Lagging {
    inner: MemoryEngine,
    waiting: Mutex<Vec<(CommitVersion, TellDurable)>>,
    durable: Mutex<CommitVersion>,
}

impl Lagging {
    fn flush(&self) {
        for (version, tell) in std::mem::take(&mut *self.waiting.lock()) {
            let mut durable = self.durable.lock();
            *durable = version.max(*durable);
            tell(Ok(()));
        }
    }
}

impl Engine for Lagging {
    fn begin(&self) -> Box<dyn Transaction> {
        self.inner.begin()
    }

    fn when_durable(&self, version: CommitVersion, tell: TellDurable) {
        self.waiting.lock().push((version, tell));
    }

    fn position(&self) -> LogPosition {
        LogPosition {
            start: 7,
            durable: *self.durable.lock(),
        }
    }

    fn end_of(&self, start: u64) -> Option<CommitVersion> {
        (start == 6).then_some(CommitVersion(100))
    }

    fn name(&self) -> &'static str {
        "lagging"
    }
}

/// Which of these are answered while the disk does not.
async fn answered(answer_names: Answer) -> Vec<&'static str> {
    let engine = Arc::new(Lagging::default());
    let config = MetaConfig {
        answer_names,
        ..config()
    };
    let f = Fixture::configured(&config, engine.clone(), Arc::default());
    let mut early = Vec::new();
    let mut run = |what, mut work: BoxFuture<'_, ()>| {
        if (&mut work).now_or_never().is_some() {
            early.push(what);
        } else {
            engine.flush();
            work.now_or_never().expect("the disk has answered");
        }
    };
    let sync = |inode, session| pb::SyncRequest {
        caller: f.root(),
        inode,
        session,
        ..pb::SyncRequest::default()
    };
    run("mkdir", f.mkdir(ROOT, "d").map(drop).boxed());
    let dir = f.lookup(ROOT, "d").await.unwrap().inode;
    run(
        "fsync of the directory",
        f.ns.sync(sync(dir, 0)).map(drop).boxed(),
    );
    let made = Arc::new(Mutex::new(None));
    let create = async {
        *made.lock() = Some(f.create(f.root(), dir, "f", 0o644).await.unwrap());
    };
    run("create", create.boxed());
    let (inode, session) = {
        let made = made.lock();
        let reply = made.as_ref().unwrap();
        (reply.attr.unwrap().inode, reply.session)
    };
    run("fsync", f.ns.sync(sync(inode, session)).map(drop).boxed());
    run("rename", f.rename(dir, "f", dir, "g").map(drop).boxed());
    run("close", f.ns.close(sync(inode, session)).map(drop).boxed());
    run("unlink", f.unlink(dir, "g").map(drop).boxed());
    early
}

#[tokio::test]
async fn names_are_made_and_removed_soon_and_all_else_is_durable_when_it_is_answered() {
    assert_eq!(answered(Answer::Soon).await, ["mkdir", "create", "unlink"]);
    assert_eq!(answered(Answer::Durable).await, [""; 0]);
}

#[tokio::test]
async fn an_early_answer_names_its_commit_and_a_sync_says_where_logs_ended() {
    let engine = Arc::new(Lagging::default());
    let f = Fixture::configured(&config(), engine.clone(), Arc::default());
    let request = pb::MkdirRequest {
        caller: f.root(),
        parent: ROOT,
        name: "d".into(),
        mode: 0o755,
        umask: 0,
    };
    let made = f.ns.mkdir(request).await.unwrap().log.unwrap();
    assert_eq!((made.start, made.durable), (7, 0));
    assert!(made.committed > 0);
    let request = pb::SyncRequest {
        caller: f.root(),
        inode: ROOT,
        starts: vec![5, 6, 7],
        ..pb::SyncRequest::default()
    };
    let mut sync = f.ns.sync(request).boxed();
    assert!((&mut sync).now_or_never().is_none());
    engine.flush();
    let reply = sync.await.unwrap();
    let log = reply.log.unwrap();
    assert_eq!((log.start, log.committed), (7, 0));
    assert!(log.durable >= made.committed, "{log:?}, {made:?}");
    let ends = [pb::LogEnd { start: 6, end: 100 }];
    assert_eq!(reply.ends, ends, "of the fifth nothing is known");
}
