//! The kinds of faults, and what each needs of the machine.
//!
//! A kind is a word in the verdict: what is not brought about in a run is named there, so a kind is
//! either injected with its own proof or left out with a reason, and nothing between.

use std::fmt;

/// Something that goes wrong on real servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum FaultKind {
    /// A server is killed.
    Kill,
    /// All servers are killed at once.
    KillAll,
    /// The power of one node fails: the cable is silent first, then all that was not synced is gone.
    PowerLoss,
    /// The power of all nodes fails at once.
    PowerLossAll,
    /// A server stands still for a while and goes on as if nothing had been.
    Pause,
    /// A server and all that watches over its replicas stand still, and the replicas go on.
    Freeze,
    /// A server is asked to end and is started again.
    Restart,
    /// One node and the others do not hear each other.
    PartitionNode,
    /// A minority and a majority do not hear each other.
    PartitionHalves,
    /// One node is heard by the others and hears none of them, or the other way round.
    PartitionOneWay,
    /// Two nodes do not hear each other, and all others hear both.
    PartitionBridge,
    /// Packets of one node are lost.
    Loss,
    /// Packets of one node take longer, each as long as it likes, so that they overtake each other.
    Delay,
    /// Packets of one node arrive twice.
    Duplicate,
    /// A node's disk is full.
    DiskFull,
    /// A sync of a node's disk fails once; later ones would say that all is well.
    SyncError,
    /// Each sync of a node's disk takes long.
    SlowDisk,
    /// A node's wall clock jumps by an hour, to and fro.
    ClockJump,
    /// A node is away until it has missed more than the others' logs keep, and returns under load.
    Snapshot,
}

/// What a fault needs of the machine; see `rig::tools`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    /// Namespaces of our own, with a network that we carry.
    Network,
    /// A disk for each node.
    Disks,
    /// `strace`, and that it may watch our servers.
    Trace,
    /// `libfaketime`.
    Clock,
}

impl Need {
    /// For people and programs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Need::Network => "network",
            Need::Disks => "disks",
            Need::Trace => "strace",
            Need::Clock => "libfaketime",
        }
    }
}

impl FaultKind {
    pub(crate) const ALL: [FaultKind; 19] = [
        FaultKind::Kill,
        FaultKind::KillAll,
        FaultKind::PowerLoss,
        FaultKind::PowerLossAll,
        FaultKind::Pause,
        FaultKind::Freeze,
        FaultKind::Restart,
        FaultKind::PartitionNode,
        FaultKind::PartitionHalves,
        FaultKind::PartitionOneWay,
        FaultKind::PartitionBridge,
        FaultKind::Loss,
        FaultKind::Delay,
        FaultKind::Duplicate,
        FaultKind::DiskFull,
        FaultKind::SyncError,
        FaultKind::SlowDisk,
        FaultKind::ClockJump,
        FaultKind::Snapshot,
    ];

    /// Stable, for people and programs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            FaultKind::Kill => "kill",
            FaultKind::KillAll => "kill-all",
            FaultKind::PowerLoss => "power-loss",
            FaultKind::PowerLossAll => "power-loss-all",
            FaultKind::Pause => "pause",
            FaultKind::Freeze => "freeze",
            FaultKind::Restart => "restart",
            FaultKind::PartitionNode => "partition-node",
            FaultKind::PartitionHalves => "partition-halves",
            FaultKind::PartitionOneWay => "partition-one-way",
            FaultKind::PartitionBridge => "partition-bridge",
            FaultKind::Loss => "loss",
            FaultKind::Delay => "delay",
            FaultKind::Duplicate => "duplicate",
            FaultKind::DiskFull => "disk-full",
            FaultKind::SyncError => "sync-error",
            FaultKind::SlowDisk => "slow-disk",
            FaultKind::ClockJump => "clock-jump",
            FaultKind::Snapshot => "snapshot",
        }
    }

    /// What must be there; a fault of processes needs nothing.
    pub(crate) fn needs(self) -> &'static [Need] {
        match self {
            FaultKind::Kill
            | FaultKind::KillAll
            | FaultKind::Pause
            | FaultKind::Freeze
            | FaultKind::Restart
            | FaultKind::Snapshot => &[],
            FaultKind::PowerLoss | FaultKind::PowerLossAll => &[Need::Network, Need::Disks],
            FaultKind::PartitionNode
            | FaultKind::PartitionHalves
            | FaultKind::PartitionOneWay
            | FaultKind::PartitionBridge
            | FaultKind::Loss
            | FaultKind::Delay
            | FaultKind::Duplicate => &[Need::Network],
            FaultKind::DiskFull => &[Need::Disks],
            FaultKind::SyncError | FaultKind::SlowDisk => &[Need::Trace],
            FaultKind::ClockJump => &[Need::Clock],
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_kind_is_listed_once_and_has_a_name_of_its_own() {
        let kinds: BTreeSet<FaultKind> = FaultKind::ALL.into_iter().collect();
        let names: BTreeSet<&str> = FaultKind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!((kinds.len(), names.len()), (FaultKind::ALL.len(), FaultKind::ALL.len()));
        // The last one of the enum: none after it was forgotten in the list.
        assert_eq!(FaultKind::Snapshot as usize + 1, FaultKind::ALL.len());
    }
}
