//! What only this host can do: make a storage server, give it another disk, stop it, forget it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use emberfs_proto::ids::{DiskId, NodeId};
use emberfs_proto::pb;
use emberfs_storage::engine::identity::DiskIdentity;

use crate::cli::MoveArgs;
use crate::cluster_dir::{StoragePlan, storage_name};
use crate::durable;
use crate::failure::{Context, Failure, Result, fail};
use crate::local::LocalCluster;
use crate::ports::{PickLock, PortPicker};
use crate::progress::Progress;
use crate::rpc::{self, Seat};
use crate::up::{ADMIN_PORT, DATA_PORT};

use super::names;

/// How long a server that has started may take until the map shows what it brought.
const SHOW_LIMIT: Duration = Duration::from_mins(1);

/// The storage servers of this host.
pub(super) struct Servers {
    cluster: LocalCluster,
}

impl Servers {
    /// Those of the cluster that was named, if it is one of this host.
    pub(super) fn of(seat: &Seat) -> Result<Option<Self>> {
        let Some((dir, _)) = seat.local.clone() else {
            return Ok(None);
        };
        let plan = dir.require()?;
        Ok(Some(Self {
            cluster: LocalCluster { dir, plan },
        }))
    }

    /// Whether the node is one of them.
    pub(super) fn has(&self, node: NodeId) -> bool {
        self.cluster.plan.nodes().any(|id| id == node.0)
    }

    /// Makes and starts the storage server that is asked for, or the next one; one that was made and does
    /// not take replicas yet comes first. A dry run makes nothing and answers `None` for a new one.
    pub(super) async fn node_to_make(
        mut self,
        asked: Option<NodeId>,
        map: &pb::ClusterMapMsg,
        moves: &MoveArgs,
    ) -> Result<Option<NodeId>> {
        let lock = (!moves.dry_run)
            .then(|| self.cluster.dir.lock())
            .transpose()?;
        // As it is now that no other verb changes it.
        self.cluster.plan = self.cluster.dir.require()?;
        let mut nodes = self.cluster.plan.nodes().map(NodeId);
        let begun = nodes.find(|&id| asked.is_none() && is_new(map, id));
        drop(nodes);
        let node = match begun {
            Some(node) => node,
            None if moves.dry_run => return Ok(None),
            None => self.make(asked)?,
        };
        if moves.dry_run {
            return Ok(names::knows(map, node).then_some(node));
        }
        let name = storage_name(node.0 as usize);
        let progress = Progress::start(format!("Starting {name}"));
        self.cluster.start(&name).await?;
        progress.step(format!("Waiting for {name} to register"));
        let address = self.cluster.plan.address();
        wait_for(&address, &format!("{name} does not register"), |map| {
            map.nodes
                .iter()
                .find(|n| n.id == node.0 && n.alive)
                .map(|_| ())
        })
        .await?;
        drop(lock);
        Ok(Some(node))
    }

    /// Settings, a disk directory and a place in `cluster.toml`, in this order: what `up` finds there is whole.
    fn make(&mut self, asked: Option<NodeId>) -> Result<NodeId> {
        let plan = &mut self.cluster.plan;
        let next = plan.storage.len() as u32 + 1;
        let node = asked.map_or(next, |node| node.0);
        let reused = plan
            .storage
            .get(node as usize - 1)
            .is_some_and(|s| s.removed);
        if node != next && !reused {
            return fail(format!(
                "the next storage server of this host is storage-{next}, not storage-{node}"
            ));
        }
        let picking = PickLock::take();
        let mut ports = PortPicker::default();
        let usual = |base: u16| base.saturating_add(node.min(99) as u16);
        let storage = StoragePlan {
            port: ports.pick(usual(DATA_PORT))?,
            admin_port: ports.pick(usual(ADMIN_PORT))?,
            removed: false,
        };
        match plan.storage.get_mut(node as usize - 1) {
            Some(place) => *place = storage,
            None => plan.storage.push(storage),
        }
        let settings = self.cluster.dir.shared_settings(&self.cluster.plan)?;
        self.cluster
            .dir
            .prepare_storage(&self.cluster.plan, node, &settings)?;
        self.cluster.dir.save(&self.cluster.plan)?;
        drop(picking);
        Ok(NodeId(node))
    }

    /// Lets a server use a disk, in the place of another or as a further one, and answers the disk's id once
    /// the map shows it. The server is restarted for it: a clean stop hands over, so nobody waits.
    pub(super) async fn use_disk(
        &self,
        node: NodeId,
        instead_of: Option<&Path>,
        path: &Path,
    ) -> Result<DiskId> {
        let _lock = self.cluster.dir.lock()?;
        let name = storage_name(node.0 as usize);
        let conf = self.cluster.dir.conf(&name);
        let progress = Progress::start(format!("Restarting {name}"));
        let before =
            fs::read_to_string(&conf).context(format!("cannot read {}", conf.display()))?;
        let after = with_disk(&before, &conf, instead_of, path)?;
        self.cluster.stop(&name, false).await?;
        let write = |text: &str| {
            durable::put(&conf, text).context(format!("cannot write {}", conf.display()))
        };
        write(&after)?;
        if let Err(failure) = self.cluster.start(&name).await {
            // As it was, so that the server's other disks come back.
            write(&before)?;
            if before != after {
                // Its own failure says what to do about it.
                let _ = self.cluster.start(&name).await;
            }
            return Err(failure);
        }
        progress.step(format!("Waiting for {name} to register"));
        let address = self.cluster.plan.address();
        let what = format!("{name} does not come back with {}", path.display());
        wait_for(&address, &what, |map| {
            let alive = map.nodes.iter().any(|n| n.id == node.0 && n.alive);
            names::disk_at(map, node, path).filter(|_| alive)
        })
        .await
    }

    /// Stops a server if it runs.
    pub(super) async fn stop(&self, name: &str) -> Result<()> {
        let _lock = self.cluster.dir.lock()?;
        let _progress = Progress::start(format!("Stopping {name}"));
        self.cluster.stop(name, false).await?;
        Ok(())
    }

    /// Deletes what belongs to a server that the cluster has forgotten.
    pub(super) fn forget(mut self, node: NodeId) -> Result<()> {
        let _lock = self.cluster.dir.lock()?;
        let name = storage_name(node.0 as usize);
        self.cluster.dir.forget_storage(&self.cluster.plan, &name)?;
        if let Some(storage) = self.cluster.plan.storage.get_mut(node.0 as usize - 1) {
            storage.removed = true;
        }
        self.cluster.dir.save(&self.cluster.plan)
    }
}

/// The node has registered and holds nothing because nobody has added it, or has not even registered.
fn is_new(map: &pb::ClusterMapMsg, id: NodeId) -> bool {
    let Some(node) = map.nodes.iter().find(|n| n.id == id.0) else {
        return true;
    };
    let spoken_of = |disk: &pb::DiskMsg| map.roles.iter().any(|role| role.disk == disk.id);
    !node.disks.iter().any(spoken_of) && !map.targets.iter().any(|t| t.node == id.0)
}

/// A node that does not exist, for the plan of a dry run.
pub(super) fn imagined(seat: &Seat, asked: Option<NodeId>) -> Result<(NodeId, pb::NodeMsg)> {
    let Some((dir, plan)) = &seat.local else {
        return fail("only a cluster of this host can be asked about a node that does not exist");
    };
    let node = asked.unwrap_or(NodeId(plan.storage.len() as u32 + 1));
    let root = plan.disk_root.as_deref().unwrap_or(dir.root());
    let (_, msg) = imagined_disk(node, root)?;
    Ok((node, msg))
}

/// A disk that is not in use, for the plan of a dry run.
pub(super) fn imagined_disk(node: NodeId, path: &Path) -> Result<(DiskId, pb::NodeMsg)> {
    let stat = rustix::fs::statvfs(path).context(format!("cannot look at {}", path.display()))?;
    let disk = DiskId(rand::random());
    let msg = pb::DiskMsg {
        id: disk.to_bytes(),
        path: path.display().to_string(),
        capacity: stat.f_blocks * stat.f_frsize,
        ..Default::default()
    };
    let node = pb::NodeMsg {
        id: node.0,
        incarnation: DiskId(0).to_bytes(),
        alive: true,
        disks: vec![msg],
        ..Default::default()
    };
    Ok((disk, node))
}

/// A directory that a server can take over, or has taken over before.
pub(super) fn check_new_disk(path: &Path, node: NodeId) -> Result<()> {
    let shown = path.display();
    if !path.is_dir() {
        return fail(format!(
            "{shown} is no directory: mount the disk there, or make the directory of a new one with `mkdir {shown}`"
        ));
    }
    match DiskIdentity::load(path)? {
        Some(identity) if identity.node != node => fail(format!(
            "{shown} is a disk of node {}: give an empty one, or erase it first",
            identity.node.0
        )),
        _ => Ok(()),
    }
}

/// A disk whose directory is still what it was is not dead, only its server is down.
pub(super) fn check_dead(disk: DiskId, path: Option<&Path>, node: NodeId) -> Result<()> {
    let identity = path.and_then(|path| DiskIdentity::load(path).ok().flatten());
    if identity.is_some_and(|identity| identity.disk == disk) {
        let name = storage_name(node.0 as usize);
        return fail(format!(
            "disk {disk} is there and only its server is down: `emberfs start {name}`, and then drain it with \
             `emberfs drain disk/{disk}`"
        ));
    }
    Ok(())
}

/// The settings with a further disk, or one in another's place; all the rest as it was written.
fn with_disk(text: &str, conf: &Path, instead_of: Option<&Path>, path: &Path) -> Result<String> {
    #[derive(serde::Deserialize)]
    struct Disks {
        disks: toml::Spanned<Vec<PathBuf>>,
    }
    let parsed: Disks = toml::from_str(text).context(conf.display())?;
    let span = parsed.disks.span();
    let mut disks = parsed.disks.into_inner();
    if let Some(old) = instead_of {
        disks.retain(|disk| disk != old);
    }
    if !disks.iter().any(|disk| disk == path) {
        disks.push(path.to_owned());
    }
    let quote = |disk: &PathBuf| {
        let disk = disk
            .to_str()
            .map(|disk| toml::Value::from(disk).to_string());
        disk.ok_or_else(|| {
            Failure::new(format!(
                "{} is not UTF-8: use another directory",
                path.display()
            ))
        })
    };
    let disks = disks.iter().map(quote).collect::<Result<Vec<_>>>()?;
    Ok(format!(
        "{}[{}]{}",
        &text[..span.start],
        disks.join(", "),
        &text[span.end..]
    ))
}

/// Waits until a map shows what is wanted.
async fn wait_for<T>(
    address: &str,
    failure: &str,
    wanted: impl Fn(&pb::ClusterMapMsg) -> Option<T>,
) -> Result<T> {
    let mut client = rpc::cluster(address).await?;
    let watch = client.watch_cluster(pb::WatchRequest::default());
    let mut maps = rpc::answer(address, rpc::CALL_LIMIT, watch).await?;
    let seen = async {
        while let Some(map) = maps.message().await? {
            if let Some(found) = wanted(&map) {
                return Ok(Some(found));
            }
        }
        Ok::<_, tonic::Status>(None)
    };
    match tokio::time::timeout(SHOW_LIMIT, seen).await {
        Ok(Ok(Some(found))) => Ok(found),
        Ok(Ok(None)) => fail(format!(
            "{failure}: the metadata server stops; type this again"
        )),
        Ok(Err(status)) => fail(format!("{failure}: {}; type this again", status.message())),
        Err(_) => fail(format!(
            "{failure} within {} s: see its log",
            SHOW_LIMIT.as_secs()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: &str =
        "# mine\nnode = 1\ndisks = [\n  \"/a\", # first\n  \"/b\",\n]\nqueue_depth = 8 # tuned\n";

    fn changed(instead_of: Option<&str>, path: &str) -> String {
        let conf = Path::new("storage-1.toml");
        with_disk(CONF, conf, instead_of.map(Path::new), Path::new(path)).expect("valid")
    }

    #[test]
    fn a_disk_is_added_or_put_in_anothers_place_and_all_else_stays_as_it_was_written() {
        let want = "# mine\nnode = 1\ndisks = [\"/a\", \"/b\", \"/c\"]\nqueue_depth = 8 # tuned\n";
        assert_eq!(changed(None, "/c"), want);
        assert_eq!(changed(Some("/b"), "/c"), want.replace("\"/b\", ", ""));
        // Typed again, or a new disk at the old place: nothing is named twice.
        assert!(changed(None, "/b").contains("[\"/a\", \"/b\"]"));
        assert!(changed(Some("/b"), "/b").contains("[\"/a\", \"/b\"]"));
    }

    #[test]
    fn a_disk_that_is_there_is_not_dead_and_a_strangers_is_not_new() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let (disk, node) = (DiskId(7), NodeId(1));
        let path = temp.path();
        assert!(check_dead(disk, Some(path), node).is_ok() && check_new_disk(path, node).is_ok());
        let identity = DiskIdentity::new(emberfs_proto::ids::ClusterId(5), node, disk);
        DiskIdentity::format(path, identity).expect("formatted");
        let error = check_dead(disk, Some(path), node)
            .expect_err("alive")
            .to_string();
        assert!(
            error.contains("emberfs start storage-1") && error.contains("drain"),
            "{error}"
        );
        assert!(check_dead(DiskId(8), Some(path), node).is_ok());
        assert!(check_new_disk(path, node).is_ok(), "typed again");
        let error = check_new_disk(path, NodeId(2))
            .expect_err("foreign")
            .to_string();
        assert!(error.contains("disk of node 1"), "{error}");
        let error = check_new_disk(&path.join("none"), node)
            .expect_err("missing")
            .to_string();
        assert!(error.contains("mkdir"), "{error}");
    }
}
