//! Whose disk is this: the file `disk.toml` in a disk's directory, and the lock on it.
//!
//! A storage server writes `disk.toml` once, into an empty directory, and afterwards refuses any
//! directory whose identity is not its own: a disk that was moved to another node or cluster, or a
//! mount point whose disk is not mounted, must never be taken for an empty replica.
//!
//! An older copy of the disk (a restored snapshot, a clone) has the same identity. The marks of its
//! openings tell it apart ([`Openings`]): the cluster manager remembers the last one that it
//! accepted, and refuses a disk that does not bear it.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use emberfs_proto::ids::{ClusterId, DiskId, MapVersion, NodeId};
use emberfs_proto::{Error, ErrorCode, Result};
use serde::{Deserialize, Serialize};

/// Version of the disk format that this code writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;
/// Name of the identity file.
pub const IDENTITY_FILE: &str = "disk.toml";
/// Name of the lock file.
const LOCK_FILE: &str = "LOCK";
/// What may lie in a directory that counts as empty: left by mkfs, or by ourselves.
const HARMLESS: [&str; 3] = ["lost+found", LOCK_FILE, "disk.toml.new"];

/// Who a disk belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The storage node.
    pub node: NodeId,
    /// The disk itself, drawn at random when it was formatted.
    pub disk: DiskId,
    /// Version of the format on the disk.
    pub format_version: u32,
    /// The marks that it bears.
    pub openings: Openings,
    /// The newest cluster map when its server last registered: one that the cluster has certainly seen.
    pub map: MapVersion,
}

/// Marks of a disk's openings, drawn at random; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Openings {
    /// Of the last opening that the cluster manager accepted, as far as this disk was told.
    pub accepted: u64,
    /// Of the opening after that one: durable here before the manager hears of it, and kept until it
    /// is accepted, however often the server is killed meanwhile.
    pub proposed: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    format_version: u32,
    cluster: String,
    node: u32,
    disk: String,
    /// Marks, in hexadecimal: TOML has no unsigned 64-bit numbers.
    #[serde(default)]
    opening: String,
    #[serde(default)]
    next_opening: String,
    #[serde(default)]
    map_version: u64,
}

/// Only the version, which every format has.
#[derive(Deserialize)]
struct Version {
    format_version: u32,
}

impl DiskIdentity {
    /// A new disk of a node; `disk` should be random.
    pub fn new(cluster: ClusterId, node: NodeId, disk: DiskId) -> Self {
        Self {
            cluster,
            node,
            disk,
            format_version: FORMAT_VERSION,
            openings: Openings::default(),
            map: MapVersion(0),
        }
    }

    /// Reads the identity of the disk at `path`; `None` when the directory is empty or missing.
    /// Blocks.
    ///
    /// [`ErrorCode::ForeignDisk`] when there are files but no identity, or a damaged one;
    /// [`ErrorCode::IncompatibleVersion`] when a newer version wrote it.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        let file = path.join(IDENTITY_FILE);
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return match first_stranger(path)? {
                    None => Ok(None),
                    Some(name) => Err(foreign(format!(
                        "{} holds {name:?} but no {IDENTITY_FILE}: give an empty directory, or check that the disk is mounted",
                        path.display()
                    ))),
                };
            }
            Err(error) => return Err(unreadable(&file, &error)),
        };
        let damaged = |why: &dyn std::fmt::Display| {
            let why = why.to_string();
            foreign(format!(
                "{} is damaged ({}): restore it or format the disk",
                file.display(),
                why.trim()
            ))
        };
        let version: Version = toml::from_str(&text).map_err(|e| damaged(&e))?;
        if version.format_version > FORMAT_VERSION {
            let what = format!(
                "disk {} has format {}, this version reads up to {FORMAT_VERSION}: upgrade",
                path.display(),
                version.format_version
            );
            return Err(Error::new(ErrorCode::IncompatibleVersion, what));
        }
        let disk: OnDisk = toml::from_str(&text).map_err(|e| damaged(&e))?;
        let cluster = ClusterId::parse(&disk.cluster).ok_or_else(|| damaged(&"bad cluster id"))?;
        let id = DiskId::parse(&disk.disk).ok_or_else(|| damaged(&"bad disk id"))?;
        let mark = |text: &str| match text {
            "" => Ok(0),
            text => u64::from_str_radix(text, 16).map_err(|_| damaged(&"bad mark of an opening")),
        };
        let openings = Openings {
            accepted: mark(&disk.opening)?,
            proposed: mark(&disk.next_opening)?,
        };
        Ok(Some(Self {
            cluster,
            node: NodeId(disk.node),
            disk: id,
            format_version: disk.format_version,
            openings,
            map: MapVersion(disk.map_version),
        }))
    }

    /// Reads the identity of the disk at `path` and checks that it is `cluster`'s and `node`'s.
    /// Blocks. [`ErrorCode::ForeignDisk`] with both ids if not.
    pub fn load_own(path: &Path, cluster: ClusterId, node: NodeId) -> Result<Option<Self>> {
        let Some(found) = Self::load(path)? else {
            return Ok(None);
        };
        let of = |what: &str, theirs: &dyn std::fmt::Display, ours: &dyn std::fmt::Display| {
            foreign(format!(
                "disk {} belongs to {what} {theirs}, this server is of {what} {ours}: check the configuration",
                path.display()
            ))
        };
        if found.cluster != cluster {
            return Err(of("cluster", &found.cluster, &cluster));
        }
        if found.node != node {
            return Err(of("node", &found.node, &node));
        }
        Ok(Some(found))
    }

    /// Writes the identity into the empty directory `path`, which is created if missing.
    /// Blocks; durable when it returns.
    ///
    /// Does nothing when this very identity is there; [`ErrorCode::ForeignDisk`] when another
    /// one or anything else is.
    pub fn format(path: &Path, identity: Self) -> Result<()> {
        if let Some(found) = Self::load_own(path, identity.cluster, identity.node)? {
            if found.disk == identity.disk {
                return Ok(());
            }
            let what = format!(
                "disk {} is formatted already, as {}",
                path.display(),
                found.disk
            );
            return Err(foreign(what));
        }
        std::fs::create_dir_all(path).map_err(|error| unwritable(path, &error))?;
        identity.save(path)
    }

    /// The mark for this opening of the disk at `path`, which bears this identity: the one already
    /// proposed, or `new` (not 0), which the disk then bears. Blocks; durable when it returns.
    pub fn propose(&mut self, path: &Path, new: u64) -> Result<()> {
        if self.openings.proposed != 0 {
            return Ok(());
        }
        self.openings.proposed = new;
        self.save(path)
    }

    /// The cluster manager has accepted the mark that was proposed, if one was, and told of map `map`.
    /// Blocks; durable when it returns.
    pub fn accept(mut self, path: &Path, map: MapVersion) -> Result<()> {
        if self.openings.proposed != 0 {
            self.openings = Openings {
                accepted: self.openings.proposed,
                proposed: 0,
            };
        }
        self.map = self.map.max(map);
        self.save(path)
    }

    fn save(&self, path: &Path) -> Result<()> {
        let mark = |mark: u64| {
            if mark == 0 {
                String::new()
            } else {
                format!("{mark:016x}")
            }
        };
        let on_disk = OnDisk {
            format_version: self.format_version,
            cluster: self.cluster.to_string(),
            node: self.node.0,
            disk: self.disk.to_string(),
            opening: mark(self.openings.accepted),
            next_opening: mark(self.openings.proposed),
            map_version: self.map.0,
        };
        let text = toml::to_string(&on_disk).map_err(|e| {
            Error::new(
                ErrorCode::Internal,
                format!("encoding {IDENTITY_FILE}: {e}"),
            )
        })?;
        let write = || {
            let new = path.join("disk.toml.new");
            let mut file = File::create(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, path.join(IDENTITY_FILE))?;
            File::open(path)?.sync_all()
        };
        write().map_err(|error: std::io::Error| unwritable(path, &error))
    }
}

/// The right to use a disk, held by one process on this host.
#[derive(Debug)]
pub struct DiskLock {
    path: PathBuf,
    _file: File,
}

impl DiskLock {
    /// Locks the existing directory `path`; released on drop and with the process. Blocks only for
    /// the open. [`ErrorCode::NodeConflict`] when another process, or another engine here, has it.
    pub fn acquire(path: &Path) -> Result<Self> {
        let name = path.join(LOCK_FILE);
        let open = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&name);
        let file = open.map_err(|error| unreadable(&name, &error))?;
        match file.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _file: file,
            }),
            Err(std::fs::TryLockError::WouldBlock) => {
                let what = format!(
                    "disk {} is in use by another server: stop it first",
                    path.display()
                );
                Err(Error::new(ErrorCode::NodeConflict, what))
            }
            Err(std::fs::TryLockError::Error(error)) => Err(unreadable(&name, &error)),
        }
    }

    /// The locked directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn first_stranger(path: &Path) -> Result<Option<String>> {
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| unreadable(path, &error))?,
    };
    for entry in entries {
        let entry = entry.map_err(|error| unreadable(path, &error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !HARMLESS.contains(&name.as_str()) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn foreign(what: String) -> Error {
    Error::new(ErrorCode::ForeignDisk, what)
}

fn unwritable(path: &Path, error: &std::io::Error) -> Error {
    let what = format!(
        "writing {IDENTITY_FILE} of disk {}: {error}",
        path.display()
    );
    Error::new(ErrorCode::DiskError, what)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::new(
        ErrorCode::DiskError,
        format!("opening {}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests;
