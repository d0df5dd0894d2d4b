//! Keys of the namespace: one byte of family, then big-endian ids.
//!
//! | key | value |
//! |---|---|
//! | `A` | next free number (inodes and sessions share one sequence) |
//! | `D` parent name | [`super::records::Dentry`]; a directory is one contiguous range |
//! | `E` parent name NUL time | [`super::records::TrashEntry`]: a removed name; times are inverted, so that the newest comes first |
//! | `F` time parent name NUL time | empty: the entry of the rest of the key expires at the first time |
//! | `G` time inode | empty: an inode without links whose chunks await deletion |
//! | `I` inode | [`super::records::InodeRecord`] |
//! | `K` counter | `i64`, changed blindly |
//! | `L` client | [`super::records::ClientRecord`] |
//! | `M` inode | [`super::records::DirTimes`], written blindly |
//! | `N` inode | `i64`: subdirectories of a directory, changed blindly |
//! | `Qo` | [`super::records::OwnersRecord`]: whether users and groups are counted |
//! | `Qq` kind id | [`super::records::QuotaRecord`]: the quota of a user, a group or a directory |
//! | `Qu` kind id resource | `i64`: what is used of one, changed blindly; of a directory by the number of its tree |
//! | `Qw` tree inode | [`super::records::WalkRecord`]: a directory that is still to be counted |
//! | `R` client request | [`super::records::Answer`]: what a request was answered |
//! | `S` inode session | [`super::records::SessionRecord`] |
//! | `T` inode | [`super::records::TrimIntent`] |
//! | `X` inode name | [`super::records::Xattr`]: an extended attribute that is no ACL |
//! | `V` inode | [`super::records::Refill`]: a directory that was restored and gets back what was removed from it |
//! | `W` inode | [`super::records::Doomed`], or empty: a directory without a name that is to be emptied |
//!
//! `C` and `U` belong to the cluster manager.

use std::ops::Range;

use emberfs_proto::ids::{ClientId, InodeId, SessionId};

/// Next free number.
pub(crate) const NEXT_ID: &[u8] = b"A";
/// How many inodes exist.
pub(crate) const INODES: &[u8] = b"Ki";
/// How many inodes await deletion.
pub(crate) const GARBAGE: &[u8] = b"Kg";
/// How many directories say something about trash.
pub(crate) const TRASH_POLICIES: &[u8] = b"Kt";

/// A range of keys, owned.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    begin: Vec<u8>,
    end: Vec<u8>,
}

impl Span {
    /// As the key-value layer takes it.
    pub(crate) fn range(&self) -> Range<&[u8]> {
        &self.begin..&self.end
    }

    /// The part after `key`.
    pub(crate) fn after(mut self, key: &[u8]) -> Self {
        self.begin = key.to_vec();
        self.begin.push(0);
        self
    }

    /// Every key that begins with `prefix`, whose last byte must not be 0xff throughout.
    fn prefix(prefix: Vec<u8>) -> Self {
        let mut end = prefix.clone();
        while end.last() == Some(&0xff) {
            end.pop();
        }
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        Self { begin: prefix, end }
    }
}

fn key(family: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|p| p.len()).sum::<usize>());
    key.push(family);
    for part in parts {
        key.extend_from_slice(part);
    }
    key
}

/// Attributes.
pub(crate) fn inode(id: InodeId) -> Vec<u8> {
    key(b'I', &[&id.0.to_be_bytes()])
}

/// All inodes after `after`.
pub(crate) fn inodes_after(after: InodeId) -> Span {
    Span::prefix(vec![b'I']).after(&inode(after))
}

/// A name in a directory.
pub(crate) fn dentry(parent: InodeId, name: &[u8]) -> Vec<u8> {
    key(b'D', &[&parent.0.to_be_bytes(), name])
}

/// All names of a directory.
pub(crate) fn dentries(parent: InodeId) -> Span {
    Span::prefix(dentry(parent, b""))
}

/// The name in a key of [`dentries`].
pub(crate) fn dentry_name(key: &[u8]) -> &[u8] {
    key.get(9..).unwrap_or_default()
}

/// Times of a directory.
pub(crate) fn dir_times(id: InodeId) -> Vec<u8> {
    key(b'M', &[&id.0.to_be_bytes()])
}

/// Subdirectories of a directory.
pub(crate) fn subdirs(id: InodeId) -> Vec<u8> {
    key(b'N', &[&id.0.to_be_bytes()])
}

/// A write session.
pub(crate) fn session(inode: InodeId, session: SessionId) -> Vec<u8> {
    key(b'S', &[&inode.0.to_be_bytes(), &session.0.to_be_bytes()])
}

/// All write sessions of an inode.
pub(crate) fn sessions_of(inode: InodeId) -> Span {
    Span::prefix(key(b'S', &[&inode.0.to_be_bytes()]))
}

/// All write sessions.
pub(crate) fn sessions() -> Span {
    Span::prefix(vec![b'S'])
}

/// Inode and session of a key of [`sessions`].
pub(crate) fn parse_session(key: &[u8]) -> Option<(InodeId, SessionId)> {
    let (inode, session) = parse_pair(key)?;
    Some((InodeId(inode), SessionId(session)))
}

/// An inode that awaits deletion since `since` (nanoseconds).
pub(crate) fn garbage(since: u64, inode: InodeId) -> Vec<u8> {
    key(b'G', &[&since.to_be_bytes(), &inode.0.to_be_bytes()])
}

/// All garbage since a time (nanoseconds), oldest first.
pub(crate) fn garbage_since(since: u64) -> Span {
    Span {
        begin: garbage(since, InodeId(0)),
        ..Span::prefix(vec![b'G'])
    }
}

/// Time and inode of a key of [`garbage_since`].
pub(crate) fn parse_garbage(key: &[u8]) -> Option<(u64, InodeId)> {
    parse_pair(key).map(|(since, inode)| (since, InodeId(inode)))
}

/// A truncation that is not complete on the chains yet.
pub(crate) fn trim(inode: InodeId) -> Vec<u8> {
    key(b'T', &[&inode.0.to_be_bytes()])
}

/// All incomplete truncations.
pub(crate) fn trims() -> Span {
    Span::prefix(vec![b'T'])
}

/// The inode of a key of [`trims`].
pub(crate) fn parse_trim(key: &[u8]) -> Option<InodeId> {
    Some(InodeId(u64::from_be_bytes(key.get(1..)?.try_into().ok()?)))
}

/// An extended attribute.
pub(crate) fn xattr(inode: InodeId, name: &[u8]) -> Vec<u8> {
    key(b'X', &[&inode.0.to_be_bytes(), name])
}

/// All extended attributes of an inode.
pub(crate) fn xattrs(inode: InodeId) -> Span {
    Span::prefix(xattr(inode, b""))
}

/// The name in a key of [`xattrs`].
pub(crate) fn xattr_name(key: &[u8]) -> &[u8] {
    key.get(9..).unwrap_or_default()
}

/// What a request was answered.
pub(crate) fn answer(client: ClientId, request: u64) -> Vec<u8> {
    key(b'R', &[&client.0.to_be_bytes(), &request.to_be_bytes()])
}

/// The answers to all requests of a client up to and including `last`.
pub(crate) fn answers_up_to(client: ClientId, last: u64) -> Span {
    let mut end = answer(client, last);
    end.push(0);
    Span {
        begin: answer(client, 0),
        end,
    }
}

/// A client.
pub(crate) fn client(id: ClientId) -> Vec<u8> {
    key(b'L', &[&id.0.to_be_bytes()])
}

/// All clients.
pub(crate) fn clients() -> Span {
    Span::prefix(vec![b'L'])
}

/// The client of a key of [`clients`].
pub(crate) fn parse_client(key: &[u8]) -> Option<ClientId> {
    ClientId::from_bytes(key.get(1..)?)
}

/// Whether users and groups are counted.
pub(crate) const OWNERS: &[u8] = b"Qo";

/// The quota of a user, a group or, by its inode, a directory.
pub(crate) fn quota(kind: u8, id: u64) -> Vec<u8> {
    key(b'Q', &[b"q", &[kind], &id.to_be_bytes()])
}

/// All quotas.
pub(crate) fn quotas() -> Span {
    Span::prefix(b"Qq".to_vec())
}

/// Kind and number of a key of [`quotas`].
pub(crate) fn parse_quota(key: &[u8]) -> Option<(u8, u64)> {
    let (kind, id) = key.get(2..)?.split_first()?;
    Some((*kind, u64::from_be_bytes(id.try_into().ok()?)))
}

/// What a user, a group or a tree uses of a resource.
pub(crate) fn usage(kind: u8, id: u64, resource: u8) -> Vec<u8> {
    key(b'Q', &[b"u", &[kind], &id.to_be_bytes(), &[resource]])
}

/// What all of a kind use.
pub(crate) fn usages(kind: u8) -> Span {
    Span::prefix(vec![b'Q', b'u', kind])
}

/// What one of a kind uses.
pub(crate) fn usages_of(kind: u8, id: u64) -> Span {
    Span::prefix(key(b'Q', &[b"u", &[kind], &id.to_be_bytes()]))
}

/// A directory that is still to be counted in a tree.
pub(crate) fn walk(tree: u64, dir: InodeId) -> Vec<u8> {
    key(b'Q', &[b"w", &tree.to_be_bytes(), &dir.0.to_be_bytes()])
}

/// All directories that are still to be counted.
pub(crate) fn walks() -> Span {
    Span::prefix(b"Qw".to_vec())
}

/// All directories that are still to be counted in a tree.
pub(crate) fn walks_of(tree: u64) -> Span {
    Span::prefix(key(b'Q', &[b"w", &tree.to_be_bytes()]))
}

/// Tree and directory of a key of [`walks`].
pub(crate) fn parse_walk(key: &[u8]) -> Option<(u64, InodeId)> {
    let (tree, dir) = parse_pair(key.get(1..)?)?;
    Some((tree, InodeId(dir)))
}

/// A directory that is to be emptied.
pub(crate) fn doomed(inode: InodeId) -> Vec<u8> {
    key(b'W', &[&inode.0.to_be_bytes()])
}

/// All directories that are to be emptied.
pub(crate) fn all_doomed() -> Span {
    Span::prefix(vec![b'W'])
}

/// The inode of a key of [`all_doomed`].
pub(crate) fn parse_doomed(key: &[u8]) -> Option<InodeId> {
    Some(InodeId(u64::from_be_bytes(key.get(1..)?.try_into().ok()?)))
}

/// A removed name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TrashSpot<'a> {
    pub(crate) parent: InodeId,
    pub(crate) name: &'a [u8],
    /// When it was removed, nanoseconds.
    pub(crate) removed: u64,
}

impl<'a> TrashSpot<'a> {
    /// Its entry.
    pub(crate) fn entry(&self) -> Vec<u8> {
        self.suffix(b"E")
    }

    /// Its place among those that expire at `expires` (nanoseconds).
    pub(crate) fn expiry(&self, expires: u64) -> Vec<u8> {
        self.suffix(&key(b'F', &[&expires.to_be_bytes()]))
    }

    fn suffix(&self, prefix: &[u8]) -> Vec<u8> {
        let parent = self.parent.0.to_be_bytes();
        // A name holds no NUL, so that names of a directory stay in their order, each with its own times.
        [
            prefix,
            &parent,
            self.name,
            &[0],
            &(!self.removed).to_be_bytes(),
        ]
        .concat()
    }

    /// Of the key of an entry.
    pub(crate) fn parse(key: &'a [u8]) -> Option<Self> {
        Self::parse_suffix(key.get(1..)?)
    }

    /// Of a key of [`trash_due`], with the time of expiry.
    pub(crate) fn parse_expiry(key: &'a [u8]) -> Option<(u64, Self)> {
        let (expires, rest) = key.get(1..)?.split_first_chunk()?;
        Some((u64::from_be_bytes(*expires), Self::parse_suffix(rest)?))
    }

    fn parse_suffix(suffix: &'a [u8]) -> Option<Self> {
        let (parent, rest) = suffix.split_first_chunk()?;
        let (name, removed) = rest.split_last_chunk()?;
        Some(Self {
            parent: InodeId(u64::from_be_bytes(*parent)),
            name: name.strip_suffix(&[0])?,
            removed: !u64::from_be_bytes(*removed),
        })
    }
}

/// All removed names.
pub(crate) fn trash() -> Span {
    Span::prefix(vec![b'E'])
}

/// All names that were removed from a directory.
pub(crate) fn trash_of(parent: InodeId) -> Span {
    Span::prefix(key(b'E', &[&parent.0.to_be_bytes()]))
}

/// All removals of one name, the newest first.
pub(crate) fn trash_named(parent: InodeId, name: &[u8]) -> Span {
    Span::prefix(key(b'E', &[&parent.0.to_be_bytes(), name, &[0]]))
}

/// What expires from `from` up to and including `until` (nanoseconds).
pub(crate) fn trash_due(from: u64, until: u64) -> Span {
    Span {
        begin: key(b'F', &[&from.to_be_bytes()]),
        ..Span::prefix(key(b'F', &[&until.to_be_bytes()]))
    }
}

/// A directory that gets back what was removed from it.
pub(crate) fn refill(inode: InodeId) -> Vec<u8> {
    key(b'V', &[&inode.0.to_be_bytes()])
}

/// All directories that do.
pub(crate) fn all_refills() -> Span {
    Span::prefix(vec![b'V'])
}

/// The inode of a key of [`all_refills`].
pub(crate) fn parse_refill(key: &[u8]) -> Option<InodeId> {
    parse_doomed(key)
}

fn parse_pair(key: &[u8]) -> Option<(u64, u64)> {
    let (first, second) = key.get(1..)?.split_at_checked(8)?;
    Some((
        u64::from_be_bytes(first.try_into().ok()?),
        u64::from_be_bytes(second.try_into().ok()?),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_directory_is_one_range_in_the_order_of_its_names(
            parent: u64, other: u64, mut names: Vec<Vec<u8>>,
        ) {
            let span = dentries(InodeId(parent));
            let keys: Vec<_> = names.iter().map(|n| dentry(InodeId(parent), n)).collect();
            for (key, name) in keys.iter().zip(&names) {
                prop_assert!(span.range().contains(&key.as_slice()));
                prop_assert_eq!(dentry_name(key), name.as_slice());
                let foreign = dentry(InodeId(other), name);
                prop_assert_eq!(span.range().contains(&foreign.as_slice()), parent == other);
            }
            let mut sorted = keys.clone();
            sorted.sort();
            names.sort();
            let names: Vec<_> = names.iter().map(|n| dentry(InodeId(parent), n)).collect();
            prop_assert_eq!(sorted, names);
        }

        #[test]
        fn attributes_of_an_inode_are_one_range(inode: u64, other: u64, name: Vec<u8>) {
            let span = xattrs(InodeId(inode));
            let key = xattr(InodeId(inode), &name);
            prop_assert!(span.range().contains(&key.as_slice()));
            prop_assert_eq!(xattr_name(&key), name.as_slice());
            let foreign = xattr(InodeId(other), &name);
            prop_assert_eq!(span.range().contains(&foreign.as_slice()), inode == other);
        }

        #[test]
        fn removals_of_a_name_are_one_range_newest_first(
            parent: u64, name in "[^\0/]{1,8}", longer in "[^\0/]{1,3}", a: u64, b: u64, expires: u64,
        ) {
            let parent = InodeId(parent);
            let spot = |name, removed| TrashSpot { parent, name, removed };
            let (first, second) = (spot(name.as_bytes(), a), spot(name.as_bytes(), b));
            let (entry, expiry) = (first.entry(), first.expiry(expires));
            prop_assert_eq!(TrashSpot::parse(&entry), Some(first));
            prop_assert_eq!(TrashSpot::parse_expiry(&expiry), Some((expires, first)));
            prop_assert_eq!(first.entry() < second.entry(), a > b);
            let named = trash_named(parent, name.as_bytes());
            prop_assert!(named.range().contains(&first.entry().as_slice()));
            let longer = name.clone() + &longer;
            let other = spot(longer.as_bytes(), a).entry();
            prop_assert!(!named.range().contains(&other.as_slice()));
            prop_assert!(trash_of(parent).range().contains(&other.as_slice()));
            let due = trash_due(0, expires);
            prop_assert!(due.range().contains(&first.expiry(expires).as_slice()));
            if let Some(later) = expires.checked_add(1) {
                prop_assert!(!due.range().contains(&first.expiry(later).as_slice()));
            }
        }

        #[test]
        fn keys_read_back(a: u64, b: u64, c: u128) {
            prop_assert_eq!(
                parse_session(&session(InodeId(a), SessionId(b))),
                Some((InodeId(a), SessionId(b)))
            );
            prop_assert_eq!(parse_garbage(&garbage(a, InodeId(b))), Some((a, InodeId(b))));
            prop_assert_eq!(parse_walk(&walk(a, InodeId(b))), Some((a, InodeId(b))));
            prop_assert_eq!(parse_quota(&quota(7, a)), Some((7, a)));
            prop_assert_eq!(parse_trim(&trim(InodeId(a))), Some(InodeId(a)));
            prop_assert_eq!(parse_client(&client(ClientId(c))), Some(ClientId(c)));
            let before = answers_up_to(ClientId(c), a);
            prop_assert_eq!(before.range().contains(&answer(ClientId(c), b).as_slice()), b <= a);
        }
    }
}
