//! What other machines do.

use emberfs_client::Attr;
use emberfs_proto::ids::InodeId;
use emberfs_proto::pb::FileKind;

use super::Memory;

impl Memory {
    /// Creates a file, as another machine would.
    pub(crate) fn create_elsewhere(&self, parent: u64, name: &str, data: &[u8]) -> u64 {
        let attr = self
            .add(InodeId(parent), name.as_bytes(), FileKind::File, 0o644)
            .unwrap();
        self.write_elsewhere(attr.inode, data);
        attr.inode
    }

    /// Replaces a file's contents, as another machine would.
    pub(crate) fn write_elsewhere(&self, inode: u64, data: &[u8]) {
        let now = Some(self.now());
        self.change(inode, |node| {
            node.data = data.to_vec();
            node.attr.truncate_epoch += u64::from((data.len() as u64) < node.attr.size);
            (node.attr.size, node.attr.mtime, node.attr.ctime) = (data.len() as u64, now, now);
        });
    }

    /// Changes a file's attributes, as another machine would.
    pub(crate) fn alter_elsewhere(&self, inode: u64, act: impl FnOnce(&mut Attr)) {
        self.change(inode, |node| act(&mut node.attr));
    }

    /// Removes a name, as another machine would.
    pub(crate) fn unlink_elsewhere(&self, parent: u64, name: &str) {
        self.detach(InodeId(parent), name.as_bytes()).unwrap();
    }
}
