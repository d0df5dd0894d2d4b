//! `emberfs up`: a whole cluster on this host, or whatever of it is missing.

use std::path::PathBuf;
use std::time::Duration;

use emberfs_proto::pb;
use futures::future::join_all;

use crate::cli::{DEFAULT_MOUNT, UpArgs};
use crate::cluster_dir::{
    ClusterDir, META, MOUNT, MetaPlan, MountPlan, Plan, Settings, StoragePlan, absolute, make_dir,
};
use crate::failure::{Context, Exit, Result, fail};
use crate::local::LocalCluster;
use crate::mount_table;
use crate::output::say;
use crate::ports::{PickLock, PortPicker};
use crate::progress::Progress;
use crate::rpc;

/// Usual port of the metadata server.
const META_PORT: u16 = 7400;
/// Usual data ports are this plus the node's id.
pub(crate) const DATA_PORT: u16 = 7500;
/// Usual management ports are this plus the node's id.
pub(crate) const ADMIN_PORT: u16 = 7600;
/// Storage servers and replicas unless told otherwise.
const DEFAULT_STORAGE: u32 = 3;
/// How long all servers may take to find each other.
const FORM_LIMIT: Duration = Duration::from_mins(1);
/// How long replicas that were down may take to catch up before `up` says so and goes on.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(10);

/// `emberfs up`.
pub(crate) async fn up(args: UpArgs) -> Result<Exit> {
    let dir = ClusterDir::at(&args.dir.dir)?;
    let settings = Settings::parse(&args.settings)?;
    if dir.load()?.is_none() {
        // A refused request leaves nothing behind.
        shape(&args)?;
    }
    make_dir(dir.root())?;
    let _lock = dir.lock()?;
    let existing = dir.load()?;
    let fresh = existing.is_none();
    let picking = fresh.then(PickLock::take);
    let mut plan = match existing {
        Some(plan) => {
            check_same(&args, &settings, &dir, &plan)?;
            plan
        }
        None => new_plan(&args)?,
    };
    dir.prepare(&plan, &settings)?;
    plan_mount(&args, &dir, &mut plan).await?;
    dir.save(&plan)?;
    let cluster = LocalCluster { dir, plan };
    let started = bring_up(&cluster).await?;
    drop(picking);
    describe(&cluster, fresh, &started)?;
    Ok(Exit::Success)
}

/// Storage servers and replicas of a new cluster.
fn shape(args: &UpArgs) -> Result<(u32, u32)> {
    let storage = args.storage.unwrap_or(DEFAULT_STORAGE);
    let replicas = args.replicas.unwrap_or(DEFAULT_STORAGE.min(storage));
    if replicas > storage {
        return fail(format!(
            "{replicas} replicas need {replicas} storage servers, not {storage}: \
             give --storage {replicas} or --replicas {storage}"
        ));
    }
    Ok((storage, replicas))
}

fn new_plan(args: &UpArgs) -> Result<Plan> {
    let (storage, replicas) = shape(args)?;
    let mut ports = PortPicker::default();
    let meta = MetaPlan {
        port: ports.pick(META_PORT)?,
    };
    let servers = (1..=storage as u16).map(|node| {
        let port = ports.pick(DATA_PORT + node)?;
        Ok(StoragePlan {
            port,
            admin_port: ports.pick(ADMIN_PORT + node)?,
            removed: false,
        })
    });
    let servers = servers.collect::<Result<Vec<_>>>()?;
    let mut plan = Plan::new(replicas, meta, servers);
    plan.disk_root = args.disk_root.as_deref().map(absolute).transpose()?;
    Ok(plan)
}

/// A cluster that exists keeps its shape.
fn check_same(args: &UpArgs, settings: &Settings, dir: &ClusterDir, plan: &Plan) -> Result<()> {
    let shown = dir.root().display();
    let differ = |what: &str, has: String, asked: String| {
        fail(format!(
            "the cluster in {shown} has {what} {has}, not {asked}: leave the option out, or make another \
             cluster with another --dir"
        ))
    };
    let storage = plan.nodes().count() as u32;
    if let Some(asked) = args.storage.filter(|&n| n != storage) {
        return differ("--storage", storage.to_string(), asked.to_string());
    }
    if let Some(asked) = args.replicas.filter(|&k| k != plan.replicas) {
        return differ("--replicas", plan.replicas.to_string(), asked.to_string());
    }
    if let Some(asked) = args.disk_root.as_deref().map(absolute).transpose()? {
        let has = plan
            .disk_root
            .clone()
            .unwrap_or_else(|| dir.root().to_owned());
        if has != asked {
            return differ(
                "--disk-root",
                has.display().to_string(),
                asked.display().to_string(),
            );
        }
    }
    if !settings.is_empty() {
        return fail(format!(
            "the cluster in {shown} exists: --set is for new ones; edit {shown}/conf/*.toml, then \
             stop and start the server"
        ));
    }
    Ok(())
}

/// Decides where to mount and checks that it can be done before anything is started.
async fn plan_mount(args: &UpArgs, dir: &ClusterDir, plan: &mut Plan) -> Result<()> {
    let asked: Option<PathBuf> = args.mount.as_deref().map(absolute).transpose()?;
    let options = args.mount_options.clone();
    if args.no_mount {
        if let Some(mount) = plan.mount.as_ref()
            && dir_process_runs(dir).await?
        {
            return fail(format!(
                "the cluster is mounted on {}: unmount it first with `emberfs stop --dir {} {MOUNT}`",
                mount.path.display(),
                dir.root().display()
            ));
        }
        plan.mount = None;
        return Ok(());
    }
    let mut mount = match (plan.mount.take(), asked) {
        (Some(old), Some(path)) if old.path != path => {
            if dir_process_runs(dir).await? {
                return fail(format!(
                    "the cluster is mounted on {}, not on {}: unmount it first with `emberfs stop --dir {} {MOUNT}`",
                    old.path.display(),
                    path.display(),
                    dir.root().display()
                ));
            }
            if old.created {
                // Only an empty directory goes.
                let _ = std::fs::remove_dir(&old.path);
            }
            MountPlan {
                path,
                created: false,
                options: old.options,
            }
        }
        (Some(old), _) => old,
        (None, Some(path)) => MountPlan {
            path,
            created: false,
            options: String::new(),
        },
        (None, None) => {
            let path = absolute(DEFAULT_MOUNT.as_ref())?;
            MountPlan {
                path,
                created: false,
                options: String::new(),
            }
        }
    };
    if let Some(options) = options {
        mount.options = options;
    }
    emberfs_fuse::MountOptions::parse(&mount.options)?;
    // What is mounted there already is looked at when the mount is started.
    if mount_table::find(&mount.path)?.is_none() {
        mount.created |= mount_table::prepare_mountpoint(&mount.path)?;
    }
    plan.mount = Some(mount);
    Ok(())
}

async fn dir_process_runs(dir: &ClusterDir) -> Result<bool> {
    let process = crate::process::Process::new(MOUNT, dir.stem(MOUNT));
    Ok(process.running().await?.is_some())
}

/// Starts what is down; answers the names of what was started.
async fn bring_up(cluster: &LocalCluster) -> Result<Vec<String>> {
    let progress = Progress::start("Starting the metadata server");
    let mut started = Vec::new();
    if cluster.start(META).await? {
        started.push(META.to_owned());
    }
    progress.step("Starting the storage servers");
    let names: Vec<_> = cluster.plan.storage_names().collect();
    let outcomes = join_all(names.iter().map(|name| cluster.start(name))).await;
    for (name, outcome) in names.into_iter().zip(outcomes) {
        if outcome? {
            started.push(name);
        }
    }
    progress.step("Waiting for the storage servers to form chains");
    form(cluster, &progress).await?;
    if cluster.plan.mount.is_some() {
        progress.step("Mounting");
        if cluster.start(MOUNT).await? {
            started.push(MOUNT.to_owned());
        }
    }
    Ok(started)
}

/// Waits until every chain can be used, and a little longer for all replicas.
async fn form(cluster: &LocalCluster, progress: &Progress) -> Result<()> {
    let address = cluster.plan.address();
    let nodes: Vec<_> = cluster.plan.nodes().collect();
    let mut client = rpc::cluster(&address).await?;
    let watch = client.watch_cluster(pb::WatchRequest::default());
    let mut maps = rpc::answer(&address, rpc::CALL_LIMIT, watch).await?;
    let mut last = "no answer from the cluster manager".to_owned();
    let usable = async {
        while let Some(map) = maps.message().await? {
            match missing(&map, &nodes) {
                None => return Ok(Some(map)),
                Some(what) => last = what,
            }
        }
        Ok::<_, tonic::Status>(None)
    };
    let map = match tokio::time::timeout(FORM_LIMIT, usable).await {
        Ok(result) => result.context("the metadata server broke off")?,
        Err(_) => None,
    };
    let Some(map) = map else {
        let run = cluster.dir.stem("").display().to_string();
        return fail(format!(
            "the cluster does not form: {last}; see the logs in {run}"
        ));
    };
    if lagging(&map) == 0 {
        return Ok(());
    }
    progress.step("Waiting for replicas to catch up");
    let mut left = lagging(&map);
    let whole = async {
        while let Ok(Some(map)) = maps.message().await {
            left = lagging(&map);
            if left == 0 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(CATCH_UP_LIMIT, whole).await;
    if left > 0 {
        progress.note(&format!(
            "{left} replicas are still catching up; the cluster can be used meanwhile (`emberfs status`)"
        ));
    }
    Ok(())
}

/// What keeps the cluster from being usable.
fn missing(map: &pb::ClusterMapMsg, nodes: &[u32]) -> Option<String> {
    let alive = |id| map.nodes.iter().any(|node| node.id == id && node.alive);
    if let Some(node) = nodes.iter().find(|&&id| !alive(id)) {
        return Some(format!("storage-{node} has not registered"));
    }
    if map.chains.is_empty() {
        return Some("there are no chains yet".to_owned());
    }
    let dead = map.chains.iter().find(|chain| serving(map, chain) == 0)?;
    Some(format!("chain {} has no replica that serves", dead.id))
}

/// Replicas that do not serve.
fn lagging(map: &pb::ClusterMapMsg) -> usize {
    map.chains
        .iter()
        .map(|chain| chain.targets.len() - serving(map, chain))
        .sum()
}

fn serving(map: &pb::ClusterMapMsg, chain: &pb::ChainMsg) -> usize {
    let serves = |id: &&u64| {
        let target = map.targets.iter().find(|target| target.id == **id);
        target.is_some_and(|target| target.state() == pb::PublicState::Serving)
    };
    chain.targets.iter().filter(serves).count()
}

fn describe(cluster: &LocalCluster, fresh: bool, started: &[String]) -> Result<()> {
    let LocalCluster { dir, plan } = cluster;
    let here = dir.root().display();
    let mut lines = Vec::new();
    lines.push(if started.is_empty() {
        format!("Already up: {here}")
    } else if fresh {
        format!("Made a cluster in {here}")
    } else {
        format!("Started {} of {here}", started.join(", "))
    });
    lines.push(format!(
        "Cluster {}: {} storage servers, {} replicas of each chunk",
        plan.address(),
        plan.nodes().count(),
        plan.replicas
    ));
    let mount = plan.mount.as_ref().map(|mount| mount.path.display());
    if let Some(mount) = &mount {
        lines.push(format!("Mounted on {mount}"));
    }
    let target = mount.map_or_else(|| "MNT".into(), |mount| mount.to_string());
    lines.push(format!(
        "Try next:\n  cp -r some-data {target}/\n  emberfs status --dir {here}\n  emberfs down --dir {here}"
    ));
    say(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn args(line: &[&str]) -> UpArgs {
        let line = ["emberfs", "up"].iter().chain(line);
        match Cli::try_parse_from(line).expect("valid").command {
            Command::Up(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn more_replicas_than_servers_are_refused_with_a_way_out() {
        let error = new_plan(&args(&["--storage", "2", "--replicas", "3"])).expect_err("refused");
        let error = error.to_string();
        assert!(
            error.contains("--storage 3") && error.contains("--replicas 2"),
            "{error}"
        );
    }

    #[test]
    fn defaults_are_three_and_three_and_one_server_holds_one_copy() {
        let plan = new_plan(&args(&[])).expect("valid");
        assert_eq!((plan.storage.len(), plan.replicas), (3, 3));
        let plan = new_plan(&args(&["--storage", "1"])).expect("valid");
        assert_eq!((plan.storage.len(), plan.replicas), (1, 1));
    }

    #[test]
    fn an_existing_cluster_keeps_its_shape() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let dir = ClusterDir::at(temp.path()).expect("absolute");
        let plan = new_plan(&args(&["--storage", "3", "--replicas", "2"])).expect("valid");
        let check = |line: &[&str]| {
            let args = args(line);
            let settings = Settings::parse(&args.settings).expect("valid");
            check_same(&args, &settings, &dir, &plan).map_err(|e| e.to_string())
        };
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&["--storage", "3", "--replicas", "2"]), Ok(()));
        for other in [
            ["--storage", "4"],
            ["--replicas", "3"],
            ["--disk-root", "/d"],
        ] {
            let error = check(&other).expect_err("refused");
            assert!(
                error.contains(other[0]) && error.contains("another --dir"),
                "{error}"
            );
        }
        assert!(
            check(&["--set", "meta.a=1"])
                .expect_err("refused")
                .contains("conf")
        );
    }

    fn map(states: &[pb::PublicState]) -> pb::ClusterMapMsg {
        let node = pb::NodeMsg {
            id: 1,
            alive: true,
            ..Default::default()
        };
        let target = |(i, state): (usize, &pb::PublicState)| pb::TargetMsg {
            id: i as u64 + 1,
            chain: 1,
            node: 1,
            state: *state as i32,
            ..Default::default()
        };
        let targets: Vec<_> = states.iter().enumerate().map(target).collect();
        let ids = targets.iter().map(|t| t.id).collect();
        pb::ClusterMapMsg {
            nodes: vec![node],
            targets,
            chains: vec![pb::ChainMsg {
                id: 1,
                version: 1,
                targets: ids,
            }],
            ..Default::default()
        }
    }

    #[test]
    fn the_cluster_is_usable_when_all_nodes_are_there_and_every_chain_serves() {
        use pb::PublicState::{Offline, Serving, Syncing};
        assert_eq!(missing(&map(&[Serving, Syncing]), &[1]), None);
        assert_eq!(lagging(&map(&[Serving, Syncing, Offline])), 2);
        assert_eq!(lagging(&map(&[Serving, Serving])), 0);
        let what = missing(&map(&[Syncing, Offline]), &[1]).expect("nobody serves");
        assert!(what.contains("chain 1"), "{what}");
        let what = missing(&map(&[Serving]), &[1, 2]).expect("a node is missing");
        assert!(what.contains("storage-2"), "{what}");
        let what = missing(&pb::ClusterMapMsg::default(), &[]).expect("no chains");
        assert!(what.contains("no chains"), "{what}");
    }
}
