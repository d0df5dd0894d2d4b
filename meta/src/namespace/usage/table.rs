//! Which quotas there are: in memory, as the store has them.
//!
//! Transactions that change something share [`Quotas::gate`]; whoever sets a quota has it alone, across its commit. So each
//! transaction knows the quotas as they are when it commits, without reading a key for it. (Several metadata servers over
//! one store would need such a key.)

use std::collections::HashMap;
use std::sync::Arc;

use emberfs_proto::ids::InodeId;
use emberfs_proto::pb::{self, QuotaKind};
use emberfs_proto::{Error, ErrorCode, Result, convert};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::namespace::keys;
use crate::namespace::records::{InodeRecord, OwnersRecord, QuotaRecord};

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(crate) enum Resource {
    Bytes = 1,
    Inodes = 2,
}

/// Whose usage is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Subject {
    /// The number of a directory's tree, not its inode.
    Tree(u64),
    User(u32),
    Group(u32),
}

impl Subject {
    fn parts(self) -> (QuotaKind, u64) {
        match self {
            Self::Tree(tree) => (QuotaKind::Tree, tree),
            Self::User(uid) => (QuotaKind::User, uid.into()),
            Self::Group(gid) => (QuotaKind::Group, gid.into()),
        }
    }

    /// The key of its usage.
    pub(crate) fn usage(self, resource: Resource) -> Vec<u8> {
        let (kind, id) = self.parts();
        keys::usage(kind as u8, id, resource as u8)
    }
}

/// What a quota is set for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Holder {
    pub(crate) kind: QuotaKind,
    /// Inode of a directory, uid or gid.
    pub(crate) id: u64,
}

impl Holder {
    pub(crate) fn of(subject: Option<&pb::QuotaSubject>) -> Result<Self> {
        let subject = convert::required(subject, "subject")?;
        let (kind, id) = (subject.kind(), subject.id);
        let fits = match kind {
            QuotaKind::Tree => true,
            QuotaKind::User | QuotaKind::Group => id < u64::from(u32::MAX),
            QuotaKind::Unspecified => false,
        };
        if !fits {
            let what = format!("{kind:?} {id} cannot have a quota");
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        }
        Ok(Self { kind, id })
    }

    pub(crate) fn key(self) -> Vec<u8> {
        keys::quota(self.kind as u8, self.id)
    }

    /// Whose usage its quota is about.
    pub(crate) fn subject(self, quota: &QuotaRecord) -> Subject {
        // Checked when it was made.
        let id = self.id as u32;
        match self.kind {
            QuotaKind::User => Subject::User(id),
            QuotaKind::Group => Subject::Group(id),
            QuotaKind::Tree | QuotaKind::Unspecified => Subject::Tree(quota.tree),
        }
    }
}

/// As what an inode is counted; nowhere by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Charge {
    /// User and group.
    owners: Option<(u32, u32)>,
    /// 0: none.
    tree: u64,
    pub(crate) bytes: u64,
}

impl Charge {
    pub(crate) fn subjects(&self) -> impl Iterator<Item = Subject> + use<> {
        let owners = self.owners;
        let tree = (self.tree != 0).then_some(Subject::Tree(self.tree));
        let user = owners.map(|(uid, _)| Subject::User(uid));
        let group = owners.map(|(_, gid)| Subject::Group(gid));
        tree.into_iter().chain(user).chain(group)
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    quotas: HashMap<Holder, QuotaRecord>,
    /// The directory of each tree.
    tops: HashMap<u64, InodeId>,
    pub(crate) owners: OwnersRecord,
}

impl Table {
    /// Takes in what the store has.
    pub(crate) fn put(&mut self, holder: Holder, quota: QuotaRecord) {
        if holder.kind == QuotaKind::Tree {
            self.tops.insert(quota.tree, InodeId(holder.id));
        }
        self.quotas.insert(holder, quota);
    }

    pub(crate) fn remove(&mut self, holder: Holder) -> Option<QuotaRecord> {
        let quota = self.quotas.remove(&holder)?;
        self.tops.remove(&quota.tree);
        Some(quota)
    }

    pub(crate) fn get(&self, holder: Holder) -> Option<&QuotaRecord> {
        self.quotas.get(&holder)
    }

    /// All quotas, by kind and number.
    pub(crate) fn all(&self) -> Vec<(Holder, &QuotaRecord)> {
        let mut all: Vec<_> = self.quotas.iter().map(|(h, q)| (*h, q)).collect();
        all.sort_by_key(|(holder, _)| *holder);
        all
    }

    /// Directories that have a quota, with their trees.
    pub(crate) fn trees(&self) -> impl Iterator<Item = (InodeId, u64)> + '_ {
        self.tops.iter().map(|(&tree, &dir)| (dir, tree))
    }

    /// Whether there is a quota of a user or a group.
    pub(crate) fn limits_owners(&self) -> bool {
        self.quotas
            .keys()
            .any(|holder| holder.kind != QuotaKind::Tree)
    }

    /// Nothing is counted.
    pub(crate) fn is_idle(&self) -> bool {
        self.quotas.is_empty() && !self.owners.active
    }

    /// Something that existed before its quota is still to be counted.
    pub(crate) fn is_incomplete(&self) -> bool {
        let trees = self.tops.keys().any(|&tree| self.is_counting(tree));
        trees || (self.owners.active && self.owners.counting)
    }

    /// The era of new inodes; 0: owners are not counted.
    pub(crate) fn era(&self) -> u64 {
        if self.owners.active {
            self.owners.era
        } else {
            0
        }
    }

    /// The tree that an inode is counted in; 0: none.
    pub(crate) fn tree_of(&self, inode: &InodeRecord) -> u64 {
        if self.tops.contains_key(&inode.tree) {
            inode.tree
        } else {
            0
        }
    }

    pub(crate) fn is_top(&self, tree: u64, dir: InodeId) -> bool {
        self.tops.get(&tree) == Some(&dir)
    }

    pub(crate) fn is_counting(&self, tree: u64) -> bool {
        self.of_tree(tree).is_some_and(|quota| quota.counting)
    }

    /// The quota of a tree.
    pub(crate) fn of_tree(&self, tree: u64) -> Option<&QuotaRecord> {
        let id = self.tops.get(&tree)?.0;
        let kind = QuotaKind::Tree;
        self.quotas.get(&Holder { kind, id })
    }

    pub(crate) fn charge(&self, inode: &InodeRecord) -> Charge {
        let era = self.era();
        let tree = self.tree_of(inode);
        let owners = (era != 0 && inode.owner_era == era).then_some((inode.uid, inode.gid));
        if tree == 0 && owners.is_none() {
            return Charge::default();
        }
        Charge {
            owners,
            tree,
            bytes: inode.charged_bytes(),
        }
    }

    fn quota_of(&self, subject: Subject) -> Option<&QuotaRecord> {
        match subject {
            Subject::Tree(tree) => self.of_tree(tree),
            Subject::User(_) | Subject::Group(_) => {
                let (kind, id) = subject.parts();
                self.quotas.get(&Holder { kind, id })
            }
        }
    }

    pub(crate) fn limit(&self, subject: Subject, resource: Resource) -> Option<i64> {
        let quota = self.quota_of(subject)?;
        let limit = match resource {
            Resource::Bytes => quota.bytes,
            Resource::Inodes => quota.inodes,
        };
        limit.map(|limit| i64::try_from(limit).unwrap_or(i64::MAX))
    }

    /// Whether the bytes of an inode are limited.
    pub(crate) fn limits_bytes(&self, inode: &InodeRecord) -> bool {
        !self.is_idle()
            && inode.is_file()
            && self
                .charge(inode)
                .subjects()
                .any(|subject| self.limit(subject, Resource::Bytes).is_some())
    }

    /// For messages.
    pub(crate) fn describe(&self, subject: Subject) -> String {
        match subject {
            Subject::User(uid) => format!("user {uid}"),
            Subject::Group(gid) => format!("group {gid}"),
            Subject::Tree(tree) => match (self.of_tree(tree), self.tops.get(&tree)) {
                (Some(quota), Some(_)) if !quota.label.is_empty() => {
                    format!("directory {}", quota.label)
                }
                (_, Some(top)) => format!("directory {top}"),
                (_, None) => format!("tree {tree}"),
            },
        }
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Quotas {
    /// Shared by transactions that change something, exclusive for those that change quotas.
    pub(crate) gate: RwLock<()>,
    table: Mutex<Arc<Table>>,
    /// Told when there is something to count.
    pub(crate) work: Notify,
}

impl Quotas {
    pub(crate) fn current(&self) -> Arc<Table> {
        self.table.lock().clone()
    }

    /// The caller has the gate.
    pub(crate) fn replace(&self, table: Table) {
        *self.table.lock() = Arc::new(table);
        self.work.notify_one();
    }
}
