//! `emberfs quota`: limits of directories, users and groups.

mod view;
mod who;

use std::path::PathBuf;

use emberfs_client::attr::AttrExt;
use emberfs_client::{Client, ClientConfig, Creds, ErrorCode};
use emberfs_proto::pb::{self, QuotaKind};

use crate::cli::{DirArg, QuotaArgs, QuotaCommand, QuotaOf};
use crate::cluster_path::in_cluster;
use crate::failure::{Context, Exit, Result, fail};
use crate::output::say;
use crate::rpc::Seat;
use crate::sizes::{parse_bytes, parse_count};
use view::View;

/// What `--help` adds.
pub(crate) const HELP: &str = "\
  emberfs quota set /projects/llm --bytes 10T --inodes 1M
  emberfs quota set --user alice --bytes 500G

A directory's quota counts the directory and everything below it, a user's and a group's what belongs to
them anywhere. Files count with their lengths, holes included; while a file is being written, room ahead of
its writers counts as well. Sizes are binary (K = 1024), counts decimal. Directories with quotas cannot be
nested. After `set`, what exists is counted in the background (state `counting`); until then limits hold for
what has been counted.

JSON of list: an array of these, of set and show: one (fields are only ever added)
  kind          tree, user or group
  id            inode of the directory, uid or gid
  name          path, user or group, as far as it is known
  bytes_used, bytes_limit, inodes_used, inodes_limit   limits are null where there are none
  state         counting, full or ok";

/// `none`, or as [`parse_bytes`].
pub(crate) fn parse_byte_limit(text: &str) -> Result<u64, String> {
    if text == "none" {
        Ok(0)
    } else {
        parse_bytes(text)
    }
}

/// `none`, or as [`parse_count`].
pub(crate) fn parse_inode_limit(text: &str) -> Result<u64, String> {
    if text == "none" {
        Ok(0)
    } else {
        parse_count(text)
    }
}

/// A connection and who uses it.
struct Seated {
    client: Client,
    creds: Creds,
    json: bool,
}

/// `emberfs quota`.
pub(crate) async fn quota(cluster: Option<String>, args: QuotaArgs) -> Result<Exit> {
    let QuotaArgs { dir, json, command } = args;
    let seated = connect(cluster, dir, json).await?;
    let outcome = seated.run(command).await;
    seated.client.shutdown().await;
    outcome.map(|()| Exit::Success)
}

async fn connect(cluster: Option<String>, dir: PathBuf, json: bool) -> Result<Seated> {
    let seat = Seat::find(cluster, &DirArg { dir })?;
    let config = ClientConfig {
        meta: seat.address,
        ..ClientConfig::default()
    };
    let client = Client::connect(config).await;
    let creds = Creds {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        groups: Vec::new(),
    };
    Ok(Seated {
        client: client.context("cannot reach the cluster")?,
        creds,
        json,
    })
}

impl Seated {
    async fn run(&self, command: QuotaCommand) -> Result<()> {
        match command {
            QuotaCommand::Set { of, bytes, inodes } => {
                let request = pb::SetQuotaRequest {
                    bytes,
                    inodes,
                    ..self.request(&of).await?
                };
                let set = self.client.set_quota(&self.creds, request).await?;
                match set {
                    Some(quota) => self.show(quota).await,
                    None => fail(format!("{of}: another command cleared it meanwhile")),
                }
            }
            QuotaCommand::Clear { of } => {
                let request = self.request(&of).await?;
                if self.find(request.subject).await?.is_none() {
                    return fail(format!("{of} has no quota"));
                }
                let request = pb::SetQuotaRequest {
                    clear: true,
                    ..request
                };
                self.client.set_quota(&self.creds, request).await?;
                say(format!("the quota of {of} is cleared"))
            }
            QuotaCommand::Show { of } => match self.nearest(&of).await? {
                Some(quota) => self.show(quota).await,
                None => fail(format!("{of} has no quota; `emberfs quota list` shows all")),
            },
            QuotaCommand::List => {
                let mut views = Vec::new();
                for quota in self.client.quotas(&self.creds).await? {
                    views.push(self.view(quota).await);
                }
                say(if self.json {
                    serde_json::to_string_pretty(&views).context("cannot write JSON")?
                } else if views.is_empty() {
                    "no quotas; `emberfs quota set` sets one".to_owned()
                } else {
                    view::table(&views)
                })
            }
        }
    }

    async fn show(&self, quota: pb::QuotaInfo) -> Result<()> {
        let view = self.view(quota).await;
        say(if self.json {
            serde_json::to_string_pretty(&view).context("cannot write JSON")?
        } else {
            view::table(&[view])
        })
    }

    async fn find(&self, subject: Option<pb::QuotaSubject>) -> Result<Option<pb::QuotaInfo>> {
        let all = self.client.quotas(&self.creds).await?;
        Ok(all.into_iter().find(|quota| quota.subject == subject))
    }

    /// A request about whom the arguments name.
    async fn request(&self, of: &QuotaOf) -> Result<pb::SetQuotaRequest> {
        let (kind, id, label) = match of {
            QuotaOf {
                user: Some(user), ..
            } => (QuotaKind::User, who::uid(user)?, String::new()),
            QuotaOf {
                group: Some(group), ..
            } => (QuotaKind::Group, who::gid(group)?, String::new()),
            QuotaOf { path, .. } => {
                let path = path.as_deref().unwrap_or("/");
                (QuotaKind::Tree, self.resolve(path).await?, label(path))
            }
        };
        Ok(pb::SetQuotaRequest {
            caller: None,
            subject: Some(pb::QuotaSubject {
                kind: kind.into(),
                id,
            }),
            bytes: None,
            inodes: None,
            clear: false,
            label,
        })
    }

    /// The inode of a path in the cluster.
    async fn resolve(&self, path: &str) -> Result<u64> {
        if !path.starts_with('/') {
            let meant = in_cluster(path).unwrap_or_else(|| format!("/{path}"));
            return fail(format!(
                "{path}: give the path in the cluster, from its root on, such as {meant}"
            ));
        }
        match self.client.resolve(&self.creds, path).await {
            Ok(attr) => Ok(attr.id().0),
            Err(error) => {
                let hint = in_cluster(path)
                    .filter(|_| error.code == ErrorCode::NotFound)
                    .map(|meant| format!("; in the cluster, {path} on this host is {meant}"))
                    .unwrap_or_default();
                Err(error).context(format!("{path} cannot be found{hint}"))
            }
        }
    }

    /// The quota that the arguments name; of a path the one that counts what is there.
    async fn nearest(&self, of: &QuotaOf) -> Result<Option<pb::QuotaInfo>> {
        let request = self.request(of).await?;
        let Some(path) = &of.path else {
            return self.find(request.subject).await;
        };
        let all = self.client.quotas(&self.creds).await?;
        let mut subject = request.subject;
        let mut path = label(path);
        loop {
            if let Some(found) = all.iter().find(|quota| quota.subject == subject) {
                return Ok(Some(found.clone()));
            }
            let Some((above, _)) = path.rsplit_once('/').filter(|_| path != "/") else {
                return Ok(None);
            };
            path = label(above);
            let id = self.resolve(&path).await?;
            subject = subject.map(|one| pb::QuotaSubject { id, ..one });
        }
    }

    /// As people see it: a directory's path is from when its quota was set.
    async fn view(&self, quota: pb::QuotaInfo) -> View {
        let mut view = View::of(&quota);
        if view.is_tree() {
            let there = self.client.resolve(&self.creds, &quota.label).await;
            if !there.is_ok_and(|attr| attr.id().0 == view.id) {
                view.name = format!("inode {} (was {})", view.id, quota.label);
            }
        }
        view
    }
}

/// A path as it is shown: from the root, without a slash at its end.
fn label(path: &str) -> String {
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() {
        "/".to_owned()
    } else {
        trimmed.to_owned()
    }
}

impl std::fmt::Display for QuotaOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.path, &self.user, &self.group) {
            (Some(path), ..) => f.write_str(path),
            (_, Some(user), _) => write!(f, "user {user}"),
            (_, _, Some(group)) => write!(f, "group {group}"),
            _ => f.write_str("nobody"),
        }
    }
}
