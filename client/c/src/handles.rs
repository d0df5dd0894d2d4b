//! Numbers that stand for clients, files and rings.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::error::{Failure, Result};

/// One counter for all kinds, so that no handle of one kind is ever valid as another.
static NEXT: AtomicU64 = AtomicU64::new(1);
/// The process that connected first; 0 before.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// Fails in the forked child of a process that had connected: the client's threads are not there, and
/// its locks may be held for ever. Takes no lock itself.
pub(crate) fn same_process() -> Result<()> {
    check_owner(OWNER.load(Ordering::Acquire), std::process::id())
}

pub(crate) fn check_owner(owner: u32, me: u32) -> Result<()> {
    if owner == 0 || owner == me {
        return Ok(());
    }
    let what = format!(
        "process {me} was forked from {owner}, which had connected; connect after the fork, or use spawn or exec"
    );
    Err(Failure::new(libc::EPERM, what))
}

/// From now on only this process may call.
pub(crate) fn claim_process() {
    let me = std::process::id();
    // Fails if it is claimed, by this process: another one does not get past `same_process`.
    _ = OWNER.compare_exchange(0, me, Ordering::AcqRel, Ordering::Acquire);
}

/// The live handles of one kind.
pub(crate) struct Table<T> {
    kind: &'static str,
    live: RwLock<BTreeMap<u64, Arc<T>>>,
}

impl<T> Table<T> {
    pub(crate) const fn new(kind: &'static str) -> Self {
        Self {
            kind,
            live: RwLock::new(BTreeMap::new()),
        }
    }

    pub(crate) fn insert(&self, item: Arc<T>) -> u64 {
        let handle = NEXT.fetch_add(1, Ordering::Relaxed);
        self.live.write().insert(handle, item);
        handle
    }

    pub(crate) fn get(&self, handle: u64) -> Result<Arc<T>> {
        let found = self.live.read().get(&handle).cloned();
        found.ok_or_else(|| self.unknown(handle))
    }

    /// Takes the handle away if `allowed` says so; no other call gets in between.
    pub(crate) fn remove_if(
        &self,
        handle: u64,
        allowed: impl FnOnce(&T) -> Result<()>,
    ) -> Result<Arc<T>> {
        let mut live = self.live.write();
        allowed(live.get(&handle).ok_or_else(|| self.unknown(handle))?)?;
        live.remove(&handle).ok_or_else(|| self.unknown(handle))
    }

    fn unknown(&self, handle: u64) -> Failure {
        let what = format!("{handle} is no open {}", self.kind);
        Failure::new(libc::EBADF, what)
    }
}
