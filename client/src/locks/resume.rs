//! Taking over the locks of an earlier process of this client.

use std::sync::atomic::Ordering;

use emberfs_proto::ids::InodeId;
use emberfs_proto::locks::LockSpace;
use emberfs_proto::wire::metadata::MetadataCaller;
use emberfs_proto::{Error, ErrorCode, Result, pb};

use super::book::Key;
use crate::core::Core;
use crate::meta_rpc::Effect;
use crate::{Client, Creds};

impl Client {
    /// Takes over the locks of an earlier process of this client, before the first lock of its own. What that process
    /// waited for is given up, and its late requests are refused.
    ///
    /// Answers the files on which [`LockSpace::Append`] is held by owner 0. [`ErrorCode::LockLost`]: the metadata server
    /// has restarted meanwhile and nobody knows what was held; locks can be taken again. [`ErrorCode::Unsupported`]: it is
    /// older than this client.
    pub async fn resume_locks(&self) -> Result<Vec<InodeId>> {
        let locks = &self.core.locks;
        let ticket = locks.ticket();
        let mut appending = Vec::new();
        let mut after = 0;
        loop {
            let page = self.core.ask_resume(ticket, after).await?;
            for owned in &page.owners {
                let (owner, ranges) = owned.parse()?;
                let key = Key {
                    inode: InodeId(owner.inode),
                    space: owner.lock_space()?,
                    number: owner.owner,
                };
                if key.space == LockSpace::Append && key.number == 0 {
                    appending.push(key.inode);
                }
                locks.owner(key).adopt(&ranges);
            }
            let last = page.owners.last().and_then(|owned| owned.owner);
            match last {
                Some(last) if !page.end && last.inode > after => after = last.inode,
                _ if page.end => {
                    // Last: a reclaim in between, without it, tells nothing rather than a part.
                    locks.tenure.store(page.tenure, Ordering::Release);
                    return Ok(appending);
                }
                _ => {
                    let what = "the metadata server's list of locks does not go on";
                    return Err(Error::new(ErrorCode::Protocol, what));
                }
            }
        }
    }
}

impl Core {
    async fn ask_resume(&self, ticket: u64, after: u64) -> Result<pb::ResumeLocksReply> {
        let send = |server: MetadataCaller, caller| async move {
            let request = pb::ResumeLocksRequest {
                caller: Some(caller),
                ticket,
                after,
            };
            self.heed(server.resume_locks(request).await)
        };
        let me = Creds::default();
        let meta = &self.meta;
        meta.run("resume_locks", &me, Effect::Reads, send).await
    }
}
