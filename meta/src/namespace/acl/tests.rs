use super::*;
use crate::namespace::access;
use emberfs_proto::pb::FileKind;
use proptest::prelude::*;

/// The exchanged form of entries (tag, permissions, id), whether or not they are valid.
pub(in crate::namespace) fn raw(entries: &[(u16, u16, u32)]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u32_le(VERSION);
    for &(tag, perm, id) in entries {
        out.put_u16_le(tag);
        out.put_u16_le(perm);
        out.put_u32_le(id);
    }
    out.freeze()
}

/// An ACL as getfacl prints it, on one line: `u::rw- u:7:rwx g::r-- g:8:r-x m::rwx o::---`.
pub(in crate::namespace) fn acl(text: &str) -> Bytes {
    let entries = text.split_whitespace().map(|entry| {
        let mut parts = entry.split(':');
        let (kind, id) = (parts.next().unwrap(), parts.next().unwrap());
        let perm = parts.next().unwrap().bytes();
        let perm = perm.fold(0, |perm, letter| (perm << 1) | u16::from(letter != b'-'));
        let tag = match (kind, id) {
            ("u", "") => tag::OWNER,
            ("u", _) => tag::USER,
            ("g", "") => tag::GROUP,
            ("g", _) => tag::NAMED_GROUP,
            ("m", _) => tag::MASK,
            _ => tag::OTHER,
        };
        (tag, perm, id.parse().unwrap_or(NOBODY))
    });
    raw(&entries.collect::<Vec<_>>())
}

fn parse(text: &str) -> Acl {
    Acl::decode(&acl(text)).unwrap().unwrap()
}

fn code(value: &[u8]) -> ErrorCode {
    Acl::decode(value).unwrap_err().code
}

fn inode(kind: FileKind, mode: u32) -> InodeRecord {
    InodeRecord {
        id: 5,
        kind: kind as i32,
        mode,
        uid: 1,
        gid: 2,
        ..InodeRecord::default()
    }
}

#[test]
fn the_form_is_that_of_linux() {
    // What setfacl -m u:1000:rw writes for a file of mode 0640.
    let golden = [
        2, 0, 0, 0, // version
        1, 0, 6, 0, 255, 255, 255, 255, // owner rw-
        2, 0, 6, 0, 232, 3, 0, 0, // user 1000 rw-
        4, 0, 4, 0, 255, 255, 255, 255, // group r--
        16, 0, 6, 0, 255, 255, 255, 255, // mask rw-
        32, 0, 0, 0, 255, 255, 255, 255, // others ---
    ];
    let expected = Acl {
        owner: 6,
        users: vec![(1000, 6)],
        group: 4,
        groups: vec![],
        mask: Some(6),
        other: 0,
    };
    assert_eq!(Acl::decode(&golden), Ok(Some(expected.clone())));
    assert_eq!(expected.encode(), golden[..]);
    assert_eq!(expected.mode(), 0o660);
    assert_eq!(acl("u::rw- u:1000:rw- g::r-- m::rw- o::---"), golden[..]);
}

#[test]
fn what_is_no_acl_is_refused() {
    for short in [&[][..], &[2], &[2, 0, 0]] {
        assert_eq!(code(short), ErrorCode::InvalidArgument, "{short:?}");
    }
    assert_eq!(code(&[1, 0, 0, 0]), ErrorCode::Unsupported);
    assert_eq!(Acl::decode(&[2, 0, 0, 0]), Ok(None));
    assert_eq!(
        code(&[2, 0, 0, 0, 1, 0, 6, 0]),
        ErrorCode::InvalidArgument,
        "half an entry"
    );
    for bad in [
        "u::rwx g::r-x",
        "u::rwx o::r-x",
        "g::rwx o::r-x",
        "g::r-x u::rwx o::r-x",
        "u::rwx u::rwx g::r-x o::r-x",
        "u::rwx g::r-x g::r-x o::r-x",
        "u::rwx g::r-x o::r-x o::r-x",
        "u::rwx g::r-x m::rwx m::rwx o::r-x",
        "u::rwx g::r-x o::r-x m::rwx",
        "u::rwx m::rwx g::r-x o::r-x",
        "u::rwx u:7:rwx g::r-x o::r-x",
        "u::rwx g::r-x g:7:rwx o::r-x",
        "u::rwx g::r-x u:7:rwx m::rwx o::r-x",
        "u::rwx g:7:r-x g::r-x m::rwx o::r-x",
        "u::rwx g::r-x m::rwx g:7:r-x o::r-x",
    ] {
        assert_eq!(code(&acl(bad)), ErrorCode::InvalidArgument, "{bad}");
    }
    let with = |tag, perm, id| {
        raw(&[
            (1, 7, 0),
            (tag, perm, id),
            (4, 7, 0),
            (16, 7, 0),
            (32, 7, 0),
        ])
    };
    assert!(Acl::decode(&with(2, 7, 5)).is_ok());
    for (tag, perm, id) in [(2, 8, 5), (2, 7, NOBODY), (3, 7, 5), (0, 7, 5), (64, 7, 5)] {
        let value = with(tag, perm, id);
        assert_eq!(
            code(&value),
            ErrorCode::InvalidArgument,
            "{tag} {perm} {id}"
        );
    }
    // Ids of the four that name nobody are not looked at, and come out as Linux writes them.
    let plain = raw(&[(1, 7, 0), (4, 5, 1), (32, 0, 2)]);
    let read = Acl::decode(&plain).unwrap().unwrap();
    assert_eq!(read.encode(), acl("u::rwx g::r-x o::---"));
}

#[test]
fn an_acl_has_a_bounded_number_of_entries() {
    let named = |count: u32| {
        let users = (0..count).map(|id| (tag::USER, 4, id));
        let rest = [(tag::GROUP, 4, 0), (tag::MASK, 4, 0), (tag::OTHER, 4, 0)];
        let all: Vec<_> = std::iter::once((tag::OWNER, 4, 0))
            .chain(users)
            .chain(rest)
            .collect();
        raw(&all)
    };
    let most = MAX_ENTRIES as u32 - 4;
    let acl = Acl::decode(&named(most)).unwrap().unwrap();
    assert_eq!(acl.users.len() as u32, most);
    assert_eq!(code(&named(most + 1)), ErrorCode::ValueTooLarge);
    // An access and a default ACL fit into one record.
    assert!(2 * acl.encode().len() < crate::kv::MAX_VALUE_BYTES / 2);
}

#[test]
fn the_first_class_that_matches_counts() {
    let acl = parse("u::rwx u:7:rw- u:8:--- g::r-- g:50:-w- g:60:rwx m::rw- o::--x");
    // Who, group, further groups, what is granted.
    let table: [(u32, u32, &[u32], &[u32]); 9] = [
        (7, 1, &[], &[4, 2, 6]),
        (7, 60, &[], &[4, 2, 6]),
        (8, 60, &[2], &[]),
        (9, 2, &[], &[4]),
        (9, 50, &[], &[2]),
        (9, 50, &[2], &[4, 2]),
        (9, 60, &[], &[4, 2, 6]),
        (9, 2, &[50, 60], &[4, 2, 6]),
        (9, 1, &[3], &[1]),
    ];
    for (uid, gid, groups, granted) in table {
        let groups = groups.to_vec();
        let cred = Cred { uid, gid, groups };
        for want in 1..=7 {
            assert_eq!(
                acl.admits(&cred, 2, want),
                granted.contains(&want),
                "{cred:?} wants {want}"
            );
        }
    }
}

#[test]
fn the_mode_speaks_for_owner_mask_and_others() {
    let mut file = inode(FileKind::File, 0o4640);
    assert_eq!(Acl::of(&file), Ok(None));
    parse("u::rw- u:7:rwx g::r-x m::rwx o::r--").put(&mut file);
    assert_eq!(
        file.mode, 0o4674,
        "set-id bits stay, group bits show the mask"
    );
    file.mode = 0o740;
    let seen = Acl::of(&file).unwrap().unwrap();
    assert_eq!(seen, parse("u::rwx u:7:rwx g::r-x m::r-- o::---"));
    // One that a mode tells is no ACL; one with a mask is, although it names nobody.
    parse("u::rw- g::r-- o::---").put(&mut file);
    assert_eq!((file.mode, file.acl.len()), (0o640, 0));
    parse("u::rw- g::rwx m::r-- o::---").put(&mut file);
    assert_eq!(file.mode, 0o640);
    let seen = Acl::of(&file).unwrap().unwrap();
    assert_eq!(seen, parse("u::rw- g::rwx m::r-- o::---"));
}

#[test]
fn children_inherit_what_their_mode_asks_for() {
    let named = "u::rwx u:7:rwx g::r-x g:8:rwx m::rwx o::r-x";
    // Default ACL, mode asked for, mode that comes out, access ACL that comes out.
    let table = [
        (
            named,
            0o666,
            0o664,
            "u::rw- u:7:rwx g::r-x g:8:rwx m::rw- o::r--",
        ),
        (
            named,
            0o600,
            0o600,
            "u::rw- u:7:rwx g::r-x g:8:rwx m::--- o::---",
        ),
        (
            named,
            0o6777,
            0o6775,
            "u::rwx u:7:rwx g::r-x g:8:rwx m::rwx o::r-x",
        ),
        (
            "u::r-x g::rwx m::-wx o::--x",
            0o777,
            0o531,
            "u::r-x g::rwx m::-wx o::--x",
        ),
        ("u::rwx g::r-x o::---", 0o666, 0o640, ""),
        ("u::rwx g::rwx o::rwx", 0o1755, 0o1755, ""),
    ];
    for (default, mode, expected, access) in table {
        let mut dir = inode(FileKind::Directory, 0o755);
        dir.default_acl = acl(default);
        for kind in [FileKind::File, FileKind::Fifo, FileKind::Directory] {
            let mut node = inode(kind, mode);
            // The umask is the default ACL's to replace.
            inherit(&dir, &mut node, 0o077).unwrap();
            assert_eq!(node.mode, expected, "{default} {mode:o}");
            let seen = Acl::of(&node).unwrap().map(|acl| acl.encode());
            let access = (!access.is_empty()).then(|| acl(access));
            assert_eq!(seen, access, "{default} {mode:o}");
            let handed_down = if node.is_dir() {
                acl(default)
            } else {
                Bytes::new()
            };
            assert_eq!(node.default_acl, handed_down);
        }
    }
    let mut node = inode(FileKind::File, 0o6777);
    inherit(&inode(FileKind::Directory, 0o755), &mut node, 0o7027).unwrap();
    assert_eq!(node.mode, 0o6750, "a umask takes permissions only");
}

#[test]
fn what_a_record_holds_and_nobody_can_read_is_an_error() {
    let mut file = inode(FileKind::File, 0o644);
    file.acl = Bytes::from_static(b"damaged");
    assert_eq!(Acl::of(&file).unwrap_err().code, ErrorCode::Internal);
    // It admits nobody but those whom no ACL could shut out.
    let may_read = |uid| {
        let cred = Cred {
            uid,
            ..Cred::default()
        };
        access::allows(&cred, &file, access::READ)
    };
    assert_eq!([0, 1, 7].map(may_read), [true, true, false]);
    let mut dir = inode(FileKind::Directory, 0o755);
    dir.default_acl = Bytes::from_static(&[2, 0, 0, 0]);
    assert_eq!(
        inherit(&dir, &mut file, 0).unwrap_err().code,
        ErrorCode::Internal
    );
}

/// The rules, told in another way: the kinds in this order, once or as often as one likes, and a mask
/// where somebody is named.
fn is_valid(tags: &str) -> bool {
    let Some(rest) = tags.strip_prefix('O') else {
        return false;
    };
    let users = rest.len() - rest.trim_start_matches('U').len();
    let Some(rest) = rest[users..].strip_prefix('G') else {
        return false;
    };
    let groups = rest.len() - rest.trim_start_matches('N').len();
    match &rest[groups..] {
        "MT" => true,
        "T" => users + groups == 0,
        _ => false,
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
        if let Ok(Some(acl)) = Acl::decode(&bytes) {
            prop_assert_eq!(Acl::decode(&acl.encode()), Ok(Some(acl)));
        }
    }

    #[test]
    fn the_order_of_entries_decides(
        tags in proptest::collection::vec(proptest::sample::select(&b"OUGNMT"[..]), 1..8),
    ) {
        let text = String::from_utf8(tags.clone()).unwrap();
        let entries = tags.iter().map(|kind| {
            let place = b"OUGNMT".iter().position(|k| k == kind).unwrap();
            (1u16 << place, 5, 9)
        });
        let value = raw(&entries.collect::<Vec<_>>());
        prop_assert_eq!(Acl::decode(&value).is_ok(), is_valid(&text), "{}", text);
    }

    #[test]
    fn valid_acls_read_back_and_bound_everybody_by_mode_bits(
        owner in 0u32..8, group in 0u32..8, mask in 0u32..8, other in 0u32..8,
        users in proptest::collection::vec((0u32..100, 0u32..8), 0..4),
        groups in proptest::collection::vec((0u32..100, 0u32..8), 0..4),
        uid in 0u32..100, gid in 0u32..100, want in 1u32..8,
    ) {
        let acl = Acl { owner, users, group, groups, mask: Some(mask), other };
        prop_assert_eq!(Acl::decode(&acl.encode()), Ok(Some(acl.clone())));
        let mut file = inode(FileKind::File, 0o7000);
        acl.put(&mut file);
        prop_assert_eq!(Acl::of(&file), Ok(Some(acl.clone())));
        let cred = Cred { uid, gid, groups: vec![] };
        if acl.admits(&cred, 2, want) {
            prop_assert!(mask & want == want || other & want == want);
        }
    }
}
