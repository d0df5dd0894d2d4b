//! `emberfs meta` and `emberfs storage`: the servers as processes.

use std::net::SocketAddr;
use std::path::Path;

use emberfs_meta::config::MetaConfig;
use emberfs_storage::config::StorageConfig;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::cli::ServerArgs;
use crate::config_file;
use crate::daemon::{Daemon, ReadyNotice};
use crate::failure::{Context, Exit, Result};
use crate::logging;

/// `emberfs meta --config FILE`.
pub(crate) async fn meta(args: ServerArgs) -> Result<Exit> {
    let daemon = enter(args.daemon.daemon.as_deref())?;
    let config: MetaConfig = config_file::load(&args.config)?;
    let stop = stop_on_signals()?;
    let ready = announce("metadata server", daemon.notice());
    emberfs_meta::server::run(config, stop, ready).await?;
    Ok(Exit::Success)
}

/// `emberfs storage --config FILE`.
pub(crate) async fn storage(args: ServerArgs) -> Result<Exit> {
    let daemon = enter(args.daemon.daemon.as_deref())?;
    let config: StorageConfig = config_file::load(&args.config)?;
    let stop = stop_on_signals()?;
    let ready = announce("storage server", daemon.notice());
    emberfs_storage::server::run(config, stop, ready).await?;
    Ok(Exit::Success)
}

/// What every long-running process does first.
pub(crate) fn enter(stem: Option<&Path>) -> Result<Daemon> {
    logging::init(logging::SERVER);
    raise_descriptor_limit();
    Daemon::enter(stem)
}

/// SIGTERM and SIGINT end the service cleanly; a second one ends the process.
pub(crate) fn stop_on_signals() -> Result<CancellationToken> {
    let mut term = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        tracing::info!("stopping");
        token.cancel();
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        tracing::warn!("second signal: ending at once");
        std::process::exit(1);
    });
    Ok(stop)
}

fn announce(what: &'static str, notice: ReadyNotice) -> impl FnOnce(SocketAddr) + Send {
    move |address| {
        tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "{what} is ready");
        notice.send(format_args!("ready {address}"));
    }
}

/// A server's connections need more descriptors than a login shell allows by default.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit on open descriptors");
    }
}
