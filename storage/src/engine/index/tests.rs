use emberfs_proto::ids::{ChainVersion, ChunkVersion, WriteTag};

use super::super::record::{Pending, Stamp};
use super::*;

#[test]
fn what_is_in_memory_is_answered_at_once_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let health = Arc::new(Health::new(dir.path()));
        Index::open(&dir.path().join("index"), 1 << 20, health).unwrap()
    };
    let key_of = |inode| key(TargetId(1), ChunkKey::new(InodeId(inode), 0));
    let removal = Stamp {
        version: ChunkVersion(1),
        chain: ChainVersion(1),
        tag: WriteTag::default(),
    };
    let record = Record {
        page_size: 4096,
        chunk_size: 64 << 10,
        committed: None,
        pending: Some(Pending::Remove(removal)),
    };
    let found = |index: &Index, inode| {
        let found = index.get_at_once(&key_of(inode));
        found.map(|record| record.unwrap().is_some())
    };
    let index = open();
    let put = Op::Put(key_of(1), Box::new(record));
    index.apply([&put]).unwrap();
    assert_eq!(
        (found(&index, 1), found(&index, 2)),
        (Some(true), Some(false))
    );
    // In a table whose blocks nobody has read yet; its filter is there.
    index.db.flush_cf(index.family(CHUNKS)).unwrap();
    drop(index);
    let index = open();
    assert_eq!((found(&index, 1), found(&index, 2)), (None, Some(false)));
    assert!(index.get(&key_of(1)).unwrap().is_some());
    assert_eq!(found(&index, 1), Some(true));
}
