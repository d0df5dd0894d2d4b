//! `.emberfs`: a directory in the root of each mount that no server knows. It is found by its name and never listed, so
//! that no program walks into it; a real one of that name, made before or elsewhere, comes first.
//!
//! In it is `rm-r`: what is renamed into that is removed, a directory with all that is in it, by one request to the
//! metadata server, as `emberfs rm -r` does it; so it is for root, too. Nothing else can be done there.
//!
//! The kernel takes the rename for one: it believes that the name is in `rm-r` now, until it is told otherwise, right after
//! the reply ([`Vanished`]).

use bytes::Bytes;
use emberfs_client::{Attr, Creds, RenameFlags, Result};
use emberfs_proto::ids::InodeId;
use emberfs_proto::pb::{DirEntry, FileKind, ReadDirReply};
use emberfs_proto::{Error, ErrorCode};

use super::{Handler, ROOT_NODE};
use crate::backend::Backend;

/// Nodes of the two directories. Inodes count from 1, so no cluster will ever reach these.
const HIDDEN: u64 = u64::MAX - 1;
const REMOVER: u64 = u64::MAX - 2;

const HIDDEN_NAME: &[u8] = b".emberfs";
const REMOVER_NAME: &[u8] = b"rm-r";

/// A name that the kernel believes in and that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vanished {
    pub(crate) parent: u64,
    pub(crate) name: Bytes,
}

/// Whether no server knows this node.
pub(super) fn is_virtual(node: u64) -> bool {
    matches!(node, HIDDEN | REMOVER)
}

/// Whether a rename to this directory is a removal.
pub(super) fn removes(node: u64) -> bool {
    node == REMOVER
}

/// The attributes of a node that no server knows.
pub(super) fn attr(node: u64) -> Option<Attr> {
    let (mode, nlink) = match node {
        HIDDEN => (0o555, 3),
        REMOVER => (0o700, 2),
        _ => return None,
    };
    Some(Attr {
        inode: node,
        kind: FileKind::Directory.into(),
        mode,
        nlink,
        generation: 1,
        ..Attr::default()
    })
}

/// What a directory that no server knows lists; `root` is the mount's.
pub(super) fn listing(node: u64, root: InodeId) -> Option<ReadDirReply> {
    let (entries, parent) = match node {
        HIDDEN => {
            let name = Bytes::from_static(REMOVER_NAME);
            let attr = attr(REMOVER);
            (vec![DirEntry { name, attr }], root.0)
        }
        REMOVER => (Vec::new(), HIDDEN),
        _ => return None,
    };
    Some(ReadDirReply {
        entries,
        end: true,
        parent,
    })
}

/// Whether a name may be found here.
pub(super) fn may_be(parent: u64, name: &[u8]) -> bool {
    is_virtual(parent) || parent == ROOT_NODE && name == HIDDEN_NAME
}

/// What the server answered about a name, unless the name is found here.
pub(super) fn found(parent: u64, name: &[u8], answer: Result<Attr>) -> Result<Attr> {
    let hidden = parent == ROOT_NODE && name == HIDDEN_NAME;
    match answer {
        Err(error) if hidden && error.code == ErrorCode::NotFound => attr(HIDDEN).ok_or(error),
        answer => answer,
    }
}

/// A name in a directory that no server knows.
pub(super) fn lookup(parent: u64, name: &[u8]) -> Result<Attr> {
    let found = (parent == HIDDEN && name == REMOVER_NAME).then_some(REMOVER);
    found.and_then(attr).ok_or_else(|| {
        let what = format!("`{}` is nothing that a mount offers", name.escape_ascii());
        Error::new(ErrorCode::NotFound, what)
    })
}

fn refused() -> Error {
    let what = "this directory is the mount's own; the only thing to do is a rename into .emberfs/rm-r, which removes";
    Error::new(ErrorCode::NotPermitted, what)
}

impl<B: Backend> Handler<B> {
    /// The inode of a node that is to be changed; [`ErrorCode::NotPermitted`] if no server knows it.
    pub(super) fn real(&self, node: u64) -> Result<InodeId> {
        if is_virtual(node) {
            return Err(refused());
        }
        Ok(self.inode(node))
    }

    /// Refuses to remove, move or replace the hidden directory: only a real one of that name may go.
    pub(super) async fn spare_hidden(&self, creds: &Creds, parent: u64, name: &[u8]) -> Result<()> {
        if parent != ROOT_NODE || name != HIDDEN_NAME {
            return Ok(());
        }
        match self.backend.lookup(creds, self.root, name).await {
            Err(error) if error.code == ErrorCode::NotFound => Err(refused()),
            answer => answer.map(drop),
        }
    }

    /// Removes what is renamed into `rm-r`.
    pub(super) async fn remove_moved(
        &self,
        creds: &Creds,
        (parent, name): (u64, &[u8]),
        to: (u64, &[u8]),
        flags: RenameFlags,
    ) -> Result<Vanished> {
        let parent = self.real(parent)?;
        if flags.exchange {
            return Err(refused());
        }
        let _changing = self.parents.change(parent.0);
        let mut attr = match self.backend.remove_tree(creds, parent, name).await {
            Err(error) if error.code == ErrorCode::NotDirectory => {
                self.backend.unlink(creds, parent, name).await?
            }
            answer => answer?,
        };
        self.inodes.touched(parent.0);
        self.inodes.changed(&mut attr);
        Ok(Vanished {
            parent: to.0,
            name: Bytes::copy_from_slice(to.1),
        })
    }
}

#[cfg(test)]
mod tests;
