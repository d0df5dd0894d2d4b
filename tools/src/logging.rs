//! Logs go to standard error; `EMBERFS_LOG` (or `RUST_LOG`) chooses what, in tracing's filter syntax.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Filter of a server or a mount process.
pub(crate) const SERVER: &str = "warn,emberfs=info,emberfs_meta=info,emberfs_storage=info,emberfs_client=info,emberfs_fuse=info";
/// Filter of a verb that ends.
pub(crate) const VERB: &str = "error";

/// Sets logging up; once per process.
pub(crate) fn init(default: &str) {
    let chosen = ["EMBERFS_LOG", "RUST_LOG"]
        .into_iter()
        .find_map(|key| std::env::var(key).ok());
    let filter = EnvFilter::new(chosen.as_deref().unwrap_or(default));
    let terminal = std::io::stderr().is_terminal();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal)
        .compact();
    // A second call (in tests) keeps the first subscriber.
    let _ = subscriber.try_init();
}
