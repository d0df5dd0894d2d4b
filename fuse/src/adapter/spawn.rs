//! Running one request: bounded, off the device thread, and fenced against panics.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use emberfs_client::Result;
use emberfs_proto::{Error, ErrorCode};
use fuser::{Errno, INodeNo};
use futures::FutureExt;

use super::Adapter;
use super::reply::Outcome;
use crate::backend::Backend;

impl<B: Backend> Adapter<B> {
    /// Runs one request; `reply` gets its outcome whatever happens, a panic included.
    pub(super) fn spawn<T, F>(
        &self,
        operation: &'static str,
        node: INodeNo,
        work: F,
        reply: impl FnOnce(Outcome<T>) + Send + 'static,
    ) where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let pass = self.gate.enter();
        self.runtime.spawn(async move {
            reply(fenced(operation, node, work).await);
            drop(pass);
        });
    }
}

/// The outcome of `work` in the kernel's terms; a panic is EIO.
pub(crate) async fn fenced<T>(
    operation: &'static str,
    node: INodeNo,
    work: impl Future<Output = Result<T>>,
) -> Outcome<T> {
    let outcome = AssertUnwindSafe(work).catch_unwind().await;
    let outcome = outcome.unwrap_or_else(|panic| {
        let said = panic_message(&*panic);
        tracing::error!(operation, node = node.0, panic = said, "a request panicked");
        Err(Error::new(
            ErrorCode::Internal,
            format!("{operation} panicked: {said}"),
        ))
    });
    outcome.map_err(|error| errno(operation, node, &error))
}

/// The one place where an error becomes an errno and a line in the log.
fn errno(operation: &str, node: INodeNo, error: &Error) -> Errno {
    let number = match error.errno() {
        // Programs do not expect "try again" from a file.
        libc::EAGAIN => libc::EIO,
        number => number,
    };
    let fault = matches!(
        number,
        libc::EIO | libc::EPROTO | libc::ETIMEDOUT | libc::ENXIO | libc::ENOSPC | libc::EROFS
    );
    if fault {
        tracing::warn!(operation, node = node.0, %error, errno = number, "request failed");
    } else {
        tracing::debug!(operation, node = node.0, %error, errno = number, "request refused");
    }
    Errno::from_i32(number)
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_is_a_positive_errno_that_programs_expect() {
        for &code in ErrorCode::ALL {
            let number = i32::from(errno("test", INodeNo(1), &Error::new(code, "what")));
            assert!(number > 0 && number != libc::EAGAIN, "{code:?} is {number}");
        }
        let missing = Error::new(ErrorCode::NotFound, "what");
        assert_eq!(i32::from(errno("test", INodeNo(1), &missing)), libc::ENOENT);
    }
}
