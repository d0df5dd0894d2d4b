use super::*;
use proptest::prelude::*;

fn key(byte: u8) -> Bytes {
    Bytes::copy_from_slice(&[byte])
}

fn reads(keys: &[u8], ranges: &[(u8, u8)]) -> ReadSet {
    ReadSet {
        keys: keys.iter().map(|k| key(*k)).collect(),
        ranges: ranges
            .iter()
            .filter(|(b, e)| b < e)
            .map(|(b, e)| (key(*b), key(*e)))
            .collect(),
    }
}

fn writes(keys: &[u8], ranges: &[(u8, u8)]) -> WriteSet {
    WriteSet {
        keys: keys.iter().map(|k| key(*k)).collect(),
        ranges: ranges
            .iter()
            .filter(|(b, e)| b < e)
            .map(|(b, e)| (key(*b), key(*e)))
            .collect(),
    }
}

type Sets = (Vec<u8>, Vec<(u8, u8)>);

fn sets() -> impl Strategy<Value = Sets> {
    (
        proptest::collection::vec(0..16_u8, 0..3),
        proptest::collection::vec((0..16_u8, 0..16_u8), 0..2),
    )
}

fn touches(sets: &Sets, byte: u8) -> bool {
    sets.0.contains(&byte) || sets.1.iter().any(|(b, e)| (*b..*e).contains(&byte))
}

proptest! {
    /// Against the definition: some later commit wrote some key that was read.
    #[test]
    fn conflicts_are_exactly_later_writes_into_what_was_read(
        commits in proptest::collection::vec(sets(), 0..8),
        read in sets(),
        read_version in 0..9_u64,
    ) {
        let mut window = Window::new(0);
        for (version, (keys, ranges)) in (1..).zip(&commits) {
            window.record(version, Duration::ZERO, writes(keys, ranges));
        }
        let expected = commits
            .iter()
            .skip(read_version as usize)
            .any(|commit| (0..16).any(|byte| touches(commit, byte) && touches(&read, byte)));
        let found = window.check(read_version, &reads(&read.0, &read.1));
        prop_assert_eq!(found, if expected { Err(KvError::Conflict) } else { Ok(()) });
    }
}

#[test]
fn what_was_forgotten_makes_older_readers_too_old_and_frees_everything() {
    let mut window = Window::with_limit(0, 4 * KEY_OVERHEAD_BYTES);
    for version in 1..100 {
        window.record(
            version,
            Duration::ZERO,
            writes(&[version as u8], &[(200, 210)]),
        );
    }
    assert!(window.bytes <= 4 * KEY_OVERHEAD_BYTES && window.commits.len() < 3);
    assert_eq!(window.check(1, &reads(&[250], &[])), Err(KvError::TooOld));
    assert_eq!(
        window.check(1, &reads(&[], &[])),
        Ok(()),
        "a blind write is never too old"
    );
    assert_eq!(window.check(99, &reads(&[99], &[])), Ok(()));

    window.record(100, WINDOW_AGE * 2, writes(&[], &[]));
    assert_eq!(window.commits.len(), 1, "age forgets too");
    assert_eq!((window.newest.len(), window.ranges.len()), (0, 0));
    assert_eq!(window.bytes, KEY_OVERHEAD_BYTES);
}
