//! Requests about names, inodes and open files: which transaction answers which.

use std::sync::Arc;

use emberfs_proto::ids::{InodeId, SessionId};
use emberfs_proto::{Error, ErrorCode, Result, pb};

use super::core::{Operation, Step, Who};
use super::ops::sync::{Report, Settled};
use super::tx::Tx;
use super::{Namespace, ops};

impl Namespace {
    pub(crate) async fn lookup(&self, req: pb::NameRequest) -> Result<pb::AttrReply> {
        let caller = req.caller.clone();
        self.glance(caller.as_ref(), move |tx, who| {
            ops::lookup::lookup(tx, &who.cred, &req)
        })
        .await
    }

    pub(crate) async fn lookup_many(
        &self,
        req: pb::LookupManyRequest,
    ) -> Result<pb::LookupManyReply> {
        let caller = req.caller.clone();
        self.look(caller.as_ref(), move |tx, who| {
            ops::lookup::lookup_many(tx, who, &req)
        })
        .await
    }

    pub(crate) async fn getattr(&self, req: pb::GetAttrRequest) -> Result<pb::AttrReply> {
        let inode = InodeId(req.inode);
        self.glance(req.caller.as_ref(), move |tx, _| {
            ops::lookup::getattr(tx, inode)
        })
        .await
    }

    pub(crate) async fn readlink(&self, req: pb::GetAttrRequest) -> Result<pb::ReadlinkReply> {
        let inode = InodeId(req.inode);
        self.glance(req.caller.as_ref(), move |tx, _| {
            ops::lookup::readlink(tx, inode)
        })
        .await
    }

    pub(crate) async fn readdir(&self, req: pb::ReadDirRequest) -> Result<pb::ReadDirReply> {
        let caller = req.caller.clone();
        self.look(caller.as_ref(), move |tx, who| {
            ops::readdir::readdir(tx, &who.cred, &req)
        })
        .await
    }

    pub(crate) async fn setattr(
        self: &Arc<Self>,
        req: pb::SetAttrRequest,
    ) -> Result<pb::AttrReply> {
        let (caller, truncates) = (req.caller.clone(), req.size.is_some());
        let body =
            move |tx: &mut Tx<'_>, who: &Who, _: &mut _| ops::setattr::setattr(tx, who, &req);
        self.step(
            caller.as_ref(),
            Operation::SetAttr,
            (truncates, true),
            changed,
            body,
        )
        .await
    }

    pub(crate) async fn create(self: &Arc<Self>, req: pb::CreateRequest) -> Result<pb::OpenReply> {
        self.core.note(req.caller.as_ref(), &[req.parent]);
        let (caller, truncates) = (req.caller.clone(), req.truncate);
        let body = move |tx: &mut Tx<'_>, who: &Who, held: &mut _| {
            ops::create::create(tx, who, &req, held)
        };
        self.step(
            caller.as_ref(),
            Operation::Create,
            (truncates, true),
            opened,
            body,
        )
        .await
    }

    pub(crate) async fn create_unnamed(
        self: &Arc<Self>,
        req: pb::CreateUnnamedRequest,
    ) -> Result<pb::OpenReply> {
        let caller = req.caller.clone();
        let body = move |tx: &mut Tx<'_>, who: &Who, held: &mut _| {
            ops::unnamed::create(tx, who, &req, held)
        };
        let operation = Operation::CreateUnnamed;
        self.step(caller.as_ref(), operation, (false, true), opened, body)
            .await
    }

    pub(crate) async fn open_inode(
        self: &Arc<Self>,
        req: pb::OpenRequest,
    ) -> Result<pb::OpenReply> {
        if !req.write && !req.truncate {
            return self.open_read(&req).await;
        }
        let (caller, truncates) = (req.caller.clone(), req.truncate);
        let body =
            move |tx: &mut Tx<'_>, who: &Who, held: &mut _| ops::open::open(tx, who, &req, held);
        self.step(
            caller.as_ref(),
            Operation::Open,
            (truncates, true),
            opened,
            body,
        )
        .await
    }

    /// An open for reading writes nothing: its session is in memory only.
    async fn open_read(self: &Arc<Self>, req: &pb::OpenRequest) -> Result<pb::OpenReply> {
        let inode = InodeId(req.inode);
        loop {
            let who = self.who(req.caller.as_ref())?;
            self.core
                .sessions
                .touch(who.client, who.request, who.acknowledged)?;
            let sessions = &self.core.sessions;
            let (session, held) = match sessions.opened_by(who.client, inode, who.request) {
                Some(session) => (session, None),
                None => {
                    let session = SessionId(self.core.next_id()?);
                    let held = sessions.hold(inode, session, who.client, false, who.request)?;
                    (session, Some(held))
                }
            };
            let client = who.client;
            let req = req.clone();
            let body = move |tx: &mut Tx<'_>| ops::open::open_read(tx, &who, &req, session);
            let step = match self.core.read_cached_for(client, &body) {
                Some(step) => step,
                None => self.blocking(move |core| core.read_for(client, body)).await,
            };
            let Some(step) = self.unless_withheld(step).await else {
                continue;
            };
            let step = step?;
            if let (Step::Done(_), Some(held)) = (&step, held) {
                held.keep();
            }
            match step {
                Step::Blocked(inode) => self.finish_trim(inode).await?,
                Step::Done(reply) => return Ok(reply),
            }
        }
    }

    pub(crate) async fn mkdir(&self, req: pb::MkdirRequest) -> Result<pb::AttrReply> {
        self.core.note(req.caller.as_ref(), &[req.parent]);
        let caller = req.caller.clone();
        let body = move |tx: &mut Tx<'_>, who: &Who| ops::directory::mkdir(tx, &who.cred, &req);
        self.change(caller.as_ref(), Operation::Mkdir, body).await
    }

    pub(crate) async fn rmdir(&self, req: pb::NameRequest) -> Result<pb::UnlinkReply> {
        self.core.note(req.caller.as_ref(), &[req.parent]);
        let caller = req.caller.clone();
        let body = move |tx: &mut Tx<'_>, who: &Who| ops::directory::rmdir(tx, &who.cred, &req);
        self.change(caller.as_ref(), Operation::Rmdir, body).await
    }

    pub(crate) async fn symlink(&self, req: pb::SymlinkRequest) -> Result<pb::AttrReply> {
        self.core.note(req.caller.as_ref(), &[req.parent]);
        let caller = req.caller.clone();
        let body = move |tx: &mut Tx<'_>, who: &Who| ops::link::symlink(tx, &who.cred, &req);
        self.change(caller.as_ref(), Operation::Symlink, body).await
    }

    pub(crate) async fn mknod(&self, req: pb::MknodRequest) -> Result<pb::AttrReply> {
        self.core.note(req.caller.as_ref(), &[req.parent]);
        let caller = req.caller.clone();
        let body = move |tx: &mut Tx<'_>, who: &Who| ops::create::mknod(tx, &who.cred, &req);
        self.change(caller.as_ref(), Operation::Mknod, body).await
    }

    pub(crate) async fn link(&self, req: pb::LinkRequest) -> Result<pb::AttrReply> {
        self.core.note(req.caller.as_ref(), &[req.parent]);
        let caller = req.caller.clone();
        let body = move |tx: &mut Tx<'_>, who: &Who| ops::link::link(tx, &who.cred, &req);
        self.change(caller.as_ref(), Operation::Link, body).await
    }

    pub(crate) async fn unlink(&self, req: pb::NameRequest) -> Result<pb::UnlinkReply> {
        self.core.note(req.caller.as_ref(), &[req.parent]);
        let caller = req.caller.clone();
        let body = move |tx: &mut Tx<'_>, who: &Who| ops::link::unlink(tx, &who.cred, &req);
        let reply = self
            .change(caller.as_ref(), Operation::Unlink, body)
            .await?;
        self.note_garbage(reply.attr.as_ref());
        Ok(reply)
    }

    /// Removes a directory with all that is in it.
    pub(crate) async fn remove_tree(&self, req: pb::NameRequest) -> Result<pb::UnlinkReply> {
        let caller = req.caller.clone();
        let body = move |tx: &mut Tx<'_>, who: &Who| ops::tree::remove(tx, &who.cred, &req);
        let reply = self
            .change(caller.as_ref(), Operation::RemoveTree, body)
            .await?;
        self.core.garbage.notify_one();
        Ok(reply)
    }

    /// Empties directories whose trees were removed.
    pub(crate) async fn sweep_trees(&self) -> Result<()> {
        while self.blocking(|core| core.write(ops::tree::step)).await? {}
        Ok(())
    }

    pub(crate) async fn rename(&self, req: pb::RenameRequest) -> Result<pb::RenameReply> {
        self.core
            .note(req.caller.as_ref(), &[req.parent, req.new_parent]);
        let caller = req.caller.clone();
        let body = move |tx: &mut Tx<'_>, who: &Who| ops::rename::rename(tx, &who.cred, &req);
        let reply = self
            .change(caller.as_ref(), Operation::Rename, body)
            .await?;
        self.note_garbage(reply.replaced.as_ref());
        Ok(reply)
    }

    /// Tells garbage collection about a file without names that nobody has open.
    fn note_garbage(&self, removed: Option<&pb::Attr>) {
        let collectable = removed.is_some_and(|attr| {
            attr.nlink == 0
                && attr.kind() == pb::FileKind::File
                && !self.core.sessions.is_open(InodeId(attr.inode))
        });
        if collectable {
            self.core.garbage.notify_one();
        }
    }

    pub(crate) async fn sync(self: &Arc<Self>, mut req: pb::SyncRequest) -> Result<pb::AttrReply> {
        const MOST: usize = 4096;
        let starts = std::mem::take(&mut req.starts);
        if starts.len() > MOST {
            let what = format!("{} starts in one request; at most {MOST}", starts.len());
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        }
        let mut reply = self.report(req, false).await?;
        let ends = starts.into_iter().filter_map(|start| {
            let end = self.core.engine.end_of(start)?.0;
            Some(pb::LogEnd { start, end })
        });
        reply.ends = ends.collect();
        Ok(reply)
    }

    pub(crate) async fn close(self: &Arc<Self>, req: pb::SyncRequest) -> Result<pb::AttrReply> {
        let (inode, session) = (InodeId(req.inode), SessionId(req.session));
        let who = self.who(req.caller.as_ref())?;
        let kind = self.core.sessions.check(who.client, inode, session);
        let reply = if kind == Some(false) && req.end.is_none() {
            self.look(req.caller.as_ref(), move |tx, _| {
                ops::lookup::getattr(tx, inode)
            })
            .await
        } else {
            self.report(req, true).await
        };
        // The session ends whatever became of the inode, but not if its report may still succeed.
        let ends = match &reply {
            Ok(_) => true,
            Err(error) => error.code == ErrorCode::Stale,
        };
        if ends && kind.is_some() && self.core.sessions.remove(inode, session) {
            let unlinked = |reply: &pb::AttrReply| reply.attr.is_some_and(|attr| attr.nlink == 0);
            if reply.as_ref().is_ok_and(unlinked) {
                self.core.garbage.notify_one();
            }
        }
        reply
    }

    /// Ends sessions that have nothing to report, and delegations.
    pub(crate) async fn close_many(&self, req: pb::CloseManyRequest) -> Result<pb::CloseManyReply> {
        const MOST: usize = 4096;
        let who = self.who(req.caller.as_ref())?;
        self.core.sessions.touch(who.client, 0, who.acknowledged)?;
        let mut sessions = req.sessions;
        let most = sessions.len().max(req.returned.len());
        if most > MOST {
            let what = format!("{most} sessions in one request; at most {MOST}");
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        }
        for inode in req.returned {
            let delegations = &self.core.sessions.delegations;
            delegations.give_back(InodeId(inode), who.client);
        }
        if sessions.is_empty() {
            return Ok(pb::CloseManyReply {});
        }
        sessions.retain(|one| {
            let (inode, session) = (InodeId(one.inode), SessionId(one.session));
            let known = self.core.sessions.check(who.client, inode, session);
            known.is_some()
        });
        let (client, ended) = (who.client, sessions.clone());
        let body = move |tx: &mut Tx<'_>| ops::sync::close_many(tx, &who, &sessions);
        if let Some(done) = self.core.hurry_for(None, &body) {
            let ((), version) = done?;
            self.durable(version).await?;
        } else {
            self.blocking(move |core| core.write(body)).await?;
        }
        let last = ended.iter().fold(false, |last, one| {
            let (inode, session) = (InodeId(one.inode), SessionId(one.session));
            last | self.core.sessions.remove(inode, session)
        });
        if last {
            // Nobody is woken for nothing.
            let counts = self.core.read_cached_for(client, ops::report::counts);
            let garbage = counts.transpose()?.map(|(_, garbage)| garbage);
            if garbage != Some(0) {
                self.core.garbage.notify_one();
            }
        }
        Ok(pb::CloseManyReply {})
    }

    /// Applies a report of a writer, settling the length from the chunks where it must.
    async fn report(self: &Arc<Self>, req: pb::SyncRequest, close: bool) -> Result<pb::AttrReply> {
        let who = Arc::new(self.who(req.caller.as_ref())?);
        self.core.sessions.touch(who.client, 0, who.acknowledged)?;
        let inode = InodeId(req.inode);
        let req = Arc::new(req);
        let mut settled = None;
        loop {
            let (who, req) = (who.clone(), req.clone());
            let client = Some(who.client);
            let body = move |tx: &mut Tx<'_>| ops::sync::sync(tx, &who, &req, close, settled);
            let attempt = if let Some(done) = self.core.hurry_for(client, &body) {
                let (report, version) = done?;
                if matches!(report, Report::Done(_)) {
                    self.durable(version).await?;
                }
                report
            } else {
                self.blocking(move |core| core.write_for(client, body))
                    .await?
            };
            match attempt {
                Report::Done(attr) => {
                    return Ok(pb::AttrReply {
                        attr: Some(attr),
                        log: Some(self.core.position(None)),
                        ..pb::AttrReply::default()
                    });
                }
                Report::Blocked(inode) => self.finish_trim(inode).await?,
                Report::Settle(layout, epoch) => {
                    let end = self.chunks.end(inode, layout).await?;
                    settled = Some(Settled { epoch, end });
                }
            }
        }
    }
}

fn changed(reply: &pb::AttrReply) -> (Option<InodeId>, SessionId) {
    (reply.attr.map(|attr| InodeId(attr.inode)), SessionId(0))
}

fn opened(reply: &pb::OpenReply) -> (Option<InodeId>, SessionId) {
    (
        reply.attr.map(|attr| InodeId(attr.inode)),
        SessionId(reply.session),
    )
}
