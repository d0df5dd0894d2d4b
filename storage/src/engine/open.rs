//! Opens a disk: finds out what is on it and starts its threads.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use emberfs_proto::buf::arena;
use emberfs_proto::ids::TargetId;
use emberfs_proto::{Error, ErrorCode, Result};
use parking_lot::{Mutex, RwLock};
use tokio::sync::RwLock as AsyncRwLock;

use super::alloc::Allocator;
use super::cache::Cache;
use super::check::doubly_owned;
use super::classes::Class;
use super::core::{Alive, Core};
use super::files::BlockFiles;
use super::health::Health;
use super::index::{self, Index, Op, TargetState};
use super::lane::lane;
use super::ring;
use super::space::{self, SpaceMap};
use super::targets::{DROP_BATCH, bounds};
use super::types::EngineConfig;
use super::unflushed::{self, Suspect};
use super::writer::{Retired, Writer};

/// Index changes in work at most.
const WRITER_DEPTH: usize = 1024;
/// Index look-ups in work at most.
const READER_DEPTH: usize = 256;
/// Allocations in work at most.
const SPACE_DEPTH: usize = 256;

/// Opens the disk. Blocks.
pub(super) fn open(config: &EngineConfig) -> Result<Core> {
    let failed = |what: &str, error: &std::io::Error| {
        let what = format!("disk {}: {what}: {error}", config.path.display());
        Error::new(ErrorCode::DiskError, what)
    };
    std::fs::create_dir_all(&config.path).map_err(|e| failed("creating the directory", &e))?;
    let health = Arc::new(Health::new(&config.path));
    let files = BlockFiles::new(config.path.join("blocks"));
    let files = Arc::new(files.map_err(|e| failed("creating blocks/", &e))?);
    let index_path = config.path.join("index");
    let index = Index::open(&index_path, config.index_cache_bytes, Arc::clone(&health))?;
    let targets = settle_targets(&index)?;
    let allocator = Arc::new(Allocator::new(config.capacity_bytes.unwrap_or(u64::MAX)));
    let mut suspects = Vec::new();
    index.scan(&[], None, |target, chunk, record| {
        suspects.extend(Suspect::of(target, chunk, &record));
        for loc in record.blocks() {
            if !allocator.restore(loc) {
                let what = format!("{loc} belongs to {target} {chunk} and to another chunk");
                return Err(doubly_owned(health.disk(), what));
            }
        }
        Ok(true)
    })?;
    restore_files(&allocator, &files, &health).map_err(|e| failed("opening a block file", &e))?;
    for loc in unflushed::settle(suspects, &index, &files, &health)? {
        allocator.retire(loc);
        allocator.disown(loc);
    }
    let size = files
        .file_system_size()
        .map_err(|e| failed("statvfs", &e))?;
    let Some(size) = size.or(config.capacity_bytes) else {
        let what = format!(
            "the file system of disk {} does not tell its size; set `capacity_bytes`, or use another",
            config.path.display()
        );
        return Err(Error::new(ErrorCode::DiskError, what));
    };
    let reserve = config.reserve_bytes.min(size / 8);
    let map = SpaceMap::new(allocator, Arc::clone(&files), Arc::clone(&health), reserve);
    map.refresh();
    if let Err(error) = arena::reserve(config.io_buffer_bytes) {
        tracing::warn!(%error, "no memory can be registered for I/O buffers: disk I/O costs more");
    }
    if config.ready_log_bytes > 0 {
        index.make_logs_ready(config.ready_log_bytes)?;
    }
    start(config, health, Arc::new(map), Arc::new(index), targets)
}

/// Deletes targets whose drop was interrupted; the others.
fn settle_targets(index: &Index) -> Result<Vec<TargetId>> {
    let mut live = Vec::new();
    for (target, state) in index.targets()? {
        if state == TargetState::Live {
            live.push(target);
            continue;
        }
        let (from, to) = bounds(target);
        loop {
            let found = index.list(&from, to.as_deref(), DROP_BATCH)?;
            let ops: Vec<Op> = found
                .iter()
                .map(|(chunk, _)| Op::Delete(index::key(target, *chunk)))
                .collect();
            index.apply(&ops)?;
            if found.len() < DROP_BATCH {
                break;
            }
        }
        index.apply(&[Op::DeleteTarget(target)])?;
        index.flush()?;
    }
    Ok(live)
}

/// Opens the files that there are and tells the allocator how many blocks they have.
fn restore_files(
    allocator: &Allocator,
    files: &BlockFiles,
    health: &Health,
) -> std::io::Result<()> {
    for class in Class::all() {
        let needed = allocator.blocks_needed(class);
        if needed == 0 && !files.exists(class)? {
            continue;
        }
        let file = files.open(class)?;
        let capacity = u64::from(class.capacity());
        if file.metadata()?.len() < u64::from(needed) * capacity {
            tracing::error!(disk = %health.disk(), class = class.capacity(),
                "a block file lost its end: its chunks will fail their checksums until they are resynced");
        }
        // Free blocks at the end are given back here, those in between by the space thread.
        file.set_len(u64::from(needed) * capacity)?;
        allocator.restore_total(class, needed);
    }
    Ok(())
}

fn start(
    config: &EngineConfig,
    health: Arc<Health>,
    map: Arc<SpaceMap>,
    index: Arc<Index>,
    targets: Vec<TargetId>,
) -> Result<Core> {
    let (writer, writer_end) = lane("index writer", WRITER_DEPTH);
    let (reader, reader_end) = lane("index reader", READER_DEPTH);
    let (space, space_end) = lane("space", SPACE_DEPTH);
    let (ring, ring_end) = ring::ring(config.queue_depth.max(1)).map_err(|error| {
        let what = format!("disk {}: making a pipe: {error}", health.disk());
        Error::new(ErrorCode::DiskError, what)
    })?;
    let alive = |id| (id, Arc::new(AsyncRwLock::new(Alive(true))));
    let retired = Arc::new(Retired::default());
    // From here on an early return drops it, which ends the threads that run already.
    let core = Core {
        durability: config.durability,
        health,
        map: Arc::clone(&map),
        cache: Cache::new(config.cache_entries),
        ring,
        space: space.clone(),
        writer,
        reader,
        index: RwLock::new(Some(Arc::clone(&index))),
        retired: Arc::clone(&retired),
        #[cfg(test)]
        faults: Arc::clone(&config.faults),
        targets: RwLock::new(targets.into_iter().map(alive).collect::<HashMap<_, _>>()),
        threads: Mutex::new(Vec::new()),
    };
    let run = Writer {
        index: Arc::clone(&index),
        durability: config.durability,
        map: Arc::clone(&map),
        space,
        retired,
        #[cfg(test)]
        faults: Arc::clone(&config.faults),
    };
    let (told, started) = std::sync::mpsc::sync_channel(1);
    #[cfg(test)]
    let faults = Arc::clone(&config.faults);
    let mut threads = core.threads.lock();
    threads.push(spawn("disk", move || {
        ring::run(
            &ring_end,
            #[cfg(test)]
            faults,
            |result| {
                // open() waits for this.
                let _ = told.send(result);
            },
        );
    })?);
    threads.push(spawn("index-write", move || run.run(&writer_end))?);
    threads.push(spawn("index-read", move || {
        index::run_reader(&index, &reader_end);
    })?);
    threads.push(spawn("space", move || space::run(&map, &space_end))?);
    drop(threads);
    let died = |_| Error::new(ErrorCode::Internal, "the disk thread ended at once");
    started.recv().map_err(died)??;
    Ok(core)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|error| {
            Error::new(
                ErrorCode::Unavailable,
                format!("starting a disk thread: {error}"),
            )
        })
}
