//! Supplementary groups of the calling thread: FUSE requests carry only uid and gid.
//!
//! They are read anew for each request that needs them: a thread may change its groups at any time (servers that act for their
//! users do), and nobody would tell. That takes some 10 µs, of requests that take ten times as long.

use emberfs_client::Creds;

/// Who asks: a thread with its groups; none if it cannot be seen from here. Root needs none. Reads `/proc`, so it is
/// called on device threads.
pub(super) fn creds(pid: u32, uid: u32, gid: u32) -> Creds {
    let groups = if uid == 0 || pid == 0 {
        Vec::new()
    } else {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
        status.map(|status| parse(&status)).unwrap_or_default()
    };
    Creds { uid, gid, groups }
}

fn parse(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    let numbers = line.unwrap_or_default().split_whitespace();
    numbers.filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_from_a_status_file() {
        assert_eq!(
            parse("Name:\tx\nGroups:\t4 24 1000 \nNStgid:\t1\n"),
            [4, 24, 1000]
        );
        assert_eq!(parse("Groups:\t \n"), [0; 0]);
        assert_eq!(parse("Name:\tx\n"), [0; 0]);
    }

    #[test]
    fn a_process_that_is_gone_has_no_groups_and_root_needs_none() {
        assert_eq!(creds(u32::MAX, 1000, 1000).groups, [0; 0]);
        assert_eq!(creds(std::process::id(), 0, 0).groups, [0; 0]);
    }
}
