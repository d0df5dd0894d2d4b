//! Mount options: what `-o` accepts, its defaults, and what is refused.

use std::time::Duration;

use emberfs_client::Verify;
use emberfs_proto::{Error, ErrorCode, Result};

#[cfg(test)]
mod tests;

/// How requests travel between the kernel and the mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// What has proved best: classic today.
    #[default]
    Auto,
    /// Reads and writes of `/dev/fuse`.
    Classic,
    /// FUSE over io_uring: Linux 6.14 or later, mounted by root, switched on in
    /// `/sys/module/fuse/parameters/enable_uring`. Mounting fails where that is not so.
    Ring,
}

/// Settings of one mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// `ro`: refuse every change.
    pub read_only: bool,
    /// `allow_other`, `noallow_other`: other users may use the mount. Default: yes if root mounts.
    pub allow_other: bool,
    /// `auto_unmount`: `fusermount3` unmounts when this process dies, however it dies.
    pub auto_unmount: bool,
    /// `fsname=`: the source shown by `df` and `mount`.
    pub fsname: String,
    /// `subtype=`: the file system type shown is `fuse.` and this.
    pub subtype: String,
    /// `direct_io`: no page cache for any file of this mount.
    pub direct_io: bool,
    /// `subdir=`: mount this directory of the cluster instead of its root.
    pub subdir: Option<String>,
    /// `threads=`: device threads, 1 to 64.
    pub threads: usize,
    /// `max_background=`: asynchronous requests that the kernel keeps in flight, 1 to 65535.
    pub max_background: u16,
    /// `read_ahead_kb=`: the kernel's read-ahead per open file, KiB. Only root can raise it.
    pub read_ahead_kb: u32,
    /// `attr_timeout=`: seconds that the kernel may answer stat from memory. Unless this or the next one is given: for as long as
    /// the metadata server says, because it tells of every change (one second while it does not).
    pub attr_timeout: Duration,
    /// `entry_timeout=`: seconds that the kernel may remember what a name means.
    pub entry_timeout: Duration,
    /// Whether one of these two was given.
    pub timeouts_chosen: bool,
    /// `verify=page|transfer`: what reads of parts of a page are checked against.
    pub verify: Verify,
    /// `transport=auto|classic|ring`.
    pub transport: Transport,
    /// `nosuid`, `suid`: set-user-id programs. Default: ignored.
    pub suid: bool,
    /// `nodev`, `dev`: device nodes. Default: ignored.
    pub dev: bool,
    /// `noexec`, `exec`: whether programs may be run. Default: yes.
    pub exec: bool,
    /// `noatime`, `atime`: access times. Default: as the kernel does.
    pub noatime: bool,
    /// `sync`: every write is durable before it returns.
    pub sync: bool,
    /// `keeper`, `nokeeper`: a small process of its own holds the mount, so that it outlives the one that serves it. Default:
    /// yes, where that is possible ([`Self::is_kept`]).
    pub keeper: bool,
    /// `late_close`, `nolate_close`: close(2) of a new file of at most 1 MiB returns before it is stored, as on a local disk; others still see it
    /// whole. Needs a keeper. Default: no.
    pub late_close: bool,
    /// `dirsync`: passed to the kernel, which does nothing about it; `answer_names` of the metadata server does.
    pub dirsync: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            allow_other: rustix::process::geteuid().is_root(),
            auto_unmount: false,
            fsname: crate::SUBTYPE.to_owned(),
            subtype: crate::SUBTYPE.to_owned(),
            direct_io: false,
            subdir: None,
            threads: 4,
            max_background: 128,
            read_ahead_kb: 4096,
            attr_timeout: Duration::from_secs(1),
            entry_timeout: Duration::from_secs(1),
            timeouts_chosen: false,
            verify: Verify::Page,
            transport: Transport::Auto,
            suid: false,
            dev: false,
            exec: true,
            noatime: false,
            sync: false,
            dirsync: false,
            keeper: true,
            late_close: false,
        }
    }
}

/// Options that need no value.
const FLAGS: &[&str] = &[
    "ro",
    "rw",
    "allow_other",
    "noallow_other",
    "auto_unmount",
    "direct_io",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "atime",
    "noatime",
    "sync",
    "async",
    "dirsync",
    "keeper",
    "nokeeper",
    "late_close",
    "nolate_close",
];

/// Options written `key=value`.
const KEYS: &[&str] = &[
    "fsname",
    "subtype",
    "subdir",
    "threads",
    "max_background",
    "read_ahead_kb",
    "attr_timeout",
    "entry_timeout",
    "transport",
    "verify",
];

/// What fstab, mount(8) and systemd add for themselves, and what is always on here.
const IGNORED: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "_netdev",
    "nofail",
    "user",
    "users",
    "nouser",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "relatime",
    "norelatime",
    "strictatime",
    "diratime",
    "nodiratime",
    "default_permissions",
];

/// Longest time that the kernel may be told to remember something: an hour.
const MAX_TIMEOUT_SECONDS: f64 = 3600.0;

impl MountOptions {
    /// Reads the argument of `-o`: options separated by commas, later ones win.
    pub fn parse(text: &str) -> Result<Self> {
        let mut options = Self::default();
        for option in text.split(',').map(str::trim).filter(|o| !o.is_empty()) {
            options.apply(option)?;
        }
        Ok(options)
    }

    /// Refuses what cannot be done together.
    pub fn check(&self) -> Result<()> {
        if self.late_close && !self.is_kept() {
            let what = "mount option late_close needs a keeper, or what is closed could be lost with the process that serves the \
                        mount: mount as root, without nokeeper, auto_unmount and transport=ring";
            return Err(invalid(what.to_owned()));
        }
        Ok(())
    }

    /// Whether a keeper holds the mount: root mounts it, nothing unmounts it when a process dies, and requests do not travel
    /// by rings, which the kernel closes with the process that made them.
    pub fn is_kept(&self) -> bool {
        let possible = rustix::process::geteuid().is_root() && !self.auto_unmount;
        self.keeper && possible && self.transport != Transport::Ring
    }

    /// Applies one option, such as `ro` or `threads=8`.
    pub fn apply(&mut self, option: &str) -> Result<()> {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option, None),
        };
        if IGNORED.contains(&key) || key.starts_with("x-") || key == "comment" {
            return Ok(());
        }
        match value {
            Some(value) if KEYS.contains(&key) => self.set(key, value),
            None if FLAGS.contains(&key) => {
                self.flag(key);
                Ok(())
            }
            Some(_) if FLAGS.contains(&key) => Err(invalid(format!(
                "mount option {key} takes no value: write just {key}"
            ))),
            None if KEYS.contains(&key) => Err(invalid(format!(
                "mount option {key} needs a value: write {key}=VALUE"
            ))),
            _ => Err(unknown(key)),
        }
    }

    fn flag(&mut self, name: &str) {
        match name {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "allow_other" => self.allow_other = true,
            "noallow_other" => self.allow_other = false,
            "auto_unmount" => self.auto_unmount = true,
            "direct_io" => self.direct_io = true,
            "suid" => self.suid = true,
            "nosuid" => self.suid = false,
            "dev" => self.dev = true,
            "nodev" => self.dev = false,
            "exec" => self.exec = true,
            "noexec" => self.exec = false,
            "atime" => self.noatime = false,
            "noatime" => self.noatime = true,
            "sync" => self.sync = true,
            "async" => self.sync = false,
            "dirsync" => self.dirsync = true,
            "keeper" => self.keeper = true,
            "nokeeper" => self.keeper = false,
            "late_close" => self.late_close = true,
            "nolate_close" => self.late_close = false,
            _ => {}
        }
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "fsname" => self.fsname = label(key, value)?,
            "subtype" => self.subtype = label(key, value)?,
            "subdir" => {
                let path = value.trim_matches('/');
                self.subdir = (!path.is_empty()).then(|| path.to_owned());
            }
            "threads" => self.threads = number(key, value, 1, 64)? as usize,
            "max_background" => {
                self.max_background = number(key, value, 1, u64::from(u16::MAX))? as u16;
            }
            "read_ahead_kb" => self.read_ahead_kb = number(key, value, 0, 1 << 20)? as u32,
            "attr_timeout" => {
                self.attr_timeout = seconds(key, value)?;
                self.timeouts_chosen = true;
            }
            "entry_timeout" => {
                self.entry_timeout = seconds(key, value)?;
                self.timeouts_chosen = true;
            }
            "verify" => {
                self.verify = match value {
                    "page" => Verify::Page,
                    "transfer" => Verify::Transfer,
                    _ => {
                        return Err(invalid(format!(
                            "mount option verify={value}: choose page or transfer"
                        )));
                    }
                }
            }
            "transport" => {
                self.transport = match value {
                    "auto" => Transport::Auto,
                    "classic" => Transport::Classic,
                    "ring" => Transport::Ring,
                    _ => {
                        return Err(invalid(format!(
                            "mount option transport={value}: choose auto, classic or ring"
                        )));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn number(key: &str, value: &str, min: u64, max: u64) -> Result<u64> {
    let number = value.parse().ok().filter(|n| (min..=max).contains(n));
    number.ok_or_else(|| {
        invalid(format!(
            "mount option {key}={value}: write a whole number from {min} to {max}"
        ))
    })
}

fn seconds(key: &str, value: &str) -> Result<Duration> {
    let seconds = value
        .parse()
        .ok()
        .filter(|s| (0.0..=MAX_TIMEOUT_SECONDS).contains(s));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| {
        invalid(format!(
            "mount option {key}={value}: write seconds from 0 to {MAX_TIMEOUT_SECONDS}, such as 0.5"
        ))
    })
}

/// A name that may stand in the kernel's comma-separated option string.
fn label(key: &str, value: &str) -> Result<String> {
    let plain = |c: char| !c.is_control() && !c.is_whitespace() && c != ',' && c != '\\';
    if value.is_empty() || value.len() > 128 || !value.chars().all(plain) {
        return Err(invalid(format!(
            "mount option {key}={value}: write 1 to 128 characters without spaces, commas or backslashes"
        )));
    }
    Ok(value.to_owned())
}

fn unknown(key: &str) -> Error {
    let known = FLAGS.iter().chain(KEYS);
    let nearest = known.min_by_key(|name| strsim::damerau_levenshtein(key, name));
    let hint = nearest
        .map(|n| format!(": did you mean {n}?"))
        .unwrap_or_default();
    invalid(format!("unknown mount option {key}{hint}"))
}

fn invalid(message: String) -> Error {
    Error::new(ErrorCode::InvalidArgument, message)
}
