//! Turns I/O failures into answers, and remembers what they say about the disk.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use emberfs_proto::{Error, ErrorCode, Result};
use parking_lot::Mutex;

use super::types::{DiskHealth, DiskState};

/// Health of one disk, shared by its threads.
pub(super) struct Health {
    disk: PathBuf,
    state: Mutex<(DiskState, Option<String>)>,
    read_errors: AtomicU64,
    write_errors: AtomicU64,
    checksum_mismatches: AtomicU64,
}

impl Health {
    pub(super) fn new(disk: &Path) -> Self {
        Self {
            disk: disk.to_owned(),
            state: Mutex::default(),
            read_errors: AtomicU64::new(0),
            write_errors: AtomicU64::new(0),
            checksum_mismatches: AtomicU64::new(0),
        }
    }

    /// The directory, for messages.
    pub(super) fn disk(&self) -> impl Display + '_ {
        self.disk.display()
    }

    /// Refuses writes on a disk that lost its trust.
    pub(super) fn writable(&self) -> Result<()> {
        let state = self.state.lock();
        let code = match state.0 {
            DiskState::Healthy => return Ok(()),
            DiskState::ReadOnly => ErrorCode::DiskReadOnly,
            DiskState::Failed => ErrorCode::DiskError,
        };
        let reason = state.1.as_deref().unwrap_or("unknown");
        let what = format!(
            "disk {} takes no writes: {reason}; replace the disk",
            self.disk()
        );
        Err(Error::new(code, what))
    }

    /// Marks the disk as failed; the first reason stays.
    pub(super) fn fail(&self, reason: &str) {
        self.degrade(DiskState::Failed, reason);
    }

    fn degrade(&self, to: DiskState, reason: &str) {
        let mut state = self.state.lock();
        if state.0 == DiskState::Healthy
            || (state.0 == DiskState::ReadOnly && to == DiskState::Failed)
        {
            tracing::error!(disk = %self.disk(), state = ?to, reason, "disk taken out of service");
            *state = (to, Some(reason.to_owned()));
        }
    }

    /// A read failed. The disk stays in service: another replica has the bytes.
    pub(super) fn read_failed(&self, what: impl Display, error: &io::Error) -> Error {
        self.read_errors.fetch_add(1, Ordering::Relaxed);
        let what = format!("disk {}: reading {what}: {error}", self.disk());
        tracing::warn!("{what}");
        Error::new(ErrorCode::DiskError, what)
    }

    /// A write, allocation or flush failed. A full disk harms nothing; anything else means that
    /// what is on the disk is uncertain.
    pub(super) fn write_failed(&self, what: impl Display, error: &io::Error) -> Error {
        let message = format!("disk {}: writing {what}: {error}", self.disk());
        let code = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                return Error::new(ErrorCode::NoSpace, message);
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                self.degrade(DiskState::ReadOnly, &message);
                ErrorCode::DiskReadOnly
            }
            _ => {
                self.fail(&message);
                ErrorCode::DiskError
            }
        };
        self.write_errors.fetch_add(1, Ordering::Relaxed);
        Error::new(code, message)
    }

    /// The index could not be written: whether the record is there is uncertain.
    pub(super) fn index_failed(&self, error: &rocksdb::Error) -> Error {
        self.write_errors.fetch_add(1, Ordering::Relaxed);
        let what = format!("disk {}: writing the index: {error}", self.disk());
        self.fail(&what);
        Error::new(ErrorCode::DiskError, what)
    }

    /// Stored bytes do not match their checksum.
    pub(super) fn mismatch(&self, what: impl Display) -> Error {
        self.checksum_mismatches.fetch_add(1, Ordering::Relaxed);
        let what = format!(
            "disk {}: {what}: stored bytes do not match their checksum; read another replica",
            self.disk()
        );
        tracing::error!("{what}");
        Error::new(ErrorCode::ChecksumMismatch, what)
    }

    /// What an administrator sees.
    pub(super) fn report(&self) -> DiskHealth {
        let (state, reason) = self.state.lock().clone();
        DiskHealth {
            state,
            reason,
            read_errors: self.read_errors.load(Ordering::Relaxed),
            write_errors: self.write_errors.load(Ordering::Relaxed),
            checksum_mismatches: self.checksum_mismatches.load(Ordering::Relaxed),
        }
    }
}
