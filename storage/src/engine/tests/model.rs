//! Random histories against a plain map.

use std::collections::BTreeMap;

use super::*;
use proptest::prelude::*;

const KEYS: u64 = 3;

#[derive(Clone, Debug)]
enum Step {
    Write {
        offset: u32,
        len: u32,
        hint: u32,
        aligned: bool,
    },
    Truncate {
        len: u32,
    },
    Remove,
    Replace {
        len: u32,
        back: u64,
    },
    Commit,
    Abort,
    Drop,
    Read {
        offset: u32,
        len: u32,
        which: u8,
    },
    Reopen,
    Check,
}

fn position() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..150_000, (0u32..40).prop_map(|n| n * 4096), 0u32..5000]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (position(), position(), position(), any::<bool>())
            .prop_map(|(offset, len, hint, aligned)| Step::Write { offset, len, hint, aligned }),
        3 => position().prop_map(|len| Step::Truncate { len }),
        1 => Just(Step::Remove),
        2 => (position(), 0u64..3).prop_map(|(len, back)| Step::Replace { len, back }),
        10 => Just(Step::Commit),
        1 => Just(Step::Abort),
        1 => Just(Step::Drop),
        6 => (position(), position(), 0u8..3)
            .prop_map(|(offset, len, which)| Step::Read { offset, len, which }),
        1 => Just(Step::Reopen),
        1 => Just(Step::Check),
    ]
}

/// What the chunk should be.
#[derive(Clone, Debug, Default)]
struct Chunk {
    committed: Option<(u64, Vec<u8>)>,
    /// `None` inside: a removal.
    pending: Option<(u64, Option<Vec<u8>>)>,
}

struct World {
    config: EngineConfig,
    engine: Engine,
    model: BTreeMap<ChunkKey, Chunk>,
    seed: u64,
}

impl World {
    async fn run(&mut self, key: ChunkKey, step: Step) {
        self.seed += 1;
        let chunk = self.model.entry(key).or_default();
        let committed = chunk.committed.as_ref().map_or(0, |c| c.0);
        let old = chunk.committed.as_ref().map_or(&[][..], |c| &c.1);
        let next = committed + 1;
        let tagged = |p: Prepare| Prepare {
            tag: tag(self.seed),
            ..p
        };
        let (request, result) = match step {
            Step::Write {
                offset,
                len,
                hint,
                aligned: direct,
            } => {
                let bytes = pattern(len as usize, self.seed);
                let checksums = fragment_checksums(offset, &bytes, PAGE);
                let mut new = old.to_vec();
                if len > 0 {
                    new.resize(new.len().max((offset + len) as usize), 0);
                    new[offset as usize..][..len as usize].copy_from_slice(&bytes);
                }
                let data = if direct {
                    // As in a frame for this offset: the same alignment.
                    let skip = (offset % 4096) as usize;
                    aligned(&[vec![0; skip], bytes].concat()).slice(skip..)
                } else {
                    Bytes::from(bytes)
                };
                let kind = PrepareKind::Write {
                    offset,
                    data,
                    checksums,
                    size_hint: hint,
                };
                (tagged(prepare(next, kind)), Some(new))
            }
            Step::Truncate { len } => {
                let mut new = old.to_vec();
                new.resize(len as usize, 0);
                (
                    tagged(prepare(next, PrepareKind::Truncate { len })),
                    Some(new),
                )
            }
            Step::Remove => (tagged(prepare(next, PrepareKind::Remove)), None),
            Step::Replace { len, back } => {
                let bytes = pattern(len as usize, self.seed);
                (
                    tagged(replace((next + 1).saturating_sub(back).max(1), &bytes)),
                    Some(bytes),
                )
            }
            other => return self.observe(key, other).await,
        };
        let version = request.version.0;
        let anyhow = matches!(request.kind, PrepareKind::Replace { .. });
        let answer = self.engine.prepare(T, key, request).await;
        if chunk.pending.is_some() && !anyhow {
            assert_eq!(code(answer), ErrorCode::PendingExists);
        } else {
            let meta = answer.unwrap();
            assert_eq!(
                meta.pending.unwrap().len as usize,
                result.as_ref().map_or(0, Vec::len)
            );
            chunk.pending = Some((version, result));
        }
    }

    async fn observe(&mut self, key: ChunkKey, step: Step) {
        let chunk = self.model.entry(key).or_default();
        match step {
            Step::Commit => {
                if let Some((version, bytes)) = chunk.pending.take() {
                    let meta = commit(&self.engine, key, version).await;
                    assert_eq!(meta.is_some(), bytes.is_some());
                    chunk.committed = bytes.map(|bytes| (version, bytes));
                }
            }
            Step::Abort => {
                if let Some((version, _)) = chunk.pending.take() {
                    self.engine.abort(T, key, version.into()).await.unwrap();
                }
            }
            Step::Drop => {
                self.engine.drop_chunk(T, key).await.unwrap();
                *chunk = Chunk::default();
            }
            Step::Read { offset, len, which } => {
                let committed = chunk.committed.clone().map(|(v, bytes)| (v, Some(bytes)));
                let (which, expect) = match (which, &chunk.pending) {
                    (0, _) => (ReadVersion::Committed, committed),
                    (1, None) => (ReadVersion::Pending, committed),
                    (1, pending) => (ReadVersion::Pending, pending.clone()),
                    (_, Some(pending)) => (
                        ReadVersion::Exactly(pending.0.into()),
                        Some(pending.clone()),
                    ),
                    (_, None) => match committed {
                        Some((v, bytes)) => (ReadVersion::Exactly(v.into()), Some((v, bytes))),
                        None => return,
                    },
                };
                let read = self.engine.read(T, key, which, offset, len).await;
                let Some((version, Some(bytes))) = expect else {
                    assert_eq!(code(read), ErrorCode::ChunkNotFound);
                    return;
                };
                let read = read.unwrap();
                let end = (offset as usize + len as usize).min(bytes.len());
                assert_eq!(
                    &read.data[..],
                    bytes.get(offset as usize..end).unwrap_or(&[])
                );
                assert_eq!(
                    (read.version.0, read.chunk_len as usize),
                    (version, bytes.len())
                );
                verified(offset, &read);
            }
            Step::Reopen => {
                self.engine.shutdown().await;
                self.engine = open(&self.config).await;
            }
            _ => self.check().await,
        }
    }

    async fn check(&self) {
        let report = sound(&self.engine).await;
        let mut chunks = 0;
        for (&key, chunk) in &self.model {
            let meta = self.engine.meta(T, key).await.unwrap();
            let expect = chunk.committed.is_some() || chunk.pending.is_some();
            assert_eq!(meta.is_some(), expect, "{key}");
            chunks += u64::from(expect);
            if let Some((version, bytes)) = &chunk.committed {
                assert_eq!(meta.unwrap().committed.0, *version);
                assert_eq!(
                    &content(&self.engine, key, ReadVersion::Committed)
                        .await
                        .unwrap(),
                    bytes
                );
                self.engine.verify(T, key).await.unwrap();
            }
            if let Some((_, Some(bytes))) = &chunk.pending {
                assert_eq!(
                    &content(&self.engine, key, ReadVersion::Pending)
                        .await
                        .unwrap(),
                    bytes
                );
            }
        }
        assert_eq!(report.chunks, chunks);
        assert_eq!(report.bytes, self.engine.space().used);
        let listed = self.engine.list(T, None, 100).await.unwrap();
        assert_eq!(listed.len() as u64, chunks);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn the_engine_behaves_like_a_map_of_byte_vectors(
        steps in proptest::collection::vec((0..KEYS, step()), 1..60),
    ) {
        runtime().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            // A cache that is too small for all keys: records are loaded again and again.
            let config = EngineConfig { cache_entries: 1, ..config(dir.path()) };
            let engine = open(&config).await;
            engine.create_target(T).await.unwrap();
            let mut world = World { config, engine, model: BTreeMap::new(), seed: 0 };
            for (n, step) in steps {
                world.run(key(n), step).await;
            }
            world.check().await;
            world.observe(key(0), Step::Reopen).await;
            world.check().await;
            for n in 0..KEYS {
                world.observe(key(n), Step::Drop).await;
            }
            sound(&world.engine).await;
            assert_eq!(world.engine.space().used, 0);
            world.engine.shutdown().await;
        });
    }
}
