//! What the metadata server of the tests knows.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use bytes::Bytes;
use emberfs_proto::layout::Layout;
use emberfs_proto::{Error, ErrorCode, pb};
use tokio::sync::mpsc;
use tonic::{Response, Status};

use super::super::locks::FakeLocks;
use super::super::xattr::Xattrs;
use super::{Reply, attr_reply, fail};

#[derive(Default)]
pub(crate) struct State {
    pub(crate) files: HashMap<u64, pb::Attr>,
    pub(super) names: BTreeMap<Bytes, u64>,
    pub(super) links: HashMap<u64, Bytes>,
    /// Open sessions: inode and whether for writing.
    pub(crate) sessions: HashMap<u64, (u64, bool)>,
    pub(super) last_session: u64,
    /// Every request that changes something: verb, request number, acknowledged.
    pub(crate) changes: Vec<(&'static str, u64, u64)>,
    /// Reported ends: (inode, end).
    pub(crate) ends: Vec<(u64, Option<u64>)>,
    pub(crate) attached: usize,
    pub(crate) get_attrs: usize,
    /// Lookups of many names.
    pub(crate) lookups: usize,
    /// Files that such a lookup refuses for now.
    pub(crate) truncating: HashSet<u64>,
    pub(crate) forgotten: bool,
    /// Where the chunks of a file end, if not where it was reported.
    pub(crate) stored: HashMap<u64, u64>,
    /// Opens of a file: inode and user.
    pub(crate) opens: Vec<(u64, u32)>,
    /// What the last keep-alive has acknowledged.
    pub(crate) acknowledged: u64,
    /// The newest process of each client.
    pub(super) instances: HashMap<Bytes, u32>,
    /// Delegations that were returned, and how many ends were reported before.
    pub(crate) returned: Vec<(u64, usize)>,
    /// Bytes that are free.
    pub(crate) free: u64,
    /// Requests for room: (inode, end).
    pub(crate) reserved: Vec<(u64, u64)>,
    /// How long a limited file may be.
    pub(crate) most: u64,
    pub(crate) locks: FakeLocks,
    /// Where clients hear of changes by others.
    pub(crate) watchers: Vec<mpsc::Sender<Result<pb::Invalidation, Status>>>,
    pub(super) records: HashMap<u64, pb::OpenReply>,
    /// Of the log: the last commit, the last one that is durable, and where earlier starts ended.
    pub(super) commit: u64,
    pub(super) durable: u64,
    pub(super) logs: Vec<pb::LogEnd>,
    pub(super) xattrs: Xattrs,
    /// Verb, error, and whether the change is made before it is answered.
    pub(super) faults: VecDeque<(&'static str, ErrorCode, bool)>,
    pub(super) layout: Option<Layout>,
}

impl State {
    /// The next fault, if it is for this verb: its code, and whether the request is carried out.
    pub(in crate::testing) fn take_fault(&mut self, verb: &str) -> Option<(ErrorCode, bool)> {
        let fault = self.faults.front().filter(|fault| fault.0 == verb);
        let (code, after) = fault.map(|fault| (fault.1, fault.2))?;
        self.faults.pop_front();
        Some((code, after))
    }

    /// Refuses earlier processes of a client.
    pub(in crate::testing) fn check_instance(
        &self,
        caller: Option<&pb::Caller>,
    ) -> Result<(), Error> {
        let caller = caller.unwrap();
        if self.instances.get(&caller.client) > Some(&caller.instance) {
            return Err(Error::new(ErrorCode::Superseded, "there is a later one"));
        }
        Ok(())
    }

    pub(crate) fn forget_faults(&mut self) {
        self.faults.clear();
    }

    pub(super) fn new_inode(&mut self, kind: pb::FileKind, mode: u32) -> u64 {
        let inode = self.files.len() as u64 + 1;
        let now = Some(std::time::SystemTime::now().into());
        let attr = pb::Attr {
            inode,
            kind: kind.into(),
            mode,
            nlink: 1,
            mtime: now,
            layout: self.layout.map(Into::into),
            truncate_epoch: 1,
            ..pb::Attr::default()
        };
        self.files.insert(inode, attr);
        inode
    }

    pub(super) fn file(&mut self, inode: u64) -> Result<&mut pb::Attr, Status> {
        match self.files.get_mut(&inode) {
            Some(attr) => Ok(attr),
            None => fail(ErrorCode::NotFound, "no such inode"),
        }
    }

    pub(super) fn session(&mut self, inode: u64, write: bool, created: bool) -> pb::OpenReply {
        self.last_session += 1;
        self.sessions.insert(self.last_session, (inode, write));
        let attr = self.files.get(&inode).copied();
        pb::OpenReply {
            delegated: false,
            attr,
            session: self.last_session,
            created,
            ..pb::OpenReply::default()
        }
    }

    /// Commits a change, which is not durable before the next sync.
    pub(super) fn early(&mut self) -> pb::LogPosition {
        self.commit += 1;
        pb::LogPosition {
            start: self.logs.len() as u64,
            committed: self.commit,
            durable: self.durable,
        }
    }

    pub(crate) fn commits(&self) -> u64 {
        self.commit
    }

    /// Restarts the log with what is left of its commits.
    pub(crate) fn restart(&mut self, kept: u64) {
        let start = self.logs.len() as u64;
        self.logs.push(pb::LogEnd { start, end: kept });
        (self.commit, self.durable) = (kept, kept);
    }

    pub(crate) fn forget_starts(&mut self) {
        self.logs.clear();
    }

    pub(super) fn sync_log(&mut self, reply: &mut pb::AttrReply, starts: &[u64]) {
        self.durable = self.commit;
        reply.log = Some(pb::LogPosition {
            start: self.logs.len() as u64,
            committed: 0,
            durable: self.durable,
        });
        let asked = self.logs.iter().filter(|it| starts.contains(&it.start));
        reply.ends = asked.copied().collect();
    }

    pub(super) fn resize(&mut self, inode: u64, size: u64) -> Result<(), Status> {
        let attr = self.file(inode)?;
        if size < attr.size {
            attr.truncate_epoch += 1;
        }
        attr.size = size;
        Ok(())
    }

    pub(super) fn sync(&mut self, request: &pb::SyncRequest, close: bool) -> Reply<pb::AttrReply> {
        if !self.sessions.contains_key(&request.session) {
            return fail(ErrorCode::NoSession, "no such session");
        }
        if close {
            self.sessions.remove(&request.session);
        }
        self.ends.push((request.inode, request.end));
        let stored = self.stored.get(&request.inode).copied().unwrap_or_default();
        let attr = self.file(request.inode)?;
        if let Some(end) = request.end
            && request.truncate_epoch == attr.truncate_epoch
        {
            attr.size = attr.size.max(end);
        }
        if request.mtime.is_some() {
            attr.mtime = request.mtime;
        }
        attr.sparse |= request.sparse;
        if request.settle {
            attr.size = attr.size.max(stored);
        }
        let mut reply = attr_reply(Some(*attr));
        self.sync_log(&mut reply, &request.starts);
        Ok(Response::new(reply))
    }
}
