//! Extended attributes and ACLs of an inode: set, get, list, remove.

use bytes::Bytes;
use emberfs_proto::ids::InodeId;
use emberfs_proto::pb::{self, FileKind};
use emberfs_proto::xattr::{ACL_ACCESS, ACL_DEFAULT, CAPABILITY, MAX_VALUE_BYTES};
use emberfs_proto::{Error, ErrorCode, Result};

use crate::namespace::access::{self, Cred, SETGID};
use crate::namespace::acl::Acl;
use crate::namespace::keys;
use crate::namespace::records::{InodeRecord, Xattr};
use crate::namespace::tx::Tx;
use crate::namespace::xattr::{self, Class};

pub(crate) fn set(
    tx: &mut Tx<'_>,
    cred: &Cred,
    req: &pb::SetXattrRequest,
) -> Result<pb::AttrReply> {
    let class = xattr::classify(&req.name)?;
    if req.value.len() > MAX_VALUE_BYTES {
        let what = format!(
            "a value of {} bytes for `{}` exceeds {MAX_VALUE_BYTES}",
            req.value.len(),
            req.name.escape_ascii()
        );
        return Err(Error::new(ErrorCode::ValueTooLarge, what));
    }
    let mut inode = tx.live(InodeId(req.inode))?;
    match class {
        Class::Access | Class::Default => {
            // No value and no entries both mean: no ACL.
            let acl = match &req.value[..] {
                b"" => None,
                value => Acl::decode(value)?,
            };
            set_acl(cred, &mut inode, class, acl.as_ref())?;
        }
        _ => {
            xattr::check_change(cred, &inode, class, &req.name)?;
            put(tx, &mut inode, req)?;
        }
    }
    changed(tx, inode)
}

pub(crate) fn remove(
    tx: &mut Tx<'_>,
    cred: &Cred,
    req: &pb::XattrRequest,
) -> Result<pb::AttrReply> {
    let class = xattr::classify(&req.name)?;
    let mut inode = tx.live(InodeId(req.inode))?;
    match class {
        Class::Access | Class::Default => set_acl(cred, &mut inode, class, None)?,
        _ => {
            // Whoever may write a file takes its capabilities away by writing; kernels ask for it this way.
            let disarms = &req.name[..] == CAPABILITY
                && (cred.owns(&inode) || access::allows(cred, &inode, access::WRITE));
            if !disarms {
                xattr::check_change(cred, &inode, class, &req.name)?;
            }
            if !take(tx, &mut inode, &req.name)? {
                return Err(xattr::none(inode.id(), &req.name));
            }
        }
    }
    changed(tx, inode)
}

pub(crate) fn get(
    tx: &mut Tx<'_>,
    cred: &Cred,
    req: &pb::XattrRequest,
) -> Result<pb::GetXattrReply> {
    let class = xattr::classify(&req.name)?;
    let inode = tx.live(InodeId(req.inode))?;
    let value = match class {
        Class::Access | Class::Default => get_acl(&inode, class)?,
        _ => {
            xattr::check_read(cred, &inode, class, &req.name)?;
            find(tx, &inode, &req.name)?.map(|found| found.value)
        }
    };
    let value = value.ok_or_else(|| xattr::none(inode.id(), &req.name))?;
    Ok(pb::GetXattrReply { value })
}

/// The names that the caller may know of, in byte order.
pub(crate) fn list(tx: &mut Tx<'_>, cred: &Cred, inode: InodeId) -> Result<pb::ListXattrReply> {
    let inode = tx.live(inode)?;
    let mut names = Vec::new();
    if inode.xattr_names > 0 {
        let found = tx.scan(&keys::xattrs(inode.id()), xattr::MAX_COUNT)?;
        let all = found.iter().map(|(key, _)| keys::xattr_name(key));
        let listed = all.filter(|name| xattr::is_listed(cred, &inode, name));
        // Copies: a slice would keep the whole page of values in memory.
        names.extend(listed.map(Bytes::copy_from_slice));
    }
    for (acl, name) in [(&inode.acl, ACL_ACCESS), (&inode.default_acl, ACL_DEFAULT)] {
        if !acl.is_empty() {
            names.push(Bytes::from_static(name));
        }
    }
    names.sort();
    Ok(pb::ListXattrReply { names })
}

/// A file's capabilities go when its contents or its owner change. The caller stores the record.
pub(super) fn drop_capability(tx: &mut Tx<'_>, inode: &mut InodeRecord) -> Result<()> {
    take(tx, inode, CAPABILITY).map(|_| ())
}

fn changed(tx: &mut Tx<'_>, mut inode: InodeRecord) -> Result<pb::AttrReply> {
    inode.ctime = tx.now;
    tx.put_inode(&inode);
    let attr = Some(tx.attr(&inode)?);
    Ok(pb::AttrReply {
        attr,
        ..Default::default()
    })
}

fn find(tx: &mut Tx<'_>, inode: &InodeRecord, name: &[u8]) -> Result<Option<Xattr>> {
    if inode.xattr_names == 0 {
        return Ok(None);
    }
    tx.get(&keys::xattr(inode.id(), name))
}

fn put(tx: &mut Tx<'_>, inode: &mut InodeRecord, req: &pb::SetXattrRequest) -> Result<()> {
    let old = find(tx, inode, &req.name)?;
    if old.is_some() && req.create {
        let name = req.name.escape_ascii();
        let what = format!("inode {} has an attribute `{name}` already", inode.id());
        return Err(Error::new(ErrorCode::Exists, what));
    }
    if old.is_none() && req.replace {
        return Err(xattr::none(inode.id(), &req.name));
    }
    forget(inode, &req.name, old.as_ref());
    let names = inode.xattr_names as usize + req.name.len() + 1;
    let values = inode.xattr_values as usize + req.value.len();
    if names > xattr::MAX_NAMES || values > xattr::MAX_VALUES {
        let what = format!(
            "inode {} would have {names} bytes of attribute names and {values} of values; at most \
             {} and {}",
            inode.id(),
            xattr::MAX_NAMES,
            xattr::MAX_VALUES
        );
        return Err(Error::new(ErrorCode::NoSpace, what));
    }
    inode.xattr_names = names as u32;
    inode.xattr_values = values as u32;
    let value = req.value.clone();
    tx.put(&keys::xattr(inode.id(), &req.name), &Xattr { value });
    Ok(())
}

/// Removes an attribute; false if there is none.
fn take(tx: &mut Tx<'_>, inode: &mut InodeRecord, name: &[u8]) -> Result<bool> {
    let found = find(tx, inode, name)?;
    if found.is_some() {
        tx.delete(&keys::xattr(inode.id(), name));
        forget(inode, name, found.as_ref());
    }
    Ok(found.is_some())
}

/// An attribute, if there is one, counts no longer.
fn forget(inode: &mut InodeRecord, name: &[u8], found: Option<&Xattr>) {
    if let Some(found) = found {
        inode.xattr_names = inode.xattr_names.saturating_sub(name.len() as u32 + 1);
        let bytes = found.value.len() as u32;
        inode.xattr_values = inode.xattr_values.saturating_sub(bytes);
    }
}

fn get_acl(inode: &InodeRecord, class: Class) -> Result<Option<Bytes>> {
    check_has_acls(inode)?;
    if class == Class::Access {
        return Ok(Acl::of(inode)?.map(|acl| acl.encode()));
    }
    Ok(Some(inode.default_acl.clone()).filter(|acl| !acl.is_empty()))
}

/// Sets one of the ACLs, or removes it. The mode stays when an access ACL is removed, as on Linux.
fn set_acl(cred: &Cred, inode: &mut InodeRecord, class: Class, acl: Option<&Acl>) -> Result<()> {
    check_has_acls(inode)?;
    if class == Class::Default && !inode.is_dir() {
        if acl.is_none() {
            return Ok(());
        }
        let what = format!(
            "inode {} is no directory; nothing could inherit its default ACL",
            inode.id()
        );
        return Err(Error::new(ErrorCode::PermissionDenied, what));
    }
    access::check_owner(cred, inode)?;
    match (class, acl) {
        (Class::Default, acl) => inode.default_acl = acl.map_or_else(Bytes::new, Acl::encode),
        (_, None) => inode.acl = Bytes::new(),
        (_, Some(acl)) => {
            acl.put(inode);
            if !cred.is_root() && !cred.in_group(inode.gid) {
                inode.mode &= !SETGID;
            }
        }
    }
    Ok(())
}

fn check_has_acls(inode: &InodeRecord) -> Result<()> {
    if inode.kind() == FileKind::Symlink {
        let what = format!("inode {} is a symbolic link, which has no ACL", inode.id());
        return Err(Error::new(ErrorCode::Unsupported, what));
    }
    Ok(())
}
