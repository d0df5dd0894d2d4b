//! Tests of the whole engine on a real directory.

mod basics;
mod corruption;
mod crash;
mod faults;
mod full;
mod model;
mod races;
mod repair;
mod unflushed;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use emberfs_proto::buf::AlignedBuf;
use emberfs_proto::checksum::{fragment_checksums, verify_fragments};
use emberfs_proto::ids::{ChainVersion, ChunkKey, ChunkVersion, ClientId, TargetId, WriteTag};
use emberfs_proto::{ErrorCode, Result};

use super::{
    ChunkMeta, Durability, Engine, EngineConfig, Prepare, PrepareKind, ReadData, ReadVersion,
    Verify,
};

pub(super) const PAGE: u32 = 16 << 10;
pub(super) const CHUNK: u32 = 1 << 20;
pub(super) const T: TargetId = TargetId(7);

/// Fast and deterministic: no flushes.
pub(super) fn config(path: &Path) -> EngineConfig {
    EngineConfig {
        durability: Durability::Process,
        index_cache_bytes: 1 << 20,
        ..EngineConfig::new(path)
    }
}

pub(super) async fn open(config: &EngineConfig) -> Engine {
    let config = config.clone();
    tokio::task::spawn_blocking(move || Engine::open(config))
        .await
        .unwrap()
        .unwrap()
}

/// An engine with one target in a fresh directory.
pub(super) async fn fresh() -> (tempfile::TempDir, EngineConfig, Engine) {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let engine = open(&config).await;
    engine.create_target(T).await.unwrap();
    (dir, config, engine)
}

pub(super) fn key(n: u64) -> ChunkKey {
    ChunkKey::new(n, n as u32 % 3)
}

/// Bytes that tell their origin.
pub(super) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

/// As the data plane receives it: in an aligned buffer.
pub(super) fn aligned(bytes: &[u8]) -> Bytes {
    let mut buf = AlignedBuf::new(bytes.len());
    buf.copy_from_slice(bytes);
    buf.freeze()
}

pub(super) fn tag(sequence: u64) -> WriteTag {
    WriteTag {
        client: ClientId(1),
        channel: 0,
        sequence,
    }
}

pub(super) fn prepare(version: u64, kind: PrepareKind) -> Prepare {
    Prepare {
        version: ChunkVersion(version),
        chain_version: ChainVersion(1),
        tag: tag(version),
        kind,
        page_size: PAGE,
        chunk_size: CHUNK,
    }
}

pub(super) fn write(version: u64, offset: u32, bytes: &[u8]) -> Prepare {
    let checksums = fragment_checksums(offset, bytes, PAGE);
    let kind = PrepareKind::Write {
        offset,
        data: aligned(bytes),
        checksums,
        size_hint: 0,
    };
    prepare(version, kind)
}

pub(super) fn replace(version: u64, bytes: &[u8]) -> Prepare {
    let checksums = fragment_checksums(0, bytes, PAGE);
    prepare(
        version,
        PrepareKind::Replace {
            data: aligned(bytes),
            checksums,
            recent: Arc::default(),
        },
    )
}

pub(super) async fn commit(engine: &Engine, key: ChunkKey, version: u64) -> Option<ChunkMeta> {
    engine
        .commit(T, key, ChunkVersion(version), ChainVersion(1))
        .await
        .unwrap()
}

/// Prepares and commits.
pub(super) async fn put(engine: &Engine, key: ChunkKey, prepare: Prepare) -> Option<ChunkMeta> {
    let version = prepare.version.0;
    engine.prepare(T, key, prepare).await.unwrap();
    commit(engine, key, version).await
}

pub(super) async fn remove(engine: &Engine, key: ChunkKey, version: u64) {
    assert_eq!(
        put(engine, key, prepare(version, PrepareKind::Remove)).await,
        None
    );
}

/// All bytes of a version, their checksums verified as a client does.
pub(super) async fn content(engine: &Engine, key: ChunkKey, which: ReadVersion) -> Result<Vec<u8>> {
    let read = engine.read(T, key, which, 0, u32::MAX).await?;
    assert_eq!(read.chunk_len as usize, read.data.len());
    verified(0, &read);
    Ok(read.data.to_vec())
}

pub(super) fn verified(offset: u32, read: &ReadData) {
    verify_fragments(offset, &read.data, read.page_size, &read.checksums).unwrap();
}

pub(super) async fn sound(engine: &Engine) -> super::InvariantReport {
    let report = engine.check_invariants().await.unwrap();
    assert_eq!(report.violations, Vec::<String>::new());
    report
}

pub(super) fn code<R: std::fmt::Debug>(result: Result<R>) -> ErrorCode {
    result.unwrap_err().code
}

/// Many threads, as a server has.
pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}
