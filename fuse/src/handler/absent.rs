//! Names that are certainly not there.
//!
//! A program that makes a file has the kernel look its name up first, which in a directory that this mount has made and
//! watches cannot find anything that this mount did not put there. So such a lookup is answered here: unpacking a tree
//! asks the server once per file and not twice. (CephFS knows directories as *complete* in the same sense.)
//!
//! A directory is known from its making until nobody has used it for a term of the watch, or until what others change is
//! told no more. Of its names a hash is kept, from before they are made (here) or since they were told of (others), and never taken
//! out: a name that hashes like one of them is asked for, so that a collision costs a round trip and nothing else.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Names remembered in all; 16 bytes each.
const MAX_NAMES: usize = 1 << 20;
/// Directories remembered.
const MAX_DIRS: usize = 16 << 10;

/// See the module.
#[derive(Default)]
pub(super) struct Absent {
    hasher: RandomState,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    dirs: HashMap<u64, Dir>,
    names: usize,
    /// How long the server tells of changes after it was asked; zero: it does not.
    term: Duration,
}

struct Dir {
    names: HashSet<u64>,
    /// Until then the server tells of names that others make.
    until: Instant,
}

impl Table {
    fn remove(&mut self, dir: u64) {
        if let Some(dir) = self.dirs.remove(&dir) {
            self.names -= dir.names.len();
        }
    }

    fn make_room(&mut self, now: Instant) {
        if self.names >= MAX_NAMES || self.dirs.len() >= MAX_DIRS {
            self.dirs.retain(|_, dir| now < dir.until);
            self.names = self.dirs.values().map(|dir| dir.names.len()).sum();
        }
    }
}

impl Absent {
    /// From now on the server tells what others make, for so long after it was asked about a directory. Zero: it does not,
    /// and may have missed something.
    pub(super) fn watched_for(&self, term: Duration) {
        *self.table.lock() = Table {
            term,
            ..Table::default()
        };
    }

    /// This mount has made an empty directory, by a request sent at `since`.
    pub(super) fn made(&self, dir: u64, since: Instant) {
        let mut table = self.table.lock();
        table.make_room(Instant::now());
        if !table.term.is_zero() && table.dirs.len() < MAX_DIRS {
            let until = since + table.term;
            let names = HashSet::new();
            table.dirs.insert(dir, Dir { names, until });
        }
    }

    /// The server was asked at `since` for a name of the directory, and has answered: it tells for another term.
    pub(super) fn used(&self, dir: u64, since: Instant) {
        let mut table = self.table.lock();
        let term = table.term;
        if let Some(known) = table.dirs.get_mut(&dir) {
            // After a gap, something can have been missed.
            if Instant::now() < known.until {
                known.until = known.until.max(since + term);
            } else {
                table.remove(dir);
            }
        }
    }

    /// A name is about to be made here, or has been made elsewhere.
    pub(super) fn appears(&self, dir: u64, name: &[u8]) {
        let mut table = self.table.lock();
        let Some(known) = table.dirs.get_mut(&dir) else {
            return;
        };
        if known.names.insert(self.hasher.hash_one(name)) {
            table.names += 1;
            if table.names >= MAX_NAMES {
                table.remove(dir);
            }
        }
    }

    /// For how long there is certainly no such name, as long as nobody makes one.
    pub(super) fn absent_for(&self, dir: u64, name: &[u8]) -> Option<Duration> {
        let table = self.table.lock();
        let known = table.dirs.get(&dir)?;
        let left = known.until.checked_duration_since(Instant::now())?;
        let absent = !left.is_zero() && !known.names.contains(&self.hasher.hash_one(name));
        absent.then_some(left)
    }

    /// Something may have been missed.
    pub(super) fn forget_all(&self) {
        let mut table = self.table.lock();
        (table.dirs, table.names) = (HashMap::new(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Duration = Duration::from_mins(1);

    fn watched(term: Duration) -> Absent {
        let absent = Absent::default();
        absent.watched_for(term);
        absent
    }

    fn is_absent(absent: &Absent, dir: u64, name: &[u8]) -> bool {
        absent.absent_for(dir, name).is_some()
    }

    #[test]
    fn what_was_not_made_in_a_new_directory_is_not_there() {
        let absent = watched(TERM);
        assert!(!is_absent(&absent, 7, b"a"), "not known");
        absent.made(7, Instant::now());
        assert!(is_absent(&absent, 7, b"a"));
        absent.appears(7, b"a");
        assert!(!is_absent(&absent, 7, b"a") && is_absent(&absent, 7, b"b"));
        absent.forget_all();
        assert!(!is_absent(&absent, 7, b"b"));
    }

    #[test]
    fn nothing_is_believed_beyond_a_term_or_without_a_watch() {
        let absent = watched(Duration::ZERO);
        absent.made(1, Instant::now());
        assert!(!is_absent(&absent, 1, b"a"));
        absent.watched_for(Duration::from_nanos(1));
        absent.made(2, Instant::now());
        assert!(!is_absent(&absent, 2, b"a"));
        absent.watched_for(TERM);
        absent.made(3, Instant::now());
        absent.watched_for(TERM);
        assert!(!is_absent(&absent, 3, b"a"), "of an earlier watch");
    }

    #[test]
    fn a_used_directory_is_believed_for_longer_but_no_gap_is_bridged() {
        let absent = watched(TERM);
        let now = Instant::now();
        absent.made(1, now);
        let later = now + Duration::from_secs(30);
        absent.used(1, later);
        absent.used(1, now);
        assert_eq!(absent.table.lock().dirs[&1].until, later + TERM);
        absent
            .table
            .lock()
            .dirs
            .get_mut(&1)
            .expect("it was made")
            .until = now;
        absent.used(1, later);
        assert!(!is_absent(&absent, 1, b"a"));
    }

    #[test]
    fn memory_is_bounded() {
        let absent = watched(TERM);
        absent.made(1, Instant::now());
        absent.table.lock().names = MAX_NAMES - 1;
        absent.appears(1, b"a");
        assert!(!is_absent(&absent, 1, b"b"), "forgotten");
        absent.forget_all();
        for dir in 0..2 * MAX_DIRS as u64 {
            absent.made(dir, Instant::now());
        }
        assert_eq!(absent.table.lock().dirs.len(), MAX_DIRS);
    }
}
