//! From any failure to a negative errno and this thread's sentence about it.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static LAST: RefCell<CString> = RefCell::new(CString::default());
}

/// What a call failed with.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Positive.
    pub(crate) errno: i32,
    /// For people.
    pub(crate) message: String,
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub(crate) fn new(errno: i32, message: impl Into<String>) -> Self {
        Self {
            errno,
            message: message.into(),
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(libc::EINVAL, message)
    }
}

impl From<emberfs_client::Error> for Failure {
    fn from(error: emberfs_client::Error) -> Self {
        Self::new(error.errno(), error.to_string())
    }
}

/// Runs a call of the interface: a failure, or a panic, becomes a negative errno.
pub(crate) fn guard(name: &str, call: impl FnOnce() -> Result<i64>) -> i64 {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        crate::handles::same_process()?;
        call()
    }));
    let failure = match outcome {
        Ok(Ok(value)) => return value,
        Ok(Err(failure)) => failure,
        Err(_) => Failure::new(
            libc::EIO,
            "a bug in the client (its panic is on stderr); report it",
        ),
    };
    // A NUL in the middle would cut the sentence.
    let text = format!("{name}: {}", failure.message).replace('\0', "?");
    LAST.with_borrow_mut(|last| *last = CString::new(text).unwrap_or_default());
    -i64::from(failure.errno)
}

/// This thread's last failure; empty before the first.
pub(crate) fn last() -> *const c_char {
    LAST.with_borrow(|last| CStr::as_ptr(last))
}
