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
    /// Open the files under --path with O_DIRECT; sizes must be multiples of 4 KiB
    #[arg(long, global = true)]
    pub(crate) direct: bool,
    /// Run this command as well (sh -c) where caches are dropped: what makes the client of --path forget
    #[arg(long, value_name = "COMMAND", global = true)]
    pub(crate) drop_caches: Option<String>,
    /// Count the CPU time of more processes: a file with their ids, read when a measurement begins
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) pids: Option<PathBuf>,
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
    Read(ReadArgs),
    /// Appends to one file, each followed by fsync
    Append(AppendArgs),
    /// Create, stat, open-read-close and unlink of small files
    Meta(SmallArgs),
    /// Whole small files in shuffled batches
    Batch(BatchArgs),
    /// The chunk engine alone, next to fio on the same file system
    Disk(EngineArgs),
    /// A sender and a receiver that move checksummed blocks over loopback and do nothing else
    Floor(FloorArgs),
    /// Random reads, their rate and latency
    Randread(RandreadArgs),
    /// Ranks that save shards (write, fsync, rename) and read them back
    Checkpoint(CheckpointArgs),
    /// Training input: shuffled samples for emulated accelerators, and how busy these are
    Loader(LoaderArgs),
    /// Simulate what many nodes that answer many readers do to a switch, with and without receiver-driven windows
    Incast(IncastArgs),
    /// Write the tables and plots of a page from the JSON files of `make bench`
    Report(PublishArgs),
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
pub(crate) struct ReadArgs {
    #[command(flatten)]
    pub(crate) stream: StreamArgs,
    /// Readers of each file, each of its own part
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) readers: u32,
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct AppendArgs {
    /// Bytes per append
    #[arg(long, default_value = "4K", value_parser = parse_bytes)]
    pub(crate) block: u64,
    /// How long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) seconds: u64,
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct BatchArgs {
    /// Files in all
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) files: u32,
    /// Bytes per file
    #[arg(long, default_value = "110K", value_parser = parse_bytes)]
    pub(crate) size: u64,
    /// Files of a batch
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) batch: u32,
    /// Batches at the same time
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
    /// Make so many empty files in the same directory first, and measure beside them
    #[arg(long, value_name = "FILES", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100_000_000))]
    pub(crate) beside: u32,
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
    /// Worker threads that ask the engine: of a server whose disks and neighbours share the cores, one
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=128))]
    pub(crate) workers: u16,
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

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct FloorArgs {
    /// Bytes in all
    #[arg(long, default_value = "4G", value_parser = parse_bytes)]
    pub(crate) size: u64,
    /// Connections, each with a sending and a receiving thread
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) jobs: u32,
    /// Memory that is sent from, so that it does not all stay in the caches of the processor
    #[arg(long, default_value = "256M", value_parser = parse_bytes)]
    pub(crate) pool: u64,
    /// What moves the bytes; the floor itself is the first
    #[arg(long, value_enum, default_value_t = FloorTransport::Blocking)]
    pub(crate) transport: FloorTransport,
}

/// How `bench floor` uses its sockets.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum FloorTransport {
    /// Threads that wait in send and recv
    Blocking,
    /// A tokio runtime of one thread for each end
    Tokio,
    /// An io_uring for each end: one system call per block
    Uring,
    /// The same, sending registered memory without a copy where the kernel can
    UringZerocopy,
}

impl FloorTransport {
    /// For the report.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Blocking => "blocking sockets",
            Self::Tokio => "tokio",
            Self::Uring => "io_uring",
            Self::UringZerocopy => "io_uring, zero-copy send",
        }
    }
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct RandreadArgs {
    /// Size of the file that is read
    #[arg(long, default_value = "1G", value_parser = parse_bytes)]
    pub(crate) size: u64,
    /// Bytes per read
    #[arg(long, default_value = "4K", value_parser = parse_bytes)]
    pub(crate) block: u64,
    /// Readers at the same time, one read each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) jobs: u32,
    /// How long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) seconds: u64,
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct CheckpointArgs {
    /// Ranks that save at the same time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) ranks: u32,
    /// Bytes of each rank's shard
    #[arg(long, default_value = "128M", value_parser = parse_bytes)]
    pub(crate) shard: u64,
    /// Checkpoints, one after the other; the previous one is removed when the next is complete
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Bytes per read or write
    #[arg(long, default_value = "1M", value_parser = parse_bytes)]
    pub(crate) block: u64,
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct LoaderArgs {
    /// Whose records
    #[arg(long, value_enum, default_value_t = Shape::Resnet50)]
    pub(crate) shape: Shape,
    /// Emulated accelerators
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) accelerators: u32,
    /// Reading threads per accelerator
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) readers: u32,
    /// How long
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) seconds: u64,
    /// Files of the data set [default: about 1 GiB of them before --scale]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) files: Option<u32>,
    /// Divide the samples of a batch, the samples of a file and the computing time by this (files of one sample
    /// become smaller instead): a smaller data set that asks for the same MiB per second
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) scale: u32,
    /// Multiply the computing time by this: above 1 for a slower accelerator
    #[arg(long, default_value_t = 1.0, value_parser = parse_factor)]
    pub(crate) compute: f64,
}

/// As [MLPerf Storage](https://github.com/mlcommons/storage) describes training on H100 accelerators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shape {
    /// 140 MiB files of one sample, batches of 7
    Unet3d,
    /// 112 KiB samples, 1251 in a file, batches of 400
    Resnet50,
    /// 2.7 MiB files of one sample, batches of 1
    Cosmoflow,
}

fn parse_factor(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(factor) if (0.001..=1000.0).contains(&factor) => Ok(factor),
        _ => Err("write a number from 0.001 to 1000".to_owned()),
    }
}

#[derive(Args, Clone, Debug)]
pub(crate) struct IncastArgs {
    /// Readers, each behind a port of its own
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) readers: u32,
    /// Storage nodes that answer each reader at the same time
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,64",
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) fan_in: Vec<u32>,
    /// Bytes of one request
    #[arg(long, default_value = "1M", value_parser = parse_bytes)]
    pub(crate) block: u64,
    /// Requests of each reader
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) blocks: u64,
    /// Of a reader's port
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) gbit: u32,
    /// Round trip without queues, microseconds
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) rtt_us: u64,
    /// Memory of the switch, shared by its ports
    #[arg(long, default_value = "64M", value_parser = parse_bytes)]
    pub(crate) buffer: u64,
    /// Until a lost packet is sent again, microseconds
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) timeout_us: u64,
    /// Delay in the queue that windows aim at, microseconds
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) target_us: u64,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct PublishArgs {
    /// Directory with JSON files
    pub(crate) runs: PathBuf,
    /// Markdown file: what stands between the markers in it is replaced, plots go into the directory of its name
    #[arg(long, value_name = "FILE")]
    pub(crate) page: PathBuf,
    /// Name of the markers, for a page with several pairs of them
    #[arg(long, value_name = "NAME", value_parser = parse_block)]
    pub(crate) block: Option<String>,
}

/// The name stands in an HTML comment.
fn parse_block(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !text.is_empty() && text.chars().all(plain) {
        return Ok(text.to_owned());
    }
    Err("write letters and digits".to_owned())
}
