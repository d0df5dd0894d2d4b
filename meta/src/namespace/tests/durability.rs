use super::fixture::*;
use crate::kv::{Engine, KvError, RocksEngine};
use crate::namespace::keys;
use emberfs_proto::ids::InodeId;
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
