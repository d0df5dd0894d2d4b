//! The command line.

mod bench;
mod trash;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::sizes::{parse_bytes, parse_rate};

pub(crate) use bench::*;
pub(crate) use trash::*;

/// Where `up` keeps a cluster unless told otherwise.
pub(crate) const DEFAULT_DIR: &str = "./emberfs-data";
/// Where `up` mounts it unless told otherwise.
pub(crate) const DEFAULT_MOUNT: &str = "./emberfs-mnt";

/// EmberFS: a distributed file system for training data and checkpoints
#[derive(Debug, Parser)]
#[command(
    name = "emberfs",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    /// Address (host:port) of the cluster's metadata server, for commands that ask a running cluster; `up`,
    /// `down`, `start`, `stop` and the servers act on --dir or their configuration [default: the cluster
    /// in --dir]
    #[arg(long, global = true, env = "EMBERFS_CLUSTER", value_name = "ADDR")]
    pub(crate) cluster: Option<String>,
    /// What to do
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole cluster on this host and mount it; brings back whatever of it is down
    Up(UpArgs),
    /// Unmount and stop the cluster of this host
    Down(DownArgs),
    /// Start one process of the cluster of this host
    Start(NameArgs),
    /// Stop one process of the cluster of this host cleanly
    Stop(NameArgs),
    /// Run a metadata server
    Meta(ServerArgs),
    /// Run a storage server
    Storage(ServerArgs),
    /// Mount a cluster
    Mount(MountArgs),
    /// Unmount
    Umount(UmountArgs),
    /// Serve a mount with this program instead of the process that does, without unmounting: open files go on
    Takeover(TakeoverArgs),
    /// Show nodes, disks, chains and space; exits with 0 healthy, 1 degraded, 2 broken
    #[command(after_long_help = crate::status::JSON_HELP)]
    Status(FullStatusArgs),
    /// Say in a few lines whether the cluster is well; exit codes as of status
    #[command(after_long_help = crate::status::JSON_HELP)]
    Health(StatusArgs),
    /// Compare the replicas of every chunk, and chunks with the metadata, on the running cluster
    #[command(after_long_help = crate::fsck::JSON_HELP)]
    Fsck(FsckArgs),
    /// Show or change what may change while the cluster runs
    #[command(after_long_help = crate::settings::HELP)]
    Settings(SettingsArgs),
    /// List chains: their targets with node, disk and state, head first
    #[command(after_long_help = crate::chains::JSON_HELP)]
    Chains(ChainsArgs),
    /// Show how far the background check of every disk is and what it found and repaired
    #[command(after_long_help = crate::scrub::JSON_HELP)]
    Scrub(ScrubArgs),
    /// Add or remove a storage server
    Node(NodeArgs),
    /// Add a disk to a storage server
    Disk(DiskArgs),
    /// Move all replicas away from a storage server or a disk
    Drain(DrainArgs),
    /// Put a new disk in the place of a dead one
    Replace(ReplaceArgs),
    /// Remove whole trees by one request each; the servers empty them in the background
    Rm(RmArgs),
    /// Limit the bytes and inodes of directories, users and groups
    #[command(after_long_help = crate::quota::HELP)]
    Quota(QuotaArgs),
    /// Keep what is removed from directories for a while, list it, and get it back
    #[command(after_long_help = crate::trash::HELP)]
    Trash(TrashArgs),
    /// Measure a cluster or any directory
    Bench(BenchArgs),
    /// Look at configuration files
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// Which cluster of this host.
#[derive(Args, Debug)]
pub(crate) struct DirArg {
    /// Directory of the cluster on this host
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR)]
    pub(crate) dir: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct RmArgs {
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// Remove directories with everything below them; must be given
    #[arg(short, long, required = true)]
    pub(crate) recursive: bool,
    /// Paths in the cluster, from its root on, not of this host: /datasets/old
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct QuotaArgs {
    /// Directory of the cluster on this host
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR, global = true)]
    pub(crate) dir: PathBuf,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// What to do
    #[command(subcommand)]
    pub(crate) command: QuotaCommand,
}

#[derive(Subcommand, Debug)]
pub(crate) enum QuotaCommand {
    /// Set or change limits, as root; what is not given stays as it is
    Set {
        #[command(flatten)]
        of: QuotaOf,
        /// Most bytes, such as 10T, or `none`
        #[arg(long, value_name = "SIZE", value_parser = crate::quota::parse_byte_limit)]
        bytes: Option<u64>,
        /// Most files, directories and links, such as 1M, or `none`
        #[arg(long, value_name = "COUNT", required_unless_present = "bytes", value_parser = crate::quota::parse_inode_limit)]
        inodes: Option<u64>,
    },
    /// Show one quota; of a path the one of the nearest directory above that has one
    Show {
        #[command(flatten)]
        of: QuotaOf,
    },
    /// List all quotas and what is used of them
    List,
    /// Remove limits, as root
    Clear {
        #[command(flatten)]
        of: QuotaOf,
    },
}

/// Whose quota: one of the three.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct QuotaOf {
    /// Path in the cluster, from its root on, not of this host: /projects/llm
    #[arg(value_name = "PATH")]
    pub(crate) path: Option<String>,
    /// Name or number of a user
    #[arg(long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Name or number of a group
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// Storage servers [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) storage: Option<u32>,
    /// Copies of each chunk [default: 3, or fewer if there are fewer storage servers]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) replicas: Option<u32>,
    /// Where to mount [default: ./emberfs-mnt]
    #[arg(long, value_name = "MNT")]
    pub(crate) mount: Option<PathBuf>,
    /// Servers only
    #[arg(long, conflicts_with = "mount")]
    pub(crate) no_mount: bool,
    /// Put the storage servers' disks under PATH instead of the cluster's directory
    #[arg(long, value_name = "PATH")]
    pub(crate) disk_root: Option<PathBuf>,
    /// Mount options, as `-o` of `emberfs mount`
    #[arg(
        short = 'o',
        long = "mount-options",
        value_name = "OPTIONS",
        allow_hyphen_values = true
    )]
    pub(crate) mount_options: Option<String>,
    /// Setting for a new cluster's configuration files: meta.KEY=VALUE or storage.KEY=VALUE
    #[arg(long = "set", value_name = "SETTING")]
    pub(crate) settings: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct DownArgs {
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// Delete all data of the cluster as well
    #[arg(long)]
    pub(crate) purge: bool,
    /// Unmount even if programs still use the mount; they lose it
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Args, Debug)]
pub(crate) struct NameArgs {
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// meta-1, storage-1, storage-2, …, or mount
    pub(crate) name: String,
}

#[derive(Args, Debug)]
pub(crate) struct ServerArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    #[command(flatten)]
    pub(crate) daemon: DaemonArg,
}

/// How `up` and `mount` start processes that outlive them.
#[derive(Args, Debug)]
pub(crate) struct DaemonArg {
    /// Run as a daemon: own session, pid file STEM.pid, one line on standard output when ready
    #[arg(long, value_name = "STEM", hide = true)]
    pub(crate) daemon: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct MountArgs {
    /// Address (host:port) of the cluster's metadata server
    pub(crate) addr: String,
    /// Directory to mount on
    pub(crate) mountpoint: PathBuf,
    /// ro, [no]allow_other, auto_unmount, subdir=, fsname=, subtype=, direct_io, sync, dirsync, [no]late_close, threads=,
    /// max_background=, read_ahead_kb=, attr_timeout=, entry_timeout=, transport=auto|classic|ring,
    /// verify=page|transfer, [no]suid, [no]dev, [no]exec, [no]atime, [no]keeper
    #[arg(short = 'o', value_name = "OPTIONS", allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
    /// Stay in the foreground and log to standard error
    #[arg(long, short = 'f')]
    pub(crate) foreground: bool,
    /// Serve a mount that another process holds; standard input leads there
    #[arg(long, hide = true)]
    pub(crate) worker: bool,
    #[command(flatten)]
    pub(crate) daemon: DaemonArg,
}

#[derive(Args, Debug)]
pub(crate) struct TakeoverArgs {
    /// Where it is mounted
    pub(crate) mountpoint: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct UmountArgs {
    /// Where it is mounted
    pub(crate) mountpoint: PathBuf,
    /// Detach the mount even if programs still use it
    #[arg(long, short = 'l', visible_alias = "lazy")]
    pub(crate) force: bool,
}

#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct FullStatusArgs {
    #[command(flatten)]
    pub(crate) status: StatusArgs,
    /// List the locks of files instead: who holds them, and who waits
    #[arg(long)]
    pub(crate) locks: bool,
}

#[derive(Args, Debug)]
pub(crate) struct FsckArgs {
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Compare what the servers know about chunks without reading the bytes from disk
    #[arg(long)]
    pub(crate) quick: bool,
    /// Read at most so many bytes per second from all disks together, such as 100M
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) rate: Option<u64>,
    /// Put right what can be: damaged pages and replicas that differ from the others, orphans. Without
    /// this the report only says what would be done
    #[arg(long)]
    pub(crate) repair: bool,
    /// Chunks that are read at the same time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) parallel: u16,
}

#[derive(Args, Debug)]
pub(crate) struct SettingsArgs {
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// What to change; without, all settings are shown
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) changes: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct ChainsArgs {
    /// Directory of the cluster on this host
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR, global = true)]
    pub(crate) dir: PathBuf,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// What else
    #[command(subcommand)]
    pub(crate) command: Option<ChainsCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ChainsCommand {
    /// Show how evenly a node's death falls on the others: of the running cluster's chains, or of a plan
    #[command(after_long_help = crate::chains::PLAN_HELP)]
    Plan(PlanArgs),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct PlanArgs {
    /// Plan for so many nodes; needs no cluster
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=2000))]
    pub(crate) nodes: Option<u32>,
    /// Disks of each node
    #[arg(long, value_name = "D", default_value_t = 1, requires = "nodes", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) disks: u32,
    /// Copies of each chunk
    #[arg(long, value_name = "K", default_value_t = 3, requires = "nodes", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) replicas: u32,
    /// Targets on each disk, at least [default: 20 up to 64 disks, 8 beyond, or so many more that the
    /// load can be even]
    #[arg(long, value_name = "T", requires = "nodes", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) targets_per_disk: Option<u32>,
    /// Estimate how long redundancy takes to come back after a node's death, with up to N nodes
    #[arg(long, requires = "nodes")]
    pub(crate) restore: bool,
    #[command(flatten)]
    pub(crate) hardware: HardwareArgs,
}

/// What `--restore` assumes of each node.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct HardwareArgs {
    /// Network of a node in each direction, in gigabits per second
    #[arg(long, value_name = "GBIT", default_value_t = 400, requires = "restore", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) nic_gbit: u32,
    /// Size of a disk
    #[arg(long, value_name = "SIZE", default_value = "14T", requires = "restore", value_parser = parse_bytes)]
    pub(crate) disk_size: u64,
    /// What a disk reads per second
    #[arg(long, value_name = "SIZE", default_value = "6G", requires = "restore", value_parser = parse_bytes)]
    pub(crate) disk_read: u64,
    /// What a disk writes per second
    #[arg(long, value_name = "SIZE", default_value = "3G", requires = "restore", value_parser = parse_bytes)]
    pub(crate) disk_write: u64,
    /// How full the disks are, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 75, requires = "restore", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) fill: u32,
    /// What resync may take of a network port and a disk that serve clients, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 30, requires = "restore", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) share: u32,
}

#[derive(Args, Debug)]
pub(crate) struct ScrubArgs {
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Begin a pass now
    #[arg(long)]
    pub(crate) start: bool,
    /// Wait until no pass is running
    #[arg(long)]
    pub(crate) wait: bool,
    /// Only the disks of this node
    #[arg(long, value_name = "N")]
    pub(crate) node: Option<u32>,
    /// Only this disk: its directory or its id
    #[arg(long, value_name = "DISK")]
    pub(crate) disk: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct NodeArgs {
    /// Directory of the cluster on this host
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_DIR)]
    pub(crate) dir: PathBuf,
    /// What to do
    #[command(subcommand)]
    pub(crate) command: NodeCommand,
}

#[derive(Args, Debug)]
pub(crate) struct DiskArgs {
    /// Directory of the cluster on this host
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_DIR)]
    pub(crate) dir: PathBuf,
    /// What to do
    #[command(subcommand)]
    pub(crate) command: DiskCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Make the next storage server of the cluster of this host, or let one that has registered take
    /// replicas; replicas move to it in the background
    Add(NodeAddArgs),
    /// Forget a storage server that holds no replicas any more
    Remove(NodeRemoveArgs),
}

#[derive(Args, Debug)]
pub(crate) struct NodeAddArgs {
    /// storage-4, node/4 or 4 [default: a new one on this host]
    pub(crate) node: Option<String>,
    #[command(flatten)]
    pub(crate) moves: MoveArgs,
}

#[derive(Args, Debug)]
pub(crate) struct NodeRemoveArgs {
    /// storage-1, node/1 or 1
    pub(crate) node: String,
    /// Say whether it could be removed and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DiskCommand {
    /// Let a storage server use another directory; on this host its server is restarted for it
    Add(DiskAddArgs),
}

#[derive(Args, Debug)]
pub(crate) struct DiskAddArgs {
    /// storage-1, node/1 or 1
    pub(crate) node: String,
    /// An empty directory, the mounted disk
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) moves: MoveArgs,
}

#[derive(Args, Debug)]
pub(crate) struct DrainArgs {
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// storage-1 or node/1, or disk/ID
    pub(crate) what: String,
    #[command(flatten)]
    pub(crate) moves: MoveArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ReplaceArgs {
    #[command(flatten)]
    pub(crate) dir: DirArg,
    /// The dead disk: its id, or disk/ID
    pub(crate) old: String,
    /// The new one: an empty directory on the same storage server, or disk/ID
    pub(crate) new: String,
    #[command(flatten)]
    pub(crate) moves: MoveArgs,
}

/// How replicas move.
#[derive(Args, Clone, Debug)]
pub(crate) struct MoveArgs {
    /// Show what would move and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Return at once; replicas move in the background
    #[arg(long)]
    pub(crate) detach: bool,
    /// What each node sends to new and returning replicas per second, in the whole cluster, such as 200M;
    /// 0: no limit (`emberfs settings resync_bytes_per_second=`)
    #[arg(long, conflicts_with = "dry_run", value_parser = parse_rate)]
    pub(crate) rate: Option<u64>,
    /// Let no replica move in the whole cluster, and do nothing else; what has been asked for is remembered
    #[arg(long, conflicts_with_all = ["dry_run", "detach", "resume"])]
    pub(crate) pause: bool,
    /// Let replicas move again after --pause, then go on as without it
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) resume: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Read a configuration file as the server would and say what is wrong with it
    Check(ConfigCheckArgs),
}

#[derive(Args, Debug)]
pub(crate) struct ConfigCheckArgs {
    /// Configuration file (TOML)
    pub(crate) file: PathBuf,
    /// Whose file it is [default: storage if the file sets `disks` or `node`, else meta]
    #[arg(long)]
    pub(crate) kind: Option<ServerKind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ServerKind {
    /// `emberfs meta`
    Meta,
    /// `emberfs storage`
    Storage,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_may_start_with_a_dash_and_the_cluster_stands_anywhere() {
        let cli = Cli::try_parse_from(["emberfs", "status", "--cluster", "a:1", "--json"])
            .expect("valid");
        assert_eq!(cli.cluster.as_deref(), Some("a:1"));
        let cli = Cli::try_parse_from(["emberfs", "mount", "a:1", "/m", "-o", "subtype=,ro"])
            .expect("valid");
        assert!(matches!(cli.command, Command::Mount(args) if args.options == ["subtype=,ro"]));
    }
}
