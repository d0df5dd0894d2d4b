//! What this mount has removed and programs still refer to.
//!
//! The server keeps a file without a name as long as somebody has it open. It knows nothing of those who have a
//! directory, a pipe or a link open, or stand in a directory, or have opened a file by its path only (O_PATH): that is the
//! kernel's business. There an inode lives on without a name until the last of them has gone, and so it does here: its last
//! attributes are kept until the kernel forgets it.

use std::collections::HashMap;
use std::time::SystemTime;

use emberfs_client::{Attr, Creds, Result, SetAttr, TimeSet};
use emberfs_proto::pb::{FileKind, Time};
use emberfs_proto::{Error, ErrorCode};
use parking_lot::Mutex;

use super::inodes::without_set_ids;

/// Inodes remembered; the kernel forgets most at once. Some 300 bytes each.
const MAX: usize = 4096;

/// See the module.
#[derive(Default)]
pub(super) struct Ghosts(Mutex<HashMap<u64, Attr>>);

/// Whether the server says that there is no such inode.
pub(super) fn is_gone(error: &Error) -> bool {
    matches!(error.code, ErrorCode::NotFound | ErrorCode::Stale)
}

impl Ghosts {
    /// The last name of an inode has been removed.
    pub(super) fn removed(&self, attr: &Attr) {
        let mut ghosts = self.0.lock();
        if ghosts.len() < MAX {
            let nlink = 0;
            ghosts.insert(attr.inode, Attr { nlink, ..*attr });
        }
    }

    /// Nobody refers to it any more.
    pub(super) fn forget(&self, inode: u64) {
        self.0.lock().remove(&inode);
    }

    /// What the server answered, or what is known of an inode that it does not have any more.
    pub(super) fn or_last(&self, inode: u64, answer: Result<Attr>) -> Result<Attr> {
        answer.or_else(|error| {
            let ghost = is_gone(&error).then(|| self.0.lock().get(&inode).copied());
            ghost.flatten().ok_or(error)
        })
    }

    /// Whether the server was right not to have it.
    pub(super) fn knows(&self, inode: u64) -> bool {
        self.0.lock().contains_key(&inode)
    }

    /// Changes attributes of an inode that the server does not have any more; `None`: there is no such inode here either.
    pub(super) fn change(
        &self,
        inode: u64,
        creds: &Creds,
        changes: &SetAttr,
    ) -> Option<Result<Attr>> {
        let mut ghosts = self.0.lock();
        let attr = ghosts.get_mut(&inode)?;
        let gives_away = changes.uid.is_some_and(|uid| uid != attr.uid);
        if creds.uid != 0 && (creds.uid != attr.uid || gives_away) {
            let what = format!(
                "uid {} may not do this to inode {inode}, which was removed and belonged to {}",
                creds.uid, attr.uid
            );
            return Some(Err(Error::new(ErrorCode::NotPermitted, what)));
        }
        let now = SystemTime::now();
        let time = |set: TimeSet| match set {
            TimeSet::Now => Time::from(now),
            TimeSet::At(time) => Time::from(time),
        };
        let of_group = creds.uid == 0 || creds.gid == attr.gid || creds.groups.contains(&attr.gid);
        if (changes.uid.is_some() || changes.gid.is_some()) && attr.kind() != FileKind::Directory {
            attr.mode = without_set_ids(attr.mode, of_group);
        }
        attr.mode = changes.mode.map_or(attr.mode, |mode| mode & 0o7777);
        attr.uid = changes.uid.unwrap_or(attr.uid);
        attr.gid = changes.gid.unwrap_or(attr.gid);
        attr.atime = changes.atime.map(time).or(attr.atime);
        attr.mtime = changes.mtime.map(time).or(attr.mtime);
        attr.ctime = Some(Time::from(now));
        Some(Ok(*attr))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_gives_a_removed_inode_away_and_others_change_their_own() {
        let ghosts = Ghosts::default();
        ghosts.removed(&Attr {
            inode: 7,
            uid: 5,
            nlink: 2,
            ..Attr::default()
        });
        let who = |uid| Creds {
            uid,
            ..Creds::default()
        };
        let to = |uid| SetAttr {
            uid: Some(uid),
            ..SetAttr::default()
        };
        let owner = |caller, wanted| {
            let changed = ghosts.change(7, &who(caller), &to(wanted)).unwrap();
            changed.map(|attr| attr.uid).map_err(|error| error.code)
        };
        assert_eq!(owner(6, 6), Err(ErrorCode::NotPermitted));
        assert_eq!(owner(5, 6), Err(ErrorCode::NotPermitted));
        assert_eq!(owner(5, 5), Ok(5));
        assert_eq!(owner(0, 6), Ok(6));
        let mode = |mode, kind: FileKind| {
            ghosts.removed(&Attr {
                inode: 8,
                mode,
                kind: kind.into(),
                ..Attr::default()
            });
            ghosts.change(8, &who(0), &to(6)).unwrap().unwrap().mode
        };
        assert_eq!(mode(0o6711, FileKind::Fifo), 0o711);
        assert_eq!(mode(0o6701, FileKind::Fifo), 0o2701);
        assert_eq!(mode(0o6711, FileKind::Directory), 0o6711);
        ghosts.forget(7);
        assert!(ghosts.change(7, &who(0), &to(1)).is_none());
    }
}
