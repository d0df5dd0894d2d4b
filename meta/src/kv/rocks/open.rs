//! Opening the database: its options, its format, and errors that say what to do.

use std::path::Path;

use emberfs_proto::{Error, ErrorCode, Result};
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBRecoveryMode, IteratorMode, LogLevel, Options, WriteBatch,
};

/// The format of the directory, 4 bytes little-endian.
const FORMAT_KEY: &[u8] = b"\xffformat";
const FORMAT: u32 = 1;

/// Logs that are kept when they are not needed any more, to be written over: a log that grows costs an entry in the journal
/// of the file system with each flush, two more writes and a wait.
const REUSED_LOGS: usize = 2;
/// Length to which those are made by [`make_logs_ready`], in bytes.
const READY_LOG_BYTES: usize = 8 << 20;
/// A key that means nothing.
const READY_KEY: &[u8] = b"\xffready";

/// Cache of data blocks, in bytes.
const BLOCK_CACHE_BYTES: usize = 64 << 20;
/// Memory per write buffer, in bytes; there are at most three.
const WRITE_BUFFER_BYTES: usize = 32 << 20;
/// Table files kept open. A host's limit on descriptors may be 20,000 for everything on it.
const MAX_OPEN_FILES: i32 = 256;
/// One per cent of look-ups of absent keys touch a table for nothing.
const BLOOM_BITS_PER_KEY: f64 = 10.0;

fn options() -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    table.set_bloom_filter(BLOOM_BITS_PER_KEY, false);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(3);
    options.set_max_open_files(MAX_OPEN_FILES);
    options.set_max_background_jobs(2);
    options.set_bytes_per_sync(1 << 20);
    options.set_paranoid_checks(true);
    // What follows the last flush may reach the disk in any order, so the log ends at the first record that is not whole.
    // (Nothing tells such an end from damage done later to the newest log.)
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_recycle_log_file_num(REUSED_LOGS);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(16 << 20);
    options.set_log_level(LogLevel::Warn);
    options.set_stats_dump_period_sec(0);
    options
}

pub(super) fn open(directory: &Path) -> Result<DB> {
    let shown = directory.display();
    std::fs::create_dir_all(directory).map_err(|error| {
        Error::new(
            ErrorCode::DiskError,
            format!("cannot create the metadata directory {shown}: {error}"),
        )
    })?;
    let db = DB::open(&options(), directory).map_err(|error| {
        let text = error.to_string();
        if text.contains("LOCK") {
            Error::new(
                ErrorCode::NodeConflict,
                format!(
                    "the metadata directory {shown} is in use: another metadata server is running \
                     there; stop it first, or choose another directory"
                ),
            )
        } else {
            Error::new(
                ErrorCode::DiskError,
                format!("cannot open the metadata store in {shown}: {text}"),
            )
        }
    })?;
    check_format(&db).map_err(|error| error.context(format_args!("metadata directory {shown}")))?;
    Ok(db)
}

/// Fills as many logs as are reused, so that the next ones need not grow for a while.
pub(super) fn make_logs_ready(db: &DB) -> std::result::Result<(), rocksdb::Error> {
    const PIECE: usize = 1 << 20;
    let filler = vec![0; PIECE];
    for _ in 0..REUSED_LOGS {
        for _ in 0..READY_LOG_BYTES / PIECE {
            let mut batch = WriteBatch::default();
            batch.put(READY_KEY, b"");
            batch.put_log_data(&filler);
            db.write(batch)?;
        }
        db.flush_wal(true)?;
        // The next log begins here.
        db.flush()?;
    }
    Ok(())
}

fn check_format(db: &DB) -> Result<()> {
    let broken = |error: rocksdb::Error| Error::new(ErrorCode::DiskError, error.to_string());
    let foreign = |what: String| Err(Error::new(ErrorCode::ForeignDisk, what));
    match db.get(FORMAT_KEY).map_err(broken)? {
        Some(format) if format == FORMAT.to_le_bytes() => Ok(()),
        Some(format) => foreign(format!(
            "its format is {format:?}, this program knows format {FORMAT}; use a newer program"
        )),
        None if db.iterator(IteratorMode::Start).next().is_some() => {
            foreign("it holds a RocksDB database of another program".into())
        }
        None => {
            let mut synced = rocksdb::WriteOptions::default();
            synced.set_sync(true);
            db.put_opt(FORMAT_KEY, FORMAT.to_le_bytes(), &synced)
                .map_err(broken)
        }
    }
}
