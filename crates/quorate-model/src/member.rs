//! Who belongs to the cluster: admission, leaving, expulsion, and what is decided about a member.
//!
//! A server becomes a node with a join token: the secret is shown once, its hash lies in the
//! state, and the entry that admits the node uses the token up. Two racers on two nodes are two
//! entries in one log, so one of them finds it used. A node that *left* may come back under its
//! id; one that was *expelled* never does.
//!
//! Expulsion is two entries. The first is the wish, upon which the leader takes the node's vote away;
//! the second cuts it off and forgets it, once its vote counts for nothing. In one, two expulsions could
//! together cut off more voters than the others can do without, each being harmless alone. (Found by
//! the simulator, seed 186: three of four were gone, and the one that remained could not decide to count
//! without them.)
//!
//! Which members vote is not decided here: consensus has its own record of that
//! (`quorate_node::consensus`). Here is only what somebody wishes for a node ([`Vote`]).
//!
//! # Invariants
//! - A token admits one node, once. Asking again for the same node changes nothing and succeeds.
//! - The names and addresses of nodes that have not left differ.
//! - An expelled id never becomes a node again.
//! - One manager at least may vote, whatever is wished.
//! - Seats: with a quota, the nodes that have one (see [`ClusterState::has_seat`]) are never more
//!   than it allows, unless it was lowered below what runs: then nobody is stopped and nobody comes.

pub mod ha;
pub mod managers;

use crate::attribute::{Attribute, Attributes};
use crate::command::Refusal;
use crate::event::Happening;
use crate::id::{NodeId, TokenId};
use crate::place::Availability;
use crate::state::{Change, Changes, ClusterState, Health, NodeIdentity, NodeRecord, Role};
use crate::time::{Span, WallTime};
use managers::{Harm, Recovery};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// How long a used or expired token is remembered, so that a second use is told what happened.
const TOKEN_REMEMBERED_US: u64 = 24 * 3600 * 1_000_000;
/// Tokens that may wait to be used at one time.
pub const TOKENS_MAX: usize = 1_000;
/// The longest alias, in characters.
pub const ALIAS_MAX: usize = 63;

/// What the seed of the quota says when it is reached; people search for it word for word (D3).
pub const QUOTA_REACHED: &str =
    "Your current subscription does not allow more nodes running. Please upgrade to add more nodes.";

/// SHA-256 of a secret, as 64 lower-case hex digits in JSON.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretHash(pub [u8; 32]);

impl fmt::Display for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretHash({self})")
    }
}

impl Serialize for SecretHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SecretHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = || serde::de::Error::custom("64 hex digits are wanted");
        let text = String::deserialize(deserializer)?;
        let mut hash = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        for (at, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| wrong())?;
        }
        Ok(SecretHash(hash))
    }
}

/// A permission to join, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    pub id: TokenId,
    pub secret: SecretHash,
    /// The role that the node gets; a manager is a worker and a gateway as well unless it says otherwise.
    pub role: Role,
    /// Only a node of this name may use it. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub created: WallTime,
    pub expires: WallTime,
    /// Who used it, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<TokenUse>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUse {
    pub by: NodeId,
    pub name: String,
    pub at: WallTime,
}

/// Whether a manager is to vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vote {
    /// The cluster decides: voters stay odd, the others stand by.
    #[default]
    Auto,
    /// Somebody asked for its vote explicitly.
    Asked,
    /// It does not vote now: its manager role is stopped.
    Never,
}

/// How many nodes may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Workers and gateways; a node that is both counts once.
    pub nodes: u32,
    /// After this no node is admitted. Those that run go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<WallTime>,
}

/// What is decided about members besides the nodes themselves.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Members {
    pub tokens: BTreeMap<TokenId, JoinToken>,
    /// Ids that are never used again.
    pub expelled: BTreeSet<NodeId>,
    /// `None`: any number.
    pub quota: Option<Quota>,
    /// Managers are only where this role is as well. `None`: anywhere.
    pub manager_requires: Option<Role>,
    /// The last time that the cluster went on without its majority.
    pub recovery: Option<Recovery>,
    /// What was decided about high availability; see [`ClusterState::ha`].
    pub ha: Option<bool>,
    /// The failover time of services that name none, and how long a node may be away before what ran there is
    /// replaced. `None`: each has its default; see [`ClusterState::failover`].
    pub failover: Option<Span>,
}

/// A mutation of the membership. In JSON the tag is `member`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "member", rename_all = "kebab-case")]
pub enum MemberCommand {
    CreateToken {
        token: JoinToken,
        /// High availability is switched on with it. Absent in logs that are older than the switch.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        turn_on_ha: bool,
    },
    RevokeToken {
        token: TokenId,
    },
    /// A server that showed the secret with this hash becomes a node.
    Admit {
        secret: SecretHash,
        node: NodeIdentity,
        #[serde(default)]
        vote: Vote,
    },
    /// The server of the node, in this one of its runs, is about to end for longer than a restart takes: what
    /// runs once there is brought elsewhere first, and nothing new comes. Its next start ends that.
    HandOver {
        node: NodeId,
        generation: u64,
    },
    /// An operator has made certain that the node, which is not joined in this one of its runs, has no power or
    /// is destroyed: what it would go on with without a quorum may start elsewhere.
    ConfirmDead {
        node: NodeId,
        generation: u64,
    },
    /// The node stops cleanly and frees its seat.
    Leave {
        node: NodeId,
        generation: u64,
    },
    /// The node shall no longer be of the cluster, whatever it thinks.
    Expel {
        node: NodeId,
    },
    /// Its vote counts no more: from here on it is not of the cluster. The leader's word, after [`Expel`].
    ///
    /// [`Expel`]: MemberCommand::Expel
    CutOff {
        node: NodeId,
    },
    SetAlias {
        node: NodeId,
        #[serde(default)]
        alias: Option<String>,
    },
    /// Labels with a value are set, those without are taken away; the others stay.
    SetLabels {
        node: NodeId,
        labels: BTreeMap<String, Option<String>>,
    },
    /// What a resource agent says of a node. Without a value it is taken away.
    SetAttribute {
        node: NodeId,
        name: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attribute: Option<Attribute>,
    },
    SetAvailability {
        node: NodeId,
        availability: Availability,
    },
    SetRoles {
        node: NodeId,
        roles: BTreeSet<Role>,
    },
    SetVote {
        node: NodeId,
        vote: Vote,
    },
    SetQuota {
        #[serde(default)]
        quota: Option<Quota>,
    },
    /// The manager role of these nodes stops, all at once; see [`managers`].
    StopManagers {
        nodes: BTreeSet<NodeId>,
    },
    /// It starts again. The cluster decides which of them vote.
    StartManagers {
        nodes: BTreeSet<NodeId>,
    },
    /// The server of the node, in this one of its runs, is to end and begin anew.
    RestartServer {
        node: NodeId,
        generation: u64,
        /// Not while another server is away or begins anew.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        alone: bool,
    },
    SetManagerRule {
        #[serde(default)]
        requires: Option<Role>,
    },
    /// Switches high availability; see [`ha`].
    SetHa {
        on: bool,
    },
    /// 10s to 300s; see [`Members::failover`].
    SetFailover {
        #[serde(default)]
        failover: Option<Span>,
    },
    /// The cluster goes on with one survivor. No node proposes it: `quorate recover` writes it into the
    /// survivor's log, where nobody else is left to object.
    Recover {
        survivor: NodeId,
        incarnation: u64,
        lost: BTreeSet<NodeId>,
    },
}

/// One record's new value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "member", rename_all = "kebab-case")]
pub enum MemberChange {
    Token(JoinToken),
    TokenGone { token: TokenId },
    NodeGone { node: NodeId },
    Expelled { node: NodeId },
    Quota { quota: Option<Quota> },
    ManagerRule { requires: Option<Role> },
    Ha { on: bool },
    Failover { failover: Option<Span> },
    Recovered(Recovery),
}

/// Why a server was not admitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "reason", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NotAdmitted {
    #[error("the join token is not one of this cluster, or it was revoked")]
    UnknownToken,
    #[error("the join token was already used by {by}")]
    UsedToken { by: String },
    #[error("the join token has expired")]
    ExpiredToken { at: WallTime },
    #[error("the join token is for role {allowed:?}, and this server asks for {asked:?}")]
    WrongRole { allowed: Role, asked: Role },
    #[error("the join token is for a server named `{allowed}`, and this one is `{asked}`")]
    WrongName { allowed: String, asked: String },
    #[error("a node named `{name}` is in the cluster already")]
    NameTaken { name: String },
    #[error("the address {address} belongs to node `{owner}` already")]
    AddressTaken { address: String, owner: String },
    #[error("node {node} was expelled; its id is never used again")]
    Expelled { node: NodeId },
    #[error("{QUOTA_REACHED}")]
    QuotaReached { nodes: u32 },
    #[error("the quota has expired: nodes that run go on, and none may join")]
    QuotaExpired { at: WallTime },
    #[error("a manager must have the role {requires:?} as well in this cluster")]
    ManagerNeeds { requires: Role },
}

impl ClusterState {
    /// Whether the node counts against the quota: it does work and is not away.
    #[must_use]
    pub fn has_seat(node: &NodeRecord) -> bool {
        node.health == Health::Joined && works(&node.identity.roles)
    }

    /// Whether one more node, or this one again, finds a seat.
    pub(crate) fn find_seat(&self, node: &NodeIdentity, now: WallTime) -> Result<(), NotAdmitted> {
        let Some(quota) = self.members.quota.as_ref().filter(|_| works(&node.roles)) else { return Ok(()) };
        let others = self.nodes.values().filter(|other| other.identity.id != node.id);
        let taken = others.filter(|other| ClusterState::has_seat(other)).count();
        if taken >= usize::try_from(quota.nodes).unwrap_or(usize::MAX) {
            return Err(NotAdmitted::QuotaReached { nodes: quota.nodes });
        }
        match quota.expires {
            Some(at) if at <= now => Err(NotAdmitted::QuotaExpired { at }),
            Some(_) | None => Ok(()),
        }
    }

    pub(crate) fn decide_member(&self, changes: &mut Changes, command: &MemberCommand) -> Result<(), Refusal> {
        match command {
            MemberCommand::CreateToken { token, turn_on_ha } => self.create_token(changes, token, *turn_on_ha),
            MemberCommand::RevokeToken { token } => {
                if !self.members.tokens.contains_key(token) {
                    return Err(Refusal::UnknownToken { token: *token });
                }
                changes.member(MemberChange::TokenGone { token: *token });
                Ok(())
            }
            MemberCommand::Admit { secret, node, vote } => {
                self.admit(changes, *secret, node, *vote).map_err(|why| Refusal::NotAdmitted { why })
            }
            MemberCommand::HandOver { node, generation } => {
                let known = self.node(*node)?;
                if known.generation == *generation && known.health == Health::Joined && !known.handing_over {
                    self.edit(changes, *node, |record| record.handing_over = true)?;
                    changes.event(Happening::NodeHandsOver { node: *node });
                }
                Ok(())
            }
            MemberCommand::ConfirmDead { node, generation } => self.confirm_dead(changes, *node, *generation),
            MemberCommand::Leave { node, generation } => {
                let known = self.node(*node)?;
                if known.generation == *generation && known.health != Health::Left {
                    let mut record = NodeRecord { health: Health::Left, since: changes.now, ..known.clone() };
                    record.forget();
                    changes.list.push(Change::Node(record));
                    changes.event(Happening::NodeLeft { node: *node });
                }
                Ok(())
            }
            MemberCommand::Expel { node } => {
                if self.members.expelled.contains(node) {
                    return Ok(());
                }
                // Once it is gone for ever nobody could say of it that it is dead.
                if let Some(kept) = self.kept_by(*node).next() {
                    let name = self.node(*node)?.identity.name.clone();
                    return Err(Refusal::KeepsService { node: name, service: kept.name.clone() });
                }
                self.others_may_vote(&BTreeSet::from([*node]))?;
                self.edit(changes, *node, |record| record.expelling = true)
            }
            MemberCommand::CutOff { node } => {
                if self.members.expelled.contains(node) {
                    return Ok(());
                }
                let known = self.node(*node)?;
                if !known.expelling {
                    let problem = "is not to be expelled".to_owned();
                    return Err(Refusal::Invalid { field: "node".into(), problem });
                }
                let name = known.identity.name.clone();
                self.expose(changes, &[known]);
                changes.member(MemberChange::Expelled { node: *node });
                changes.member(MemberChange::NodeGone { node: *node });
                changes.event(Happening::NodeExpelled { node: *node, name });
                Ok(())
            }
            MemberCommand::SetAlias { node, alias } => {
                let alias = alias.as_deref().map(str::trim).filter(|alias| !alias.is_empty());
                if alias.is_some_and(|alias| alias.chars().count() > ALIAS_MAX || alias.contains(char::is_control)) {
                    let problem = format!("has more than {ALIAS_MAX} characters, or control characters");
                    return Err(Refusal::Invalid { field: "alias".into(), problem });
                }
                self.edit(changes, *node, |record| record.alias = alias.map(str::to_owned))
            }
            MemberCommand::SetLabels { node, labels } => self.set_labels(changes, *node, labels),
            MemberCommand::SetAttribute { node, name, attribute } => {
                self.set_attribute(changes, *node, name, attribute.as_ref())
            }
            MemberCommand::SetAvailability { node, availability } => {
                self.set_availability(changes, *node, availability)
            }
            MemberCommand::SetRoles { node, roles } => {
                if roles.is_empty() {
                    let problem = "is empty; a node does something, or it is removed".to_owned();
                    return Err(Refusal::Invalid { field: "roles".into(), problem });
                }
                let known = self.node(*node)?;
                if !roles.contains(&Role::Manager) {
                    self.others_may_vote(&BTreeSet::from([*node]))?;
                }
                self.may_manage(&known.identity.name, roles)?;
                if works(roles) && !works(&known.identity.roles) && known.health == Health::Joined {
                    let wanted = NodeIdentity { roles: roles.clone(), ..known.identity.clone() };
                    self.find_seat(&wanted, changes.now).map_err(|why| Refusal::NotAdmitted { why })?;
                }
                self.edit(changes, *node, |record| {
                    record.identity.roles = roles.clone();
                    record.roles_set = true;
                })
            }
            MemberCommand::SetVote { node, vote } => {
                if !self.node(*node)?.identity.roles.contains(&Role::Manager) {
                    let problem = "is for managers; give the node that role first".to_owned();
                    return Err(Refusal::Invalid { field: "vote".into(), problem });
                }
                if *vote == Vote::Never {
                    self.others_may_vote(&BTreeSet::from([*node]))?;
                }
                self.edit(changes, *node, |record| record.vote = *vote)
            }
            MemberCommand::SetQuota { quota } => {
                if *quota != self.members.quota {
                    changes.member(MemberChange::Quota { quota: quota.clone() });
                    changes.event(Happening::QuotaSet { nodes: quota.as_ref().map(|quota| quota.nodes) });
                }
                Ok(())
            }
            MemberCommand::StopManagers { nodes } => self.stop_managers(changes, nodes),
            MemberCommand::StartManagers { nodes } => self.start_managers(changes, nodes),
            MemberCommand::RestartServer { node, generation, alone } => {
                if *alone {
                    self.others_are_there(*node)?;
                }
                self.restart_server(changes, *node, *generation)
            }
            MemberCommand::SetManagerRule { requires } => self.set_manager_rule(changes, *requires),
            MemberCommand::SetHa { on } => self.set_ha(changes, *on),
            MemberCommand::SetFailover { failover } => self.set_failover(changes, *failover),
            MemberCommand::Recover { survivor, incarnation, lost } => {
                self.recover(changes, *survivor, *incarnation, lost)
            }
        }
    }

    pub(crate) fn absorb_member(&mut self, change: MemberChange) {
        match change {
            MemberChange::Token(token) => drop(self.members.tokens.insert(token.id, token)),
            MemberChange::TokenGone { token } => drop(self.members.tokens.remove(&token)),
            MemberChange::NodeGone { node } => drop(self.nodes.remove(&node)),
            MemberChange::Expelled { node } => drop(self.members.expelled.insert(node)),
            MemberChange::Quota { quota } => self.members.quota = quota,
            MemberChange::ManagerRule { requires } => self.members.manager_requires = requires,
            MemberChange::Ha { on } => self.members.ha = Some(on),
            MemberChange::Failover { failover } => self.members.failover = failover,
            MemberChange::Recovered(recovery) => self.members.recovery = Some(recovery),
        }
    }

    fn node(&self, node: NodeId) -> Result<&NodeRecord, Refusal> {
        self.nodes.get(&node).ok_or(Refusal::UnknownNode { node })
    }

    /// The cluster needs one manager at least that may vote.
    fn others_may_vote(&self, than: &BTreeSet<NodeId>) -> Result<(), Refusal> {
        let (these, others): (Vec<&NodeRecord>, Vec<&NodeRecord>) =
            self.nodes.values().filter(|node| node.may_vote()).partition(|node| than.contains(&node.identity.id));
        if these.is_empty() || !others.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = these.iter().map(|node| node.identity.name.as_str()).collect();
        Err(Refusal::Harm { harm: Harm::LastVoter { node: names.join(", ") } })
    }

    pub(crate) fn edit(
        &self,
        changes: &mut Changes,
        node: NodeId,
        edit: impl Fn(&mut NodeRecord),
    ) -> Result<(), Refusal> {
        let known = self.node(node)?;
        let mut record = known.clone();
        edit(&mut record);
        if record != *known {
            changes.list.push(Change::Node(record));
        }
        Ok(())
    }

    fn create_token(&self, changes: &mut Changes, token: &JoinToken, turn_on_ha: bool) -> Result<(), Refusal> {
        let known = &self.members.tokens;
        if known.contains_key(&token.id) {
            return Ok(());
        }
        let old = |known: &JoinToken| known.expires.0.saturating_add(TOKEN_REMEMBERED_US) < changes.now.0;
        let forgotten: Vec<TokenId> = known.values().filter(|token| old(token)).map(|token| token.id).collect();
        if known.len() - forgotten.len() >= TOKENS_MAX {
            let problem = format!("would be one of more than {TOKENS_MAX}; revoke some that nobody needs");
            return Err(Refusal::Invalid { field: "token".into(), problem });
        }
        for token in forgotten {
            changes.member(MemberChange::TokenGone { token });
        }
        if turn_on_ha {
            self.turn_on_ha(changes);
        }
        changes.member(MemberChange::Token(JoinToken { used: None, ..token.clone() }));
        Ok(())
    }

    fn admit(
        &self,
        changes: &mut Changes,
        secret: SecretHash,
        node: &NodeIdentity,
        vote: Vote,
    ) -> Result<(), NotAdmitted> {
        let token = self.members.tokens.values().find(|token| token.secret == secret);
        let token = token.ok_or(NotAdmitted::UnknownToken)?;
        match &token.used {
            // Its answer was lost, and it asks again.
            Some(used) if used.by == node.id => return Ok(()),
            Some(used) => return Err(NotAdmitted::UsedToken { by: used.name.clone() }),
            None if token.expires <= changes.now => return Err(NotAdmitted::ExpiredToken { at: token.expires }),
            None => {}
        }
        // A manager may do everything, so its token is good for the lesser roles beside it.
        if let Some(asked) = node.roles.iter().find(|role| **role != token.role && token.role != Role::Manager) {
            return Err(NotAdmitted::WrongRole { allowed: token.role, asked: *asked });
        }
        if let Some(allowed) = token.name.as_ref().filter(|name| **name != node.name) {
            return Err(NotAdmitted::WrongName { allowed: allowed.clone(), asked: node.name.clone() });
        }
        if self.members.expelled.contains(&node.id) {
            return Err(NotAdmitted::Expelled { node: node.id });
        }
        if let Err(Refusal::ManagerNeeds { requires, .. }) = self.may_manage(&node.name, &node.roles) {
            return Err(NotAdmitted::ManagerNeeds { requires });
        }
        let present = || self.nodes.values().filter(|other| other.health != Health::Left);
        if present().any(|other| other.identity.name == node.name) {
            return Err(NotAdmitted::NameTaken { name: node.name.clone() });
        }
        for address in [&node.link, &node.api] {
            let same = |other: &&NodeRecord| [&other.identity.link, &other.identity.api].contains(&address);
            if let Some(owner) = present().find(same) {
                let owner = owner.identity.name.clone();
                return Err(NotAdmitted::AddressTaken { address: address.clone(), owner });
            }
        }
        self.find_seat(node, changes.now)?;
        let used = TokenUse { by: node.id, name: node.name.clone(), at: changes.now };
        changes.member(MemberChange::Token(JoinToken { used: Some(used), ..token.clone() }));
        changes.list.push(Change::Node(NodeRecord {
            identity: node.clone(),
            health: Health::Joined,
            since: changes.now,
            generation: 0,
            boot: 0,
            alias: None,
            vote,
            roles_set: true,
            expelling: false,
            restart: None,
            handing_over: false,
            labels: BTreeMap::new(),
            availability: Availability::Open,
            attributes: Attributes::new(),
        }));
        changes.event(Happening::NodeJoined { node: node.id });
        Ok(())
    }
}

/// Whether a node with these roles does work for users.
fn works(roles: &BTreeSet<Role>) -> bool {
    roles.contains(&Role::Worker) || roles.contains(&Role::Gateway)
}

#[cfg(test)]
mod tests;
