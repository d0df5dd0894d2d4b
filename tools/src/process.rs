//! Processes of a cluster on this host, seen from outside.
//!
//! A process holds a lock on its pid file for as long as it lives (`daemon.rs` takes it), so "is it
//! running" is a question to the kernel and never a guess from a number that another process may
//! have by now. Signals go through a pidfd that is opened while the lock is known to be held.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::failure::{Context, Result, fail};

/// How long a process that holds its lock may take to write its pid.
const PID_WRITE_WAIT: Duration = Duration::from_secs(1);
/// Pause between looks at a pid file that is not written yet.
const PID_WRITE_POLL: Duration = Duration::from_millis(10);
/// How long a killed process may take to disappear (it may be writing a core dump).
const KILL_WAIT: Duration = Duration::from_secs(10);

/// A process by its name and its pid file.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    name: String,
    stem: PathBuf,
}

/// A process that was running a moment ago.
#[derive(Debug)]
pub(crate) struct Running {
    pid: Pid,
    fd: OwnedFd,
}

/// How [`Process::stop`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// There was nothing to stop.
    NotRunning,
    /// It ended by itself when asked.
    Cleanly,
    /// It had to be killed.
    Killed,
}

impl Process {
    /// `stem` is the path of pid file and log without their extensions.
    pub(crate) fn new(name: impl Into<String>, stem: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            stem: stem.into(),
        }
    }

    /// For people.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What pid file and log have in common.
    pub(crate) fn stem(&self) -> &Path {
        &self.stem
    }

    /// The pid file.
    pub(crate) fn pid_path(&self) -> PathBuf {
        pid_path(&self.stem)
    }

    /// The log.
    pub(crate) fn log_path(&self) -> PathBuf {
        with_suffix(&self.stem, ".log")
    }

    /// The process, if it runs.
    pub(crate) async fn running(&self) -> Result<Option<Running>> {
        let path = self.pid_path();
        let deadline = tokio::time::Instant::now() + PID_WRITE_WAIT;
        loop {
            let mut file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return fail(format!("cannot read {}: {error}", path.display())),
            };
            if !is_locked(&file).context(format!("cannot lock {}", path.display()))? {
                return Ok(None);
            }
            let mut text = String::new();
            file.read_to_string(&mut text)
                .context(format!("cannot read {}", path.display()))?;
            let pid = text.trim().parse().ok().and_then(Pid::from_raw);
            if let Some(pid) = pid {
                match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
                    // Still locked after the pidfd is open: the pidfd is of the process that holds the lock.
                    Ok(fd) if is_locked(&file).unwrap_or(false) => {
                        return Ok(Some(Running { pid, fd }));
                    }
                    Ok(_) | Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => {}
                    Err(error) => {
                        return fail(format!(
                            "cannot watch process {}: {error}",
                            pid.as_raw_nonzero()
                        ));
                    }
                }
            }
            if tokio::time::Instant::now() > deadline {
                return fail(format!(
                    "{} is locked but names no process: delete it when nothing of EmberFS runs here",
                    path.display()
                ));
            }
            tokio::time::sleep(PID_WRITE_POLL).await;
        }
    }

    /// Asks the process to end, waits for `grace`, and kills it if it is still there.
    pub(crate) async fn stop(&self, grace: Duration) -> Result<Stopped> {
        let Some(running) = self.running().await? else {
            self.forget()?;
            return Ok(Stopped::NotRunning);
        };
        running.signal(Signal::TERM)?;
        // A stopped process would keep the signal pending for ever.
        running.signal(Signal::CONT)?;
        let mut how = Stopped::Cleanly;
        if !running.exits_within(grace).await? {
            eprintln!(
                "{} (process {}) did not stop within {} s: killing it; see {}",
                self.name,
                running.pid(),
                grace.as_secs(),
                self.log_path().display()
            );
            running.signal(Signal::KILL)?;
            if !running.exits_within(KILL_WAIT).await? {
                return fail(format!(
                    "{} (process {}) survives being killed: it hangs in the kernel; see `dmesg`",
                    self.name,
                    running.pid()
                ));
            }
            how = Stopped::Killed;
        }
        self.forget()?;
        Ok(how)
    }

    /// Removes the pid file of a process that is gone.
    pub(crate) fn forget(&self) -> Result<()> {
        let path = self.pid_path();
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                fail(format!("cannot delete {}: {error}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

impl Running {
    /// Its number.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sends a signal; fine if the process has just ended.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        match rustix::process::pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => fail(format!("cannot signal process {}: {error}", self.pid())),
        }
    }

    /// Waits for its end; false if that takes longer than `limit`.
    pub(crate) async fn exits_within(&self, limit: Duration) -> Result<bool> {
        let what = format!("cannot watch process {}", self.pid());
        let fd = self.fd.try_clone().context(&what)?;
        let limit = Timespec::try_from(limit).context(&what)?;
        let wait = tokio::task::spawn_blocking(move || {
            loop {
                let mut fds = [PollFd::new(&fd, PollFlags::IN)];
                match rustix::event::poll(&mut fds, Some(&limit)) {
                    Err(rustix::io::Errno::INTR) => {}
                    outcome => return outcome,
                }
            }
        });
        Ok(wait.await.context(&what)?.context(&what)? > 0)
    }
}

/// The pid file of a stem.
pub(crate) fn pid_path(stem: &Path) -> PathBuf {
    with_suffix(stem, ".pid")
}

fn with_suffix(stem: &Path, suffix: &str) -> PathBuf {
    let mut path = stem.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Someone else holds the file's lock.
fn is_locked(file: &File) -> std::io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            rustix::fs::flock(file, FlockOperation::Unlock)?;
            Ok(false)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};

    /// A process that holds the lock of its pid file, as a daemon does.
    fn daemon(stem: &Path, script: &str) -> Child {
        let pid = pid_path(stem);
        let body = format!("echo $$ >&9; {script}");
        let line = format!("exec 9>'{}'; flock 9; {body}", pid.display());
        let child = Command::new("bash")
            .arg("-c")
            .arg(line)
            .spawn()
            .expect("bash runs");
        while std::fs::read_to_string(&pid).is_ok_and(|t| t.is_empty()) || !pid.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    }

    fn process() -> (tempfile::TempDir, Process) {
        let temp = tempfile::tempdir().expect("temporary directory");
        let stem = temp.path().join("storage-1");
        (temp, Process::new("storage-1", stem))
    }

    #[tokio::test]
    async fn a_number_in_a_file_is_not_a_running_process() {
        let (_temp, process) = process();
        assert!(process.running().await.expect("no file").is_none());
        std::fs::write(process.pid_path(), format!("{}\n", std::process::id())).expect("written");
        assert!(process.running().await.expect("not locked").is_none());
        assert_eq!(
            process.stop(KILL_WAIT).await.expect("nothing"),
            Stopped::NotRunning
        );
        assert!(!process.pid_path().exists(), "the stale file is gone");
    }

    #[tokio::test]
    async fn a_process_that_obeys_is_stopped_cleanly_even_when_it_was_suspended() {
        let (_temp, process) = process();
        let mut child = daemon(process.stem(), "exec sleep 100");
        let running = process.running().await.expect("locked").expect("runs");
        assert_eq!(running.pid() as u32, child.id());
        running.signal(Signal::STOP).expect("signalled");
        assert_eq!(
            process.stop(KILL_WAIT).await.expect("stopped"),
            Stopped::Cleanly
        );
        assert_eq!(child.wait().expect("reaped").signal(), Some(15));
        assert!(process.running().await.expect("gone").is_none());
    }

    #[tokio::test]
    async fn a_process_that_does_not_obey_is_killed() {
        let (_temp, process) = process();
        let mut child = daemon(
            process.stem(),
            "trap '' TERM; while :; do read -t 1 <> <(:); done",
        );
        let grace = Duration::from_millis(300);
        assert_eq!(process.stop(grace).await.expect("stopped"), Stopped::Killed);
        assert_eq!(child.wait().expect("reaped").signal(), Some(9));
    }
}
