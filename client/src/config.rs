//! What a client can be told.

use std::time::Duration;

use emberfs_proto::ids::ClusterId;

use crate::Identity;

/// What a read of a part of a checksum page is checked against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// The storage server reads the whole page and compares it with the checksum that its writer computed.
    #[default]
    Page,
    /// It reads only the sectors of the range and computes a checksum of what it sends: the way is checked,
    /// the disk is not, until the next scrub. For small random reads whose rate counts more.
    /// Whole pages are checked as always.
    Transfer,
}

/// Settings of a [`crate::Client`].
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `host:port` of the metadata server.
    pub meta: String,
    /// The cluster that must answer; `None` accepts any.
    pub cluster: Option<ClusterId>,
    /// How long one call may wait for servers that are down, moving or busy. `None`: for ever, with
    /// a warning in the log now and then (what a mount wants).
    pub io_timeout: Option<Duration>,
    /// How long [`crate::Client::connect`] waits for the metadata server and the first cluster map.
    pub connect_timeout: Duration,
    /// Data connections per storage node.
    pub connections_per_node: usize,
    /// Reads, of a hundred, that may also be asked of a second replica because the first one is slow.
    /// 5 by default; 0 turns that off.
    pub hedge_percent: u32,
    /// A read is asked of a second replica when it has waited longer than 95 of 100 recent reads of about
    /// its size did; but never earlier than this. 5 ms by default.
    pub hedge_after_min: Duration,
    /// As [`Self::hedge_after_min`]: and at the latest after this, which is also the wait while
    /// nothing is known yet. One second by default.
    pub hedge_after_max: Duration,
    /// How parts of pages are checked.
    pub verify: Verify,
    /// Most bytes that the sequential streams of one file read ahead together. 0 turns read-ahead off.
    pub read_ahead_bytes: usize,
    /// Bytes of read-ahead and of buffered writes together; half belongs to each.
    pub memory_bytes: usize,
    /// How long a write may stay buffered here before it is sent, and a length before it is reported.
    pub write_back: Duration,
    /// Who this is, for people: shown by `emberfs status` as `host:pid`.
    pub host: String,
    /// Who this is, to servers, where a client outlives its processes. `None`: a client of its own.
    pub identity: Option<Identity>,
    /// A buffered write keeps the [`bytes::Bytes`] that it was made of until its chain has it, or it is discarded: for
    /// callers whose memory somebody else reads if this process dies. Otherwise small ones are copied and dropped
    /// at once.
    pub keep_pieces: bool,
    /// Whether to ask for delegations of new files, see [`crate::File::may_close_late`]. They need [`crate::Client::watch`].
    pub delegations: bool,
}

impl Default for ClientConfig {
    fn default() -> Self {
        let host = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        Self {
            meta: "127.0.0.1:7400".to_owned(),
            cluster: None,
            io_timeout: Some(Duration::from_mins(2)),
            connect_timeout: Duration::from_secs(30),
            connections_per_node: 4,
            hedge_percent: 5,
            hedge_after_min: Duration::from_millis(5),
            hedge_after_max: Duration::from_secs(1),
            verify: Verify::Page,
            read_ahead_bytes: 32 << 20,
            memory_bytes: 256 << 20,
            write_back: Duration::from_secs(5),
            host: format!("{host}:{}", std::process::id()),
            identity: None,
            keep_pieces: false,
            delegations: false,
        }
    }
}
