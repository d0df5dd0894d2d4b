//! Files that a quota applies to: room is asked for before bytes are buffered.

use emberfs_proto::ErrorCode;

use crate::testing::*;
use crate::{Allocate, Client, File, OpenFlags, SetAttr};

const MOST: u64 = 10_000;

/// A file that may be written to 4000 bytes at once and to [`MOST`] in the end.
async fn limited(cluster: &Cluster, client: &Client, name: &str) -> File {
    let inode = create(client, name).await.inode();
    {
        let mut state = cluster.meta.state.lock();
        state.most = MOST;
        let attr = state.files.get_mut(&inode.0).unwrap();
        attr.limited = true;
        attr.granted = 4000;
    }
    let flags = OpenFlags {
        read: true,
        write: true,
        ..OpenFlags::default()
    };
    client.open(&me(), inode, flags).await.unwrap().1
}

fn reserved(cluster: &Cluster) -> Vec<u64> {
    let state = cluster.meta.state.lock();
    state.reserved.iter().map(|(_, end)| *end).collect()
}

#[tokio::test]
async fn without_a_limit_nobody_asks() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    file.write(1 << 30, pattern(100, 1)).await.unwrap();
    file.allocate(0, 2 << 30, Allocate::Extend).await.unwrap();
    assert!(reserved(&cluster).is_empty());
}

#[tokio::test]
async fn within_a_grant_nobody_asks_and_beyond_it_once_per_step() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = limited(&cluster, &client, "f").await;
    for offset in (0..6000).step_by(500) {
        file.write(offset, pattern(500, 1)).await.unwrap();
    }
    // The answer grants 1000 more than was asked for.
    assert_eq!(reserved(&cluster), [4500, 6000]);
    assert_eq!(file.sync().await.unwrap().size, 6000);
}

#[tokio::test]
async fn the_write_that_does_not_fit_fails_and_leaves_nothing() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = limited(&cluster, &client, "f").await;
    let end = |offset: u64, len| file.write(offset, pattern(len, 1));
    let refused = end(MOST - 10, 11).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::QuotaExceeded);
    assert_eq!(refused.errno(), 122);
    assert_eq!(file.size(), 0);
    end(MOST - 10, 10).await.unwrap();
    assert_eq!(
        end(MOST, 1).await.unwrap_err().code,
        ErrorCode::QuotaExceeded
    );
    assert_eq!(
        file.sync().await.unwrap().size,
        MOST,
        "nothing was lost, nothing is left over"
    );
    file.close().await.unwrap();
}

#[tokio::test]
async fn appends_copies_and_extensions_ask_as_well() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = limited(&cluster, &client, "f").await;
    file.write(0, pattern(9000, 1)).await.unwrap();
    file.sync().await.unwrap();
    let code = |error: emberfs_proto::Error| error.code;
    let appended = file.append(pattern(1001, 1)).await;
    assert_eq!(appended.map_err(code), Err(ErrorCode::QuotaExceeded));
    assert_eq!(file.append(pattern(500, 1)).await, Ok(9000));
    for how in [Allocate::Extend, Allocate::ZeroRange] {
        let extended = file.allocate(0, MOST + 1, how).await;
        assert_eq!(
            extended.map_err(code),
            Err(ErrorCode::QuotaExceeded),
            "{how:?}"
        );
    }
    assert!(
        file.read(0, 9000).await.unwrap() == pattern(9000, 1),
        "nothing was cleared"
    );
    file.allocate(0, MOST + 1, Allocate::KeepSize)
        .await
        .unwrap();
    file.allocate(0, MOST, Allocate::Extend).await.unwrap();
    let source = create(&client, "source").await;
    source.write(0, pattern(600, 2)).await.unwrap();
    let copied = client.copy_range(&source, 0, &file, MOST - 500, 600).await;
    assert_eq!(copied.map_err(code), Err(ErrorCode::QuotaExceeded));
    let copied = client.copy_range(&source, 0, &file, MOST - 600, 600).await;
    assert_eq!(copied, Ok(600));
}

#[tokio::test]
async fn many_writers_of_a_file_ask_once() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = limited(&cluster, &client, "f").await;
    let writes = (0..10).map(|n| file.write(4000 + n * 10, pattern(10, 1)));
    for outcome in futures::future::join_all(writes).await {
        outcome.unwrap();
    }
    assert_eq!(reserved(&cluster).len(), 1);
}

#[tokio::test]
async fn a_forgotten_session_is_opened_again() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = limited(&cluster, &client, "f").await;
    cluster.meta.state.lock().sessions.clear();
    file.write(0, pattern(5000, 1)).await.unwrap();
    assert_eq!(reserved(&cluster), [5000, 5000]);
    file.close().await.unwrap();
}

#[tokio::test]
async fn a_truncation_that_takes_the_grant_back_is_noticed() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = limited(&cluster, &client, "f").await;
    file.write(0, pattern(4000, 1)).await.unwrap();
    file.sync().await.unwrap();
    {
        let mut state = cluster.meta.state.lock();
        let attr = state.files.get_mut(&file.inode().0).unwrap();
        attr.grant += 1;
        attr.granted = 10;
    }
    let size = Some(10);
    let changes = SetAttr {
        size,
        ..SetAttr::default()
    };
    let who = me();
    let truncated = client.setattr(&who, file.inode(), changes, Some(&file));
    truncated.await.unwrap();
    file.write(10, pattern(10, 1)).await.unwrap();
    assert_eq!(reserved(&cluster), [20]);
}
