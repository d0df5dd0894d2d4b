//! Checking system calls on a mount against what POSIX and Linux say, as root and as ordinary users.

use std::thread;

use anyhow::{Result, bail};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

/// A person.
#[derive(Clone, Copy, Debug)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Other groups.
    pub groups: &'static [u32],
}

/// The superuser.
pub const ROOT: User = User {
    uid: 0,
    gid: 0,
    groups: &[],
};
/// Somebody.
pub const ALICE: User = User {
    uid: 65_534,
    gid: 65_533,
    groups: &[],
};
/// Somebody else, who shares one group with nobody but [`CAROL`].
pub const BOB: User = User {
    uid: 65_532,
    gid: 65_531,
    groups: &[65_500],
};
/// A third one.
pub const CAROL: User = User {
    uid: 65_530,
    gid: 65_529,
    groups: &[65_500],
};

/// Does something as this user, on a thread of its own: Linux keeps credentials per thread.
pub fn as_user<T: Send>(user: User, work: impl FnOnce() -> T + Send) -> T {
    let act = move || {
        if user.uid != 0 {
            let groups: Vec<_> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
            let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
            rustix::thread::set_thread_groups(&groups).expect("this test runs as root");
            rustix::thread::set_thread_res_gid(gid, gid, gid).expect("this test runs as root");
            rustix::thread::set_thread_res_uid(uid, uid, uid).expect("this test runs as root");
        }
        work()
    };
    thread::scope(|scope| match scope.spawn(act).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Expectations that are checked one after the other; all that fail are named at the end.
#[derive(Debug, Default)]
pub struct Checks {
    done: usize,
    failures: Vec<String>,
}

impl Checks {
    /// The call must succeed; its value, if it did.
    pub fn works<T>(&mut self, what: &str, outcome: rustix::io::Result<T>) -> Option<T> {
        self.done += 1;
        match outcome {
            Ok(value) => Some(value),
            Err(errno) => {
                self.failures
                    .push(format!("{what}: {errno:?}, not success"));
                None
            }
        }
    }

    /// The call must fail in this way.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers write the call in place"
    )]
    pub fn fails<T>(&mut self, what: &str, outcome: rustix::io::Result<T>, wanted: Errno) {
        self.done += 1;
        match outcome {
            Err(errno) if errno == wanted => {}
            Err(errno) => self
                .failures
                .push(format!("{what}: {errno:?}, not {wanted:?}")),
            Ok(_) => self
                .failures
                .push(format!("{what}: success, not {wanted:?}")),
        }
    }

    /// Both must be equal.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers write the call in place"
    )]
    pub fn equal<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, got: T, wanted: T) {
        self.done += 1;
        if got != wanted {
            self.failures
                .push(format!("{what}: {got:?}, not {wanted:?}"));
        }
    }

    /// It must be so.
    pub fn holds(&mut self, what: &str, holds: bool) {
        self.equal(what, holds, true);
    }

    /// Takes over what was checked elsewhere.
    pub fn merge(&mut self, other: Self) {
        self.done += other.done;
        self.failures.extend(other.failures);
    }

    /// Fails if anything did, or if nothing was checked.
    pub fn finish(self) -> Result<()> {
        if self.done == 0 {
            bail!("nothing was checked");
        }
        if self.failures.is_empty() {
            return Ok(());
        }
        let (failed, done) = (self.failures.len(), self.done);
        bail!(
            "{failed} of {done} checks failed:\n{}",
            self.failures.join("\n")
        )
    }
}
