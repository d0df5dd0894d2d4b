//! One error type for every wire: a stable code, a retry class, a sentence for people.
//!
//! The tables in this file are the only place where a code becomes an errno, a gRPC
//! status or a retry decision; a test visits every code.

use std::fmt;

/// What the caller should do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryClass {
    /// Permanent: the same request fails again.
    Never,
    /// Try again at once after refreshing the cluster map.
    RefreshMap,
    /// Try again after a back-off; the server is alive and asks for time.
    BackOff,
    /// Try another replica, or the same server after a reconnect; the request may have been carried out.
    Reconnect,
}

macro_rules! codes {
    ($($(#[$meta:meta])* $name:ident = $code:literal, $retry:ident, $errno:literal;)+) => {
        /// Stable error codes, grouped by thousands per subsystem. Numbers are never reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum ErrorCode { $($(#[$meta])* $name = $code,)+ }

        impl ErrorCode {
            /// Every code, for exhaustive tests.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The code with this number; an unknown number (a newer peer) is [`Self::Internal`].
            pub fn from_number(number: u32) -> Self {
                match number { $($code => Self::$name,)+ _ => Self::Internal }
            }

            /// What the caller should do.
            pub fn retry(self) -> RetryClass {
                match self { $(Self::$name => RetryClass::$retry,)+ }
            }

            /// The Linux errno that a file system call reports.
            pub fn errno(self) -> i32 {
                match self { $(Self::$name => $errno,)+ }
            }

            /// The code's name, as logs and JSON print it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }
        }
    };
}

codes! {
    // 1000: general
    /** A bug or an unknown code of a newer peer. */ Internal = 1000, Never, 5;
    /** The request makes no sense. */ InvalidArgument = 1001, Never, 22;
    /** The deadline passed before an answer came. */ DeadlineExceeded = 1002, Never, 110;
    /** The connection failed or the peer refused it. */ Unreachable = 1003, Reconnect, 110;
    /** The peer sent bytes that are no valid frame or message. */ Protocol = 1004, Reconnect, 71;
    /** The peers speak no common protocol version. */ IncompatibleVersion = 1005, Never, 71;
    /** The peer belongs to another cluster. */ WrongCluster = 1006, Never, 71;
    /** Overloaded; wait and try again. */ Busy = 1007, BackOff, 11;
    /** The server is stopping or not yet ready. */ Unavailable = 1008, BackOff, 11;
    /** This server does not offer the operation. */ Unsupported = 1009, Never, 95;
    /** A later process acts as this client: this one must not go on. */ Superseded = 1010, Never, 5;

    // 2000: namespace
    /** No such file or directory. */ NotFound = 2000, Never, 2;
    /** The name exists. */ Exists = 2001, Never, 17;
    /** A component is not a directory. */ NotDirectory = 2002, Never, 20;
    /** The operation needs a non-directory. */ IsDirectory = 2003, Never, 21;
    /** The directory is not empty. */ NotEmpty = 2004, Never, 39;
    /** The name is longer than 255 bytes. */ NameTooLong = 2005, Never, 36;
    /** The file would exceed the maximum size. */ FileTooLarge = 2006, Never, 27;
    /** Too many hard links. */ TooManyLinks = 2007, Never, 31;
    /** Permission bits forbid it. */ PermissionDenied = 2008, Never, 13;
    /** Only the owner or root may. */ NotPermitted = 2009, Never, 1;
    /** The inode was deleted under the caller. */ Stale = 2010, Never, 116;
    /** The mount or the cluster is read-only. */ ReadOnly = 2011, Never, 30;
    /** The write session does not exist any more. */ NoSession = 2012, Never, 9;
    /** Too many levels of symbolic links. */ Loop = 2013, Never, 40;
    /** The attribute does not exist. */ NoAttribute = 2014, Never, 61;
    /** The two names are on different file systems. */ CrossDevice = 2015, Never, 18;
    /** The file is a program that is running. */ TextBusy = 2016, Never, 26;
    /** Nothing of the file lies at the offset or behind it. */ BeyondEnd = 2030, Never, 6;
    /** A quota of the directory, the owner or the group leaves no room. */ QuotaExceeded = 2040, Never, 122;
    /** Another client has to report first what it wrote, to the inode in `newer_version`. Never leaves the metadata server. */ Delegated = 2050, BackOff, 11;
    /** What was changed and not synced was lost with the metadata server's power. */ ChangesLost = 2060, Never, 5;
    /** The value of an attribute is too large. */ ValueTooLarge = 2020, Never, 7;

    // 3000: transactional key-value store
    /** Another transaction won; run it again. */ Conflict = 3000, BackOff, 11;
    /** The transaction outlived its five seconds. */ TransactionTooOld = 3001, BackOff, 11;
    /** The transaction exceeds a size limit. */ TransactionTooLarge = 3002, Never, 7;
    /** The commit may or may not have happened. */ MaybeCommitted = 3003, Reconnect, 5;
    /** Not in memory; ask the disk. Never leaves the metadata server. */ NotCached = 3004, Never, 6;

    // 4000: cluster manager
    /** The node is not registered, or under another incarnation. */ UnknownNode = 4000, Never, 6;
    /** Another process runs under this node id. */ NodeConflict = 4001, Never, 16;
    /** Not enough nodes or disks for the replication asked for. */ NotEnoughNodes = 4002, Never, 28;
    /** There are no chains yet. */ NoChains = 4003, BackOff, 11;
    /** This manager is not the primary. */ NotPrimary = 4004, RefreshMap, 11;
    /** The metadata store is older than what its cluster has seen: it was restored from an old copy. */ MetadataTooOld = 4010, Never, 5;

    // 5000: chain replication
    /** The request was made under another chain version. */ StaleChainVersion = 5000, RefreshMap, 11;
    /** The target is not SERVING here, or is not here at all. */ NotServing = 5001, RefreshMap, 11;
    /** This node's lease has run out. */ LeaseExpired = 5002, RefreshMap, 11;
    /** A client write reached a target that is not the head. */ NotHead = 5003, RefreshMap, 11;
    /** No target of the chain can serve. */ ChainUnavailable = 5004, RefreshMap, 11;
    /** A newer write of the same channel was seen: the caller's numbering is broken. */ StaleSequence = 5005, Never, 5;
    /** A replica is ahead of the forwarded version by more than one write. */ MissingVersion = 5006, RefreshMap, 11;
    /** Replicas disagree about a chunk's bytes. */ ReplicaMismatch = 5007, RefreshMap, 5;

    // 6000: chunk engine
    /** The chunk does not exist (a hole). */ ChunkNotFound = 6000, Never, 2;
    /** The disk is full. */ NoSpace = 6001, Never, 28;
    /** Stored bytes do not match their checksum. */ ChecksumMismatch = 6002, Reconnect, 5;
    /** The disk reported an error. */ DiskError = 6003, Reconnect, 5;
    /** The disk went read-only. */ DiskReadOnly = 6004, Reconnect, 30;
    /** The disk directory belongs to another cluster or node, or is damaged. */ ForeignDisk = 6005, Never, 5;
    /** The chunk is already past the version of the request. */ StaleChunkVersion = 6006, Never, 116;
    /** The chunk holds another write that is neither committed nor replaced yet. */ PendingExists = 6007, BackOff, 11;

    // 7000: locks
    /** Another owner holds a lock that is in the way, and the request does not wait. */ LockHeld = 7000, Never, 11;
    /** Waiting for this lock would never end: its owners wait for each other. */ Deadlock = 7001, Never, 35;
    /** The client or the file has as many locks, or waiting requests, as it may have. */ TooManyLocks = 7002, Never, 37;
    /** The owner's locks on this file went to others while the client was cut off. */ LockLost = 7003, Never, 5;
    /** The client must attach, and say which locks it holds, before it asks for one. */ NoTenure = 7004, BackOff, 11;
}

/// An error as it crosses a wire: code, sentence, and where useful a hint for the retry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What class of failure.
    pub code: ErrorCode,
    /// What failed, where, and what to do; one line.
    pub message: String,
    /// With [`ErrorCode::Busy`]: do not come back earlier than this, in milliseconds.
    pub retry_after_ms: u32,
    /// With [`ErrorCode::StaleChainVersion`] and [`ErrorCode::TransactionTooOld`]: the newer version known to the peer. With
    /// [`ErrorCode::Delegated`]: the inode.
    pub newer_version: u64,
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with a message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retry_after_ms: 0,
            newer_version: 0,
        }
    }

    /// Adds the earliest time to retry.
    #[must_use]
    pub fn retry_after_ms(mut self, ms: u32) -> Self {
        self.retry_after_ms = ms;
        self
    }

    /// Adds the newer version that the peer should fetch.
    #[must_use]
    pub fn newer_version(mut self, version: u64) -> Self {
        self.newer_version = version;
        self
    }

    /// Prefixes the message with what was being done.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// What the caller should do.
    pub fn retry(&self) -> RetryClass {
        self.code.retry()
    }

    /// The Linux errno that a file system call reports.
    pub fn errno(&self) -> i32 {
        self.code.errno()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code.name())
    }
}

impl std::error::Error for Error {}

/// Metadata key of the gRPC trailer that carries the stable code.
const CODE_KEY: &str = "emberfs-code";
/// Metadata key of the retry hint.
const RETRY_AFTER_KEY: &str = "emberfs-retry-after-ms";
/// Metadata key of the newer version.
const NEWER_VERSION_KEY: &str = "emberfs-newer-version";

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        use tonic::Code;
        let grpc = match error.code {
            ErrorCode::InvalidArgument | ErrorCode::NameTooLong | ErrorCode::ValueTooLarge => {
                Code::InvalidArgument
            }
            ErrorCode::NotFound | ErrorCode::ChunkNotFound | ErrorCode::NoAttribute => {
                Code::NotFound
            }
            ErrorCode::Exists => Code::AlreadyExists,
            ErrorCode::PermissionDenied | ErrorCode::NotPermitted => Code::PermissionDenied,
            ErrorCode::DeadlineExceeded => Code::DeadlineExceeded,
            ErrorCode::Unsupported => Code::Unimplemented,
            ErrorCode::NoSpace | ErrorCode::QuotaExceeded => Code::ResourceExhausted,
            ErrorCode::Internal => Code::Internal,
            code if code.retry() == RetryClass::Never => Code::FailedPrecondition,
            _ => Code::Unavailable,
        };
        let mut status = Self::new(grpc, error.message);
        let metadata = status.metadata_mut();
        metadata.insert(CODE_KEY, (error.code as u32).into());
        metadata.insert(RETRY_AFTER_KEY, error.retry_after_ms.into());
        metadata.insert(NEWER_VERSION_KEY, error.newer_version.into());
        status
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        fn number(status: &tonic::Status, key: &str) -> Option<u64> {
            status.metadata().get(key)?.to_str().ok()?.parse().ok()
        }
        let code = match number(&status, CODE_KEY) {
            Some(code) => ErrorCode::from_number(u32::try_from(code).unwrap_or(0)),
            // No code of ours: the transport itself failed.
            None => match status.code() {
                tonic::Code::Unimplemented => ErrorCode::Unsupported,
                tonic::Code::DeadlineExceeded => ErrorCode::DeadlineExceeded,
                _ => ErrorCode::Unreachable,
            },
        };
        Self {
            code,
            retry_after_ms: number(&status, RETRY_AFTER_KEY).unwrap_or(0) as u32,
            newer_version: number(&status, NEWER_VERSION_KEY).unwrap_or(0),
            message: status.message().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_code_has_its_own_number_and_survives_grpc() {
        let mut seen = HashSet::new();
        for &code in ErrorCode::ALL {
            assert!(seen.insert(code as u32), "{code:?} reuses a number");
            assert_eq!(ErrorCode::from_number(code as u32), code);
            assert!(code.errno() > 0, "{code:?} has no errno");
            let error = Error::new(code, "what, where, what next")
                .retry_after_ms(7)
                .newer_version(9);
            assert_eq!(Error::from(tonic::Status::from(error.clone())), error);
        }
    }

    #[test]
    fn attributes_fail_with_linux_errnos() {
        assert_eq!(ErrorCode::NoAttribute.errno(), 61, "ENODATA");
        assert_eq!(ErrorCode::ValueTooLarge.errno(), 7, "E2BIG");
        assert_eq!(ErrorCode::Unsupported.errno(), 95, "EOPNOTSUPP");
        assert_eq!(ErrorCode::ValueTooLarge.retry(), RetryClass::Never);
    }

    #[test]
    fn an_exceeded_quota_is_told_from_a_full_disk() {
        assert_eq!(ErrorCode::QuotaExceeded.errno(), 122, "EDQUOT");
        assert_eq!(ErrorCode::QuotaExceeded.retry(), RetryClass::Never);
    }

    #[test]
    fn a_code_from_a_newer_peer_is_internal_and_not_retried() {
        assert_eq!(ErrorCode::from_number(999_999), ErrorCode::Internal);
        assert_eq!(ErrorCode::Internal.retry(), RetryClass::Never);
    }

    #[test]
    fn lock_errors_are_what_fcntl_and_flock_report() {
        for (code, errno, retry) in [
            (ErrorCode::LockHeld, 11, RetryClass::Never),
            (ErrorCode::Deadlock, 35, RetryClass::Never),
            (ErrorCode::TooManyLocks, 37, RetryClass::Never),
            (ErrorCode::LockLost, 5, RetryClass::Never),
            (ErrorCode::NoTenure, 11, RetryClass::BackOff),
        ] {
            assert_eq!((code.errno(), code.retry()), (errno, retry), "{code:?}");
        }
    }

    #[test]
    fn a_bare_transport_failure_is_retried_elsewhere() {
        let error = Error::from(tonic::Status::unavailable("connection refused"));
        assert_eq!(error.code, ErrorCode::Unreachable);
        assert_eq!(error.retry(), RetryClass::Reconnect);
    }
}
