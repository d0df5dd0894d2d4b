//! A cluster of real processes for one test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;

use crate::binary::emberfs_binary;
use crate::command::{Outcome, run};
use crate::power::PowerDisk;

/// Pause between two looks at something that is to become true.
const POLL: Duration = Duration::from_millis(50);
/// How long a killed process may take to be gone.
const DEATH_LIMIT: Duration = Duration::from_secs(10);

/// What a cluster should be like.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Storage servers.
    pub nodes: u32,
    /// Copies of each chunk.
    pub replicas: u32,
    /// Mount it as well.
    pub mount: bool,
    /// `meta.KEY=VALUE`, `storage.KEY=VALUE`: as `emberfs up --set`.
    pub settings: Vec<String>,
    /// As after `-o` of `emberfs mount`.
    pub mount_options: String,
    /// Where the disks are, if not in the cluster's directory.
    pub disk_root: Option<PathBuf>,
    /// Its directory, if not in a temporary one.
    pub dir: Option<PathBuf>,
}

impl ClusterOptions {
    /// A mounted cluster with default settings.
    pub fn new(nodes: u32, replicas: u32) -> Self {
        Self {
            nodes,
            replicas,
            mount: true,
            settings: Vec::new(),
            mount_options: String::new(),
            disk_root: None,
            dir: None,
        }
    }
}

/// A running cluster. Dropping it stops and deletes everything.
#[derive(Debug)]
pub struct TestCluster {
    // Deleted last.
    temp: TempDir,
    binary: PathBuf,
    options: ClusterOptions,
}

impl TestCluster {
    /// A mounted cluster with default settings.
    pub fn start(nodes: u32, replicas: u32) -> Result<Self> {
        Self::with(ClusterOptions::new(nodes, replicas))
    }

    /// A cluster as described.
    pub fn with(options: ClusterOptions) -> Result<Self> {
        let temp = tempfile::Builder::new().prefix("emberfs-test-").tempdir()?;
        let cluster = Self {
            temp,
            binary: emberfs_binary()?,
            options,
        };
        // A failed `up` leaves servers behind: the drop of `cluster` takes them away.
        cluster.up()?;
        Ok(cluster)
    }

    /// `emberfs up`: brings back what is down.
    pub fn up(&self) -> Result<Outcome> {
        let mut command = self.verb("up");
        if self.options.mount {
            command.arg("--mount").arg(self.mount());
        } else {
            command.arg("--no-mount");
        }
        if !self.options.mount_options.is_empty() {
            command.arg("-o").arg(&self.options.mount_options);
        }
        if let Some(root) = &self.options.disk_root {
            command.arg("--disk-root").arg(root);
        }
        // An existing one keeps its shape, which may have changed since.
        if !self.dir().join("cluster.toml").exists() {
            command.arg("--storage").arg(self.options.nodes.to_string());
            command
                .arg("--replicas")
                .arg(self.options.replicas.to_string());
            for setting in &self.options.settings {
                command.arg("--set").arg(setting);
            }
        }
        run(&mut command)?.expect_code(0)
    }

    /// `emberfs down`.
    pub fn down(&self) -> Result<Outcome> {
        run(&mut self.verb("down"))?.expect_code(0)
    }

    /// `emberfs down --purge`.
    pub fn purge(&self) -> Result<Outcome> {
        run(self.verb("down").arg("--purge"))?.expect_code(0)
    }

    /// `emberfs start NAME`: `meta-1`, `storage-2`, `mount`.
    pub fn start_process(&self, name: &str) -> Result<Outcome> {
        run(self.verb("start").arg(name))?.expect_code(0)
    }

    /// `emberfs stop NAME`: cleanly.
    pub fn stop_process(&self, name: &str) -> Result<Outcome> {
        run(self.verb("stop").arg(name))?.expect_code(0)
    }

    /// Any verb with any arguments on this cluster.
    pub fn emberfs(&self, verb: &str, arguments: &[&str]) -> Result<Outcome> {
        run(self.verb(verb).args(arguments))
    }

    /// `emberfs status --json`.
    pub fn status_json(&self) -> Result<Value> {
        run(self.verb("status").arg("--json"))?.json()
    }

    /// `emberfs status`: 0 healthy, 1 degraded, 2 broken.
    pub fn status_code(&self) -> Result<i32> {
        Ok(run(&mut self.verb("status"))?.code)
    }

    /// `emberfs fsck --json`, which reads every replica: 0 clean, 1 differences, 2 not checked.
    pub fn fsck(&self) -> Result<Outcome> {
        run(self.verb("fsck").arg("--json"))
    }

    /// Waits until the status has this exit code.
    pub fn wait_status(&self, code: i32, limit: Duration) -> Result<()> {
        let mut last = String::new();
        wait(limit, || {
            let outcome = run(&mut self.verb("status"))?;
            last = outcome.stdout;
            Ok(outcome.code == code)
        })
        .with_context(|| format!("status does not become {code}; last: {last}"))
    }

    /// Kills a process as a crash would, and waits until it is gone.
    pub fn kill9(&self, name: &str) -> Result<()> {
        let pid = self.pid(name)?;
        rustix::process::kill_process(pid, Signal::KILL)?;
        wait(DEATH_LIMIT, || Ok(!is_alive(pid))).with_context(|| format!("{name} survives"))
    }

    /// The disk that this cluster is on loses its power, and with it all processes, also those of [`Self::mount`]; then it is there
    /// again, and nothing runs.
    pub fn lose_power(&self, disk: &PowerDisk) -> Result<()> {
        // Their numbers first: nothing can be read afterwards. The keeper before its worker, or it would start another.
        let mut pids = Vec::new();
        if self.options.mount {
            pids = vec![self.pid("mount")?, self.mount_worker()?];
        }
        pids.extend(self.pids());
        disk.cut()?;
        for pid in &pids {
            // One that the cut has ended is gone already.
            let _ = rustix::process::kill_process(*pid, Signal::KILL);
        }
        wait(DEATH_LIMIT, || Ok(!pids.iter().copied().any(is_alive))).context("one survives")?;
        if self.options.mount {
            rustix::mount::unmount(self.mount(), rustix::mount::UnmountFlags::DETACH)?;
        }
        disk.restore()
    }

    /// Suspends a process: it is silent and refuses nothing.
    pub fn sigstop(&self, name: &str) -> Result<()> {
        Ok(rustix::process::kill_process(
            self.pid(name)?,
            Signal::STOP,
        )?)
    }

    /// Lets a suspended process go on.
    pub fn sigcont(&self, name: &str) -> Result<()> {
        Ok(rustix::process::kill_process(
            self.pid(name)?,
            Signal::CONT,
        )?)
    }

    /// The process `NAME`, from its pid file.
    pub fn pid(&self, name: &str) -> Result<Pid> {
        let path = self.dir().join("run").join(format!("{name}.pid"));
        let text = fs::read_to_string(&path).with_context(|| format!("{name} is not running"))?;
        let raw: i32 = text
            .trim()
            .parse()
            .with_context(|| format!("{}: {text}", path.display()))?;
        Pid::from_raw(raw).with_context(|| format!("{}: {text}", path.display()))
    }

    /// The process that serves the mount: its keeper, which has the pid file, has no other child.
    pub fn mount_worker(&self) -> Result<Pid> {
        let keeper = self.pid("mount")?.as_raw_nonzero().get().to_string();
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path().join("stat");
            // `pid (name) state parent ...`; a name may hold anything. Processes come and go meanwhile.
            let stat = fs::read_to_string(&path).unwrap_or_default();
            let fields = stat.rsplit_once(") ").map(|(_, fields)| fields);
            if fields.and_then(|fields| fields.split(' ').nth(1)) == Some(&keeper) {
                let pid = stat.split(' ').next().and_then(|pid| pid.parse().ok());
                return pid
                    .and_then(Pid::from_raw)
                    .context("a process without a number");
            }
        }
        bail!("nobody serves the mount of keeper {keeper}")
    }

    /// Kills the process that serves the mount, as a crash would; waits for it where the one before has just died.
    pub fn kill_mount_worker(&self) -> Result<()> {
        let mut worker = None;
        wait(DEATH_LIMIT, || {
            worker = self.mount_worker().ok();
            Ok(worker.is_some())
        })
        .context("nobody serves the mount")?;
        let pid = worker.context("nobody serves the mount")?;
        rustix::process::kill_process(pid, Signal::KILL)?;
        wait(DEATH_LIMIT, || Ok(!is_alive(pid))).context("the worker survives")
    }

    /// Every process that has a pid file.
    pub fn pids(&self) -> Vec<Pid> {
        self.names()
            .iter()
            .filter_map(|name| self.pid(name).ok())
            .collect()
    }

    /// Names of all processes of this cluster that were ever started, by their logs.
    pub fn names(&self) -> Vec<String> {
        let logs = fs::read_dir(self.dir().join("run"))
            .into_iter()
            .flatten()
            .flatten();
        let stem = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_suffix(".log").map(str::to_owned)
        };
        let mut names: Vec<_> = logs.filter_map(stem).collect();
        names.sort_unstable();
        names
    }

    /// The log of a process, for messages of failed tests.
    pub fn log(&self, name: &str) -> String {
        let path = self.dir().join("run").join(format!("{name}.log"));
        fs::read_to_string(path).unwrap_or_default()
    }

    /// Directory of the cluster.
    pub fn dir(&self) -> PathBuf {
        let own = || self.temp.path().join("data");
        self.options.dir.clone().unwrap_or_else(own)
    }

    /// Where it is mounted.
    pub fn mount(&self) -> PathBuf {
        self.temp.path().join("mnt")
    }

    /// A further mount of this cluster on this host, with these options.
    pub fn mount_again(&self, options: &str) -> Result<SecondMount> {
        let dir = tempfile::Builder::new().prefix("emberfs-test-").tempdir()?;
        let mut command = Command::new(&self.binary);
        command.arg("mount").arg(self.address()?).arg(dir.path());
        if !options.is_empty() {
            command.arg("-o").arg(options);
        }
        run(&mut command)?.expect_code(0)?;
        let binary = self.binary.clone();
        Ok(SecondMount { dir, binary })
    }

    /// `host:port` of the metadata server.
    pub fn address(&self) -> Result<String> {
        let address = self.status_json()?["address"].as_str().map(str::to_owned);
        address.context("status has no address")
    }

    /// Whether something is mounted at [`Self::mount`].
    pub fn is_mounted(&self) -> Result<bool> {
        is_mounted(&self.mount())
    }

    fn verb(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.binary);
        // The caller's cluster must not be touched.
        command.env_remove("EMBERFS_CLUSTER");
        command.arg(verb).arg("--dir").arg(self.dir());
        command
    }

    fn tear_down(&self) -> Result<()> {
        let mount = self.mount();
        if self.dir().join("cluster.toml").exists() {
            for pid in self.pids() {
                // Nothing may wait for a process that a test has suspended.
                let _ = rustix::process::kill_process(pid, Signal::CONT);
            }
            let pids = self.pids();
            let outcome = run(self.verb("down").args(["--purge", "--force"]))?;
            if outcome.code != 0 {
                eprintln!("down failed: {}", outcome.stderr);
                for pid in pids {
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                }
            }
        }
        if is_mounted(&mount)? {
            rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH)?;
        }
        Ok(())
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        if thread::panicking() {
            for name in self.names() {
                let log = self.log(&name);
                let lines: Vec<_> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(15)..].join("\n");
                eprintln!("---- end of the log of {name}\n{tail}");
            }
        }
        if let Err(error) = self.tear_down() {
            eprintln!("cannot take the test cluster away: {error:#}");
        }
    }
}

/// A further mount; dropping it unmounts.
#[derive(Debug)]
pub struct SecondMount {
    // Deleted last.
    dir: TempDir,
    binary: PathBuf,
}

impl SecondMount {
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for SecondMount {
    fn drop(&mut self) {
        let unmounted = run(Command::new(&self.binary).arg("umount").arg(self.path()));
        if !unmounted.is_ok_and(|outcome| outcome.code == 0) {
            eprintln!("{} could not be unmounted properly", self.path().display());
            let _ = rustix::mount::unmount(self.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Waits until `condition` holds; fails after `limit`.
pub fn wait(limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !condition()? {
        if start.elapsed() > limit {
            bail!("not within {limit:?}");
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// Whether a process exists and is no zombie. While one of its threads still ends, so that its ports and files
/// are not free yet, it does.
pub fn is_alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    let state = stat.ok().and_then(|stat| {
        let (_, rest) = stat.rsplit_once(") ")?;
        rest.chars().next()
    });
    let threads = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()));
    let others = threads.is_ok_and(|threads| threads.count() > 1);
    others || !matches!(state, None | Some('Z' | 'X'))
}

fn is_mounted(path: &Path) -> Result<bool> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let path = path.display().to_string();
    Ok(table
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(path.as_str())))
}
