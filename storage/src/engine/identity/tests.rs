use super::*;

fn mine() -> DiskIdentity {
    DiskIdentity::new(ClusterId(0xABC), NodeId(3), DiskId(77))
}

#[test]
fn an_empty_or_missing_directory_has_no_identity_and_can_be_formatted_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    assert_eq!(DiskIdentity::load(&path).unwrap(), None);
    std::fs::create_dir_all(path.join("lost+found")).unwrap();
    assert_eq!(DiskIdentity::load(&path).unwrap(), None);
    DiskIdentity::format(&path, mine()).unwrap();
    assert_eq!(DiskIdentity::load(&path).unwrap(), Some(mine()));
    DiskIdentity::format(&path, mine()).unwrap();
    let other = DiskIdentity {
        disk: DiskId(78),
        ..mine()
    };
    assert_eq!(
        DiskIdentity::format(&path, other).unwrap_err().code,
        ErrorCode::ForeignDisk
    );
    assert_eq!(DiskIdentity::load(&path).unwrap(), Some(mine()));
}

#[test]
fn a_directory_with_foreign_files_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.tex"), "x").unwrap();
    let error = DiskIdentity::load(dir.path()).unwrap_err();
    assert_eq!(error.code, ErrorCode::ForeignDisk);
    assert!(error.message.contains("thesis.tex"), "{error}");
    assert_eq!(
        DiskIdentity::format(dir.path(), mine()).unwrap_err().code,
        ErrorCode::ForeignDisk
    );
}

#[test]
fn a_disk_of_another_cluster_or_node_is_refused_with_both_ids() {
    let dir = tempfile::tempdir().unwrap();
    DiskIdentity::format(dir.path(), mine()).unwrap();
    let path = dir.path();
    assert_eq!(
        DiskIdentity::load_own(path, ClusterId(0xABC), NodeId(3)).unwrap(),
        Some(mine())
    );
    let error = DiskIdentity::load_own(path, ClusterId(0xDEF), NodeId(3)).unwrap_err();
    assert_eq!(error.code, ErrorCode::ForeignDisk);
    assert!(
        error.message.contains("abc") && error.message.contains("def"),
        "{error}"
    );
    let error = DiskIdentity::load_own(path, ClusterId(0xABC), NodeId(4)).unwrap_err();
    assert_eq!(error.code, ErrorCode::ForeignDisk);
    assert!(
        error.message.contains("n3") && error.message.contains("n4"),
        "{error}"
    );
}

#[test]
fn a_newer_format_and_a_damaged_file_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(IDENTITY_FILE);
    std::fs::write(&file, "format_version = 2\nshape = \"new\"\n").unwrap();
    assert_eq!(
        DiskIdentity::load(dir.path()).unwrap_err().code,
        ErrorCode::IncompatibleVersion
    );
    for damaged in [
        "",
        "format_version = 1\n",
        "\u{0}\u{0}",
        "format_version = 1\ncluster = \"x\"\nnode = 1\ndisk = \"y\"\n",
    ] {
        std::fs::write(&file, damaged).unwrap();
        assert_eq!(
            DiskIdentity::load(dir.path()).unwrap_err().code,
            ErrorCode::ForeignDisk
        );
    }
}

#[test]
fn a_disk_is_locked_by_one_owner_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let lock = DiskLock::acquire(dir.path()).unwrap();
    assert_eq!(lock.path(), dir.path());
    assert_eq!(
        DiskLock::acquire(dir.path()).unwrap_err().code,
        ErrorCode::NodeConflict
    );
    drop(lock);
    DiskLock::acquire(dir.path()).unwrap();
}

#[test]
fn a_mark_is_kept_until_it_is_accepted_however_often_the_server_dies() {
    let dir = tempfile::tempdir().unwrap();
    DiskIdentity::format(dir.path(), mine()).unwrap();
    let load = || DiskIdentity::load(dir.path()).unwrap().unwrap();
    let openings = |accepted, proposed| Openings { accepted, proposed };
    assert_eq!(load().openings, openings(0, 0));
    // Marks use all 64 bits.
    load().propose(dir.path(), u64::MAX).unwrap();
    assert_eq!(load().openings, openings(0, u64::MAX));
    load().propose(dir.path(), 8).unwrap();
    assert_eq!(
        load().openings,
        openings(0, u64::MAX),
        "killed in between: the same again"
    );
    load().accept(dir.path(), MapVersion(5)).unwrap();
    assert_eq!(
        (load().openings, load().map),
        (openings(u64::MAX, 0), MapVersion(5))
    );
    load().propose(dir.path(), 9).unwrap();
    load().accept(dir.path(), MapVersion(3)).unwrap();
    assert_eq!(
        (load().openings, load().map),
        (openings(9, 0), MapVersion(5))
    );
}

#[test]
fn a_disk_from_before_there_were_marks_bears_none() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, disk) = (ClusterId(0xABC), DiskId(77));
    let text =
        format!("format_version = 1\ncluster = \"{cluster}\"\nnode = 3\ndisk = \"{disk}\"\n");
    std::fs::write(dir.path().join(IDENTITY_FILE), text).unwrap();
    assert_eq!(DiskIdentity::load(dir.path()).unwrap(), Some(mine()));
}
