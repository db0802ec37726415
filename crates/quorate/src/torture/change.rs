//! What operators do to a cluster while it serves, and while things break.
//!
//! Like a fault, a change is a word in the verdict: one that was planned and never came about fails
//! the run. Unlike a fault it has no end that could be ordered: the cluster carries it out, through
//! whatever happens meanwhile, and the rig waits for that.

use std::fmt;

/// Something that an operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ChangeKind {
    /// A new server joins as a manager.
    JoinManager,
    /// A new server joins as a worker.
    JoinWorker,
    /// A node is removed for ever while it runs. Its server goes on and knocks in vain.
    Remove,
    /// A manager's server is lost with its disk; a new one takes its place under the same name.
    Replace,
    /// A manager becomes a worker, or a worker a manager.
    Roles,
    /// A manager may not vote for a while.
    Vote,
    /// Another manager becomes the Active one.
    Promote,
    /// The manager role of a passive manager stops for a while.
    StopManager,
    /// A new certificate authority takes over.
    RotateCa,
    /// A server starts with a certificate that is due, or has ended, and gets a new one.
    Renew,
}

/// One after the other: what is decided about members. What is done to certificates goes on beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum About {
    Members,
    Certificates,
}

impl ChangeKind {
    pub(crate) const ALL: [ChangeKind; 10] = [
        ChangeKind::JoinManager,
        ChangeKind::JoinWorker,
        ChangeKind::Remove,
        ChangeKind::Replace,
        ChangeKind::Roles,
        ChangeKind::Vote,
        ChangeKind::Promote,
        ChangeKind::StopManager,
        ChangeKind::RotateCa,
        ChangeKind::Renew,
    ];

    /// Stable, for people and programs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ChangeKind::JoinManager => "join-manager",
            ChangeKind::JoinWorker => "join-worker",
            ChangeKind::Remove => "remove",
            ChangeKind::Replace => "replace",
            ChangeKind::Roles => "roles",
            ChangeKind::Vote => "vote",
            ChangeKind::Promote => "promote",
            ChangeKind::StopManager => "stop-manager",
            ChangeKind::RotateCa => "rotate-ca",
            ChangeKind::Renew => "renew",
        }
    }

    pub(crate) fn about(self) -> About {
        match self {
            ChangeKind::RotateCa | ChangeKind::Renew => About::Certificates,
            _ => About::Members,
        }
    }
}

impl fmt::Display for ChangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torture::fault::FaultKind;
    use std::collections::BTreeSet;

    #[test]
    fn every_change_is_listed_once_and_has_a_name_that_no_fault_has() {
        let changes = ChangeKind::ALL.iter().map(|kind| kind.name());
        let names: BTreeSet<&str> = FaultKind::ALL.iter().map(|kind| kind.name()).chain(changes).collect();
        assert_eq!(names.len(), ChangeKind::ALL.len() + FaultKind::ALL.len());
        // The last one of the enum: none after it was forgotten in the list.
        assert_eq!(ChangeKind::Renew as usize + 1, ChangeKind::ALL.len());
    }
}
