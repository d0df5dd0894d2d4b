//! Users and groups by name, as this host knows them.

use std::process::{Command, Stdio};

use crate::failure::{Failure, Result};

/// The number of a user: a name or a number.
pub(crate) fn uid(user: &str) -> Result<u64> {
    number("passwd", "user", user)
}

/// The number of a group: a name or a number.
pub(crate) fn gid(group: &str) -> Result<u64> {
    number("group", "group", group)
}

/// The name of a user, if there is one.
pub(crate) fn user(uid: u64) -> Option<String> {
    field("passwd", &uid.to_string(), 0)
}

/// The name of a group, if there is one.
pub(crate) fn group(gid: u64) -> Option<String> {
    field("group", &gid.to_string(), 0)
}

fn number(database: &str, what: &str, name: &str) -> Result<u64> {
    // The largest number means nobody.
    let plain = name.parse().ok().filter(|&number: &u32| number != u32::MAX);
    let known = || field(database, name, 2)?.parse().ok();
    plain.or_else(known).map(u64::from).ok_or_else(|| {
        Failure::new(format!(
            "{name}: this host knows no such {what}; give its number"
        ))
    })
}

/// A field of an entry of the host's user database, whatever that is made of.
fn field(database: &str, key: &str, index: usize) -> Option<String> {
    let mut getent = Command::new("getent");
    getent
        .args([database, key])
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let output = getent
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let line = String::from_utf8(output.stdout).ok()?;
    line.trim_end().split(':').nth(index).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_users() {
        assert_eq!(uid("4711").expect("a number"), 4711);
        assert_eq!(uid("root").expect("everywhere"), 0);
        assert_eq!(gid("root").expect("everywhere"), 0);
        assert_eq!(user(0).as_deref(), Some("root"));
        for bad in ["no-such-user", "4294967295", "-1", ""] {
            let error = uid(bad).expect_err(bad).to_string();
            assert!(error.contains("give its number"), "{error}");
        }
    }
}
