//! Running `emberfs` with a time limit.

use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Longest time that any verb may take; a hang is a failure, not a wait.
const LIMIT: Duration = Duration::from_mins(2);
/// Pause between two looks whether it has ended.
const POLL: Duration = Duration::from_millis(10);

/// What a command did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its exit code; -1 if a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Outcome {
    /// Fails unless the command exited with `code`.
    pub fn expect_code(self, code: i32) -> Result<Self> {
        if self.code == code {
            return Ok(self);
        }
        bail!(
            "exit code {}, not {code}\n{}\n{}",
            self.code,
            self.stdout,
            self.stderr
        )
    }

    /// Fails unless the command was refused as it should be: exit code 1, and one line on standard
    /// error that holds every one of `needles`. Lines of progress end with an ellipsis.
    pub fn expect_refusal(self, needles: &[&str]) -> Result<Self> {
        let outcome = self.expect_code(1)?;
        let lines: Vec<_> = outcome.stderr.lines().collect();
        let is_refusal = |line: &&&str| line.starts_with("emberfs: ");
        let refusals: Vec<_> = lines.iter().filter(is_refusal).collect();
        let noise = lines.len() - refusals.len();
        if refusals.len() != 1 || lines.iter().filter(|line| line.ends_with('…')).count() != noise
        {
            bail!("not one line: {}", outcome.stderr);
        }
        match needles
            .iter()
            .find(|needle| !refusals[0].contains(**needle))
        {
            Some(needle) => bail!("nothing about {needle:?}: {}", outcome.stderr),
            None => Ok(outcome),
        }
    }

    /// The standard output as JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout)
            .with_context(|| format!("no JSON: {}\n{}", self.stdout, self.stderr))
    }
}

/// Runs a command to its end; kills it and fails when it takes too long.
pub fn run(command: &mut Command) -> Result<Outcome> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {shown}"))?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            bail!("hangs: {shown}\n{}\n{}", text(stdout)?, text(stderr)?);
        }
        thread::sleep(POLL);
    };
    Ok(Outcome {
        code: status.code().unwrap_or(-1),
        stdout: text(stdout)?,
        stderr: text(stderr)?,
    })
}

type Collector = thread::JoinHandle<std::io::Result<Vec<u8>>>;

fn collect(pipe: Option<impl Read + Send + 'static>) -> Collector {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    })
}

fn text(collector: Collector) -> Result<String> {
    let Ok(bytes) = collector.join() else {
        bail!("the thread that reads output panicked")
    };
    Ok(String::from_utf8_lossy(&bytes?).into_owned())
}
