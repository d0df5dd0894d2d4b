use super::fixture::*;
use crate::kv::{self, Engine};
use crate::kv::{KvError, MemoryEngine, RocksEngine, Transaction};
use emberfs_proto::ErrorCode::*;
use emberfs_proto::pb;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts conflicts.
struct Counting {
    inner: MemoryEngine,
    conflicts: Arc<AtomicU64>,
}

struct CountingTxn {
    inner: Box<dyn Transaction>,
    conflicts: Arc<AtomicU64>,
}

impl Engine for Counting {
    fn begin(&self) -> Box<dyn Transaction> {
        let conflicts = self.conflicts.clone();
        Box::new(CountingTxn {
            inner: self.inner.begin(),
            conflicts,
        })
    }

    fn when_durable(&self, version: kv::CommitVersion, tell: kv::TellDurable) {
        self.inner.when_durable(version, tell);
    }

    fn position(&self) -> kv::LogPosition {
        self.inner.position()
    }

    fn end_of(&self, start: u64) -> Option<kv::CommitVersion> {
        self.inner.end_of(start)
    }

    fn name(&self) -> &'static str {
        "counting"
    }
}

impl Transaction for CountingTxn {
    fn get(&mut self, key: &[u8]) -> kv::KvResult<Option<bytes::Bytes>> {
        self.inner.get(key)
    }
    fn get_snapshot(&mut self, key: &[u8]) -> kv::KvResult<Option<bytes::Bytes>> {
        self.inner.get_snapshot(key)
    }
    fn get_range(
        &mut self,
        range: std::ops::Range<&[u8]>,
        limit: usize,
        reverse: bool,
    ) -> kv::KvResult<Vec<(bytes::Bytes, bytes::Bytes)>> {
        self.inner.get_range(range, limit, reverse)
    }
    fn get_range_snapshot(
        &mut self,
        range: std::ops::Range<&[u8]>,
        limit: usize,
        reverse: bool,
    ) -> kv::KvResult<Vec<(bytes::Bytes, bytes::Bytes)>> {
        self.inner.get_range_snapshot(range, limit, reverse)
    }
    fn add_read_conflict_key(&mut self, key: &[u8]) {
        self.inner.add_read_conflict_key(key);
    }
    fn add_read_conflict_range(&mut self, range: std::ops::Range<&[u8]>) {
        self.inner.add_read_conflict_range(range);
    }
    fn add_write_conflict_key(&mut self, key: &[u8]) {
        self.inner.add_write_conflict_key(key);
    }
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.inner.put(key, value);
    }
    fn delete(&mut self, key: &[u8]) {
        self.inner.delete(key);
    }
    fn delete_range(&mut self, range: std::ops::Range<&[u8]>) {
        self.inner.delete_range(range);
    }
    fn add_i64(&mut self, key: &[u8], delta: i64) {
        self.inner.add_i64(key, delta);
    }
    fn add_at_most(&mut self, key: &[u8], delta: i64, max: i64) {
        self.inner.add_at_most(key, delta, max);
    }
    fn max_u64(&mut self, key: &[u8], value: u64) {
        self.inner.max_u64(key, value);
    }
    fn commit(self: Box<Self>) -> kv::KvResult<kv::CommitVersion> {
        self.commit_soon()
    }
    fn commit_soon(self: Box<Self>) -> kv::KvResult<kv::CommitVersion> {
        let result = self.inner.commit_soon();
        if result == Err(KvError::Conflict) {
            self.conflicts.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn creates_and_removes_in_one_directory_do_not_conflict() {
    let conflicts = Arc::new(AtomicU64::new(0));
    let engine = Counting {
        inner: MemoryEngine::new(),
        conflicts: conflicts.clone(),
    };
    let f = Arc::new(Fixture::over(Arc::new(engine), Arc::default()));
    let tasks = (0..8).map(|task| {
        let f = f.clone();
        tokio::spawn(async move {
            for i in 0..40 {
                let name = format!("{task}-{i}");
                if i % 3 == 0 {
                    f.mkdir(ROOT, &name).await;
                } else {
                    f.file(ROOT, &name).await;
                    if i % 5 == 1 {
                        f.unlink(ROOT, &name).await.unwrap();
                    }
                }
            }
        })
    });
    for task in futures::future::join_all(tasks).await {
        task.unwrap();
    }
    assert_eq!(conflicts.load(Ordering::Relaxed), 0);
    assert_eq!(f.attr(ROOT).await.unwrap().nlink, 2 + 8 * 14);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_directory_is_removed_or_gets_a_child_never_both() {
    let f = Arc::new(Fixture::new());
    let mut removed = 0;
    for i in 0..60 {
        let name = format!("d{i}");
        let dir = f.mkdir(ROOT, &name).await.inode;
        let (creator, remover) = (f.clone(), f.clone());
        let create =
            tokio::spawn(async move { creator.create(creator.root(), dir, "x", 0o644).await });
        let remove = tokio::spawn(async move { remover.rmdir(ROOT, &name).await });
        match (create.await.unwrap(), remove.await.unwrap()) {
            (Ok(_), Err(error)) => assert_eq!(error.code, NotEmpty),
            (Err(error), Ok(_)) => {
                assert_eq!(error.code, NotFound);
                removed += 1;
            }
            both => panic!("both or neither: {both:?}"),
        }
    }
    // What is left is consistent with the counts.
    assert_eq!(f.names(ROOT).await.len(), 60 - removed);
    assert_eq!(f.attr(ROOT).await.unwrap().nlink as usize, 2 + 60 - removed);
    assert_eq!(f.summary().await.inodes as usize, 1 + 2 * (60 - removed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn opposite_directory_moves_never_close_a_loop() {
    let f = Arc::new(Fixture::new());
    for i in 0..40 {
        let (a, b) = (format!("a{i}"), format!("b{i}"));
        let ia = f.mkdir(ROOT, &a).await.inode;
        let ib = f.mkdir(ROOT, &b).await.inode;
        let (f1, f2, a2, b2) = (f.clone(), f.clone(), a.clone(), b.clone());
        let one = tokio::spawn(async move { f1.rename(ROOT, &a, ib, "x").await });
        let two = tokio::spawn(async move { f2.rename(ROOT, &b, ia, "x").await });
        let results = [one.await.unwrap(), two.await.unwrap()];
        assert_eq!(
            results.iter().filter(|r| r.is_ok()).count(),
            1,
            "{results:?}"
        );
        let loser = results.into_iter().find_map(Result::err).unwrap();
        assert_eq!(loser.code, InvalidArgument);
        let left = f.lookup(ROOT, &a2).await.is_ok() ^ f.lookup(ROOT, &b2).await.is_ok();
        assert!(left, "exactly one is still in the root");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_creates_are_durable_on_rocksdb_with_shared_syncs() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Arc::new(RocksEngine::open(directory.path()).unwrap());
    let f = Arc::new(Fixture::over(engine.clone(), Arc::default()));
    f.mkdir(ROOT, "warm-up").await;
    let before = engine.stats();
    let tasks = (0..32).map(|task| {
        let f = f.clone();
        tokio::spawn(async move {
            for i in 0..8 {
                let caller = f.root();
                f.create(caller, ROOT, &format!("{task}-{i}"), 0o644)
                    .await
                    .unwrap();
            }
        })
    });
    for task in futures::future::join_all(tasks).await {
        task.unwrap();
    }
    let after = engine.stats();
    let (commits, syncs) = (
        after.committed - before.committed,
        after.flushes - before.flushes,
    );
    assert_eq!(commits, 256, "one transaction per create");
    assert!(
        syncs < commits / 2,
        "{syncs} synced writes for {commits} creates"
    );
    assert_eq!(f.names(ROOT).await.len(), 257);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_exclusive_create_has_one_winner() {
    let f = Arc::new(Fixture::new());
    let tasks = (0..16).map(|_| {
        let f = f.clone();
        tokio::spawn(async move { f.create(f.root(), ROOT, "a", 0o644).await })
    });
    let results = futures::future::join_all(tasks).await;
    let wins = results
        .iter()
        .filter(|r| r.as_ref().unwrap().is_ok())
        .count();
    assert_eq!(wins, 1);
    assert_eq!(f.summary().await.inodes, 2);
    assert_eq!(f.summary().await.sessions, 1, "losers leave no session");
    let _: pb::Attr = f.lookup(ROOT, "a").await.unwrap();
}
