//! Keys that change while the cluster runs: its certificate authority, and what seals its secrets.
//!
//! Both change in the same way, in steps that every holder confirms before the next one begins:
//!
//! ```text
//! Done ──begin──▶ Spread ──▶ Use ──▶ Drop ──▶ Done
//! ```
//! *Spread*: whoever needs the new key gets it and believes (or opens) by both; the old one is used.
//! *Use*: the new one signs or seals; what the old one made is made anew. *Drop*: the old one is
//! forgotten. At each moment every two nodes understand each other, however far each of them is.
//!
//! Keys themselves are here only sealed, once for each node that holds them, by whoever made them
//! (`quorate_trust::envelope`). So they survive the death of any minority, and nobody who left can
//! open them. What a node has carried out is observed ([`crate::observed::TrustReport`]); the leader
//! turns it into a decision, and any leader can.
//!
//! # Invariants
//! - The numbers of a kind's keys grow by one; a new one begins only when the last one is done.
//! - A key that an expelled node held is [`exposed`](KeyRecord::exposed) until the next one begins.
//! - No envelope is kept for an expelled node.

use crate::access::name::Digest;
use crate::command::Refusal;
use crate::event::Happening;
use crate::id::NodeId;
use crate::member::MemberChange;
use crate::state::{Change, Changes, ClusterState, NodeRecord, Role};
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Which of the cluster's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyKind {
    /// The certificate authority's. Managers hold it, every node believes it.
    Authority,
    /// What seals secrets. Managers hold it.
    Secrets,
}

impl KeyKind {
    pub const ALL: [KeyKind; 2] = [KeyKind::Authority, KeyKind::Secrets];

    /// The word in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            KeyKind::Authority => "authority",
            KeyKind::Secrets => "secrets",
        }
    }

    /// Whether a node with these roles takes part in a change of this key.
    #[must_use]
    pub fn concerns(self, roles: &BTreeSet<Role>) -> bool {
        match self {
            KeyKind::Authority => true,
            KeyKind::Secrets => roles.contains(&Role::Manager),
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// How far a change of a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    Spread,
    Use,
    Drop,
    Done,
}

impl Stage {
    #[must_use]
    pub fn next(self) -> Stage {
        match self {
            Stage::Spread => Stage::Use,
            Stage::Use => Stage::Drop,
            Stage::Drop | Stage::Done => Stage::Done,
        }
    }
}

/// A key for one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedKey {
    /// SHA-256 of the public key that it is sealed for. A node's changes with its certificate.
    pub holder: Digest,
    /// Ciphertext, base64.
    pub sealed: String,
}

/// Somebody who was removed for ever held the newest key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposure {
    pub by: String,
    pub at: WallTime,
}

/// The newest key of a kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    pub kind: KeyKind,
    pub number: u32,
    pub stage: Stage,
    pub begun: WallTime,
    /// Since when it is in its stage.
    pub since: WallTime,
    /// Of an authority: its certificate and that of the one before it, as PEM.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub certificate: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub former: String,
    #[serde(default)]
    pub sealed: BTreeMap<NodeId, SealedKey>,
    /// Nodes that were away for so long that a stage began without them.
    #[serde(default)]
    pub behind: BTreeSet<NodeId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposed: Option<Exposure>,
}

impl KeyRecord {
    /// The key with which every cluster begins. Nobody decided about it.
    fn first(kind: KeyKind) -> KeyRecord {
        KeyRecord {
            kind,
            number: 1,
            stage: Stage::Done,
            begun: WallTime::default(),
            since: WallTime::default(),
            certificate: String::new(),
            former: String::new(),
            sealed: BTreeMap::new(),
            behind: BTreeSet::new(),
            exposed: None,
        }
    }

    /// Whether a new key should take over because somebody left with this one.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.exposed.is_some() && self.stage == Stage::Done
    }
}

/// What is decided about keys.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TrustState {
    /// Kinds of which anything was decided.
    pub keys: BTreeMap<KeyKind, KeyRecord>,
}

impl TrustState {
    /// The newest key of a kind.
    #[must_use]
    pub fn key(&self, kind: KeyKind) -> KeyRecord {
        self.keys.get(&kind).cloned().unwrap_or_else(|| KeyRecord::first(kind))
    }
}

/// A mutation of [`TrustState`]. In JSON the tag is `trust`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "trust", rename_all = "kebab-case")]
pub enum TrustCommand {
    /// A new key takes over, in steps.
    Begin {
        key: KeyKind,
        number: u32,
        #[serde(default)]
        certificate: String,
        #[serde(default)]
        former: String,
        sealed: BTreeMap<NodeId, SealedKey>,
    },
    /// A node that lacks the newest key gets it.
    Hand { key: KeyKind, number: u32, node: NodeId, envelope: SealedKey },
    /// Everybody who is waited for has carried out stage `from`; `behind` are those who are not.
    Advance { key: KeyKind, number: u32, from: Stage, behind: BTreeSet<NodeId> },
}

impl ClusterState {
    pub(crate) fn decide_trust(&self, changes: &mut Changes, command: &TrustCommand) -> Result<(), Refusal> {
        match command {
            TrustCommand::Begin { key, number, certificate, former, sealed } => {
                let known = self.trust.key(*key);
                let stranger = sealed.keys().any(|node| !self.may_hold(*node));
                if known.stage != Stage::Done || *number != known.number + 1 || stranger {
                    return Err(Refusal::KeyChanging { key: *key, number: known.number, stage: known.stage });
                }
                changes.list.push(Change::Trust(KeyRecord {
                    number: *number,
                    stage: Stage::Spread,
                    begun: changes.now,
                    since: changes.now,
                    certificate: certificate.clone(),
                    former: former.clone(),
                    sealed: sealed.clone(),
                    ..KeyRecord::first(*key)
                }));
                changes.stage(*key, *number, Stage::Spread, &BTreeSet::new());
            }
            TrustCommand::Hand { key, number, node, envelope } => {
                let mut known = self.trust.key(*key);
                // It is of no use any more, or of no use to anybody.
                if known.number != *number || !self.may_hold(*node) {
                    return Ok(());
                }
                known.sealed.insert(*node, envelope.clone());
                changes.list.push(Change::Trust(known));
            }
            TrustCommand::Advance { key, number, from, behind } => {
                let mut known = self.trust.key(*key);
                if (known.number, known.stage) != (*number, *from) || known.stage == Stage::Done {
                    return Ok(());
                }
                known.stage = known.stage.next();
                known.since = changes.now;
                known.behind = behind.iter().copied().filter(|node| self.nodes.contains_key(node)).collect();
                if known.stage == Stage::Done {
                    known.sealed.clear();
                }
                changes.stage(*key, *number, known.stage, &known.behind);
                if (*key, known.stage) == (KeyKind::Authority, Stage::Use) {
                    // They carry the fingerprint of the authority that no node shows from now on.
                    let useless = self.members.tokens.values().filter(|token| token.used.is_none());
                    for token in useless.map(|token| token.id).collect::<Vec<_>>() {
                        changes.member(MemberChange::TokenGone { token });
                    }
                }
                changes.list.push(Change::Trust(known));
            }
        }
        Ok(())
    }

    /// Who is about to be removed for ever gets no key any more.
    fn may_hold(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|record| !record.expelling)
    }

    /// What those who are removed for ever knew must not be of use any more.
    pub(crate) fn expose(&self, changes: &mut Changes, nodes: &[&NodeRecord]) {
        for kind in KeyKind::ALL {
            let mut known = self.trust.key(kind);
            let mut by = Vec::new();
            for node in nodes {
                let had_it = known.sealed.remove(&node.identity.id).is_some();
                known.behind.remove(&node.identity.id);
                if had_it || node.identity.roles.contains(&Role::Manager) {
                    by.push(node.identity.name.as_str());
                }
            }
            if !by.is_empty() {
                known.exposed = Some(Exposure { by: by.join(", "), at: changes.now });
            }
            if self.trust.keys.get(&kind) != Some(&known) && known != KeyRecord::first(kind) {
                changes.list.push(Change::Trust(known));
            }
        }
    }
}

impl Changes {
    fn stage(&mut self, key: KeyKind, number: u32, stage: Stage, behind: &BTreeSet<NodeId>) {
        self.event(Happening::KeyStage { key, number, stage, behind: behind.clone() });
    }
}

#[cfg(test)]
mod tests;
