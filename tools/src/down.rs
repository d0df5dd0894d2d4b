//! `emberfs down`: stops the cluster of this host, and deletes it if asked.

use futures::future::join_all;

use crate::cli::DownArgs;
use crate::cluster_dir::{ClusterDir, META, MOUNT};
use crate::failure::{Exit, Failure, Result};
use crate::local::LocalCluster;
use crate::output::say;
use crate::progress::Progress;

/// `emberfs down [--purge] [--force]`.
pub(crate) async fn down(args: DownArgs) -> Result<Exit> {
    let dir = ClusterDir::at(&args.dir.dir)?;
    let plan = dir.require()?;
    let lock = dir.lock()?;
    let cluster = LocalCluster { dir, plan };
    stop_all(&cluster, args.force).await?;
    let here = cluster.dir.root().display();
    if args.purge {
        let progress = Progress::start("Deleting the data");
        cluster.dir.purge(&cluster.plan)?;
        drop(progress);
        say(format_args!("Stopped and deleted the cluster in {here}"))?;
    } else {
        say(format_args!(
            "Stopped the cluster in {here}; `emberfs up --dir {here}` brings it back"
        ))?;
    }
    drop(lock);
    Ok(Exit::Success)
}

/// Mount first, so that everything is flushed while all servers are there; the metadata server last,
/// so that storage servers can hand over.
async fn stop_all(cluster: &LocalCluster, force: bool) -> Result<()> {
    let progress = Progress::start("Unmounting");
    if let Some(mount) = &cluster.plan.mount {
        cluster.stop(MOUNT, force).await.map_err(|failure| {
            Failure::new(format!(
                "{failure}; the cluster still runs; `emberfs down --force` takes the mount away"
            ))
        })?;
        if mount.created {
            // Only an empty directory goes.
            let _ = std::fs::remove_dir(&mount.path);
        }
    }
    progress.step("Stopping the storage servers");
    let names: Vec<_> = cluster.plan.storage_names().collect();
    for outcome in join_all(names.iter().map(|name| cluster.stop(name, force))).await {
        outcome?;
    }
    progress.step("Stopping the metadata server");
    cluster.stop(META, force).await?;
    Ok(())
}
