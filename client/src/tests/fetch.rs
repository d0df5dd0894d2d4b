//! Whole small files in few round trips.

use std::time::Duration;

use bytes::Bytes;
use emberfs_proto::wire::Opcode;
use emberfs_proto::{ErrorCode, Result, pb};

use crate::read_many::in_order;
use crate::testing::*;
use crate::{Attr, Client};

const CHUNK: usize = 64 << 10;

fn plant(cluster: &Cluster, name: &str, data: &Bytes) -> u64 {
    let size = data.len() as u64;
    let inode = cluster.meta.plant(name, pb::FileKind::File, size, "");
    for (index, part) in data.chunks(CHUNK).enumerate() {
        let part = Bytes::copy_from_slice(part);
        cluster.storage.plant(inode, index as u32, &part);
    }
    inode
}

async fn fetch<N: AsRef<[u8]>>(client: &Client, names: &[N]) -> Vec<Result<(Attr, Bytes)>> {
    let files = client.fetch_files(&me(), client.root(), names);
    in_order(names.len(), files).await
}

#[tokio::test]
async fn thousands_of_small_files_cost_few_requests() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let names: Vec<String> = (0..3000).map(|i| format!("f{i}")).collect();
    let data = |i: usize| pattern(i * 37 % 5000, i as u8);
    let inodes: Vec<_> = (0..3000)
        .map(|i| plant(&cluster, &names[i], &data(i)))
        .collect();
    let files = fetch(&client, &names).await;
    for (i, file) in files.into_iter().enumerate() {
        let (attr, bytes) = file.unwrap();
        assert_eq!(attr.inode, inodes[i]);
        assert!(bytes == data(i), "file {i}");
    }
    let frames = cluster.storage.reads().len();
    assert!(frames <= 3 * 3 * 2, "{frames} reads");
    let meta = cluster.meta.state.lock();
    assert_eq!((meta.lookups, meta.get_attrs), (3, 0));
    assert_eq!(meta.changes, [], "nothing is opened");
}

#[tokio::test]
async fn each_name_has_an_error_of_its_own() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let data = pattern(1000, 1);
    plant(&cluster, "good", &data);
    plant(&cluster, "empty", &Bytes::new());
    let secret = plant(&cluster, "secret", &data);
    let huge = cluster.meta.plant("huge", pb::FileKind::File, 1 << 40, "");
    cluster.meta.plant("dir", pb::FileKind::Directory, 0, "");
    cluster.meta.plant("link", pb::FileKind::Symlink, 4, "good");
    {
        let mut meta = cluster.meta.state.lock();
        meta.files.get_mut(&secret).unwrap().mode = 0o600;
        assert!(meta.files.contains_key(&huge));
    }
    let names = [
        "good", "none", "secret", "dir", "link", "huge", "empty", "good",
    ];
    let files = fetch(&client, &names).await;
    let got: Vec<_> = files
        .into_iter()
        .map(|file| file.map(|(_, bytes)| bytes).map_err(|error| error.code))
        .collect();
    let expected = [
        Ok(data.clone()),
        Err(ErrorCode::NotFound),
        Err(ErrorCode::PermissionDenied),
        Err(ErrorCode::IsDirectory),
        Err(ErrorCode::Loop),
        Err(ErrorCode::InvalidArgument),
        Ok(Bytes::new()),
        Ok(data),
    ];
    assert!(
        got == expected,
        "{:?}",
        got.iter().map(|r| r.as_ref().err()).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn files_of_many_chunks_and_holes_come_whole() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let (middle, large) = (pattern(3 * CHUNK + 5, 1), pattern(30 * CHUNK + 7, 2));
    plant(&cluster, "middle", &middle);
    plant(&cluster, "large", &large);
    let sparse = cluster
        .meta
        .plant("sparse", pb::FileKind::File, 200_000, "");
    cluster.storage.plant(sparse, 1, &pattern(100, 3));
    let mut expected = vec![0; 200_000];
    expected[CHUNK..CHUNK + 100].copy_from_slice(&pattern(100, 3));
    let files = fetch(&client, &["middle", "large", "sparse"]).await;
    let files: Vec<_> = files.into_iter().map(|file| file.unwrap().1).collect();
    assert!(files[0] == middle && files[1] == large && files[2] == expected);
}

#[tokio::test]
async fn a_file_deleted_meanwhile_is_missing_and_not_zeros() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let data = pattern(1000, 1);
    // Found, but when it is read its chunks are gone: its inode too, or (for the second) not yet.
    let gone = plant(&cluster, "gone", &data);
    let going = plant(&cluster, "going", &data);
    plant(&cluster, "stays", &data);
    let slow = Fault::Slow(Duration::from_millis(200));
    (1..=3).for_each(|node| cluster.storage.fault(node, Opcode::Read, slow.clone(), 10));
    let fetching = tokio::spawn({
        let client = client.clone();
        async move { fetch(&client, &["gone", "going", "stays"]).await }
    });
    eventually("the lookup", || cluster.meta.state.lock().lookups == 1).await;
    {
        let mut meta = cluster.meta.state.lock();
        meta.files.remove(&gone);
        meta.files.get_mut(&going).unwrap().nlink = 0;
        let mut storage = cluster.storage.state.lock();
        storage
            .chunks
            .retain(|key, _| ![gone, going].contains(&key.inode.0));
    }
    let files = fetching.await.unwrap();
    for file in &files[..2] {
        assert_eq!(file.as_ref().unwrap_err().code, ErrorCode::NotFound);
    }
    assert!(files[2].as_ref().unwrap().1 == data);
}

#[tokio::test]
async fn a_file_cut_meanwhile_is_read_again() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let inode = plant(&cluster, "f", &pattern(1000, 1));
    let slow = Fault::Slow(Duration::from_millis(200));
    (1..=3).for_each(|node| cluster.storage.fault(node, Opcode::Read, slow.clone(), 1));
    let fetching = tokio::spawn({
        let client = client.clone();
        async move { fetch(&client, &["f"]).await }
    });
    eventually("the lookup", || cluster.meta.state.lock().lookups == 1).await;
    {
        let mut meta = cluster.meta.state.lock();
        let attr = meta.files.get_mut(&inode).unwrap();
        (attr.size, attr.truncate_epoch) = (10, 2);
    }
    cluster.storage.plant(inode, 0, &pattern(10, 1));
    let files = fetching.await.unwrap();
    let (attr, bytes) = files.into_iter().next().unwrap().unwrap();
    assert_eq!((attr.size, attr.truncate_epoch), (10, 2));
    assert!(bytes == pattern(10, 1));
    eventually("the close", || {
        cluster.meta.state.lock().sessions.is_empty()
    })
    .await;
}

#[tokio::test]
async fn what_this_client_writes_and_what_is_being_truncated_is_opened() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let file = create(&client, "mine").await;
    file.write(0, pattern(5000, 1)).await.unwrap();
    let inode = plant(&cluster, "cut", &pattern(100, 2));
    cluster.meta.state.lock().truncating.insert(inode);
    let files = fetch(&client, &["mine", "cut"]).await;
    let files: Vec<_> = files.into_iter().map(|file| file.unwrap().1).collect();
    assert!(files[0] == pattern(5000, 1) && files[1] == pattern(100, 2));
}

#[tokio::test]
async fn a_damaged_or_dead_replica_costs_only_further_requests() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let names: Vec<String> = (0..60).map(|i| format!("f{i}")).collect();
    for (i, name) in names.iter().enumerate() {
        plant(&cluster, name, &pattern(3000, i as u8));
    }
    cluster.storage.fault(1, Opcode::Read, Fault::Corrupt, 1);
    cluster.storage.kill(2);
    for (i, file) in fetch(&client, &names).await.into_iter().enumerate() {
        assert!(file.unwrap().1 == pattern(3000, i as u8), "file {i}");
    }
}
