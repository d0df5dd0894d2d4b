//! Getting a thread out of a blocking read of the device: by a signal whose handler does nothing, so that the read ends with
//! EINTR. (Polling before each read would cost every request a call, and wake all threads for each one.)

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::OnceLock;
use std::thread::JoinHandle;

/// Nobody else in this program uses it.
const SIGNAL: libc::c_int = libc::SIGUSR2;

extern "C" fn nothing(_: libc::c_int) {}

/// Sets the handler up, once for the process.
pub(crate) fn prepare() -> io::Result<()> {
    static OUTCOME: OnceLock<Option<i32>> = OnceLock::new();
    let failed = OUTCOME.get_or_init(|| {
        // SAFETY: all zeros are a value of this plain struct of the C library's: no flags (so that calls are not
        // restarted), and an empty mask on Linux.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: the action is initialised; its handler does nothing, which is safe at any point of any thread.
        let outcome = unsafe { libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut()) };
        (outcome != 0).then(|| {
            io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EINVAL)
        })
    });
    failed.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
}

/// Interrupts what the thread waits for. It has no effect on a thread that is about to wait: repeat it until the thread ends.
pub(crate) fn nudge<T>(thread: &JoinHandle<T>) {
    // SAFETY: the handle is not joined, so the thread's id is still its own.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGNAL) };
}
