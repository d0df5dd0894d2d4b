//! Conversions between protobuf messages and domain types.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::error::{Error, ErrorCode, Result};
use crate::ids::{
    ChainId, ChainTableId, ChainTableVersion, ChainVersion, ChunkKey, ClientId, WriteTag,
};
use crate::layout::Layout;
use crate::pb;

impl From<Layout> for pb::LayoutMsg {
    fn from(layout: Layout) -> Self {
        Self {
            chunk_size: layout.chunk_size,
            page_size: layout.page_size,
            table: layout.table.0,
            table_version: layout.table_version.0,
            stripe_width: layout.stripe_width,
            seed: layout.seed,
        }
    }
}

impl TryFrom<&pb::LayoutMsg> for Layout {
    type Error = Error;

    fn try_from(msg: &pb::LayoutMsg) -> Result<Self> {
        let layout = Self {
            chunk_size: msg.chunk_size,
            page_size: msg.page_size,
            table: ChainTableId(msg.table),
            table_version: ChainTableVersion(msg.table_version),
            stripe_width: msg.stripe_width,
            seed: msg.seed,
        };
        layout.validate()?;
        Ok(layout)
    }
}

impl From<SystemTime> for pb::Time {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Self {
                seconds: after.as_secs() as i64,
                nanos: after.subsec_nanos(),
            },
            Err(before) => {
                let before = before.duration();
                let whole = before.as_secs() as i64;
                match before.subsec_nanos() {
                    0 => Self {
                        // The first second of all has no opposite, and is itself here.
                        seconds: whole.wrapping_neg(),
                        nanos: 0,
                    },
                    nanos => Self {
                        seconds: -whole - 1,
                        nanos: 1_000_000_000 - nanos,
                    },
                }
            }
        }
    }
}

impl From<pb::Time> for SystemTime {
    fn from(time: pb::Time) -> Self {
        let nanos = Duration::from_nanos(u64::from(time.nanos));
        if time.seconds >= 0 {
            UNIX_EPOCH + Duration::from_secs(time.seconds as u64) + nanos
        } else {
            UNIX_EPOCH - Duration::from_secs(time.seconds.unsigned_abs()) + nanos
        }
    }
}

impl From<WriteTag> for pb::Tag {
    fn from(tag: WriteTag) -> Self {
        Self {
            client: tag.client.to_bytes(),
            channel: tag.channel,
            sequence: tag.sequence,
        }
    }
}

impl TryFrom<&pb::Tag> for WriteTag {
    type Error = Error;

    fn try_from(tag: &pb::Tag) -> Result<Self> {
        let client = ClientId::from_bytes(&tag.client).ok_or_else(|| malformed("client id"))?;
        Ok(Self {
            client,
            channel: tag.channel,
            sequence: tag.sequence,
        })
    }
}

impl pb::ChainRef {
    /// Names `chain` as of `version`.
    pub fn of(chain: ChainId, version: ChainVersion) -> Self {
        Self {
            chain: chain.0,
            version: version.0,
        }
    }
}

impl pb::WriteRequest {
    /// The chunk that this write is about.
    pub fn key(&self) -> ChunkKey {
        ChunkKey::new(self.inode, self.index)
    }
}

/// A field that must be there, or a [`ErrorCode::InvalidArgument`] naming it.
pub fn required<'a, T>(field: Option<&'a T>, name: &str) -> Result<&'a T> {
    field.ok_or_else(|| malformed(name))
}

/// The chunk key in a `bytes` field.
pub fn chunk_key(bytes: &Bytes) -> Result<ChunkKey> {
    ChunkKey::decode(bytes).ok_or_else(|| malformed("chunk key"))
}

fn malformed(name: &str) -> Error {
    let what =
        format!("the request's {name} is missing or malformed; the peer is not an EmberFS client");
    Error::new(ErrorCode::InvalidArgument, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_ends_of_time_round_trip() {
        for seconds in [i64::MIN, i64::MIN + 1, i64::MAX] {
            for nanos in [0, 1, 999_999_999] {
                let time = pb::Time { seconds, nanos };
                assert_eq!(pb::Time::from(SystemTime::from(time)), time);
            }
        }
    }

    proptest! {
        #[test]
        fn times_round_trip(seconds in -10_000_000_000i64..10_000_000_000, nanos in 0u32..1_000_000_000) {
            let time = pb::Time { seconds, nanos };
            prop_assert_eq!(pb::Time::from(SystemTime::from(time)), time);
        }

        #[test]
        fn layouts_round_trip(chunk in 16u32..27, page in 12u32..17, table: u32, version: u32, stripe_width in 1u32.., seed: u64) {
            let layout = Layout {
                chunk_size: 1 << chunk,
                page_size: 1 << page,
                table: ChainTableId(table),
                table_version: ChainTableVersion(version),
                stripe_width,
                seed,
            };
            prop_assert_eq!(Layout::try_from(&pb::LayoutMsg::from(layout)), Ok(layout));
        }
    }
}
