//! Through the kernel; needs root and a kernel with rings, and passes emptily elsewhere.

use std::time::Duration;

use emberfs_proto::ids::InodeId;

use super::*;
use crate::handler::Handler;
use crate::server::{Gate, MAX_IN_FLIGHT};
use crate::testing::Memory;

/// More than a queue's drain takes, and less than the limit of a hanging test.
const SOON: Duration = Duration::from_secs(20);

async fn off<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::time::timeout(SOON, tokio::task::spawn_blocking(work))
        .await
        .expect("nothing hangs")
        .unwrap()
}

/// One queue is lost while the mount is in use: the kernel would wait for it for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_queue_takes_the_mount_with_it() {
    let root = rustix::process::geteuid().is_root();
    if !root || std::fs::write(support::PARAMETER, "Y").is_err() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap();
    let parts = Parts {
        handler: Arc::new(Handler::new(Memory::new(), InodeId::ROOT, false)),
        runtime: tokio::runtime::Handle::current(),
        gate: Gate::new(MAX_IN_FLIGHT),
    };
    let at = path.clone();
    let options = MountOptions::default();
    let session = off(move || Session::attach(&parts, &at, &options).unwrap()).await;
    let wake = session.queues.threads[0].wake.clone();
    let served = tokio::task::spawn_blocking(move || session.run());
    let file = path.join("f");
    let open = off(move || std::fs::File::create(file).unwrap()).await;

    wake.stop();
    let served = tokio::time::timeout(SOON, served).await;
    served.expect("all threads end").unwrap().unwrap();
    let at = path.clone();
    let error = off(move || std::fs::metadata(at.join("g")).unwrap_err()).await;
    // The kernel closes rings in the background; it cancels a request that still finds one.
    let gone = [libc::ENOTCONN, libc::ECONNABORTED, libc::ECANCELED];
    assert!(gone.contains(&error.raw_os_error().unwrap()), "{error}");
    rustix::mount::unmount(&path, UnmountFlags::DETACH).unwrap();
    off(move || drop(open)).await;
}
