//! Who may do what: mode bits, ACLs, ownership, sticky and setgid directories. The one place for it.

use emberfs_proto::{Error, ErrorCode, Result, pb};

use super::acl::Acl;
use super::records::InodeRecord;

/// Permission to read.
pub(crate) const READ: u32 = 4;
/// Permission to write.
pub(crate) const WRITE: u32 = 2;
/// Permission to execute, or to search a directory.
pub(crate) const EXEC: u32 = 1;

/// Set-user-id.
pub(crate) const SETUID: u32 = 0o4000;
/// Set-group-id; on directories: children inherit the group.
pub(crate) const SETGID: u32 = 0o2000;
/// On directories: only owners remove names.
pub(crate) const STICKY: u32 = 0o1000;
/// Every bit that a mode may have.
pub(crate) const MODE_BITS: u32 = 0o7777;

/// On whose behalf a request runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cred {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

impl Cred {
    pub(crate) fn of(caller: &pb::Caller) -> Self {
        Self {
            uid: caller.uid,
            gid: caller.gid,
            groups: caller.groups.clone(),
        }
    }

    pub(crate) fn is_root(&self) -> bool {
        self.uid == 0
    }

    pub(crate) fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }

    pub(crate) fn owns(&self, inode: &InodeRecord) -> bool {
        self.is_root() || self.uid == inode.uid
    }
}

/// Whether the mode bits, or the access ACL where there is one, grant all of `want`.
pub(crate) fn allows(cred: &Cred, inode: &InodeRecord, want: u32) -> bool {
    if cred.is_root() {
        // Root may everything, except execute a file that nobody may.
        return want & EXEC == 0 || inode.is_dir() || inode.mode & 0o111 != 0;
    }
    // An ACL whose mask, which is the group's bits, grants nothing is passed over, as by Linux: then "others" counts for those
    // who are not in the group.
    let granted = if cred.uid == inode.uid {
        inode.mode >> 6
    } else if !inode.acl.is_empty() && inode.mode & 0o070 != 0 {
        // One that cannot be read admits nobody; the owner and root can replace it.
        let acl = Acl::of(inode).ok().flatten();
        return acl.is_some_and(|acl| acl.admits(cred, inode.gid, want));
    } else if cred.in_group(inode.gid) {
        inode.mode >> 3
    } else {
        inode.mode
    };
    granted & want == want
}

/// [`ErrorCode::PermissionDenied`] unless [`allows`].
pub(crate) fn check(cred: &Cred, inode: &InodeRecord, want: u32) -> Result<()> {
    if allows(cred, inode, want) {
        return Ok(());
    }
    let asked: String = [(READ, 'r'), (WRITE, 'w'), (EXEC, 'x')]
        .iter()
        .filter(|(bit, _)| want & bit != 0)
        .map(|(_, letter)| *letter)
        .collect();
    let acl = if inode.acl.is_empty() {
        ""
    } else {
        ", with an ACL"
    };
    let what = format!(
        "uid {} gid {} may not {asked} inode {} (mode {:04o}, owner {}:{}{acl})",
        cred.uid,
        cred.gid,
        inode.id(),
        inode.mode,
        inode.uid,
        inode.gid
    );
    Err(Error::new(ErrorCode::PermissionDenied, what))
}

/// [`ErrorCode::NotPermitted`] unless the caller owns the inode or is root.
pub(crate) fn check_owner(cred: &Cred, inode: &InodeRecord) -> Result<()> {
    if cred.owns(inode) {
        return Ok(());
    }
    let what = format!(
        "only the owner {} of inode {} or root may do this, not uid {}",
        inode.uid,
        inode.id(),
        cred.uid
    );
    Err(Error::new(ErrorCode::NotPermitted, what))
}

/// Whether a name for `victim` may be removed from `dir`: write and search permission
/// ([`ErrorCode::PermissionDenied`]), and in a sticky directory ownership of either
/// ([`ErrorCode::NotPermitted`]).
pub(crate) fn check_remove(cred: &Cred, dir: &InodeRecord, victim: &InodeRecord) -> Result<()> {
    check(cred, dir, WRITE | EXEC)?;
    if dir.mode & STICKY == 0 || cred.owns(dir) || cred.owns(victim) {
        return Ok(());
    }
    let what = format!(
        "directory {} is sticky: only an owner may remove inode {} from it, not uid {}",
        dir.id(),
        victim.id(),
        cred.uid
    );
    Err(Error::new(ErrorCode::NotPermitted, what))
}

/// Mode and group of something created in `dir`.
pub(crate) fn inherit(cred: &Cred, dir: &InodeRecord, is_dir: bool, mode: u32) -> (u32, u32) {
    let mut mode = mode & MODE_BITS;
    let mut gid = cred.gid;
    if dir.mode & SETGID != 0 {
        gid = dir.gid;
        if is_dir {
            mode |= SETGID;
        } else if mode & 0o010 != 0 && !cred.is_root() && !cred.in_group(gid) {
            mode &= !SETGID;
        }
    }
    (mode, gid)
}

/// The mode after a change of content or owner: setuid goes, setgid goes if it means "run as group", or if whoever changes
/// it is not in the group (as Linux has it).
pub(crate) fn without_set_ids(cred: &Cred, inode: &InodeRecord) -> u32 {
    let of_group = cred.is_root() || cred.in_group(inode.gid);
    let keep_group = inode.mode & 0o010 == 0 && of_group;
    inode.mode & !(SETUID | if keep_group { 0 } else { SETGID })
}

#[cfg(test)]
mod tests {
    use super::*;
    use emberfs_proto::pb::FileKind;

    fn inode(kind: FileKind, mode: u32, uid: u32, gid: u32) -> InodeRecord {
        InodeRecord {
            id: 5,
            kind: kind as i32,
            mode,
            uid,
            gid,
            ..InodeRecord::default()
        }
    }

    fn cred(uid: u32, gid: u32, groups: &[u32]) -> Cred {
        Cred {
            uid,
            gid,
            groups: groups.to_vec(),
        }
    }

    #[test]
    fn only_the_first_matching_class_counts() {
        let file = inode(FileKind::File, 0o047, 10, 20);
        assert!(!allows(&cred(10, 20, &[]), &file, READ), "owner class wins");
        assert!(allows(&cred(11, 20, &[]), &file, READ));
        assert!(
            !allows(&cred(11, 1, &[20]), &file, WRITE),
            "group class wins"
        );
        assert!(allows(&cred(11, 1, &[]), &file, READ | WRITE | EXEC));
    }

    #[test]
    fn root_may_everything_but_execute_what_nobody_may() {
        let root = cred(0, 0, &[]);
        assert!(allows(&root, &inode(FileKind::File, 0, 9, 9), READ | WRITE));
        assert!(!allows(&root, &inode(FileKind::File, 0o666, 9, 9), EXEC));
        assert!(allows(&root, &inode(FileKind::File, 0o001, 9, 9), EXEC));
        assert!(allows(&root, &inode(FileKind::Directory, 0, 9, 9), EXEC));
    }

    #[test]
    fn a_sticky_directory_protects_the_names_of_others() {
        let dir = inode(FileKind::Directory, 0o1777, 1, 1);
        let file = inode(FileKind::File, 0o666, 2, 2);
        let code = |who: u32, dir: &InodeRecord| {
            check_remove(&cred(who, who, &[]), dir, &file).map_err(|e| e.code)
        };
        assert_eq!(code(0, &dir), Ok(()));
        assert_eq!(code(1, &dir), Ok(()));
        assert_eq!(code(2, &dir), Ok(()));
        assert_eq!(code(3, &dir), Err(ErrorCode::NotPermitted));
        let closed = inode(FileKind::Directory, 0o1755, 1, 1);
        assert_eq!(code(2, &closed), Err(ErrorCode::PermissionDenied));
    }

    #[test]
    fn setgid_directories_hand_down_their_group() {
        let dir = inode(FileKind::Directory, 0o2775, 1, 50);
        let user = cred(7, 70, &[]);
        assert_eq!(inherit(&user, &dir, true, 0o755), (0o2755, 50));
        assert_eq!(inherit(&user, &dir, false, 0o644), (0o644, 50));
        // A setgid program for a group the caller is not in would be an escalation.
        assert_eq!(inherit(&user, &dir, false, 0o2755), (0o755, 50));
        let member = cred(7, 70, &[50]);
        assert_eq!(inherit(&member, &dir, false, 0o2755), (0o2755, 50));
        let plain = inode(FileKind::Directory, 0o755, 1, 50);
        assert_eq!(inherit(&user, &plain, true, 0o755), (0o755, 70));
    }

    #[test]
    fn set_ids_go_except_mandatory_locking() {
        let after = |cred: &Cred, mode| without_set_ids(cred, &inode(FileKind::File, mode, 1, 2));
        let (member, other) = (cred(1, 2, &[]), cred(1, 3, &[4]));
        for cred in [&member, &other, &Cred::default()] {
            assert_eq!(after(cred, 0o6755), 0o755);
        }
        assert_eq!(after(&member, 0o6745), 0o2745);
        assert_eq!(after(&Cred::default(), 0o6745), 0o2745);
        assert_eq!(after(&other, 0o6745), 0o745);
    }
}
