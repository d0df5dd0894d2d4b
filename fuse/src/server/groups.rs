//! Supplementary groups of the calling process: FUSE requests carry only uid and gid.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use emberfs_client::Creds;
use parking_lot::Mutex;

/// How long what `/proc` said is believed.
const TTL: Duration = Duration::from_secs(1);

/// Processes remembered at a time.
const MAX_PROCESSES: usize = 4096;

struct Known {
    uid: u32,
    gid: u32,
    at: Instant,
    groups: Vec<u32>,
}

/// A short-lived cache of `/proc/PID/status`.
#[derive(Default)]
pub(crate) struct Groups {
    known: Mutex<HashMap<u32, Known>>,
}

impl Groups {
    /// Who asks: a thread with its groups.
    pub(crate) fn creds(&self, pid: u32, uid: u32, gid: u32) -> Creds {
        Creds {
            uid,
            gid,
            groups: self.of(pid, uid, gid),
        }
    }

    /// The groups of a thread; none if it cannot be seen from here. Root needs none. Reads
    /// `/proc`, so it is called on device threads.
    fn of(&self, pid: u32, uid: u32, gid: u32) -> Vec<u32> {
        if uid == 0 || pid == 0 {
            return Vec::new();
        }
        if let Some(known) = self.known.lock().get(&pid)
            && known.at.elapsed() < TTL
            && (known.uid, known.gid) == (uid, gid)
        {
            return known.groups.clone();
        }
        let groups = read(pid);
        let mut known = self.known.lock();
        if known.len() >= MAX_PROCESSES {
            known.retain(|_, known| known.at.elapsed() < TTL);
            if known.len() >= MAX_PROCESSES {
                known.clear();
            }
        }
        known.insert(
            pid,
            Known {
                uid,
                gid,
                at: Instant::now(),
                groups: groups.clone(),
            },
        );
        groups
    }
}

fn read(pid: u32) -> Vec<u32> {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .map(|s| parse(&s))
        .unwrap_or_default()
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
        let groups = Groups::default();
        assert_eq!(groups.of(u32::MAX, 1000, 1000), [0; 0]);
        assert_eq!(groups.of(std::process::id(), 0, 0), [0; 0]);
    }
}
