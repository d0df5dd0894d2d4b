//! `emberfs rm -r`: removes whole trees by one request each; the servers empty them in the background.

use emberfs_client::attr::AttrExt;
use emberfs_client::{Client, ClientConfig, Creds, ErrorCode};
use emberfs_proto::ids::InodeId;

use crate::cli::RmArgs;
use crate::cluster_path;
use crate::failure::{Context, Exit, Result, fail};
use crate::output::say;
use crate::rpc::Seat;
use crate::show;

/// `emberfs rm`.
pub(crate) async fn rm(cluster: Option<String>, args: RmArgs) -> Result<Exit> {
    let seat = Seat::find(cluster, &args.dir)?;
    let creds = cluster_path::creds();
    let config = ClientConfig {
        meta: seat.address,
        ..ClientConfig::default()
    };
    let client = Client::connect(config)
        .await
        .context("cannot reach the cluster")?;
    let (mut removed, mut kept) = (0, false);
    let mut outcome = Ok(());
    for path in &args.paths {
        match remove(&client, &creds, path).await {
            Ok(to_trash) => {
                removed += 1;
                kept |= to_trash;
            }
            Err(failure) => {
                outcome = Err(failure);
                break;
            }
        }
    }
    client.shutdown().await;
    outcome?;
    let trees = show::count(removed, "tree");
    let then = if kept {
        "what is in the trash now (`emberfs trash list`) takes its space until it expires or `emberfs trash empty`"
    } else {
        "space comes back in the background"
    };
    say(format!("{trees} removed; {then}"))?;
    Ok(Exit::Success)
}

/// Whether the tree has gone to the trash.
async fn remove(client: &Client, creds: &Creds, path: &str) -> Result<bool> {
    let (parent, name) = cluster_path::split(path)?;
    let parent = cluster_path::parent(client, creds, path, parent).await?;
    let kept = is_kept(client, creds, parent, name).await;
    match client.remove_tree(creds, parent, name.as_bytes()).await {
        Ok(_) => Ok(kept),
        Err(error) if error.code == ErrorCode::NotDirectory => fail(format!(
            "{path}: is not a directory; remove it through a mount"
        )),
        Err(error) if error.code == ErrorCode::NotPermitted => fail(format!(
            "{path}: only root may remove a tree by one request"
        )),
        Err(error) => Err(error).context(path),
    }
}

/// Whether a tree goes to the trash when it is removed. For people only: it may be said otherwise meanwhile, and what
/// is wrong with the path the removal tells.
async fn is_kept(client: &Client, creds: &Creds, parent: InodeId, name: &str) -> bool {
    let Ok(tree) = client.lookup(creds, parent, name.as_bytes()).await else {
        return false;
    };
    let policy = client.trash_policy(creds, tree.id()).await;
    policy.is_ok_and(|policy| policy.keep > 0)
}
