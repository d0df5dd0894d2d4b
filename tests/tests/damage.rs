//! What fsck finds on a damaged cluster.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use emberfs_tests::TestCluster;

/// Found nowhere else on a disk.
const MARK: &[u8; 32] = b"emberfs-test-mark:9e3779b97f4a7c";

#[test]
fn fsck_names_the_server_on_which_a_byte_was_flipped() -> Result<()> {
    let cluster = TestCluster::start(3, 3)?;
    let file = cluster.mount().join("file");
    let data: Vec<u8> = MARK.iter().copied().cycle().take(1 << 20).collect();
    fs::write(&file, &data)?;
    cluster.fsck()?.expect_code(0)?;

    cluster.stop_process("storage-2")?;
    let disk = cluster.dir().join("storage-2/disk-1");
    let (path, at) = find(&disk)?.context("the data is not on the disk of storage-2")?;
    let mut block = fs::File::options().read(true).write(true).open(path)?;
    block.seek(SeekFrom::Start(at + 7))?;
    block.write_all(&[MARK[7] ^ 1])?;
    block.sync_all()?;
    cluster.start_process("storage-2")?;
    cluster.wait_status(0, std::time::Duration::from_secs(20))?;

    let report = cluster.fsck()?.expect_code(1)?.json()?;
    let fault = &report["faults"][0];
    let what = fault["what"].as_str().context("no sentence")?;
    ensure!(what.contains("storage-2"), "{report}");
    let codes = ["unreadable", "content-differs"];
    ensure!(
        fault["code"]
            .as_str()
            .is_some_and(|code| codes.contains(&code)),
        "{report}"
    );
    // Whoever reads gets the right bytes from another replica.
    ensure!(fs::read(&file)? == data, "wrong bytes were served");
    Ok(())
}

/// The first place of [`MARK`] under `dir`.
fn find(dir: &Path) -> Result<Option<(PathBuf, u64)>> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            if let Some(found) = find(&path)? {
                return Ok(Some(found));
            }
        } else if let Some(at) = find_in(&path)? {
            return Ok(Some((path, at)));
        }
    }
    Ok(None)
}

/// Blocks begin at multiples of 4096 and the data begins with the mark. Files are sparse and large: only
/// what is written is read.
fn find_in(path: &Path) -> Result<Option<u64>> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    let mut page = [0; 4096];
    let mut at = 0;
    while at + 4096 <= length {
        let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at));
        let Ok(data) = data else { return Ok(None) };
        at = data / 4096 * 4096;
        if at + 4096 > length {
            break;
        }
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut page)?;
        if page.starts_with(MARK) {
            return Ok(Some(at));
        }
        at += 4096;
    }
    Ok(None)
}
