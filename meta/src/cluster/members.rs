//! What the manager knows about nodes beyond the map: sessions, leases, claims. No I/O, no clock:
//! the time is passed in, decisions come out.
//!
//! A *session* is one run of a node's process as the manager sees it. A *claim* is what is known of
//! one target's local state, and under which chain version its node said so.
//!
//! How far a claim is believed ([`Claim::weigh`]): OFFLINE always. ONLINE and UP_TO_DATE keep a
//! SERVING replica where it is, whatever their age. To be promoted, a replica needs a claim made
//! under the chain version in force: a process that was taken out and does not know it yet still
//! claims what was true before. The exception is a *fresh* replica, whose process never saw
//! itself SYNCING or SERVING and so cannot be mistaken: registering is claim enough.

pub(super) mod identity;

use std::collections::BTreeMap;
use std::time::Duration;

use emberfs_proto::cluster::{ClusterMap, LocalState, Node, PublicState};
use emberfs_proto::ids::{ChainVersion, DiskId, IncarnationId, MapVersion, NodeId, TargetId};
use emberfs_proto::{Error, ErrorCode, Result, pb};
use tokio::time::Instant;

use identity::Announcement;

/// Least time added to a lease before the manager relies on its end; see [`margin`].
pub(super) const LEASE_MARGIN: Duration = Duration::from_millis(100);
/// The share of a lease that is added: each of the two clocks may run 1 % too fast or too slow, so one may
/// show 101 seconds while the other shows 99.
const LEASE_MARGIN_SHARE: u32 = 40;
/// How much longer than a lease the manager waits for the nodes of the stored map after its start.
pub(super) const SETTLE_MARGIN: Duration = Duration::from_secs(1);
/// How often a node whose stream broke is probed while its lease lasts.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// Added to every lease before the manager relies on its end: the two clocks may run at different
/// speeds, up to 1 % wrong each. The node counts from when it *sent* its heartbeat, which is earlier anyway.
pub(super) fn margin(lease: Duration) -> Duration {
    LEASE_MARGIN.max(lease / LEASE_MARGIN_SHARE)
}

/// One heartbeat stream; a later stream of the same node replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StreamId(u64);

/// One run of a node's process.
#[derive(Debug)]
pub(super) struct Session {
    /// As it registered; `alive` is the verdict of now, which the map follows.
    pub(super) node: Node,
    /// The marks of the openings of its disks, as it registered.
    pub(super) openings: BTreeMap<DiskId, u64>,
    /// Heard of since the manager started.
    pub(super) returned: bool,
    /// It may serve until then, in the worst case.
    pub(super) lease_until: Instant,
    /// When the last heartbeat came.
    pub(super) heard: Option<Instant>,
    /// How many came.
    pub(super) heartbeats: u64,
    /// Its last words on targets.
    pub(super) targets: Vec<pb::TargetReport>,
    /// Its last words on disks.
    pub(super) disks: Vec<pb::DiskReport>,
    stream: Option<StreamId>,
    /// Had a stream and lost it.
    broken: bool,
    probe_at: Option<Instant>,
}

/// What is known of a target's local state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    local: LocalState,
    version: ChainVersion,
    fresh: bool,
}

impl Claim {
    const DEAD: Self = Self {
        local: LocalState::Offline,
        version: ChainVersion(0),
        fresh: false,
    };

    /// What the claim is worth for a replica in state `public` of a chain at `version`. A stale
    /// claim is answered with the local state that leaves `public` as it is.
    fn weigh(&self, public: PublicState, version: ChainVersion) -> LocalState {
        let current = self.fresh || self.version == version;
        match (self.local, public) {
            (LocalState::Offline | LocalState::Unspecified, _) => LocalState::Offline,
            (local, PublicState::Serving) => local,
            (local, _) if current => local,
            (_, PublicState::Syncing) => LocalState::Online,
            (_, PublicState::Waiting) => LocalState::UpToDate,
            (_, _) => LocalState::Offline,
        }
    }
}

/// Whether a registration may go ahead.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It did.
    Admitted,
    /// Another process of this node may still be serving. Probe it, wait, then ask again.
    Contested {
        /// Where it listened.
        addr: String,
        /// Which it is.
        incarnation: IncarnationId,
        /// How many heartbeats it has sent; one more proves that two processes run.
        heartbeats: u64,
    },
}

/// A node to probe.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Suspect {
    pub(super) node: NodeId,
    pub(super) incarnation: IncarnationId,
    pub(super) addr: String,
}

/// All sessions and claims.
pub(super) struct Members {
    lease: Duration,
    sessions: BTreeMap<NodeId, Session>,
    claims: BTreeMap<TargetId, Claim>,
    /// Nothing is judged before this; `None` once settled.
    settle_until: Option<Instant>,
    next_stream: u64,
    /// Some node knows a newer map than this manager started from. Then nobody is judged and nobody
    /// obeys: with each judgment the old map's version would draw nearer to the newer ones, and in the end
    /// pass for one of them.
    outdated: Option<Error>,
    /// Something changed that may change the map.
    dirty: bool,
}

impl Members {
    /// The state right after a start: what the stored map says is assumed until nodes are heard.
    pub(super) fn from_map(map: &ClusterMap, lease: Duration, now: Instant) -> Self {
        let deadline = now + lease + margin(lease) + SETTLE_MARGIN;
        let session = |node: &Node| Session {
            node: node.clone(),
            openings: BTreeMap::new(),
            returned: false,
            lease_until: deadline,
            heard: None,
            heartbeats: 0,
            targets: Vec::new(),
            disks: Vec::new(),
            stream: None,
            broken: false,
            probe_at: None,
        };
        let alive = |node: NodeId| map.nodes.get(&node).is_some_and(|n| n.alive);
        let claim = |state, node| match state {
            PublicState::Serving | PublicState::Syncing | PublicState::Waiting if alive(node) => {
                Claim {
                    local: LocalState::Online,
                    ..Claim::DEAD
                }
            }
            _ => Claim::DEAD,
        };
        Self {
            lease,
            sessions: map.nodes.values().map(|n| (n.id, session(n))).collect(),
            claims: map
                .targets
                .values()
                .map(|t| (t.id, claim(t.state, t.node)))
                .collect(),
            settle_until: Some(deadline),
            next_stream: 1,
            outdated: None,
            dirty: true,
        }
    }

    pub(super) fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values()
    }

    pub(super) fn session(&self, node: NodeId) -> Option<&Session> {
        self.sessions.get(&node)
    }

    pub(super) fn is_settling(&self) -> bool {
        self.settle_until.is_some()
    }

    /// Refuses whoever has adopted a newer map than is in force; everybody, if that came out before this
    /// manager had judged anybody.
    pub(super) fn check_version(
        &mut self,
        node: NodeId,
        adopted: MapVersion,
        map: &ClusterMap,
    ) -> Result<()> {
        if let Some(error) = &self.outdated {
            return Err(error.clone());
        }
        let checked = identity::check_version(node, adopted, map);
        if let (Err(error), true) = (&checked, self.is_settling()) {
            self.outdated = Some(error.clone());
        }
        checked
    }

    /// Whether something may have changed since the last call.
    pub(super) fn take_dirty(&mut self) -> bool {
        std::mem::take(&mut self.dirty)
    }

    /// The evaluation could not be made durable: it is still due.
    pub(super) fn set_dirty(&mut self) {
        self.dirty = true;
    }

    /// What the manager believes of a target's local state.
    pub(super) fn local(
        &self,
        target: TargetId,
        node: NodeId,
        disk: DiskId,
        public: PublicState,
        version: ChainVersion,
    ) -> LocalState {
        let holds = |s: &Session| s.node.alive && s.node.disks.iter().any(|d| d.id == disk);
        if !self.sessions.get(&node).is_some_and(holds) {
            return LocalState::Offline;
        }
        self.claims
            .get(&target)
            .unwrap_or(&Claim::DEAD)
            .weigh(public, version)
    }

    /// A node announces itself.
    pub(super) fn register(
        &mut self,
        announced: Announcement,
        map: &ClusterMap,
        now: Instant,
    ) -> Result<Admission> {
        identity::check_disks(&announced, self, map)?;
        let Announcement { node, openings, .. } = announced;
        let same = match self.sessions.get(&node.id) {
            Some(old) if old.node.incarnation == node.incarnation => true,
            // The same address with no stream left: the old process has closed its listener, which
            // a server does last, or else the new one could not hold the port.
            Some(old)
                if old.node.alive
                    && (old.stream.is_some() || old.node.data_addr != node.data_addr) =>
            {
                return Ok(Admission::Contested {
                    addr: old.node.data_addr.clone(),
                    incarnation: old.node.incarnation,
                    heartbeats: old.heartbeats,
                });
            }
            _ => false,
        };
        // The first heartbeat comes after the answer, which waits for the end of settling.
        let lease_until =
            self.settle_until.unwrap_or(now).max(now) + self.lease + margin(self.lease);
        if let Some(old) = self.sessions.get_mut(&node.id).filter(|_| same) {
            let lease_until = lease_until.max(old.lease_until);
            (old.node, old.openings) = (node, openings);
            (old.returned, old.lease_until) = (true, lease_until);
        } else {
            for target in map.targets.values().filter(|t| t.node == node.id) {
                let fresh = Claim {
                    local: LocalState::Online,
                    fresh: true,
                    ..Claim::DEAD
                };
                self.claims.insert(target.id, fresh);
            }
            let session = Session {
                node,
                openings,
                returned: true,
                lease_until,
                heard: None,
                heartbeats: 0,
                targets: Vec::new(),
                disks: Vec::new(),
                stream: None,
                broken: false,
                probe_at: None,
            };
            self.sessions.insert(session.node.id, session);
        }
        self.dirty = true;
        Ok(Admission::Admitted)
    }

    /// A heartbeat stream begins with its first message.
    pub(super) fn attach(&mut self, node: NodeId, incarnation: IncarnationId) -> Result<StreamId> {
        let stream = StreamId(self.next_stream);
        let session = self.live(node, incarnation)?;
        session.stream = Some(stream);
        session.broken = false;
        self.next_stream += 1;
        Ok(stream)
    }

    /// A heartbeat stream ended. Answers whether that is news.
    pub(super) fn detach(&mut self, node: NodeId, stream: StreamId) -> bool {
        let session = self
            .sessions
            .get_mut(&node)
            .filter(|s| s.stream == Some(stream));
        session.is_some_and(|s| {
            s.stream = None;
            s.broken = true;
            s.probe_at = None;
            s.node.alive
        })
    }

    /// A heartbeat: renews the lease and takes the claims in. Answers whether the map may change.
    pub(super) fn heartbeat(
        &mut self,
        stream: StreamId,
        request: pb::HeartbeatRequest,
        map: &ClusterMap,
        now: Instant,
    ) -> Result<bool> {
        let node = NodeId(request.node);
        let incarnation = parse_incarnation(&request.incarnation)?;
        let lease = self.lease;
        let settling = self.is_settling();
        let session = self.live(node, incarnation)?;
        if session.stream != Some(stream) {
            let what = format!("node {node} has opened a newer heartbeat stream; this one is over");
            return Err(Error::new(ErrorCode::UnknownNode, what));
        }
        let mut news = !std::mem::replace(&mut session.returned, true) || settling;
        session.lease_until = now + lease + margin(lease);
        session.heard = Some(now);
        session.heartbeats += 1;
        let failed = |d: &&pb::DiskReport| !d.error.is_empty();
        let failed: Vec<DiskId> = request
            .disks
            .iter()
            .filter(failed)
            .filter_map(|d| DiskId::from_bytes(&d.disk))
            .collect();
        session.targets.clone_from(&request.targets);
        session.disks = request.disks;
        for report in &request.targets {
            let id = TargetId(report.target);
            if map.targets.get(&id).is_some_and(|t| t.node == node) {
                news |= self.claim(id, report.state(), ChainVersion(report.chain_version));
            }
        }
        for target in map
            .targets
            .values()
            .filter(|t| t.node == node && failed.contains(&t.disk))
        {
            news |= self.claim(target.id, LocalState::Offline, ChainVersion(0));
        }
        self.dirty |= news;
        Ok(news)
    }

    fn claim(&mut self, target: TargetId, local: LocalState, version: ChainVersion) -> bool {
        let old = self.claims.entry(target).or_insert(Claim::DEAD);
        // Two streams may overlap for a moment: the later claim stands. OFFLINE always counts.
        if local != LocalState::Offline && version < old.version {
            return false;
        }
        let version = version.max(old.version);
        let news = (old.local, old.version) != (local, version);
        (old.local, old.version) = (local, version);
        news
    }

    /// The session of a node that is alive as this incarnation, or the order to register.
    fn live(&mut self, node: NodeId, incarnation: IncarnationId) -> Result<&mut Session> {
        let session = self.sessions.get_mut(&node);
        session
            .filter(|s| s.node.alive && s.node.incarnation == incarnation)
            .ok_or_else(|| {
                let what = format!(
                    "node {node} is not registered as incarnation {incarnation}; register again"
                );
                Error::new(ErrorCode::UnknownNode, what)
            })
    }

    /// A clean stop.
    pub(super) fn leave(
        &mut self,
        node: NodeId,
        incarnation: IncarnationId,
        map: &ClusterMap,
    ) -> Result<()> {
        self.live(node, incarnation)?;
        self.bury(node, map);
        Ok(())
    }

    /// The node's process is certainly gone, if it still is this one and has no stream.
    pub(super) fn refused(&mut self, suspect: &Suspect, map: &ClusterMap) -> bool {
        let session = self.sessions.get(&suspect.node);
        let dead = session.is_some_and(|s| {
            s.node.alive && s.stream.is_none() && s.node.incarnation == suspect.incarnation
        });
        if dead {
            self.bury(suspect.node, map);
        }
        dead
    }

    fn bury(&mut self, node: NodeId, map: &ClusterMap) {
        if let Some(session) = self.sessions.get_mut(&node) {
            session.node.alive = false;
            session.stream = None;
            session.broken = false;
        }
        for target in map.targets.values().filter(|t| t.node == node) {
            self.claims.entry(target.id).or_insert(Claim::DEAD).local = LocalState::Offline;
        }
        self.dirty = true;
    }

    /// Lets time pass: buries those whose lease has run out, ends settling, names whom to probe.
    pub(super) fn tick(&mut self, map: &ClusterMap, now: Instant) -> Tick {
        let mut tick = Tick::default();
        if self.outdated.is_some() {
            return tick;
        }
        if let Some(deadline) = self.settle_until {
            let missing = self.sessions.values().any(|s| s.node.alive && !s.returned);
            if !missing || now >= deadline {
                self.settle_until = None;
                self.dirty = true;
            }
        }
        let settling = self.is_settling();
        let expired =
            |s: &&Session| s.node.alive && now >= s.lease_until && (s.returned || !settling);
        tick.expired = self
            .sessions
            .values()
            .filter(expired)
            .map(|s| s.node.id)
            .collect();
        for &node in &tick.expired {
            self.bury(node, map);
        }
        for session in self
            .sessions
            .values_mut()
            .filter(|s| s.node.alive && s.broken)
        {
            if session.probe_at.is_none_or(|at| now >= at) {
                session.probe_at = Some(now + PROBE_INTERVAL);
                tick.suspects.push(Suspect {
                    node: session.node.id,
                    incarnation: session.node.incarnation,
                    addr: session.node.data_addr.clone(),
                });
            }
        }
        tick
    }

    /// The operator took the node out of the cluster: it is unknown, unless a process of it has come back.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.sessions.retain(|&id, s| id != node || s.node.alive);
    }

    /// A new map is in force: replicas that now take part are fresh no longer.
    pub(super) fn adopt(&mut self, map: &ClusterMap) {
        self.claims
            .retain(|target, _| map.targets.contains_key(target));
        for target in map.targets.values() {
            let published = map.nodes.get(&target.node).map(|n| n.incarnation);
            let current = self.sessions.get(&target.node).map(|s| s.node.incarnation);
            let claim = self.claims.entry(target.id).or_insert(Claim {
                local: LocalState::Online,
                fresh: true,
                ..Claim::DEAD
            });
            // If yet another process registered meanwhile, the claim is about that one.
            let takes_part = matches!(target.state, PublicState::Serving | PublicState::Syncing);
            if takes_part && published == current {
                claim.fresh = false;
            }
        }
    }
}

/// What time brought about.
#[derive(Debug, Default)]
pub(super) struct Tick {
    /// Nodes whose lease ran out just now.
    pub(super) expired: Vec<NodeId>,
    /// Nodes to probe.
    pub(super) suspects: Vec<Suspect>,
}

/// The incarnation in a request.
pub(super) fn parse_incarnation(bytes: &[u8]) -> Result<IncarnationId> {
    IncarnationId::from_bytes(bytes).ok_or_else(|| {
        Error::new(
            ErrorCode::InvalidArgument,
            "the node's incarnation must be 16 bytes",
        )
    })
}

#[cfg(test)]
mod tests;
