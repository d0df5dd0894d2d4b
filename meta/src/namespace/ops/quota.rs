//! Quotas: set, cleared and listed; and room for writers.
//!
//! A directory with a quota lies neither in nor above another one: each inode is in one tree at most, and whose limit was
//! met is never a question.

use emberfs_proto::ids::{InodeId, SessionId};
use emberfs_proto::pb::{self, QuotaKind};
use emberfs_proto::{Error, ErrorCode, Result};

use super::open;
use crate::namespace::core::Who;
use crate::namespace::records::{InodeRecord, OwnersRecord, QuotaRecord, WalkRecord};
use crate::namespace::tx::Tx;
use crate::namespace::usage::table::{Holder, Resource, Subject, Table};
use crate::namespace::{keys, length, usage};

/// Longest path that is kept for people, bytes.
const MAX_LABEL: usize = 4096;
/// Directories above one that is to get a quota: the walk to the root is one transaction.
const MAX_DEPTH: usize = 10_000;

/// Makes room for a writer, or [`ErrorCode::QuotaExceeded`]. Of a file without limits nothing changes.
pub(crate) fn reserve(
    tx: &mut Tx<'_>,
    who: &Who,
    req: &pb::ReserveRequest,
) -> Result<pb::AttrReply> {
    let (id, session) = (InodeId(req.inode), SessionId(req.session));
    let mut file = tx.live(id)?;
    if tx.core.sessions.check(who.client, id, session) != Some(true) {
        let what = format!(
            "client {} has no write session {session} on inode {id}; open the file again",
            who.client
        );
        return Err(Error::new(ErrorCode::NoSession, what));
    }
    open::check(who, &file, 0)?;
    length::check_size(&file.file_layout()?, req.end)?;
    if usage::grant(tx, &mut file, req.end)? {
        tx.put_marks(&file);
    }
    let attr = Some(tx.attr(&file)?);
    Ok(pb::AttrReply {
        attr,
        ..Default::default()
    })
}

/// Sets, changes or clears a quota; `table` is what is in force afterwards.
pub(crate) fn set(
    tx: &mut Tx<'_>,
    who: &Who,
    table: &mut Table,
    req: &pb::SetQuotaRequest,
) -> Result<()> {
    if !who.cred.is_root() {
        let what = format!("only root may set quotas, not uid {}", who.cred.uid);
        return Err(Error::new(ErrorCode::NotPermitted, what));
    }
    let holder = Holder::of(req.subject.as_ref())?;
    if req.clear {
        clear(tx, table, holder);
        return Ok(());
    }
    if req.label.len() > MAX_LABEL {
        let what = format!("a path of {} bytes exceeds {MAX_LABEL}", req.label.len());
        return Err(Error::new(ErrorCode::NameTooLong, what));
    }
    let mut quota = match table.get(holder) {
        Some(quota) => quota.clone(),
        None if holder.kind == QuotaKind::Tree => plant(tx, table, InodeId(holder.id))?,
        None => QuotaRecord::default(),
    };
    let changed = |asked: Option<u64>, now| match asked {
        None => now,
        Some(0) => None,
        limit => limit,
    };
    quota.bytes = changed(req.bytes, quota.bytes);
    quota.inodes = changed(req.inodes, quota.inodes);
    if !req.label.is_empty() {
        quota.label.clone_from(&req.label);
    }
    tx.put(&holder.key(), &quota);
    table.put(holder, quota);
    if holder.kind != QuotaKind::Tree && !table.owners.active {
        table.owners = OwnersRecord {
            era: table.owners.era + 1,
            active: true,
            counting: true,
            after: 0,
        };
        tx.put(keys::OWNERS, &table.owners);
    }
    Ok(())
}

/// A quota for a directory that has none: what is in it will be counted.
fn plant(tx: &mut Tx<'_>, table: &Table, dir: InodeId) -> Result<QuotaRecord> {
    let record = tx.dir(dir)?;
    if let Some(above) = above(tx, &record, |id| is_limited(table, id))? {
        return Err(nested(dir, "is below", table, above));
    }
    for (below, _) in table.trees() {
        // One that was removed is cleared soon.
        if let Some(record) = tx.inode(below)?
            && above(tx, &record, |id| id == dir)?.is_some()
        {
            return Err(nested(dir, "is above", table, below));
        }
    }
    let tree = tx.core.next_id()?;
    tx.put(&keys::walk(tree, dir), &WalkRecord::default());
    Ok(QuotaRecord {
        tree,
        counting: true,
        ..QuotaRecord::default()
    })
}

fn is_limited(table: &Table, dir: InodeId) -> bool {
    let holder = Holder {
        kind: QuotaKind::Tree,
        id: dir.0,
    };
    table.get(holder).is_some()
}

fn nested(dir: InodeId, where_: &str, table: &Table, other: InodeId) -> Error {
    let holder = Holder {
        kind: QuotaKind::Tree,
        id: other.0,
    };
    let label = table.get(holder).map_or("", |quota| &quota.label);
    let what = format!(
        "directory {dir} {where_} directory {other} ({label}), which has a quota; quotas of directories cannot be nested: \
         clear that one first"
    );
    Error::new(ErrorCode::InvalidArgument, what)
}

/// The nearest directory above that is looked for.
fn above(
    tx: &mut Tx<'_>,
    dir: &InodeRecord,
    wanted: impl Fn(InodeId) -> bool,
) -> Result<Option<InodeId>> {
    let mut at = dir.id();
    let mut parent = InodeId(dir.parent);
    for _ in 0..MAX_DEPTH {
        if at == InodeId::ROOT {
            return Ok(None);
        }
        if wanted(parent) {
            return Ok(Some(parent));
        }
        at = parent;
        parent = match tx.inode(at)? {
            Some(record) => InodeId(record.parent),
            // It is on its way out with a removed tree.
            None => return Ok(None),
        };
    }
    let what = format!(
        "directory {} is more than {MAX_DEPTH} levels deep",
        dir.id()
    );
    Err(Error::new(ErrorCode::InvalidArgument, what))
}

fn clear(tx: &mut Tx<'_>, table: &mut Table, holder: Holder) {
    let Some(quota) = table.remove(holder) else {
        return;
    };
    tx.delete(&holder.key());
    if holder.kind == QuotaKind::Tree {
        let kind = QuotaKind::Tree as u8;
        tx.delete_span(&keys::usages_of(kind, quota.tree));
        tx.delete_span(&keys::walks_of(quota.tree));
    } else if !table.limits_owners() {
        table.owners.active = false;
        tx.put(keys::OWNERS, &table.owners);
        for kind in [QuotaKind::User, QuotaKind::Group] {
            tx.delete_span(&keys::usages(kind as u8));
        }
    }
}

/// Clears quotas of directories that do not exist any more.
pub(crate) fn clear_removed(tx: &mut Tx<'_>, table: &mut Table) -> Result<()> {
    let tops: Vec<_> = table.trees().map(|(dir, _)| dir).collect();
    for dir in tops {
        if tx.inode(dir)?.is_none() {
            let holder = Holder {
                kind: QuotaKind::Tree,
                id: dir.0,
            };
            clear(tx, table, holder);
        }
    }
    Ok(())
}

/// What a program that asks for free space in a directory with a quota is told: no more than the quota leaves it.
pub(crate) fn statfs(
    tx: &mut Tx<'_>,
    inode: InodeId,
    whole: pb::StatFsReply,
) -> Result<pb::StatFsReply> {
    let table = tx.quotas.clone();
    let tree = match tx.inode(inode)? {
        Some(record) => table.tree_of(&record),
        None => 0,
    };
    let Some(quota) = table.of_tree(tree) else {
        return Ok(whole);
    };
    let subject = Subject::Tree(tree);
    let mut used = |resource| Ok::<_, Error>(tx.used(subject, resource)?.max(0).cast_unsigned());
    let mut told = whole;
    if let Some(bytes) = quota.bytes {
        told.capacity = whole.capacity.min(bytes);
        let left = told.capacity.saturating_sub(used(Resource::Bytes)?);
        told.free = whole.free.min(left);
    }
    if let Some(inodes) = quota.inodes {
        told.inodes = inodes;
        told.inodes_free = inodes.saturating_sub(used(Resource::Inodes)?);
    }
    Ok(told)
}

/// All quotas, or one, and what is used of them.
pub(crate) fn list(tx: &mut Tx<'_>, only: Option<Holder>) -> Result<pb::ListQuotasReply> {
    let table = tx.quotas.clone();
    let mut quotas = Vec::new();
    for (holder, quota) in table.all() {
        if only.is_some_and(|only| only != holder) {
            continue;
        }
        let subject = holder.subject(quota);
        let mut used =
            |resource| Ok::<_, Error>(tx.used(subject, resource)?.max(0).cast_unsigned());
        let counting = match holder.kind {
            QuotaKind::Tree => quota.counting,
            _ => table.owners.counting,
        };
        quotas.push(pb::QuotaInfo {
            subject: Some(pb::QuotaSubject {
                kind: holder.kind.into(),
                id: holder.id,
            }),
            bytes: quota.bytes.unwrap_or(0),
            bytes_used: used(Resource::Bytes)?,
            inodes: quota.inodes.unwrap_or(0),
            inodes_used: used(Resource::Inodes)?,
            counting,
            label: quota.label.clone(),
        });
    }
    Ok(pb::ListQuotasReply { quotas })
}
