//! Extended attributes: which names there are, who may see and change them, how much there may be.
//!
//! Attributes are records beside the inode's, which holds how many bytes they are: an inode without any costs
//! no look. ACLs have names among them and are kept in the inode's record (see [`super::acl`]).

use emberfs_proto::ids::InodeId;
use emberfs_proto::{Error, ErrorCode, Result, pb, xattr};

use super::access::{self, Cred, STICKY};
use super::core::{Operation, Who};
use super::records::InodeRecord;
use super::tx::Tx;
use super::{Namespace, ops};

/// Bytes of the names of one inode, each with a NUL: together with those of both ACLs they fit into one list.
pub(crate) const MAX_NAMES: usize =
    xattr::MAX_LIST_BYTES - (xattr::ACL_ACCESS.len() + xattr::ACL_DEFAULT.len() + 2);
/// Bytes of the values of one inode.
pub(crate) const MAX_VALUES: usize = 1 << 20;
/// More attributes than one inode can have: the shortest name is `user.x` and a NUL.
pub(crate) const MAX_COUNT: usize = MAX_NAMES / 7 + 1;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// `user.`: for whoever may read or write the contents.
    User,
    /// `trusted.`: for root.
    Trusted,
    /// `security.`: for everybody to see and root to change.
    Security,
    /// The access ACL.
    Access,
    /// The default ACL.
    Default,
}

/// What a name stands for: [`ErrorCode::InvalidArgument`] for what can be no name,
/// [`ErrorCode::Unsupported`] for a prefix that means nothing here.
pub(crate) fn classify(name: &[u8]) -> Result<Class> {
    if name.len() > xattr::MAX_NAME_BYTES {
        let what = format!(
            "an attribute's name of {} bytes exceeds {}",
            name.len(),
            xattr::MAX_NAME_BYTES
        );
        return Err(Error::new(ErrorCode::InvalidArgument, what));
    }
    if name.is_empty() || name.contains(&0) {
        let what = format!("`{}` cannot name an attribute", name.escape_ascii());
        return Err(Error::new(ErrorCode::InvalidArgument, what));
    }
    let prefixes: [(&[u8], Class); 3] = [
        (b"user.", Class::User),
        (b"trusted.", Class::Trusted),
        (b"security.", Class::Security),
    ];
    for (prefix, class) in prefixes {
        match name.strip_prefix(prefix) {
            Some(b"") => {
                let what = format!("`{}` is a prefix without a name", name.escape_ascii());
                return Err(Error::new(ErrorCode::InvalidArgument, what));
            }
            Some(_) => return Ok(class),
            None => {}
        }
    }
    match name {
        xattr::ACL_ACCESS => Ok(Class::Access),
        xattr::ACL_DEFAULT => Ok(Class::Default),
        _ => {
            let what = format!(
                "EmberFS keeps no attribute `{}`; names begin with user., trusted. or security.",
                name.escape_ascii()
            );
            Err(Error::new(ErrorCode::Unsupported, what))
        }
    }
}

/// The attribute does not exist, or not for this caller.
pub(crate) fn none(inode: InodeId, name: &[u8]) -> Error {
    let what = format!("inode {inode} has no attribute `{}`", name.escape_ascii());
    Error::new(ErrorCode::NoAttribute, what)
}

/// Whether the caller may know the value: [`ErrorCode::NoAttribute`] where there can be none for him,
/// [`ErrorCode::PermissionDenied`].
pub(crate) fn check_read(
    cred: &Cred,
    inode: &InodeRecord,
    class: Class,
    name: &[u8],
) -> Result<()> {
    match class {
        Class::User if !holds_user(inode) => Err(none(inode.id(), name)),
        Class::User => access::check(cred, inode, access::READ),
        Class::Trusted if !cred.is_root() => Err(none(inode.id(), name)),
        Class::Trusted | Class::Security | Class::Access | Class::Default => Ok(()),
    }
}

/// Whether the caller sees the name in a list: names may be seen by who may not read what they name.
pub(crate) fn is_listed(cred: &Cred, inode: &InodeRecord, name: &[u8]) -> bool {
    match classify(name) {
        Ok(Class::User) => holds_user(inode),
        Ok(Class::Trusted) => cred.is_root(),
        Ok(Class::Security | Class::Access | Class::Default) => true,
        Err(_) => false,
    }
}

/// Whether the caller may set or remove an attribute that is no ACL: [`ErrorCode::NotPermitted`],
/// [`ErrorCode::PermissionDenied`].
pub(crate) fn check_change(
    cred: &Cred,
    inode: &InodeRecord,
    class: Class,
    name: &[u8],
) -> Result<()> {
    let name = name.escape_ascii();
    let id = inode.id();
    let refused = match class {
        Class::User if !holds_user(inode) => {
            format!("inode {id} is neither file nor directory; it holds no attribute `{name}`")
        }
        Class::User if inode.is_dir() && inode.mode & STICKY != 0 && !cred.owns(inode) => {
            format!("directory {id} is sticky: only its owner or root may change `{name}` of it")
        }
        Class::User => return access::check(cred, inode, access::WRITE),
        Class::Trusted | Class::Security if !cred.is_root() => {
            let uid = cred.uid;
            format!("only root may change `{name}` of inode {id}, not uid {uid}")
        }
        Class::Trusted | Class::Security | Class::Access | Class::Default => return Ok(()),
    };
    Err(Error::new(ErrorCode::NotPermitted, refused))
}

/// On anything else the permission bits do not say who may read and write contents.
fn holds_user(inode: &InodeRecord) -> bool {
    inode.is_file() || inode.is_dir()
}

impl Namespace {
    pub(crate) async fn set_xattr(&self, req: pb::SetXattrRequest) -> Result<pb::AttrReply> {
        let caller = req.caller.clone();
        let body = move |tx: &mut Tx<'_>, who: &Who| ops::xattr::set(tx, &who.cred, &req);
        self.change(caller.as_ref(), Operation::SetXattr, body)
            .await
    }

    pub(crate) async fn remove_xattr(&self, req: pb::XattrRequest) -> Result<pb::AttrReply> {
        let caller = req.caller.clone();
        let body = move |tx: &mut Tx<'_>, who: &Who| ops::xattr::remove(tx, &who.cred, &req);
        self.change(caller.as_ref(), Operation::RemoveXattr, body)
            .await
    }

    pub(crate) async fn get_xattr(&self, req: pb::XattrRequest) -> Result<pb::GetXattrReply> {
        let caller = req.caller.clone();
        self.glance(caller.as_ref(), move |tx, who| {
            ops::xattr::get(tx, &who.cred, &req)
        })
        .await
    }

    pub(crate) async fn list_xattr(&self, req: pb::GetAttrRequest) -> Result<pb::ListXattrReply> {
        let inode = InodeId(req.inode);
        self.glance(req.caller.as_ref(), move |tx, who| {
            ops::xattr::list(tx, &who.cred, inode)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_known_prefix_and_something_after_it() {
        let code = |name: &[u8]| classify(name).map_err(|e| e.code);
        let longest = [b"user.".as_slice(), &[b'x'; 250]].concat();
        let too_long = [b"user.".as_slice(), &[b'x'; 251]].concat();
        let good: [(&[u8], Class); 7] = [
            (b"user.a", Class::User),
            (b"user..", Class::User),
            (&longest, Class::User),
            (b"trusted.overlay.opaque", Class::Trusted),
            (b"security.capability", Class::Security),
            (b"system.posix_acl_access", Class::Access),
            (b"system.posix_acl_default", Class::Default),
        ];
        for (name, class) in good {
            assert_eq!(code(name), Ok(class), "{}", name.escape_ascii());
        }
        for name in [
            &b""[..],
            b"user.",
            b"trusted.",
            b"security.",
            b"user.a\0b",
            &too_long,
        ] {
            let name_seen = name.escape_ascii();
            assert_eq!(code(name), Err(ErrorCode::InvalidArgument), "{name_seen}");
        }
        for name in [
            &b"user"[..],
            b"os2.a",
            b"system.",
            b"system.posix_acl_accessx",
            b"USER.a",
        ] {
            let name_seen = name.escape_ascii();
            assert_eq!(code(name), Err(ErrorCode::Unsupported), "{name_seen}");
        }
    }

    #[test]
    fn all_names_fit_into_one_list() {
        let acls = xattr::ACL_ACCESS.len() + 1 + xattr::ACL_DEFAULT.len() + 1;
        assert_eq!(MAX_NAMES + acls, xattr::MAX_LIST_BYTES);
    }
}
