use super::*;

#[test]
fn a_missing_mount_point_says_how_to_create_it() {
    let dir = tempfile::tempdir().unwrap();
    let error = check_path(&dir.path().join("nowhere")).unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    assert!(error.message.contains("mkdir -p"), "{}", error.message);
}

#[test]
fn a_file_is_no_mount_point() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert_eq!(check_path(&file).unwrap_err().code, ErrorCode::NotDirectory);
    assert_eq!(
        check_path(&file.join("below")).unwrap_err().code,
        ErrorCode::NotDirectory
    );
}

#[test]
fn the_root_is_no_mount_point() {
    assert_eq!(
        check_path(Path::new("/")).unwrap_err().code,
        ErrorCode::InvalidArgument
    );
}

#[test]
fn a_directory_is_resolved_even_when_not_empty() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().join("real");
    std::fs::create_dir(&real).unwrap();
    std::fs::write(real.join("content"), "").unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&real, &link).unwrap();
    assert_eq!(check_path(&link).unwrap(), real.canonicalize().unwrap());
}

#[test]
fn a_missing_device_says_what_to_load() {
    let dir = tempfile::tempdir().unwrap();
    let error = check_device(&dir.path().join("fuse")).unwrap_err();
    assert_eq!(error.code, ErrorCode::Unsupported);
    assert!(error.message.contains("modprobe fuse"), "{}", error.message);
    std::fs::write(dir.path().join("fuse"), "").unwrap();
    let error = check_device(&dir.path().join("fuse")).unwrap_err();
    assert!(error.message.contains("mknod"), "{}", error.message);
}

#[test]
fn a_parent_is_resolved_without_its_child() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap();
    std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
    assert_eq!(
        resolve_parent(&real.join("link/gone")).unwrap(),
        real.join("gone")
    );
}
