//! Changes that a later process may have to repeat, exactly once.
//!
//! A process that serves requests of others (a mount, for the kernel) may die after a change was made and before the
//! caller heard of it. Its successor gets the same request again. If it makes the change under the number that the
//! earlier process drew for it, the metadata server answers from its record. So the numbers are written down where
//! they outlive the process ([`RequestLog`]), and what runs in a [`RequestScope`] asks there first.
//!
//! The server keeps its record until the client has acknowledged the number; a scope keeps it from doing so until it is
//! dropped, which is to be after the caller was answered.

use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::Client;
use crate::numbers::{Numbered, Numbers};

/// Where the numbers of one request of a caller are written down.
///
/// A verb is one of [`VERBS`].
pub trait RequestLog: Send + Sync {
    /// The number under which an earlier process made this change for the same request, if it did.
    fn earlier(&self, verb: &'static str) -> Option<u64>;
    /// A number was drawn for this change, which is sent only after this returns.
    fn drawn(&self, verb: &'static str, number: u64);
}

/// Changes that are made exactly once, as the metadata service names them.
pub const VERBS: [&str; 14] = [
    "create",
    "create_unnamed",
    "open",
    "mkdir",
    "symlink",
    "mknod",
    "link",
    "unlink",
    "rmdir",
    "remove_tree",
    "rename",
    "set_attr",
    "set_xattr",
    "remove_xattr",
];

tokio::task_local! {
    static CURRENT: Arc<Scope>;
}

struct Scope {
    log: Arc<dyn RequestLog>,
    numbers: Arc<Numbers>,
    /// Numbers of an earlier process that may be used yet.
    earlier: Vec<Numbered>,
    /// Numbers in use until the scope is dropped.
    used: Mutex<Vec<Numbered>>,
}

impl Drop for Scope {
    fn drop(&mut self) {
        for numbered in self.earlier.iter().chain(self.used.get_mut().iter()) {
            self.numbers.repeated(numbered.number);
        }
    }
}

/// See the module. To be dropped when the caller has been answered.
pub struct RequestScope(Arc<Scope>);

impl RequestScope {
    /// Runs `work`, whose changes are written down. Not those of tasks that it spawns. A verb is repeated once: the
    /// second change of the same kind within one scope has a number of its own.
    pub async fn run<F: Future>(&self, work: F) -> F::Output {
        CURRENT.scope(self.0.clone(), work).await
    }
}

/// The number for a change: within a scope of these numbers, that of an earlier process if it has made the change.
pub(crate) fn number(numbers: &Arc<Numbers>, verb: &'static str) -> Numbered {
    let scope = CURRENT.try_with(Arc::clone).ok();
    let Some(scope) = scope.filter(|scope| Arc::ptr_eq(&scope.numbers, numbers)) else {
        return numbers.draw();
    };
    let mut used = scope.used.lock();
    let unused = |number: &u64| used.iter().all(|numbered| numbered.number != *number);
    let numbered = match scope.log.earlier(verb).filter(unused) {
        Some(number) => numbers.repeat(number),
        None => {
            let drawn = numbers.draw();
            scope.log.drawn(verb, drawn.number);
            drawn
        }
    };
    let number = numbered.number;
    used.push(numbered);
    numbers.repeat(number)
}

impl Client {
    /// For one request of a caller.
    pub fn request_scope(&self, log: Arc<dyn RequestLog>) -> RequestScope {
        let numbers = self.core.meta.numbers().clone();
        // From now on, whenever it gets so far: others may release all that is held meanwhile.
        let earlier = VERBS.iter().filter_map(|verb| log.earlier(verb));
        let earlier = earlier.map(|number| numbers.repeat(number)).collect();
        RequestScope(Arc::new(Scope {
            log,
            numbers,
            earlier,
            used: Mutex::default(),
        }))
    }

    /// For a process that acts as a client after another one: all numbers of the earlier process that scopes may
    /// repeat. The server keeps its answers to them; until this or [`Self::release_numbers`] is called it keeps all.
    pub fn hold_numbers(&self, numbers: &[u64]) {
        self.core.meta.numbers().hold(numbers);
    }

    /// Nothing of the earlier process will be repeated any more, but in scopes that exist.
    pub fn release_numbers(&self) {
        self.core.meta.numbers().release_held();
    }
}
