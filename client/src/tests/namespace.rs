//! Calls to the metadata server: retries, numbers, paths.

use std::sync::Arc;
use std::time::Duration;

use emberfs_proto::ErrorCode;
use emberfs_proto::pb::FileKind;
use parking_lot::Mutex;

use crate::testing::*;
use crate::{Client, CreateFlags, Creds, File, LossesHeard, SetAttr};

#[tokio::test]
async fn a_change_whose_answer_was_lost_is_repeated_under_its_number() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    cluster
        .meta
        .fault("create", ErrorCode::MaybeCommitted, true, 2);
    let flags = CreateFlags {
        exclusive: true,
        write: true,
        ..CreateFlags::default()
    };
    let made = client
        .create(&me(), client.root(), b"f", 0o644, flags)
        .await
        .unwrap();
    let changes = cluster.meta.state.lock().changes.clone();
    assert_eq!(changes.iter().map(|c| c.1).collect::<Vec<_>>(), [1, 1, 1]);
    let again = client
        .create(&me(), client.root(), b"f", 0o644, flags)
        .await
        .err()
        .unwrap();
    assert_eq!(again.code, ErrorCode::Exists);
    let last = cluster.meta.state.lock().changes.last().copied().unwrap();
    assert_eq!((last.1, last.2), (2, 1), "the first is acknowledged");
    drop(made);
}

#[tokio::test]
async fn conflicts_are_run_again_and_permanent_errors_are_not() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    cluster.meta.fault("create", ErrorCode::Conflict, false, 3);
    create(&client, "f").await;
    assert_eq!(
        cluster
            .meta
            .state
            .lock()
            .changes
            .iter()
            .filter(|c| c.0 == "create")
            .count(),
        4
    );
    let error = client
        .lookup(&me(), client.root(), b"nothing")
        .await
        .unwrap_err();
    assert_eq!(error.errno(), 2);
}

#[tokio::test]
async fn a_dead_metadata_server_is_a_wait_then_a_success() {
    let cluster = Cluster::start().await;
    cluster.meta.kill();
    // Its port refuses until it returns.
    let connecting = tokio::spawn(Client::connect(cluster.config()));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!connecting.is_finished());
    cluster.meta.revive().await;
    let client = connecting.await.unwrap().unwrap();
    create(&client, "f").await;
}

#[tokio::test]
async fn paths_follow_links_and_dots() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let me = Creds::default();
    let file = cluster.meta.plant("f", FileKind::File, 5, "");
    cluster.meta.plant("dir", FileKind::Directory, 0, "");
    cluster.meta.plant("link", FileKind::Symlink, 0, "dir/../f");
    cluster
        .meta
        .plant("absolute", FileKind::Symlink, 0, "/link");
    cluster.meta.plant("loop", FileKind::Symlink, 0, "loop");
    for path in ["/f", "f", "//./f", "link", "/dir/../absolute", "../f"] {
        assert_eq!(
            client.resolve(&me, path).await.unwrap().inode,
            file,
            "{path}"
        );
    }
    assert_eq!(client.resolve(&me, "/").await.unwrap().inode, 1);
    assert_eq!(
        client.resolve(&me, "loop").await.unwrap_err().code,
        ErrorCode::Loop
    );
    assert_eq!(
        client.resolve(&me, "f/x").await.unwrap_err().code,
        ErrorCode::NotDirectory
    );
    let error = client.resolve(&me, "/nothing").await.unwrap_err();
    assert!(
        error.code == ErrorCode::NotFound && error.message.contains("/nothing"),
        "{error}"
    );
}

#[tokio::test]
async fn what_was_answered_before_it_was_durable_is_asked_for_once() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let syncs = || {
        let state = cluster.meta.state.lock();
        state
            .changes
            .iter()
            .filter(|(verb, ..)| *verb == "sync")
            .count()
    };
    let file = create(&client, "f").await;
    file.sync().await.unwrap();
    assert_eq!(syncs(), 1, "for its name");
    let heard = client.losses_heard(file.inode());
    let sync = async || client.sync_changes(file.inode(), &heard).await;
    sync().await.unwrap();
    assert_eq!(syncs(), 1, "the server has said so");
    chmod(&client, &file).await;
    for _ in 0..2 {
        sync().await.unwrap();
        assert_eq!(syncs(), 2);
    }
}

async fn chmod(client: &Client, file: &File) {
    let changes = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    client
        .setattr(&me(), file.inode(), changes, None)
        .await
        .unwrap();
}

#[tokio::test]
async fn who_syncs_what_was_lost_with_the_servers_power_is_told_once() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let (kept, lost) = (create(&client, "kept").await, create(&client, "lost").await);
    lost.sync().await.unwrap();
    let heard = [(); 2].map(|()| client.losses_heard(lost.inode()));
    // The third commit, and the fourth.
    chmod(&client, &kept).await;
    chmod(&client, &lost).await;
    cluster.meta.state.lock().restart(3);
    chmod(&client, &kept).await;
    let sync = async |file: &File, heard| client.sync_changes(file.inode(), heard).await;
    let nothing = client.losses_heard(kept.inode());
    sync(&kept, &nothing).await.unwrap();
    let later = client.losses_heard(lost.inode());
    for heard in [&heard[0], &heard[1], &later] {
        let error = sync(&lost, heard).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::ChangesLost);
        assert!(error.message.contains(&lost.inode().to_string()), "{error}");
        sync(&lost, heard).await.unwrap();
    }
}

#[tokio::test]
async fn a_later_process_tells_what_an_earlier_one_has_noted_and_the_server_lost() {
    let cluster = Cluster::start().await;
    let earlier = cluster.client().await;
    let noted = Arc::new(Mutex::new(None));
    earlier.note_changes({
        let noted = noted.clone();
        move |start, commit| *noted.lock() = Some((start, commit))
    });
    let file = create(&earlier, "f").await;
    file.sync().await.unwrap();
    chmod(&earlier, &file).await;
    let (start, commit) = noted.lock().unwrap();
    assert_eq!((start, commit), (0, 2));
    for (kept, lost) in [(2, false), (1, true)] {
        let later = cluster.client().await;
        later.inherit_changes(start, commit);
        let heard = LossesHeard::default();
        cluster.meta.state.lock().restart(kept);
        let synced = later.sync_changes(file.inode(), &heard).await;
        assert_eq!(synced.is_err(), lost);
        cluster.meta.state.lock().forget_starts();
    }
}

#[tokio::test]
async fn what_the_server_lost_none_of_is_durable() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "f").await;
    let heard = client.losses_heard(file.inode());
    for _ in 0..3 {
        chmod(&client, &file).await;
        let mut server = cluster.meta.state.lock();
        let commits = server.commits();
        server.restart(commits);
    }
    client.sync_changes(file.inode(), &heard).await.unwrap();
}
