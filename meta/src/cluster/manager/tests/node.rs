//! A storage node as the manager sees it: registers, heartbeats, follows the map, syncs within a second.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use emberfs_proto::cluster::{LocalState, PublicState};
use emberfs_proto::ids::{DiskId, IncarnationId, MapVersion, NodeId, TargetId};
use emberfs_proto::wire::MAX_VERSION;
use futures::StreamExt;
use tokio::sync::mpsc;

use super::super::*;
use crate::cluster::service::stream_of;

struct Shared {
    id: u32,
    incarnation: u128,
    addr: String,
    frozen: AtomicBool,
    disk_failed: AtomicBool,
    locals: Mutex<BTreeMap<TargetId, (PublicState, LocalState)>>,
    adopted: Mutex<Arc<ClusterMap>>,
}

pub(super) struct SimNode {
    shared: Arc<Shared>,
    task: Mutex<tokio::task::JoinHandle<()>>,
}

impl Drop for SimNode {
    fn drop(&mut self) {
        self.task.lock().abort();
    }
}

pub(super) fn registration(id: u32, incarnation: u128, addr: &str) -> pb::RegisterRequest {
    let disk = pb::DiskMsg {
        id: DiskId(id.into()).to_bytes(),
        path: "/d".into(),
        capacity: 1 << 30,
        ..Default::default()
    };
    pb::RegisterRequest {
        node: id,
        incarnation: IncarnationId(incarnation).to_bytes(),
        protocol_version: MAX_VERSION,
        data_addr: addr.into(),
        disks: vec![disk],
        ..Default::default()
    }
}

impl SimNode {
    pub(super) async fn start(manager: &Arc<Manager>, id: u32, incarnation: u128) -> Result<Self> {
        Self::start_at(manager, id, incarnation, &format!("host{id}:1")).await
    }

    pub(super) async fn start_at(
        manager: &Arc<Manager>,
        id: u32,
        incarnation: u128,
        addr: &str,
    ) -> Result<Self> {
        manager
            .register(registration(id, incarnation, addr))
            .await?;
        let shared = Arc::new(Shared {
            id,
            incarnation,
            addr: addr.into(),
            frozen: AtomicBool::new(false),
            disk_failed: AtomicBool::new(false),
            locals: Mutex::default(),
            adopted: Mutex::default(),
        });
        let task = tokio::spawn(live(Arc::clone(&shared), Arc::clone(manager)));
        let node = Self {
            shared,
            task: Mutex::new(task),
        };
        while manager
            .members
            .lock()
            .session(NodeId(id))
            .is_some_and(|s| s.heard.is_none())
        {
            tokio::task::yield_now().await;
        }
        Ok(node)
    }

    pub(super) fn addr(&self) -> String {
        self.shared.addr.clone()
    }

    /// The process dies; its stream breaks.
    pub(super) fn kill(self) {
        drop(self);
    }

    /// The stream breaks; the process is not asked.
    pub(super) fn disconnect(&self) {
        self.task.lock().abort();
    }

    /// The process stops without dying (SIGSTOP, a partition): its stream stays open.
    pub(super) fn freeze(&self) {
        self.shared.frozen.store(true, Ordering::SeqCst);
    }

    pub(super) fn thaw(&self) {
        self.shared.frozen.store(false, Ordering::SeqCst);
    }

    pub(super) fn fail_disk(&self, failed: bool) {
        self.shared.disk_failed.store(failed, Ordering::SeqCst);
    }

    /// The same process finds the new manager.
    pub(super) fn follow(&self, manager: &Arc<Manager>) {
        let task = tokio::spawn(live(Arc::clone(&self.shared), Arc::clone(manager)));
        std::mem::replace(&mut *self.task.lock(), task).abort();
    }

    pub(super) fn leave_request(&self) -> pb::LeaveRequest {
        pb::LeaveRequest {
            node: self.shared.id,
            incarnation: IncarnationId(self.shared.incarnation).to_bytes(),
        }
    }

    /// It has adopted a map of this version from somewhere.
    pub(super) fn knows(&self, version: u64) {
        let mut map = ClusterMap::clone(&self.shared.adopted.lock());
        map.version = MapVersion(version);
        *self.shared.adopted.lock() = Arc::new(map);
    }

    /// One heartbeat on a stream of its own.
    pub(super) async fn beat_once(&self, manager: &Arc<Manager>) -> Result<pb::HeartbeatReply> {
        let (send, requests) = mpsc::channel(1);
        let mut replies = stream_of(manager, requests);
        send.send(Ok(self.shared.heartbeat(4711))).await.unwrap();
        replies.next().await.unwrap().map_err(Error::from)
    }
}

impl Shared {
    fn heartbeat(&self, sequence: u64) -> pb::HeartbeatRequest {
        let map = self.adopted.lock().clone();
        let report =
            |(target, (_, local)): (&TargetId, &(PublicState, LocalState))| pb::TargetReport {
                target: target.0,
                state: (*local).into(),
                chain_version: map.chains[&map.targets[target].chain].version.0,
                ..Default::default()
            };
        let failed = self.disk_failed.load(Ordering::SeqCst);
        let disk = pb::DiskReport {
            disk: DiskId(self.id.into()).to_bytes(),
            space: Some(pb::Space {
                capacity: 1 << 30,
                used: 1 << 29,
                free: 1 << 29,
            }),
            error: if failed { "EIO".into() } else { String::new() },
            care: None,
        };
        pb::HeartbeatRequest {
            node: self.id,
            incarnation: IncarnationId(self.incarnation).to_bytes(),
            sequence,
            targets: self.locals.lock().iter().map(report).collect(),
            disks: vec![disk],
            map_version: map.version.0,
        }
    }

    fn adopt(&self, map: Arc<ClusterMap>) {
        let mut locals = self.locals.lock();
        locals.retain(|target, _| map.targets.contains_key(target));
        for target in map.targets.values().filter(|t| t.node == NodeId(self.id)) {
            let known = locals
                .entry(target.id)
                .or_insert((PublicState::Offline, LocalState::Online));
            let local = match (target.state, *known) {
                _ if map.is_leaving(target.id) => LocalState::Offline,
                (PublicState::Serving, _) => LocalState::UpToDate,
                (PublicState::Syncing, (PublicState::Syncing, local)) => local,
                _ => LocalState::Online,
            };
            *known = (target.state, local);
        }
        *self.adopted.lock() = map;
    }

    fn finish_syncs(&self) {
        for (state, local) in self.locals.lock().values_mut() {
            if *state == PublicState::Syncing {
                *local = LocalState::UpToDate;
            }
        }
    }
}

/// A heartbeat each second and at each change of the map; registers again when told to.
async fn live(node: Arc<Shared>, manager: Arc<Manager>) {
    let mut maps = manager.watch();
    maps.mark_changed();
    let mut sequence = 0;
    loop {
        let (send, requests) = mpsc::channel(4);
        let mut replies = stream_of(&manager, requests);
        loop {
            if !node.frozen.load(Ordering::SeqCst) {
                if maps.has_changed().unwrap_or(false) {
                    let map = maps.borrow_and_update().clone();
                    node.adopt(map);
                }
                sequence += 1;
                if send.send(Ok(node.heartbeat(sequence))).await.is_err() {
                    break;
                }
                match replies.next().await {
                    Some(Ok(reply)) => assert_eq!(reply.sequence, sequence),
                    _ => break,
                }
            }
            let frozen = node.frozen.load(Ordering::SeqCst);
            tokio::select! {
                _ = maps.changed(), if !frozen => maps.mark_changed(),
                () = tokio::time::sleep(Duration::from_secs(1)) => node.finish_syncs(),
            }
        }
        let again = registration(node.id, node.incarnation, &node.addr);
        if manager.register(again).await.is_err() {
            return;
        }
    }
}
