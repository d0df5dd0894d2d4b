//! How long files are.
//!
//! Writers do not come here per write; they report the highest end they have written. The size is
//! the maximum of what was reported *under the current truncate epoch*. A truncation that cuts
//! raises the epoch, and together with the new size leaves an intent in the store, which stays until
//! every chain has cut its chunks; until then nobody opens, reports or truncates the file, so that
//! no late cut can hit bytes written after the truncation was answered.
//!
//! A truncation cuts when the size shrinks, and also whenever somebody has the file open for
//! writing: then bytes may exist beyond the size that was reported so far.

use emberfs_proto::ids::TruncateEpoch;
use emberfs_proto::layout::Layout;
use emberfs_proto::{Error, ErrorCode, Result};

use super::keys;
use super::ops::sync::Settled;
use super::records::{InodeRecord, TrimIntent};
use super::tx::Tx;

/// Sets the size of a file without an intent, and leaves one if chunks must be cut. The caller stores
/// the record.
pub(crate) fn resize(tx: &mut Tx<'_>, file: &mut InodeRecord, size: u64) -> Result<()> {
    let layout = file.file_layout()?;
    check_size(&layout, size)?;
    if size < file.size || tx.has_writers(file.id())? {
        file.epoch += 1;
        let intent = TrimIntent {
            size,
            epoch: file.epoch,
            layout: layout.into(),
        };
        tx.put(&keys::trim(file.id()), &intent);
    }
    // Nothing is left of an empty file, and with it no hole.
    file.sparse = size > 0 && (file.sparse || size > file.size);
    file.size = size;
    file.mtime = tx.now;
    file.ctime = tx.now;
    Ok(())
}

/// How far a file was written, as a writer says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    pub(crate) end: u64,
    /// The truncate epoch under which that was seen.
    pub(crate) epoch: u64,
    /// Somebody else may have written further.
    pub(crate) settle: bool,
}

/// Takes a report of a writer; false if the end of the chunks must be known first.
pub(crate) fn report(file: &mut InodeRecord, told: Told, settled: Option<Settled>) -> Result<bool> {
    let Told { end, epoch, settle } = told;
    check_size(&file.file_layout()?, end)?;
    if epoch > file.epoch {
        let what = format!(
            "inode {} is at truncate epoch {}, the report at {epoch}; the client is broken",
            file.id(),
            file.epoch
        );
        return Err(Error::new(ErrorCode::InvalidArgument, what));
    }
    let end = if epoch == file.epoch && !settle {
        end
    } else {
        match settled {
            Some(settled) if settled.epoch == TruncateEpoch(file.epoch) => {
                // What was seen under this epoch counts beside what the chunks say.
                let seen = if epoch == file.epoch { end } else { 0 };
                settled.end.max(seen)
            }
            _ => return Ok(false),
        }
    };
    // Whoever wrote before a truncation cannot know what it left.
    file.sparse |= epoch != file.epoch && end > file.size;
    file.size = file.size.max(end);
    Ok(true)
}

/// Whether a report would change nothing.
pub(crate) fn covers(file: &InodeRecord, end: u64, epoch: u64) -> bool {
    epoch < file.epoch || (epoch == file.epoch && end <= file.size)
}

/// [`ErrorCode::FileTooLarge`] unless a file may be so long.
pub(crate) fn check_size(layout: &Layout, size: u64) -> Result<()> {
    let max = layout.max_file_size();
    if size > max {
        let what = format!("a size of {size} bytes exceeds the maximum file size {max}");
        return Err(Error::new(ErrorCode::FileTooLarge, what));
    }
    Ok(())
}
