//! `emberfs rm -r`, and a rename on a mount: gone at once, and really gone a little later.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use emberfs_tests::{ClusterOptions, TestCluster, wait};

#[test]
fn a_tree_goes_by_one_request_and_its_space_comes_back() -> Result<()> {
    // Nothing is collected for one lease after a start of the metadata server.
    let options = ClusterOptions {
        settings: vec!["meta.client_lease_ms=3000".to_owned()],
        ..ClusterOptions::new(1, 1)
    };
    let cluster = TestCluster::with(options)?;
    let top = cluster.mount().join("old");
    for dir in ["a", "a/b", "c"] {
        fs::create_dir_all(top.join(dir))?;
        for file in 0..20 {
            fs::write(top.join(dir).join(format!("file-{file}")), b"some bytes")?;
        }
    }
    let refused = cluster.emberfs("rm", &["-r", "old"])?;
    refused.expect_refusal(&["such as /old"])?;
    // A path of the host is no path of the cluster, but says which one is meant.
    let on_mount = top.display().to_string();
    let refused = cluster.emberfs("rm", &["-r", &on_mount])?;
    refused.expect_refusal(&[&on_mount, "is /old"])?;
    let refused = cluster.emberfs("rm", &["-r", "/old/a/file-1"])?;
    refused.expect_refusal(&["not a directory"])?;
    let removed = cluster.emberfs("rm", &["-r", "/old"])?.expect_code(0)?;
    ensure!(
        removed.stdout.contains("1 tree removed"),
        "{}",
        removed.stdout
    );
    // The mount hears of it.
    wait(Duration::from_secs(5), || Ok(!top.exists()))?;
    let refused = cluster.emberfs("rm", &["-r", "/old"])?;
    refused.expect_refusal(&["/old"])?;
    wait(Duration::from_secs(30), || {
        let fsck = cluster.fsck()?.json()?;
        Ok(fsck["chunks"].as_u64() == Some(0))
    })
}

#[test]
fn a_tree_goes_by_a_rename_on_any_mount() -> Result<()> {
    let options = ClusterOptions {
        settings: vec!["meta.client_lease_ms=3000".to_owned()],
        ..ClusterOptions::new(1, 1)
    };
    let cluster = TestCluster::with(options)?;
    let whole = cluster.mount();
    fs::create_dir(whole.join("part"))?;
    let part = cluster.mount_again("subdir=part")?;
    for (mount, seen_by_other) in [
        (whole.as_path(), None),
        (part.path(), Some(whole.join("part/tree"))),
    ] {
        fs::create_dir_all(mount.join("tree/a"))?;
        fs::write(mount.join("tree/a/file"), b"some bytes")?;
        if let Some(other) = &seen_by_other {
            wait(Duration::from_secs(5), || Ok(other.join("a/file").exists()))?;
        }
        let remover = mount.join(".emberfs/rm-r");
        fs::rename(mount.join("tree"), remover.join("tree"))?;
        ensure!(!mount.join("tree").exists());
        wait(Duration::from_secs(5), || {
            let other = seen_by_other.as_ref().is_some_and(|path| path.exists());
            Ok(!other && !remover.join("tree").exists())
        })?;
    }
    wait(Duration::from_secs(30), || {
        let fsck = cluster.fsck()?.expect_code(0)?.json()?;
        Ok(fsck["chunks"].as_u64() == Some(0))
    })
}
