//! `emberfs rm -r`: removes whole trees by one request each; the servers empty them in the background.

use emberfs_client::{Client, ClientConfig, Creds, ErrorCode};

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
    let mut removed = 0;
    let mut outcome = Ok(());
    for path in &args.paths {
        match remove(&client, &creds, path).await {
            Ok(()) => removed += 1,
            Err(failure) => {
                outcome = Err(failure);
                break;
            }
        }
    }
    client.shutdown().await;
    outcome?;
    let trees = show::count(removed, "tree");
    say(format!(
        "{trees} removed; space comes back in the background"
    ))?;
    Ok(Exit::Success)
}

async fn remove(client: &Client, creds: &Creds, path: &str) -> Result<()> {
    let (parent, name) = cluster_path::split(path)?;
    let parent = cluster_path::parent(client, creds, path, parent).await?;
    match client.remove_tree(creds, parent, name.as_bytes()).await {
        Ok(_) => Ok(()),
        Err(error) if error.code == ErrorCode::NotDirectory => fail(format!(
            "{path}: is not a directory; remove it through a mount"
        )),
        Err(error) if error.code == ErrorCode::NotPermitted => fail(format!(
            "{path}: only root may remove a tree by one request"
        )),
        Err(error) => Err(error).context(path),
    }
}
