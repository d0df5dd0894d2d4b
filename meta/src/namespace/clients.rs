//! Requests about the client itself: it attaches, and says that it is alive.

use std::time::Instant;

use emberfs_proto::ids::{ClusterId, InodeId};
use emberfs_proto::{Error, ErrorCode, Result, pb, wire};

use super::records::ClientRecord;
use super::{Namespace, keys};
use crate::sessions::superseded;

impl Namespace {
    pub(crate) async fn attach(&self, req: pb::AttachRequest) -> Result<pb::AttachReply> {
        let who = self.who(req.caller.as_ref())?;
        if !req.cluster.is_empty() && ClusterId::from_bytes(&req.cluster) != Some(self.cluster) {
            let what = format!(
                "this metadata server belongs to cluster {}, the client to another; check the address",
                self.cluster
            );
            return Err(Error::new(ErrorCode::WrongCluster, what));
        }
        if !(wire::MIN_VERSION..=wire::MAX_VERSION).contains(&req.protocol_version) {
            let what = format!(
                "the client speaks protocol version {}, this server {} to {}; upgrade the older one",
                req.protocol_version,
                wire::MIN_VERSION,
                wire::MAX_VERSION
            );
            return Err(Error::new(ErrorCode::IncompatibleVersion, what));
        }
        let (cluster, lease) = (self.cluster, self.core.sessions.lease());
        self.blocking(move |core| {
            let attach = rand::random_range(1..=u64::MAX);
            let (root, tenure) = core.write(|tx| {
                // The locks of a client that was not given up stay its own.
                let before: Option<ClientRecord> = tx.get(&keys::client(who.client))?;
                let before = before.unwrap_or_default();
                if before.instance > who.instance {
                    return Err(superseded(who.client, who.instance, before.instance));
                }
                let tenure = before.tenure;
                let record = ClientRecord {
                    host: req.host.clone(),
                    // A later process does not know at first what an earlier one has acknowledged.
                    acknowledged: before.acknowledged.max(who.acknowledged),
                    attach,
                    tenure,
                    instance: who.instance,
                };
                tx.put(&keys::client(who.client), &record);
                let root = tx.live(InodeId::ROOT)?;
                Ok((tx.attr(&root)?, tenure))
            })?;
            core.sessions.attach(
                who.client,
                &req.host,
                (attach, who.instance),
                Instant::now(),
            );
            if tenure != 0 {
                core.locks.begin(who.client, tenure);
            }
            tracing::info!(client = %who.client, host = req.host, "client attached");
            Ok(pb::AttachReply {
                cluster: cluster.to_bytes(),
                protocol_version: wire::MAX_VERSION.min(req.protocol_version),
                root: Some(root),
                lease_ms: lease.as_millis() as u32,
            })
        })
        .await
    }

    pub(crate) async fn keep_alive(&self, req: pb::KeepAliveRequest) -> Result<pb::KeepAliveReply> {
        let who = self.who(req.caller.as_ref())?;
        let sessions = &self.core.sessions;
        let pulse = sessions.keep_alive(who.client, who.acknowledged, Instant::now());
        if let Some(upto) = pulse.prune {
            self.blocking(move |core| core.forget_answers(who.client, upto))
                .await?;
        }
        Ok(pb::KeepAliveReply {
            lease_ms: self.core.sessions.lease().as_millis() as u32,
            sessions_lost: pulse.lost,
        })
    }
}
