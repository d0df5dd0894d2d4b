//! One I/O that the kernel has: what its completion means, and how its caller is answered.

use std::io;

use super::IoJob;
use crate::engine::lane::Job;

/// A job that was handed to the kernel.
pub(super) struct Flight {
    pub(super) job: Job<IoJob>,
    /// Bytes that are done.
    pub(super) done: usize,
}

impl Flight {
    pub(super) fn new(job: Job<IoJob>) -> Self {
        Self { job, done: 0 }
    }

    /// What a completion means; `None`: ask the kernel for the rest.
    pub(super) fn progress(&mut self, result: i32) -> Option<io::Result<()>> {
        if result < 0 {
            let error = io::Error::from_raw_os_error(-result);
            return match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => None,
                _ => Some(Err(error)),
            };
        }
        let len = match &self.job.work {
            IoJob::Read { buf, .. } => buf.len(),
            IoJob::Write { write, .. } => write.data.len(),
            IoJob::Flush { .. } | IoJob::Stop => 0,
        };
        self.done += result as usize;
        if self.done >= len {
            Some(Ok(()))
        } else if result == 0 {
            Some(Err(io::ErrorKind::UnexpectedEof.into()))
        } else {
            None
        }
    }
}

/// Answers a job. A caller that went away needs none.
pub(super) fn finish(job: IoJob, result: io::Result<()>) {
    match job {
        IoJob::Read {
            buf, pin, reply, ..
        } => {
            drop(pin);
            let _ = reply.send(result.map(|()| buf));
        }
        IoJob::Write {
            pin, gate, reply, ..
        } => {
            drop((pin, gate));
            let _ = reply.send(result);
        }
        IoJob::Flush { reply, .. } => {
            let _ = reply.send(result);
        }
        IoJob::Stop => {}
    }
}

/// Answers a job that the kernel may still be working on: its memory and its block are never
/// used again.
pub(super) fn abandon(job: IoJob, error: io::Error) {
    match job {
        IoJob::Read {
            buf, pin, reply, ..
        } => {
            std::mem::forget((buf, pin));
            let _ = reply.send(Err(error));
        }
        IoJob::Write {
            write,
            pin,
            gate,
            reply,
            ..
        } => {
            std::mem::forget((write, pin, gate));
            let _ = reply.send(Err(error));
        }
        job => finish(job, Err(error)),
    }
}

/// For another who shares the result.
pub(super) fn same_error(error: &io::Error) -> io::Error {
    error
        .raw_os_error()
        .map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}
