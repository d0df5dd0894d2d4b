//! Removing trees by a rename, and what else programs meet in the directory for it.

use std::io::ErrorKind;
use std::process::Command;
use std::time::Instant;

use super::*;

through_each_transport! {
    trees_are_removed_by_renaming_them
    a_read_only_mount_refuses_to
}

/// Far more than the kernel takes to hear of it.
const SOON: Duration = Duration::from_secs(20);

async fn trees_are_removed_by_renaming_them(transport: Transport) {
    let Some(mut fixture) = mounted_with(transport, Memory::new(), "").await else {
        return;
    };
    let path = fixture.path.clone();
    off(move || {
        let remover = path.join(".emberfs/rm-r");
        // The same name again and again: the kernel has to forget it each time.
        for round in 0..20 {
            fs::create_dir_all(path.join("tree/a/b")).unwrap();
            fs::write(path.join("tree/a/file"), "x").unwrap();
            let moved = if round % 2 == 0 {
                let mut mv = Command::new("mv");
                let status = mv.arg(path.join("tree")).arg(&remover).status();
                status.unwrap().success()
            } else {
                fs::rename(path.join("tree"), remover.join("tree")).is_ok()
            };
            assert!(moved, "round {round}");
            assert!(!path.join("tree").exists());
            let began = Instant::now();
            while remover.join("tree").exists() {
                assert!(began.elapsed() < SOON, "the kernel does not forget it");
            }
            assert_eq!(fs::read_dir(&remover).unwrap().count(), 0);
        }
        fs::write(path.join("file"), "x").unwrap();
        fs::rename(path.join("file"), remover.join("file")).unwrap();
        assert!(!path.join("file").exists());

        assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "it is not listed");
        let hidden = path.join(".emberfs");
        let listed: Vec<_> = fs::read_dir(&hidden).unwrap().flatten().collect();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].file_name(), "rm-r");
        assert!(fs::metadata(&hidden).unwrap().is_dir());
        let refused = |outcome: std::io::Result<()>| {
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::PermissionDenied);
        };
        refused(fs::create_dir(hidden.join("x")));
        refused(fs::write(remover.join("x"), "x"));
        refused(fs::remove_dir(&remover));
        refused(fs::remove_dir(&hidden));
        refused(symlink("x", remover.join("x")));
        refused(fs::set_permissions(
            &remover,
            fs::Permissions::from_mode(0o777),
        ));
        fs::write(path.join("file"), "x").unwrap();
        refused(fs::rename(path.join("file"), hidden.join("file")));
        assert_eq!(fs::read(path.join("file")).unwrap(), b"x");
    })
    .await;
    fixture.mounted.unmount().await.unwrap();
}

async fn a_read_only_mount_refuses_to(transport: Transport) {
    let memory = Memory::new();
    memory.create_elsewhere(1, "file", b"x");
    let Some(mut fixture) = mounted_with(transport, memory, "ro").await else {
        return;
    };
    let path = fixture.path.clone();
    off(move || {
        let moved = fs::rename(path.join("file"), path.join(".emberfs/rm-r/file"));
        assert_eq!(moved.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    })
    .await;
    fixture.mounted.unmount().await.unwrap();
}
