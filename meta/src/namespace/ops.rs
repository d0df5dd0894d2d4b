//! The operations, each a function of one transaction: check, decide, write. One file per family.

pub(crate) mod count;
pub(crate) mod create;
pub(crate) mod directory;
pub(crate) mod link;
pub(crate) mod lookup;
pub(crate) mod open;
pub(crate) mod quota;
pub(crate) mod readdir;
pub(crate) mod rename;
pub(crate) mod report;
pub(crate) mod setattr;
pub(crate) mod sync;
pub(crate) mod tree;
pub(crate) mod unnamed;
pub(crate) mod xattr;
