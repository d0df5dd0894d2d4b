//! Standard output of the verbs that end by themselves.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use crate::failure::{Context, Result};

/// Prints one paragraph. A reader that has seen enough (`emberfs status | head -1`) is no failure.
pub(crate) fn say(text: impl Display) -> Result<()> {
    say_to(&mut io::stdout().lock(), text)
}

fn say_to(out: &mut impl Write, text: impl Display) -> Result<()> {
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Refuses(ErrorKind);

    impl Write for Refuses {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_left_is_fine_and_a_full_disk_is_not() {
        assert!(say_to(&mut Refuses(ErrorKind::BrokenPipe), "x").is_ok());
        let error = say_to(&mut Refuses(ErrorKind::StorageFull), "x").expect_err("lost");
        assert!(error.to_string().contains("standard output"), "{error}");
        let mut out = Vec::new();
        assert!(say_to(&mut out, "x").is_ok() && out == b"x\n");
    }
}
