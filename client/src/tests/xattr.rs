//! Extended attributes, and the umask of what is created.

use emberfs_proto::ErrorCode;

use crate::testing::*;
use crate::{CreateFlags, NewMode, XattrFlags};

#[tokio::test]
async fn attributes_are_set_listed_read_and_removed() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let inode = create(&client, "f").await.inode();
    let plain = XattrFlags::default();
    let name: &[u8] = b"user.origin";
    let missing = client.get_xattr(&me(), inode, name).await.unwrap_err();
    assert_eq!(
        (missing.code, missing.errno()),
        (ErrorCode::NoAttribute, 61)
    );
    client
        .set_xattr(&me(), inode, name, b"a\0b", plain)
        .await
        .unwrap();
    client
        .set_xattr(&me(), inode, b"user.empty", b"", plain)
        .await
        .unwrap();
    assert_eq!(
        client.get_xattr(&me(), inode, name).await.unwrap(),
        &b"a\0b"[..]
    );
    assert_eq!(
        client.list_xattr(&me(), inode).await.unwrap(),
        [&b"user.empty"[..], name]
    );
    let create_it = XattrFlags {
        create: true,
        ..plain
    };
    let taken = client.set_xattr(&me(), inode, name, b"c", create_it).await;
    assert_eq!(taken.unwrap_err().code, ErrorCode::Exists);
    client.remove_xattr(&me(), inode, name).await.unwrap();
    let replace_it = XattrFlags {
        replace: true,
        ..plain
    };
    let gone = client.set_xattr(&me(), inode, name, b"c", replace_it).await;
    assert_eq!(gone.unwrap_err().code, ErrorCode::NoAttribute);
}

#[tokio::test]
async fn a_change_whose_answer_was_lost_is_no_second_change() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let inode = create(&client, "f").await.inode();
    let create_it = XattrFlags {
        create: true,
        ..XattrFlags::default()
    };
    let meta = &cluster.meta;
    meta.fault("set_xattr", ErrorCode::MaybeCommitted, true, 2);
    client
        .set_xattr(&me(), inode, b"user.a", b"1", create_it)
        .await
        .unwrap();
    meta.fault("remove_xattr", ErrorCode::MaybeCommitted, true, 2);
    client.remove_xattr(&me(), inode, b"user.a").await.unwrap();
    let changes = meta.state.lock().changes.clone();
    let tries = |verb| changes.iter().filter(|change| change.0 == verb).count();
    assert_eq!((tries("set_xattr"), tries("remove_xattr")), (3, 3));
}

#[tokio::test]
async fn a_value_that_no_server_takes_is_refused_here() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let root = client.root();
    let flags = XattrFlags::default();
    let most = vec![7; 64 << 10];
    client
        .set_xattr(&me(), root, b"user.a", &most, flags)
        .await
        .unwrap();
    let before = cluster.meta.state.lock().changes.len();
    let more = vec![7; (64 << 10) + 1];
    let error = client
        .set_xattr(&me(), root, b"user.a", &more, flags)
        .await
        .unwrap_err();
    assert_eq!((error.code, error.errno()), (ErrorCode::ValueTooLarge, 7));
    assert_eq!(cluster.meta.state.lock().changes.len(), before);
}

#[tokio::test]
async fn the_umask_goes_to_the_server() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let mode = NewMode {
        mode: 0o666,
        umask: 0o027,
    };
    let flags = CreateFlags {
        write: true,
        ..CreateFlags::default()
    };
    let root = client.root();
    let made = client
        .create_with(&me(), root, b"f", mode, flags)
        .await
        .unwrap();
    assert_eq!(made.0.mode, 0o640);
    let plain = client
        .create(&me(), root, b"g", 0o666, flags)
        .await
        .unwrap();
    assert_eq!(plain.0.mode, 0o666);
}
