//! Mounts that outlive the process that serves them: the keeper, its workers, and `emberfs takeover`.
//!
//! The keeper listens on a socket named after the mount's device number, which the kernel says for a path without touching
//! the mount. A request is a line with the program that is to serve the mount; the answer is `ok` or a reason.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use emberfs_client::ClientConfig;
use emberfs_fuse::{Keeper, MountOptions, Replace};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::first_answer;
use crate::cli::{MountArgs, TakeoverArgs};
use crate::cluster_dir::{absolute, make_dir};
use crate::failure::{Context, Exit, Failure, Result, fail};
use crate::mount_table;
use crate::progress::Progress;
use crate::serve;

/// Where the sockets are.
const RUN_DIR: &str = "/run/emberfs";
/// Longest request: a path and the end of the line.
const MAX_REQUEST: u64 = 4097;
/// How long a keeper waits for the rest of a request.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The keeper.
pub(super) async fn keep(args: MountArgs, path: &Path, options: MountOptions) -> Result<Exit> {
    let daemon = serve::enter(args.daemon.daemon.as_deref())?;
    let stop = serve::stop_on_signals()?;
    let keeper = Keeper {
        arguments: worker_arguments(&args, path),
        mountpoint: path.to_owned(),
        options,
    };
    let (requests, replace) = mpsc::channel(1);
    let (notice, failed) = (daemon.notice(), stop.clone());
    let mut socket = None;
    let ready = |path: &Path| {
        let path = path.to_owned();
        socket = listen(&path, requests)
            .inspect_err(
                |error| tracing::warn!(%error, "emberfs takeover will not find this mount"),
            )
            .ok();
        tokio::spawn(async move {
            match first_answer(path.clone()).await {
                Ok(()) => notice.send(format_args!("ready {}", path.display())),
                Err(error) => {
                    tracing::error!(%error, "unmounting");
                    failed.cancel();
                }
            }
        });
    };
    let outcome = keeper.run(stop.cancelled(), replace, ready).await;
    drop(socket);
    outcome?;
    Ok(Exit::Success)
}

/// `mount ADDR MNT --worker`, as the keeper starts it.
fn worker_arguments(args: &MountArgs, path: &Path) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["mount".into(), "--worker".into()];
    let options = args.options.iter();
    arguments.extend(options.flat_map(|option| ["-o".into(), option.into()]));
    arguments.extend(["--".into(), args.addr.clone().into(), path.into()]);
    arguments
}

/// A worker. Its standard input is the way to its keeper. Does not return once it has served: ending in the usual way would
/// answer the requests that it leaves to the next worker with errors.
pub(super) async fn work(config: ClientConfig, path: &Path, options: MountOptions) -> Result<Exit> {
    serve::enter(None)?;
    // The keeper gets them as well, and says what is to happen.
    let mut ignored = Vec::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        ignored.push(signal(kind).context("cannot listen for signals")?);
    }
    let control = rustix::io::dup(rustix::stdio::stdin()).context("cannot use standard input")?;
    let outcome = emberfs_fuse::work(control, config, path, &options).await;
    if let Err(error) = &outcome {
        tracing::error!(%error, "the worker ends");
    }
    std::process::exit(i32::from(outcome.is_err()));
}

/// A socket's file, removed in the end.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn socket_of(path: &Path) -> Result<PathBuf> {
    match mount_table::find(path)? {
        Some(mount) => Ok(Path::new(RUN_DIR).join(format!("{}.sock", mount.device))),
        None => fail(format!("{} is not a mount point", path.display())),
    }
}

/// Takes requests for the mount at `path` until the keeper ends.
fn listen(path: &Path, requests: mpsc::Sender<Replace>) -> Result<Socket> {
    let socket = socket_of(path)?;
    make_dir(Path::new(RUN_DIR))?;
    // Of a mount that had this number before.
    let _ = std::fs::remove_file(&socket);
    let what = format!("cannot listen at {}", socket.display());
    let listener = UnixListener::bind(&socket).context(&what)?;
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600)).context(&what)?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let Err(error) = serve_request(stream, &requests).await {
                        tracing::warn!(%error, "a request to hand the mount over was not understood");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept requests to hand the mount over");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    Ok(Socket(socket))
}

async fn serve_request(stream: UnixStream, requests: &mpsc::Sender<Replace>) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    let mut limited = (&mut stream).take(MAX_REQUEST);
    let read = tokio::time::timeout(REQUEST_LIMIT, limited.read_until(b'\n', &mut line)).await;
    read.context("no request came in time")?
        .context("cannot read a request")?;
    let Some(program) = line.strip_suffix(b"\n") else {
        return fail("a request is a line with the path of a program");
    };
    let (answer, outcome) = oneshot::channel();
    let program = OsString::from_vec(program.to_vec()).into();
    let sent = requests.send(Replace { program, answer }).await;
    let outcome = if sent.is_ok() {
        outcome.await.ok()
    } else {
        None
    };
    let said = match outcome {
        Some(Ok(())) => "ok".to_owned(),
        Some(Err(error)) => error.to_string(),
        None => "the mount is being unmounted".to_owned(),
    };
    // Whoever asked may have gone.
    let _ = stream.write_all(said.as_bytes()).await;
    Ok(())
}

/// `emberfs takeover MNT`.
pub(crate) async fn takeover(args: TakeoverArgs) -> Result<Exit> {
    let path = absolute(&args.mountpoint)?;
    let shown = path.display();
    let program = std::env::current_exe().context("cannot find this program's file")?;
    let socket = socket_of(&path)?;
    let _progress = Progress::start(format!("Taking over {shown}"));
    let mut stream = match UnixStream::connect(&socket).await {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ) =>
        {
            return fail(format!(
                "the mount on {shown} has no keeper, so its process cannot be replaced: unmount it and mount it again \
                 (as root, without nokeeper, auto_unmount and transport=ring)"
            ));
        }
        Err(error) => {
            return fail(format!(
                "cannot reach the keeper of {shown} at {}: {error}",
                socket.display()
            ));
        }
    };
    let what = format!("the keeper of {shown} does not answer");
    let request = [program.as_os_str().as_bytes(), b"\n"].concat();
    stream.write_all(&request).await.context(&what)?;
    let mut said = String::new();
    stream.read_to_string(&mut said).await.context(&what)?;
    match said.as_str() {
        "ok" => Ok(Exit::Success),
        "" => Err(Failure::new(what)),
        reason => fail(format!("{shown} is served as before: {reason}")),
    }
}
