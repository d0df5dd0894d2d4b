//! The `emberfs` binary: servers, mount, administration and benchmarks.
//!
//! Every verb is a module that answers an exit code or a [`failure::Failure`], which becomes one line
//! on standard error. Standard output carries only what was asked for.

mod bench;
mod chains;
mod cli;
mod cluster_dir;
mod cluster_path;
mod config_file;
mod daemon;
mod down;
mod durable;
mod failure;
mod fsck;
mod grow;
mod launch;
mod local;
mod logging;
mod mount_cmd;
mod mount_table;
mod output;
mod ports;
mod process;
mod progress;
mod quota;
mod rm;
mod rpc;
mod scrub;
mod serve;
mod settings;
mod show;
mod sizes;
mod status;
mod trash;
mod up;
mod when;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::cli::{Cli, Command, ConfigCommand};
use crate::failure::{Exit, Failure, Result};

/// How long the process waits at its end for blocking calls that hang (a stat of a dead mount).
const SHUTDOWN_WAIT: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let cli = match mount_cmd::helper_arguments(&arguments) {
        Some(Ok(Some(rewritten))) => Cli::parse_from(rewritten),
        Some(Ok(None)) => return ExitCode::SUCCESS,
        Some(Err(failure)) => return report(&failure),
        None => Cli::parse_from(arguments),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            return report(&Failure::new(format!(
                "cannot start worker threads: {error}; raise the limit on processes (ulimit -u)"
            )));
        }
    };
    let outcome = runtime.block_on(run(cli));
    runtime.shutdown_timeout(SHUTDOWN_WAIT);
    match outcome {
        Ok(exit) => exit.into(),
        Err(failure) => report(&failure),
    }
}

fn report(failure: &Failure) -> ExitCode {
    eprintln!("emberfs: {failure}");
    failure.exit().into()
}

async fn run(cli: Cli) -> Result<Exit> {
    let cluster = cli.cluster;
    // What lives longer than a verb says more in its log.
    if !matches!(
        cli.command,
        Command::Meta(_) | Command::Storage(_) | Command::Mount(_)
    ) {
        logging::init(logging::VERB);
    }
    match cli.command {
        Command::Up(args) => up::up(args).await,
        Command::Down(args) => down::down(args).await,
        Command::Start(args) => local::start(args).await,
        Command::Stop(args) => local::stop(args).await,
        Command::Meta(args) => serve::meta(args).await,
        Command::Storage(args) => serve::storage(args).await,
        Command::Mount(args) => mount_cmd::mount(args).await,
        Command::Umount(args) => mount_cmd::umount(args).await,
        Command::Takeover(args) => mount_cmd::takeover(args).await,
        Command::Status(args) => status::status(cluster, args).await,
        Command::Health(args) => status::health(cluster, args).await,
        Command::Fsck(args) => fsck::fsck(cluster, args).await,
        Command::Settings(args) => settings::settings(cluster, args).await,
        Command::Chains(args) => chains::chains(cluster, args).await,
        Command::Scrub(args) => scrub::scrub(cluster, args).await,
        Command::Node(args) => grow::node(cluster, args).await,
        Command::Disk(args) => grow::disk(cluster, args).await,
        Command::Drain(args) => grow::drain(cluster, args).await,
        Command::Replace(args) => grow::replace(cluster, args).await,
        Command::Rm(args) => rm::rm(cluster, args).await,
        Command::Quota(args) => quota::quota(cluster, args).await,
        Command::Trash(args) => trash::trash(cluster, args).await,
        Command::Bench(args) => bench::bench(cluster, args).await,
        Command::Config(ConfigCommand::Check(args)) => config_file::check(&args),
    }
}
