//! The block files: one per size class, opened when the class is first used.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use emberfs_proto::buf::AlignedBuf;
use rustix::fs::{FallocateFlags, OFlags, fallocate, statvfs};
use rustix::io::Errno;

use super::classes::{CLASSES, Class};

/// All block files of one disk. Every call that takes an [`io::Result`] back may block.
pub(super) struct BlockFiles {
    dir: PathBuf,
    /// Cleared when the file system refuses O_DIRECT.
    direct: AtomicBool,
    files: [OnceLock<Arc<File>>; CLASSES],
}

impl BlockFiles {
    /// Creates the directory `dir` if needed; opens no file yet.
    pub(super) fn new(dir: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        if let Some(disk) = dir.parent() {
            // The name `blocks` must survive a power cut as well.
            File::open(disk)?.sync_all()?;
        }
        let files = std::array::from_fn(|_| OnceLock::new());
        Ok(Self {
            dir,
            direct: AtomicBool::new(true),
            files,
        })
    }

    fn path(&self, class: Class) -> PathBuf {
        self.dir.join(format!("{:05}k.blk", class.capacity() >> 10))
    }

    /// Whether the class has a file on disk.
    pub(super) fn exists(&self, class: Class) -> io::Result<bool> {
        self.path(class).try_exists()
    }

    /// The open file; `None` when no block of the class was ever allocated.
    pub(super) fn get(&self, class: Class) -> Option<&Arc<File>> {
        self.files[class.index()].get()
    }

    /// Opens the file, creating it if needed. Called by one thread at a time.
    pub(super) fn open(&self, class: Class) -> io::Result<&Arc<File>> {
        if let Some(file) = self.get(class) {
            return Ok(file);
        }
        let path = self.path(class);
        let new = !path.try_exists()?;
        let file = self.open_direct_if_possible(&path)?;
        if new {
            // The new name must survive a power cut before a record refers to a block in it.
            File::open(&self.dir)?.sync_all()?;
        }
        Ok(self.files[class.index()].get_or_init(|| Arc::new(file)))
    }

    fn open_direct_if_possible(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true);
        if self.direct.load(Ordering::Relaxed) {
            let direct = options
                .clone()
                .custom_flags(OFlags::DIRECT.bits() as i32)
                .open(path);
            match direct {
                Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
                    self.direct.store(false, Ordering::Relaxed);
                    tracing::warn!(dir = %self.dir.display(),
                        "the file system refuses O_DIRECT: going on through the page cache, slower");
                }
                other => return other,
            }
        }
        options.open(path)
    }

    /// Gives blocks disk space (and the file the length they need).
    pub(super) fn back(&self, class: Class, blocks: Range<u32>) -> io::Result<()> {
        let (start, len) = extent(class, &blocks);
        let file = self.open(class)?;
        match fallocate(file, FallocateFlags::empty(), start, len) {
            // No preallocation here: blocks get their space when they are written.
            Err(Errno::OPNOTSUPP) if file.metadata()?.len() < start + len => {
                file.set_len(start + len)?;
            }
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
        if is_small(class) {
            fill(file, start, len)?;
        }
        Ok(())
    }

    /// Takes the disk space of blocks away; they read as zeros.
    pub(super) fn punch(&self, class: Class, blocks: Range<u32>) -> io::Result<()> {
        let (start, len) = extent(class, &blocks);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(self.open(class)?, flags, start, len)?)
    }

    /// Free bytes of the file system, as an unprivileged process may use them; no limit if the file
    /// system does not count.
    pub(super) fn available(&self) -> io::Result<u64> {
        let fs = statvfs(&self.dir)?;
        Ok(if fs.f_blocks == 0 {
            u64::MAX
        } else {
            fs.f_bavail * fs.f_frsize
        })
    }

    /// Size of the file system, bytes; `None` if it does not count (ramfs).
    pub(super) fn file_system_size(&self) -> io::Result<Option<u64>> {
        let fs = statvfs(&self.dir)?;
        Ok((fs.f_blocks > 0).then_some(fs.f_blocks * fs.f_frsize))
    }
}

/// Blocks this small are written once before they are used. The first write to an extent is an entry in the journal of the file
/// system, two more writes and a wait, which a small write would feel and a large one does not.
pub(super) fn is_small(class: Class) -> bool {
    class.capacity() < 64 << 10
}

/// Writes zeros, durably.
fn fill(file: &File, start: u64, len: u64) -> io::Result<()> {
    const PIECE: u64 = 1 << 20;
    let zeros = AlignedBuf::zeroed(PIECE.min(len) as usize);
    for at in (0..len).step_by(PIECE as usize) {
        let piece = &zeros[..PIECE.min(len - at) as usize];
        file.write_all_at(piece, start + at)?;
    }
    file.sync_data()
}

fn extent(class: Class, blocks: &Range<u32>) -> (u64, u64) {
    let capacity = u64::from(class.capacity());
    (
        u64::from(blocks.start) * capacity,
        u64::from(blocks.end - blocks.start) * capacity,
    )
}
