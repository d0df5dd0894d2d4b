//! What operators and clients get wrong with servers, disks and files of settings: each mistake is one
//! line that says what, where and what to do next, and costs no data.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use emberfs_client::{Client, ClientConfig};
use emberfs_proto::ids::{ClientId, ClusterId, IncarnationId};
use emberfs_proto::pb::cluster_client::ClusterClient;
use emberfs_proto::pb::metadata_client::MetadataClient;
use emberfs_proto::wire::MAX_VERSION;
use emberfs_proto::{Error, ErrorCode, pb};
use emberfs_tests::{ClusterOptions, Outcome, TestCluster, emberfs_binary, pattern, run, wait};

fn small(mount: bool) -> Result<TestCluster> {
    TestCluster::with(ClusterOptions {
        mount,
        settings: vec!["storage.durability=process".to_owned()],
        ..ClusterOptions::new(1, 1)
    })
}

fn emberfs(verb: &[&str], path: &Path) -> Result<Outcome> {
    run(Command::new(emberfs_binary()?).args(verb).arg(path))
}

/// All that strangers may have done is to be named in the status.
fn only_refusals(cluster: &TestCluster) -> Result<()> {
    let status = cluster.status_json()?;
    let problems = status["problems"].as_array().context("no problems")?;
    ensure!(
        problems.iter().all(|p| p["code"] == "node-refused"),
        "the strangers did harm: {status}"
    );
    Ok(())
}

/// A copy of a server's configuration with some keys set otherwise.
fn edited(cluster: &TestCluster, name: &str, keys: &[(&str, &str)]) -> Result<PathBuf> {
    let conf = fs::read_to_string(cluster.dir().join(format!("conf/{name}.toml")))?;
    let other = |line: &&str| {
        keys.iter()
            .all(|(key, _)| !line.starts_with(&format!("{key} =")))
    };
    let mut lines: Vec<String> = conf.lines().filter(other).map(str::to_owned).collect();
    lines.extend(keys.iter().map(|(key, value)| format!("{key} = {value}")));
    let path = cluster
        .dir()
        .join("run")
        .join(format!("edited-{name}.toml"));
    fs::write(&path, lines.join("\n"))?;
    Ok(path)
}

#[test]
fn a_taken_port_is_named_and_the_server_starts_once_it_is_free() -> Result<()> {
    let cluster = small(false)?;
    let address = cluster.address()?;
    let status = cluster.status_json()?;
    let data = status["nodes"][0]["data_addr"]
        .as_str()
        .context("no address")?;
    let (_, port) = data.rsplit_once(':').context("no port")?;
    cluster.stop_process("storage-1")?;
    let stranger = TcpListener::bind(data)?;
    cluster
        .emberfs("start", &["storage-1"])?
        .expect_refusal(&["storage-1", port, "ss -ltnp"])?;
    cluster
        .emberfs("up", &["--no-mount"])?
        .expect_refusal(&["storage-1", port, "ss -ltnp"])?;
    let conf = cluster.dir().join("conf/storage-1.toml");
    emberfs(&["storage", "--config"], &conf)?.expect_refusal(&[
        data,
        "free the port",
        "`listen`",
    ])?;
    let second = cluster.dir().join("run/second");
    let keys = [("data_dir", format!("{second:?}"))];
    let conf = edited(&cluster, "meta-1", &[(keys[0].0, &keys[0].1)])?;
    emberfs(&["meta", "--config"], &conf)?.expect_refusal(&[&address, "`listen`"])?;
    drop(stranger);
    cluster.start_process("storage-1")?;
    cluster.wait_status(0, Duration::from_secs(10))
}

#[test]
fn a_missing_unmounted_foreign_or_newer_disk_is_refused_and_its_own_one_brings_the_data_back()
-> Result<()> {
    let (cluster, other) = (small(true)?, small(false)?);
    let ids = [cluster.status_json()?, other.status_json()?];
    let [own_id, other_id] = ids
        .each_ref()
        .map(|s| s["cluster"].as_str().unwrap_or("none"));
    let data = pattern(3_000_001, 3);
    fs::write(cluster.mount().join("kept"), &data)?;
    cluster.stop_process("storage-1")?;
    other.stop_process("storage-1")?;
    let disk = cluster.dir().join("storage-1/disk-1");
    let away = cluster.dir().join("storage-1/away");
    let shown = disk.display().to_string();
    let refused = |needles: &[&str]| -> Result<()> {
        let needles = [&[shown.as_str()], needles].concat();
        cluster
            .emberfs("start", &["storage-1"])?
            .expect_refusal(&needles)?;
        let mount = cluster.mount().display().to_string();
        cluster
            .emberfs("up", &["--mount", &mount])?
            .expect_refusal(&needles)?;
        Ok(())
    };

    fs::rename(&disk, &away)?;
    refused(&["does not exist", "mount the disk"])?;
    ensure!(
        !disk.exists(),
        "made an empty disk in place of a missing one"
    );
    fs::create_dir(&disk)?;
    refused(&["empty disk", "mount that one"])?;
    ensure!(
        !disk.join("disk.toml").exists(),
        "took an empty directory over"
    );
    fs::write(disk.join("holiday.jpg"), "x")?;
    refused(&["holiday.jpg", "check that the disk is mounted"])?;
    fs::remove_dir_all(&disk)?;
    fs::write(&disk, "x")?;
    refused(&["is not a directory", "correct `disks`"])?;
    fs::remove_file(&disk)?;

    fs::rename(other.dir().join("storage-1/disk-1"), &disk)?;
    refused(&["foreign disk", own_id, other_id, "check"])?;
    fs::rename(&disk, other.dir().join("storage-1/disk-1"))?;
    other.start_process("storage-1")?;
    other.wait_status(0, Duration::from_secs(10))?;

    fs::rename(&away, &disk)?;
    let conf = edited(&cluster, "storage-1", &[("node", "2")])?;
    emberfs(&["storage", "--config"], &conf)?
        .expect_refusal(&[&shown, "node n1", "node n2", "`node`"])?;
    let identity = fs::read_to_string(disk.join("disk.toml"))?;
    let newer = identity.replace("format_version = 1", "format_version = 99");
    ensure!(newer != identity, "{identity}");
    fs::write(disk.join("disk.toml"), newer)?;
    refused(&["format 99", "upgrade"])?;
    fs::write(disk.join("disk.toml"), identity)?;
    cluster.start_process("storage-1")?;
    ensure!(
        fs::read(cluster.mount().join("kept"))? == data,
        "read other bytes than written"
    );
    cluster.fsck()?.expect_code(0)?;
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").arg("-a").arg(from).arg(to))?.expect_code(0)?;
    Ok(())
}

#[test]
fn an_older_copy_of_a_disk_is_refused_and_the_newest_one_brings_the_data_back() -> Result<()> {
    let cluster = small(true)?;
    let place = |name: &str| cluster.dir().join("storage-1").join(name);
    let (disk, older, newest) = (place("disk-1"), place("older"), place("newest"));
    cluster.stop_process("storage-1")?;
    copy_tree(&disk, &older)?;
    cluster.start_process("storage-1")?;
    let data = pattern(1_000_001, 5);
    fs::write(cluster.mount().join("kept"), &data)?;
    cluster.stop_process("storage-1")?;
    fs::rename(&disk, &newest)?;
    fs::rename(&older, &disk)?;
    // Trying again and again must not wear the check down.
    for _ in 0..3 {
        cluster.emberfs("start", &["storage-1"])?.expect_refusal(&[
            &disk.display().to_string(),
            "older copy",
            "`emberfs replace`",
        ])?;
    }
    let status = cluster.status_json()?;
    let problems = status["problems"].as_array().context("no problems")?;
    ensure!(
        problems.iter().any(|p| p["code"] == "node-refused"),
        "status does not say why: {status}"
    );
    fs::remove_dir_all(&disk)?;
    fs::rename(&newest, &disk)?;
    let clone = place("clone");
    copy_tree(&disk, &clone)?;
    let conf = edited(
        &cluster,
        "storage-1",
        &[("disks", &format!("[{disk:?}, {clone:?}]"))],
    )?;
    emberfs(&["storage", "--config"], &conf)?.expect_refusal(&[
        &clone.display().to_string(),
        "same disk",
        "out of `disks`",
    ])?;
    cluster.start_process("storage-1")?;
    ensure!(
        fs::read(cluster.mount().join("kept"))? == data,
        "read other bytes than written"
    );
    cluster.fsck()?.expect_code(0)?;
    cluster.wait_status(0, Duration::from_secs(10))
}

#[test]
fn a_metadata_store_older_than_its_cluster_is_obeyed_by_nobody() -> Result<()> {
    let settings = [
        "storage.durability=process",
        "meta.lease_ms=1000",
        "meta.heartbeat_ms=200",
    ];
    let cluster = TestCluster::with(ClusterOptions {
        mount: false,
        settings: settings.map(str::to_owned).to_vec(),
        ..ClusterOptions::new(2, 2)
    })?;
    let place = |name: &str| cluster.dir().join(name);
    let (store, older, newest) = (place("meta-1"), place("older"), place("newest"));
    ensure!(store.is_dir(), "the metadata store is elsewhere");
    cluster.stop_process("meta-1")?;
    copy_tree(&store, &older)?;
    cluster.start_process("meta-1")?;
    cluster.stop_process("storage-1")?;
    cluster.start_process("storage-1")?;
    cluster.wait_status(0, Duration::from_secs(10))?;
    cluster.stop_process("meta-1")?;
    fs::rename(&store, &newest)?;
    fs::rename(&older, &store)?;
    cluster.start_process("meta-1")?;
    let mut shown = String::new();
    wait(Duration::from_secs(10), || {
        let status = cluster.status_json()?;
        shown = status.to_string();
        let problems = status["problems"].as_array().context("no problems")?;
        let is_said = |p: &serde_json::Value| {
            let what = p["what"].as_str().unwrap_or_default();
            p["code"] == "node-refused" && what.contains("store is older than the cluster")
        };
        Ok(problems.iter().any(is_said))
    })
    .with_context(|| format!("status does not say why: {shown}"))?;
    // Also a server that has just started remembers.
    cluster.stop_process("storage-1")?;
    cluster
        .emberfs("start", &["storage-1"])?
        .expect_refusal(&["older than the cluster", "`data_dir`"])?;
    wait(Duration::from_secs(5), || {
        let says = |l: &str| l.contains("ERROR") && l.contains("older than the cluster");
        Ok(cluster.log("storage-2").lines().any(says))
    })
    .with_context(|| format!("storage-2 does not say so: {}", cluster.log("storage-2")))?;
    cluster.stop_process("meta-1")?;
    fs::remove_dir_all(&store)?;
    fs::rename(&newest, &store)?;
    cluster.start_process("meta-1")?;
    cluster.start_process("storage-1")?;
    cluster.wait_status(0, Duration::from_secs(20))
}

#[test]
fn a_second_server_with_the_id_of_one_that_runs_is_refused() -> Result<()> {
    let cluster = small(false)?;
    let disk = cluster.dir().join("second-disk");
    fs::create_dir(&disk)?;
    let keys = [
        ("disks", &*format!("[{disk:?}]")),
        ("listen", "\"127.0.0.1:0\""),
        ("admin_listen", "\"127.0.0.1:0\""),
    ];
    let conf = edited(&cluster, "storage-1", &keys)?;
    // In the foreground its log comes on standard error as well.
    let refused = emberfs(&["storage", "--config"], &conf)?.expect_code(1)?;
    let line = refused.stderr.lines().find(|l| l.starts_with("emberfs: "));
    ensure!(
        line.is_some_and(
            |l| l.contains("node n1 runs already at") && l.contains("give it another id")
        ),
        "{refused:?}"
    );
    ensure!(
        !disk.join("disk.toml").exists(),
        "the stranger's disk was taken in"
    );
    only_refusals(&cluster)
}

/// The disk is a ramfs, which refuses O_DIRECT.
#[test]
fn a_file_system_without_direct_io_is_used_with_a_warning() -> Result<()> {
    let temp = tempfile::tempdir()?;
    let disks = temp.path().join("disks");
    fs::create_dir(&disks)?;
    let mounted = Command::new("mount")
        .args(["-t", "ramfs", "none"])
        .arg(&disks)
        .status()?;
    ensure!(mounted.success(), "this test needs root");
    let unmount = Unmount(disks.clone());
    let direct = rustix::fs::open(
        disks.join("probe"),
        rustix::fs::OFlags::CREATE | rustix::fs::OFlags::RDWR | rustix::fs::OFlags::DIRECT,
        rustix::fs::Mode::RUSR,
    );
    ensure!(
        direct.err() == Some(rustix::io::Errno::INVAL),
        "ramfs does O_DIRECT here: find another file system that does not"
    );
    let options = ClusterOptions {
        settings: vec!["storage.capacity_bytes=200000000".to_owned()],
        disk_root: Some(disks),
        ..ClusterOptions::new(1, 1)
    };
    let cluster = TestCluster::with(options)?;
    let data = pattern(9_000_001, 4);
    fs::write(cluster.mount().join("file"), &data)?;
    cluster.stop_process("storage-1")?;
    cluster.start_process("storage-1")?;
    ensure!(
        fs::read(cluster.mount().join("file"))? == data,
        "read other bytes than written"
    );
    fs::remove_file(cluster.mount().join("file"))?;
    let log = cluster.log("storage-1");
    ensure!(
        log.lines()
            .any(|l| l.contains("WARN") && l.contains("O_DIRECT") && l.contains("disk-1")),
        "no warning: {log}"
    );
    drop(cluster);
    drop(unmount);
    Ok(())
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH) {
            eprintln!("cannot unmount {}: {error}", self.0.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_of_another_cluster_or_another_version_are_turned_away() -> Result<()> {
    let cluster = small(false)?;
    let address = cluster.address()?;
    let known = cluster.status_json()?["cluster"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let uri = format!("http://{address}");
    let own = ClusterId::parse(&known)
        .context("no cluster id")?
        .to_bytes();
    let foreign = ClusterId(5).to_bytes();
    let mut nodes = ClusterClient::connect(uri.clone()).await?;
    let mut clients = MetadataClient::connect(uri).await?;
    for (version, id, code) in [
        (MAX_VERSION + 1, &own, ErrorCode::IncompatibleVersion),
        (0, &own, ErrorCode::IncompatibleVersion),
        (MAX_VERSION, &foreign, ErrorCode::WrongCluster),
    ] {
        let node = pb::RegisterRequest {
            cluster: id.clone(),
            node: 9,
            incarnation: IncarnationId(1).to_bytes(),
            protocol_version: version,
            data_addr: "127.0.0.1:1".to_owned(),
            ..Default::default()
        };
        let client = pb::AttachRequest {
            caller: Some(pb::Caller {
                client: ClientId(7).to_bytes(),
                ..Default::default()
            }),
            cluster: id.clone(),
            protocol_version: version,
            host: "test".to_owned(),
        };
        let refusals = [
            nodes.register(node).await.err().context("a node got in")?,
            clients
                .attach(client)
                .await
                .err()
                .context("a client got in")?,
        ];
        for error in refusals.map(Error::from) {
            ensure!(error.code == code, "{error}");
            let next = if code == ErrorCode::WrongCluster {
                "check"
            } else {
                "upgrade"
            };
            ensure!(error.message.contains(next), "{error}");
            ensure!(!error.message.contains('\n'), "{error}");
        }
    }
    let config = ClientConfig {
        meta: address,
        cluster: Some(ClusterId(5)),
        ..ClientConfig::default()
    };
    let error = Client::connect(config).await.err().context("connected")?;
    ensure!(error.code == ErrorCode::WrongCluster, "{error}");
    ensure!(error.message.contains(&known), "{error}");
    only_refusals(&cluster)
}

#[test]
fn more_replicas_than_servers_are_refused_before_anything_is_made() -> Result<()> {
    let temp = tempfile::tempdir()?;
    let dir = temp.path().join("data");
    emberfs(
        &[
            "up",
            "--no-mount",
            "--storage",
            "2",
            "--replicas",
            "3",
            "--dir",
        ],
        &dir,
    )?
    .expect_refusal(&["3 replicas", "--storage 3", "--replicas 2"])?;
    ensure!(!dir.exists(), "a refused `up` left something behind");
    Ok(())
}

#[test]
fn a_mistyped_key_is_named_with_its_line_and_the_nearest_one() -> Result<()> {
    let temp = tempfile::tempdir()?;
    let file = temp.path().join("storage.toml");
    fs::write(
        &file,
        "node = 1\nmeta = \"h:1\"\ndisks = []\ndurabilty = \"power\"\n",
    )?;
    let place = format!("{}:4", file.display());
    for verb in [&["config", "check"][..], &["storage", "--config"]] {
        emberfs(verb, &file)?.expect_refusal(&[
            &place,
            "`durabilty`",
            "did you mean `durability`",
        ])?;
    }
    emberfs(&["meta", "--config"], &temp.path().join("none.toml"))?
        .expect_refusal(&["none.toml"])?;
    Ok(())
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() -> Result<()> {
    let cluster = small(false)?;
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["health"],
        &["fsck"],
    ] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let output = Command::new(emberfs_binary()?)
            .env_remove("EMBERFS_CLUSTER")
            .args(arguments)
            .arg("--dir")
            .arg(cluster.dir())
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{arguments:?}: {} {stderr}",
            output.status
        );
        ensure!(
            !stderr.contains("panic") && !stderr.contains("emberfs:"),
            "{stderr}"
        );
    }
    Ok(())
}
