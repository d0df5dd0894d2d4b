//! Attributes in the kernel's terms.

use std::time::UNIX_EPOCH;

use emberfs_client::Attr;
use emberfs_client::attr::AttrExt;
use emberfs_proto::pb::FileKind;
use fuser::{FileAttr, FileType, Generation, INodeNo};

use crate::handler::DirItem;

/// What `stat` calls the preferred I/O size: enough for cp and Python's buffers to do well, little
/// enough that a small random read through a buffered stream stays small.
const PREFERRED_IO: u32 = 128 << 10;

/// Unit of the block counts of statfs.
pub(crate) const STATFS_BLOCK: u32 = 4096;

/// Longest name in bytes.
pub(crate) const NAME_MAX: u32 = 255;

pub(crate) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::File | FileKind::Unspecified => FileType::RegularFile,
    }
}

pub(crate) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.inode),
        size: attr.size,
        blocks: attr.blocks(),
        atime: attr.accessed(),
        mtime: attr.modified(),
        ctime: attr.changed(),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind()),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: PREFERRED_IO,
        flags: 0,
    }
}

/// An entry of a listing with attributes. Of `.` and `..` the kernel takes no more than the number.
pub(crate) fn listed_attr(item: &DirItem) -> (FileAttr, Generation) {
    match &item.attr {
        Some(attr) => (file_attr(attr), Generation(attr.generation)),
        None => {
            let bare = Attr {
                inode: item.node,
                kind: FileKind::Directory as i32,
                ..Attr::default()
            };
            (file_attr(&bare), Generation(0))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use emberfs_proto::pb::Time;

    use super::*;

    #[test]
    fn attributes_reach_the_kernel_unchanged() {
        let attr = Attr {
            inode: 1 << 40,
            kind: FileKind::Fifo as i32,
            mode: 0o4755,
            uid: 7,
            gid: 8,
            nlink: 3,
            size: 1025,
            atime: Some(Time {
                seconds: 1,
                nanos: 2,
            }),
            mtime: Some(Time {
                seconds: -1,
                nanos: 5,
            }),
            ctime: None,
            rdev: 0x0102,
            ..Attr::default()
        };
        let converted = file_attr(&attr);
        assert_eq!(converted.ino.0, 1 << 40);
        assert_eq!(converted.kind, FileType::NamedPipe);
        assert_eq!(converted.perm, 0o4755);
        assert_eq!((converted.uid, converted.gid, converted.nlink), (7, 8, 3));
        assert_eq!((converted.size, converted.blocks), (1025, 3));
        assert_eq!(converted.atime, UNIX_EPOCH + Duration::new(1, 2));
        assert_eq!(
            converted.mtime,
            UNIX_EPOCH - Duration::from_secs(1) + Duration::from_nanos(5)
        );
        assert_eq!(converted.ctime, UNIX_EPOCH);
        assert_eq!(converted.rdev, 0x0102);
    }

    #[test]
    fn every_kind_has_its_type() {
        let kinds = [
            (FileKind::File, FileType::RegularFile),
            (FileKind::Directory, FileType::Directory),
            (FileKind::Symlink, FileType::Symlink),
            (FileKind::Fifo, FileType::NamedPipe),
            (FileKind::Socket, FileType::Socket),
            (FileKind::CharDevice, FileType::CharDevice),
            (FileKind::BlockDevice, FileType::BlockDevice),
        ];
        for (kind, expected) in kinds {
            assert_eq!(file_type(kind), expected);
        }
    }
}
