//! What is known of one disk's damage: counts, the running scrub pass, chunks that nobody could repair.
//!
//! Kept in `scrub.toml` in the disk's directory, so that a restart goes on where it was. The
//! file says nothing that the disk itself does not: without it, or with a damaged one, a pass begins
//! from the start. Pure state here; the [scrub](super::scrub) task loads and saves it.

use std::collections::HashMap;
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use emberfs_proto::ids::{ChunkKey, TargetId};
use emberfs_proto::{Error, ErrorCode, Result, pb};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// Name of the file.
const FILE: &str = "scrub.toml";
/// Unrepairable chunks that are remembered one by one; more are only counted by the next pass.
const MAX_LOST: usize = 1000;
/// A chunk that could not be repaired is not tried again for reads and writes before this: each try
/// reads it as a whole and asks every other replica.
const RETRY_LOST: Duration = Duration::from_secs(5);

/// A scrub pass, running or finished.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Pass {
    pub(super) started_ms: u64,
    /// 0: still running.
    pub(super) finished_ms: u64,
    pub(super) chunks: u64,
    pub(super) bytes: u64,
    pub(super) total_bytes: u64,
    pub(super) found: u64,
    pub(super) repaired: u64,
    pub(super) unrepairable: u64,
    /// The last chunk that is done with: target, inode, index.
    after: Option<(u64, u64, u32)>,
}

/// A chunk for which no replica has the right bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lost {
    target: u64,
    inode: u64,
    index: u32,
    pub(super) why: String,
}

/// What is on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct State {
    found: u64,
    repaired: u64,
    last_found_ms: u64,
    running: Option<Pass>,
    last: Option<Pass>,
    lost: Vec<Lost>,
}

/// One disk.
#[derive(Default)]
pub(super) struct Care {
    inner: Mutex<Inner>,
    /// For the scrub task: a pass was asked for, the settings changed, or there is something to save.
    pub(super) wake: Notify,
}

#[derive(Default)]
struct Inner {
    state: State,
    /// As last saved or loaded.
    saved: State,
    /// A pass was asked for.
    asked: bool,
    tried: HashMap<(TargetId, ChunkKey), Instant>,
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

impl Lost {
    pub(super) fn target(&self) -> TargetId {
        TargetId(self.target)
    }

    pub(super) fn key(&self) -> ChunkKey {
        ChunkKey::new(self.inode, self.index)
    }

    fn is(&self, target: TargetId, key: ChunkKey) -> bool {
        (self.target(), self.key()) == (target, key)
    }
}

impl Pass {
    /// Where the pass goes on: behind this chunk.
    pub(super) fn after(&self) -> Option<(TargetId, ChunkKey)> {
        self.after
            .map(|(target, inode, index)| (TargetId(target), ChunkKey::new(inode, index)))
    }

    fn message(&self) -> pb::ScrubPass {
        pb::ScrubPass {
            started_ms: self.started_ms,
            finished_ms: self.finished_ms,
            chunks: self.chunks,
            bytes: self.bytes,
            total_bytes: self.total_bytes.max(self.bytes),
            found: self.found,
            repaired: self.repaired,
            unrepairable: self.unrepairable,
        }
    }
}

impl Care {
    /// Damage was found and put right.
    pub(super) fn repaired(&self, target: TargetId, key: ChunkKey) {
        let mut inner = self.inner.lock();
        inner.forget(target, key);
        inner.state.found += 1;
        inner.state.repaired += 1;
        inner.state.last_found_ms = now_ms();
        self.wake.notify_one();
    }

    /// Damage was found that no replica has the bytes for.
    pub(super) fn lost(&self, target: TargetId, key: ChunkKey, why: &str) {
        let mut inner = self.inner.lock();
        let state = &mut inner.state;
        match state.lost.iter_mut().find(|lost| lost.is(target, key)) {
            Some(lost) => why.clone_into(&mut lost.why),
            None => {
                state.found += 1;
                state.last_found_ms = now_ms();
                if state.lost.len() < MAX_LOST {
                    state.lost.push(Lost {
                        target: target.0,
                        inode: key.inode.0,
                        index: key.index.0,
                        why: why.to_owned(),
                    });
                }
            }
        }
        if inner.tried.len() >= MAX_LOST {
            inner.tried.clear();
        }
        inner.tried.insert((target, key), Instant::now());
        self.wake.notify_one();
    }

    /// The chunk is as it should be, or gone.
    pub(super) fn sound(&self, target: TargetId, key: ChunkKey) {
        self.inner.lock().forget(target, key);
    }

    /// Why the last attempt to repair a chunk failed, if that was just now.
    pub(super) fn just_lost(&self, target: TargetId, key: ChunkKey) -> Option<String> {
        let inner = self.inner.lock();
        let tried = inner.tried.get(&(target, key))?;
        let lost = inner.state.lost.iter().find(|lost| lost.is(target, key))?;
        (tried.elapsed() < RETRY_LOST).then(|| lost.why.clone())
    }

    /// Chunks that nobody could repair.
    pub(super) fn all_lost(&self) -> Vec<Lost> {
        self.inner.lock().state.lost.clone()
    }

    /// Asks for a pass now; one that runs already will do.
    pub(super) fn ask(&self) {
        let mut inner = self.inner.lock();
        inner.asked |= inner.state.running.is_none();
        self.wake.notify_one();
    }

    /// When the next pass begins, milliseconds since 1970; `None`: none is due. A pass is due
    /// every `interval` from the beginning of the one before.
    pub(super) fn next_start(&self, interval: Duration, now: u64) -> Option<u64> {
        self.inner.lock().next_start(interval, now)
    }

    /// The running pass; a due one begins. `total` bytes are on the disk.
    pub(super) fn begin_if_due(&self, interval: Duration, total: u64) -> Option<Pass> {
        let now = now_ms();
        let mut inner = self.inner.lock();
        if inner.next_start(interval, now).is_none_or(|at| at > now) {
            return None;
        }
        inner.asked = false;
        let begun = || Pass {
            started_ms: now,
            total_bytes: total,
            ..Pass::default()
        };
        Some(inner.state.running.get_or_insert_with(begun).clone())
    }

    /// One chunk of the running pass is done with.
    pub(super) fn advance(&self, target: TargetId, key: ChunkKey, bytes: u64, found: Option<bool>) {
        if let Some(pass) = &mut self.inner.lock().state.running {
            pass.after = Some((target.0, key.inode.0, key.index.0));
            pass.chunks += 1;
            pass.bytes += bytes;
            pass.found += u64::from(found.is_some());
            pass.repaired += u64::from(found == Some(true));
            pass.unrepairable += u64::from(found == Some(false));
        }
    }

    /// The running pass has seen everything.
    pub(super) fn finish(&self) {
        let mut inner = self.inner.lock();
        if let Some(mut pass) = inner.state.running.take() {
            pass.finished_ms = now_ms();
            pass.total_bytes = pass.bytes;
            pass.after = None;
            inner.state.last = Some(pass);
        }
    }

    /// For heartbeats and `emberfs scrub`.
    pub(super) fn message(&self, interval: Duration) -> pb::DiskCare {
        let inner = self.inner.lock();
        let state = &inner.state;
        pb::DiskCare {
            found: state.found,
            repaired: state.repaired,
            unrepairable: state.lost.len() as u64,
            last_found_ms: state.last_found_ms,
            running: state.running.as_ref().map(Pass::message),
            last: state.last.as_ref().map(Pass::message),
            next_start_ms: inner.next_start(interval, now_ms()).unwrap_or(0),
        }
    }

    /// Adds what the file says to what has happened since the start.
    pub(super) fn load(&self, file: State) {
        let mut inner = self.inner.lock();
        inner.saved = file.clone();
        let since = std::mem::replace(&mut inner.state, file);
        let state = &mut inner.state;
        state.found += since.found;
        state.repaired += since.repaired;
        state.last_found_ms = state.last_found_ms.max(since.last_found_ms);
        for lost in since.lost {
            state.lost.retain(|l| !l.is(lost.target(), lost.key()));
            state.lost.push(lost);
        }
    }

    /// What is to be saved; `None`: nothing has changed. Counts as saved.
    pub(super) fn take_unsaved(&self) -> Option<State> {
        let mut inner = self.inner.lock();
        (inner.state != inner.saved).then(|| {
            inner.saved = inner.state.clone();
            inner.state.clone()
        })
    }
}

impl Inner {
    fn forget(&mut self, target: TargetId, key: ChunkKey) {
        self.state.lost.retain(|lost| !lost.is(target, key));
        self.tried.remove(&(target, key));
    }

    fn next_start(&self, interval: Duration, now: u64) -> Option<u64> {
        if self.asked || self.state.running.is_some() {
            return Some(now);
        }
        if interval.is_zero() {
            return None;
        }
        let last = self.state.last.as_ref();
        Some(last.map_or(now, |last| {
            last.started_ms.saturating_add(interval.as_millis() as u64)
        }))
    }
}

impl State {
    /// Reads a disk's file. Blocks. A missing or damaged one is as none.
    pub(super) fn read(disk: &Path) -> Self {
        let path = disk.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "cannot read; the scrub begins anew");
                }
                return Self::default();
            }
        };
        toml::from_str(&text).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "damaged; the scrub begins anew");
            Self::default()
        })
    }

    /// Writes it. Blocks; durable when it returns.
    pub(super) fn write(&self, disk: &Path) -> Result<()> {
        let failed = |error: &dyn std::fmt::Display| {
            let what = format!("writing {}: {error}", disk.join(FILE).display());
            Error::new(ErrorCode::DiskError, what)
        };
        let text = toml::to_string(self).map_err(|e| failed(&e))?;
        let write = || {
            let new = disk.join("scrub.toml.new");
            let mut file = std::fs::File::create(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, disk.join(FILE))?;
            std::fs::File::open(disk)?.sync_all()
        };
        write().map_err(|error: std::io::Error| failed(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: TargetId = TargetId(7);
    const DAY: Duration = Duration::from_hours(24);

    fn key(n: u64) -> ChunkKey {
        ChunkKey::new(n, 0)
    }

    #[test]
    fn a_restart_goes_on_where_the_pass_was_and_forgets_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let care = Care::default();
        assert_eq!(State::read(dir.path()), State::default());
        assert_eq!(
            care.begin_if_due(DAY, 1000).unwrap().after(),
            None,
            "never scrubbed: due at once"
        );
        care.advance(T, key(1), 10, None);
        care.repaired(T, key(2));
        care.advance(T, key(2), 10, Some(true));
        care.lost(T, key(3), "nobody has it");
        care.advance(T, key(3), 10, Some(false));
        care.take_unsaved().unwrap().write(dir.path()).unwrap();
        assert!(care.take_unsaved().is_none());

        let care = Care::default();
        // Something happens before the file is read.
        care.repaired(T, key(9));
        care.load(State::read(dir.path()));
        let pass = care.begin_if_due(Duration::ZERO, 5).unwrap();
        assert_eq!(pass.after(), Some((T, key(3))));
        assert_eq!((pass.chunks, pass.found, pass.total_bytes), (3, 2, 1000));
        let said = care.message(DAY);
        assert_eq!((said.found, said.repaired, said.unrepairable), (3, 2, 1));
        care.finish();
        let last = care.message(DAY).last.unwrap();
        assert_eq!((last.repaired, last.unrepairable, last.bytes), (1, 1, 30));
        std::fs::write(dir.path().join(FILE), "running = 5").unwrap();
        assert_eq!(State::read(dir.path()), State::default());
    }

    #[test]
    fn passes_begin_by_schedule_or_when_asked_for_and_zero_is_never() {
        let care = Care::default();
        assert!(care.begin_if_due(Duration::ZERO, 0).is_none());
        let pass = care.begin_if_due(DAY, 0).unwrap();
        care.finish();
        let next = care.next_start(DAY, now_ms());
        assert_eq!(next, Some(pass.started_ms + 86_400_000));
        assert!(care.begin_if_due(DAY, 0).is_none());
        assert_eq!(care.next_start(Duration::ZERO, now_ms()), None);
        care.ask();
        assert!(care.begin_if_due(Duration::ZERO, 0).is_some());
        // One that runs is enough.
        care.ask();
        care.finish();
        assert!(care.begin_if_due(Duration::ZERO, 0).is_none());
    }

    #[test]
    fn a_chunk_that_is_repaired_or_gone_is_not_lost_any_more() {
        let care = Care::default();
        care.lost(T, key(1), "a");
        care.lost(T, key(1), "b");
        care.lost(T, key(2), "c");
        assert_eq!(care.just_lost(T, key(1)).as_deref(), Some("b"));
        assert_eq!(care.message(DAY).found, 2);
        care.sound(T, key(1));
        assert_eq!(care.just_lost(T, key(1)), None);
        care.repaired(T, key(2));
        assert!(care.all_lost().is_empty());
    }
}
