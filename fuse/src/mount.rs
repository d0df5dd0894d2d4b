//! Mounting and what a caller holds afterwards.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use emberfs_client::{Client, Creds, Result};
use emberfs_proto::ids::InodeId;
use emberfs_proto::pb::FileKind;
use emberfs_proto::{Error, ErrorCode};
use rustix::mount::UnmountFlags;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::backend::Backend;
use crate::classic::End;
use crate::handler::Handler;
use crate::server::{Gate, MAX_IN_FLIGHT, Parts};
use crate::{MountOptions, Transport, classic, device, mountinfo, preflight, ring};

#[cfg(test)]
mod tests;

/// How long requests that outlive an unmount may take before what they hold is closed anyway.
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Mounts the cluster of `client` at `mountpoint` and serves it on the current tokio runtime, which
/// must have worker threads. Errors are one line each: what is wrong, where, what to do.
pub async fn mount(client: Client, mountpoint: &Path, options: MountOptions) -> Result<Mounted> {
    mount_backend(client, mountpoint, options).await
}

/// A mount that this process serves. Dropping it detaches the mount without waiting for anything;
/// [`Self::unmount`] is the clean way.
pub struct Mounted {
    path: PathBuf,
    /// The kernel's number for this mount.
    id: Option<u64>,
    transport: Transport,
    /// Ends after the kernel has let go and everything is flushed; `None` once its outcome is taken.
    keeper: Option<JoinHandle<Result<()>>>,
}

impl Mounted {
    /// The mount point as an absolute path without symlinks.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How requests travel: [`Transport::Classic`] or [`Transport::Ring`].
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Waits until somebody unmounts, here or with umount(8), and everything that was buffered is
    /// on the servers. May be dropped and called again; after it has returned it returns at once.
    pub async fn wait(&mut self) -> Result<()> {
        let Some(keeper) = &mut self.keeper else {
            return Ok(());
        };
        let outcome = keeper.await;
        self.keeper = None;
        outcome.unwrap_or_else(|error| {
            Err(Error::new(
                ErrorCode::Internal,
                format!("the mount's keeper ended early: {error}"),
            ))
        })
    }

    /// Unmounts, flushes, and ends the client's sessions. If a program still uses the mount, the
    /// error carries [`ErrorCode::Busy`] and the mount goes on: try again later.
    pub async fn unmount(&mut self) -> Result<()> {
        let Some(keeper) = &self.keeper else {
            return Ok(());
        };
        if !keeper.is_finished() && self.is_on_top() {
            let path = self.path.clone();
            let asked = tokio::task::spawn_blocking(move || crate::unmount(&path)).await;
            let asked = asked.unwrap_or_else(|error| {
                let what = format!("unmounting ended early: {error}");
                Err(Error::new(ErrorCode::Internal, what))
            });
            match asked {
                // Gone already: there is still its end to wait for.
                Err(error) if error.code != ErrorCode::NotFound => return Err(error),
                _ => {}
            }
        }
        self.wait().await
    }

    /// Is this mount what is found at its path? Somebody may have detached it and mounted another.
    fn is_on_top(&self) -> bool {
        matches!(mountinfo::find(&self.path), Ok(Some(mount)) if Some(mount.id) == self.id)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self
            .keeper
            .as_ref()
            .is_some_and(|keeper| !keeper.is_finished())
            && self.is_on_top()
        {
            detach(&self.path);
        }
    }
}

/// Takes the mount out of the tree without waiting for its users.
pub(crate) fn detach(path: &Path) {
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    if let Err(errno) = rustix::mount::unmount(path, flags) {
        tracing::debug!(mountpoint = %path.display(), %errno, "cannot be detached");
    }
}

pub(crate) async fn mount_backend<B: Backend>(
    backend: B,
    mountpoint: &Path,
    options: MountOptions,
) -> Result<Mounted> {
    mount_with(backend, mountpoint, &options, candidates(options.transport)).await
}

/// The transports to try, in this order; the first that can be had is taken. This is the one place
/// that says what `transport=auto` means.
fn candidates(wanted: Transport) -> &'static [Transport] {
    match wanted {
        Transport::Auto | Transport::Classic => &[Transport::Classic],
        Transport::Ring => &[Transport::Ring],
    }
}

async fn mount_with<B: Backend>(
    backend: B,
    mountpoint: &Path,
    options: &MountOptions,
    candidates: &'static [Transport],
) -> Result<Mounted> {
    let root = resolve_root(&backend, options).await?;
    let handler = Arc::new(Handler::new(backend, root, options.direct_io));
    let parts = Parts {
        handler: handler.clone(),
        runtime: tokio::runtime::Handle::current(),
        gate: Gate::new(MAX_IN_FLIGHT),
    };
    let gate = parts.gate.clone();
    let (wanted, options) = (mountpoint.to_owned(), options.clone());
    let attached = tokio::task::spawn_blocking(move || {
        let path = preflight::check(&wanted)?;
        let (transport, serve) = attach(candidates, &parts, &path, &options)?;
        device::set_read_ahead(&path, options.read_ahead_kb);
        let id = mountinfo::find(&path).ok().flatten().map(|mount| mount.id);
        Ok((path, id, transport, serve))
    });
    let (path, id, transport, serve) = attached.await.unwrap_or_else(|error| {
        Err(Error::new(
            ErrorCode::Internal,
            format!("mounting ended early: {error}"),
        ))
    })?;
    let ended = start_thread(&path, serve).inspect_err(|_| detach(&path))?;
    tracing::info!(mountpoint = %path.display(), ?transport, "mounted");
    let keeper = tokio::spawn(keep(path.clone(), handler, gate, ended));
    Ok(Mounted {
        path,
        id,
        transport,
        keeper: Some(keeper),
    })
}

/// Serves a mount until it is gone; blocks.
type Serve = Box<dyn FnOnce() -> std::io::Result<End> + Send>;

/// Mounts with the first transport that can be had; the last one's error counts.
fn attach<B: Backend>(
    candidates: &[Transport],
    parts: &Parts<B>,
    path: &Path,
    options: &MountOptions,
) -> Result<(Transport, Serve)> {
    let mut refused = Error::new(ErrorCode::Internal, "no transport to try");
    for &transport in candidates {
        let attached: Result<Serve> = match transport {
            Transport::Ring => ring::Session::attach(parts, path, options)
                .map(|session| Box::new(move || session.run().map(|()| End::Unmounted)) as Serve),
            Transport::Auto | Transport::Classic => classic::Session::attach(parts, path, options)
                .map(|session| Box::new(move || session.run()) as Serve),
        };
        match attached {
            Ok(serve) => return Ok((transport, serve)),
            Err(error) => {
                tracing::info!(mountpoint = %path.display(), ?transport, %error, "not to be had");
                refused = error;
            }
        }
    }
    Err(refused)
}

pub(crate) async fn resolve_root<B: Backend>(
    backend: &B,
    options: &MountOptions,
) -> Result<InodeId> {
    let Some(subdir) = &options.subdir else {
        return Ok(backend.root());
    };
    let creds = Creds {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
    };
    let attr = backend.resolve(&creds, subdir).await.map_err(|error| {
        error.context(format!(
            "subdir={subdir} cannot be mounted; create it or choose another"
        ))
    })?;
    if attr.kind() != FileKind::Directory {
        let what = format!("subdir={subdir} is not a directory; choose one");
        return Err(Error::new(ErrorCode::NotDirectory, what));
    }
    Ok(InodeId(attr.inode))
}

/// Starts the device threads; the receiver learns how they ended.
pub(crate) fn start_thread(
    path: &Path,
    serve: impl FnOnce() -> std::io::Result<End> + Send + 'static,
) -> Result<oneshot::Receiver<std::io::Result<End>>> {
    let (end, ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name("emberfs-fuse".to_owned());
    let started = thread.spawn(move || {
        let _ = end.send(serve());
    });
    started.map_err(|error| {
        let what = format!("the mount's threads cannot be started ({error}); raise ulimit -u");
        preflight::at(path, ErrorCode::Internal, &what)
    })?;
    Ok(ended)
}

/// Waits for the end of the mount and puts everything away.
async fn keep<B: Backend>(
    path: PathBuf,
    handler: Arc<Handler<B>>,
    gate: Arc<Gate>,
    ended: oneshot::Receiver<std::io::Result<End>>,
) -> Result<()> {
    let outcome = ended.await;
    // A device thread may fail while the mount is still there; nobody would answer any more.
    let abandoned = !matches!(outcome, Ok(Ok(_)));
    if abandoned {
        detach(&path);
    }
    let drained = tokio::task::spawn_blocking(move || gate.wait_idle(DRAIN_TIMEOUT)).await;
    if !drained.unwrap_or(false) {
        tracing::warn!(mountpoint = %path.display(), "requests are still running at unmount");
    }
    handler.finish().await;
    tracing::info!(mountpoint = %path.display(), "unmounted");
    match outcome {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => {
            let what = format!("was given up: its device failed ({error}); mount it again");
            Err(preflight::at(&path, ErrorCode::Internal, &what))
        }
        Err(_) => {
            let what = "was given up: its threads panicked; mount it again";
            Err(preflight::at(&path, ErrorCode::Internal, what))
        }
    }
}
