//! Who was turned away: logged, and shown by `status` until the node comes in.

use std::collections::BTreeMap;
use std::time::Duration;

use emberfs_proto::ids::NodeId;
use emberfs_proto::{Error, ErrorCode, pb};
use parking_lot::Mutex;
use tokio::time::Instant;

/// How many nodes are remembered; of more, those that were turned away last.
const MAX_REFUSALS: usize = 64;
/// A refusal that has not been repeated for so long is over: whoever it was has given up.
const FORGET_AFTER: Duration = Duration::from_mins(10);

/// The last refusal of each node.
#[derive(Default)]
pub(super) struct Refusals(Mutex<BTreeMap<NodeId, (Error, Instant)>>);

impl Refusals {
    /// Takes note of an error that a node was answered with, if it is a refusal.
    pub(super) fn note(&self, node: NodeId, error: &Error) {
        if !is_refusal(error.code) {
            return;
        }
        let mut refusals = self.0.lock();
        let old = refusals.insert(node, (error.clone(), Instant::now()));
        if old.is_none_or(|(old, _)| old != *error) {
            tracing::error!(%node, %error, "a storage node is refused");
        }
        if refusals.len() > MAX_REFUSALS {
            let oldest = refusals.iter().min_by_key(|(_, (_, at))| *at);
            if let Some(node) = oldest.map(|(&node, _)| node) {
                refusals.remove(&node);
            }
        }
    }

    /// The node is in.
    pub(super) fn forget(&self, node: NodeId) {
        self.0.lock().remove(&node);
    }

    pub(super) fn report(&self) -> Vec<pb::RefusalMsg> {
        let mut refusals = self.0.lock();
        refusals.retain(|_, (_, at)| at.elapsed() < FORGET_AFTER);
        let refusal = |(node, (error, at)): (&NodeId, &(Error, Instant))| pb::RefusalMsg {
            node: node.0,
            error: error.message.clone(),
            age_ms: at.elapsed().as_millis() as u64,
        };
        refusals.iter().map(refusal).collect()
    }
}

/// Whether an operator has to do something before this node can come in.
fn is_refusal(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::InvalidArgument
            | ErrorCode::IncompatibleVersion
            | ErrorCode::WrongCluster
            | ErrorCode::NodeConflict
            | ErrorCode::ForeignDisk
            | ErrorCode::MetadataTooOld
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: ErrorCode) -> Error {
        Error::new(code, "why")
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_shown_until_the_node_comes_in_or_gives_up() {
        let refusals = Refusals::default();
        refusals.note(NodeId(1), &refused(ErrorCode::ForeignDisk));
        refusals.note(NodeId(2), &refused(ErrorCode::WrongCluster));
        refusals.note(NodeId(3), &refused(ErrorCode::Unavailable));
        tokio::time::advance(Duration::from_secs(1)).await;
        let shown = refusals.report();
        let nodes: Vec<u32> = shown.iter().map(|refusal| refusal.node).collect();
        assert_eq!(nodes, [1, 2], "asking to wait is no refusal");
        assert_eq!((shown[0].error.as_str(), shown[0].age_ms), ("why", 1000));
        refusals.forget(NodeId(1));
        assert_eq!(refusals.report().len(), 1);
        tokio::time::advance(FORGET_AFTER).await;
        assert!(refusals.report().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_last_ones_are_remembered() {
        let refusals = Refusals::default();
        for node in (1..=100).rev() {
            refusals.note(NodeId(node), &refused(ErrorCode::NodeConflict));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        let shown = refusals.report();
        assert_eq!(shown.len(), MAX_REFUSALS);
        assert_eq!((shown[0].node, shown.last().map(|r| r.node)), (1, Some(64)));
    }
}
