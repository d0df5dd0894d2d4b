//! Which directories keep what is removed from them.

use emberfs_client::attr::AttrExt;
use emberfs_proto::pb;
use serde::Serialize;

use super::{Desk, text};
use crate::cluster_path;
use crate::failure::{Context, Result};
use crate::output::say;
use crate::show;

/// The shape of `emberfs trash status --json`.
#[derive(Serialize)]
struct View<'a> {
    path: &'a str,
    own_seconds: Option<u64>,
    keep_seconds: u64,
    from: Option<String>,
}

impl Desk {
    /// Changes what a directory says.
    pub(super) async fn set(&self, path: &str, keep: Option<u64>) -> Result<()> {
        let dir = cluster_path::resolve(&self.client, &self.creds, path).await?;
        let policy = self.client.set_trash(&self.creds, dir.id(), keep).await;
        say(sentence(path, &policy.context(path)?))
    }

    /// Shows what holds for a directory.
    pub(super) async fn status(&self, path: &str, json: bool) -> Result<()> {
        let dir = cluster_path::resolve(&self.client, &self.creds, path).await?;
        let policy = self.client.trash_policy(&self.creds, dir.id()).await;
        let policy = policy.context(path)?;
        if !json {
            return say(sentence(path, &policy));
        }
        let view = View {
            path,
            own_seconds: policy.own,
            keep_seconds: policy.keep,
            from: (!policy.from.is_empty()).then(|| text(&policy.from)),
        };
        say(serde_json::to_string_pretty(&view).context("cannot write JSON")?)
    }
}

fn sentence(path: &str, policy: &pb::TrashPolicy) -> String {
    let why = match policy.own {
        Some(_) => String::new(),
        None if policy.from.is_empty() => {
            return format!("{path}: what is removed below is gone; `emberfs trash on` keeps it");
        }
        None => format!(", as {} says", text(&policy.from)),
    };
    if policy.keep == 0 {
        return format!("{path}: what is removed below is gone{why}");
    }
    let keep = show::duration_ms(policy.keep.saturating_mul(1000));
    format!("{path}: what is removed below stays in the trash for {keep}{why}")
}
