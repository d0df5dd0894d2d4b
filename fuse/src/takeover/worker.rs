//! The process that serves a mount for a keeper.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use emberfs_client::{Client, ClientConfig, Identity, Result};
use emberfs_proto::ids::ClientId;
use emberfs_proto::{Error, ErrorCode};
use tokio::sync::oneshot;

use super::control::{Line, Note, Say};
use super::ledger::{FILES, Ledger};
use crate::MountOptions;
use crate::classic::{End, Session};
use crate::handler::Handler;
use crate::mount::{DRAIN_TIMEOUT, resolve_root, start_thread};
use crate::server::{Gate, MAX_IN_FLIGHT, Parts};

/// How long requests that were begun may take when another process is to go on; what is left then is asked for again.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between attempts to unmount while programs use the mount.
const BUSY_PAUSE: Duration = Duration::from_millis(500);

/// Serves the mount at `path` as the keeper at the other end of `control` says. Ends when the mount is gone, when another
/// process is to go on, or with an error; the process must exit then, without closing what it has open.
pub async fn work(
    control: OwnedFd,
    config: ClientConfig,
    path: &Path,
    options: &MountOptions,
) -> Result<()> {
    let line = Line::new(control).map_err(|error| cut(&error))?;
    let mut client = None;
    let (told, descriptors) = loop {
        let (note, descriptors) = next(&line).await?;
        let outcome = match note.say() {
            Say::Try => try_cluster(&config).await,
            Say::Become => match become_client(&config, &note, options.late_close).await {
                Ok(connected) => {
                    client = Some(connected);
                    Ok(())
                }
                Err(error) => Err(error),
            },
            Say::Serve => break (note, descriptors),
            _ => return Ok(()),
        };
        answer(&line, outcome).await?;
    };
    let client = client.ok_or_else(|| protocol("it was not told which client to be"))?;
    let begun = Serving::begin(client, descriptors, &told, path, options).await;
    match begun {
        Ok(serving) => {
            answer(&line, Ok(())).await?;
            serving.until_told(&line).await
        }
        Err(error) => answer(&line, Err(error)).await,
    }
}

async fn next(line: &Line) -> Result<(Note, Vec<OwnedFd>)> {
    let received = line.receive().await.map_err(|error| cut(&error))?;
    received.ok_or_else(|| cut(&io::ErrorKind::UnexpectedEof.into()))
}

async fn answer(line: &Line, outcome: Result<()>) -> Result<()> {
    let note = match outcome {
        Ok(()) => Note::new(Say::Done),
        Err(error) => Note::failed(&error),
    };
    line.send(&note, &[]).await.map_err(|error| cut(&error))
}

/// Without its keeper nobody would start another process, and whoever stopped the keeper wants the mount to end.
fn cut(error: &io::Error) -> Error {
    let what = format!("the process that keeps the mount is gone ({error}); mount it again");
    Error::new(ErrorCode::Unavailable, what)
}

fn protocol(what: &str) -> Error {
    let what = format!("the keeper of the mount is of another version: {what}; mount it again");
    Error::new(ErrorCode::Protocol, what)
}

async fn try_cluster(config: &ClientConfig) -> Result<()> {
    let client = Client::connect(config.clone()).await?;
    client.shutdown().await;
    Ok(())
}

async fn become_client(config: &ClientConfig, note: &Note, delegations: bool) -> Result<Client> {
    let client = ClientId::from_bytes(&note.client);
    let client = client.ok_or_else(|| protocol("a client's id has 16 bytes"))?;
    let config = ClientConfig {
        identity: Some(Identity {
            client,
            instance: note.instance,
        }),
        keep_pieces: true,
        delegations,
        ..config.clone()
    };
    Client::connect(config).await
}

/// A mount that is being served.
struct Serving {
    client: Client,
    handler: Arc<Handler<Client>>,
    gate: Arc<Gate>,
    leave: crate::classic::Leave,
    ended: oneshot::Receiver<io::Result<End>>,
    path: PathBuf,
}

impl Serving {
    async fn begin(
        client: Client,
        mut descriptors: Vec<OwnedFd>,
        told: &Note,
        path: &Path,
        options: &MountOptions,
    ) -> Result<Self> {
        let devices = descriptors.split_off(FILES.min(descriptors.len()));
        let files: [OwnedFd; FILES] = descriptors
            .try_into()
            .map_err(|_| protocol("it passed too few files"))?;
        if devices.is_empty() {
            return Err(protocol("it passed no device"));
        }
        super::nudge::prepare().map_err(|error| cannot("be interrupted", &error))?;
        let (ledger, found) =
            Ledger::open(files).map_err(|error| cannot("read what is left of it", &error))?;
        let resumes = client
            .config()
            .identity
            .is_some_and(|identity| identity.instance > 1);
        if resumes {
            let (opens, dirs) = (found.opens.len(), found.dirs.len());
            let bytes: usize = found.writes.iter().map(|write| write.data.len()).sum();
            tracing::info!(
                opens,
                dirs,
                bytes,
                "going on where an earlier process stopped"
            );
        } else {
            ledger.freeze(false);
        }
        let root = resolve_root(&client, options).await?;
        let handler = Handler::new(client.clone(), root, options.direct_io);
        let handler = handler.with_ledger(Arc::new(ledger));
        let handler = Arc::new(handler);
        if resumes && let Err(error) = handler.resume(found, told.complete).await {
            abandon(handler);
            return Err(error);
        }
        let parts = Parts {
            handler: handler.clone(),
            runtime: tokio::runtime::Handle::current(),
            gate: Gate::new(MAX_IN_FLIGHT),
        };
        let gate = parts.gate.clone();
        let devices = devices.into_iter().map(Arc::new).collect();
        let session = Session::over(&parts, devices, options).resuming(told.refuse);
        let leave = session.leave();
        let ended = match start_thread(path, move || session.run()) {
            Ok(ended) => ended,
            Err(error) => {
                abandon(handler);
                return Err(error);
            }
        };
        Ok(Self {
            client,
            handler,
            gate,
            leave,
            ended,
            path: path.to_owned(),
        })
    }

    async fn until_told(mut self, line: &Line) -> Result<()> {
        let mut unmounted = std::pin::pin!(unmount(self.path.clone()));
        let mut stopping = false;
        loop {
            tokio::select! {
                ended = &mut self.ended => return self.ended(ended, line).await,
                note = next(line) => match note {
                    Ok((note, _)) if note.say() == Say::Leave => return self.leave(line).await,
                    Ok((note, _)) => stopping |= note.say() == Say::Stop,
                    Err(error) => {
                        self.abandon();
                        return Err(error);
                    }
                },
                () = &mut unmounted, if stopping => stopping = false,
            }
        }
    }
}

/// Unmounts when nobody uses the mount.
async fn unmount(path: PathBuf) {
    loop {
        let path = path.clone();
        let asked = tokio::task::spawn_blocking(move || crate::unmount(&path)).await;
        match asked {
            Ok(Err(error)) if error.code == ErrorCode::Busy => {
                tracing::warn!(%error, "waiting until the mount is not in use");
            }
            Ok(Err(error)) => tracing::error!(%error, "cannot unmount"),
            Ok(Ok(())) | Err(_) => return,
        }
        tokio::time::sleep(BUSY_PAUSE).await;
    }
}

impl Serving {
    async fn ended(
        self,
        ended: std::result::Result<io::Result<End>, oneshot::error::RecvError>,
        line: &Line,
    ) -> Result<()> {
        match ended {
            Ok(Ok(End::Unmounted)) => {
                let gate = self.gate.clone();
                let drained = tokio::task::spawn_blocking(move || gate.wait_idle(DRAIN_TIMEOUT));
                if !drained.await.unwrap_or(false) {
                    tracing::warn!("requests are still running at unmount");
                }
                self.handler.finish().await;
                let note = Note::new(Say::Unmounted);
                line.send(&note, &[]).await.map_err(|error| cut(&error))
            }
            Ok(Ok(End::Left)) => {
                self.abandon();
                Ok(())
            }
            Ok(Err(error)) => {
                self.abandon();
                Err(cannot("read requests", &error))
            }
            Err(_) => {
                self.abandon();
                Err(Error::new(
                    ErrorCode::Internal,
                    "the mount's threads panicked",
                ))
            }
        }
    }

    /// Another process goes on.
    async fn leave(mut self, line: &Line) -> Result<()> {
        self.leave.ask();
        let ended = (&mut self.ended).await;
        if !matches!(ended, Ok(Ok(End::Left))) {
            return self.ended(ended, line).await;
        }
        let gate = self.gate.clone();
        let drained = tokio::task::spawn_blocking(move || gate.wait_idle(LEAVE_TIMEOUT)).await;
        let drained = drained.unwrap_or(false);
        if !drained {
            tracing::info!("requests that are still running are left to the next process");
        }
        let stored = tokio::time::timeout(LEAVE_TIMEOUT, self.client.hand_over()).await;
        let stored = stored.unwrap_or_else(|_| {
            let what = "not everything could be stored in time";
            Err(Error::new(ErrorCode::DeadlineExceeded, what))
        });
        let complete = drained && stored.is_ok();
        if let Err(error) = stored {
            tracing::warn!(%error, "the next process goes on with what is not stored yet");
        }
        let note = Note {
            complete,
            ..Note::new(Say::Done)
        };
        let done = line.send(&note, &[]).await.map_err(|error| cut(&error));
        self.abandon();
        done
    }

    fn abandon(self) {
        abandon(self.handler);
    }
}

/// Leaves everything for the next process: what is open stays open, and bytes that are not stored stay where they are.
fn abandon(handler: Arc<Handler<Client>>) {
    handler.freeze();
    std::mem::forget(handler);
}

fn cannot(what: &str, error: &io::Error) -> Error {
    Error::new(
        ErrorCode::Internal,
        format!("the mount cannot {what}: {error}"),
    )
}
