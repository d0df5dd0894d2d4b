//! Ends of sessions that have nothing to report: the server hears of them in batches, because each request is a
//! transaction there, and nobody waits for them.

use std::sync::Arc;
use std::time::Duration;

use emberfs_proto::ids::InodeId;
use emberfs_proto::pb;
use parking_lot::Mutex;

use crate::Creds;
use crate::core::Core;
use crate::meta_rpc::rpc;

/// How long an end waits for others.
const GATHER: Duration = Duration::from_millis(10);
/// Most ends of one request.
const BATCH: usize = 1024;

/// Sessions that have ended here and not yet at the server.
#[derive(Default)]
pub(crate) struct Ends(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    sessions: Vec<pb::SessionRef>,
    /// A task is on its way to send them.
    sending: bool,
}

impl Core {
    /// Tells the server, soon, that a session has ended. [`crate::Client::shutdown`] waits for it.
    pub(crate) fn end_soon(self: &Arc<Self>, inode: InodeId, session: u64) {
        let mut waiting = self.ends.0.lock();
        waiting.sessions.push(pb::SessionRef {
            inode: inode.0,
            session,
        });
        if !std::mem::replace(&mut waiting.sending, true) {
            let core = self.clone();
            let send = async move { core.send_ends().await };
            self.closing.spawn_on(send, &self.runtime);
        }
    }

    async fn send_ends(self: &Arc<Self>) {
        loop {
            tokio::time::sleep(GATHER).await;
            let sessions = {
                let mut waiting = self.ends.0.lock();
                let len = waiting.sessions.len().min(BATCH);
                let batch: Vec<_> = waiting.sessions.drain(..len).collect();
                waiting.sending = !batch.is_empty();
                batch
            };
            if sessions.is_empty() {
                return;
            }
            let request = pb::CloseManyRequest {
                caller: None,
                sessions,
                returned: Vec::new(),
            };
            let ended = rpc!(self.meta, &Creds::default(), Reads, close_many, request);
            if let Err(error) = ended {
                // They end with this client at the latest.
                tracing::warn!(%error, "the metadata server could not be told that files were closed");
            }
        }
    }
}
