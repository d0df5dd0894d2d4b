//! `emberfs rm -r`: removes whole trees by one request each; the servers empty them in the background.

use emberfs_client::attr::AttrExt;
use emberfs_client::{Client, ClientConfig, Creds, ErrorCode};

use crate::cli::RmArgs;
use crate::failure::{Context, Exit, Result, fail};
use crate::mount_table;
use crate::output::say;
use crate::rpc::Seat;
use crate::show;

/// `emberfs rm`.
pub(crate) async fn rm(cluster: Option<String>, args: RmArgs) -> Result<Exit> {
    let seat = Seat::find(cluster, &args.dir)?;
    let creds = Creds {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        groups: Vec::new(),
    };
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
    let trimmed = path.trim_end_matches('/');
    let Some((parent, name)) = trimmed.rsplit_once('/').filter(|_| path.starts_with('/')) else {
        let meant = in_cluster(path).unwrap_or_else(|| format!("/{trimmed}"));
        return fail(format!(
            "{path}: give the path in the cluster, from its root on, such as {meant}"
        ));
    };
    if matches!(name, "" | "." | "..") {
        return fail(format!("{path}: names no tree below the root"));
    }
    let parent = match client.resolve(creds, parent).await {
        Ok(parent) => parent,
        Err(error) => {
            let hint = in_cluster(path)
                .filter(|_| error.code == ErrorCode::NotFound)
                .map(|meant| format!("; in the cluster, {path} on this host is {meant}"))
                .unwrap_or_default();
            let what = format!("{path}: its directory cannot be found{hint}");
            return Err(error).context(what);
        }
    };
    let removal = client
        .remove_tree(creds, parent.id(), name.as_bytes())
        .await;
    match removal {
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

/// What a path of this host that lies on a mount is called in its cluster.
pub(crate) fn in_cluster(path: &str) -> Option<String> {
    let path = std::path::absolute(path).ok()?;
    let mount = mount_table::above(&path).ok()??;
    let rest = path.strip_prefix(&mount.path).ok()?;
    (mount.fs_type == "fuse.emberfs").then(|| format!("/{}", rest.display()))
}
