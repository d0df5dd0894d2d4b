//! The chunk engine of one disk.

mod types;

pub use types::{
    ChunkMeta, DEFAULT_CACHE_ENTRIES, DEFAULT_INDEX_CACHE_BYTES, DEFAULT_QUEUE_DEPTH,
    DEFAULT_RESERVE_BYTES, DiskHealth, DiskState, Durability, EngineConfig, PendingKind,
    PendingMeta, Prepare, PrepareKind, ReadData, ReadVersion, Space,
};
