//! A real tree of binaries, thousands of small files and symbolic links comes back as it was.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use emberfs_tests::{TestCluster, pattern};
use sha2::{Digest, Sha256};

/// Small files of the tree that the test makes.
const SMALL_FILES: usize = 1500;

fn toolchain() -> Result<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", "sysroot"]).output()?;
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

/// The tree to copy: `EMBERFS_TEST_TREE` (the whole toolchain, say), or one of the toolchain's binaries,
/// many small files, and every kind of link and mode.
fn source(scratch: &Path) -> Result<PathBuf> {
    if let Some(tree) = std::env::var_os("EMBERFS_TEST_TREE") {
        return Ok(tree.into());
    }
    let tree = scratch.join("source");
    fs::create_dir(&tree)?;
    let binaries = toolchain()?.join("bin");
    let copied = Command::new("cp")
        .arg("-a")
        .arg(binaries)
        .arg(&tree)
        .status()?;
    ensure!(copied.success(), "cannot copy the toolchain's binaries");
    for index in 0..SMALL_FILES {
        let directory = tree.join(format!("directory {}/deep/er", index % 15));
        fs::create_dir_all(&directory)?;
        let path = directory.join(format!("file-{index}"));
        fs::write(&path, pattern(index * 37 % 50_000, index as u64))?;
        fs::set_permissions(
            &path,
            fs::Permissions::from_mode([0o644, 0o600, 0o4755, 0o444][index % 4]),
        )?;
    }
    symlink("bin/rustc", tree.join("relative"))?;
    symlink("/nowhere/at/all", tree.join("dangling"))?;
    symlink("directory 1", tree.join("to a directory"))?;
    fs::hard_link(tree.join("directory 1/deep/er/file-1"), tree.join("hard"))?;
    fs::write(
        tree.join(std::ffi::OsStr::from_bytes(b"not utf-8 \xff\n")),
        "odd",
    )?;
    fs::write(tree.join("n".repeat(255)), "long")?;
    Ok(tree)
}

/// One line per entry: path, kind and mode, owner, times, and content or link target. A directory's
/// size and link count are the file system's own affair.
fn manifest(root: &Path) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let meta = fs::symlink_metadata(&path)?;
            let content = if meta.is_symlink() {
                format!("-> {}", fs::read_link(&path)?.display())
            } else if meta.is_dir() {
                directories.push(path.clone());
                String::new()
            } else {
                let digest = Sha256::digest(fs::read(&path)?);
                format!("{} {:?}", meta.len(), digest)
            };
            let name = path
                .strip_prefix(root)?
                .as_os_str()
                .as_bytes()
                .escape_ascii();
            let (mode, uid, gid) = (meta.mode(), meta.uid(), meta.gid());
            let (seconds, nanos) = (meta.mtime(), meta.mtime_nsec());
            lines.push(format!(
                "{name} {mode:o} {uid}:{gid} {seconds}.{nanos:09} {content}"
            ));
        }
    }
    lines.sort();
    Ok(lines)
}

#[test]
fn a_copied_tree_is_identical_after_a_remount() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let source = source(scratch.path())?;
    let want = manifest(&source)?;
    ensure!(
        want.len() > 100,
        "{} holds only {} entries",
        source.display(),
        want.len()
    );
    let cluster = TestCluster::start(3, 3)?;
    let copy = cluster.mount().join("tree");
    let copied = Command::new("cp")
        .arg("-a")
        .arg(&source)
        .arg(&copy)
        .status()?;
    ensure!(copied.success(), "cp -a reports an error");

    cluster.stop_process("mount")?;
    fs::write("/proc/sys/vm/drop_caches", "3").context("this test runs as root")?;
    cluster.start_process("mount")?;

    let got = manifest(&copy)?;
    if let Some((want, got)) = want.iter().zip(&got).find(|(want, got)| want != got) {
        anyhow::bail!("expected {want}\n     got {got}");
    }
    ensure!(
        want.len() == got.len(),
        "{} entries instead of {}",
        got.len(),
        want.len()
    );
    let diff = Command::new("diff")
        .args(["-r", "--no-dereference"])
        .arg(&source)
        .arg(&copy)
        .status()?;
    ensure!(diff.success(), "diff -r finds differences");
    Ok(())
}
