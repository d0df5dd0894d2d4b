//! What other machines change, and programs that will not wait any longer.

use std::process::{Command, Stdio};
use std::time::Instant;

use bytes::Bytes;
use emberfs_client::CacheEvent;
use emberfs_proto::pb;

use super::*;
use crate::testing::HANG;

through_each_transport! {
    changes_elsewhere_are_seen_at_once_and_stat_costs_nothing_meanwhile
    what_was_believed_is_asked_for_again_when_changes_were_missed
    a_program_that_waits_can_be_killed
}

/// Far more than anything here takes, and less than the limit of a hanging test.
const SOON: Duration = Duration::from_secs(20);

async fn tell(memory: &Memory, event: CacheEvent) {
    let sender = memory.others.lock().clone().expect("the mount watches");
    sender.send(event).await.expect("the mount listens");
}

/// Waits until the mount has acted on all that it was told.
async fn taken_in(memory: &Memory) {
    // The next event is received when the one before has been dealt with.
    tell(memory, CacheEvent::Changed(pb::Invalidation::default())).await;
    let sender = memory.others.lock().clone().expect("the mount watches");
    let began = Instant::now();
    while sender.capacity() < sender.max_capacity() {
        assert!(began.elapsed() < SOON, "it does not listen");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn watching() -> CacheEvent {
    CacheEvent::Watching {
        term: Duration::from_hours(1),
        long_term: Duration::from_hours(1),
    }
}

fn inode_changed(inode: u64) -> CacheEvent {
    CacheEvent::Changed(pb::Invalidation {
        inodes: vec![inode],
        ..pb::Invalidation::default()
    })
}

fn name_changed(name: &'static str) -> CacheEvent {
    CacheEvent::Changed(pb::Invalidation {
        names: vec![pb::EntryName {
            parent: 1,
            name: Bytes::from_static(name.as_bytes()),
            vacated: false,
        }],
        ..pb::Invalidation::default()
    })
}

/// Waits until a look at the mount finds what is to be found.
async fn soon(look: impl Fn() -> bool + Send + Sync + Clone + 'static) {
    let began = Instant::now();
    loop {
        let look = look.clone();
        if off(look).await {
            return;
        }
        assert!(began.elapsed() < SOON, "it is never seen");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn changes_elsewhere_are_seen_at_once_and_stat_costs_nothing_meanwhile(transport: Transport) {
    let memory = Memory::new();
    let inode = memory.create_elsewhere(1, "f", b"before");
    let Some(mut fixture) = mounted_with(transport, memory.clone(), "").await else {
        return;
    };
    tell(&memory, watching()).await;
    let (file, other) = (fixture.path.join("f"), fixture.path.join("other"));
    // The mount learns of its watch beside the requests: until then nothing is believed for long.
    let counted = memory.clone();
    let looked = file.clone();
    soon(move || {
        let _ = fs::metadata(&looked);
        let before = counted.lookups.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(1100));
        let size = fs::metadata(&looked).unwrap().len();
        size == 6 && counted.lookups.load(Ordering::Relaxed) == before
    })
    .await;
    // That there is no such file is believed, too.
    let (counted, missing) = (memory.clone(), other.clone());
    off(move || {
        assert!(!missing.exists());
        let before = counted.lookups.load(Ordering::Relaxed);
        assert!(!missing.exists());
        assert_eq!(counted.lookups.load(Ordering::Relaxed), before);
    })
    .await;

    memory.write_elsewhere(inode, b"longer than before");
    tell(&memory, inode_changed(inode)).await;
    let looked = file.clone();
    soon(move || fs::metadata(&looked).unwrap().len() == 18).await;
    memory.create_elsewhere(1, "other", b"x");
    tell(&memory, name_changed("other")).await;
    let looked = other.clone();
    soon(move || looked.exists()).await;

    // A program that has the file open sees new bytes, too.
    let open = file.clone();
    let mut reader = off(move || File::open(open).unwrap()).await;
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    memory.write_elsewhere(inode, b"other than before.");
    tell(&memory, inode_changed(inode)).await;
    let reader = Arc::new(reader);
    soon(move || {
        let mut back = [0; 5];
        reader.read_exact_at(&mut back, 0).unwrap();
        back == *b"other"
    })
    .await;
    fixture.mounted.unmount().await.unwrap();
}

async fn what_was_believed_is_asked_for_again_when_changes_were_missed(transport: Transport) {
    let memory = Memory::new();
    let inode = memory.create_elsewhere(1, "f", b"before");
    let Some(mut fixture) = mounted_with(transport, memory.clone(), "").await else {
        return;
    };
    let path = fixture.path.join("f");
    let looked = path.clone();
    let open = Arc::new(off(move || File::open(looked).unwrap()).await);
    let lost = CacheEvent::Changed(pb::Invalidation {
        everything: true,
        ..pb::Invalidation::default()
    });
    for (missed, text) in [(lost, "now longer"), (CacheEvent::Blind, "the longest")] {
        // Long only where the kernel can drop what it believes, and replies are not overtaken.
        let watching = CacheEvent::Watching {
            term: Duration::from_millis(1),
            long_term: Duration::from_hours(1),
        };
        tell(&memory, watching).await;
        taken_in(&memory).await;
        let (by_name, by_handle) = (path.clone(), open.clone());
        off(move || {
            let _ = (
                fs::metadata(&by_name).unwrap(),
                by_handle.metadata().unwrap(),
            );
        })
        .await;
        memory.write_elsewhere(inode, text.as_bytes());
        tell(&memory, missed).await;
        let (by_name, by_handle) = (path.clone(), open.clone());
        let len = text.len() as u64;
        soon(move || {
            let seen = [fs::metadata(&by_name), by_handle.metadata()];
            seen.into_iter().all(|meta| meta.unwrap().len() == len)
        })
        .await;
    }
    drop(open);
    fixture.mounted.unmount().await.unwrap();
}

async fn a_program_that_waits_can_be_killed(transport: Transport) {
    let Some(mut fixture) = mounted_with(transport, Memory::new(), "").await else {
        return;
    };
    let memory = fixture.memory.clone();
    let mut hanging = memory.hanging.subscribe();
    let path = fixture.path.join(HANG);
    let mut program = Command::new("stat");
    program
        .arg(path)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut program = program.spawn().unwrap();
    hanging.wait_for(|count| *count > 0).await.unwrap();
    program.kill().unwrap();
    let ended = tokio::time::timeout(SOON, off(move || program.wait().unwrap())).await;
    assert!(!ended.expect("it can be killed").success());
    memory.released.send_replace(true);
    fixture.mounted.unmount().await.unwrap();
}
