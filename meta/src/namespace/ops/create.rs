//! Creating files and special files.

use emberfs_proto::ids::InodeId;
use emberfs_proto::pb::{self, FileKind};
use emberfs_proto::{Error, ErrorCode, Result};

use super::open::{self, Want};
use crate::namespace::access::{self, Cred};
use crate::namespace::acl;
use crate::namespace::core::{Step, Who};
use crate::namespace::names;
use crate::namespace::records::InodeRecord;
use crate::namespace::tx::Tx;
use crate::namespace::usage;
use crate::sessions::Held;

/// Opens a name, creating the file if there is none.
pub(crate) fn create(
    tx: &mut Tx<'_>,
    who: &Who,
    req: &pb::CreateRequest,
    held: &mut Option<Held>,
) -> Result<Step<pb::OpenReply>> {
    names::check(&req.name)?;
    let parent = InodeId(req.parent);
    let dir = tx.dir(parent)?;
    access::check(&who.cred, &dir, access::EXEC)?;
    let want = Want {
        read: !req.write,
        write: req.write,
        truncate: req.truncate,
    };
    if let Some(dentry) = tx.dentry(parent, &req.name)? {
        if req.exclusive {
            return Err(names::exists(parent, &req.name));
        }
        let file = tx.live(dentry.id())?;
        return open::open_file(tx, who, file, want, held);
    }
    access::check(&who.cred, &dir, access::WRITE)?;

    let mut file = new_file(tx, &who.cred, &dir, &req.name, req.mode, req.umask)?;
    if req.write && usage::grant_first(tx, &mut file)? {
        tx.put_marks(&file);
    }
    // What one creates one may write, whatever the mode says.
    let session = open::begin_session(tx, who, file.id(), req.write, held)?;
    let attr = tx.attr(&file)?;
    // Room that a quota leaves is asked for before close(2) says that there was enough.
    let delegated =
        req.delegate && req.write && !attr.limited && tx.core.interests.is_watching(who.client);
    if delegated {
        let delegations = &tx.core.sessions.delegations;
        delegations.grant(file.id(), session, who.client);
        open::put_session(tx, who, file.id(), (session, true));
    }
    Ok(Step::Done(pb::OpenReply {
        attr: Some(attr),
        session: session.0,
        created: true,
        delegated,
        ..Default::default()
    }))
}

/// Creates anything but directories and symbolic links.
pub(crate) fn mknod(tx: &mut Tx<'_>, cred: &Cred, req: &pb::MknodRequest) -> Result<pb::AttrReply> {
    names::check(&req.name)?;
    let kind = req.kind();
    let parent = InodeId(req.parent);
    let dir = tx.dir(parent)?;
    access::check(cred, &dir, access::EXEC)?;
    if tx.dentry(parent, &req.name)?.is_some() {
        return Err(names::exists(parent, &req.name));
    }
    access::check(cred, &dir, access::WRITE)?;
    // What overlayfs puts where something was removed; there is no such device.
    let is_whiteout = kind == FileKind::CharDevice && req.rdev == 0;
    let node = match kind {
        FileKind::File => new_file(tx, cred, &dir, &req.name, req.mode, req.umask)?,
        FileKind::CharDevice | FileKind::BlockDevice if !cred.is_root() && !is_whiteout => {
            let what = "only root may create device nodes";
            return Err(Error::new(ErrorCode::NotPermitted, what));
        }
        FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice => {
            let (mode, gid) = access::inherit(cred, &dir, false, req.mode);
            let mut node = tx.fresh(kind, mode, cred.uid, gid)?;
            acl::inherit(&dir, &mut node, req.umask)?;
            usage::inherit(tx, &dir, &mut node);
            if matches!(kind, FileKind::CharDevice | FileKind::BlockDevice) {
                node.rdev = req.rdev;
            }
            add(tx, parent, &req.name, &node);
            node
        }
        FileKind::Directory | FileKind::Symlink | FileKind::Unspecified => {
            let what = format!("mknod does not create a {kind:?}");
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        }
    };
    let attr = Some(tx.attr(&node)?);
    Ok(pb::AttrReply {
        attr,
        ..Default::default()
    })
}

fn new_file(
    tx: &mut Tx<'_>,
    cred: &Cred,
    dir: &InodeRecord,
    name: &[u8],
    mode: u32,
    umask: u32,
) -> Result<InodeRecord> {
    let file = fresh_file(tx, cred, dir, (mode, umask))?;
    add(tx, dir.id(), name, &file);
    Ok(file)
}

/// A file that inherits from a directory, neither stored nor named yet.
pub(super) fn fresh_file(
    tx: &Tx<'_>,
    cred: &Cred,
    dir: &InodeRecord,
    (mode, umask): (u32, u32),
) -> Result<InodeRecord> {
    let layout = tx.core.new_layout(dir)?;
    let (mode, gid) = access::inherit(cred, dir, false, mode);
    let mut file = tx.fresh(FileKind::File, mode, cred.uid, gid)?;
    acl::inherit(dir, &mut file, umask)?;
    usage::inherit(tx, dir, &mut file);
    file.layout = Some(layout.into());
    Ok(file)
}

fn add(tx: &mut Tx<'_>, parent: InodeId, name: &[u8], node: &InodeRecord) {
    tx.add_inode(node);
    tx.put_dentry(parent, name, node);
    tx.touch_dir(parent);
}
