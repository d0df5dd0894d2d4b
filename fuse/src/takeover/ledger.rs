//! What a process that serves a mount leaves to the next: open files and directories, changes that are being made, and
//! bytes that are not stored yet. Everything else a successor can ask for.
//!
//! Fields of records may be added, not changed: the next process may be of another version.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use emberfs_client::{Creds, RequestLog};
use parking_lot::Mutex;
use prost::Message;

use super::arena::{Arena, Kept, Left};
use super::table::{Place, Record, Table};

/// Files that are in use for one ledger.
pub(crate) const FILES: usize = 4;

/// Open files of a mount that survive their process; those beyond it do not.
const MAX_OPENS: u32 = 1 << 20;
/// The same of directories.
const MAX_DIRS: u32 = 1 << 16;
/// Changes at a time: more than requests in flight.
const MAX_CHANGES: u32 = 1 << 14;

/// Groups of one caller, and owners of locks, that are noted: what fits a record.
const MAX_GROUPS: usize = 48;
const MAX_LOCKERS: usize = 16;

/// An open file.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct OpenRecord {
    #[prost(uint64, tag = "1")]
    pub(crate) handle: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) inode: u64,
    /// As of open(2).
    #[prost(int32, tag = "3")]
    pub(crate) flags: i32,
    /// The kernel's number of the request that opened it.
    #[prost(uint64, tag = "4")]
    pub(crate) unique: u64,
    #[prost(uint32, tag = "5")]
    uid: u32,
    #[prost(uint32, tag = "6")]
    gid: u32,
    #[prost(uint32, repeated, tag = "7")]
    groups: Vec<u32>,
    /// Who has set locks of fcntl(2) through it.
    #[prost(uint64, repeated, tag = "8")]
    lockers: Vec<u64>,
}

/// An open directory, and where its reader is.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DirRecord {
    #[prost(uint64, tag = "1")]
    pub(crate) handle: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) inode: u64,
    /// The kernel's number of the request that opened it.
    #[prost(uint64, tag = "3")]
    pub(crate) unique: u64,
    /// Where the last answer began, counted in names.
    #[prost(uint64, tag = "4")]
    pub(crate) position: u64,
    /// The name before that.
    #[prost(bytes = "bytes", tag = "5")]
    pub(crate) name: Bytes,
}

/// Changes that one request of the kernel's has asked the metadata server for.
#[derive(Clone, PartialEq, Message)]
struct ChangeRecord {
    #[prost(uint64, tag = "1")]
    unique: u64,
    #[prost(message, repeated, tag = "2")]
    changes: Vec<Numbered>,
}

#[derive(Clone, PartialEq, Message)]
struct Numbered {
    #[prost(string, tag = "1")]
    verb: String,
    #[prost(uint64, tag = "2")]
    number: u64,
}

impl OpenRecord {
    pub(crate) fn new(handle: u64, inode: u64, flags: i32, unique: u64, creds: &Creds) -> Self {
        let groups = creds.groups.iter().copied().take(MAX_GROUPS);
        Self {
            handle,
            inode,
            flags,
            unique,
            uid: creds.uid,
            gid: creds.gid,
            groups: groups.collect(),
            lockers: Vec::new(),
        }
    }

    pub(crate) fn creds(&self) -> Creds {
        Creds {
            uid: self.uid,
            gid: self.gid,
            groups: self.groups.clone(),
        }
    }

    pub(crate) fn lockers(&self) -> impl Iterator<Item = u64> {
        self.lockers.iter().copied()
    }
}

/// See the module.
pub(crate) struct Ledger {
    opens: Table,
    dirs: Table,
    changes: Table,
    arena: Arc<Arena>,
    earlier: Mutex<Earlier>,
}

/// What an earlier process did of requests that it did not answer, by the kernel's number for them.
#[derive(Default)]
struct Earlier {
    changes: HashMap<u64, (Place, ChangeRecord)>,
    /// Handles of files and directories.
    opened: HashMap<u64, u64>,
    /// Where writes went: of one request, all to the same place.
    written: HashMap<u64, Vec<Kept>>,
}

/// What an earlier process left.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) opens: Vec<(Place, OpenRecord)>,
    pub(crate) dirs: Vec<(Place, DirRecord)>,
    /// In the order in which they were made.
    pub(crate) writes: Vec<Left>,
}

impl Ledger {
    /// The files of a new one.
    pub(crate) fn create() -> io::Result<[OwnedFd; FILES]> {
        let table = Table::create;
        Ok([table()?, table()?, table()?, Arena::create()?])
    }

    /// Takes the files over, and what they tell.
    pub(crate) fn open(
        [opens, dirs, changes, arena]: [OwnedFd; FILES],
    ) -> io::Result<(Self, Found)> {
        let (arena, writes, kept) = Arena::open(&arena)?;
        let (opens, found_opens) = Table::open(opens, MAX_OPENS)?;
        let (dirs, found_dirs) = Table::open(dirs, MAX_DIRS)?;
        let (changes, found_changes) = Table::open(changes, MAX_CHANGES)?;
        let opens_of = decoded::<OpenRecord>(&opens, found_opens);
        let dirs_of = decoded::<DirRecord>(&dirs, found_dirs);
        let changes_of = decoded::<ChangeRecord>(&changes, found_changes);
        let opened = opens_of.iter().map(|(_, open)| (open.unique, open.handle));
        let opened = opened.chain(dirs_of.iter().map(|(_, dir)| (dir.unique, dir.handle)));
        let mut written = HashMap::<u64, Vec<Kept>>::new();
        for kept in kept {
            written.entry(kept.unique()).or_default().push(kept);
        }
        let earlier = Earlier {
            opened: opened.collect(),
            changes: changes_of
                .into_iter()
                .map(|(place, record)| (record.unique, (place, record)))
                .collect(),
            written,
        };
        let ledger = Self {
            opens,
            dirs,
            changes,
            arena,
            earlier: Mutex::new(earlier),
        };
        let found = Found {
            opens: opens_of,
            dirs: dirs_of,
            writes,
        };
        Ok((ledger, found))
    }

    /// Numbers under which an earlier process asked for changes that it may not have answered for.
    pub(crate) fn earlier_numbers(&self) -> Vec<u64> {
        let earlier = self.earlier.lock();
        let changes = earlier
            .changes
            .values()
            .flat_map(|(_, record)| &record.changes);
        changes.map(|change| change.number).collect()
    }

    /// The handle that an earlier process gave to this request for it.
    pub(crate) fn opened_earlier(&self, unique: u64) -> Option<u64> {
        self.earlier.lock().opened.get(&unique).copied()
    }

    /// Where an earlier process put the bytes of this request; empty if it did not. To be kept until they are noted anew.
    pub(crate) fn written_earlier(&self, unique: u64) -> Vec<Kept> {
        let mut earlier = self.earlier.lock();
        earlier.written.remove(&unique).unwrap_or_default()
    }

    /// Every request that an earlier process did not answer has been seen again: whatever it did for others was answered.
    pub(crate) fn forget_earlier(&self) {
        let earlier = std::mem::take(&mut *self.earlier.lock());
        for (place, _) in earlier.changes.into_values() {
            self.changes.remove(place);
        }
    }

    /// Bytes that are dropped from now on stay for a successor, or do not.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.arena.freeze(frozen);
    }

    /// The bytes of a write, where a successor finds them if there is room.
    pub(crate) fn keep(&self, unique: u64, data: &[u8]) -> Bytes {
        let kept = self.arena.keep(unique, data);
        kept.unwrap_or_else(|| Bytes::copy_from_slice(data))
    }

    /// Whether [`Self::keep`] found room for them.
    pub(crate) fn holds(&self, data: &Bytes) -> bool {
        data.is_empty() || self.arena.holds(data)
    }

    /// See [`Arena::note`].
    pub(crate) fn note_write(&self, data: &Bytes, inode: u64, offset: u64) -> bool {
        data.is_empty() || self.arena.note(data, inode, offset)
    }

    /// See [`Arena::note_change`].
    pub(crate) fn note_change(&self, start: u64, commit: u64) {
        self.arena.note_change(start, commit);
    }

    /// See [`Arena::last_change`].
    pub(crate) fn last_change(&self) -> Option<(u64, u64)> {
        self.arena.last_change()
    }

    pub(crate) fn add_open(&self, record: &OpenRecord) -> Option<Place> {
        self.opens.add(&record.encode_to_vec())
    }

    /// Notes who has set locks through an open file.
    pub(crate) fn set_lockers(
        &self,
        place: &Place,
        record: &mut OpenRecord,
        lockers: impl Iterator<Item = u64>,
    ) {
        record.lockers = lockers.take(MAX_LOCKERS).collect();
        self.opens.set(place, &record.encode_to_vec());
    }

    pub(crate) fn remove_open(&self, place: Place) {
        self.opens.remove(place);
    }

    pub(crate) fn add_dir(&self, record: &DirRecord) -> Option<Place> {
        self.dirs.add(&record.encode_to_vec())
    }

    pub(crate) fn set_dir(&self, place: &Place, record: &DirRecord) {
        self.dirs.set(place, &record.encode_to_vec());
    }

    pub(crate) fn remove_dir(&self, place: Place) {
        self.dirs.remove(place);
    }

    /// For the changes of one request.
    pub(crate) fn log(self: &Arc<Self>, unique: u64) -> Arc<ChangeLog> {
        let earlier = self.earlier.lock().changes.remove(&unique);
        let (place, record) = match earlier {
            Some((place, record)) => (Some(place), record),
            None => (
                None,
                ChangeRecord {
                    unique,
                    changes: Vec::new(),
                },
            ),
        };
        let repeatable = record.changes.clone();
        Arc::new(ChangeLog {
            ledger: self.clone(),
            repeatable,
            state: Mutex::new(LogState { place, record }),
        })
    }
}

fn decoded<R: Message + Default>(table: &Table, found: Vec<Record>) -> Vec<(Place, R)> {
    let mut records = Vec::new();
    for (place, bytes) in found {
        match R::decode(&*bytes) {
            Ok(record) => records.push((place, record)),
            Err(error) => {
                tracing::error!(%error, "a record of the process before this one is not understood");
                table.remove(place);
            }
        }
    }
    records
}

/// The changes of one request; dropped when it has been answered.
pub(crate) struct ChangeLog {
    ledger: Arc<Ledger>,
    /// Asked for by an earlier process.
    repeatable: Vec<Numbered>,
    state: Mutex<LogState>,
}

struct LogState {
    place: Option<Place>,
    record: ChangeRecord,
}

impl RequestLog for ChangeLog {
    fn earlier(&self, verb: &'static str) -> Option<u64> {
        let mut changes = self.repeatable.iter();
        let change = changes.find(|change| change.verb == verb)?;
        Some(change.number)
    }

    fn drawn(&self, verb: &'static str, number: u64) {
        let mut state = self.state.lock();
        let verb = verb.to_owned();
        state.record.changes.push(Numbered { verb, number });
        let record = state.record.encode_to_vec();
        match &state.place {
            Some(place) => {
                self.ledger.changes.set(place, &record);
            }
            None => state.place = self.ledger.changes.add(&record),
        }
    }
}

impl Drop for ChangeLog {
    fn drop(&mut self) {
        if let Some(place) = self.state.get_mut().place.take() {
            self.ledger.changes.remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn twin(files: &[OwnedFd; FILES]) -> [OwnedFd; FILES] {
        files.each_ref().map(|file| file.try_clone().unwrap())
    }

    #[test]
    fn a_successor_finds_opens_directories_and_bytes() {
        let files = Ledger::create().unwrap();
        let (ledger, _) = Ledger::open(twin(&files)).unwrap();
        ledger.freeze(false);
        let creds = Creds {
            uid: 7,
            gid: 8,
            groups: (0..100).map(|group| u32::MAX - group).collect(),
        };
        let mut open = OpenRecord::new(1, 500, libc::O_RDWR, 20, &creds);
        let place = ledger.add_open(&open).unwrap();
        ledger.set_lockers(&place, &mut open, [u64::MAX; 40].into_iter());
        let other = ledger
            .add_open(&OpenRecord::new(2, 501, 0, 22, &creds))
            .unwrap();
        ledger.remove_open(other);
        let dir = DirRecord {
            handle: 3,
            inode: 1,
            unique: 24,
            position: 1000,
            name: Bytes::from(vec![b'x'; 255]),
        };
        ledger.add_dir(&dir).unwrap();
        let data = ledger.keep(26, b"bytes");
        assert!(ledger.note_write(&data, 500, 77));
        let (next, found) = Ledger::open(twin(&files)).unwrap();
        assert_eq!(found.opens.len(), 1);
        let (_, open) = &found.opens[0];
        assert_eq!(
            (open.handle, open.inode, open.flags),
            (1, 500, libc::O_RDWR)
        );
        assert_eq!(open.creds().groups, creds.groups[..MAX_GROUPS]);
        assert_eq!(open.lockers().count(), MAX_LOCKERS);
        assert_eq!(found.dirs[0].1, dir);
        assert_eq!(found.writes.len(), 1);
        assert_eq!(
            (next.opened_earlier(20), next.opened_earlier(24)),
            (Some(1), Some(3))
        );
        assert_eq!(next.opened_earlier(22), None);
        let kept = next.written_earlier(26);
        assert_eq!(kept.iter().map(Kept::offset).collect::<Vec<_>>(), [77]);
        // It dies when it has stored the bytes and before it answers.
        next.freeze(false);
        drop(found);
        std::mem::forget(kept);
        let (next, found) = Ledger::open(twin(&files)).unwrap();
        assert!(found.writes.is_empty());
        next.freeze(false);
        next.forget_earlier();
        assert_eq!(next.opened_earlier(20), None);
        assert!(next.written_earlier(26).is_empty());
        drop(data);
    }

    #[test]
    fn changes_are_repeated_under_their_numbers_until_they_are_answered() {
        let files = Ledger::create().unwrap();
        let open = || Arc::new(Ledger::open(twin(&files)).unwrap().0);
        let first = open();
        let answered = first.log(2);
        answered.drawn("mkdir", 10);
        let begun = first.log(4);
        begun.drawn("setattr", 11);
        begun.drawn("rename", 12);
        drop(answered);
        std::mem::forget(begun);
        let second = open();
        let mut numbers = second.earlier_numbers();
        numbers.sort_unstable();
        assert_eq!(numbers, [11, 12]);
        assert_eq!(second.log(2).earlier("mkdir"), None);
        let again = second.log(4);
        assert_eq!(again.earlier("rename"), Some(12));
        assert_eq!(again.earlier("mkdir"), None);
        again.drawn("unlink", 13);
        std::mem::forget(again);
        // A third one knows the numbers of both.
        let third = open();
        let mut numbers = third.earlier_numbers();
        numbers.sort_unstable();
        assert_eq!(numbers, [11, 12, 13]);
        third.forget_earlier();
        assert!(open().earlier_numbers().is_empty());
    }
}
