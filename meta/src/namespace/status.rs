//! What status and fsck ask.

use std::time::Instant;

use emberfs_proto::ids::InodeId;
use emberfs_proto::{Result, pb};

use super::{Namespace, ops};

impl Namespace {
    /// The space of the cluster, or what is left of it where the inode is.
    pub(crate) async fn statfs(&self, req: pb::StatFsRequest) -> Result<pb::StatFsReply> {
        let replicas = self.core.map.borrow().replicas;
        let (space, inode) = ((self.space)(), InodeId(req.inode));
        self.look(req.caller.as_ref(), move |tx, _| {
            let (inodes, _) = ops::report::counts(tx)?;
            let whole = ops::report::statfs(inodes, space, replicas);
            ops::quota::statfs(tx, inode, whole)
        })
        .await
    }

    pub(crate) async fn summary(&self) -> Result<pb::SummaryReply> {
        let (inodes, garbage) = self.blocking(|core| core.read(ops::report::counts)).await?;
        let clients = self.core.sessions.clients(Instant::now());
        let (sessions, write_sessions) = self.core.sessions.counts();
        Ok(pb::SummaryReply {
            cluster: self.cluster.to_bytes(),
            inodes,
            clients: clients.len() as u64,
            sessions,
            write_sessions,
            garbage,
            engine: self.core.engine.name().to_owned(),
            client_list: clients
                .into_iter()
                .map(|c| pb::ClientInfo {
                    client: c.client.to_bytes(),
                    host: c.host,
                    sessions: c.sessions,
                    idle_ms: c.idle.as_millis() as u64,
                })
                .collect(),
            uptime_ms: self.started.elapsed().as_millis() as u64,
        })
    }

    /// A page of files, in the order of their numbers. An answer without files that is not the end
    /// cannot happen: directories are skipped until a file or the end is found.
    pub(crate) async fn list_inodes(
        &self,
        req: pb::ListInodesRequest,
    ) -> Result<pb::ListInodesReply> {
        let mut attrs = Vec::new();
        let mut after = InodeId(req.after);
        loop {
            let (page, next) = self
                .blocking(move |core| {
                    let mut page = Vec::new();
                    let next =
                        core.read(|tx| ops::report::list_files(tx, after, req.limit, &mut page))?;
                    Ok((page, next))
                })
                .await?;
            attrs.extend(page);
            match next {
                Some(next) if attrs.is_empty() => after = next,
                next => {
                    let end = next.is_none();
                    return Ok(pb::ListInodesReply { attrs, end });
                }
            }
        }
    }
}
