//! Finding the binary under test.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The `emberfs` to test: `EMBERFS_BIN`, or the one built beside this test.
pub fn emberfs_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("EMBERFS_BIN") {
        let path = PathBuf::from(path);
        if path.is_file() {
            return Ok(path.canonicalize()?);
        }
        bail!(
            "EMBERFS_BIN names {}, which is no file: run `make test`",
            path.display()
        );
    }
    // TARGET/PROFILE/deps/this-test
    let own = std::env::current_exe()?;
    let profile = own.parent().and_then(Path::parent);
    match profile
        .map(|dir| dir.join("emberfs"))
        .filter(|path| path.is_file())
    {
        Some(path) => Ok(path),
        None => bail!("no emberfs binary: run `cargo build -p emberfs`, or set EMBERFS_BIN"),
    }
}
