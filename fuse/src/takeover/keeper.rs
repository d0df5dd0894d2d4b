//! The process that holds a mount and starts those that serve it.

use std::ffi::OsString;
use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use emberfs_client::Result;
use emberfs_proto::ids::ClientId;
use emberfs_proto::{Error, ErrorCode};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::control::{Line, Note, Say};
use super::ledger::{FILES, Ledger};
use crate::mount::detach;
use crate::protocol::reply;
use crate::{MountOptions, device, preflight};

/// This program, even if its file has been replaced.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// How long a worker may take to go when another is ready.
const LEAVE_LIMIT: Duration = Duration::from_secs(30);
/// The same of its process, once it has said that it is done.
const EXIT_LIMIT: Duration = Duration::from_secs(5);
/// How long a new worker may take to find out whether it reaches the cluster.
const TRY_LIMIT: Duration = Duration::from_mins(1);
/// Pauses between workers that die: the first one, doubled each time up to the last one.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// A worker that has served for so long was well.
const WELL_AFTER: Duration = Duration::from_secs(30);
/// When so many in a row failed by themselves, the requests that they did not answer are refused.
const REFUSE_AFTER: u32 = 3;

/// Somebody wants the mount to be served by this program from now on.
pub struct Replace {
    /// The program's file.
    pub program: PathBuf,
    /// Gets the outcome; if it is an error the mount goes on as before.
    pub answer: oneshot::Sender<Result<()>>,
}

/// How to start a process that calls [`crate::work`] with its standard input.
pub struct Keeper {
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Where to mount.
    pub mountpoint: PathBuf,
    /// As the arguments say.
    pub options: MountOptions,
}

/// A process that serves the mount, or will.
struct Worker {
    child: Child,
    line: Line,
}

/// A mount with everything that is handed to workers.
struct Held {
    path: PathBuf,
    client: ClientId,
    instance: u32,
    devices: Vec<OwnedFd>,
    files: [OwnedFd; FILES],
    program: PathBuf,
    arguments: Vec<OsString>,
}

/// Why the keeper stops waiting for a worker.
enum Event {
    Said(Option<Note>),
    Replace(Replace),
    Stop,
}

impl Keeper {
    /// Mounts, says `ready` when the mount is served, and goes on until it is unmounted. `stop`: unmount as soon as nobody
    /// uses it.
    pub async fn run(
        self,
        stop: impl Future<Output = ()>,
        mut replace: mpsc::Receiver<Replace>,
        ready: impl FnOnce(&Path),
    ) -> Result<()> {
        let mut stop = pin!(stop);
        let client = ClientId(rand_id()?);
        let mut first = Worker::start(Path::new(THIS_PROGRAM), &self.arguments)?;
        first.ask(&become_note(client, 1), &[]).await?;
        let mut held = self.mount(client)?;
        if let Err(error) = held.serve(&mut first, (false, true)).await {
            detach(&held.path);
            return Err(error);
        }
        ready(&held.path);
        let mut worker = first;
        let (mut well_since, mut stopped) = (Instant::now(), false);
        let mut deaths = Deaths::default();
        loop {
            let event = tokio::select! {
                note = worker.line.receive() => Event::Said(note.unwrap_or_default().map(|(note, _)| note)),
                Some(request) = replace.recv() => Event::Replace(request),
                () = &mut stop, if !stopped => Event::Stop,
            };
            match event {
                Event::Said(Some(note)) if note.say() == Say::Unmounted => {
                    let _ = tokio::time::timeout(EXIT_LIMIT, worker.child.wait()).await;
                    tracing::info!(mountpoint = %held.path.display(), "unmounted");
                    return Ok(());
                }
                Event::Said(Some(note)) => {
                    tracing::warn!(said = ?note.say(), "the worker says something unexpected");
                }
                Event::Stop => {
                    stopped = true;
                    let _ = worker.line.send(&Note::new(Say::Stop), &[]).await;
                }
                Event::Replace(Replace { program, answer }) => {
                    let outcome = held.hand_over(&mut worker, program).await;
                    if let Err(error) = &outcome {
                        tracing::warn!(%error, "the mount could not be handed over");
                    }
                    let _ = answer.send(outcome);
                    well_since = Instant::now();
                }
                Event::Said(None) => {
                    let status = worker.end().await;
                    if well_since.elapsed() >= WELL_AFTER {
                        deaths = Deaths::default();
                    }
                    deaths.count(&status);
                    let status = said(&status);
                    tracing::error!(
                        status,
                        deaths = deaths.all,
                        "the process that serves the mount has ended; starting another"
                    );
                    let revived = tokio::select! {
                        revived = held.revive(deaths) => revived,
                        () = &mut stop, if !stopped => {
                            // Nobody answers requests now; whoever uses the mount gets errors.
                            detach(&held.path);
                            return Ok(());
                        }
                    };
                    worker = revived;
                    if stopped {
                        let _ = worker.line.send(&Note::new(Say::Stop), &[]).await;
                    }
                    well_since = Instant::now();
                }
            }
        }
    }

    fn mount(self, client: ClientId) -> Result<Held> {
        let path = preflight::check(&self.mountpoint)?;
        let files = Ledger::create().map_err(|error| cannot("keep what a mount needs", &error))?;
        let device = device::attach(&path, &self.options)?;
        device::set_read_ahead(&path, self.options.read_ahead_kb);
        let devices = device::several(&device.fd, self.options.threads);
        let devices: std::io::Result<Vec<_>> = devices.iter().map(|fd| fd.try_clone()).collect();
        let devices = devices.map_err(|error| {
            detach(&path);
            cannot("open more descriptors", &error)
        })?;
        tracing::info!(mountpoint = %path.display(), "mounted");
        Ok(Held {
            path,
            client,
            instance: 1,
            devices,
            files,
            program: THIS_PROGRAM.into(),
            arguments: self.arguments,
        })
    }
}

impl Held {
    /// Has a worker, which is the client already, serve the mount. `refuse` and `complete`: see [`Note`].
    async fn serve(&self, worker: &mut Worker, (refuse, complete): (bool, bool)) -> Result<()> {
        let note = Note {
            refuse,
            complete,
            ..Note::new(Say::Serve)
        };
        let descriptors = self.files.iter().chain(&self.devices);
        let descriptors: Vec<_> = descriptors.map(AsFd::as_fd).collect();
        worker.ask(&note, &descriptors).await.map(drop)
    }

    /// Whoever waits for a worker that is gone can be killed from now on.
    fn send_again(&self) {
        // It fails where the kernel does not know it, and when the mount is gone.
        let _ = rustix::io::write(&self.devices[0], &reply::send_again());
    }

    /// A worker after one that died; tries until it has one.
    async fn revive(&mut self, deaths: Deaths) -> Worker {
        let mut pause = FIRST_PAUSE * 2_u32.saturating_pow(deaths.all.saturating_sub(1).min(16));
        loop {
            self.send_again();
            if deaths.all > 1 {
                tokio::time::sleep(pause.min(LAST_PAUSE)).await;
            }
            match self
                .next_worker(None, (deaths.own >= REFUSE_AFTER, false))
                .await
            {
                Ok(worker) => return worker,
                Err(error) => {
                    tracing::error!(%error, "the mount is not served; trying again");
                    // A program that cannot be started any more is not tried for ever.
                    self.program = THIS_PROGRAM.into();
                    tokio::time::sleep(pause.min(LAST_PAUSE)).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
    }

    /// Makes a process the client and has it serve the mount.
    async fn next_worker(&mut self, started: Option<Worker>, how: (bool, bool)) -> Result<Worker> {
        let mut worker = match started {
            Some(worker) => worker,
            None => Worker::start(&self.program, &self.arguments)?,
        };
        self.instance += 1;
        let note = become_note(self.client, self.instance);
        worker.ask(&note, &[]).await?;
        self.serve(&mut worker, how).await?;
        Ok(worker)
    }

    /// Has `program` serve the mount instead of `worker`. An error: the mount goes on as before.
    async fn hand_over(&mut self, worker: &mut Worker, program: PathBuf) -> Result<()> {
        let mut next = Worker::start(&program, &self.arguments)?;
        let note = Note::new(Say::Try);
        match tokio::time::timeout(TRY_LIMIT, next.ask(&note, &[])).await {
            Ok(tried) => drop(tried?),
            Err(_) => {
                let what = format!(
                    "{} does not reach the cluster within {} s; the mount goes on as before",
                    program.display(),
                    TRY_LIMIT.as_secs()
                );
                return Err(Error::new(ErrorCode::DeadlineExceeded, what));
            }
        }
        let left = async {
            let done = worker.ask(&Note::new(Say::Leave), &[]).await?;
            let waited = tokio::time::timeout(EXIT_LIMIT, worker.child.wait()).await;
            let late = |_| Error::new(ErrorCode::DeadlineExceeded, "it does not exit");
            waited
                .map_err(late)?
                .map_err(|error| cannot("wait for it", &error))?;
            Ok::<_, Error>(done.complete)
        };
        let complete = match tokio::time::timeout(LEAVE_LIMIT, left).await {
            Ok(Ok(complete)) => complete,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the old process is ended");
                false
            }
            Err(_) => {
                tracing::warn!("the old process does not leave: it is ended");
                false
            }
        };
        // What it did not finish is asked for again.
        let _ = worker.end().await;
        self.send_again();
        self.program = program;
        match self.next_worker(Some(next), (false, complete)).await {
            Ok(next) => {
                *worker = next;
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "the new process cannot serve the mount");
                self.program = THIS_PROGRAM.into();
                *worker = self.revive(Deaths::default()).await;
                Err(error)
            }
        }
    }
}

impl Worker {
    fn start(program: &Path, arguments: &[OsString]) -> Result<Self> {
        let failed = |error: std::io::Error| {
            let what = format!("cannot start {}: {error}", program.display());
            Error::new(ErrorCode::Unavailable, what)
        };
        let (line, end) = Line::pair().map_err(failed)?;
        let child = Command::new(program)
            .arg0("emberfs")
            .args(arguments)
            .stdin(Stdio::from(end))
            .stdout(Stdio::null())
            // What a terminal sends is for the keeper.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        Ok(Self { child, line })
    }

    /// Tells it something and waits until that is done.
    async fn ask(&mut self, note: &Note, descriptors: &[BorrowedFd<'_>]) -> Result<Note> {
        let broken =
            |error: &std::io::Error| cannot("speak to the process that serves the mount", error);
        self.line
            .send(note, descriptors)
            .await
            .map_err(|error| broken(&error))?;
        match self.line.receive().await.map_err(|error| broken(&error))? {
            Some((note, _)) if note.say() == Say::Done => Ok(note),
            Some((note, _)) if note.say() == Say::Failed => Err(note.error()),
            Some((note, _)) => {
                let what = format!(
                    "the process that is to serve the mount answers {:?}",
                    note.say()
                );
                Err(Error::new(ErrorCode::Protocol, what))
            }
            None => {
                let status = said(&self.end().await);
                let what = format!("the process that is to serve the mount ended: {status}");
                Err(Error::new(ErrorCode::Unavailable, what))
            }
        }
    }

    /// Makes sure that it has ended; how it did.
    async fn end(&mut self) -> std::io::Result<ExitStatus> {
        let exited = tokio::time::timeout(EXIT_LIMIT, self.child.wait()).await;
        if exited.is_err() {
            let _ = self.child.start_kill();
        }
        self.child.wait().await
    }
}

fn said(status: &std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}

/// Workers in a row that died soon.
#[derive(Clone, Copy, Debug, Default)]
struct Deaths {
    all: u32,
    /// Of faults of their own, which a request may have caused: nobody killed them.
    own: u32,
}

impl Deaths {
    fn count(&mut self, status: &std::io::Result<ExitStatus>) {
        self.all += 1;
        let killed = |status: &ExitStatus| {
            matches!(
                status.signal(),
                Some(libc::SIGKILL | libc::SIGTERM | libc::SIGINT)
            )
        };
        self.own += u32::from(!status.as_ref().is_ok_and(killed));
    }
}

fn become_note(client: ClientId, instance: u32) -> Note {
    Note {
        client: client.to_bytes().to_vec(),
        instance,
        ..Note::new(Say::Become)
    }
}

/// A number that no other client has.
fn rand_id() -> Result<u128> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| cannot("draw a random number", &errno.into()))?;
    Ok(u128::from_ne_bytes(bytes))
}

fn cannot(what: &str, error: &std::io::Error) -> Error {
    Error::new(ErrorCode::Internal, format!("cannot {what}: {error}"))
}
