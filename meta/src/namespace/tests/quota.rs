//! Quotas: limits, room for writers, moves, counting, and that counters are always what a recount says.

mod counting;
mod limits;
mod moves;
mod random;
mod writers;

use std::collections::BTreeMap;

use emberfs_proto::Result;
use emberfs_proto::ids::InodeId;
use emberfs_proto::pb::{self, QuotaKind};

use super::fixture::*;
use crate::namespace::keys;
use crate::namespace::records::{Dentry, InodeRecord, decode};
use crate::namespace::usage::table::Resource;

const NONE: Option<u64> = None;

/// A request for the quota of a directory, a user or a group. `None`: as before; 0: no limit.
fn quota(
    f: &Fixture,
    kind: QuotaKind,
    id: u64,
    bytes: Option<u64>,
    inodes: Option<u64>,
) -> pb::SetQuotaRequest {
    let kind = kind.into();
    pb::SetQuotaRequest {
        caller: f.root(),
        subject: Some(pb::QuotaSubject { kind, id }),
        bytes,
        inodes,
        clear: false,
        label: String::new(),
    }
}

/// Sets a quota and counts what is there.
async fn limit(f: &Fixture, kind: QuotaKind, id: u64, bytes: Option<u64>, inodes: Option<u64>) {
    let request = quota(f, kind, id, bytes, inodes);
    f.ns.set_quota(request).await.unwrap();
    f.ns.count().await.unwrap();
}

async fn clear(f: &Fixture, kind: QuotaKind, id: u64) {
    let request = pb::SetQuotaRequest {
        clear: true,
        ..quota(f, kind, id, None, None)
    };
    let left = f.ns.set_quota(request).await.unwrap();
    assert!(left.quotas.is_empty());
}

/// Bytes and inodes that are used of a quota, and whether it is still being counted.
async fn used(f: &Fixture, kind: QuotaKind, id: u64) -> (u64, u64, bool) {
    let request = pb::ListQuotasRequest { caller: f.root() };
    let all = f.ns.list_quotas(request).await.unwrap().quotas;
    let kind: i32 = kind.into();
    let wanted = pb::QuotaSubject { kind, id };
    let found = all.iter().find(|quota| quota.subject == Some(wanted));
    let found = found.expect("the quota exists");
    (found.bytes_used, found.inodes_used, found.counting)
}

async fn reserve(f: &Fixture, inode: u64, session: u64, end: u64) -> Result<pb::Attr> {
    reserve_as(f, f.root(), inode, session, end).await
}

async fn reserve_as(
    f: &Fixture,
    caller: Option<pb::Caller>,
    inode: u64,
    session: u64,
    end: u64,
) -> Result<pb::Attr> {
    let request = pb::ReserveRequest {
        caller,
        inode,
        session,
        end,
    };
    Ok(f.ns.reserve(request).await?.attr.unwrap())
}

/// Creates a file of this length, as a client that asks for room, and closes it.
async fn written(f: &Fixture, parent: u64, name: &str, len: u64) -> Result<u64> {
    written_as(f, f.root(), parent, name, len).await
}

async fn written_as(
    f: &Fixture,
    caller: Option<pb::Caller>,
    parent: u64,
    name: &str,
    len: u64,
) -> Result<u64> {
    let opened = f.create(caller.clone(), parent, name, 0o666).await?;
    let (attr, session) = (opened.attr.unwrap(), opened.session);
    let file = attr.inode;
    let room = if attr.limited && len > attr.granted {
        reserve_as(f, caller.clone(), file, session, len)
            .await
            .map(drop)
    } else {
        Ok(())
    };
    let request = pb::SyncRequest {
        caller,
        inode: file,
        session,
        end: room.is_ok().then_some(len),
        ..Default::default()
    };
    f.ns.close(request).await?;
    room.map(|()| file)
}

/// Every counter in the store, by key, without those that are 0.
fn counters(f: &Fixture) -> BTreeMap<Vec<u8>, i64> {
    let mut found = BTreeMap::new();
    for kind in [QuotaKind::Tree, QuotaKind::User, QuotaKind::Group] {
        let core = &f.ns.core;
        core.each(keys::usages(kind as u8), |key, value| {
            found.insert(key.to_vec(), i64::from_le_bytes(value.try_into().unwrap()));
            Ok(())
        })
        .unwrap();
    }
    found.retain(|_, number| *number != 0);
    found
}

/// What the counters should be, from all inodes.
fn recounted(f: &Fixture) -> BTreeMap<Vec<u8>, i64> {
    let table = f.ns.core.quotas.current();
    let mut found = BTreeMap::new();
    let visit = |_: &[u8], value: &[u8]| {
        let record: InodeRecord = decode(value)?;
        let charge = table.charge(&record);
        for subject in charge.subjects() {
            *found.entry(subject.usage(Resource::Inodes)).or_default() += 1;
            *found.entry(subject.usage(Resource::Bytes)).or_default() += charge.bytes as i64;
        }
        Ok(())
    };
    f.ns.core
        .each(keys::inodes_after(InodeId(0)), visit)
        .unwrap();
    found.retain(|_, number| *number != 0);
    found
}

/// When everything is counted, nothing is left out: neither an owner nor what lies in a directory that is counted.
#[track_caller]
fn check_complete(f: &Fixture) {
    let table = f.ns.core.quotas.current();
    assert!(!table.is_incomplete());
    let mut trees = BTreeMap::new();
    let visit = |_: &[u8], value: &[u8]| {
        let record: InodeRecord = decode(value)?;
        assert!(
            table.era() == 0 || record.owner_era == table.era(),
            "{record:?}"
        );
        trees.insert(record.id(), table.tree_of(&record));
        Ok(())
    };
    f.ns.core
        .each(keys::inodes_after(InodeId(0)), visit)
        .unwrap();
    for (dir, tree) in trees.iter().filter(|(_, tree)| **tree != 0) {
        let visit = |_: &[u8], value: &[u8]| {
            let dentry: Dentry = decode(value)?;
            let child = trees.get(&dentry.id());
            assert_ne!(child, Some(&0), "{} in {dir} of tree {tree}", dentry.id());
            Ok(())
        };
        f.ns.core.each(keys::dentries(*dir), visit).unwrap();
    }
}

#[track_caller]
fn check_counters(f: &Fixture) {
    assert_eq!(counters(f), recounted(f));
}
