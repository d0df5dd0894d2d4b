//! Bytes that rot on a disk of the running system.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::Result;

use crate::TestCluster;

/// Blocks begin at multiples of this.
const ALIGN: u64 = 4096;

/// Changes three bytes behind `mark`, which a page begins with, in the block files of a storage server,
/// wherever the page ever was: blocks that were freed keep what they held. Answers in how many places.
pub fn rot_blocks(cluster: &TestCluster, node: u32, mark: &[u8; 32]) -> Result<usize> {
    let blocks = cluster.dir().join(format!("storage-{node}/disk-1/blocks"));
    let mut found = 0;
    for entry in fs::read_dir(blocks)? {
        let file = File::options().read(true).write(true).open(entry?.path())?;
        let length = file.metadata()?.len();
        let (mut at, mut head) = (0, [0; 32]);
        while at + ALIGN <= length {
            // Files are sparse: only what is written is read.
            let Ok(data) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) else {
                break;
            };
            at = at.max(data / ALIGN * ALIGN);
            file.read_exact_at(&mut head, at)?;
            if head == *mark {
                // Different on every server: copies that are damaged alike would agree.
                file.write_all_at(&[node as u8, 0xAA, 0x55], at + 100)?;
                found += 1;
            }
            at += ALIGN;
        }
        file.sync_all()?;
    }
    Ok(found)
}
