//! The frame format, byte by byte.
//!
//! ```text
//!  0  u32  magic 0x53464D45 ("EMFS")        32  u32  deadline: milliseconds left, 0 = none
//!  4  u8   version                          36  u8   hop class
//!  5  u8   kind: 1 request, 2 reply         37  u8   flags, zero
//!  6  u16  opcode                           38  u16  reserved, zero
//!  8  u64  request id                       40  u64  trace id
//! 16  u32  status: 0 or an error code       48  12 bytes reserved, zero
//! 20  u32  body length                      60  u32  CRC-32 of bytes 0..60
//! 24  u32  payload length                   then body, then payload
//! 28  u32  CRC-32 of the body
//! ```
//! All integers are little-endian. The payload is covered by the fragment checksums in the body.

use crate::checksum::crc32;
use crate::error::{Error, ErrorCode, Result};
use crate::layout::MAX_CHUNK_SIZE;

/// Header length, bytes.
pub const HEADER_LEN: usize = 64;
/// Largest body, bytes. A batch read of a thousand ranges fits several times.
pub const MAX_BODY: u32 = 1 << 20;
/// Largest payload, bytes: the largest chunk.
pub const MAX_PAYLOAD: u32 = MAX_CHUNK_SIZE;

const MAGIC: u32 = u32::from_le_bytes(*b"EMFS");

macro_rules! opcodes {
    ($($(#[$meta:meta])* $name:ident = $code:literal;)+) => {
        /// What a request asks for. The bodies are in storage.proto, unless said otherwise. Numbers are never reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Opcode { $($(#[$meta])* $name = $code,)+ }

        impl Opcode {
            /// The opcode with this number, if there is one.
            pub fn from_number(number: u16) -> Option<Self> {
                match number { $($code => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

opcodes! {
    /** First request of every connection: version and cluster. */ Hello = 1;
    /** A method of the metadata service, see [`super::metadata`]. */ Metadata = 2;
    /** Read ranges of chunks. */ Read = 10;
    /** A client's write, truncate or remove of a chunk, to the head. */ Write = 11;
    /** End of an inode's data on one chain. */ LastChunk = 12;
    /** Cut or remove an inode's chunks on one chain. */ Trim = 13;
    /** Which chunks of an inode hold bytes on one chain. */ InodeChunks = 14;
    /** A write on its way along the chain. */ Forward = 20;
    /** A replica asks the tail which version is committed. */ QueryVersion = 21;
    /** What a SYNCING target holds. */ SyncList = 22;
    /** The resync of a target is complete. */ SyncDone = 23;
    /** Bytes of one version, to repair another replica. */ Fetch = 24;
}

/// Request or reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request.
    Request,
    /// Its answer.
    Reply,
}

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Protocol version of the connection.
    pub version: u8,
    /// Request or reply.
    pub kind: Kind,
    /// What is asked.
    pub opcode: Opcode,
    /// Chosen by the caller, repeated in the reply.
    pub request_id: u64,
    /// Replies: 0, or the number of an [`ErrorCode`]; the body is then an `ErrorBody`.
    pub status: u32,
    /// Body length, bytes.
    pub body_len: u32,
    /// Payload length, bytes.
    pub payload_len: u32,
    /// CRC-32 of the body.
    pub body_crc: u32,
    /// Requests: time left, milliseconds.
    pub deadline_ms: u32,
    /// Requests: hop class, see [`super::Call::hop`].
    pub hop: u8,
    /// For following one request through logs.
    pub trace_id: u64,
}

impl Header {
    /// The 64 bytes on the wire.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        let kind = match self.kind {
            Kind::Request => 1,
            Kind::Reply => 2,
        };
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4] = self.version;
        out[5] = kind;
        out[6..8].copy_from_slice(&(self.opcode as u16).to_le_bytes());
        out[8..16].copy_from_slice(&self.request_id.to_le_bytes());
        out[16..20].copy_from_slice(&self.status.to_le_bytes());
        out[20..24].copy_from_slice(&self.body_len.to_le_bytes());
        out[24..28].copy_from_slice(&self.payload_len.to_le_bytes());
        out[28..32].copy_from_slice(&self.body_crc.to_le_bytes());
        out[32..36].copy_from_slice(&self.deadline_ms.to_le_bytes());
        out[36] = self.hop;
        out[40..48].copy_from_slice(&self.trace_id.to_le_bytes());
        let crc = crc32(&out[..60]);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Decodes and checks a header; [`ErrorCode::Protocol`] for anything that is not one.
    /// After this the lengths are within the limits.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self> {
        let u32_at = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if u32_at(0) != MAGIC {
            return bad("the peer does not speak the EmberFS data protocol (bad magic)");
        }
        if u32_at(60) != crc32(&bytes[..60]) {
            return bad("frame header damaged in transit (checksum mismatch)");
        }
        let kind = match bytes[5] {
            1 => Kind::Request,
            2 => Kind::Reply,
            _ => return bad("unknown frame kind"),
        };
        let Some(opcode) = Opcode::from_number(u16::from_le_bytes([bytes[6], bytes[7]])) else {
            return bad("unknown opcode; the peer is newer than this build");
        };
        let header = Self {
            version: bytes[4],
            kind,
            opcode,
            request_id: u64_at(8),
            status: u32_at(16),
            body_len: u32_at(20),
            payload_len: u32_at(24),
            body_crc: u32_at(28),
            deadline_ms: u32_at(32),
            hop: bytes[36],
            trace_id: u64_at(40),
        };
        if header.body_len > MAX_BODY || header.payload_len > MAX_PAYLOAD {
            return bad("frame larger than the protocol's limits");
        }
        Ok(header)
    }
}

fn bad<T>(what: &str) -> Result<T> {
    Err(Error::new(ErrorCode::Protocol, what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> impl Strategy<Value = Header> {
        let opcodes = vec![
            Opcode::Hello,
            Opcode::Read,
            Opcode::InodeChunks,
            Opcode::Forward,
        ];
        let opcodes = prop::sample::select(opcodes);
        let kinds = prop::sample::select(vec![Kind::Request, Kind::Reply]);
        (
            opcodes,
            kinds,
            any::<(u8, u64, u32, u32, u32, u8, u64)>(),
            0..=MAX_BODY,
            0..=MAX_PAYLOAD,
        )
            .prop_map(|(opcode, kind, x, body_len, payload_len)| Header {
                version: x.0,
                kind,
                opcode,
                request_id: x.1,
                status: x.2,
                body_len,
                payload_len,
                body_crc: x.3,
                deadline_ms: x.4,
                hop: x.5,
                trace_id: x.6,
            })
    }

    proptest! {
        #[test]
        fn headers_round_trip(header in header()) {
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn any_flipped_bit_is_refused(header in header(), bit in 0usize..HEADER_LEN * 8) {
            let mut bytes = header.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Header::decode(&bytes).unwrap_err().code, ErrorCode::Protocol);
        }

        #[test]
        fn random_bytes_are_refused(bytes: [[u8; 32]; 2]) {
            let bytes: [u8; 64] = bytes.concat().try_into().unwrap();
            prop_assert_eq!(Header::decode(&bytes).unwrap_err().code, ErrorCode::Protocol);
        }
    }

    #[test]
    fn opcodes_keep_their_numbers() {
        for (number, opcode) in [
            (10, Opcode::Read),
            (11, Opcode::Write),
            (12, Opcode::LastChunk),
            (13, Opcode::Trim),
            (14, Opcode::InodeChunks),
        ] {
            assert_eq!(Opcode::from_number(number), Some(opcode));
            assert_eq!(opcode as u16, number);
        }
        assert_eq!(Opcode::from_number(15), None);
    }

    #[test]
    fn oversized_lengths_are_refused() {
        let good = Header {
            version: 1,
            kind: Kind::Request,
            opcode: Opcode::Read,
            request_id: 1,
            status: 0,
            body_len: 0,
            payload_len: 0,
            body_crc: 0,
            deadline_ms: 0,
            hop: 0,
            trace_id: 0,
        };
        for bad in [
            Header {
                body_len: MAX_BODY + 1,
                ..good
            },
            Header {
                payload_len: MAX_PAYLOAD + 1,
                ..good
            },
        ] {
            assert_eq!(
                Header::decode(&bad.encode()).unwrap_err().code,
                ErrorCode::Protocol
            );
        }
    }
}
