//! Paths in the cluster, as verbs take them: from its root on, not of this host.

use emberfs_client::attr::AttrExt;
use emberfs_client::{Attr, Client, Creds, ErrorCode};
use emberfs_proto::ids::InodeId;

use crate::failure::{Context, Result, fail};
use crate::mount_table;

/// As whom verbs ask: as whoever runs them.
pub(crate) fn creds() -> Creds {
    Creds {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        groups: Vec::new(),
    }
}

/// Directory and name of a path that names something below the root.
pub(crate) fn split(path: &str) -> Result<(&str, &str)> {
    let trimmed = path.trim_end_matches('/');
    let Some((parent, name)) = trimmed.rsplit_once('/').filter(|_| path.starts_with('/')) else {
        return fail(not_from_root(path));
    };
    if matches!(name, "" | "." | "..") {
        return fail(format!("{path}: names nothing below the root"));
    }
    Ok((parent, name))
}

/// The directory that is to hold the name of `path`.
pub(crate) async fn parent(
    client: &Client,
    creds: &Creds,
    path: &str,
    parent: &str,
) -> Result<InodeId> {
    match client.resolve(creds, parent).await {
        Ok(parent) => Ok(parent.id()),
        Err(error) => {
            let hint = hint(path, error.code);
            Err(error).context(format!("{path}: its directory cannot be found{hint}"))
        }
    }
}

/// What `path` names.
pub(crate) async fn resolve(client: &Client, creds: &Creds, path: &str) -> Result<Attr> {
    if !path.starts_with('/') {
        return fail(not_from_root(path));
    }
    let found = client.resolve(creds, path).await;
    found.or_else(|error| {
        let hint = hint(path, error.code);
        fail(format!("{}{hint}", error.message))
    })
}

fn not_from_root(path: &str) -> String {
    let meant = in_cluster(path).unwrap_or_else(|| format!("/{}", path.trim_end_matches('/')));
    format!("{path}: give the path in the cluster, from its root on, such as {meant}")
}

/// For somebody who gives a path of this host.
pub(crate) fn hint(path: &str, code: ErrorCode) -> String {
    in_cluster(path)
        .filter(|_| code == ErrorCode::NotFound)
        .map(|meant| format!("; in the cluster, {path} on this host is {meant}"))
        .unwrap_or_default()
}

/// What a path of this host that lies on a mount is called in its cluster.
pub(crate) fn in_cluster(path: &str) -> Option<String> {
    let path = std::path::absolute(path).ok()?;
    let mount = mount_table::above(&path).ok()??;
    let rest = path.strip_prefix(&mount.path).ok()?;
    (mount.fs_type == "fuse.emberfs").then(|| format!("/{}", rest.display()))
}
