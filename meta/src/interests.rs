//! What clients have cached, so that they can be told when somebody else changes it.
//!
//! A client that *watches* is noted for every inode whose attributes it is told, and for every directory that it
//! looks a name up in, **before** they are read: a change that is not in the answer then comes after it, as
//! an invalidation. What it is told it may believe for a term without asking again; so a note needs to be kept for
//! that long only, and notes live in two generations of which the older one is dropped each term, or earlier for want of
//! room, and then those who were noted in it are told to believe nothing. No other state is kept, nothing is waited for: a
//! client that cannot be reached believes something old until it notices that, or for a term.
//!
//! There are two terms. A client that can drop everything it believes at once, when it finds that it is not told any
//! more, may believe for [`LONG_TERM`]; others for [`TERM`].
//!
//! (Leases for cached attributes: Gray and Cheriton, 1989; here a change does not wait for them.)

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use emberfs_proto::ids::{ClientId, InodeId};
use emberfs_proto::pb;
use parking_lot::Mutex;
use tokio::sync::mpsc;

/// How long a watching client may believe what it was told, even if it is told nothing any more.
const TERM: Duration = Duration::from_secs(10);
/// The same of a client that then drops all of it. Notes are kept for so long.
const LONG_TERM: Duration = Duration::from_mins(5);
/// Messages that may wait for one client; when there are more, it is told to believe nothing.
const QUEUE: usize = 1024;
/// Notes per generation and shard, 16 to 24 bytes each.
const MAX_NOTES: usize = 64 << 10;
/// Locks, so that requests do not meet.
const SHARDS: usize = 16;

/// Number of a watching client; never reused.
type Slot = u32;

/// See the module.
pub(crate) struct Interests {
    /// Counts changes; see [`Self::clock`].
    clock: AtomicU64,
    watchers: Mutex<Watchers>,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Watchers {
    slots: HashMap<ClientId, Slot>,
    streams: HashMap<Slot, Stream>,
    last: Slot,
}

struct Stream {
    client: ClientId,
    messages: mpsc::Sender<pb::Invalidation>,
    /// Messages were lost for want of room.
    lossy: bool,
}

struct Shard {
    since: Instant,
    /// This term's notes, and the last one's: inode, its attributes (false) or the names in it (true).
    notes: [Notes; 2],
}

#[derive(Default)]
struct Notes {
    by_inode: HashMap<(InodeId, bool), Vec<Slot>>,
    count: usize,
}

/// What changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Attributes, and perhaps contents, of these.
    pub(crate) inodes: Vec<InodeId>,
    /// What these names mean.
    pub(crate) names: Vec<ChangedName>,
}

/// A name that means something else now, or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChangedName {
    pub(crate) directory: InodeId,
    pub(crate) name: bytes::Bytes,
    /// A directory stood there, which is in another one now. Kernels know a directory at one place only, so one that has it here should
    /// forget that before it meets it there.
    pub(crate) vacated: bool,
}

impl Default for Interests {
    fn default() -> Self {
        let shard = || {
            Mutex::new(Shard {
                since: Instant::now(),
                notes: Default::default(),
            })
        };
        Self {
            clock: AtomicU64::new(0),
            watchers: Mutex::default(),
            shards: std::array::from_fn(|_| shard()),
        }
    }
}

impl Interests {
    /// A client begins to watch; an earlier stream of its ends.
    pub(crate) fn watch(self: &Arc<Self>, client: ClientId) -> Watch {
        let (messages, receiver) = mpsc::channel(QUEUE);
        let first = pb::Invalidation {
            term_ms: TERM.as_millis() as u32,
            long_term_ms: LONG_TERM.as_millis() as u32,
            ..pb::Invalidation::default()
        };
        messages
            .try_send(first)
            .expect("a channel that was just made has room");
        let mut watchers = self.watchers.lock();
        watchers.last += 1;
        let slot = watchers.last;
        if let Some(old) = watchers.slots.insert(client, slot) {
            watchers.streams.remove(&old);
        }
        let stream = Stream {
            client,
            messages,
            lossy: false,
        };
        watchers.streams.insert(slot, stream);
        Watch {
            interests: self.clone(),
            slot,
            messages: receiver,
        }
    }

    /// Notes what a client is told; `None` if it does not watch.
    pub(crate) fn noter(self: &Arc<Self>, client: ClientId) -> Option<Noter> {
        let slot = self.watchers.lock().slots.get(&client).copied()?;
        let interests = self.clone();
        Some(Noter { interests, slot })
    }

    /// Moves after each change became visible and before its notes are looked for. So who looked, noted, and
    /// finds the clock where it was before he looked, has either seen every change or will be told of it.
    pub(crate) fn clock(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }

    fn shard(&self, inode: InodeId) -> &Mutex<Shard> {
        &self.shards[inode.0 as usize % SHARDS]
    }

    fn note(&self, slot: Slot, inode: InodeId, names: bool) {
        let mut shard = self.shard(inode).lock();
        let now = Instant::now();
        shard.turn(now);
        let dropped = if shard.notes[0].count < MAX_NOTES {
            Vec::new()
        } else {
            shard.turn_early(now)
        };
        let notes = &mut shard.notes[0];
        let slots = notes.by_inode.entry((inode, names)).or_default();
        if !slots.contains(&slot) {
            slots.push(slot);
            notes.count += 1;
        }
        drop(shard);
        for slot in dropped {
            self.believe_nothing(slot);
        }
    }

    /// Something was changed, durably; all who may have cached it are told, but not `by`, who did it.
    pub(crate) fn changed(&self, by: Option<ClientId>, changed: &Changed) {
        self.clock.fetch_add(1, Ordering::SeqCst);
        if self.watchers.lock().streams.is_empty() {
            return;
        }
        let own = by.and_then(|by| self.watchers.lock().slots.get(&by).copied());
        let mut messages: HashMap<Slot, pb::Invalidation> = HashMap::new();
        for &inode in &changed.inodes {
            for slot in self.take(inode, own) {
                messages.entry(slot).or_default().inodes.push(inode.0);
            }
        }
        for changed in &changed.names {
            for slot in self.interested(changed.directory) {
                let entry = pb::EntryName {
                    parent: changed.directory.0,
                    name: changed.name.clone(),
                    vacated: changed.vacated,
                };
                messages.entry(slot).or_default().names.push(entry);
            }
        }
        let mut watchers = self.watchers.lock();
        for (slot, message) in messages {
            if let Some(stream) = watchers.streams.get_mut(&slot)
                && Some(stream.client) != by
            {
                stream.send(message);
            }
        }
    }

    fn believe_nothing(&self, slot: Slot) {
        if let Some(stream) = self.watchers.lock().streams.get_mut(&slot) {
            stream.send(pb::Invalidation {
                everything: true,
                ..pb::Invalidation::default()
            });
        }
    }

    /// Asks a client to give up the right to append to this file, if it watches.
    pub(crate) fn append_wanted(&self, holder: ClientId, inode: InodeId) {
        let append_wanted = vec![inode.0];
        self.ask(
            holder,
            pb::Invalidation {
                append_wanted,
                ..pb::Invalidation::default()
            },
        );
    }

    /// Asks a client to report what it has written to these, and to return their delegations, if it watches.
    pub(crate) fn recall(&self, holder: ClientId, inodes: &[InodeId]) {
        let recalled = inodes.iter().map(|inode| inode.0).collect();
        self.ask(
            holder,
            pb::Invalidation {
                recalled,
                ..pb::Invalidation::default()
            },
        );
    }

    fn ask(&self, client: ClientId, message: pb::Invalidation) {
        let mut watchers = self.watchers.lock();
        let slot = watchers.slots.get(&client).copied();
        if let Some(stream) = slot.and_then(|slot| watchers.streams.get_mut(&slot)) {
            stream.send(message);
        }
    }

    /// Whether the client can be told anything.
    pub(crate) fn is_watching(&self, client: ClientId) -> bool {
        self.watchers.lock().slots.contains_key(&client)
    }

    /// Who has cached the attributes: they ask anew after they are told. `own` is not told, and stays noted.
    fn take(&self, inode: InodeId, own: Option<Slot>) -> Vec<Slot> {
        let mut shard = self.shard(inode).lock();
        shard.turn(Instant::now());
        let mut slots = Vec::new();
        for notes in &mut shard.notes {
            if let Some(found) = notes.by_inode.get_mut(&(inode, false)) {
                let before = found.len();
                slots.extend(found.extract_if(.., |slot| Some(*slot) != own));
                notes.count -= before - found.len();
                if found.is_empty() {
                    notes.by_inode.remove(&(inode, false));
                }
            }
        }
        distinct(slots)
    }

    /// Who has cached names of the directory: others than the one that changed stay cached.
    fn interested(&self, directory: InodeId) -> Vec<Slot> {
        let mut shard = self.shard(directory).lock();
        shard.turn(Instant::now());
        let found = shard.notes.iter();
        let found = found.filter_map(|notes| notes.by_inode.get(&(directory, true)));
        distinct(found.flatten().copied().collect())
    }

    /// Notes kept, for tests.
    #[cfg(test)]
    fn notes(&self) -> usize {
        let count = |shard: &Mutex<Shard>| {
            let shard = shard.lock();
            shard.notes.iter().map(|notes| notes.count).sum::<usize>()
        };
        self.shards.iter().map(count).sum()
    }
}

fn distinct(slots: Vec<Slot>) -> Vec<Slot> {
    let unique: HashSet<Slot> = slots.into_iter().collect();
    unique.into_iter().collect()
}

impl Shard {
    /// Begins a new term if it is time.
    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if age < LONG_TERM {
            return;
        }
        // A note is kept for one whole term at least.
        self.notes.swap(0, 1);
        self.notes[0] = Notes::default();
        if age >= LONG_TERM * 2 {
            self.notes[1] = Notes::default();
        }
        self.since = now;
    }

    /// Makes room before it is time; answers who is not told any more of something that he may still believe.
    fn turn_early(&mut self, now: Instant) -> Vec<Slot> {
        self.notes.swap(0, 1);
        let dropped = std::mem::take(&mut self.notes[0]);
        self.since = now;
        distinct(dropped.by_inode.into_values().flatten().collect())
    }
}

impl Stream {
    /// Never waits. What finds no room makes the next message one that says to believe nothing.
    fn send(&mut self, message: pb::Invalidation) {
        let message = if self.lossy {
            pb::Invalidation {
                everything: true,
                ..pb::Invalidation::default()
            }
        } else {
            message
        };
        self.lossy = self.messages.try_send(message).is_err();
    }
}

/// Notes what one client is about to be told.
#[derive(Clone)]
pub(crate) struct Noter {
    interests: Arc<Interests>,
    slot: Slot,
}

impl Noter {
    /// The attributes of this.
    pub(crate) fn attributes(&self, inode: InodeId) {
        self.interests.note(self.slot, inode, false);
    }

    /// What a name in this directory means, or that it means nothing.
    pub(crate) fn names(&self, directory: InodeId) {
        self.interests.note(self.slot, directory, true);
    }
}

/// A client's stream of invalidations; dropping it ends its interests.
pub(crate) struct Watch {
    interests: Arc<Interests>,
    slot: Slot,
    messages: mpsc::Receiver<pb::Invalidation>,
}

impl futures::Stream for Watch {
    type Item = Result<pb::Invalidation, tonic::Status>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.messages
            .poll_recv(context)
            .map(|message| message.map(Ok))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watchers = self.interests.watchers.lock();
        if let Some(stream) = watchers.streams.remove(&self.slot)
            && watchers.slots.get(&stream.client) == Some(&self.slot)
        {
            watchers.slots.remove(&stream.client);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::{FutureExt, StreamExt};

    use super::*;

    const A: ClientId = ClientId(1);
    const B: ClientId = ClientId(2);
    const FILE: InodeId = InodeId(7);
    const DIR: InodeId = InodeId(8);

    #[test]
    fn who_changes_something_himself_is_told_when_others_do() {
        let interests = Arc::new(Interests::default());
        let (mut a, mut b) = (interests.watch(A), interests.watch(B));
        assert!(next(&mut a).is_some() && next(&mut b).is_some());
        for client in [A, B] {
            interests.noter(client).unwrap().attributes(FILE);
        }
        let changed = Changed {
            inodes: vec![FILE],
            ..Changed::default()
        };
        interests.changed(Some(A), &changed);
        assert_eq!(next(&mut a), None);
        assert_eq!(next(&mut b).unwrap().inodes, [FILE.0]);
        interests.changed(Some(B), &changed);
        assert_eq!(next(&mut a).unwrap().inodes, [FILE.0]);
        assert_eq!(next(&mut b), None);
    }

    fn next(watch: &mut Watch) -> Option<pb::Invalidation> {
        watch
            .next()
            .now_or_never()
            .flatten()
            .map(|message| message.expect("no status is ever sent"))
    }

    /// A stream whose first message, which says how it works, has come.
    fn watch(interests: &Arc<Interests>, client: ClientId) -> Watch {
        let mut watch = interests.watch(client);
        let first = next(&mut watch).expect("a first message");
        assert_eq!(u128::from(first.term_ms), TERM.as_millis());
        watch
    }

    fn note(interests: &Arc<Interests>, client: ClientId, inode: InodeId) {
        if let Some(noter) = interests.noter(client) {
            noter.attributes(inode);
        }
    }

    fn note_names(interests: &Arc<Interests>, client: ClientId) {
        if let Some(noter) = interests.noter(client) {
            noter.names(DIR);
        }
    }

    fn attributes() -> Changed {
        attributes_of(FILE)
    }

    fn attributes_of(inode: InodeId) -> Changed {
        Changed {
            inodes: vec![inode],
            names: Vec::new(),
        }
    }

    fn name(name: &'static [u8]) -> Changed {
        Changed {
            inodes: Vec::new(),
            names: vec![ChangedName {
                directory: DIR,
                name: Bytes::from_static(name),
                vacated: false,
            }],
        }
    }

    #[test]
    fn whoever_was_told_hears_of_changes_by_others() {
        let interests = Arc::new(Interests::default());
        let (mut a, mut b) = (watch(&interests, A), watch(&interests, B));
        note(&interests, A, FILE);
        interests.changed(Some(A), &attributes());
        assert_eq!(next(&mut a), None, "its own change");
        note(&interests, A, FILE);
        interests.changed(Some(B), &attributes());
        assert_eq!(next(&mut a).map(|m| m.inodes), Some(vec![7]));
        assert_eq!(next(&mut b), None, "it was never told");
        interests.changed(Some(B), &attributes());
        assert_eq!(next(&mut a), None, "once, until it asks again");
    }

    #[test]
    fn names_stay_cached_beside_the_one_that_changed() {
        let interests = Arc::new(Interests::default());
        let mut a = watch(&interests, A);
        note_names(&interests, A);
        for changed in [b"x", b"y"] {
            interests.changed(Some(B), &name(changed));
            let told = next(&mut a).expect("an invalidation");
            assert_eq!(
                (told.names[0].parent, &told.names[0].name[..]),
                (8, &changed[..])
            );
        }
    }

    #[test]
    fn who_does_not_watch_is_not_noted() {
        let interests = Arc::new(Interests::default());
        note(&interests, A, FILE);
        drop(watch(&interests, B));
        note_names(&interests, B);
        assert_eq!(interests.notes(), 0);
        // A new stream does not hear what was noted for the old one.
        let old = watch(&interests, A);
        note(&interests, A, FILE);
        let mut new = watch(&interests, A);
        interests.changed(Some(B), &attributes());
        assert_eq!(next(&mut new), None);
        drop(old);
        note(&interests, A, FILE);
        assert_eq!(
            interests.notes(),
            1,
            "the end of the old stream is not that of the new one"
        );
    }

    #[test]
    fn a_stream_that_is_not_read_says_so_and_stays_bounded() {
        let interests = Arc::new(Interests::default());
        let mut a = watch(&interests, A);
        note_names(&interests, A);
        for _ in 0..QUEUE + 5 {
            interests.changed(Some(B), &name(b"x"));
        }
        for _ in 0..QUEUE {
            assert!(next(&mut a).is_some_and(|message| !message.everything));
        }
        assert_eq!(next(&mut a), None);
        interests.changed(Some(B), &name(b"x"));
        assert!(next(&mut a).is_some_and(|message| message.everything));
        interests.changed(Some(B), &name(b"x"));
        assert!(next(&mut a).is_some_and(|message| !message.everything));
    }

    #[test]
    fn notes_last_a_term_and_not_for_ever() {
        let mut shard = Shard {
            since: Instant::now(),
            notes: Default::default(),
        };
        let begun = shard.since;
        let key = (FILE, false);
        shard.notes[0].by_inode.insert(key, vec![1]);
        shard.turn(begun + LONG_TERM);
        assert!(shard.notes[1].by_inode.contains_key(&key), "still believed");
        shard.turn(begun + LONG_TERM * 2);
        assert!(shard.notes.iter().all(|notes| notes.by_inode.is_empty()));
        let later = begun + LONG_TERM * 1000;
        shard.turn(later);
        assert!(shard.since <= later && shard.since + LONG_TERM * 2 >= later);
    }

    #[test]
    fn notes_are_bounded_and_who_is_not_noted_any_more_is_told() {
        let interests = Arc::new(Interests::default());
        let (mut a, mut b) = (watch(&interests, A), watch(&interests, B));
        let inode = |n: usize| InodeId((n * SHARDS) as u64);
        note(&interests, B, inode(0));
        for n in 0..2 * MAX_NOTES - 1 {
            note(&interests, A, inode(n));
        }
        assert_eq!(interests.notes(), 2 * MAX_NOTES);
        assert_eq!((next(&mut a), next(&mut b)), (None, None));
        // One more, and the oldest are dropped: of both.
        note(&interests, A, inode(2 * MAX_NOTES));
        assert_eq!(interests.notes(), MAX_NOTES + 1);
        for watch in [&mut a, &mut b] {
            assert!(next(watch).is_some_and(|message| message.everything));
        }
        interests.changed(Some(B), &attributes_of(inode(0)));
        assert_eq!(next(&mut a), None, "it believes nothing of it any more");
        let last = attributes_of(inode(2 * MAX_NOTES - 2));
        interests.changed(Some(B), &last);
        assert!(next(&mut a).is_some_and(|message| !message.everything));
    }
}
