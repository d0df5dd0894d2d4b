//! Starting a process of this program that outlives us, and learning when it is ready.
//!
//! The child writes one line to its standard output when it serves; until then that is a pipe to us, so
//! both readiness and an early death are events and nothing is polled.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::cluster_dir::make_dir;
use crate::failure::{Context, Result, fail};
use crate::process::Process;

/// Lines of the log that are shown when a process does not come up.
const LOG_LINES: usize = 8;
/// How the line begins with which a process fails.
const FAILURE: &str = "emberfs: ";
/// Bytes of the log that are read for them.
const LOG_TAIL_BYTES: u64 = 16 << 10;

/// What tokio takes the number of its worker threads from.
const THREADS: &str = "TOKIO_WORKER_THREADS";

/// Starts `emberfs ARGUMENTS --daemon STEM` and waits until it is ready; answers what it says then. `threads`: so many
/// workers, unless the environment says otherwise; `None`: one for each core.
pub(crate) async fn launch(
    process: &Process,
    arguments: Vec<OsString>,
    threads: Option<usize>,
    limit: Duration,
) -> Result<String> {
    let name = process.name();
    let program = std::env::current_exe().context("cannot find this program's file")?;
    if let Some(dir) = process.stem().parent() {
        make_dir(dir)?;
    }
    let log_path = process.log_path();
    let what = || format!("cannot open the log {}", log_path.display());
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log_path)
        .context(what())?;
    let logged = log.metadata().context(what())?.len();
    let mut command = Command::new(&program);
    if let Some(threads) = threads.filter(|_| std::env::var_os(THREADS).is_none()) {
        command.env(THREADS, threads.to_string());
    }
    let mut child = command
        .args(arguments)
        .arg("--daemon")
        .arg(process.stem())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context(format!("cannot start {name} ({})", program.display()))?;
    let Some(stdout) = child.stdout.take() else {
        return fail(format!("cannot start {name}: its output is not connected"));
    };
    let mut line = String::new();
    let mut reader = BufReader::new(stdout);
    match tokio::time::timeout(limit, reader.read_line(&mut line)).await {
        Ok(Ok(length)) if length > 0 => Ok(line.trim().to_owned()),
        Ok(Ok(_)) => {
            let status = child
                .wait()
                .await
                .context(format!("cannot wait for {name}"))?;
            let tail = tail(&log_path, logged);
            // A process that says why it ends says it in one line; one that crashes does not.
            if !tail.last().is_some_and(|line| line.starts_with(FAILURE)) {
                for line in &tail {
                    eprintln!("  {name}: {line}");
                }
            }
            let reason = tail
                .last()
                .map_or_else(|| status.to_string(), |line| cause(line));
            fail(format!(
                "{name} did not start: {reason}; log: {}",
                log_path.display()
            ))
        }
        Ok(Err(error)) => fail(format!("cannot hear from {name}: {error}")),
        Err(_) => fail(format!(
            "{name} (process {}) is not ready after {} s: see {}, then run `emberfs up` again",
            child.id().unwrap_or_default(),
            limit.as_secs(),
            log_path.display()
        )),
    }
}

/// Last lines of a log, from byte `from` on.
fn tail(path: &Path, from: u64) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(
            from.max(end.saturating_sub(LOG_TAIL_BYTES)),
        ))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LOG_LINES)..]
        .iter()
        .map(|&l| l.to_owned())
        .collect()
}

/// The part of a log line that says what happened.
fn cause(line: &str) -> String {
    line.strip_prefix(FAILURE).unwrap_or(line).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_holds_only_the_last_lines_of_this_start() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let path = temp.path().join("log");
        std::fs::write(&path, "old\n").expect("written");
        assert_eq!(tail(&path, 4), Vec::<String>::new());
        let new: Vec<_> = (0..20).map(|i| format!("line {i}\n\n")).collect();
        std::fs::write(&path, format!("old\n{}", new.concat())).expect("written");
        let lines = tail(&path, 4);
        assert_eq!((lines.len(), lines[7].as_str()), (LOG_LINES, "line 19"));
        assert_eq!(tail(Path::new("/nonexistent"), 0), Vec::<String>::new());
    }
}
