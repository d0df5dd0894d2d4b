//! `emberfs quota`: set, show, list, clear, and what they refuse.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use emberfs_tests::{TestCluster, wait};
use rustix::fs::statvfs;

#[test]
fn quotas_are_set_counted_shown_and_cleared() -> Result<()> {
    let cluster = TestCluster::start(1, 1)?;
    let quota = |arguments: &[&str]| cluster.emberfs("quota", arguments);
    let project = cluster.mount().join("project");
    fs::create_dir_all(project.join("a/b"))?;
    for file in 0..30 {
        fs::write(project.join(format!("a/b/{file}")), [7; 100])?;
    }
    let none = quota(&["list"])?.expect_code(0)?;
    ensure!(none.stdout.contains("no quotas"), "{}", none.stdout);
    quota(&["show", "/project"])?.expect_refusal(&["/project has no quota"])?;
    quota(&["set", "/project/", "--bytes", "10K", "--inodes", "1k"])?.expect_code(0)?;
    quota(&["set", "--user", "root", "--inodes", "1M"])?.expect_code(0)?;
    // What was there before is counted.
    let show = |arguments: &[&str]| -> Result<serde_json::Value> {
        let arguments = [&["show", "--json"], arguments].concat();
        quota(&arguments)?.expect_code(0)?.json()
    };
    wait(Duration::from_secs(20), || {
        let tree = show(&["/project/a/b"])?["state"] == "ok";
        Ok(tree && show(&["--user", "0"])?["state"] == "ok")
    })?;
    let tree = show(&["/project"])?;
    for (key, wanted) in [
        ("bytes_used", 3000),
        ("bytes_limit", 10 << 10),
        ("inodes_used", 33),
        ("inodes_limit", 1000),
    ] {
        ensure!(tree[key].as_u64() == Some(wanted), "{key}: {tree}");
    }
    ensure!(
        tree["name"] == "/project" && tree["kind"] == "tree",
        "{tree}"
    );
    // What df(1) shows there, and elsewhere.
    let space = |path: &Path| -> Result<_> {
        let seen = statvfs(path)?;
        let bytes = [seen.f_blocks, seen.f_bavail].map(|blocks| blocks * seen.f_frsize);
        Ok((bytes, [seen.f_files, seen.f_ffree]))
    };
    let inside = space(&project.join("a/b"))?;
    // Whole blocks of 4096 bytes.
    ensure!(inside == ([8192, 4096], [1000, 967]), "{inside:?}");
    let outside = space(&cluster.mount())?;
    ensure!(outside.0[1] > 8192 && outside.1[1] > 1000, "{outside:?}");
    let root = show(&["--user", "root"])?;
    // The root directory as well.
    ensure!(root["inodes_used"].as_u64() == Some(34), "{root}");
    ensure!(
        root["bytes_limit"].is_null() && root["name"] == "root",
        "{root}"
    );

    let list = quota(&["list"])?.expect_code(0)?.stdout;
    let line = list.lines().find(|line| line.contains("/project"));
    let words: Vec<_> = line.unwrap_or_default().split_whitespace().collect();
    let wanted = [
        "tree", "/project", "2.9", "KiB", "10.0", "KiB", "29%", "33", "1000", "3%", "ok",
    ];
    ensure!(words == wanted, "{list}");
    let all = quota(&["list", "--json"])?.json()?;
    ensure!(all.as_array().is_some_and(|all| all.len() == 2), "{all}");

    quota(&["set", "/project/a", "--bytes", "1"])?.expect_refusal(&["nested", "/project"])?;
    quota(&["set", "project", "--bytes", "1"])?.expect_refusal(&["such as /project"])?;
    quota(&["set", "/none", "--bytes", "1"])?.expect_refusal(&["/none cannot be found"])?;
    quota(&["set", "--user", "nobody-like-this", "--bytes", "1"])?
        .expect_refusal(&["no such user"])?;
    quota(&["set", "/project/a/b/1", "--bytes", "1"])?.expect_refusal(&["not a directory"])?;
    let nothing = quota(&["set", "/project"])?;
    ensure!(
        nothing.code != 0 && nothing.stderr.contains("--inodes"),
        "{}",
        nothing.stderr
    );

    // A directory that was renamed keeps its quota; its path is not the one it was set by.
    fs::rename(&project, cluster.mount().join("renamed"))?;
    let list = quota(&["list"])?.expect_code(0)?.stdout;
    ensure!(list.contains("(was /project)"), "{list}");
    quota(&["set", "/renamed", "--inodes", "none"])?.expect_code(0)?;
    let tree = show(&["/renamed"])?;
    ensure!(
        tree["inodes_limit"].is_null() && tree["name"] == "/renamed",
        "{tree}"
    );
    quota(&["clear", "/renamed"])?.expect_code(0)?;
    quota(&["clear", "/renamed"])?.expect_refusal(&["has no quota"])?;
    quota(&["clear", "--user", "0"])?.expect_code(0)?;
    let none = quota(&["list", "--json"])?.json()?;
    ensure!(none.as_array().is_some_and(Vec::is_empty), "{none}");
    Ok(())
}
