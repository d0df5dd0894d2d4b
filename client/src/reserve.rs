//! Room for writes to files that a quota applies to.
//!
//! Bytes go to storage servers without the metadata server hearing of them, so it has to know before: it grants a file an
//! end, which its answers carry ([`emberfs_proto::pb::Attr`]). Within that nobody asks. A write that goes further asks
//! first, and if it does not fit, it is that write that fails, before anything of it is buffered.

use std::sync::atomic::Ordering;

use emberfs_proto::{ErrorCode, Result, pb};

use crate::core::Core;
use crate::inode_state::{Handle, InodeState};
use crate::meta_rpc::{attr_of, rpc};

impl Core {
    /// Returns when the file may be written up to `end`, or with [`ErrorCode::QuotaExceeded`]. The caller has the inode's
    /// gate, so that no truncation of this client comes between.
    pub(crate) async fn make_room(
        &self,
        state: &InodeState,
        handle: &Handle,
        end: u64,
    ) -> Result<()> {
        let has_room = || state.length.lock().has_room(end);
        if has_room() {
            return Ok(());
        }
        let _turn = state.reserving.lock().await;
        if has_room() {
            return Ok(());
        }
        let attr = match self.reserve(state, handle, end).await {
            Err(error) if error.code == ErrorCode::NoSession => {
                self.reopen(state, handle, &handle.creds).await?;
                self.reserve(state, handle, end).await
            }
            first => first,
        };
        state.learn(&attr?);
        Ok(())
    }

    async fn reserve(&self, state: &InodeState, handle: &Handle, end: u64) -> Result<pb::Attr> {
        let request = pb::ReserveRequest {
            caller: None,
            inode: state.inode.0,
            session: handle.session.load(Ordering::Acquire),
            end,
        };
        attr_of(rpc!(self.meta, &handle.creds, Reads, reserve, request)?.attr)
    }
}
