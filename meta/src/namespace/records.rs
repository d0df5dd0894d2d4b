//! Values of the namespace's keys.
//!
//! A value is one format byte, then a protobuf message that only this crate reads. New fields get new
//! tags; a change that old servers must not misread gets a new format byte.

use bytes::Bytes;
use emberfs_proto::ids::{InodeId, TruncateEpoch};
use emberfs_proto::layout::Layout;
use emberfs_proto::pb::{self, FileKind};
use emberfs_proto::{Error, ErrorCode, Result};
use prost::Message;

/// Leads every value.
const FORMAT: u8 = 1;

/// Encodes a record.
pub(crate) fn encode(record: &impl Message) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + record.encoded_len());
    out.push(FORMAT);
    out.extend_from_slice(&record.encode_to_vec());
    out
}

/// Reads [`encode`] back.
pub(crate) fn decode<R: Message + Default>(bytes: &[u8]) -> Result<R> {
    let damaged = |why: &str| {
        let what = format!(
            "a metadata record is unreadable ({why}): it was written by a newer EmberFS or is \
             damaged; run this version's `emberfs fsck`, or upgrade the metadata server"
        );
        Error::new(ErrorCode::Internal, what)
    };
    match bytes.split_first() {
        Some((&FORMAT, body)) => R::decode(body).map_err(|e| damaged(&e.to_string())),
        Some((format, _)) => Err(damaged(&format!("format {format}"))),
        None => Err(damaged("empty")),
    }
}

/// An inode. Times and link count of a directory are elsewhere (see [`super::keys`]), so that
/// changes of its entries leave this record alone.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct InodeRecord {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    #[prost(enumeration = "FileKind", tag = "2")]
    pub(crate) kind: i32,
    #[prost(uint32, tag = "3")]
    pub(crate) mode: u32,
    #[prost(uint32, tag = "4")]
    pub(crate) uid: u32,
    #[prost(uint32, tag = "5")]
    pub(crate) gid: u32,
    /// Names of a non-directory.
    #[prost(uint32, tag = "6")]
    pub(crate) nlink: u32,
    #[prost(uint64, tag = "7")]
    pub(crate) size: u64,
    #[prost(message, required, tag = "8")]
    pub(crate) atime: pb::Time,
    /// Of a non-directory.
    #[prost(message, required, tag = "9")]
    pub(crate) mtime: pb::Time,
    /// Of a directory: when its own attributes changed; the later of this and
    /// [`DirTimes::ctime`] is what users see.
    #[prost(message, required, tag = "10")]
    pub(crate) ctime: pb::Time,
    #[prost(uint32, tag = "11")]
    pub(crate) rdev: u32,
    /// Files: their own. Directories: what children inherit, or nothing: the server's default.
    #[prost(message, optional, tag = "12")]
    pub(crate) layout: Option<pb::LayoutMsg>,
    #[prost(uint64, tag = "13")]
    pub(crate) epoch: u64,
    /// Of a directory: where its name is; the root is its own parent.
    #[prost(uint64, tag = "14")]
    pub(crate) parent: u64,
    /// Of a symbolic link.
    #[prost(bytes = "bytes", tag = "15")]
    pub(crate) target: Bytes,
    /// Deletion of the chunks has begun: nobody may open this inode any more. Of a directory: it is being emptied.
    #[prost(bool, tag = "16")]
    pub(crate) condemned: bool,
    /// Of a file that was created without a name, may be given one and has none yet: the time in its
    /// garbage record's key, nanoseconds. 0: any other.
    #[prost(uint64, tag = "30")]
    pub(crate) unnamed_since: u64,
    /// Of a file: it may have holes. Says nothing of a file whose writers were older than this field.
    #[prost(bool, tag = "31")]
    pub(crate) sparse: bool,
    /// Of a directory: its name in `parent`. Empty: it was made before this field, and never moved.
    #[prost(bytes = "bytes", tag = "60")]
    pub(crate) name: Bytes,
    /// Of a directory: how long what is removed from it stays in the trash, seconds; 0: not at all; absent: as the
    /// parent says.
    #[prost(uint64, optional, tag = "61")]
    pub(crate) trash_keep: Option<u64>,
    /// Of a directory: it is in the trash, removed at that time (nanoseconds, as in the key of its
    /// [`TrashEntry`]). 0: it is not.
    #[prost(uint64, tag = "62")]
    pub(crate) trashed: u64,
    /// Of a directory: how often it came back from the trash.
    #[prost(uint32, tag = "63")]
    pub(crate) returns: u32,
    /// Access ACL as [`super::acl`] encodes it; empty: the mode tells everything. Of its owner, mask and
    /// other entries the mode's bits count.
    #[prost(bytes = "bytes", tag = "20")]
    pub(crate) acl: Bytes,
    /// Of a directory: the ACL that children begin with; empty: none.
    #[prost(bytes = "bytes", tag = "21")]
    pub(crate) default_acl: Bytes,
    /// Bytes of the names of all [`Xattr`] records, each with a NUL; 0: there are none.
    #[prost(uint32, tag = "22")]
    pub(crate) xattr_names: u32,
    /// Bytes of their values.
    #[prost(uint32, tag = "23")]
    pub(crate) xattr_values: u32,
    /// Under which count of owners it is in the usage of its user and group; see [`super::usage`].
    #[prost(uint64, tag = "50")]
    pub(crate) owner_era: u64,
    /// In the usage of which directory's tree it is; what is created in a directory is in the same.
    #[prost(uint64, tag = "51")]
    pub(crate) tree: u64,
    /// Of a file that is being written: how far its writers may write, and so what is counted if it is more than the
    /// size. 0: no further than that.
    #[prost(uint64, tag = "52")]
    pub(crate) granted: u64,
    /// How often a grant was taken back.
    #[prost(uint64, tag = "53")]
    pub(crate) grant: u64,
}

impl InodeRecord {
    pub(crate) fn id(&self) -> InodeId {
        InodeId(self.id)
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.kind() == FileKind::Directory
    }

    pub(crate) fn is_file(&self) -> bool {
        self.kind() == FileKind::File
    }

    pub(crate) fn epoch(&self) -> TruncateEpoch {
        TruncateEpoch(self.epoch)
    }

    /// What quotas count of its bytes: lengths, because a hole may be filled at any time.
    pub(crate) fn charged_bytes(&self) -> u64 {
        if self.is_file() {
            self.size.max(self.granted)
        } else {
            0
        }
    }

    /// The layout of a file.
    pub(crate) fn file_layout(&self) -> Result<Layout> {
        let layout = self.layout.as_ref().ok_or_else(|| {
            let what = format!("inode {} has no layout; run `emberfs fsck`", self.id());
            Error::new(ErrorCode::Internal, what)
        })?;
        Layout::try_from(layout)
    }
}

/// A name.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Dentry {
    #[prost(uint64, tag = "1")]
    pub(crate) inode: u64,
    #[prost(enumeration = "FileKind", tag = "2")]
    pub(crate) kind: i32,
}

impl Dentry {
    pub(crate) fn id(&self) -> InodeId {
        InodeId(self.inode)
    }
}

/// When the entries of a directory changed.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct DirTimes {
    #[prost(message, required, tag = "1")]
    pub(crate) mtime: pb::Time,
    #[prost(message, required, tag = "2")]
    pub(crate) ctime: pb::Time,
}

/// A write session.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SessionRecord {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) client: Bytes,
    /// It began with a delegation, see [`crate::delegations`].
    #[prost(bool, tag = "2")]
    pub(crate) delegated: bool,
}

/// A client that has attached.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ClientRecord {
    #[prost(string, tag = "1")]
    pub(crate) host: String,
    /// Its requests up to this one are answered and forgotten.
    #[prost(uint64, tag = "2")]
    pub(crate) acknowledged: u64,
    /// Which attach wrote this, drawn at random.
    #[prost(uint64, tag = "3")]
    pub(crate) attach: u64,
    /// Under which its locks are held; 0: it has none. See `locks/tenure.rs`.
    #[prost(uint64, tag = "4")]
    pub(crate) tenure: u64,
    /// The last process that acted as this client; 0: it has only one. See [`crate::sessions`].
    #[prost(uint32, tag = "5")]
    pub(crate) instance: u32,
}

/// A truncation whose chunks are not all cut yet.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct TrimIntent {
    #[prost(uint64, tag = "1")]
    pub(crate) size: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) epoch: u64,
    #[prost(message, required, tag = "3")]
    pub(crate) layout: pb::LayoutMsg,
}

/// An extended attribute.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Xattr {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) value: Bytes,
}

/// Limits of a directory, a user or a group.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct QuotaRecord {
    #[prost(uint64, optional, tag = "1")]
    pub(crate) bytes: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    pub(crate) inodes: Option<u64>,
    /// Of a directory: what [`InodeRecord::tree`] says of those that are counted. Never used twice.
    #[prost(uint64, tag = "3")]
    pub(crate) tree: u64,
    /// Of a directory: what was in it before is still being counted.
    #[prost(bool, tag = "4")]
    pub(crate) counting: bool,
    /// Of a directory: its path when the quota was set.
    #[prost(string, tag = "5")]
    pub(crate) label: String,
}

/// Whether and under which number users and groups are counted.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct OwnersRecord {
    /// See [`InodeRecord::owner_era`]; never used twice.
    #[prost(uint64, tag = "1")]
    pub(crate) era: u64,
    #[prost(bool, tag = "2")]
    pub(crate) active: bool,
    /// Inodes after `after` from before this era are still to be counted.
    #[prost(bool, tag = "3")]
    pub(crate) counting: bool,
    #[prost(uint64, tag = "4")]
    pub(crate) after: u64,
}

/// A directory whose entries are still to be counted in a tree.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct WalkRecord {
    /// The last name that is done.
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) after: Bytes,
}

/// A name in the trash. Of a file it holds one link.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TrashEntry {
    #[prost(uint64, tag = "1")]
    pub(crate) inode: u64,
    #[prost(enumeration = "FileKind", tag = "2")]
    pub(crate) kind: i32,
    /// Who removed it.
    #[prost(uint32, tag = "3")]
    pub(crate) uid: u32,
    /// When it goes for good, nanoseconds.
    #[prost(uint64, tag = "4")]
    pub(crate) expires: u64,
    /// Path of its directory when it was removed, for people.
    #[prost(bytes = "bytes", tag = "5")]
    pub(crate) path: Bytes,
    /// A directory that was removed with all that was in it.
    #[prost(bool, tag = "6")]
    pub(crate) tree: bool,
}

impl TrashEntry {
    pub(crate) fn id(&self) -> InodeId {
        InodeId(self.inode)
    }
}

/// A restored directory that gets back what had been removed from it before.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Refill {
    /// What was removed until then, nanoseconds.
    #[prost(uint64, tag = "1")]
    pub(crate) until: u64,
    /// Key of the last entry that was looked at.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) after: Bytes,
}

/// A directory that is being emptied.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Doomed {
    /// What was removed from it before goes, too.
    #[prost(bool, tag = "1")]
    pub(crate) with_trash: bool,
}

/// The answer to a request, for a retry of it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Answer {
    /// Which operation asked; a client that reuses a number for another one is refused.
    #[prost(uint32, tag = "1")]
    pub(crate) operation: u32,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) reply: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_back_and_unknown_formats_are_refused() {
        let dentry = Dentry {
            inode: 7,
            kind: FileKind::Symlink as i32,
        };
        let mut bytes = encode(&dentry);
        assert_eq!(decode::<Dentry>(&bytes), Ok(dentry));
        bytes[0] = FORMAT + 1;
        assert_eq!(
            decode::<Dentry>(&bytes).unwrap_err().code,
            ErrorCode::Internal
        );
        assert_eq!(decode::<Dentry>(&[]).unwrap_err().code, ErrorCode::Internal);
    }

    #[test]
    fn the_inode_record_keeps_its_encoding() {
        // Written by version 1; must be readable for ever.
        let record = InodeRecord {
            id: 300,
            kind: FileKind::File as i32,
            mode: 0o644,
            nlink: 1,
            size: 5,
            epoch: 2,
            ..InodeRecord::default()
        };
        let golden = [
            1, 8, 172, 2, 16, 1, 24, 164, 3, 48, 1, 56, 5, 66, 0, 74, 0, 82, 0, 104, 2,
        ];
        assert_eq!(encode(&record), golden);
        assert_eq!(decode::<InodeRecord>(&golden), Ok(record));
    }

    #[test]
    fn marks_of_quotas_keep_their_encoding() {
        let record = InodeRecord {
            owner_era: 1,
            tree: 300,
            granted: 5,
            grant: 2,
            ..InodeRecord::default()
        };
        let golden = [
            1, 66, 0, 74, 0, 82, 0, 144, 3, 1, 152, 3, 172, 2, 160, 3, 5, 168, 3, 2,
        ];
        assert_eq!(encode(&record), golden);
        assert_eq!(decode::<InodeRecord>(&golden), Ok(record));
    }

    #[test]
    fn what_an_inode_record_tells_of_trash_keeps_its_encoding() {
        let record = InodeRecord {
            name: Bytes::from_static(b"a"),
            trash_keep: Some(0),
            trashed: 300,
            returns: 2,
            ..InodeRecord::default()
        };
        let golden = [
            1, 66, 0, 74, 0, 82, 0, 226, 3, 1, 97, 232, 3, 0, 240, 3, 172, 2, 248, 3, 2,
        ];
        assert_eq!(encode(&record), golden);
        assert_eq!(decode::<InodeRecord>(&golden), Ok(record));
    }

    #[test]
    fn what_an_inode_record_tells_of_attributes_keeps_its_encoding() {
        let record = InodeRecord {
            acl: Bytes::from_static(&[7]),
            default_acl: Bytes::from_static(&[8, 9]),
            xattr_names: 300,
            xattr_values: 5,
            ..InodeRecord::default()
        };
        let golden = [
            1, 66, 0, 74, 0, 82, 0, 162, 1, 1, 7, 170, 1, 2, 8, 9, 176, 1, 172, 2, 184, 1, 5,
        ];
        assert_eq!(encode(&record), golden);
        assert_eq!(decode::<InodeRecord>(&golden), Ok(record));
    }
}
