//! One process per client: an earlier one that acted as the client is shut out before a later one is let in.
//!
//! A client whose mount outlives its process says with HELLO which of its processes it is (its *instance*). What an
//! earlier one sent may still lie in the socket, and would undo what the later one writes. So the first HELLO of a
//! later instance ends the connections of earlier ones, of which nothing more is read, and is answered when their
//! requests in progress have ended. A HELLO of an earlier instance is refused from then on.
//!
//! A request whose chain makes no progress must not keep the client from all others of the server: after [`ENOUGH`] the
//! later instance is let in beside it. By then it stands in the queue of its chunk, before all that comes now.
//!
//! The newest instance of a client is kept in memory: after a restart no connection is left that it could shut out,
//! and an earlier process that still runs is kept away by the metadata server's refusals alone.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::{Error, ErrorCode, Result};
use crate::ids::ClientId;

/// Clients remembered that have no connection; the least recently seen is forgotten first.
const CLIENTS: usize = 4096;
/// Longest wait for the requests of earlier instances at a time; then the caller is asked to come again. Shorter than
/// callers wait for HELLO, so that they hear why.
const DRAIN: Duration = Duration::from_secs(2);
/// Longest wait for them altogether. Many times what a server needs until a request has its place in the order of
/// changes, and less than the patience of callers.
const ENOUGH: Duration = Duration::from_secs(10);

/// See the module.
pub(super) struct Fences {
    table: Mutex<Table>,
    /// See [`CLIENTS`].
    most: usize,
}

#[derive(Default)]
struct Table {
    clients: HashMap<ClientId, Known>,
    /// Counts HELLOs.
    clock: u64,
}

struct Known {
    standing: Arc<watch::Sender<Standing>>,
    seen: u64,
}

/// How a client stands with this server.
struct Standing {
    newest: u32,
    /// When that came first.
    since: Instant,
    /// Connections with requests that may be in progress, by instance.
    connections: BTreeMap<u32, usize>,
}

impl Default for Standing {
    fn default() -> Self {
        Self {
            newest: 0,
            since: Instant::now(),
            connections: BTreeMap::new(),
        }
    }
}

impl Standing {
    fn waits_for_earlier(&self, instance: u32) -> bool {
        self.connections.range(..instance).next().is_some()
    }
}

/// A connection's right to make requests; held until the last of them has ended.
pub(super) struct Admission {
    /// `None`: the client has one process only.
    held: Option<Held>,
}

struct Held {
    instance: u32,
    standing: Arc<watch::Sender<Standing>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.standing.send_modify(|standing| {
            if let Some(count) = standing.connections.get_mut(&self.instance) {
                *count -= 1;
                if *count == 0 {
                    standing.connections.remove(&self.instance);
                }
            }
        });
    }
}

impl Admission {
    /// What tells when a later instance has come.
    pub(super) fn watch(&self) -> Superseded {
        let watch = self.held.as_ref().map(|held| {
            let standing = held.standing.subscribe();
            (held.instance, standing)
        });
        Superseded(watch)
    }
}

/// See [`Admission::watch`].
#[derive(Clone)]
pub(super) struct Superseded(Option<(u32, watch::Receiver<Standing>)>);

impl Superseded {
    /// Waits until a later instance has come.
    pub(super) async fn wait(&mut self) {
        let Some((instance, standing)) = &mut self.0 else {
            return std::future::pending().await;
        };
        let instance = *instance;
        if standing.wait_for(|s| s.newest > instance).await.is_err() {
            // The admission, which holds the sender, outlives this.
            std::future::pending::<()>().await;
        }
    }
}

impl Fences {
    pub(super) fn new() -> Self {
        Self::with_room(CLIENTS)
    }

    fn with_room(most: usize) -> Self {
        Self {
            table: Mutex::default(),
            most,
        }
    }

    /// Lets a connection in, after the requests of earlier instances have ended. [`ErrorCode::Superseded`]: there is a
    /// later one. [`ErrorCode::Unavailable`]: requests are still in progress.
    pub(super) async fn admit(&self, client: ClientId, instance: u32) -> Result<Admission> {
        if instance == 0 {
            return Ok(Admission { held: None });
        }
        let held = self.enter(client, instance)?;
        let mut standing = held.standing.subscribe();
        let enough = standing.borrow().since + ENOUGH;
        let settled = |s: &Standing| s.newest > instance || !s.waits_for_earlier(instance);
        let wait = tokio::time::timeout_at(
            enough.min(Instant::now() + DRAIN),
            standing.wait_for(settled),
        );
        match wait.await {
            Ok(Ok(standing)) if standing.newest > instance => {
                Err(superseded(client, instance, standing.newest))
            }
            Ok(_) => Ok(Admission { held: Some(held) }),
            Err(_) if Instant::now() >= enough => Ok(Admission { held: Some(held) }),
            Err(_) => {
                let what = format!(
                    "requests of an earlier process of client {client} are still in progress; try again"
                );
                Err(Error::new(ErrorCode::Unavailable, what))
            }
        }
    }

    fn enter(&self, client: ClientId, instance: u32) -> Result<Held> {
        let mut table = self.table.lock();
        table.clock += 1;
        let clock = table.clock;
        if !table.clients.contains_key(&client) {
            table.make_room(self.most);
        }
        let known = table.clients.entry(client).or_insert_with(|| Known {
            standing: Arc::new(watch::Sender::default()),
            seen: clock,
        });
        known.seen = clock;
        let newest = known.standing.borrow().newest;
        if newest > instance {
            return Err(superseded(client, instance, newest));
        }
        known.standing.send_modify(|standing| {
            if standing.newest < instance {
                standing.newest = instance;
                standing.since = Instant::now();
            }
            *standing.connections.entry(instance).or_default() += 1;
        });
        Ok(Held {
            instance,
            standing: known.standing.clone(),
        })
    }
}

impl Table {
    fn make_room(&mut self, most: usize) {
        let idle = |known: &Known| known.standing.borrow().connections.is_empty();
        let mut unused: Vec<_> = self
            .clients
            .iter()
            .filter(|(_, known)| idle(known))
            .map(|(client, known)| (known.seen, *client))
            .collect();
        // Those with connections are bounded by the connections.
        if unused.len() >= most {
            unused.sort_unstable();
            for (_, client) in &unused[..=unused.len() - most] {
                self.clients.remove(client);
            }
        }
    }
}

fn superseded(client: ClientId, instance: u32, newest: u32) -> Error {
    let what = format!(
        "process {instance} of client {client} was superseded by process {newest}; it must end"
    );
    Error::new(ErrorCode::Superseded, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ClientId = ClientId(1);

    fn code(result: Result<Admission>) -> Option<ErrorCode> {
        result.err().map(|error| error.code)
    }

    #[tokio::test]
    async fn a_later_instance_shuts_earlier_ones_out_and_waits_for_what_they_do() {
        let fences = Arc::new(Fences::new());
        let first = fences.admit(A, 1).await.unwrap();
        let beside = fences.admit(A, 1).await.unwrap();
        let mut told = first.watch();
        let later = tokio::spawn({
            let fences = fences.clone();
            async move { fences.admit(A, 2).await }
        });
        told.wait().await;
        assert_eq!(code(fences.admit(A, 1).await), Some(ErrorCode::Superseded));
        drop(first);
        tokio::task::yield_now().await;
        assert!(!later.is_finished(), "one of two has ended");
        drop(beside);
        later.await.unwrap().unwrap();
        assert_eq!(code(fences.admit(A, 1).await), Some(ErrorCode::Superseded));
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_for_what_earlier_ones_do_has_a_bound() {
        let fences = Fences::new();
        let _first = fences.admit(A, 1).await.unwrap();
        let start = Instant::now();
        let mut refused = 0;
        while let Some(code) = code(fences.admit(A, 2).await) {
            assert_eq!(code, ErrorCode::Unavailable);
            refused += 1;
        }
        assert!(refused >= 2 && start.elapsed() == ENOUGH);
        assert_eq!(code(fences.admit(A, 1).await), Some(ErrorCode::Superseded));
    }

    #[tokio::test]
    async fn clients_of_one_process_take_no_part() {
        let fences = Fences::new();
        let _first = fences.admit(A, 0).await.unwrap();
        let _second = fences.admit(A, 3).await.unwrap();
        fences.admit(A, 0).await.unwrap();
        fences.admit(ClientId(2), 1).await.unwrap();
    }

    #[tokio::test]
    async fn the_least_recently_seen_are_forgotten_and_those_with_connections_never() {
        let fences = Fences::with_room(2);
        let held = fences.admit(A, 2).await.unwrap();
        for client in 2..5 {
            fences.admit(ClientId(client), 2).await.unwrap();
        }
        assert_eq!(code(fences.admit(A, 1).await), Some(ErrorCode::Superseded));
        let late = |client| fences.admit(ClientId(client), 1);
        assert_eq!(code(late(4).await), Some(ErrorCode::Superseded));
        assert_eq!(code(late(2).await), None, "forgotten");
        assert!(fences.table.lock().clients.len() <= 4);
        drop(held);
    }
}
