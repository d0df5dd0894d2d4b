//! Random operations by several tasks, with quotas that come and go, faults of the store, and a server that counts meanwhile:
//! in the end every counter is what a recount says, and no limit was passed by those who ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use emberfs_proto::ErrorCode::*;
use emberfs_proto::pb::QuotaKind::{Group, Tree, User};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::kv::MemoryEngine;

const TASKS: u64 = 4;
const STEPS: usize = 150;

struct World {
    f: Fixture,
    dirs: Vec<u64>,
}

/// Errors that belong to the game.
#[track_caller]
fn tolerate<T>(outcome: Result<T>) -> Option<T> {
    match outcome {
        Ok(value) => Some(value),
        Err(error) => {
            let fine = [
                NotFound,
                Exists,
                NotEmpty,
                IsDirectory,
                NotDirectory,
                CrossDevice,
                QuotaExceeded,
                InvalidArgument,
                Stale,
                NoSession,
                Busy,
                // A look that a crash of the store interrupted: clients ask again.
                TransactionTooOld,
            ];
            assert!(fine.contains(&error.code), "{error}");
            None
        }
    }
}

async fn step(world: &World, random: &mut StdRng, client: u128, open: &mut Vec<(u64, u64)>) {
    let f = &world.f;
    let mut dir = || world.dirs[random.random_range(0..world.dirs.len())];
    let (from, to) = (dir(), dir());
    let mut name = || format!("n{}", random.random_range(0..5));
    let (old, new) = (name(), name());
    let caller = || f.client(client, 0);
    let named = || pb::NameRequest {
        caller: caller(),
        parent: from,
        name: bytes(&old),
    };
    match random.random_range(0..14) {
        0..3 => {
            if let Some(opened) = tolerate(f.create(caller(), from, &old, 0o666).await) {
                open.push((opened.attr.unwrap().inode, opened.session));
            }
        }
        3..6 => {
            let Some(&(inode, session)) = open.last() else {
                return;
            };
            let end = random.random_range(1..3000);
            let reserved = reserve_as(f, caller(), inode, session, end).await;
            if let Some(attr) = tolerate(reserved) {
                let request = pb::SyncRequest {
                    caller: caller(),
                    inode,
                    session,
                    end: Some(end),
                    truncate_epoch: attr.truncate_epoch,
                    ..Default::default()
                };
                tolerate(f.ns.sync(request).await);
            }
        }
        6 => {
            if let Some((inode, session)) = open.pop() {
                let request = pb::SyncRequest {
                    caller: caller(),
                    inode,
                    session,
                    ..Default::default()
                };
                tolerate(f.ns.close(request).await);
            }
        }
        7 => {
            tolerate(f.try_mkdir(caller(), from, &old, 0o777).await);
        }
        8 => {
            tolerate(f.ns.unlink(named()).await);
        }
        9 => {
            tolerate(f.ns.rmdir(named()).await);
        }
        10 | 11 => {
            let request = pb::RenameRequest {
                caller: caller(),
                parent: from,
                name: bytes(&old),
                new_parent: to,
                new_name: bytes(&new),
                no_replace: false,
                exchange: random.random(),
            };
            tolerate(f.ns.rename(request).await);
        }
        12 => {
            let Some(attr) = tolerate(f.ns.lookup(named()).await).and_then(|r| r.attr) else {
                return;
            };
            let request = pb::LinkRequest {
                caller: caller(),
                inode: attr.inode,
                parent: to,
                name: bytes(&new),
            };
            if attr.kind() == pb::FileKind::File {
                tolerate(f.ns.link(request).await);
            }
        }
        _ => {
            let Some(attr) = tolerate(f.ns.lookup(named()).await).and_then(|r| r.attr) else {
                return;
            };
            let file = attr.kind() == pb::FileKind::File;
            let request = pb::SetAttrRequest {
                caller: caller(),
                inode: attr.inode,
                uid: Some(random.random_range(0..3)),
                gid: Some(random.random_range(0..3)),
                size: file.then(|| random.random_range(0..2000)),
                ..Default::default()
            };
            tolerate(f.ns.setattr(request).await);
        }
    }
}

async fn run(seed: u64) {
    let engine = MemoryEngine::new();
    let f = Fixture::over(Arc::new(engine.clone()), Arc::default());
    let mut dirs = vec![ROOT];
    for top in ["a", "b"] {
        let top = f.mkdir(ROOT, top).await.inode;
        dirs.extend([top, f.mkdir(top, "x").await.inode]);
    }
    let (a, b) = (dirs[1], dirs[3]);
    let world = Arc::new(World { f, dirs });
    engine.inject_randomly(seed, 20);
    let done = Arc::new(AtomicBool::new(false));
    let manager = {
        let (world, done) = (world.clone(), done.clone());
        tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(seed);
            let f = &world.f;
            while !done.load(Ordering::Acquire) {
                let kinds = [(Tree, a), (Tree, b), (User, 1), (User, 2), (Group, 1)];
                let (kind, id) = kinds[random.random_range(0..kinds.len())];
                let request = pb::SetQuotaRequest {
                    clear: random.random_ratio(1, 4),
                    ..quota(f, kind, id, Some(20_000), Some(12))
                };
                // A directory may have been removed.
                tolerate(f.ns.set_quota(request).await);
                for _ in 0..random.random_range(0..6) {
                    // Interrupted at any point.
                    tolerate(f.ns.blocking(|core| core.count_some().map(drop)).await);
                    tokio::task::yield_now().await;
                }
                let mut window = crate::gc::Window::default();
                tolerate(crate::gc::collect(&f.ns, &mut window).await);
                tolerate(f.ns.sweep_quotas().await);
            }
        })
    };
    let tasks = (0..TASKS).map(|task| {
        let world = world.clone();
        tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(seed * 100 + task);
            let mut open = Vec::new();
            for _ in 0..STEPS {
                step(&world, &mut random, u128::from(task) + 10, &mut open).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    done.store(true, Ordering::Release);
    manager.await.unwrap();
    engine.inject_randomly(seed, 0);
    let f = &world.f;
    check_counters(f);
    f.ns.count().await.unwrap();
    check_counters(f);
    check_complete(f);
    // Every writer goes.
    f.expire_after(std::time::Duration::from_mins(1)).await;
    f.collect().await;
    check_counters(f);
    let granted = |_: &[u8], value: &[u8]| {
        let record: InodeRecord = decode(value)?;
        let counted =
            f.ns.core
                .quotas
                .current()
                .charge(&record)
                .subjects()
                .count();
        assert!(counted == 0 || record.granted == 0, "{record:?}");
        Ok(())
    };
    f.ns.core
        .each(keys::inodes_after(InodeId(0)), granted)
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn counters_are_what_a_recount_says() {
    for seed in 1..=6 {
        run(seed).await;
    }
}
