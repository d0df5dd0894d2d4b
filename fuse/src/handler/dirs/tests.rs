use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::testing::Memory;

fn big_directory(entries: usize) -> (Handler<Memory>, Memory) {
    let memory = Memory::new();
    for number in 0..entries {
        memory.create_elsewhere(1, &name(number), b"");
    }
    (Handler::new(memory.clone(), InodeId::ROOT, false), memory)
}

fn name(number: usize) -> String {
    format!("entry-{number:06}")
}

/// Reads to the end from `cookie`, taking `step` entries of each answer, as a kernel buffer would.
async fn list(
    handler: &Handler<Memory>,
    handle: u64,
    mut cookie: u64,
    step: usize,
) -> Vec<DirItem> {
    let mut all = Vec::new();
    loop {
        let batch = handler.readdir(handle, cookie, true).await.unwrap();
        if batch.is_empty() {
            return all;
        }
        all.extend(batch.into_iter().take(step));
        cookie = all.last().unwrap().cookie;
    }
}

fn names(items: &[DirItem]) -> Vec<String> {
    items
        .iter()
        .map(|item| String::from_utf8(item.name.to_vec()).unwrap())
        .collect()
}

#[tokio::test]
async fn every_entry_comes_once_and_in_order() {
    for (entries, step) in [(0, 10), (1, 1), (300, 7), (10_000, 190)] {
        let (handler, memory) = big_directory(entries);
        let handle = handler.opendir(ROOT_NODE);
        let expected: Vec<_> = [".".to_owned(), "..".to_owned()]
            .into_iter()
            .chain((0..entries).map(name))
            .collect();
        assert_eq!(names(&list(&handler, handle, 0, step).await), expected);
        let pages = memory.readdirs.load(std::sync::atomic::Ordering::Relaxed);
        assert!(pages <= 10, "{pages} pages for {entries} entries");
    }
}

#[tokio::test]
async fn deleting_while_listing_skips_nothing() {
    let (handler, _) = big_directory(3000);
    let handle = handler.opendir(ROOT_NODE);
    let (mut cookie, mut seen) = (0, BTreeSet::new());
    loop {
        let batch = handler.readdir(handle, cookie, true).await.unwrap();
        let Some(last) = batch.iter().take(100).next_back() else {
            break;
        };
        cookie = last.cookie;
        for item in batch.iter().take(100).filter(|item| item.attr.is_some()) {
            assert!(seen.insert(item.name.clone()), "{:?} came twice", item.name);
            handler
                .unlink(&Creds::default(), ROOT_NODE, &item.name)
                .await
                .unwrap();
        }
    }
    assert_eq!(seen.len(), 3000);
}

#[tokio::test]
async fn going_back_beyond_the_window_finds_the_same_entries() {
    let (handler, _) = big_directory(12_000);
    let handle = handler.opendir(ROOT_NODE);
    let all = list(&handler, handle, 0, 190).await;
    for back in [2, 3, 500, 2500, 7999, 11_000, 12_001] {
        let cookie = all[back].cookie;
        let again = handler.readdir(handle, cookie, true).await.unwrap();
        assert_eq!(
            names(&again),
            names(&all[back + 1..][..again.len()]),
            "after entry {back}"
        );
        assert!(!again.is_empty() || back + 1 == all.len());
    }
}

#[tokio::test]
async fn rewinding_shows_what_is_new() {
    let (handler, memory) = big_directory(3);
    let handle = handler.opendir(ROOT_NODE);
    assert_eq!(list(&handler, handle, 0, 100).await.len(), 5);
    memory.create_elsewhere(1, "new", b"");
    assert_eq!(list(&handler, handle, 0, 100).await.len(), 6);
}

#[tokio::test]
async fn names_removed_here_are_not_listed_with_attributes_again() {
    let (handler, _) = big_directory(100);
    let handle = handler.opendir(ROOT_NODE);
    let first = handler.readdir(handle, 0, true).await.unwrap();
    handler
        .unlink(&Creds::default(), ROOT_NODE, name(50).as_bytes())
        .await
        .unwrap();
    let rest = handler
        .readdir(handle, first[10].cookie, true)
        .await
        .unwrap();
    assert!(!names(&rest).contains(&name(50)));
    assert!(names(&rest).contains(&name(51)));
}

#[tokio::test]
async fn attributes_changed_here_are_listed_as_they_are() {
    let (handler, _) = big_directory(100);
    let handle = handler.opendir(ROOT_NODE);
    let first = handler.readdir(handle, 0, true).await.unwrap();
    let (index, target) = (60, &first[60]);
    let chmod = emberfs_client::SetAttr {
        mode: Some(0o600),
        ..Default::default()
    };
    handler
        .setattr(&Creds::default(), target.node, chmod, None)
        .await
        .unwrap();
    let again = handler
        .readdir(handle, first[index - 1].cookie, true)
        .await
        .unwrap();
    assert_eq!(again[0].name, target.name);
    assert_eq!(again[0].attr.as_ref().unwrap().mode, 0o600);
}

#[tokio::test]
async fn what_others_changed_is_not_listed_with_attributes_as_it_was() {
    let (handler, memory) = big_directory(100);
    let handle = handler.opendir(ROOT_NODE);
    let first = handler.readdir(handle, 0, true).await.unwrap();
    let rest = async || {
        let rest = handler.readdir(handle, first[10].cookie, true).await;
        rest.unwrap()
    };
    memory.write_elsewhere(first[50].node, b"other");
    handler.heard_of(InodeId(first[50].node));
    let sizes = |items: &[DirItem]| -> Vec<u64> {
        let sizes = items.iter().map(|item| item.attr.as_ref().unwrap().size);
        sizes.filter(|size| *size > 0).collect()
    };
    assert_eq!(sizes(&rest().await), [5]);

    memory.unlink_elsewhere(1, &name(60));
    handler.renamed_elsewhere(InodeId::ROOT, name(60).as_bytes());
    assert!(!names(&rest().await).contains(&name(60)));

    // Which they were, nobody says.
    memory.write_elsewhere(first[51].node, b"other");
    memory.unlink_elsewhere(1, &name(61));
    handler.missed_changes();
    let rest = rest().await;
    assert_eq!(sizes(&rest), [5, 5]);
    assert!(!names(&rest).contains(&name(61)));
}

#[tokio::test]
async fn a_closed_directory_cannot_be_read() {
    let (handler, _) = big_directory(1);
    let handle = handler.opendir(ROOT_NODE);
    handler.releasedir(handle);
    let error = handler.readdir(handle, 0, false).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NoSession);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever happens to other names meanwhile, one that stays is listed exactly once.
    #[test]
    fn names_that_stay_are_listed_once(
        entries in 1usize..600,
        step in 1usize..200,
        changes in proptest::collection::vec((0usize..600, any::<bool>()), 0..20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (handler, memory) = big_directory(entries);
            let me = Creds::default();
            let handle = handler.opendir(ROOT_NODE);
            let mut touched = BTreeSet::new();
            let (mut cookie, mut seen, mut changes) = (0, Vec::new(), changes.into_iter());
            loop {
                let batch = handler.readdir(handle, cookie, true).await.unwrap();
                let Some(last) = batch.iter().take(step).next_back() else { break };
                cookie = last.cookie;
                seen.extend(batch.iter().take(step).map(|item| item.name.clone()));
                if let Some((number, remove)) = changes.next() {
                    let changed = if remove { name(number) } else { format!("{}-new", name(number)) };
                    let changed = Bytes::from(changed);
                    if remove {
                        let _ = handler.unlink(&me, ROOT_NODE, &changed).await;
                    } else if handler.lookup(&me, ROOT_NODE, &changed).await.is_err() {
                        memory.create_elsewhere(1, std::str::from_utf8(&changed).unwrap(), b"");
                    }
                    touched.insert(changed);
                }
            }
            for number in 0..entries {
                let name = Bytes::from(name(number));
                let count = seen.iter().filter(|seen| **seen == name).count();
                prop_assert!(count <= 1, "{name:?} came {count} times");
                prop_assert!(count == 1 || touched.contains(&name), "{name:?} was skipped");
            }
            Ok(())
        })?;
    }
}
