//! How a verb fails: one line for people and an exit code.

use std::fmt;
use std::process::ExitCode;

/// Exit codes of every verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done; healthy; clean.
    Success,
    /// Failed; degraded; differences found.
    Failure,
    /// Broken; could not run.
    Broken,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Success => Self::SUCCESS,
            Exit::Failure => Self::from(1),
            Exit::Broken => Self::from(2),
        }
    }
}

/// Shorthand.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// A sentence "what: where; what to do next" and the code to exit with.
#[derive(Debug)]
pub(crate) struct Failure {
    line: String,
    exit: Exit,
}

impl Failure {
    /// Exit code 1.
    pub(crate) fn new(line: impl Into<String>) -> Self {
        Self {
            line: one_line(&line.into()),
            exit: Exit::Failure,
        }
    }

    /// The same with exit code 2.
    pub(crate) fn broken(mut self) -> Self {
        self.exit = Exit::Broken;
        self
    }

    /// The code to exit with.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }
}

/// `Err` of a [`Failure`], for tails of functions.
pub(crate) fn fail<T>(line: impl Into<String>) -> Result<T> {
    Err(Failure::new(line))
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl From<emberfs_proto::Error> for Failure {
    fn from(error: emberfs_proto::Error) -> Self {
        Self::new(error.message)
    }
}

/// Adds what was being done to an error of any kind.
pub(crate) trait Context<T> {
    /// `line` comes before the error's own words.
    fn context(self, line: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, line: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Failure::new(format!("{line}: {error}")))
    }
}

/// Other programs read standard error by lines.
fn one_line(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_whatever_it_was_made_from() {
        let io: std::io::Result<()> = Err(std::io::Error::other("first\n  second\n"));
        let failure = io.context("cannot read x").expect_err("it is an error");
        assert_eq!(failure.to_string(), "cannot read x: first; second");
        assert_eq!(failure.exit(), Exit::Failure);
        assert_eq!(failure.broken().exit(), Exit::Broken);
    }
}
