//! What a request comes to, in the kernel's terms, whatever happens: a panic fails that request and nothing else.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use emberfs_client::Result;
use emberfs_proto::{Error, ErrorCode};
use futures::FutureExt;

/// The outcome of `work` in the kernel's terms; a panic is EIO.
pub(super) async fn fenced<T>(
    operation: &'static str,
    node: u64,
    work: impl Future<Output = Result<T>>,
) -> std::result::Result<T, i32> {
    let outcome = AssertUnwindSafe(work).catch_unwind().await;
    let outcome = outcome.unwrap_or_else(|panic| {
        let said = panic_message(&*panic);
        tracing::error!(operation, node, panic = said, "a request panicked");
        Err(Error::new(
            ErrorCode::Internal,
            format!("{operation} panicked: {said}"),
        ))
    });
    outcome.map_err(|error| errno(operation, node, &error))
}

/// The one place where an error becomes an errno and a line in the log.
fn errno(operation: &str, node: u64, error: &Error) -> i32 {
    let number = match error.errno() {
        // Programs do not expect "try again" from a file, but for a lock that others hold.
        libc::EAGAIN if error.code != ErrorCode::LockHeld => libc::EIO,
        number => number,
    };
    let fault = matches!(
        number,
        libc::EIO | libc::EPROTO | libc::ETIMEDOUT | libc::ENXIO | libc::ENOSPC | libc::EROFS
    );
    if fault {
        tracing::warn!(operation, node, %error, errno = number, "request failed");
    } else {
        tracing::debug!(operation, node, %error, errno = number, "request refused");
    }
    number
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
            let number = errno("test", 1, &Error::new(code, "what"));
            let again = code == ErrorCode::LockHeld;
            assert!(
                number > 0 && (number == libc::EAGAIN) == again,
                "{code:?} is {number}"
            );
        }
        let missing = Error::new(ErrorCode::NotFound, "what");
        assert_eq!(errno("test", 1, &missing), libc::ENOENT);
    }
}
