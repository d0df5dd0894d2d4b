//! What a client does unasked: keeps its sessions alive, writes old data back, tidies up.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use emberfs_proto::wire::metadata::MetadataCaller;
use emberfs_proto::{ErrorCode, Result, pb};
use tokio::sync::Notify;

use crate::Creds;
use crate::client::attach;
use crate::core::Core;
use crate::inode_state::{Handle, InodeState};
use crate::meta_rpc::Effect;

/// Keep-alives per lease: two may be lost.
const KEEP_ALIVES_PER_LEASE: u32 = 3;
/// Pause after a keep-alive that failed.
const KEEP_ALIVE_RETRY: Duration = Duration::from_secs(1);
/// How often old data and idle read-ahead are looked for, at most.
const TIDY_EVERY: Duration = Duration::from_secs(1);

/// Starts the tasks; they end with the core.
pub(crate) fn start(core: &Arc<Core>) {
    let stop = core.stop.clone();
    let weak = Arc::downgrade(core);
    tokio::spawn(stop.clone().run_until_cancelled_owned(keep_alive(
        weak.clone(),
        core.lease,
        core.locks.doubt.clone(),
    )));
    tokio::spawn(stop.clone().run_until_cancelled_owned(tidy(weak.clone())));
    tokio::spawn(stop.run_until_cancelled_owned(prune(weak, core.io.map.receiver())));
}

async fn keep_alive(core: Weak<Core>, lease: Duration, doubt: Arc<Notify>) {
    let mut pause = lease / KEEP_ALIVES_PER_LEASE;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // The server said that it does not know this client: no need to wait until it is asked.
            () = doubt.notified() => {}
        }
        let Some(core) = core.upgrade() else { return };
        pause = match keep_alive_once(&core).await {
            Ok(lease) => lease / KEEP_ALIVES_PER_LEASE,
            Err(error) if error.code == ErrorCode::Superseded => {
                tracing::error!(%error, "another process has taken this client over; this one stops");
                core.stop.cancel();
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "keep-alive failed");
                KEEP_ALIVE_RETRY.min(lease / KEEP_ALIVES_PER_LEASE)
            }
        };
    }
}

/// One keep-alive; answers the lease.
async fn keep_alive_once(core: &Arc<Core>) -> Result<Duration> {
    let limit = Some(core.lease);
    let send = |server: MetadataCaller, caller| {
        let request = pb::KeepAliveRequest {
            caller: Some(caller),
        };
        async move { server.keep_alive(request).await }
    };
    let creds = Creds::default();
    let reply = core
        .meta
        .run_within(limit, "keep-alive", &creds, Effect::Reads, send)
        .await?;
    if reply.sessions_lost {
        tracing::warn!("the metadata server had forgotten this client; opening all files again");
        core.locks.forgotten();
        attach(&core.meta, &core.config, limit).await?;
    }
    let reopen = async {
        if reply.sessions_lost {
            reopen_all(core).await;
        }
    };
    let ((), reclaimed) = tokio::join!(reopen, core.reclaim_locks());
    reclaimed?;
    Ok(Duration::from_millis(u64::from(reply.lease_ms.max(1))))
}

async fn reopen_all(core: &Arc<Core>) {
    for state in core.all_known() {
        for handle in state.open_handles() {
            if let Err(error) = reopen(core, &state, &handle).await {
                tracing::error!(inode = %state.inode, %error, "an open file could not be opened again");
            }
        }
    }
}

async fn reopen(core: &Arc<Core>, state: &Arc<InodeState>, handle: &Handle) -> Result<()> {
    let old = handle.session.load(Ordering::Acquire);
    core.reopen(state, handle, &handle.creds).await?;
    // The old session may have survived on the server's disk, and a handle that was closed
    // meanwhile has closed only the old one.
    let closed = handle.closed.load(Ordering::Acquire);
    let current = handle.session.load(Ordering::Acquire);
    let leftovers = [
        (handle.write && old != current).then_some(old),
        closed.then_some(current),
    ];
    for session in leftovers.into_iter().flatten() {
        let send = |server: MetadataCaller, caller| {
            let request = pb::SyncRequest {
                caller: Some(caller),
                inode: state.inode.0,
                session,
                end: None,
                truncate_epoch: state.length.lock().epoch(),
                mtime: None,
                sparse: false,
                settle: false,
                starts: Vec::new(),
            };
            async move { server.close(request).await }
        };
        match core
            .meta
            .run("close", &handle.creds, Effect::Own, send)
            .await
        {
            Err(error) if error.code != ErrorCode::NoSession => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

async fn tidy(core: Weak<Core>) {
    loop {
        let Some(every) = core
            .upgrade()
            .map(|core| TIDY_EVERY.min(core.config.write_back / 4))
        else {
            return;
        };
        tokio::time::sleep(every.max(Duration::from_millis(1))).await;
        let Some(core) = core.upgrade() else { return };
        core.write_back().await;
        core.look_for_room().await;
        let now = Instant::now();
        for state in core.all_known() {
            state.read_ahead.lock().expire(now);
        }
        core.forget_closed();
    }
}

async fn prune(
    core: Weak<Core>,
    mut maps: tokio::sync::watch::Receiver<Arc<emberfs_proto::cluster::ClusterMap>>,
) {
    while maps.changed().await.is_ok() {
        let Some(core) = core.upgrade() else { return };
        let map = maps.borrow_and_update().clone();
        core.io.prune(&map);
    }
}
