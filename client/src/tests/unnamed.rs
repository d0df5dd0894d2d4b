//! Files without a name.

use crate::testing::*;
use crate::{CreateFlags, blocking};

const FLAGS: CreateFlags = CreateFlags {
    exclusive: false,
    truncate: false,
    read: true,
    write: true,
};

#[tokio::test]
async fn a_file_without_a_name_is_written_and_given_one() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let (me, root) = (me(), client.root());
    let created = client.create_unnamed(&me, root, 0o640, FLAGS).await;
    let (attr, file) = created.unwrap();
    assert_eq!((attr.nlink, attr.mode), (0, 0o640));
    file.write(0, pattern(1000, 1)).await.unwrap();
    assert!(file.read(0, 1000).await.unwrap() == pattern(1000, 1));
    let linked = client.link(&me, file.inode(), root, b"f").await.unwrap();
    assert_eq!((linked.nlink, linked.size), (1, 1000), "not synced yet");
    file.close().await.unwrap();
    assert_eq!(client.resolve(&me, "/f").await.unwrap().size, 1000);
}

#[tokio::test]
async fn it_has_to_be_opened_for_writing() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let flags = CreateFlags {
        write: false,
        ..FLAGS
    };
    let root = client.root();
    let refused = client.create_unnamed(&me(), root, 0o600, flags).await;
    assert_eq!(refused.err().unwrap().errno(), 22);
}

#[test]
fn the_blocking_client_has_the_same_verbs() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cluster = runtime.block_on(Cluster::start());
    let client = blocking::Client::connect(cluster.config()).unwrap();
    let created = client.create_unnamed(&me(), client.root(), 0o600, FLAGS);
    let (_, file) = created.unwrap();
    let linked = client.link(&me(), file.inner().inode(), client.root(), b"f");
    assert_eq!(linked.unwrap().nlink, 1);
    file.write_at(100_000, &pattern(100, 1)).unwrap();
    file.allocate(0, 300_000, crate::Allocate::Extend).unwrap();
    assert_eq!(file.seek(5, crate::Whence::Data).unwrap(), 65536);
    let created = client.create(&me(), client.root(), b"g", 0o600, FLAGS);
    let (_, copy) = created.unwrap();
    let copied = client.copy_range((&file, 0), (&copy, 0), u64::MAX);
    assert_eq!((copied.unwrap(), copy.size()), (300_000, 300_000));
    let stored = file.allocated().unwrap();
    let layout = copy.inner().state().layout;
    copy.sync().unwrap();
    let again = client.allocated(copy.inner().inode(), layout).unwrap();
    assert_eq!(again, stored);
    file.close().unwrap();
    copy.close().unwrap();
    client.shutdown();
}
