//! New files whose writers may keep what they have written to themselves for a while.
//!
//! Whoever makes a file, and watches, may be given the *delegation* of it, which lasts as long as its session at most. Nobody
//! else is told anything about the file before the holder was asked to report what it has written (*recalled*) and
//! has done so. So a program may go on from close(2) at once, and others find what was closed before they looked (close-to-open).
//!
//! Delegations are in memory, and begin again with the sessions that are found in the store. A holder that is not heard of within [`LIMIT`] loses it, and others see what
//! the server knows, as they would if the file were still open.
//!
//! (Write delegations: NFSv4, RFC 7530, section 10.4; here for new files only.)

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use emberfs_proto::ids::{ClientId, InodeId, SessionId};
use parking_lot::Mutex;
use tokio::sync::watch;

/// Longest wait for a holder: so long it may take until a mount knows that it is told nothing any more.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct Delegations {
    table: Mutex<HashMap<InodeId, Delegation>>,
    /// Entries of the table: mostly none are others', and nobody needs the lock.
    count: AtomicUsize,
    /// How many have ended.
    ended: watch::Sender<u64>,
}

struct Delegation {
    holder: ClientId,
    session: SessionId,
    recalled: bool,
}

impl Default for Delegations {
    fn default() -> Self {
        Self {
            table: Mutex::default(),
            count: AtomicUsize::new(0),
            ended: watch::Sender::new(0),
        }
    }
}

impl Delegations {
    /// The client has made the file in this session. To be called before anybody can see it.
    pub(crate) fn grant(&self, inode: InodeId, session: SessionId, holder: ClientId) {
        let mut table = self.table.lock();
        let delegation = Delegation {
            holder,
            session,
            recalled: false,
        };
        table.insert(inode, delegation);
        self.count.store(table.len(), Ordering::SeqCst);
    }

    /// The session has ended; what it reported is visible.
    pub(crate) fn end(&self, inode: InodeId, session: SessionId) {
        self.remove_if(inode, |one| one.session == session);
    }

    /// The client has reported all that it wrote, and will from now on report before it says that a file is closed.
    pub(crate) fn give_back(&self, inode: InodeId, holder: ClientId) {
        self.remove_if(inode, |one| one.holder == holder);
    }

    fn remove_if(&self, inode: InodeId, condition: impl Fn(&Delegation) -> bool) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut table = self.table.lock();
        if table.get(&inode).is_some_and(condition) {
            table.remove(&inode);
            self.count.store(table.len(), Ordering::SeqCst);
            drop(table);
            self.ended.send_modify(|ended| *ended += 1);
        }
    }

    /// Whether this client holds it.
    pub(crate) fn is_held_by(&self, inode: InodeId, client: ClientId) -> bool {
        let table = self.table.lock();
        table.get(&inode).is_some_and(|one| one.holder == client)
    }

    /// Who must report before `asker` is told of this file, if somebody else holds it, and whether nobody has asked him to yet.
    pub(crate) fn withheld(
        &self,
        inode: InodeId,
        asker: Option<ClientId>,
    ) -> Option<(ClientId, bool)> {
        if self.count.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let mut table = self.table.lock();
        let one = table
            .get_mut(&inode)
            .filter(|one| Some(one.holder) != asker)?;
        let first = !std::mem::replace(&mut one.recalled, true);
        Some((one.holder, first))
    }

    /// What this client was asked for and may not have heard.
    pub(crate) fn recalled_from(&self, holder: ClientId) -> Vec<InodeId> {
        let table = self.table.lock();
        let recalled = table
            .iter()
            .filter(|(_, one)| one.recalled && one.holder == holder);
        recalled.map(|(&inode, _)| inode).collect()
    }

    /// Moves after what the holder of an ended delegation reported became visible.
    pub(crate) fn clock(&self) -> u64 {
        *self.ended.borrow()
    }

    /// Waits until the delegation of a file has ended, and ends it if that takes too long.
    pub(crate) async fn ended(&self, inode: InodeId) {
        let mut ended = self.ended.subscribe();
        let gone = ended.wait_for(|_| !self.table.lock().contains_key(&inode));
        if tokio::time::timeout(LIMIT, gone).await.is_err() {
            tracing::warn!(%inode, "a client does not say what it has written to a file; others see it without that");
            self.remove_if(inode, |_| true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ClientId = ClientId(1);
    const B: ClientId = ClientId(2);
    const FILE: InodeId = InodeId(7);
    const SESSION: SessionId = SessionId(70);

    #[test]
    fn the_holder_is_asked_once_and_never_kept_from_its_own() {
        let all = Delegations::default();
        assert_eq!(all.withheld(FILE, Some(B)), None);
        all.grant(FILE, SESSION, A);
        assert_eq!(all.withheld(FILE, Some(A)), None);
        assert!(all.recalled_from(A).is_empty());
        assert_eq!(all.withheld(FILE, Some(B)), Some((A, true)));
        assert_eq!(all.withheld(FILE, Some(B)), Some((A, false)));
        assert_eq!(
            all.withheld(FILE, None),
            Some((A, false)),
            "nobody is the holder himself"
        );
        assert_eq!(all.recalled_from(A), [FILE]);
        all.give_back(FILE, B);
        all.end(FILE, SessionId(71));
        assert!(all.is_held_by(FILE, A) && !all.is_held_by(FILE, B));
        let before = all.clock();
        all.give_back(FILE, A);
        assert_ne!(all.clock(), before);
        assert_eq!(all.withheld(FILE, Some(B)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_with_the_delegation_or_at_the_limit() {
        let all = Delegations::default();
        all.ended(FILE).await;
        all.grant(FILE, SESSION, A);
        let begun = tokio::time::Instant::now();
        tokio::join!(all.ended(FILE), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            all.end(FILE, SESSION);
        });
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
        all.grant(FILE, SESSION, A);
        all.ended(FILE).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(1) + LIMIT);
        assert!(!all.is_held_by(FILE, A));
    }
}
