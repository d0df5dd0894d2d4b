//! Ports of a new cluster: the usual ones where they are free.

use std::collections::HashSet;
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;

use rand::RngExt;
use rustix::fs::FlockOperation;

use crate::cluster_dir::HOST;
use crate::failure::{Result, fail};

/// Where ports are looked for when the usual ones are taken: below the range from which the kernel
/// takes ports of outgoing connections, so that a stopped server finds its port free again.
const FALLBACK: std::ops::Range<u16> = 20_000..32_000;
/// How many fallback ports are tried.
const ATTEMPTS: usize = 1_000;

/// While it lives, no other `up` on this host picks ports: between picking a port and listening on it
/// another one could pick the same. A host where the lock cannot be had does without.
#[derive(Debug)]
pub(crate) struct PickLock {
    _file: Option<File>,
}

impl PickLock {
    /// Waits for its turn.
    pub(crate) fn take() -> Self {
        let path = std::env::temp_dir().join("emberfs-ports.lock");
        let mut options = File::options();
        options.create(true).truncate(false).write(true).mode(0o666);
        let file = options.open(path).ok();
        let locked =
            file.filter(|file| rustix::fs::flock(file, FlockOperation::LockExclusive).is_ok());
        Self { _file: locked }
    }
}

/// Picks ports of a cluster, no two alike.
#[derive(Debug, Default)]
pub(crate) struct PortPicker {
    taken: HashSet<u16>,
}

impl PortPicker {
    /// `preferred` if it is free, else any free one.
    pub(crate) fn pick(&mut self, preferred: u16) -> Result<u16> {
        let mut rng = rand::rng();
        let others = (0..ATTEMPTS).map(|_| rng.random_range(FALLBACK));
        for port in std::iter::once(preferred).chain(others) {
            if !self.taken.contains(&port) && is_free(port) {
                self.taken.insert(port);
                return Ok(port);
            }
        }
        fail(format!(
            "no free port on {HOST} from {} to {}",
            FALLBACK.start, FALLBACK.end
        ))
    }
}

/// No one listens on this port of the loopback interface.
pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind((HOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_avoided_and_none_is_given_twice() {
        let stranger = TcpListener::bind((HOST, 0)).expect("any port");
        let busy = stranger.local_addr().expect("bound").port();
        assert!(!is_free(busy));
        let mut picker = PortPicker::default();
        let first = picker.pick(busy).expect("a port");
        let second = picker.pick(first).expect("a port");
        assert!(first != busy && second != first, "{busy} {first} {second}");
    }
}
