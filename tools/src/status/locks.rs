//! `emberfs status --locks`: every advisory lock, and who waits for one.

use emberfs_proto::ids::ClientId;
use emberfs_proto::pb;
use serde::Serialize;

use crate::failure::{Exit, Result};
use crate::output::say;
use crate::rpc::{self, CALL_LIMIT, Seat};
use crate::show;

/// The shape of `--locks --json`. Fields are added, never changed.
#[derive(Debug, Serialize)]
struct LockList {
    /// Locks are being reclaimed after a restart of the metadata server; new ones wait.
    grace: bool,
    locks: Vec<Lock>,
}

#[derive(Debug, Serialize)]
struct Lock {
    inode: u64,
    /// `flock` or `fcntl`.
    space: &'static str,
    /// `shared` or `exclusive`.
    kind: &'static str,
    /// First byte.
    start: u64,
    /// Last byte; null: to the end, however long the file becomes.
    end: Option<u64>,
    /// Not held yet.
    waiting: bool,
    client: String,
    host: String,
    pid: u32,
}

impl Lock {
    fn of(entry: &pb::LockEntry) -> Self {
        let owner = entry.owner.unwrap_or_default();
        let range = entry.range.unwrap_or_default();
        let client = ClientId::from_bytes(&entry.client);
        Self {
            inode: owner.inode,
            space: match owner.space() {
                pb::LockSpace::Flock => "flock",
                _ => "fcntl",
            },
            kind: match range.kind() {
                pb::LockKind::Exclusive => "exclusive",
                _ => "shared",
            },
            start: range.start,
            // The kernel's own way to say it is the largest signed number.
            end: (range.end < i64::MAX as u64).then_some(range.end),
            waiting: entry.waiting,
            client: client.map_or_else(String::new, |client| client.to_string()),
            host: entry.host.clone(),
            pid: range.pid,
        }
    }
}

/// Prints them all.
pub(super) async fn list(seat: &Seat, json: bool) -> Result<Exit> {
    let mut client = rpc::metadata(&seat.address).await?;
    let mut list = LockList {
        grace: false,
        locks: Vec::new(),
    };
    let mut after = 0;
    loop {
        let request = pb::ListLocksRequest { after, limit: 0 };
        let page = rpc::answer(&seat.address, CALL_LIMIT, client.list_locks(request)).await?;
        list.grace = page.grace;
        list.locks.extend(page.locks.iter().map(Lock::of));
        match list.locks.last() {
            Some(last) if !page.end => after = last.inode,
            _ => break,
        }
    }
    if json {
        say(serde_json::to_string_pretty(&list).unwrap_or_default())?;
    } else {
        say(render(&list))?;
    }
    Ok(Exit::Success)
}

fn render(list: &LockList) -> String {
    let mut text = if list.locks.is_empty() {
        "no locks".to_owned()
    } else {
        let header = ["inode", "kind", "bytes", "state", "client", "pid"];
        let rows = list.locks.iter().map(|lock| {
            let end = lock.end.map_or_else(String::new, |end| end.to_string());
            vec![
                lock.inode.to_string(),
                format!("{} {}", lock.space, lock.kind),
                format!("{}-{end}", lock.start),
                if lock.waiting { "waits" } else { "held" }.to_owned(),
                lock.host.clone(),
                lock.pid.to_string(),
            ]
        });
        show::table(&header, rows)
    };
    if list.grace {
        text.push_str(
            "\nlocks are being reclaimed after a restart of the metadata server; new ones wait",
        );
    }
    text
}
