//! The inside of a process that outlives the verb that started it.
//!
//! It leads its own session, so no terminal takes it along. It holds a lock on `STEM.pid` until it
//! ends, however it ends, which is how others know that it runs (`process.rs`). Its standard output
//! is a pipe to its starter until it is ready.

use std::fmt::Display;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;

use crate::failure::{Context, Result, fail};
use crate::process::pid_path;

/// Others hold the lock for an instant when they look whether a process runs.
const LOCK_ATTEMPTS: u32 = 40;
/// Pause between attempts.
const LOCK_PAUSE: Duration = Duration::from_millis(25);

/// The process as a daemon; an ordinary foreground process without a stem.
#[derive(Debug)]
pub(crate) struct Daemon {
    pid: Option<(PathBuf, File)>,
}

/// Tells the starter that the service is up.
#[derive(Debug)]
pub(crate) struct ReadyNotice {
    daemon: bool,
}

impl Daemon {
    /// Becomes a daemon if `stem` says so. Fails if one with this stem runs already.
    pub(crate) fn enter(stem: Option<&Path>) -> Result<Self> {
        let Some(stem) = stem else {
            return Ok(Self { pid: None });
        };
        // Fails only for the leader of a process group, which is in no need of it.
        let _ = rustix::process::setsid();
        let path = pid_path(stem);
        let mut file = lock(&path)?;
        let mut write = || -> std::io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write().context(format!("cannot write {}", path.display()))?;
        Ok(Self {
            pid: Some((path, file)),
        })
    }

    /// What to call when the service is up.
    pub(crate) fn notice(&self) -> ReadyNotice {
        ReadyNotice {
            daemon: self.pid.is_some(),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some((path, _locked)) = &self.pid {
            // The lock is still held, so the file is ours and not a successor's.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl ReadyNotice {
    /// Sends `what` to the starter and lets go of its pipe.
    pub(crate) fn send(self, what: impl Display) {
        if !self.daemon {
            return;
        }
        let mut stdout = std::io::stdout();
        // A starter that was interrupted does not listen any more; the service goes on.
        let _ = writeln!(stdout, "{what}").and_then(|()| stdout.flush());
        let _ = rustix::stdio::dup2_stdout(std::io::stderr());
    }
}

/// Opens and locks the file that is at `path` when the lock is held.
fn lock(path: &Path) -> Result<File> {
    let what = || format!("cannot lock {}", path.display());
    for _ in 0..LOCK_ATTEMPTS {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path);
        let file = file.context(what())?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_at(&file, path) => return Ok(file),
            // Its owner removed it at its end, between our open and our lock.
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
            Err(error) => return Err(error).context(what()),
        }
    }
    fail(format!(
        "already running: its process is in {}",
        path.display()
    ))
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_process_per_pid_file_and_it_cleans_up() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let path = temp.path().join("x.pid");
        std::fs::write(&path, "left over by a killed process").expect("written");
        let file = lock(&path).expect("free");
        assert!(
            lock(&path)
                .expect_err("taken")
                .to_string()
                .contains("already running")
        );
        drop(Daemon {
            pid: Some((path.clone(), file)),
        });
        assert!(!path.exists());
        lock(&path).expect("free again");
    }
}
