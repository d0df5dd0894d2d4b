//! Quotas of directories, users and groups.

use emberfs_proto::{Result, pb};

use crate::meta_rpc::rpc;
use crate::{Client, Creds};

impl Client {
    /// Sets, changes or clears a quota, as root; answers what is in force then. May be repeated.
    pub async fn set_quota(
        &self,
        creds: &Creds,
        request: pb::SetQuotaRequest,
    ) -> Result<Option<pb::QuotaInfo>> {
        let reply = rpc!(self.core.meta, creds, Reads, set_quota, request.clone())?;
        Ok(reply.quotas.into_iter().next())
    }

    /// All quotas and what is used of them, in one snapshot.
    pub async fn quotas(&self, creds: &Creds) -> Result<Vec<pb::QuotaInfo>> {
        let request = pb::ListQuotasRequest { caller: None };
        Ok(rpc!(self.core.meta, creds, Reads, list_quotas, request)?.quotas)
    }
}
