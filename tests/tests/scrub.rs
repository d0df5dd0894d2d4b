//! Bytes that rot on a disk: whoever comes upon them, they are put right from another replica, or the damage
//! is told and no wrong byte is served.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use emberfs_proto::checksum::fragment_checksums;
use emberfs_proto::ids::{ClientId, ClusterId, WriteTag};
use emberfs_proto::pb;
use emberfs_proto::wire::client::{Identity, PeerPool};
use emberfs_proto::wire::{Call, Channel as _, Opcode};
use emberfs_tests::{ClusterOptions, TestCluster, rot_blocks, wait};
use serde_json::Value;

const PAGE: u64 = 16 << 10;
const LIMIT: Duration = Duration::from_secs(20);

/// Three replicas; the kernel must ask EmberFS for every read.
fn cluster() -> Result<TestCluster> {
    TestCluster::with(ClusterOptions {
        mount_options: "direct_io".to_owned(),
        settings: vec!["storage.durability=process".to_owned()],
        ..ClusterOptions::new(3, 3)
    })
}

/// Every page begins with a number of its own, found nowhere else on a disk.
fn marked(pages: u64) -> Vec<u8> {
    (0..pages)
        .flat_map(|n| {
            let mut page = vec![n as u8 | 1; PAGE as usize];
            page[..32].copy_from_slice(&mark(n));
            page
        })
        .collect()
}

fn mark(page: u64) -> [u8; 32] {
    let mut mark = *b"emberfs-rot:........:9e3779b97f4";
    mark[12..20].copy_from_slice(&page.to_be_bytes());
    mark
}

/// Damages a page on a storage server.
fn rot(cluster: &TestCluster, node: u32, page: u64) -> Result<()> {
    let found = rot_blocks(cluster, node, &mark(page))?;
    ensure!(
        found > 0,
        "page {page} is not on the disk of storage-{node}"
    );
    Ok(())
}

/// Reads a page so often that every replica answers.
fn read_everywhere(path: &Path, page: u64, data: &[u8]) -> Result<()> {
    let file = fs::File::open(path)?;
    let mut read = vec![0; PAGE as usize];
    for _ in 0..6 {
        file.read_exact_at(&mut read, page * PAGE)?;
        let right = &data[(page * PAGE) as usize..][..PAGE as usize];
        ensure!(read == right, "wrong bytes were served");
    }
    Ok(())
}

fn scrub(cluster: &TestCluster, code: i32) -> Result<Value> {
    cluster
        .emberfs("scrub", &["--start", "--wait", "--json"])?
        .expect_code(code)?
        .json()
}

fn sum(report: &Value, field: &str) -> u64 {
    let disks = report["disks"].as_array().into_iter().flatten();
    disks.filter_map(|disk| disk[field].as_u64()).sum()
}

#[test]
fn a_read_repairs_what_it_comes_upon_and_a_write_keeps_no_damaged_byte() -> Result<()> {
    let cluster = cluster()?;
    let path = cluster.mount().join("file");
    let mut data = marked(64);
    fs::write(&path, &data)?;
    // A read that is answered by the damaged replica goes on elsewhere and has it repaired.
    for node in 1..=3 {
        rot(&cluster, node, 10 * u64::from(node))?;
    }
    let repaired = |expected: u64| -> Result<bool> {
        Ok(sum(&cluster.emberfs("scrub", &["--json"])?.json()?, "repaired") == expected)
    };
    wait(LIMIT, || {
        for page in [10, 20, 30] {
            read_everywhere(&path, page, &data)?;
        }
        repaired(3)
    })?;
    cluster.fsck()?.expect_code(0)?;
    let status = cluster.status_json()?;
    ensure!(status["status"] == "healthy", "{status}");

    // Overwriting a part of a damaged page must keep its rest, on every replica.
    for node in 1..=3 {
        rot(&cluster, node, 39 + u64::from(node))?;
    }
    let file = fs::File::options().write(true).open(&path)?;
    for page in 40..=42 {
        let at = page * PAGE + 5000;
        file.write_all_at(b"new", at)?;
        data[at as usize..][..3].copy_from_slice(b"new");
    }
    file.sync_all()?;
    ensure!(fs::read(&path)? == data, "the rest of a page was lost");
    cluster.fsck()?.expect_code(0)?;
    Ok(())
}

#[test]
fn the_scrub_repairs_without_a_read_and_tells_what_nobody_can_repair() -> Result<()> {
    let cluster = cluster()?;
    let path = cluster.mount().join("file");
    let data = marked(64);
    fs::write(&path, &data)?;
    rot(&cluster, 2, 5)?;
    rot(&cluster, 3, 6)?;
    let dry = cluster.fsck()?.expect_code(1)?.json()?;
    let fault = &dry["faults"][0];
    ensure!(fault["code"] == "unreadable", "{dry}");
    ensure!(
        fault["repair"]
            .as_str()
            .is_some_and(|r| r.contains("repair the pages")),
        "{dry}"
    );
    let report = scrub(&cluster, 0)?;
    ensure!(sum(&report, "repaired") == 2, "{report}");
    let finding = &report["findings"][0];
    ensure!(
        finding["found_by"] == "scrub" && finding["failure"] == "",
        "{report}"
    );
    let text = cluster.emberfs("scrub", &[])?.expect_code(0)?.stdout;
    ensure!(text.contains("repaired from target"), "{text}");
    cluster.fsck()?.expect_code(0)?;

    // What the command line repairs, it repairs without a pass.
    rot(&cluster, 1, 7)?;
    let report = cluster
        .emberfs("fsck", &["--repair", "--rate", "1G", "--json"])?
        .expect_code(0)?
        .json()?;
    ensure!(
        report["repaired"] == 1 && report["status"] == "clean",
        "{report}"
    );

    // The same page everywhere: an error, and never wrong bytes; all the rest is read.
    for node in 1..=3 {
        rot(&cluster, node, 20)?;
    }
    let file = fs::File::open(&path)?;
    let mut page = vec![0; PAGE as usize];
    let started = Instant::now();
    let error = file.read_exact_at(&mut page, 20 * PAGE);
    let error = error.err().context("wrong bytes were served")?;
    ensure!(error.raw_os_error() == Some(libc::EIO), "{error}");
    ensure!(
        started.elapsed() < LIMIT,
        "only after {:?}",
        started.elapsed()
    );
    file.read_exact_at(&mut page, 21 * PAGE)?;
    ensure!(page[..] == data[21 * PAGE as usize..22 * PAGE as usize]);
    let report = scrub(&cluster, 1)?;
    ensure!(sum(&report, "unrepairable") == 3, "{report}");
    let why = report["lost"][0]["why"].as_str().unwrap_or_default();
    ensure!(why.contains("restore the file"), "{report}");
    let report = cluster
        .emberfs("fsck", &["--repair", "--json"])?
        .expect_code(1)?
        .json()?;
    ensure!(report["repair_failures"][0].is_string(), "{report}");
    cluster.wait_status(2, LIMIT)?;
    // Restored, all is well again.
    fs::write(&path, &data)?;
    ensure!(fs::read(&path)? == data);
    scrub(&cluster, 0)?;
    cluster.wait_status(0, LIMIT)?;
    cluster.fsck()?.expect_code(0)?;
    Ok(())
}

/// Writes to a chunk of an inode that no file has, as a bug might: to the head, or past the others to
/// the tail alone.
fn plant(cluster: &TestCluster, inode: u64, version: u64) -> Result<()> {
    let status = cluster.status_json()?;
    let chain = &status["chains"][0];
    let seat = if version == 1 { 0 } else { 2 };
    let seat = chain["targets"][seat]["node"].as_u64().context("no node")?;
    let nodes = status["nodes"].as_array().context("no nodes")?;
    let node = nodes.iter().find(|node| node["id"] == seat);
    let addr = node.and_then(|node| node["data_addr"].as_str());
    let id = status["cluster"].as_str().and_then(ClusterId::parse);
    let client = ClientId(77);
    let pool = PeerPool::new(
        Identity {
            cluster: id,
            client,
            instance: 0,
        },
        1,
    );
    let data = vec![version as u8; 1000];
    let tag = WriteTag {
        client,
        channel: 0,
        sequence: version,
    };
    let mut request = pb::WriteRequest {
        chain: Some(pb::ChainRef {
            chain: chain["id"].as_u64().context("no chain")? as u32,
            version: chain["version"].as_u64().context("no version")?,
        }),
        inode,
        tag: Some(tag.into()),
        len: data.len() as u32,
        checksums: fragment_checksums(0, &data, 1 << 14),
        chunk_size: 1 << 20,
        page_size: 1 << 14,
        ..Default::default()
    };
    request.set_kind(pb::WriteKind::Write);
    let deadline = Instant::now() + LIMIT;
    let mut call = if version == 1 {
        Call::new(Opcode::Write, &request, deadline)
    } else {
        let forward = pb::ForwardRequest {
            write: Some(request),
            version,
            ..Default::default()
        };
        Call::new(Opcode::Forward, &forward, deadline)
    };
    call.payload = vec![Bytes::from(data)];
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let peer = pool.peer(addr.context("no address")?);
        peer.call(call).await?;
        Ok(())
    })
}

#[test]
fn fsck_syncs_replicas_that_differ_removes_orphans_and_is_not_misled_by_writes() -> Result<()> {
    let cluster = cluster()?;
    let mount = cluster.mount();
    let busy = mount.join("busy");
    fs::write(&busy, marked(64))?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> Result<u64> {
            let file = fs::File::options().write(true).open(&busy)?;
            let mut n = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                n += 1;
                file.write_all_at(&[n as u8; 5000], n * 7919 % 900_000)?;
                file.sync_data()?;
                let path = mount.join(format!("new-{}", n % 7));
                fs::write(&path, [n as u8; 9000])?;
                if n % 3 == 0 {
                    fs::remove_file(&path)?;
                }
            }
            Ok(n)
        });
        let result = (|| {
            cluster.fsck()?.expect_code(0)?;
            let repair = || cluster.emberfs("fsck", &["--repair", "--json"]);
            plant(&cluster, 1 << 40, 1)?;
            let report = cluster.fsck()?.expect_code(1)?.json()?;
            let faults = report["faults"].as_array().context("no faults")?;
            ensure!(
                faults.len() == 1 && faults[0]["code"] == "orphan",
                "{report}"
            );
            // The tail is ahead: the other two must be synced from it, before anything is removed.
            plant(&cluster, 1 << 40, 2)?;
            let report = repair()?.expect_code(1)?.json()?;
            ensure!(report["faults"][0]["code"] == "orphan", "{report}");
            ensure!(
                report["repair_failures"] == serde_json::json!([]),
                "{report}"
            );
            let report = repair()?.expect_code(0)?.json()?;
            ensure!(report["repaired"] == 1, "{report}");
            cluster.wait_status(0, LIMIT)?;
            cluster.fsck()?.expect_code(0)
        })();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let writes = writer
            .join()
            .map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        result?;
        ensure!(writes > 20, "only {writes} writes: nothing was tested");
        Ok(())
    })
}
