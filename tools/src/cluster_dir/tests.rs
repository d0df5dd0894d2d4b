use super::*;

fn plan() -> Plan {
    let storage = vec![
        StoragePlan {
            port: 7501,
            admin_port: 7601,
            removed: false,
        },
        StoragePlan {
            port: 7502,
            admin_port: 7602,
            removed: false,
        },
    ];
    let mut plan = Plan::new(2, MetaPlan { port: 7400 }, storage);
    plan.mount = Some(MountPlan {
        path: "/mnt/x".into(),
        created: true,
        options: String::new(),
    });
    plan
}

fn dir() -> (tempfile::TempDir, ClusterDir) {
    let temp = tempfile::tempdir().expect("temporary directory");
    let dir = ClusterDir::at(temp.path()).expect("absolute");
    (temp, dir)
}

#[test]
fn a_plan_survives_the_file() {
    let (_temp, dir) = dir();
    assert_eq!(dir.load().expect("no file is no error"), None);
    dir.save(&plan()).expect("saved");
    assert_eq!(dir.load().expect("loaded"), Some(plan()));
}

#[test]
fn a_missing_cluster_is_explained() {
    let (_temp, dir) = dir();
    let error = dir.require().expect_err("there is none").to_string();
    assert!(
        error.contains("emberfs up") && error.contains("--dir"),
        "{error}"
    );
}

#[test]
fn a_plan_of_another_format_is_refused() {
    let (_temp, dir) = dir();
    let mut other = plan();
    other.format = 99;
    dir.save(&other).expect("saved");
    assert!(
        dir.load()
            .expect_err("refused")
            .to_string()
            .contains("format 99")
    );
}

#[test]
fn configuration_files_are_written_once_and_then_left_to_the_operator() {
    let (_temp, dir) = dir();
    let set = [
        "meta.lease_ms=700".to_owned(),
        "storage.durability=process".to_owned(),
    ];
    dir.prepare(&plan(), &Settings::parse(&set).expect("valid"))
        .expect("prepared");
    let conf: toml::Table =
        toml::from_str(&fs::read_to_string(dir.conf("storage-2")).expect("there")).expect("TOML");
    assert_eq!(conf["node"].as_integer(), Some(2));
    assert_eq!(conf["listen"].as_str(), Some("127.0.0.1:7502"));
    assert_eq!(conf["durability"].as_str(), Some("process"));
    let meta = fs::read_to_string(dir.conf(META)).expect("there");
    assert!(meta.contains("lease_ms = 700"), "{meta}");

    fs::write(dir.conf(META), "# mine").expect("written");
    dir.prepare(&plan(), &Settings::default())
        .expect("prepared again");
    assert_eq!(fs::read_to_string(dir.conf(META)).expect("there"), "# mine");
}

#[test]
fn settings_name_a_server() {
    for bad in ["x.y=1", "meta.lease_ms", "lease_ms=1"] {
        let error = Settings::parse(&[bad.to_owned()]).expect_err(bad);
        assert!(error.to_string().contains("meta.KEY=VALUE"), "{error}");
    }
}

#[test]
fn purge_deletes_the_cluster_and_nothing_else() {
    let (temp, dir) = dir();
    let disks = tempfile::tempdir().expect("temporary directory");
    let mut plan = plan();
    plan.disk_root = Some(disks.path().to_owned());
    dir.prepare(&plan, &Settings::default()).expect("prepared");
    dir.save(&plan).expect("saved");
    fs::write(temp.path().join("mine"), "x").expect("written");
    fs::write(disks.path().join("mine"), "x").expect("written");
    dir.purge(&plan).expect("purged");
    let left = |path: &Path| -> Vec<_> {
        let entries = fs::read_dir(path).expect("there");
        entries.map(|e| e.expect("entry").file_name()).collect()
    };
    assert_eq!(left(temp.path()), ["mine"]);
    assert_eq!(left(disks.path()), ["mine"]);
}

#[test]
fn a_second_verb_waits_for_the_first() {
    let (_temp, dir) = dir();
    let held = dir.lock().expect("locked");
    let (tx, rx) = std::sync::mpsc::channel();
    let other = dir.clone();
    let thread = std::thread::spawn(move || {
        let lock = other.lock();
        tx.send(()).expect("receiver lives");
        lock.map(drop)
    });
    assert!(
        rx.recv_timeout(std::time::Duration::from_millis(100))
            .is_err(),
        "did not wait"
    );
    drop(held);
    rx.recv_timeout(std::time::Duration::from_secs(10))
        .expect("the lock is free");
    thread.join().expect("no panic").expect("locked");
}
