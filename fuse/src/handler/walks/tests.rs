use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::handler::ROOT_NODE;
use crate::testing::Memory;

const TERM: Duration = Duration::from_mins(5);
const ME: u32 = 7;

fn name(number: usize) -> String {
    format!("entry-{number:04}")
}

fn directory(entries: usize) -> (Handler<Memory>, Memory) {
    let memory = Memory::new();
    for number in 0..entries {
        memory.create_elsewhere(1, &name(number), b"");
    }
    let handler = Handler::new(memory.clone(), InodeId::ROOT, false);
    handler.watched_for(TERM, true);
    (handler, memory)
}

/// What the kernel is answered, as `dispatch` does it.
async fn look_up(handler: &Handler<Memory>, asker: u32, name: &str) -> Option<Attr> {
    let Step { found, fetch } = handler.step(asker, ROOT_NODE, name.as_bytes());
    let attr = match found {
        Some((attr, left)) => {
            assert!(left <= TERM && left > TERM / 2);
            Some(attr)
        }
        None => {
            let creds = Creds::default();
            let found = handler.lookup(&creds, ROOT_NODE, name.as_bytes()).await;
            found.ok()
        }
    };
    if let Some(fetch) = fetch {
        handler.fetch_ahead(fetch).await;
    }
    attr
}

/// Looks all these up; how many round trips that took.
async fn walk(
    handler: &Handler<Memory>,
    memory: &Memory,
    numbers: impl IntoIterator<Item = usize>,
) -> u64 {
    let trips = || memory.lookups.load(Relaxed) + memory.readdirs.load(Relaxed);
    let before = trips();
    for number in numbers {
        let found = look_up(handler, ME, &name(number)).await;
        let expected = memory.server_attr(number as u64 + 2);
        assert_eq!(found, Some(expected), "{number}");
    }
    trips() - before
}

#[tokio::test]
async fn a_walk_takes_few_round_trips() {
    let (handler, memory) = directory(2000);
    let trips = walk(&handler, &memory, 0..2000).await;
    assert!(trips < 40, "{trips}");
    // Every other name is as good.
    let trips = walk(&handler, &memory, (0..2000).step_by(2)).await;
    assert!(trips < 40, "{trips}");
}

#[tokio::test]
async fn jumping_about_costs_little_and_fetches_next_to_nothing() {
    let (handler, memory) = directory(2000);
    let mut number = 1;
    let numbers: Vec<usize> = std::iter::repeat_with(|| {
        number = number * 1117 % 1999;
        number
    })
    .take(1000)
    .collect();
    walk(&handler, &memory, numbers).await;
    let fetches = memory.readdirs.load(Relaxed);
    assert!(fetches < 20, "{fetches}");
    // Somebody else who walks is known at once.
    for number in 0..200 {
        look_up(&handler, ME + 1, &name(number)).await;
    }
    assert!(memory.lookups.load(Relaxed) < 1000 + 20);
}

#[tokio::test]
async fn the_end_of_a_directory_is_asked_for_once() {
    let (handler, memory) = directory(20);
    walk(&handler, &memory, 0..20).await;
    let fetches = memory.readdirs.load(Relaxed);
    for number in 20..200 {
        assert_eq!(look_up(&handler, ME, &name(number)).await, None);
    }
    assert_eq!(memory.readdirs.load(Relaxed), fetches);
}

#[tokio::test]
async fn what_was_changed_meanwhile_is_asked_for() {
    let (handler, memory) = directory(200);
    walk(&handler, &memory, 0..20).await;

    // The attributes of one, elsewhere and here.
    memory.write_elsewhere(32, b"other");
    handler.heard_of(InodeId(32));
    walk(&handler, &memory, 20..40).await;
    let chmod = emberfs_client::SetAttr {
        mode: Some(0o600),
        ..Default::default()
    };
    let creds = Creds::default();
    handler.setattr(&creds, 44, chmod, None).await.unwrap();
    walk(&handler, &memory, 40..60).await;

    // Names, elsewhere and here.
    for elsewhere in [true, false] {
        let from = if elsewhere { 60 } else { 80 };
        walk(&handler, &memory, from..from + 10).await;
        let gone = name(from + 12);
        if elsewhere {
            memory.unlink_elsewhere(1, &gone);
            handler.renamed_elsewhere(InodeId::ROOT, gone.as_bytes());
        } else {
            let removed = handler.unlink(&creds, ROOT_NODE, gone.as_bytes());
            removed.await.unwrap();
        }
        assert_eq!(look_up(&handler, ME, &gone).await, None);
    }

    // Which, nobody says.
    walk(&handler, &memory, 100..110).await;
    memory.unlink_elsewhere(1, &name(112));
    handler.missed_changes();
    assert_eq!(look_up(&handler, ME, &name(112)).await, None);
}

#[tokio::test]
async fn what_is_changed_while_it_is_fetched_does_not_count() {
    let (handler, memory) = directory(50);
    let mut fetch = None;
    for number in 0..3 {
        fetch = handler.step(ME, ROOT_NODE, name(number).as_bytes()).fetch;
    }
    let fetch = fetch.unwrap();
    let asked = Instant::now();
    let (at, reply) = (
        handler.inodes.now(),
        memory
            .readdir(&Creds::default(), InodeId::ROOT, &fetch.after, fetch.limit)
            .await
            .unwrap(),
    );
    memory.unlink_elsewhere(1, &name(4));
    handler.renamed_elsewhere(InodeId::ROOT, name(4).as_bytes());
    handler.walks.arrived(&fetch, reply, at, asked);
    assert_eq!(look_up(&handler, ME, &name(4)).await, None);
}

#[tokio::test]
async fn what_has_just_changed_is_asked_for() {
    let (handler, memory) = directory(20);
    let now = |attr: &mut Attr| attr.ctime = Some(SystemTime::now().into());
    memory.alter_elsewhere(12, now);
    let trips = |memory: &Memory| memory.lookups.load(Relaxed);
    walk(&handler, &memory, 0..10).await;
    let before = trips(&memory);
    walk(&handler, &memory, 10..20).await;
    assert_eq!(trips(&memory), before + 1);
}

#[tokio::test]
async fn without_a_watch_nothing_is_believed() {
    let (handler, memory) = directory(200);
    walk(&handler, &memory, 0..50).await;
    handler.watched_for(Duration::ZERO, false);
    let trips = walk(&handler, &memory, 50..100).await;
    assert_eq!(trips, 50);
    handler.watched_for(Duration::from_nanos(1), true);
    for number in 100..150 {
        let step = handler.step(ME, ROOT_NODE, name(number).as_bytes());
        assert!(step.found.is_none(), "told of for a moment only");
        if let Some(fetch) = step.fetch {
            handler.fetch_ahead(fetch).await;
        }
    }
}

#[tokio::test]
async fn a_directory_that_cannot_be_listed_is_left_alone() {
    let (handler, memory) = directory(3);
    for number in 0..60 {
        let name = name(number);
        if let Some(fetch) = handler.step(ME, 99, name.as_bytes()).fetch {
            handler.fetch_ahead(fetch).await;
        }
    }
    assert_eq!(memory.readdirs.load(Relaxed), 1);
}

#[test]
fn memory_is_bounded() {
    let walks = Walks::default();
    walks.watched_for(TERM);
    for dir in 0..10 * MAX_WALKS as u64 {
        walks.step((dir, ME), b"a", |_, _| false);
    }
    assert!(walks.table.lock().walks.len() <= MAX_WALKS);
}
