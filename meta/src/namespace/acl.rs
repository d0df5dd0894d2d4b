//! Access control lists (POSIX 1003.1e draft 17, as Linux has them): what may be one, whom it admits, and
//! what new inodes inherit.
//!
//! **Form.** Programs and kernels exchange an ACL as the value of an extended attribute, and records keep
//! it in the same form: version 2 as `u32`, then entries of tag `u16`, permissions `u16` and id
//! `u32`, all little-endian. An [`Acl`] in memory is valid: there is no other way to make one than to decode it.
//!
//! **The mode.** Of an inode with an access ACL, the mode's group bits are the mask, which bounds what
//! named users and all groups get. What the mode bits tell (owner, mask, others) counts from there and
//! not from the record's ACL, so chmod need not know of ACLs. An ACL that tells nothing beyond a mode is stored as
//! that mode alone: the record's ACL, if there is one, has a mask.

use bytes::{BufMut, Bytes, BytesMut};
use emberfs_proto::ids::InodeId;
use emberfs_proto::{Error, ErrorCode, Result};

use super::access::Cred;
use super::records::InodeRecord;

/// Version of the exchanged form.
const VERSION: u32 = 2;
/// Bytes of the version.
const HEADER: usize = 4;
/// Bytes of an entry.
const ENTRY: usize = 8;
/// Most entries of an ACL. Two of them are part of one inode record, which is read whole by each request.
const MAX_ENTRIES: usize = 1024;
/// The id of entries that name nobody.
const NOBODY: u32 = u32::MAX;
/// What one entry may grant.
const RWX: u32 = 0o7;
/// The mode bits that an ACL tells as well.
const PERMISSIONS: u32 = 0o777;

/// What an entry is about, on the wire.
mod tag {
    pub(super) const OWNER: u16 = 0x01;
    pub(super) const USER: u16 = 0x02;
    pub(super) const GROUP: u16 = 0x04;
    pub(super) const NAMED_GROUP: u16 = 0x08;
    pub(super) const MASK: u16 = 0x10;
    pub(super) const OTHER: u16 = 0x20;
}

/// A valid ACL. Permissions are combinations of read (4), write (2) and execute (1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acl {
    owner: u32,
    /// Named users: id and permissions.
    users: Vec<(u32, u32)>,
    /// Of the owning group.
    group: u32,
    /// Named groups: id and permissions.
    groups: Vec<(u32, u32)>,
    /// There is one wherever somebody is named.
    mask: Option<u32>,
    other: u32,
}

impl Acl {
    /// Reads the exchanged form; nothing for one without entries, which means "no ACL". Fails with
    /// [`ErrorCode::Unsupported`] (another version), [`ErrorCode::ValueTooLarge`] or
    /// [`ErrorCode::InvalidArgument`].
    pub(crate) fn decode(value: &[u8]) -> Result<Option<Self>> {
        let header = value.split_first_chunk::<HEADER>();
        let (version, body) = header.ok_or_else(|| invalid("it has no version"))?;
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            let what = format!("an ACL of version {version}; only version {VERSION} is known");
            return Err(Error::new(ErrorCode::Unsupported, what));
        }
        let (entries, rest) = body.as_chunks::<ENTRY>();
        if !rest.is_empty() {
            return Err(invalid("its last entry is incomplete"));
        }
        if entries.len() > MAX_ENTRIES {
            let count = entries.len();
            let what = format!("an ACL of {count} entries exceeds {MAX_ENTRIES}; use groups");
            return Err(Error::new(ErrorCode::ValueTooLarge, what));
        }
        if entries.is_empty() {
            return Ok(None);
        }

        let (mut owner, mut group, mut mask, mut other) = (None, None, None, None);
        let (mut users, mut groups) = (Vec::new(), Vec::new());
        for entry in entries {
            let [t0, t1, p0, p1, i0, i1, i2, i3] = *entry;
            let perm = u32::from(u16::from_le_bytes([p0, p1]));
            let id = u32::from_le_bytes([i0, i1, i2, i3]);
            if perm & !RWX != 0 {
                return Err(invalid("an entry has permissions beyond rwx"));
            }
            // Each kind has its place; the entry of all others is the last one.
            let groups_may_come = group.is_some() && mask.is_none() && other.is_none();
            match u16::from_le_bytes([t0, t1]) {
                tag::OWNER if owner.is_none() => owner = Some(perm),
                tag::USER if owner.is_some() && group.is_none() && id != NOBODY => {
                    users.push((id, perm));
                }
                tag::GROUP if owner.is_some() && group.is_none() => group = Some(perm),
                tag::NAMED_GROUP if groups_may_come && id != NOBODY => groups.push((id, perm)),
                tag::MASK if groups_may_come => mask = Some(perm),
                tag::OTHER if group.is_some() && other.is_none() => other = Some(perm),
                tag => {
                    return Err(invalid(&format!(
                        "an entry with tag {tag:#x} and id {id} has no place there"
                    )));
                }
            }
        }
        let (Some(owner), Some(group), Some(other)) = (owner, group, other) else {
            return Err(invalid(
                "the entries of owner, group and others are required",
            ));
        };
        if mask.is_none() && !(users.is_empty() && groups.is_empty()) {
            return Err(invalid("it names somebody and has no mask"));
        }
        Ok(Some(Self {
            owner,
            users,
            group,
            groups,
            mask,
            other,
        }))
    }

    /// The exchanged form.
    pub(crate) fn encode(&self) -> Bytes {
        let count = 4 + self.users.len() + self.groups.len();
        let mut out = BytesMut::with_capacity(HEADER + count * ENTRY);
        out.put_u32_le(VERSION);
        let mut put = |tag: u16, perm: u32, id: u32| {
            out.put_u16_le(tag);
            out.put_u16_le(perm as u16);
            out.put_u32_le(id);
        };
        put(tag::OWNER, self.owner, NOBODY);
        for &(id, perm) in &self.users {
            put(tag::USER, perm, id);
        }
        put(tag::GROUP, self.group, NOBODY);
        for &(id, perm) in &self.groups {
            put(tag::NAMED_GROUP, perm, id);
        }
        if let Some(mask) = self.mask {
            put(tag::MASK, mask, NOBODY);
        }
        put(tag::OTHER, self.other, NOBODY);
        out.freeze()
    }

    /// The access ACL of an inode, if its mode does not tell everything.
    pub(crate) fn of(inode: &InodeRecord) -> Result<Option<Self>> {
        if inode.acl.is_empty() {
            return Ok(None);
        }
        let mut acl = stored(&inode.acl, inode.id())?;
        acl.owner = (inode.mode >> 6) & RWX;
        acl.mask = Some((inode.mode >> 3) & RWX);
        acl.other = inode.mode & RWX;
        Ok(Some(acl))
    }

    /// Makes this the access ACL of an inode.
    pub(crate) fn put(&self, inode: &mut InodeRecord) {
        inode.mode = (inode.mode & !PERMISSIONS) | self.mode();
        inode.acl = match self.mask {
            Some(_) => self.encode(),
            None => Bytes::new(),
        };
    }

    /// The permission bits that show it.
    fn mode(&self) -> u32 {
        (self.owner << 6) | (self.mask.unwrap_or(self.group) << 3) | self.other
    }

    /// Whether it grants all of `want` to somebody who is not the owner of the inode.
    pub(crate) fn admits(&self, cred: &Cred, owning_group: u32, want: u32) -> bool {
        let mask = self.mask.unwrap_or(RWX);
        if let Some((_, perm)) = self.users.iter().find(|(uid, _)| *uid == cred.uid) {
            return perm & mask & want == want;
        }
        // Of the groups that the caller is in, one that grants everything suffices; permissions of several do
        // not add up, and whoever is in any of them is not one of the others.
        let mut member = false;
        let groups = self.groups.iter().copied();
        for (gid, perm) in std::iter::once((owning_group, self.group)).chain(groups) {
            if cred.in_group(gid) {
                member = true;
                if perm & mask & want == want {
                    return true;
                }
            }
        }
        !member && self.other & want == want
    }

    /// Takes away what the mode of a new inode does not ask for.
    fn restrict(&mut self, mode: u32) {
        self.owner &= mode >> 6;
        *self.mask.as_mut().unwrap_or(&mut self.group) &= mode >> 3;
        self.other &= mode;
    }
}

/// Gives a new inode, whose mode is the one asked for, what it inherits from its directory: the default
/// ACL, or else the mode without `umask`. Not for symbolic links.
pub(crate) fn inherit(dir: &InodeRecord, node: &mut InodeRecord, umask: u32) -> Result<()> {
    if dir.default_acl.is_empty() {
        node.mode &= !(umask & PERMISSIONS);
        return Ok(());
    }
    let mut acl = stored(&dir.default_acl, dir.id())?;
    acl.restrict(node.mode);
    acl.put(node);
    if node.is_dir() {
        node.default_acl = dir.default_acl.clone();
    }
    Ok(())
}

/// An ACL of a record.
fn stored(bytes: &[u8], inode: InodeId) -> Result<Acl> {
    let damaged = |why: &str| {
        let what = format!(
            "an ACL of inode {inode} is unreadable ({why}): it was written by a newer EmberFS or is \
             damaged; upgrade the metadata server, or replace the ACL with setfacl --set"
        );
        Error::new(ErrorCode::Internal, what)
    };
    let acl = Acl::decode(bytes).map_err(|error| damaged(&error.message))?;
    acl.ok_or_else(|| damaged("empty"))
}

fn invalid(why: &str) -> Error {
    let what = format!("this is no valid ACL: {why}");
    Error::new(ErrorCode::InvalidArgument, what)
}

#[cfg(test)]
pub(super) mod tests;
