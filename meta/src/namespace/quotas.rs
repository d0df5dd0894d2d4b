//! Quotas as requests, and the count in the background.

use std::sync::Arc;
use std::time::Duration;

use emberfs_proto::{ErrorCode, Result, pb};
use tokio_util::sync::CancellationToken;

use super::core::Core;
use super::records::decode;
use super::tx::Tx;
use super::usage::table::{Holder, Table};
use super::{Namespace, keys, ops};
use crate::kv;

/// Pause after a failure of the count.
const PAUSE: Duration = Duration::from_secs(1);

impl Namespace {
    /// Makes room for a writer.
    pub(crate) async fn reserve(&self, req: pb::ReserveRequest) -> Result<pb::AttrReply> {
        let who = self.who(req.caller.as_ref())?;
        self.core.sessions.touch(who.client, 0, who.acknowledged)?;
        self.blocking(move |core| {
            core.write_for(Some(who.client), |tx| ops::quota::reserve(tx, &who, &req))
        })
        .await
    }

    /// Sets, changes or clears a quota; answers it with its usage.
    pub(crate) async fn set_quota(&self, req: pb::SetQuotaRequest) -> Result<pb::ListQuotasReply> {
        let who = self.who(req.caller.as_ref())?;
        self.core.sessions.touch(who.client, 0, who.acknowledged)?;
        let holder = Holder::of(req.subject.as_ref())?;
        self.blocking(move |core| {
            core.change_quotas(|tx, table| ops::quota::set(tx, &who, table, &req))?;
            core.read(|tx| ops::quota::list(tx, Some(holder)))
        })
        .await
    }

    /// All quotas.
    pub(crate) async fn list_quotas(
        &self,
        req: pb::ListQuotasRequest,
    ) -> Result<pb::ListQuotasReply> {
        self.look(req.caller.as_ref(), |tx, _| ops::quota::list(tx, None))
            .await
    }

    /// Clears quotas of directories that were removed.
    pub(crate) async fn sweep_quotas(&self) -> Result<()> {
        self.blocking(|core| {
            let trees: Vec<_> = core.quotas.current().trees().collect();
            let removed = |tx: &mut Tx<'_>| {
                for (dir, _) in &trees {
                    if tx.inode(*dir)?.is_none() {
                        return Ok(true);
                    }
                }
                Ok(false)
            };
            if !trees.is_empty() && core.read(removed)? {
                core.change_quotas(ops::quota::clear_removed)?;
            }
            Ok(())
        })
        .await
    }

    /// Counts what is to be counted, to the end.
    pub(crate) async fn count(&self) -> Result<()> {
        while self.blocking(Core::count_some).await? {}
        Ok(())
    }
}

/// Counts in the background until `stop`.
pub(crate) async fn run(namespace: Arc<Namespace>, stop: CancellationToken) {
    loop {
        let counted = tokio::select! {
            () = stop.cancelled() => return,
            counted = namespace.count() => counted,
        };
        if let Err(error) = &counted {
            tracing::warn!(%error, "counting for a quota failed; it will be tried again");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = namespace.core.quotas.work.notified() => {}
            () = tokio::time::sleep(PAUSE), if counted.is_err() => {}
        }
    }
}

impl Core {
    pub(super) fn load_quotas(&self) -> Result<()> {
        let mut table = Table::default();
        let stored = self.read(|tx| tx.get(keys::OWNERS))?;
        table.owners = stored.unwrap_or_default();
        self.each(keys::quotas(), |key, value| {
            let parsed = keys::parse_quota(key);
            if let Some((kind, id)) = parsed {
                let kind = pb::QuotaKind::try_from(i32::from(kind));
                let kind = kind.unwrap_or_default().into();
                let holder = Holder::of(Some(&pb::QuotaSubject { kind, id }))?;
                table.put(holder, decode(value)?);
            }
            Ok(())
        })?;
        self.quotas.replace(table);
        Ok(())
    }

    /// Changes quotas, while nothing else changes anything.
    pub(super) fn change_quotas(
        &self,
        mut body: impl FnMut(&mut Tx<'_>, &mut Table) -> Result<()>,
    ) -> Result<()> {
        let _gate = self.quotas.gate.write();
        let changed = kv::run_idempotent(&*self.engine, &self.policy, |txn| {
            let mut table = (*self.quotas.current()).clone();
            body(&mut Tx::new(self, txn, None), &mut table)?;
            Ok(table)
        });
        match changed {
            Ok(table) => self.quotas.replace(table),
            Err(error) => {
                if error.code == ErrorCode::MaybeCommitted {
                    self.load_quotas()?;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// One batch of what is to be counted; false if nothing is left.
    pub(super) fn count_some(&self) -> Result<bool> {
        if !self.quotas.current().is_incomplete() {
            return Ok(false);
        }
        let more = self.write(ops::count::owners)?;
        if self.write(ops::count::trees)? || more {
            return Ok(true);
        }
        self.change_quotas(ops::count::complete)?;
        Ok(self.quotas.current().is_incomplete())
    }
}
