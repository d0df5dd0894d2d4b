//! Arguments of `emberfs trash`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::DEFAULT_DIR;
use crate::when::parse_span;

#[derive(Args, Debug)]
pub(crate) struct TrashArgs {
    /// Directory of the cluster on this host
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_DIR)]
    pub(crate) dir: PathBuf,
    /// What to do
    #[command(subcommand)]
    pub(crate) command: TrashCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TrashCommand {
    /// Keep what is removed below a directory from now on
    On(TrashOnArgs),
    /// Keep nothing that is removed below a directory from now on, whatever holds above it
    Off(TrashPathArgs),
    /// Let a directory do as its parent does
    Inherit(TrashPathArgs),
    /// Say what holds for a directory
    Status(TrashStatusArgs),
    /// List what is in the trash, the newest first
    List(TrashListArgs),
    /// Give a removed name back; a directory comes back with all that was in it
    Restore(TrashRestoreArgs),
    /// Remove for good what is in the trash
    Empty(TrashEmptyArgs),
}

#[derive(Args, Debug)]
pub(crate) struct TrashOnArgs {
    /// A directory: its path in the cluster
    pub(crate) path: String,
    /// For how long, such as 7d: s, m, h, d or w
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    pub(crate) keep: u64,
}

#[derive(Args, Debug)]
pub(crate) struct TrashPathArgs {
    /// A directory: its path in the cluster
    pub(crate) path: String,
}

#[derive(Args, Debug)]
pub(crate) struct TrashStatusArgs {
    /// A directory: its path in the cluster
    pub(crate) path: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct TrashListArgs {
    /// Only what was removed below this directory [default: everything]
    pub(crate) path: Option<String>,
    /// Also what was removed from directories that are in the trash themselves, and comes back with them
    #[arg(long)]
    pub(crate) all: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct TrashRestoreArgs {
    /// What was removed: its path as `list` shows it
    pub(crate) path: String,
    /// The removal at this time (UTC, or how it begins) instead of the newest: '2026-11-30 02:43'
    #[arg(long, value_name = "TIME")]
    pub(crate) at: Option<String>,
    /// Another name for it, or a directory to put it in
    #[arg(long, value_name = "PATH")]
    pub(crate) to: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct TrashEmptyArgs {
    /// A directory: all that was removed below it. Anything else: what had this path
    pub(crate) path: String,
}
