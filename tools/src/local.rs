//! The processes of the cluster in a directory: starting and stopping one of them.

use std::ffi::OsString;
use std::time::Duration;

use crate::cli::NameArgs;
use crate::cluster_dir::{ClusterDir, META, MOUNT, MountPlan, Plan, storage_name};
use crate::failure::{Exit, Result, fail};
use crate::launch::launch;
use crate::mount_table;
use crate::output::say;
use crate::ports;
use crate::process::{Process, Stopped};
use crate::progress::Progress;

/// How long a server may take until it serves: it may have to go through its log after a crash.
const START_LIMIT: Duration = Duration::from_mins(2);
/// How long a server may take to hand over and end.
const STOP_GRACE: Duration = Duration::from_secs(20);
/// How long a mount process may take to flush and end after its mount is gone.
const MOUNT_GRACE: Duration = Duration::from_secs(10);

/// A cluster of this host.
#[derive(Clone, Debug)]
pub(crate) struct LocalCluster {
    /// Where.
    pub(crate) dir: ClusterDir,
    /// What.
    pub(crate) plan: Plan,
}

/// Which process a name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Meta,
    Storage(usize),
    Mount,
}

impl LocalCluster {
    /// Every process, in the order in which they are started.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let mut names = vec![META.to_owned()];
        names.extend(self.plan.storage_names());
        names.extend(self.plan.mount.iter().map(|_| MOUNT.to_owned()));
        names.iter().map(|name| self.process(name)).collect()
    }

    /// The process with this name.
    pub(crate) fn process(&self, name: &str) -> Process {
        Process::new(name, self.dir.stem(name))
    }

    fn role(&self, name: &str) -> Result<Role> {
        let mut nodes = self.plan.nodes().map(|node| node as usize);
        let storage = nodes.find(|&node| storage_name(node) == name);
        match (name, storage) {
            (META, _) => Ok(Role::Meta),
            (MOUNT, _) if self.plan.mount.is_some() => Ok(Role::Mount),
            (_, Some(node)) => Ok(Role::Storage(node)),
            _ => {
                let known: Vec<_> = self
                    .processes()
                    .iter()
                    .map(|p| p.name().to_owned())
                    .collect();
                fail(format!(
                    "no process {name} in this cluster: it has {}",
                    known.join(", ")
                ))
            }
        }
    }

    /// Starts a process unless it runs; answers whether it had to.
    pub(crate) async fn start(&self, name: &str) -> Result<bool> {
        match self.role(name)? {
            Role::Meta => {
                self.start_server(name, "meta", &[self.plan.meta.port])
                    .await
            }
            Role::Storage(node) => {
                let storage = &self.plan.storage[node - 1];
                self.start_server(name, "storage", &[storage.port, storage.admin_port])
                    .await
            }
            Role::Mount => match &self.plan.mount {
                Some(mount) => self.start_mount(mount).await,
                None => Ok(false),
            },
        }
    }

    async fn start_server(&self, name: &str, verb: &str, ports: &[u16]) -> Result<bool> {
        let process = self.process(name);
        if process.running().await?.is_some() {
            return Ok(false);
        }
        if let Some(port) = ports.iter().find(|&&port| !ports::is_free(port)) {
            return fail(format!(
                "cannot start {name}: port {port} is taken by another program; \
                 find it with `ss -ltnp 'sport = :{port}'` and stop it"
            ));
        }
        let conf = self.dir.conf(name);
        let arguments = vec![verb.into(), "--config".into(), conf.into()];
        // Servers that share a host share its cores: more workers than cores only wake each other.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let share = (cores / self.plan.storage.len().max(1)).max(1);
        let threads = (name != META).then_some(share);
        launch(&process, arguments, threads, START_LIMIT).await?;
        Ok(true)
    }

    async fn start_mount(&self, mount: &MountPlan) -> Result<bool> {
        let process = self.process(MOUNT);
        let shown = mount.path.display();
        let running = process.running().await?;
        match (mount_table::find(&mount.path)?, running) {
            (Some(_), Some(_)) => return Ok(false),
            (None, Some(running)) => {
                // Someone unmounted by hand and the process is on its way out.
                if !running.exits_within(MOUNT_GRACE).await? {
                    process.stop(MOUNT_GRACE).await?;
                }
            }
            (Some(entry), None)
                if entry.is_emberfs(&mount.options) && mount_table::is_dead(&mount.path).await =>
            {
                // Its process died: every call on it fails until it is detached.
                mount_table::unmount(&mount.path, true).await?;
            }
            (Some(entry), None) => {
                return fail(format!(
                    "cannot mount on {shown}: {} ({}) is mounted there; unmount it or choose another \
                     place with --mount",
                    entry.source, entry.fs_type
                ));
            }
            (None, None) => {}
        }
        mount_table::prepare_mountpoint(&mount.path)?;
        let mut arguments: Vec<OsString> = vec![
            "mount".into(),
            self.plan.address().into(),
            mount.path.clone().into(),
        ];
        if !mount.options.is_empty() {
            arguments.extend(["-o".into(), mount.options.clone().into()]);
        }
        launch(&process, arguments, None, START_LIMIT).await?;
        match mount_table::find(&mount.path)? {
            Some(_) => Ok(true),
            None => fail(format!(
                "the mount on {shown} vanished at once: see {}",
                process.log_path().display()
            )),
        }
    }

    /// Stops a process; `force` takes the mount from programs that use it.
    pub(crate) async fn stop(&self, name: &str, force: bool) -> Result<Stopped> {
        let process = self.process(name);
        if self.role(name)? != Role::Mount {
            return process.stop(STOP_GRACE).await;
        }
        let running = process.running().await?;
        if let Some(mount) = &self.plan.mount
            && let Some(entry) = mount_table::find(&mount.path)?
            && entry.is_emberfs(&mount.options)
        {
            // A dead mount answers nothing, so nothing can be using it in earnest. A live one without
            // our process is someone else's.
            let dead = running.is_none() && mount_table::is_dead(&mount.path).await;
            if running.is_some() || dead {
                mount_table::unmount(&mount.path, force || dead).await?;
            }
        }
        if let Some(running) = running
            && running.exits_within(MOUNT_GRACE).await?
        {
            process.forget()?;
            return Ok(Stopped::Cleanly);
        }
        process.stop(MOUNT_GRACE).await
    }
}

fn open(args: &NameArgs) -> Result<LocalCluster> {
    let dir = ClusterDir::at(&args.dir.dir)?;
    let plan = dir.require()?;
    Ok(LocalCluster { dir, plan })
}

/// `emberfs start --dir DIR NAME`.
pub(crate) async fn start(args: NameArgs) -> Result<Exit> {
    let cluster = open(&args)?;
    let _lock = cluster.dir.lock()?;
    let progress = Progress::start(format!("Starting {}", args.name));
    let started = cluster.start(&args.name).await?;
    drop(progress);
    say(format_args!(
        "{} {}",
        args.name,
        if started {
            "started"
        } else {
            "was already running"
        }
    ))?;
    Ok(Exit::Success)
}

/// `emberfs stop --dir DIR NAME`.
pub(crate) async fn stop(args: NameArgs) -> Result<Exit> {
    let cluster = open(&args)?;
    let _lock = cluster.dir.lock()?;
    let progress = Progress::start(format!("Stopping {}", args.name));
    let how = cluster.stop(&args.name, false).await?;
    drop(progress);
    say(format_args!(
        "{} {}",
        args.name,
        match how {
            Stopped::NotRunning => "was not running",
            Stopped::Cleanly => "stopped",
            Stopped::Killed => "killed",
        }
    ))?;
    Ok(Exit::Success)
}
