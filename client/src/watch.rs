//! Hearing of what others change: for those who cache names and attributes.

use std::sync::Arc;
use std::time::Duration;

use emberfs_proto::ids::InodeId;
use emberfs_proto::{Error, ErrorCode, Result, pb};
use tokio::sync::mpsc;

use crate::core::Core;
use crate::{Client, Creds};

/// Events that may wait for who caches; then the server's messages wait, and it says when it lost some.
const QUEUE: usize = 256;

/// What happened to things that were cached.
#[derive(Clone, Debug, PartialEq)]
pub enum CacheEvent {
    /// From now on changes by others are told. What the server says after this may be believed for `term` without
    /// asking again; for `long_term` by who drops all of it at [`Self::Blind`], and where some changes were missed.
    Watching {
        /// At least as long as it takes to notice that changes are not told any more.
        term: Duration,
        /// Not shorter.
        long_term: Duration,
    },
    /// Others have changed something.
    Changed(pb::Invalidation),
    /// Changes are not told any more, and some may have been missed: believe nothing for longer than without watching.
    Blind,
}

impl Client {
    /// Watches for changes by other clients until the receiver is dropped or the client shut down; after a loss of
    /// the metadata server again.
    pub fn watch(&self) -> mpsc::Receiver<CacheEvent> {
        let (events, receiver) = mpsc::channel(QUEUE);
        let core = self.core.clone();
        let stop = core.stop.clone();
        let weak = Arc::downgrade(&core);
        core.runtime
            .spawn(stop.run_until_cancelled_owned(async move {
                loop {
                    let Some(core) = weak.upgrade() else { return };
                    let ended = follow(&core, &events).await;
                    core.hears_recalls(false);
                    if events.send(CacheEvent::Blind).await.is_err() {
                        return;
                    }
                    tracing::debug!(error = %ended, "no invalidations come; trying again");
                    drop(core);
                    tokio::time::sleep(AGAIN).await;
                }
            }));
        receiver
    }
}

/// Pause before a lost stream is opened again.
const AGAIN: Duration = Duration::from_millis(500);

/// Passes on one stream of invalidations until it ends; answers why.
async fn follow(core: &Arc<Core>, events: &mpsc::Sender<CacheEvent>) -> Error {
    let mut stream = match open(core).await {
        Ok(stream) => stream,
        Err(error) => return error,
    };
    let mut first = true;
    loop {
        let event = match stream.message().await {
            Ok(Some(message)) if first => {
                first = false;
                core.hears_recalls(core.config.delegations);
                let [term, long_term] = [message.term_ms, message.long_term_ms]
                    .map(|millis| Duration::from_millis(millis.into()));
                CacheEvent::Watching {
                    term,
                    // Earlier servers say nothing of it.
                    long_term: long_term.max(term),
                }
            }
            Ok(Some(mut message)) => {
                if message.everything {
                    core.return_all();
                }
                let recalled = std::mem::take(&mut message.recalled).into_iter();
                core.recalled(recalled.map(InodeId).collect());
                CacheEvent::Changed(message)
            }
            Ok(None) => return Error::new(ErrorCode::Unavailable, "the server ended the stream"),
            Err(status) => return status.into(),
        };
        if events.send(event).await.is_err() {
            return Error::new(ErrorCode::Unavailable, "nobody listens any more");
        }
    }
}

async fn open(core: &Core) -> Result<tonic::Streaming<pb::Invalidation>> {
    let request = pb::WatchInodesRequest {
        caller: Some(core.meta.caller(&Creds::default(), 0)),
    };
    Ok(core
        .meta
        .streams()
        .watch_inodes(request)
        .await?
        .into_inner())
}
