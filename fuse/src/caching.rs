//! How long the kernel may believe what it is told, and telling it what others have changed.
//!
//! While the client watches, the metadata server tells it of every change to what it was told; so the kernel may believe
//! names and attributes for the server's term, and is told to forget what changes meanwhile. Without a watch,
//! for `attr_timeout` and `entry_timeout` only.
//!
//! The term is long where the kernel can drop all names at once (Linux 6.16): when the watch breaks or loses something, it
//! is told so, asks for each name again when it is used, and gets new attributes with it; those of what is open are
//! dropped one by one.
//!
//! An answer that was overtaken by an invalidation on its way must not be believed at all. So a reply is sent under a
//! shared lock, with no lifetime if something that hashes alike was invalidated since its request came; an
//! invalidation takes that lock alone before it tells the kernel, so that one of the two always sees the other. What the handler answers
//! from memory it drops before that. (By
//! rings, a reply is handed to a queue's thread under that lock, and may come after all: then it is believed for one term, so
//! that there it is the short one.)

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use emberfs_client::{Attr, CacheEvent};
use emberfs_proto::ids::InodeId;
use emberfs_proto::pb;
use parking_lot::{RwLock, RwLockReadGuard};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::backend::Backend;
use crate::handler::{DirItem, Handler};
use crate::protocol::reply::{self, Lifetimes};

/// Inodes share marks by their low bits.
const MARKS: usize = 256;

/// See the module.
pub(crate) struct Caching {
    /// Counts invalidations.
    clock: AtomicU64,
    /// When something with this hash was invalidated last.
    marks: [AtomicU64; MARKS],
    /// Shared by replies, alone for invalidations.
    gate: RwLock<()>,
    /// Without a watch.
    ordinary: Lifetimes,
    /// Whether the user chose lifetimes: then those hold.
    chosen: bool,
    /// A reply is with the kernel before the lock under which it is sent is given back.
    in_order: bool,
    /// Of a watch, in nanoseconds; 0: there is none.
    term: AtomicU64,
}

/// The moment at which a request came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Since(u64);

impl Caching {
    pub(crate) fn new(ordinary: Lifetimes, chosen: bool, in_order: bool) -> Self {
        Self {
            clock: AtomicU64::new(0),
            marks: std::array::from_fn(|_| AtomicU64::new(0)),
            gate: RwLock::new(()),
            ordinary,
            chosen,
            in_order,
            term: AtomicU64::new(0),
        }
    }

    pub(crate) fn now(&self) -> Since {
        Since(self.clock.load(Ordering::Acquire))
    }

    /// What an answer to a request that came at `since` may be believed; it must be sent while this is held.
    pub(crate) fn believe(&self, since: Since) -> Believed<'_> {
        let gate = self.gate.read();
        let full = match self.term.load(Ordering::Acquire) {
            term if term > 0 && !self.chosen => {
                let both = Duration::from_nanos(term);
                Lifetimes {
                    entry: both,
                    attr: both,
                }
            }
            _ => self.ordinary,
        };
        Believed {
            caching: self,
            since,
            full,
            _gate: gate,
        }
    }

    fn fresh(&self, inode: u64, since: Since) -> bool {
        self.marks[inode as usize % MARKS].load(Ordering::Acquire) <= since.0
    }

    /// Answers about these that are on their way are not to be believed.
    fn invalidate(&self, inodes: impl IntoIterator<Item = u64>) {
        let _gate = self.gate.write();
        let now = self.clock.fetch_add(1, Ordering::AcqRel) + 1;
        for inode in inodes {
            self.marks[inode as usize % MARKS].store(now, Ordering::Release);
        }
    }

    fn invalidate_all(&self) {
        self.invalidate(0..MARKS as u64);
    }
}

/// See [`Caching::believe`].
pub(crate) struct Believed<'a> {
    caching: &'a Caching,
    since: Since,
    full: Lifetimes,
    _gate: RwLockReadGuard<'a, ()>,
}

impl Believed<'_> {
    /// How long an inode's attributes hold.
    pub(crate) fn attr(&self, inode: u64) -> Duration {
        if self.caching.fresh(inode, self.since) {
            self.full.attr
        } else {
            Duration::ZERO
        }
    }

    /// As [`Self::attr`], but for a file with holes: how much room it takes is only found out when somebody asks.
    pub(crate) fn attr_of(&self, attr: &Attr) -> Duration {
        if attr.sparse {
            Duration::ZERO
        } else {
            self.attr(attr.inode)
        }
    }

    /// How long it holds that a name in `parent` means this inode, and what its attributes are.
    pub(crate) fn entry(&self, parent: u64, attr: &Attr) -> Lifetimes {
        Lifetimes {
            entry: self.name(parent),
            attr: self.attr_of(attr),
        }
    }

    /// The same of a line of a listing.
    pub(crate) fn listed(&self, parent: u64, item: &DirItem) -> Lifetimes {
        let none = Lifetimes {
            entry: Duration::ZERO,
            attr: Duration::ZERO,
        };
        item.attr
            .as_ref()
            .map_or(none, |attr| self.entry(parent, attr))
    }

    /// Whether changes by others are told.
    pub(crate) fn watched(&self) -> bool {
        self.caching.term.load(Ordering::Acquire) > 0
    }

    /// How long what a name in `parent` means holds.
    pub(crate) fn name(&self, parent: u64) -> Duration {
        if self.caching.fresh(parent, self.since) {
            self.full.entry
        } else {
            Duration::ZERO
        }
    }
}

/// Follows what others change until the events end; ends with the mount.
pub(crate) async fn follow<B: Backend>(
    caching: Arc<Caching>,
    handler: Arc<Handler<B>>,
    device: Arc<OwnedFd>,
    mut events: mpsc::Receiver<CacheEvent>,
) {
    let mut again = Again::default();
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            (times, messages) = again.due() => {
                let unknown = tell(&device, messages).await;
                again.add(times, unknown);
                continue;
            }
        };
        let Some(event) = event else { return };
        match event {
            CacheEvent::Watching { term, long_term } => {
                let epochs = || rustix::io::write(&*device, &reply::stale_names()).is_ok();
                let term = if caching.in_order && epochs() {
                    long_term
                } else {
                    term
                };
                let nanos = u64::try_from(term.as_nanos()).unwrap_or(u64::MAX);
                handler.watched_for(term, !caching.chosen);
                caching.term.store(nanos, Ordering::Release);
            }
            CacheEvent::Blind => {
                handler.watched_for(Duration::ZERO, false);
                caching.term.store(0, Ordering::Release);
                missed(&caching, &handler, &device).await;
                give_ends_back(&handler, handler.appended());
            }
            CacheEvent::Changed(changed) => {
                if changed.everything {
                    missed(&caching, &handler, &device).await;
                }
                let unknown = changed_elsewhere(&caching, &handler, &device, changed).await;
                again.add(0, unknown);
                if again.is_full() {
                    again = Again::default();
                    missed(&caching, &handler, &device).await;
                }
            }
        }
    }
}

/// Others may have changed anything.
async fn missed<B: Backend>(caching: &Caching, handler: &Arc<Handler<B>>, device: &Arc<OwnedFd>) {
    handler.missed_changes();
    caching.invalidate_all();
    tell(device, stale(handler)).await;
}

/// Messages that make the kernel ask again for all that it believes, if it knows epochs.
pub(crate) fn stale<B: Backend>(handler: &Handler<B>) -> Vec<Vec<u8>> {
    let open = handler.open_nodes().into_iter();
    let open = open.map(reply::stale_attributes);
    open.chain([reply::stale_names()]).collect()
}

/// Sends messages to the kernel; those about inodes and names that it does not have.
async fn tell(device: &Arc<OwnedFd>, messages: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let device = device.clone();
    // The kernel waits for locks of the inodes that it is told about.
    let told = tokio::task::spawn_blocking(move || {
        let unknown = |message: &Vec<u8>| {
            rustix::io::write(&*device, message) == Err(rustix::io::Errno::NOENT)
        };
        messages.into_iter().filter(unknown).collect()
    });
    told.await.unwrap_or_default()
}

/// When what the kernel did not know is sent again, each time after the last.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(10),
    Duration::from_millis(200),
    Duration::from_secs(2),
];
/// Messages that wait for that; with more, the kernel is told to ask for everything again.
const MAX_AGAIN: usize = 16 << 10;

/// What the kernel did not know when it was told, and is told again.
///
/// A program's thread takes a reply in when it runs, which on a busy host is long after the reply was sent. An invalidation in between finds
/// nothing, and what the thread then takes in would be believed for minutes. The kernel tells nobody when that happens, so this is
/// repeated for as long as a thread may reasonably wait.
///
/// A queue for each pause, in which messages are in order by themselves.
#[derive(Default)]
struct Again([VecDeque<(Instant, Vec<u8>)>; PAUSES.len()]);

impl Again {
    /// These were sent `times` times again, in vain.
    fn add(&mut self, times: usize, messages: Vec<Vec<u8>>) {
        if let (Some(queue), Some(pause)) = (self.0.get_mut(times), PAUSES.get(times)) {
            let due = Instant::now() + *pause;
            queue.extend(messages.into_iter().map(|mut message| {
                reply::without_force(&mut message);
                (due, message)
            }));
        }
    }

    fn is_full(&self) -> bool {
        self.0.iter().map(VecDeque::len).sum::<usize>() > MAX_AGAIN
    }

    /// Waits for the next ones to be sent, also how often they will have been sent again then; never ends while there are none.
    async fn due(&mut self) -> (usize, Vec<Vec<u8>>) {
        let fronts = self.0.iter().zip(1..);
        let next = fronts.filter_map(|(queue, times)| Some((queue.front()?.0, times)));
        let Some((due, times)) = next.min() else {
            return std::future::pending().await;
        };
        tokio::time::sleep_until(due).await;
        let queue = &mut self.0[times - 1];
        let ready = queue.partition_point(|(at, _)| *at <= due);
        let messages = queue.drain(..ready).map(|(_, message)| message);
        (times, messages.collect())
    }
}

/// Beside everything else: what was appended has to reach the servers first.
fn give_ends_back<B: Backend>(handler: &Arc<Handler<B>>, inodes: Vec<u64>) {
    for inode in inodes {
        let handler = handler.clone();
        tokio::spawn(async move {
            if let Err(error) = handler.append_wanted(inode).await {
                tracing::warn!(inode, %error, "the end of a file could not be given to another mount");
            }
        });
    }
}

async fn changed_elsewhere<B: Backend>(
    caching: &Caching,
    handler: &Arc<Handler<B>>,
    device: &Arc<OwnedFd>,
    changed: pb::Invalidation,
) -> Vec<Vec<u8>> {
    let nodes: Vec<u64> = changed
        .inodes
        .iter()
        .map(|&inode| handler.node(inode))
        .collect();
    let parents: Vec<u64> = changed
        .names
        .iter()
        .map(|name| handler.node(name.parent))
        .collect();
    // The handler first: what it knew a moment ago is overtaken by the marks that follow.
    for &inode in &changed.inodes {
        handler.heard_of(InodeId(inode));
    }
    for name in &changed.names {
        handler.renamed_elsewhere(InodeId(name.parent), &name.name);
    }
    caching.invalidate(nodes.iter().chain(&parents).copied());
    let mut messages = Vec::new();
    for (inode, node) in changed.inodes.into_iter().zip(nodes) {
        messages.push(reply::stale_attributes(node));
        if handler.pages_are_stale(InodeId(inode)).await {
            messages.push(reply::stale_pages(node));
        }
    }
    for (name, parent) in changed.names.iter().zip(parents) {
        messages.push(if name.vacated {
            reply::vacated_name(parent, &name.name)
        } else {
            reply::stale_name(parent, &name.name)
        });
    }
    give_ends_back(handler, changed.append_wanted);
    tell(device, messages).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn caching(chosen: bool) -> Caching {
        let ordinary = Lifetimes {
            entry: SECOND,
            attr: SECOND,
        };
        Caching::new(ordinary, chosen, true)
    }

    fn lifetimes(caching: &Caching, since: Since, parent: u64, inode: u64) -> (Duration, Duration) {
        let attr = Attr {
            inode,
            ..Attr::default()
        };
        let Lifetimes { entry, attr } = caching.believe(since).entry(parent, &attr);
        (entry, attr)
    }

    #[test]
    fn a_watch_lengthens_lifetimes_unless_they_were_chosen() {
        for (chosen, expected) in [(false, 10 * SECOND), (true, SECOND)] {
            let caching = caching(chosen);
            let since = caching.now();
            assert_eq!(lifetimes(&caching, since, 1, 2), (SECOND, SECOND));
            caching.term.store(10_000_000_000, Ordering::Release);
            assert_eq!(lifetimes(&caching, since, 1, 2), (expected, expected));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_kernel_did_not_know_it_is_told_again() {
        let mut again = Again::default();
        let begun = Instant::now();
        again.add(0, vec![vec![1]]);
        let mut sent = Vec::new();
        for n in 2..5 {
            let (times, due) = again.due().await;
            sent.push((times, due.clone(), begun.elapsed().as_millis()));
            again.add(times, due);
            if n == 2 {
                again.add(0, vec![vec![n]]);
            }
        }
        let expected = [
            (1, vec![vec![1]], 10),
            (1, vec![vec![2]], 20),
            (2, vec![vec![1]], 210),
        ];
        assert_eq!(sent, expected);
        for times in [2, 3] {
            let (times_sent, due) = again.due().await;
            assert_eq!((times_sent, due.len()), (times, 1));
            again.add(times, due);
        }
        let (times, due) = again.due().await;
        again.add(times, due);
        assert!(again.0.iter().all(VecDeque::is_empty), "not for ever");
        again.add(0, vec![Vec::new(); MAX_AGAIN + 1]);
        assert!(again.is_full());
    }

    #[test]
    fn what_was_overtaken_is_not_believed_and_what_comes_later_is() {
        const NONE: Duration = Duration::ZERO;
        let caching = caching(false);
        let before = caching.now();
        caching.invalidate([2]);
        assert_eq!(lifetimes(&caching, before, 1, 2), (SECOND, NONE));
        assert_eq!(lifetimes(&caching, before, 2, 3), (NONE, SECOND));
        assert_eq!(lifetimes(&caching, before, 2, 2), (NONE, NONE));
        assert_eq!(lifetimes(&caching, before, 5, 6), (SECOND, SECOND));
        let after = caching.now();
        assert_eq!(lifetimes(&caching, after, 2, 2), (SECOND, SECOND));
        caching.invalidate_all();
        assert_eq!(lifetimes(&caching, after, 5, 6), (NONE, NONE));
    }
}
