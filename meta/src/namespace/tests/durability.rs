use super::fixture::*;
use crate::kv::RocksEngine;
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
