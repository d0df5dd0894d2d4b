//! The directory of a cluster that runs on this host: what is where, and what `up` decided once.
//!
//! ```text
//! DIR/cluster.toml            ports, replicas, mount: written once, read by every later verb
//! DIR/conf/meta-1.toml        configuration of each server; written once, then the operator's
//! DIR/conf/storage-N.toml
//! DIR/meta-1/                 data of the metadata server
//! DIR/storage-N/disk-1/       data of the storage servers, or under --disk-root
//! DIR/run/NAME.pid, NAME.log  of meta-1, storage-N, mount
//! DIR/lock                    held by whoever starts or stops something here
//! ```

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::failure::{Context, Failure, Result, fail};

/// Version of `cluster.toml`.
const FORMAT: u32 = 1;
/// The host's servers talk to each other and to clients here.
pub(crate) const HOST: &str = "127.0.0.1";
/// Name of the metadata server.
pub(crate) const META: &str = "meta-1";
/// Name of the mount process.
pub(crate) const MOUNT: &str = "mount";

/// What `up` decided when it made the cluster.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// Version of this file.
    pub(crate) format: u32,
    /// Copies of each chunk.
    pub(crate) replicas: u32,
    /// Where the disks are, if not in the cluster's directory. Absolute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) disk_root: Option<PathBuf>,
    /// The metadata server.
    pub(crate) meta: MetaPlan,
    /// Storage servers: `storage-1` first, removed ones included.
    pub(crate) storage: Vec<StoragePlan>,
    /// The mount, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mount: Option<MountPlan>,
}

/// The metadata server's part.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MetaPlan {
    /// Its gRPC port.
    pub(crate) port: u16,
}

/// One storage server's part.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoragePlan {
    /// Its data port.
    pub(crate) port: u16,
    /// Its management port.
    pub(crate) admin_port: u16,
    /// It was taken out of the cluster; its number may be used again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) removed: bool,
}

/// The mount's part.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MountPlan {
    /// Where. Absolute.
    pub(crate) path: PathBuf,
    /// `up` made the directory, so `down` removes it.
    pub(crate) created: bool,
    /// As after `-o`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) options: String,
}

impl Plan {
    /// A new plan with the current format.
    pub(crate) fn new(replicas: u32, meta: MetaPlan, storage: Vec<StoragePlan>) -> Self {
        Self {
            format: FORMAT,
            replicas,
            disk_root: None,
            meta,
            storage,
            mount: None,
        }
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> String {
        format!("{HOST}:{}", self.meta.port)
    }

    /// Node ids of the storage servers, in order.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = u32> {
        let there = (1..).zip(&self.storage).filter(|(_, s)| !s.removed);
        there.map(|(node, _)| node)
    }

    /// Names of the storage servers, in order of their node ids.
    pub(crate) fn storage_names(&self) -> impl Iterator<Item = String> {
        self.nodes().map(|node| storage_name(node as usize))
    }
}

/// `storage-N` of node N.
pub(crate) fn storage_name(node: usize) -> String {
    format!("storage-{node}")
}

/// A cluster's directory.
#[derive(Clone, Debug)]
pub(crate) struct ClusterDir {
    root: PathBuf,
}

/// While it lives no other verb starts or stops processes of the same cluster.
#[derive(Debug)]
pub(crate) struct DirLock {
    _file: File,
}

impl ClusterDir {
    /// The directory at `path`, which need not exist.
    pub(crate) fn at(path: &Path) -> Result<Self> {
        Ok(Self {
            root: absolute(path)?,
        })
    }

    /// Its absolute path.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The plan, or `None` if there is no cluster here.
    pub(crate) fn load(&self) -> Result<Option<Plan>> {
        let path = self.plan_path();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                return Ok(None);
            }
            Err(error) => return fail(format!("cannot read {}: {error}", path.display())),
        };
        let plan: Plan = crate::config_file::parse(&text, &path)?;
        if plan.format != FORMAT {
            return fail(format!(
                "{} has format {}, this emberfs knows {FORMAT}: use the emberfs that made it",
                path.display(),
                plan.format
            ));
        }
        Ok(Some(plan))
    }

    /// The plan, or an error that says how to make or find a cluster.
    pub(crate) fn require(&self) -> Result<Plan> {
        self.load()?.ok_or_else(|| {
            Failure::new(format!(
                "no cluster in {}: give its directory with --dir, or make one with `emberfs up`",
                self.root.display()
            ))
        })
    }

    /// Records the plan: all of it or nothing.
    pub(crate) fn save(&self, plan: &Plan) -> Result<()> {
        let path = self.plan_path();
        let body = toml::to_string(plan).context(format!("cannot write {}", path.display()))?;
        let head = "# Made by `emberfs up`, which reads it to bring the cluster back. Ports are picked once.\n";
        durable::put(&path, &format!("{head}{body}"))
            .context(format!("cannot write {}", path.display()))
    }

    /// Waits until no other verb works on this cluster. The directory must exist.
    pub(crate) fn lock(&self) -> Result<DirLock> {
        let path = self.root.join("lock");
        let what = || format!("cannot lock {}", path.display());
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let file = file.context(what())?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                eprintln!(
                    "Waiting for another emberfs command on {}",
                    self.root.display()
                );
                rustix::fs::flock(&file, FlockOperation::LockExclusive).context(what())?;
            }
            Err(error) => return Err(error).context(what()),
        }
        Ok(DirLock { _file: file })
    }

    /// `cluster.toml`.
    pub(crate) fn plan_path(&self) -> PathBuf {
        self.root.join("cluster.toml")
    }

    /// Configuration of a server.
    pub(crate) fn conf(&self, name: &str) -> PathBuf {
        self.root.join("conf").join(format!("{name}.toml"))
    }

    /// What pid file and log of a process have in common.
    pub(crate) fn stem(&self, name: &str) -> PathBuf {
        self.root.join("run").join(name)
    }

    /// Data of the metadata server.
    pub(crate) fn meta_data(&self) -> PathBuf {
        self.root.join(META)
    }

    /// Data of a storage server: its disks are directories below.
    pub(crate) fn storage_data(&self, plan: &Plan, name: &str) -> PathBuf {
        plan.disk_root.as_deref().unwrap_or(&self.root).join(name)
    }

    /// Makes the directories and the configuration files that are missing.
    pub(crate) fn prepare(&self, plan: &Plan, settings: &Settings) -> Result<()> {
        for dir in [
            self.root.join("conf"),
            self.root.join("run"),
            self.meta_data(),
        ] {
            make_dir(&dir)?;
        }
        let nodes = plan.nodes().count();
        let mut meta = toml::Table::new();
        meta.insert("listen".into(), plan.address().into());
        meta.insert("data_dir".into(), text(&self.meta_data())?);
        meta.insert("replicas".into(), i64::from(plan.replicas).into());
        meta.insert("expected_nodes".into(), (nodes as i64).into());
        meta.extend(settings.meta.clone());
        write_missing(&self.conf(META), &meta)?;
        for node in plan.nodes() {
            self.prepare_storage(plan, node, &settings.storage)?;
        }
        Ok(())
    }

    /// The same for one storage server.
    pub(crate) fn prepare_storage(
        &self,
        plan: &Plan,
        node: u32,
        settings: &toml::Table,
    ) -> Result<()> {
        let Some(storage) = plan.storage.get(node as usize - 1) else {
            return fail(format!("cluster.toml has no storage server {node}"));
        };
        let name = storage_name(node as usize);
        let disk = self.storage_data(plan, &name).join("disk-1");
        if !self.conf(&name).exists() {
            // Later, a missing directory is a missing disk, which must not be replaced by an empty one.
            make_dir(&disk)?;
        }
        let mut conf = toml::Table::new();
        conf.insert("node".into(), i64::from(node).into());
        conf.insert("meta".into(), plan.address().into());
        conf.insert("listen".into(), format!("{HOST}:{}", storage.port).into());
        conf.insert(
            "admin_listen".into(),
            format!("{HOST}:{}", storage.admin_port).into(),
        );
        conf.insert("disks".into(), toml::Value::Array(vec![text(&disk)?]));
        conf.extend(settings.clone());
        write_missing(&self.conf(&name), &conf)
    }

    /// Settings that the storage servers of this cluster share: those of the first one's file that are not
    /// about itself. For a further server.
    pub(crate) fn shared_settings(&self, plan: &Plan) -> Result<toml::Table> {
        let Some(first) = plan.storage_names().next() else {
            return Ok(toml::Table::new());
        };
        let path = self.conf(&first);
        let text = fs::read_to_string(&path).context(format!("cannot read {}", path.display()))?;
        let mut table: toml::Table = crate::config_file::parse(&text, &path)?;
        for own in ["node", "meta", "listen", "admin_listen", "disks"] {
            table.remove(own);
        }
        Ok(table)
    }

    /// Deletes what belongs to one storage server: settings, log, and the disks that `up` or `node add`
    /// made for it.
    pub(crate) fn forget_storage(&self, plan: &Plan, name: &str) -> Result<()> {
        let data = self.storage_data(plan, name);
        absent_is_fine(fs::remove_dir_all(&data))
            .context(format!("cannot delete {}", data.display()))?;
        let stem = self.stem(name);
        for file in [
            self.conf(name),
            stem.with_extension("pid"),
            stem.with_extension("log"),
        ] {
            absent_is_fine(fs::remove_file(&file))
                .context(format!("cannot delete {}", file.display()))?;
        }
        Ok(())
    }

    /// Deletes everything that [`Self::prepare`] and the servers made; other files stay.
    pub(crate) fn purge(&self, plan: &Plan) -> Result<()> {
        let mut trees = vec![
            self.meta_data(),
            self.root.join("conf"),
            self.root.join("run"),
        ];
        trees.extend(
            plan.storage_names()
                .map(|name| self.storage_data(plan, &name)),
        );
        for tree in trees {
            absent_is_fine(fs::remove_dir_all(&tree))
                .context(format!("cannot delete {}", tree.display()))?;
        }
        // The plan goes last: as long as it is there, an interrupted purge can be repeated.
        for file in [self.plan_path(), self.root.join("lock")] {
            absent_is_fine(fs::remove_file(&file))
                .context(format!("cannot delete {}", file.display()))?;
        }
        match fs::remove_dir(&self.root) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
                eprintln!(
                    "Kept {}: it holds files that are not the cluster's",
                    self.root.display()
                );
                Ok(())
            }
            other => other.context(format!("cannot delete {}", self.root.display())),
        }
    }
}

/// Additions to the configuration files of a new cluster (`up --set`).
#[derive(Debug, Default)]
pub(crate) struct Settings {
    meta: toml::Table,
    storage: toml::Table,
}

impl Settings {
    /// Reads `meta.KEY=VALUE` and `storage.KEY=VALUE`; a value that is no TOML is a string.
    pub(crate) fn parse(settings: &[String]) -> Result<Self> {
        let mut parsed = Self::default();
        for setting in settings {
            let split = setting.split_once('=').and_then(|(path, value)| {
                let (server, key) = path.trim().split_once('.')?;
                Some((server, key, value.trim()))
            });
            let table = match split {
                Some(("meta", ..)) => &mut parsed.meta,
                Some(("storage", ..)) => &mut parsed.storage,
                _ => {
                    return fail(format!(
                        "--set {setting}: write meta.KEY=VALUE or storage.KEY=VALUE"
                    ));
                }
            };
            if let Some((_, key, value)) = split {
                let typed = toml::from_str::<toml::Table>(&format!("v = {value}"));
                let typed = typed.ok().and_then(|mut t| t.remove("v"));
                table.insert(key.to_owned(), typed.unwrap_or_else(|| value.into()));
            }
        }
        Ok(parsed)
    }

    /// Nothing was set.
    pub(crate) fn is_empty(&self) -> bool {
        self.meta.is_empty() && self.storage.is_empty()
    }
}

/// Makes `path` absolute and, as far as it exists, free of links: mounts and pid files are looked up by it.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    let what = || format!("cannot resolve {}", path.display());
    let path = std::path::absolute(path).context(what())?;
    // The last component is not looked at: it may be a dead mount.
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = parent.canonicalize().unwrap_or_else(|_| parent.to_owned());
            Ok(parent.join(name))
        }
        _ => Ok(path),
    }
}

/// Makes a directory and its parents.
pub(crate) fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).context(format!("cannot create {}", dir.display()))
}

fn write_missing(path: &Path, table: &toml::Table) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let what = || format!("cannot write {}", path.display());
    let body = toml::to_string(table).context(what())?;
    let head = "# Made by `emberfs up`, yours to change: `emberfs config check FILE`, then stop and start.\n";
    durable::put(path, &format!("{head}{body}")).context(what())
}

fn text(path: &Path) -> Result<toml::Value> {
    path.to_str().map(Into::into).ok_or_else(|| {
        Failure::new(format!(
            "{} is not UTF-8: use another directory",
            path.display()
        ))
    })
}

fn absent_is_fine(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
