//! Growth and repair: `node add`, `node remove`, `disk add`, `drain`, `replace`.
//!
//! The cluster manager decides what is refused, what moves and when; it remembers what was asked and
//! goes on by itself. A verb here does what only this host can do (make a server, change its
//! settings, restart it), asks the manager, and then watches until nothing is left to move. Every
//! step finds out first whether it has been done, so a verb that was interrupted can be typed again.

mod follow;
mod names;
mod servers;

use emberfs_proto::pb::change_request::Verb;
use emberfs_proto::{Error, pb};

use crate::cli::{
    DirArg, DiskAddArgs, DiskArgs, DiskCommand, DrainArgs, MoveArgs, NodeAddArgs, NodeArgs,
    NodeCommand, NodeRemoveArgs, ReplaceArgs,
};
use crate::cluster_dir::{absolute, storage_name};
use crate::failure::{Exit, Failure, Result, fail};
use crate::output::say;
use crate::rpc::{self, Seat};
use crate::settings;

use names::Thing;
use servers::Servers;

/// `emberfs node …`.
pub(crate) async fn node(cluster: Option<String>, args: NodeArgs) -> Result<Exit> {
    let seat = Seat::find(cluster, &DirArg { dir: args.dir })?;
    match args.command {
        NodeCommand::Add(args) => add_node(&seat, args).await,
        NodeCommand::Remove(args) => remove_node(&seat, args).await,
    }
}

/// `emberfs disk …`.
pub(crate) async fn disk(cluster: Option<String>, args: DiskArgs) -> Result<Exit> {
    let seat = Seat::find(cluster, &DirArg { dir: args.dir })?;
    match args.command {
        DiskCommand::Add(args) => add_disk(&seat, args).await,
    }
}

/// `--rate`, `--pause` and `--resume`: settings of the whole cluster, like all moves. Whether the verb goes on.
async fn steer(seat: &Seat, moves: &MoveArgs) -> Result<bool> {
    let changes = pb::SettingsMsg {
        resync_bytes_per_second: moves.rate,
        migrations_paused: moves
            .pause
            .then_some(true)
            .or(moves.resume.then_some(false)),
        ..pb::SettingsMsg::default()
    };
    if changes != pb::SettingsMsg::default() {
        settings::configure(&seat.address, changes).await?;
    }
    if moves.pause {
        say(
            "Moves are paused in the whole cluster; `emberfs settings migrations_paused=false` lets them go on",
        )?;
    }
    Ok(!moves.pause)
}

/// `emberfs node add [NODE]`.
async fn add_node(seat: &Seat, args: NodeAddArgs) -> Result<Exit> {
    let asked = args.node.as_deref().map(names::node).transpose()?;
    if !steer(seat, &args.moves).await? {
        return Ok(Exit::Success);
    }
    let map = rpc::map(&seat.address).await?;
    let node = match (asked, Servers::of(seat)?) {
        (None, None) => {
            return fail(
                "which node? On a cluster that is not on this host, start the new storage server with its own \
                 configuration, then name it: `emberfs node add ID`",
            );
        }
        (Some(node), Some(servers)) if !servers.has(node) && !names::knows(&map, node) => {
            servers.node_to_make(Some(node), &map, &args.moves).await?
        }
        (None, Some(servers)) => servers.node_to_make(None, &map, &args.moves).await?,
        (Some(node), _) => Some(node),
    };
    // A dry run has made nothing: the plan is for a node like the others.
    let (node, as_if) = match node {
        Some(node) => (node, Vec::new()),
        None => {
            let (node, as_if) = servers::imagined(seat, asked)?;
            (node, vec![as_if])
        }
    };
    let request = pb::ChangeRequest {
        verb: Verb::AddNode.into(),
        node: node.0,
        as_if,
        ..Default::default()
    };
    let name = storage_name(node.0 as usize);
    carry_out(
        seat,
        request,
        &args.moves,
        &format!("{name} takes replicas"),
    )
    .await
}

/// `emberfs node remove NODE`.
async fn remove_node(seat: &Seat, args: NodeRemoveArgs) -> Result<Exit> {
    let node = names::node(&args.node)?;
    let name = storage_name(node.0 as usize);
    let request = pb::ChangeRequest {
        verb: Verb::RemoveNode.into(),
        node: node.0,
        ..Default::default()
    };
    let map = rpc::map(&seat.address).await?;
    let servers = Servers::of(seat)?.filter(|servers| servers.has(node));
    let known = names::knows(&map, node);
    let held = map.targets.iter().filter(|t| t.node == node.0).count();
    if let Some(servers) = &servers
        && known
        && held == 0
        && !args.dry_run
    {
        // Nothing is on it: it may go. What is asked of the manager is refused while it runs.
        servers.stop(&name).await?;
    }
    if known || servers.is_none() {
        let empty = servers.is_some() && held == 0;
        let dry_run = args.dry_run;
        let answer = change(seat, pb::ChangeRequest { dry_run, ..request }).await;
        // A server of this host would be stopped first.
        if !(dry_run && empty) {
            answer?;
        }
    }
    if args.dry_run {
        say(format_args!("{name} can be removed"))?;
        return Ok(Exit::Success);
    }
    if let Some(servers) = servers {
        servers.forget(node)?;
    }
    say(format_args!("{name} is removed"))?;
    Ok(Exit::Success)
}

/// `emberfs disk add NODE PATH`.
async fn add_disk(seat: &Seat, args: DiskAddArgs) -> Result<Exit> {
    let node = names::node(&args.node)?;
    let path = absolute(&args.path)?;
    let map = rpc::map(&seat.address).await?;
    if !names::knows(&map, node) {
        return fail(format!(
            "there is no node {}; `emberfs status` lists them",
            node.0
        ));
    }
    if !steer(seat, &args.moves).await? {
        return Ok(Exit::Success);
    }
    let mut as_if = Vec::new();
    let disk = match names::disk_at(&map, node, &path) {
        Some(disk) => disk,
        None => match Servers::of(seat)?.filter(|servers| servers.has(node)) {
            Some(servers) => {
                servers::check_new_disk(&path, node)?;
                if args.moves.dry_run {
                    let (disk, imagined) = servers::imagined_disk(node, &path)?;
                    as_if.push(imagined);
                    disk
                } else {
                    servers.use_disk(node, None, &path).await?
                }
            }
            None => {
                return fail(format!(
                    "node {} does not use {}: add it to `disks` in the server's configuration, restart the server, \
                     and type this again",
                    node.0,
                    path.display()
                ));
            }
        },
    };
    let request = pb::ChangeRequest {
        verb: Verb::AddDisk.into(),
        disk: disk.to_bytes(),
        as_if,
        ..Default::default()
    };
    let done = format!(
        "{} of {} takes replicas",
        path.display(),
        storage_name(node.0 as usize)
    );
    carry_out(seat, request, &args.moves, &done).await
}

/// `emberfs drain WHAT`.
pub(crate) async fn drain(cluster: Option<String>, args: DrainArgs) -> Result<Exit> {
    let seat = Seat::find(cluster, &args.dir)?;
    let map = rpc::map(&seat.address).await?;
    let request = match names::thing(&map, &args.what)? {
        Thing::Node(node) => pb::ChangeRequest {
            verb: Verb::DrainNode.into(),
            node: node.0,
            ..Default::default()
        },
        Thing::Disk(disk) => pb::ChangeRequest {
            verb: Verb::DrainDisk.into(),
            disk: disk.to_bytes(),
            ..Default::default()
        },
    };
    if !steer(&seat, &args.moves).await? {
        return Ok(Exit::Success);
    }
    carry_out(
        &seat,
        request,
        &args.moves,
        &format!("{} holds no replicas", args.what),
    )
    .await
}

/// `emberfs replace OLD NEW`.
pub(crate) async fn replace(cluster: Option<String>, args: ReplaceArgs) -> Result<Exit> {
    let seat = Seat::find(cluster, &args.dir)?;
    let map = rpc::map(&seat.address).await?;
    let old = names::disk(&map, &args.old)?;
    if !steer(&seat, &args.moves).await? {
        return Ok(Exit::Success);
    }
    let retire = |dry_run| pb::ChangeRequest {
        verb: Verb::RetireDisk.into(),
        disk: old.to_bytes(),
        dry_run,
        ..Default::default()
    };
    change(&seat, retire(true)).await?;
    let mut as_if = Vec::new();
    let new = match names::disk(&map, &args.new) {
        Ok(new) => {
            if !args.moves.dry_run {
                change(&seat, retire(false)).await?;
            }
            new
        }
        Err(_) if args.new.starts_with("disk/") => names::disk(&map, &args.new)?,
        Err(_) => {
            let path = absolute(args.new.as_ref())?;
            let node = names::node_of(&map, old)?;
            let old_path = names::path_of(&map, old);
            let servers = Servers::of(&seat)?.filter(|servers| servers.has(node));
            // Typed again: the server has taken it already.
            let there = names::disk_at(&map, node, &path).filter(|&disk| disk != old);
            if there.is_none() && servers.is_some() {
                servers::check_dead(old, old_path.as_deref(), node)?;
                servers::check_new_disk(&path, node)?;
            }
            if !args.moves.dry_run {
                change(&seat, retire(false)).await?;
            }
            match (there, servers) {
                (Some(disk), _) => disk,
                (None, Some(_)) if args.moves.dry_run => {
                    let (disk, imagined) = servers::imagined_disk(node, &path)?;
                    as_if.push(imagined);
                    disk
                }
                (None, Some(servers)) => servers.use_disk(node, old_path.as_deref(), &path).await?,
                (None, None) => {
                    return fail(format!(
                        "node {} does not use {} yet: put it into `disks` of the server's configuration in the \
                         place of the dead disk, start the server, and type this again",
                        node.0,
                        path.display()
                    ));
                }
            }
        }
    };
    let request = pb::ChangeRequest {
        verb: Verb::AddDisk.into(),
        disk: new.to_bytes(),
        as_if,
        ..Default::default()
    };
    carry_out(
        &seat,
        request,
        &args.moves,
        &format!("disk {new} has taken the place of disk {old}"),
    )
    .await
}

/// Asks the manager, shows the plan or follows it to its end.
async fn carry_out(
    seat: &Seat,
    request: pb::ChangeRequest,
    moves: &MoveArgs,
    done: &str,
) -> Result<Exit> {
    let dry_run = moves.dry_run;
    let plan = change(seat, pb::ChangeRequest { dry_run, ..request }).await?;
    if dry_run {
        say(follow::describe(&plan))?;
        return Ok(Exit::Success);
    }
    if moves.detach {
        say(format_args!(
            "{} to move in the background; `emberfs status` shows them",
            crate::show::count(plan.moves.len(), "replica")
        ))?;
        return Ok(Exit::Success);
    }
    follow::follow(&seat.address, &plan, done).await
}

/// A wish to the manager; its refusal is the verb's.
async fn change(seat: &Seat, request: pb::ChangeRequest) -> Result<pb::PlanReply> {
    let address = &seat.address;
    let mut client = rpc::cluster(address).await?;
    match tokio::time::timeout(follow::CHANGE_LIMIT, client.change(request)).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(Failure::from(Error::from(status))),
        Err(_) => fail(format!(
            "{address} does not answer within {} s; type this again",
            follow::CHANGE_LIMIT.as_secs()
        )),
    }
}
