//! Id newtypes: no signature in EmberFS takes a bare integer for an id.
//!
//! Every id is an integer inside, printable, hashable and ordered; `0` is never a
//! valid id except where a type says so. On the wire ids travel as plain integers
//! inside protobuf messages and are wrapped at the edge.

use std::fmt;

macro_rules! id {
    ($(#[$meta:meta])* $name:ident, $int:ty, $prefix:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl From<$int> for $name {
            fn from(value: $int) -> Self {
                Self(value)
            }
        }

        impl From<$name> for $int {
            fn from(value: $name) -> $int {
                value.0
            }
        }
    };
}

id!(/** A file, directory or symlink. Never reused. `1` is the root directory. */ InodeId, u64, "i");
id!(/** A server process with a stable identity. Chosen by its operator, from 1 up. */ NodeId, u32, "n");
id!(/** One replica slot: one chain's data on one disk. Never reused. */ TargetId, u64, "t");
id!(/** An ordered list of targets holding the same chunks. Never reused. */ ChainId, u32, "c");
id!(/** A list of chains that layouts refer to. */ ChainTableId, u32, "table");
id!(/** Version of a chain table; append-only. */ ChainTableVersion, u32, "v");
id!(/** Version of a chain's membership: +1 per change. `0` means never seen. */ ChainVersion, u64, "v");
id!(/** Version of one chunk's contents: +1 per write. `0` means no such chunk. */ ChunkVersion, u64, "v");
id!(/** Version of the cluster map: +1 per change. `0` means no map yet. */ MapVersion, u64, "m");
id!(/** Position of a chunk in its file: offset / chunk size. */ ChunkIndex, u32, "#");
id!(/** A client's write-open of an inode. */ SessionId, u64, "s");
id!(/** Raised by each shrink of a file; a length reported under an older epoch is not believed. */ TruncateEpoch, u64, "e");

macro_rules! id128 {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl $name {
            /// The 16 big-endian bytes that travel in protobuf `bytes` fields.
            pub fn to_bytes(self) -> bytes::Bytes {
                bytes::Bytes::copy_from_slice(&self.0.to_be_bytes())
            }

            /// Reads [`Self::to_bytes`] back; `None` unless there are exactly 16 bytes.
            pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
                Some(Self(u128::from_be_bytes(bytes.try_into().ok()?)))
            }

            /// Reads the 32 hexadecimal digits that [`fmt::Display`] prints.
            pub fn parse(text: &str) -> Option<Self> {
                (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok().map(Self))?
            }
        }
    };
}

id128!(/** Identity of a cluster, drawn at random when its metadata store is created. */ ClusterId);
id128!(/** Identity of a disk, drawn at random when it is formatted for a node. */ DiskId);
id128!(/** One run of a server process: a restart is a new incarnation and inherits no lease. */ IncarnationId);
id128!(/** One client process (a mount, a library instance). */ ClientId);

impl InodeId {
    /// The root directory.
    pub const ROOT: Self = Self(1);
}

/// A chunk: which file, and which slice of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkKey {
    /// The file.
    pub inode: InodeId,
    /// Which chunk of the file.
    pub index: ChunkIndex,
}

impl ChunkKey {
    /// Encoded length in bytes.
    pub const LEN: usize = 12;

    /// Shorthand constructor.
    pub fn new(inode: impl Into<InodeId>, index: impl Into<ChunkIndex>) -> Self {
        Self {
            inode: inode.into(),
            index: index.into(),
        }
    }

    /// Big-endian, so that a file's chunks sort together and in order.
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..8].copy_from_slice(&self.inode.0.to_be_bytes());
        out[8..].copy_from_slice(&self.index.0.to_be_bytes());
        out
    }

    /// Reads [`Self::encode`] back; `None` unless there are exactly [`Self::LEN`] bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        let (inode, index) = bytes.split_at(8);
        Some(Self {
            inode: InodeId(u64::from_be_bytes(inode.try_into().ok()?)),
            index: ChunkIndex(u32::from_be_bytes(index.try_into().ok()?)),
        })
    }
}

impl fmt::Display for ChunkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.inode, self.index)
    }
}

/// Names one write for exactly-once: a client has at most one write in flight per
/// channel, and `sequence` grows by one with each new write on it (3FS's update channels).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteTag {
    /// Who writes.
    pub client: ClientId,
    /// Which of the client's channels.
    pub channel: u32,
    /// Position on that channel, from 1.
    pub sequence: u64,
}

impl fmt::Display for WriteTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.client, self.channel, self.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunk_keys_round_trip_and_sort_like_their_fields(a: (u64, u32), b: (u64, u32)) {
            let (ka, kb) = (ChunkKey::new(a.0, a.1), ChunkKey::new(b.0, b.1));
            prop_assert_eq!(ChunkKey::decode(&ka.encode()), Some(ka));
            prop_assert_eq!(ka.encode().cmp(&kb.encode()), a.cmp(&b));
        }

        #[test]
        fn wide_ids_round_trip(raw: u128) {
            let id = ClusterId(raw);
            prop_assert_eq!(ClusterId::from_bytes(&id.to_bytes()), Some(id));
            prop_assert_eq!(ClusterId::parse(&id.to_string()), Some(id));
        }
    }

    #[test]
    fn malformed_ids_are_refused() {
        assert_eq!(ChunkKey::decode(&[0; 11]), None);
        assert_eq!(ClusterId::from_bytes(&[0; 15]), None);
        assert_eq!(ClusterId::parse("abc"), None);
    }
}
