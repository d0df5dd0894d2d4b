//! Opens, closes, lost sessions, shutdown, the blocking façade.

use std::time::Duration;

use emberfs_proto::ErrorCode;

use crate::testing::*;
use crate::{Client, ClientConfig, CreateFlags, Creds, OpenFlags, blocking};

#[tokio::test]
async fn a_dropped_file_is_flushed_and_closed_in_the_background() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    let inode = file.inode().0;
    file.write(0, pattern(100, 1)).await.unwrap();
    drop(file.clone());
    assert_eq!(
        cluster.meta.state.lock().sessions.len(),
        1,
        "a clone is left"
    );
    drop(file);
    eventually("closed", || cluster.meta.state.lock().sessions.is_empty()).await;
    assert_eq!(cluster.meta.attr(inode).size, 100);
}

#[tokio::test]
async fn a_close_that_nobody_waits_for_any_more_still_happens() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    let inode = file.inode().0;
    cluster.storage.kill(1);
    file.write(0, pattern(100, 1)).await.unwrap();
    let close = tokio::time::timeout(Duration::from_millis(50), file.close());
    assert!(close.await.is_err());
    cluster.storage.revive(1).await;
    eventually("closed", || cluster.meta.state.lock().sessions.is_empty()).await;
    assert_eq!(cluster.meta.attr(inode).size, 100);
}

#[tokio::test]
async fn a_truncate_comes_after_the_background_close_of_a_dropped_file() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    let inode = file.inode();
    file.write(0, pattern(1000, 1)).await.unwrap();
    drop(file);
    let changes = crate::SetAttr {
        size: Some(10),
        ..crate::SetAttr::default()
    };
    client.setattr(&me(), inode, changes, None).await.unwrap();
    eventually("closed", || cluster.meta.state.lock().sessions.is_empty()).await;
    assert_eq!(cluster.meta.attr(inode.0).size, 10);
}

#[tokio::test]
async fn shutdown_leaves_nothing_behind() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let (a, b) = (create(&client, "a").await, create(&client, "b").await);
    a.write(0, pattern(100, 1)).await.unwrap();
    b.write(0, pattern(200, 1)).await.unwrap();
    let inodes = (a.inode().0, b.inode().0);
    drop(b);
    client.shutdown().await;
    assert!(cluster.meta.state.lock().sessions.is_empty());
    assert_eq!(
        (
            cluster.meta.attr(inodes.0).size,
            cluster.meta.attr(inodes.1).size
        ),
        (100, 200)
    );
    assert_eq!(a.write(0, pattern(1, 1)).await.unwrap_err().errno(), 9);
}

#[tokio::test]
async fn a_server_that_forgot_the_client_gets_all_files_again() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    let flags = OpenFlags {
        read: true,
        ..OpenFlags::default()
    };
    let reader = client.open(&me(), file.inode(), flags).await.unwrap().1;
    {
        let mut state = cluster.meta.state.lock();
        state.sessions.clear();
        state.forgotten = true;
    }
    eventually("opened again", || {
        cluster.meta.state.lock().sessions.len() == 2
    })
    .await;
    assert_eq!(cluster.meta.state.lock().attached, 2);
    file.write(0, pattern(100, 1)).await.unwrap();
    file.sync().await.unwrap();
    file.close().await.unwrap();
    reader.close().await.unwrap();
    eventually("closed", || cluster.meta.state.lock().sessions.is_empty()).await;
}

#[tokio::test]
async fn a_session_that_vanished_does_not_lose_a_length() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    file.write(0, pattern(100, 1)).await.unwrap();
    cluster.meta.state.lock().sessions.clear();
    assert_eq!(file.sync().await.unwrap().size, 100);
    file.write(100, pattern(100, 1)).await.unwrap();
    cluster.meta.state.lock().sessions.clear();
    let inode = file.inode();
    file.close().await.unwrap();
    assert_eq!(client.getattr(inode).await.unwrap().size, 200);
}

#[tokio::test]
async fn another_clients_truncate_is_believed_over_older_answers() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.client().await, cluster.client().await);
    let file = create(&one, "f").await;
    file.write(0, pattern(1000, 1)).await.unwrap();
    file.sync().await.unwrap();
    let changes = crate::SetAttr {
        size: Some(10),
        ..crate::SetAttr::default()
    };
    two.setattr(&me(), file.inode(), changes, None)
        .await
        .unwrap();
    assert_eq!(one.getattr(file.inode()).await.unwrap().size, 10);
    assert_eq!(file.size(), 10);
    assert_eq!(file.read(0, 1000).await.unwrap().len(), 10);
}

#[tokio::test]
async fn handles_allow_what_they_were_opened_for() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let flags = CreateFlags {
        write: true,
        ..CreateFlags::default()
    };
    let (_, file) = client
        .create(&me(), client.root(), b"f", 0o644, flags)
        .await
        .unwrap();
    assert_eq!(file.read(0, 1).await.unwrap_err().errno(), 9);
    let flags = OpenFlags {
        read: true,
        ..OpenFlags::default()
    };
    let reader = client.open(&me(), file.inode(), flags).await.unwrap().1;
    assert_eq!(reader.write(0, pattern(1, 1)).await.unwrap_err().errno(), 9);
    let error = client
        .open(&me(), client.root(), flags)
        .await
        .err()
        .unwrap();
    assert_eq!(error.code, ErrorCode::IsDirectory);
}

#[test]
fn the_blocking_client_reads_what_it_wrote() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cluster = runtime.block_on(Cluster::start());
    let client = blocking::Client::connect(cluster.config()).unwrap();
    let me = Creds::current();
    let flags = CreateFlags {
        read: true,
        write: true,
        ..CreateFlags::default()
    };
    let (_, file) = client
        .create(&me, client.root(), b"f", 0o644, flags)
        .unwrap();
    let data = pattern(200_000, 1);
    file.write_at(0, &data).unwrap();
    let mut buf = vec![0; 300_000];
    assert_eq!(file.read_at(100, &mut buf).unwrap(), 199_900);
    assert!(buf[..199_900] == data[100..]);
    file.sync().unwrap();
    file.close().unwrap();
    assert_eq!(client.resolve(&me, "/f").unwrap().size, 200_000);
    client.shutdown();
}

#[tokio::test]
async fn no_metadata_server_is_an_error_that_names_it() {
    let cluster = Cluster::start().await;
    let config = ClientConfig {
        meta: "127.0.0.1:1".to_owned(),
        ..cluster.config()
    };
    let config = ClientConfig {
        connect_timeout: Duration::from_millis(200),
        ..config
    };
    let error = Client::connect(config).await.err().unwrap();
    assert_eq!(error.code, ErrorCode::DeadlineExceeded, "{error}");
    assert!(error.message.contains("127.0.0.1:1"), "{error}");
}
