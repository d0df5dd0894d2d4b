use super::*;

const FILE: u64 = 9;

fn attr(size: u64, epoch: u64, mtime: i64) -> Attr {
    let time = Some(Time {
        seconds: mtime,
        nanos: 0,
    });
    Attr {
        inode: FILE,
        kind: FileKind::File as i32,
        size,
        truncate_epoch: epoch,
        mtime: time,
        ctime: time,
        ..Attr::default()
    }
}

/// Opens, as a system call would: the verdict, after which the kernel has acted.
fn open(inodes: &Inodes, attr: &Attr, writer: bool) -> OpenVerdict {
    let mut attr = *attr;
    let verdict = inodes.opened(&mut attr, writer);
    inodes.confirm(FILE, Stamp::of(&attr));
    verdict
}

#[test]
fn pages_survive_an_open_only_if_nothing_changed() {
    let inodes = Inodes::default();
    let first = attr(10, 1, 100);
    assert!(!open(&inodes, &first, false).keep_cache);
    inodes.closed(FILE, false);
    assert!(open(&inodes, &first, false).keep_cache);
    inodes.closed(FILE, false);
    for other in [attr(10, 1, 101), attr(11, 1, 101), attr(11, 2, 101)] {
        assert!(!open(&inodes, &other, false).keep_cache, "{other:?}");
        inodes.closed(FILE, false);
    }
}

#[test]
fn of_two_racing_opens_none_keeps_pages_that_the_other_drops() {
    let inodes = Inodes::default();
    open(&inodes, &attr(10, 1, 100), false);
    let mut new = attr(10, 1, 200);
    assert!(!inodes.opened(&mut new, false).keep_cache);
    assert!(
        !inodes.opened(&mut new, false).keep_cache,
        "the first drop has not happened yet"
    );
    inodes.confirm(FILE, Stamp::of(&new));
    assert!(inodes.opened(&mut new, false).keep_cache);
}

#[test]
fn pages_of_an_open_file_go_each_time_that_others_write_it() {
    let inodes = Inodes::default();
    inodes.present(&mut attr(10, 1, 100), Instant::now());
    open(&inodes, &attr(10, 1, 100), false);
    for mtime in 101..104 {
        assert!(inodes.changed_elsewhere(FILE));
        assert!(inodes.drop_pages(&attr(10, 1, mtime)), "{mtime}");
        assert!(!inodes.drop_pages(&attr(10, 1, mtime)), "of this state");
    }
    // A later open has nothing to keep, and what it reads is of its state.
    assert!(!open(&inodes, &attr(10, 1, 104), false).keep_cache);
    assert!(!inodes.drop_pages(&attr(10, 1, 104)));
    let grown = |size| inodes.outgrown(&mut attr(size, 1, 105));
    assert_eq!((grown(10), grown(11)), (None, Some(10)));
}

#[test]
fn own_writes_keep_the_pages() {
    let inodes = Inodes::default();
    open(&inodes, &attr(0, 0, 100), true);
    inodes.wrote(FILE, 4096, true);
    inodes.synced(&mut attr(4096, 0, 150));
    inodes.closed(FILE, true);
    assert!(open(&inodes, &attr(4096, 0, 150), false).keep_cache);
}

#[test]
fn lost_writes_drop_pages_and_size() {
    let inodes = Inodes::default();
    open(&inodes, &attr(10, 0, 100), true);
    inodes.wrote(FILE, 4096, true);
    inodes.lost(FILE);
    let mut shown = attr(10, 0, 100);
    inodes.present(&mut shown, Instant::now());
    assert_eq!(shown.size, 10);
    assert!(!open(&inodes, &attr(10, 0, 100), false).keep_cache);
}

#[test]
fn an_overtaken_answer_does_not_shrink_a_file() {
    let inodes = Inodes::default();
    open(&inodes, &attr(10, 3, 100), true);
    inodes.wrote(FILE, 4096, true);
    let mut overtaken = attr(10, 3, 100);
    inodes.present(&mut overtaken, Instant::now());
    assert_eq!(overtaken.size, 4096);
    let mut older_epoch = attr(1 << 30, 2, 100);
    inodes.present(&mut older_epoch, Instant::now());
    assert_eq!((older_epoch.size, older_epoch.truncate_epoch), (4096, 3));
    let mut truncated = attr(5, 4, 100);
    inodes.present(&mut truncated, Instant::now());
    assert_eq!(truncated.size, 5);
}

#[test]
fn an_open_without_writers_takes_the_servers_word() {
    let inodes = Inodes::default();
    open(&inodes, &attr(10, 3, 100), true);
    inodes.wrote(FILE, 4096, true);
    inodes.closed(FILE, true);
    let mut server = attr(10, 3, 100);
    inodes.opened(&mut server, false);
    assert_eq!(server.size, 10);
}

#[test]
fn attributes_are_stale_unless_the_kernel_has_just_these() {
    let inodes = Inodes::default();
    assert!(
        open(&inodes, &attr(10, 0, 100), false).attr_stale,
        "never shown"
    );
    inodes.present(&mut attr(10, 0, 100), Instant::now());
    assert!(!open(&inodes, &attr(10, 0, 100), false).attr_stale);
    assert!(open(&inodes, &attr(10, 0, 101), false).attr_stale);
}

#[test]
fn a_chmod_keeps_the_pages_but_hides_no_foreign_write() {
    let inodes = Inodes::default();
    open(&inodes, &attr(10, 0, 100), false);
    inodes.closed(FILE, false);
    let mut chmod = attr(10, 0, 100);
    chmod.ctime = Some(Time {
        seconds: 300,
        nanos: 0,
    });
    inodes.changed(&mut chmod);
    assert!(open(&inodes, &chmod, false).keep_cache);
    inodes.closed(FILE, false);
    // Somebody else wrote before this one.
    let mut after_write = attr(10, 0, 400);
    inodes.changed(&mut after_write);
    assert!(!open(&inodes, &after_write, false).keep_cache);
}

#[test]
fn local_changes_are_seen_by_listings() {
    let inodes = Inodes::default();
    let fetched = inodes.now();
    assert!(!inodes.changed_since(FILE, fetched));
    inodes.touched(FILE);
    assert!(inodes.changed_since(FILE, fetched));
    assert!(!inodes.changed_since(FILE, inodes.now()));
    inodes.forget(FILE);
    assert!(
        inodes.changed_since(FILE, fetched),
        "forgetting does not hide a change"
    );
}

#[test]
fn memory_is_bounded_and_open_files_are_kept() {
    let inodes = Inodes::default();
    open(&inodes, &attr(10, 0, 100), true);
    inodes.wrote(FILE, 4096, true);
    for number in 1..(MAX_PER_SHARD * 2) as u64 {
        let inode = FILE + number * SHARDS as u64;
        let mut attr = Attr {
            inode,
            ..attr(1, 0, 1)
        };
        inodes.present(&mut attr, Instant::now());
    }
    let shard = inodes.shards[FILE as usize % SHARDS].lock();
    assert!(shard.inodes.len() <= MAX_PER_SHARD);
    assert_eq!(shard.inodes[&FILE].size, 4096);
}
