//! `emberfs mount`, `emberfs umount`, and the helper that mount(8) calls as `mount.emberfs`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use emberfs_client::{Client, ClientConfig};
use emberfs_fuse::{MountOptions, Mounted};
use emberfs_proto::ErrorCode;
use tokio_util::sync::CancellationToken;

use crate::cli::{MountArgs, UmountArgs};
use crate::cluster_dir::absolute;
use crate::failure::{Exit, Failure, Result, fail};
use crate::launch::launch;
use crate::mount_table;
use crate::process::Process;
use crate::progress::Progress;
use crate::serve;

mod kept;

pub(crate) use kept::takeover;

/// How long the first answer through a new mount may take.
const FIRST_ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long a mount in the background may take to come up.
const START_LIMIT: Duration = Duration::from_mins(1);
/// Pause between attempts to unmount at SIGTERM while programs use the mount.
const BUSY_PAUSE: Duration = Duration::from_millis(500);

/// `emberfs mount ADDR MNT [-o OPTIONS] [--foreground]`.
pub(crate) async fn mount(args: MountArgs) -> Result<Exit> {
    // The source that `mount` and `df` show, and that `mount -a` finds again in fstab.
    let source = format!("fsname={}", args.addr);
    let options = [&[source], args.options.as_slice()].concat().join(",");
    let parsed = MountOptions::parse(&options)?;
    parsed.check()?;
    let path = absolute(&args.mountpoint)?;
    if args.worker {
        return kept::work(client_config(&args, &parsed), &path, parsed).await;
    }
    if parsed.is_kept() && (args.foreground || args.daemon.daemon.is_some()) {
        return kept::keep(args, &path, parsed).await;
    }
    if args.foreground || args.daemon.daemon.is_some() {
        return serve_mount(args, &path, parsed).await;
    }
    let process = Process::new("the mount", state_dir()?.join(mount_table::escaped(&path)));
    if let Some(running) = process.running().await? {
        return match mount_table::find(&path)? {
            Some(_) => fail(format!("{} is mounted already", path.display())),
            None => fail(format!(
                "a mount of {} is still starting, or the last one flushing (process {}): try again in a moment",
                path.display(),
                running.pid()
            )),
        };
    }
    let mut arguments: Vec<OsString> = vec![
        "mount".into(),
        args.addr.clone().into(),
        path.clone().into(),
    ];
    arguments.extend(
        args.options
            .iter()
            .flat_map(|option| ["-o".into(), option.into()]),
    );
    let _progress = Progress::start(format!("Mounting {} on {}", args.addr, path.display()));
    launch(&process, arguments, None, START_LIMIT).await?;
    Ok(Exit::Success)
}

/// A mount waits for its servers for ever: programs prefer that to an error.
fn client_config(args: &MountArgs, options: &MountOptions) -> ClientConfig {
    ClientConfig {
        meta: args.addr.clone(),
        io_timeout: None,
        verify: options.verify,
        ..ClientConfig::default()
    }
}

/// A mount that ends with this process.
async fn serve_mount(args: MountArgs, path: &Path, options: MountOptions) -> Result<Exit> {
    let daemon = serve::enter(args.daemon.daemon.as_deref())?;
    let stop = serve::stop_on_signals()?;
    let client = Client::connect(client_config(&args, &options)).await?;
    let mounted = emberfs_fuse::mount(client.clone(), path, options).await?;
    first_answer(mounted.path().to_owned()).await?;
    daemon
        .notice()
        .send(format_args!("ready {}", mounted.path().display()));
    let outcome = until_unmounted(mounted, &stop).await;
    client.shutdown().await;
    outcome?;
    Ok(Exit::Success)
}

/// The mount is ready when a call through the kernel has been answered.
async fn first_answer(path: PathBuf) -> Result<()> {
    let shown = path.display().to_string();
    let call = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&path));
    match tokio::time::timeout(FIRST_ANSWER_LIMIT, call).await {
        Ok(Ok(Ok(_))) => Ok(()),
        Ok(Ok(Err(error))) => fail(format!("the mount on {shown} answers: {error}")),
        Ok(Err(panic)) => fail(format!("the mount on {shown} cannot be asked: {panic}")),
        Err(_) => fail(format!(
            "the mount on {shown} does not answer within {} s",
            FIRST_ANSWER_LIMIT.as_secs()
        )),
    }
}

async fn until_unmounted(mut mounted: Mounted, stop: &CancellationToken) -> Result<()> {
    tokio::select! {
        outcome = mounted.wait() => return outcome.map_err(Failure::from),
        () = stop.cancelled() => {}
    }
    loop {
        match mounted.unmount().await {
            Ok(()) => return Ok(()),
            Err(error) if error.code == ErrorCode::Busy => {
                // Whoever stops us waits as long as they like and then kills; programs keep working until then.
                tracing::warn!(%error, "waiting until the mount is not in use");
                tokio::select! {
                    outcome = mounted.wait() => return outcome.map_err(Failure::from),
                    () = tokio::time::sleep(BUSY_PAUSE) => {}
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// `emberfs umount MNT`.
pub(crate) async fn umount(args: UmountArgs) -> Result<Exit> {
    let path = absolute(&args.mountpoint)?;
    let _progress = Progress::start(format!("Unmounting {}", path.display()));
    mount_table::unmount(&path, args.force).await?;
    Ok(Exit::Success)
}

/// Where pid files and logs of mounts go that belong to no cluster directory.
fn state_dir() -> Result<PathBuf> {
    let set = |key: &str| std::env::var_os(key).filter(|value| !value.is_empty());
    if let Some(dir) = set("EMBERFS_STATE_DIR") {
        return absolute(Path::new(&dir));
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/var/log/emberfs".into());
    }
    let base = set("XDG_STATE_HOME").map(PathBuf::from);
    let base = base.or_else(|| set("HOME").map(|home| Path::new(&home).join(".local/state")));
    base.map(|base| base.join("emberfs")).ok_or_else(|| {
        Failure::new("cannot mount: no place for the log: set HOME, or use --foreground")
    })
}

/// Turns `mount.emberfs ADDR MNT [-sfnvrw] [-o OPTIONS] [-N NS] [-t TYPE]` into our own command
/// line. `None`: not called as the helper; `Some(Ok(None))`: there is nothing to do (`-f`).
pub(crate) fn helper_arguments(arguments: &[OsString]) -> Option<Result<Option<Vec<OsString>>>> {
    let program = Path::new(arguments.first()?).file_name()?;
    (program == OsStr::new("mount.emberfs")).then(|| rewrite(&arguments[1..]))
}

fn rewrite(arguments: &[OsString]) -> Result<Option<Vec<OsString>>> {
    const USAGE: &str = "usage: mount.emberfs HOST:PORT DIRECTORY [-o OPTIONS]";
    let mut places = Vec::new();
    let mut options: Vec<OsString> = Vec::new();
    let mut rest = arguments.iter();
    let mut fake = false;
    while let Some(argument) = rest.next() {
        let text = argument.to_string_lossy();
        match text.strip_prefix('-').filter(|flags| !flags.is_empty()) {
            None => places.push(argument.clone()),
            Some("o") => options.push(rest.next().ok_or_else(|| Failure::new(USAGE))?.clone()),
            Some("t" | "N") => {
                rest.next().ok_or_else(|| Failure::new(USAGE))?;
            }
            Some(flags) => {
                for flag in flags.chars() {
                    match flag {
                        's' | 'n' | 'v' | 'w' => {}
                        'f' => fake = true,
                        'r' => options.push("ro".into()),
                        _ => return fail(format!("unknown option -{flag}: {USAGE}")),
                    }
                }
            }
        }
    }
    let [address, mountpoint] = places.as_slice() else {
        return fail(USAGE);
    };
    if fake {
        return Ok(None);
    }
    let mut line: Vec<OsString> = vec!["emberfs".into(), "mount".into()];
    for option in options {
        line.extend(["-o".into(), option]);
    }
    line.extend(["--".into(), address.clone(), mountpoint.clone()]);
    Ok(Some(line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn helper(line: &[&str]) -> Option<Result<Option<Vec<OsString>>>> {
        helper_arguments(&line.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn mount_8_calls_us_with_its_own_options() {
        let line = [
            "/sbin/mount.emberfs",
            "h:1",
            "/m",
            "-sn",
            "-r",
            "-o",
            "rw,_netdev,subdir=a",
        ];
        let line = helper(&line)
            .expect("the helper")
            .expect("valid")
            .expect("something to do");
        match Cli::try_parse_from(line).expect("valid").command {
            Command::Mount(args) => {
                assert_eq!(
                    (args.addr.as_str(), args.mountpoint.as_path()),
                    ("h:1", Path::new("/m"))
                );
                assert_eq!(args.options, ["ro", "rw,_netdev,subdir=a"]);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_fake_mount_does_nothing_and_our_own_name_is_no_helper() {
        assert!(matches!(
            helper(&["mount.emberfs", "h:1", "/m", "-f"]),
            Some(Ok(None))
        ));
        assert!(helper(&["/usr/bin/emberfs", "mount", "h:1", "/m"]).is_none());
    }

    #[test]
    fn a_wrong_helper_line_is_refused() {
        for line in [
            &["mount.emberfs", "h:1"][..],
            &["mount.emberfs", "a", "b", "-z"],
        ] {
            let error = helper(line)
                .expect("the helper")
                .expect_err("refused")
                .to_string();
            assert!(error.contains("usage"), "{error}");
        }
    }
}
