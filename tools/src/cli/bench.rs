//! The arguments of `emberfs bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::sizes::parse_bytes;

use super::DEFAULT_DIR;

#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// Directory of the cluster on this host
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_DIR)]
    pub(crate) dir: PathBuf,
    /// Measure this directory (a mount, a local disk) instead of a cluster through the native client
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) path: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// What to measure
    #[command(subcommand)]
    pub(crate) workload: Workload,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Workload {
    /// Sequential writes and fsync
    Write(StreamArgs),
    /// Sequential reads, caches dropped
    Read(StreamArgs),
    /// Create, stat, open-read-close and unlink of small files
    Meta(SmallArgs),
    /// The chunk engine alone, next to fio on the same file system
    Disk(EngineArgs),
    /// Longest pauses of reads and of writes with fsync, also while servers of this host die and return
    Pause(PauseArgs),
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct StreamArgs {
    /// Size of each file, such as 256M or 1G
    #[arg(long, default_value = "1G", value_parser = parse_bytes)]
    pub(crate) size: u64,
    /// Bytes per read or write
    #[arg(long, default_value = "1M", value_parser = parse_bytes)]
    pub(crate) block: u64,
    /// Files at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) jobs: u32,
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct SmallArgs {
    /// Files in all
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) files: u32,
    /// Bytes per file
    #[arg(long, default_value = "4K", value_parser = parse_bytes)]
    pub(crate) size: u64,
    /// Workers at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) jobs: u32,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct PauseArgs {
    /// Watch at least so long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) seconds: u64,
    /// Bytes per read or write
    #[arg(long, default_value = "1M", value_parser = parse_bytes)]
    pub(crate) block: u64,
    /// Size of the file that is read and of the one that is written
    #[arg(long, default_value = "128M", value_parser = parse_bytes)]
    pub(crate) size: u64,
    /// Kill -9 this storage server, then start it again; or the head, middle or tail of the first chain
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) kill: Vec<String>,
    /// Suspend this storage server for longer than its lease, then let it go on; or head, middle or tail
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) freeze: Vec<String>,
    /// Stop this storage server cleanly, then start it again; or head, middle or tail
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) restart: Vec<String>,
    /// Restart all storage servers cleanly, one after the other
    #[arg(long)]
    pub(crate) rolling: bool,
    /// How long a server stays away, seconds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=600))]
    pub(crate) down: u64,
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct EngineArgs {
    /// Bytes that are written and read, such as 256M or 4G; rounded up to whole chunks of 4 MiB
    #[arg(long, default_value = "1G", value_parser = parse_bytes)]
    pub(crate) size: u64,
    /// Times that everything is measured, the engine and fio in turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// Length of each measurement of random reads, seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) seconds: u64,
    /// Requests of 1 MiB in flight
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=128))]
    pub(crate) stream_depth: u32,
    /// Random reads in flight
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=128))]
    pub(crate) depth: u32,
    /// What a write survives
    #[arg(long, value_enum, default_value_t = WriteDurability::Power)]
    pub(crate) durability: WriteDurability,
    /// Leave fio out
    #[arg(long)]
    pub(crate) no_fio: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WriteDurability {
    /// Loss of power: everything is flushed
    Power,
    /// A killed process
    Process,
}
