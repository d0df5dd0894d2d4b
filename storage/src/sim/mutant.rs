//! Deliberate faults. Each breaks one rule that the protocol, a driver or the manager keeps; a test
//! fails if the checks do not notice one of them within a bounded number of seeds.
//!
//! Those inside the protocol are asked for by `mutated!`, which is a constant `false` in production.

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// The engine answers a prepare before it is flushed.
    AcknowledgeBeforeDurable,
    /// The head answers the client once its own copy is durable.
    AcknowledgeBeforeTail,
    /// Requests are served without a lease.
    ServePastLease,
    /// The lease counts from when the manager's answer came.
    LeaseFromReceipt,
    /// A node goes on serving after it told the manager that it leaves.
    ServeWhileLeaving,
    /// A node goes on serving from a disk that it reported as failed.
    ServeFromFailedDisk,
    /// A restarted process believes maps that speak of the one before.
    BelievePredecessorsMap,
    /// The chain version is checked when a request arrives, not again when it holds the chunk.
    SkipSecondCheck,
    /// The chain version is not checked at all.
    IgnoreChainVersion,
    /// A write whose forward failed is dropped, and its version used again.
    ReuseVersionAfterTimeout,
    /// A write that other channels followed is not recognised when it is sent again.
    ForgetDedupAtHeadChange,
    /// A SYNCING target gets the write and not the whole chunk.
    ForwardPartialToSyncing,
    /// A SYNCING target says that it is up to date before the pass has begun.
    ServeBeforeSyncComplete,
    /// With all SERVING replicas gone, one that left the chain earlier revives it.
    ReviveFromStale,
    /// A revived target forgets what it holds pending.
    ReviveWithoutPending,
    /// A replica answers a read with its pending version without asking the tail.
    DirtyRead,
    /// A truncate is not passed on to a SYNCING target.
    DropTruncateDuringResync,
    /// What was on its way when the chain changed is committed, although the new successor has not got it.
    CommitOnChainChange,
    /// A new tail shows only what it has committed, although the one before may have shown more.
    HideExposed,
    /// What came early is passed on and committed before the predecessor says that it is durable there.
    CommitUnconfirmed,
    /// What came early is held although the chain has changed.
    KeepHeldAcrossChains,
    /// A write that failed here is given up while the successor may still hold it.
    ForgetWithdraw,
    /// What comes early is taken although it was confirmed, withdrawn or sent again meanwhile.
    TakeSettled,
    /// A pass leaves out the chunks that were busy when it began.
    ForgetBusyChunks,
    /// A SYNCING target counts as holding a chunk although it was not acknowledged.
    TrustFailedCopies,
    /// What a SYNCING target has acknowledged under an older chain version still counts.
    KeepMirroredAcrossChains,
    /// A replica that was moved goes on serving after its node told the manager that it has stopped.
    ServeAfterMoving,
}

impl Mutant {
    pub(super) const ALL: &'static [Self] = &[
        Self::AcknowledgeBeforeDurable,
        Self::AcknowledgeBeforeTail,
        Self::ServePastLease,
        Self::LeaseFromReceipt,
        Self::ServeWhileLeaving,
        Self::ServeFromFailedDisk,
        Self::BelievePredecessorsMap,
        Self::SkipSecondCheck,
        Self::IgnoreChainVersion,
        Self::ReuseVersionAfterTimeout,
        Self::ForgetDedupAtHeadChange,
        Self::ForwardPartialToSyncing,
        Self::ServeBeforeSyncComplete,
        Self::ReviveFromStale,
        Self::ReviveWithoutPending,
        Self::DirtyRead,
        Self::DropTruncateDuringResync,
        Self::CommitOnChainChange,
        Self::HideExposed,
        Self::CommitUnconfirmed,
        Self::KeepHeldAcrossChains,
        Self::ForgetWithdraw,
        Self::TakeSettled,
        Self::ForgetBusyChunks,
        Self::TrustFailedCopies,
        Self::KeepMirroredAcrossChains,
        Self::ServeAfterMoving,
    ];
}
