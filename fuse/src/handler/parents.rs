//! The attributes of directories whose entries this mount has just changed.
//!
//! After each change the kernel asks anew for those of the directory, before it does anything else in it. The server tells
//! them with its answer to the change, so that question is answered from here: as long as nothing else has been
//! changed there since, by this mount or, as far as the watch tells, by another.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use emberfs_client::Attr;
use parking_lot::Mutex;

/// Directories remembered; some 300 bytes each.
const MAX: usize = 4096;

/// See the module.
#[derive(Default)]
pub(super) struct Parents {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    dirs: HashMap<u64, Dir>,
    /// How long the server tells of changes after it was asked; zero: it does not.
    term: Duration,
}

#[derive(Default)]
struct Dir {
    /// Changes of this mount that are under way.
    changing: usize,
    /// Something else has changed it since the first of those began.
    mixed: bool,
    /// When the last of those began.
    since: Option<Instant>,
    known: Option<(Attr, Instant)>,
}

impl Dir {
    fn is_idle(&self) -> bool {
        self.changing == 0 && self.known.is_none()
    }
}

/// A change by this mount; dropping it ends it.
pub(super) struct Changing<'a> {
    parents: &'a Parents,
    dir: u64,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let mut table = self.parents.table.lock();
        if let Some(dir) = table.dirs.get_mut(&self.dir) {
            dir.changing -= 1;
            if dir.is_idle() {
                table.dirs.remove(&self.dir);
            }
        }
    }
}

impl Parents {
    /// From now on changes by others are told for so long after the server was asked. Zero: they are not, and some may have been
    /// missed.
    pub(super) fn watched_for(&self, term: Duration) {
        self.table.lock().term = term;
        self.missed();
    }

    /// This mount begins to change the directory, or something about it.
    pub(super) fn change(&self, dir: u64) -> Changing<'_> {
        let mut table = self.table.lock();
        if table.dirs.len() >= MAX {
            table.dirs.retain(|_, dir| {
                dir.known = None;
                !dir.is_idle()
            });
        }
        let known = table.dirs.entry(dir).or_default();
        known.mixed = known.changing > 0;
        known.changing += 1;
        (known.since, known.known) = (Some(Instant::now()), None);
        Changing { parents: self, dir }
    }

    /// The server has told how a directory is after a change that is about to end.
    pub(super) fn told(&self, attr: &Attr) {
        let mut table = self.table.lock();
        let term = table.term;
        if !term.is_zero()
            && let Some(dir) = table.dirs.get_mut(&attr.inode)
            && let Some(since) = dir.since
            && dir.changing == 1
            && !dir.mixed
        {
            dir.known = Some((*attr, since + term));
        }
    }

    /// Another machine has changed the directory.
    pub(super) fn changed_elsewhere(&self, dir: u64) {
        let mut table = self.table.lock();
        if let Some(known) = table.dirs.get_mut(&dir) {
            known.mixed = true;
            known.known = None;
            if known.is_idle() {
                table.dirs.remove(&dir);
            }
        }
    }

    /// Changes by others may have been missed.
    pub(super) fn missed(&self) {
        let mut table = self.table.lock();
        table.dirs.retain(|_, dir| {
            (dir.mixed, dir.known) = (true, None);
            !dir.is_idle()
        });
    }

    /// A directory's attributes and how long they hold, if they are known.
    pub(super) fn get(&self, dir: u64) -> Option<(Attr, Duration)> {
        let table = self.table.lock();
        let (attr, until) = table.dirs.get(&dir)?.known?;
        let left = until.checked_duration_since(Instant::now())?;
        (!left.is_zero()).then_some((attr, left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Duration = Duration::from_mins(1);

    fn parents() -> Parents {
        let parents = Parents::default();
        parents.watched_for(TERM);
        parents
    }

    fn attr(inode: u64, nlink: u32) -> Attr {
        Attr {
            inode,
            nlink,
            ..Attr::default()
        }
    }

    fn nlink(parents: &Parents, dir: u64) -> Option<u32> {
        parents.get(dir).map(|(attr, left)| {
            assert!(left <= TERM);
            attr.nlink
        })
    }

    fn change_to(parents: &Parents, dir: u64, nlink: u32) {
        let _changing = parents.change(dir);
        parents.told(&attr(dir, nlink));
    }

    #[test]
    fn what_a_change_told_holds_until_the_next_one_begins() {
        let parents = parents();
        let change = parents.change(7);
        parents.told(&attr(8, 9));
        assert_eq!(nlink(&parents, 7), None, "of another directory");
        parents.told(&attr(7, 3));
        drop(change);
        assert_eq!(nlink(&parents, 7), Some(3));
        let next = parents.change(7);
        assert_eq!(nlink(&parents, 7), None);
        drop(next);
        assert_eq!(nlink(&parents, 7), None, "it told nothing");
        assert!(parents.table.lock().dirs.is_empty());
    }

    #[test]
    fn of_changes_at_the_same_time_none_is_believed() {
        let parents = parents();
        let first = parents.change(7);
        let second = parents.change(7);
        parents.told(&attr(7, 3));
        drop(first);
        parents.told(&attr(7, 4));
        assert_eq!(nlink(&parents, 7), None, "whose is the later one?");
        drop(second);
        change_to(&parents, 7, 5);
        assert_eq!(nlink(&parents, 7), Some(5));
    }

    #[test]
    fn what_others_change_is_forgotten_and_not_learned_from_before() {
        let parents = parents();
        change_to(&parents, 7, 3);
        parents.changed_elsewhere(7);
        assert_eq!(nlink(&parents, 7), None);
        let change = parents.change(7);
        parents.changed_elsewhere(7);
        parents.told(&attr(7, 3));
        assert_eq!(nlink(&parents, 7), None);
        drop(change);
        let _change = parents.change(7);
        parents.missed();
        parents.told(&attr(7, 3));
        assert_eq!(nlink(&parents, 7), None);
        parents.watched_for(Duration::ZERO);
        change_to(&parents, 8, 3);
        assert_eq!(nlink(&parents, 8), None, "nobody tells of others");
    }

    #[test]
    fn memory_is_bounded() {
        let parents = parents();
        for dir in 0..3 * MAX as u64 {
            change_to(&parents, dir, 2);
        }
        assert!(parents.table.lock().dirs.len() <= MAX);
    }
}
