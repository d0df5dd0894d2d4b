//! Who is there and what they have open.
//!
//! Every open of a file has a session. **Write sessions** are records in the store as well (the
//! operations write them, in the transaction of the open), so that after a restart the length of a
//! file whose writer never came back is settled from its chunks. **Read sessions** are here only:
//! they do no more than keep the data of an unlinked file, and after a restart garbage collection
//! waits for one lease, in which clients open again what they had open.
//!
//! A client that is silent for longer than its lease has departed. Its sessions become *orphans*,
//! which still count as open until [`crate::namespace`] has settled and removed them one by one; only
//! then is the client's record forgotten.
//!
//! **Processes.** A client may go on in another process, which says so by a higher *instance*. From its attach on,
//! requests of earlier ones are refused, and their sessions are kept for a lease, in which the new process
//! opens again what it goes on with.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use emberfs_proto::ids::{ClientId, InodeId, SessionId};
use emberfs_proto::{Error, ErrorCode, Result};
use parking_lot::Mutex;

use crate::delegations::Delegations;

/// Most files that one client has open at once; further opens wait for a close.
const MAX_SESSIONS_PER_CLIENT: usize = 1 << 20;

/// See the module.
pub(crate) struct Sessions {
    lease: Duration,
    table: Mutex<Table>,
    /// What writers keep to themselves; it ends with their sessions.
    pub(crate) delegations: Delegations,
}

#[derive(Default)]
struct Table {
    clients: HashMap<ClientId, Client>,
    open: HashMap<InodeId, HashMap<SessionId, Open>>,
    /// Clients whose lease has run out and whose records are still in the store.
    departed: HashMap<ClientId, u64>,
    writers: u64,
    total: u64,
}

struct Client {
    host: String,
    /// Which attach its record is from; 0 without a record.
    attach: u64,
    /// The last process that has acted as this client; 0: it has only one.
    instance: u32,
    /// It has attached since this server started, and its lease has not run out since.
    attached: bool,
    seen: Instant,
    acknowledged: u64,
    pruned: u64,
    sessions: BTreeSet<(InodeId, SessionId)>,
}

impl Client {
    fn new(now: Instant) -> Self {
        Self {
            host: String::new(),
            attach: 0,
            instance: 0,
            attached: false,
            seen: now,
            acknowledged: 0,
            pruned: 0,
            sessions: BTreeSet::new(),
        }
    }
}

struct Open {
    client: ClientId,
    write: bool,
    /// The request that opened it: a retry gets the same session.
    request: u64,
    /// Dropped then unless used before: the client has attached anew and opens again what it needs.
    superseded: Option<Instant>,
    orphan: bool,
}

/// A session without a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Orphan {
    pub(crate) inode: InodeId,
    pub(crate) session: SessionId,
    pub(crate) write: bool,
}

/// What [`Sessions::keep_alive`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pulse {
    /// The client must attach and open its files again.
    pub(crate) lost: bool,
    /// Answers up to this request may be forgotten, if that is news.
    pub(crate) prune: Option<u64>,
}

/// A client as status shows it.
#[derive(Clone, Debug)]
pub(crate) struct ClientStatus {
    pub(crate) client: ClientId,
    pub(crate) host: String,
    pub(crate) sessions: u64,
    pub(crate) idle: Duration,
}

/// A session that its open has not committed yet; dropping this forgets it.
pub(crate) struct Held {
    sessions: Arc<Sessions>,
    inode: InodeId,
    session: SessionId,
    kept: bool,
}

impl Held {
    /// Which session.
    pub(crate) fn session(&self) -> SessionId {
        self.session
    }

    /// The open has committed.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.kept {
            self.sessions.remove(self.inode, self.session);
        }
    }
}

impl Sessions {
    pub(crate) fn new(lease: Duration) -> Self {
        Self {
            lease,
            table: Mutex::default(),
            delegations: Delegations::default(),
        }
    }

    pub(crate) fn lease(&self) -> Duration {
        self.lease
    }

    /// A client found in the store at the start: it gets a full lease to come back.
    pub(crate) fn restore_client(
        &self,
        id: ClientId,
        host: String,
        acknowledged: u64,
        (attach, instance): (u64, u32),
    ) {
        let client = Client {
            host,
            attach,
            instance,
            acknowledged,
            pruned: acknowledged,
            ..Client::new(Instant::now())
        };
        self.table.lock().clients.insert(id, client);
    }

    /// A write session found in the store at the start.
    pub(crate) fn restore_session(&self, inode: InodeId, session: SessionId, client: ClientId) {
        self.table.lock().insert(inode, session, client, true, 0);
    }

    /// A client has attached (its record says `attach` and `instance`). Sessions from before, of another process or
    /// from before this server knew it, are dropped after a lease unless used until then.
    pub(crate) fn attach(
        &self,
        id: ClientId,
        host: &str,
        (attach, instance): (u64, u32),
        now: Instant,
    ) {
        let mut table = self.table.lock();
        table.departed.remove(&id);
        let client = table.clients.entry(id).or_insert_with(|| Client::new(now));
        if client.instance > instance {
            // The later one has come first.
            return;
        }
        host.clone_into(&mut client.host);
        client.attach = attach;
        client.seen = now;
        let newcomer = std::mem::replace(&mut client.instance, instance) < instance;
        let known = std::mem::replace(&mut client.attached, true);
        if newcomer || !known {
            let old: Vec<_> = client.sessions.iter().copied().collect();
            for (inode, session) in old {
                if let Some(open) = table.get_mut(inode, session) {
                    open.superseded = Some(now + self.lease);
                }
            }
        }
    }

    /// Refuses an earlier process of a client: [`ErrorCode::Superseded`].
    pub(crate) fn check_instance(&self, id: ClientId, instance: u32) -> Result<()> {
        if instance == 0 {
            return Ok(());
        }
        let table = self.table.lock();
        match table.clients.get(&id) {
            Some(client) if client.instance > instance => {
                Err(superseded(id, instance, client.instance))
            }
            _ => Ok(()),
        }
    }

    /// A request of a client: renews its lease. A request that the client has acknowledged is a late
    /// copy that nobody waits for: [`ErrorCode::InvalidArgument`].
    pub(crate) fn touch(&self, id: ClientId, request: u64, acknowledged: u64) -> Result<()> {
        let now = Instant::now();
        let mut table = self.table.lock();
        let client = table.clients.entry(id).or_insert_with(|| Client::new(now));
        client.seen = now;
        if request != 0 && request <= client.acknowledged {
            let what =
                format!("request {request} of client {id} was answered and acknowledged before");
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        }
        client.acknowledged = client.acknowledged.max(acknowledged);
        Ok(())
    }

    /// A sign of life.
    pub(crate) fn keep_alive(&self, id: ClientId, acknowledged: u64, now: Instant) -> Pulse {
        let mut table = self.table.lock();
        let client = table.clients.entry(id).or_insert_with(|| Client::new(now));
        client.seen = now;
        client.acknowledged = client.acknowledged.max(acknowledged);
        let prune = (client.acknowledged > client.pruned).then_some(client.acknowledged);
        Pulse {
            lost: !client.attached,
            prune,
        }
    }

    /// The client's answers up to `request` are forgotten.
    pub(crate) fn pruned(&self, id: ClientId, request: u64) {
        if let Some(client) = self.table.lock().clients.get_mut(&id) {
            client.pruned = client.pruned.max(request);
        }
    }

    /// Opens a session, for good once [`Held::keep`] is called.
    pub(crate) fn hold(
        self: &Arc<Self>,
        inode: InodeId,
        session: SessionId,
        client: ClientId,
        write: bool,
        request: u64,
    ) -> Result<Held> {
        let mut table = self.table.lock();
        let count = table.clients.get(&client).map_or(0, |c| c.sessions.len());
        if count >= MAX_SESSIONS_PER_CLIENT {
            let what = format!("client {client} has {count} files open; close some");
            return Err(Error::new(ErrorCode::Busy, what).retry_after_ms(1000));
        }
        table.insert(inode, session, client, write, request);
        Ok(Held {
            sessions: self.clone(),
            inode,
            session,
            kept: false,
        })
    }

    /// The read session that this request has opened already.
    pub(crate) fn opened_by(
        &self,
        client: ClientId,
        inode: InodeId,
        request: u64,
    ) -> Option<SessionId> {
        if request == 0 {
            return None;
        }
        let table = self.table.lock();
        let mut open = table.open.get(&inode)?.iter();
        open.find(|(_, o)| o.client == client && o.request == request && !o.write && !o.orphan)
            .map(|(&session, _)| session)
    }

    /// Whether this is a session of the client on the inode: `Some(write)`.
    pub(crate) fn check(
        &self,
        client: ClientId,
        inode: InodeId,
        session: SessionId,
    ) -> Option<bool> {
        let mut table = self.table.lock();
        let open = table.get_mut(inode, session)?;
        if open.client != client || open.orphan {
            return None;
        }
        open.superseded = None;
        Some(open.write)
    }

    /// Ends a session; true if none is left on its inode.
    pub(crate) fn remove(&self, inode: InodeId, session: SessionId) -> bool {
        self.delegations.end(inode, session);
        let mut table = self.table.lock();
        let Some(open) = table
            .open
            .get_mut(&inode)
            .and_then(|all| all.remove(&session))
        else {
            return false;
        };
        table.total -= 1;
        table.writers -= u64::from(open.write);
        if let Some(client) = table.clients.get_mut(&open.client) {
            client.sessions.remove(&(inode, session));
        }
        let last = table.open.get(&inode).is_some_and(HashMap::is_empty);
        if last {
            table.open.remove(&inode);
        }
        last
    }

    /// Whether anybody has the inode open.
    pub(crate) fn is_open(&self, inode: InodeId) -> bool {
        self.table.lock().open.contains_key(&inode)
    }

    /// Turns the sessions of silent clients, and superseded ones, into orphans; answers all orphans.
    pub(crate) fn expire(&self, now: Instant) -> Vec<Orphan> {
        let mut table = self.table.lock();
        let table = &mut *table;
        let lease = self.lease;
        let silent = |c: &Client| now.saturating_duration_since(c.seen) > lease;
        for (id, client) in table.clients.extract_if(|_, client| silent(client)) {
            tracing::info!(client = %id, host = client.host, sessions = client.sessions.len(), "client departed");
            table.departed.insert(id, client.attach);
            for (inode, session) in client.sessions {
                if let Some(open) = table
                    .open
                    .get_mut(&inode)
                    .and_then(|all| all.get_mut(&session))
                {
                    open.orphan = true;
                }
            }
        }
        let mut orphans = Vec::new();
        for (&inode, all) in &mut table.open {
            for (&session, open) in all {
                if open.superseded.is_some_and(|at| at <= now) {
                    open.orphan = true;
                }
                if open.orphan {
                    let write = open.write;
                    orphans.push(Orphan {
                        inode,
                        session,
                        write,
                    });
                }
            }
        }
        orphans
    }

    /// Departed clients without orphans, and which attach their records are from.
    pub(crate) fn gone(&self) -> Vec<(ClientId, u64)> {
        let table = self.table.lock();
        let orphaned: std::collections::HashSet<ClientId> = table
            .open
            .values()
            .flat_map(|all| all.values().filter(|o| o.orphan).map(|o| o.client))
            .collect();
        let departed = table.departed.iter().map(|(&id, &attach)| (id, attach));
        departed.filter(|(id, _)| !orphaned.contains(id)).collect()
    }

    /// Whether the client has shown up (again).
    pub(crate) fn is_present(&self, id: ClientId) -> bool {
        self.table.lock().clients.contains_key(&id)
    }

    /// Whether the client has attached and has not departed since.
    pub(crate) fn is_attached(&self, id: ClientId) -> bool {
        let table = self.table.lock();
        table.clients.get(&id).is_some_and(|c| c.attached)
    }

    /// The departed client's records are gone, or it is back.
    pub(crate) fn forget(&self, id: ClientId) {
        self.table.lock().departed.remove(&id);
    }

    /// Sessions, and how many of them write.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let table = self.table.lock();
        (table.total, table.writers)
    }

    /// All clients.
    pub(crate) fn clients(&self, now: Instant) -> Vec<ClientStatus> {
        let table = self.table.lock();
        let clients = table.clients.iter();
        let mut list: Vec<_> = clients
            .map(|(&client, c)| ClientStatus {
                client,
                host: c.host.clone(),
                sessions: c.sessions.len() as u64,
                idle: now.saturating_duration_since(c.seen),
            })
            .collect();
        list.sort_by_key(|c| c.client);
        list
    }
}

impl Table {
    fn get_mut(&mut self, inode: InodeId, session: SessionId) -> Option<&mut Open> {
        self.open.get_mut(&inode)?.get_mut(&session)
    }

    fn insert(
        &mut self,
        inode: InodeId,
        session: SessionId,
        id: ClientId,
        write: bool,
        request: u64,
    ) {
        let client = self
            .clients
            .entry(id)
            .or_insert_with(|| Client::new(Instant::now()));
        client.sessions.insert((inode, session));
        let open = Open {
            client: id,
            write,
            request,
            superseded: None,
            orphan: false,
        };
        self.open.entry(inode).or_default().insert(session, open);
        self.total += 1;
        self.writers += u64::from(write);
    }
}

/// The answer to an earlier process of a client.
pub(crate) fn superseded(client: ClientId, instance: u32, newest: u32) -> Error {
    let what = format!(
        "process {instance} of client {client} was superseded by process {newest}; it must end"
    );
    Error::new(ErrorCode::Superseded, what)
}

#[cfg(test)]
mod tests;
