//! Mounts through `fusermount3`.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_helper_can_mount_too() {
    if !has_helper() {
        return;
    }
    let helper = "auto_unmount,allow_other";
    let Some(mut fixture) = mounted_with(Transport::Classic, Memory::new(), helper).await else {
        return;
    };
    let path = fixture.path.clone();
    off(move || fs::write(path.join("f"), "fine").unwrap()).await;
    let mount = mountinfo::find(&fixture.path).unwrap().unwrap();
    assert_eq!(mount.fs_type, "fuse.emberfs");
    fixture.mounted.unmount().await.unwrap();
    assert_eq!(mountinfo::find(&fixture.path).unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_rings_cannot_be_had_the_next_transport_is_taken() {
    if !has_helper() {
        return;
    }
    let helper = "auto_unmount,allow_other";
    let Some(mut fixture) = mounted_with(Transport::Classic, Memory::new(), helper).await else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let options = MountOptions::parse(helper).unwrap();
    let order = &[Transport::Ring, Transport::Classic];
    let mounted = mount_with(Memory::new(), dir.path(), &options, order).await;
    let mut mounted = mounted.unwrap();
    assert_eq!(mounted.transport(), Transport::Classic);
    mounted.unmount().await.unwrap();
    fixture.mounted.unmount().await.unwrap();
}

fn has_helper() -> bool {
    let mut helper = std::process::Command::new("fusermount3");
    helper.arg("-V").output().is_ok()
}
