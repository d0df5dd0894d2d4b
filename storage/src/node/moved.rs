//! Targets that leave this node: they stop serving before their chain goes on without them, and their data
//! is deleted once the map does not name them any more.
//!
//! Deleting data is the one thing that cannot be undone, so it rests on two facts: the map is one
//! that knows this run of the process ([`Node::adopt`] looks at no other), and it has given out
//! the target's id, so that it once named the target and does not any more. A target with a higher id
//! comes from a map that is newer than this one (the metadata store was restored from an old
//! copy): it stays, and the log says so.

use std::sync::Arc;

use emberfs_proto::cluster::ClusterMap;
use emberfs_proto::ids::{ChainVersion, TargetId};

use super::{Node, TargetHost};
use crate::chain::{Event, View};
use crate::engine::Engine;

/// The target is about to leave its chain: to itself it has left already. Once this returns
/// nothing is served any more, and the heartbeat may say so.
pub(super) fn stop_serving(host: &Arc<TargetHost>, view: &View) {
    host.drive(Event::Adopt {
        view: view.clone().left(),
    });
    host.set_stopped(true);
}

impl Node {
    /// Deletes, in the background, what lies on the disks and is not in the map any more. Goes on after
    /// a restart, with the first map.
    pub(super) async fn delete_moved(self: &Arc<Self>, map: &ClusterMap) {
        for disk in &self.disks {
            let Ok(found) = disk.engine.targets().await else {
                continue;
            };
            for target in found {
                if map.targets.contains_key(&target) {
                    continue;
                }
                if target > map.last_target {
                    tracing::error!(%target, path = %disk.path.display(), map = %map.version,
                        "the disk holds a replica that a later cluster map made; was the metadata store restored from \
                         an old copy? It stays untouched");
                    continue;
                }
                self.delete(target, &disk.engine);
            }
        }
    }

    fn delete(self: &Arc<Self>, target: TargetId, engine: &Engine) {
        if !self.deleting.lock().insert(target) {
            return;
        }
        let host = self.targets.write().remove(&target);
        if let Some(host) = host
            && let Some(view) = host.view()
        {
            // It was taken out without having been asked to leave: its node counted as dead.
            let version = ChainVersion(view.version.0 + 1);
            stop_serving(&host, &View { version, ..view });
        }
        let (node, engine) = (Arc::clone(self), engine.clone());
        tokio::spawn(async move {
            match engine.drop_target(target).await {
                Ok(()) => tracing::info!(%target, "deleted a replica that has moved away"),
                // The next map, or the next start, tries again.
                Err(error) => {
                    tracing::warn!(%target, %error, "cannot delete a replica that has moved away");
                }
            }
            node.deleting.lock().remove(&target);
        });
    }
}
