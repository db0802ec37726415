//! Users, sessions, API tokens, roles, confirmations, secrets, and the audit of what all of them did.
//!
//! Everything random, every hash and every time is made before it is proposed: here hashes are only
//! compared and stored. So all nodes hold the same, a session outlives the node that opened it, and
//! a try at a password counts everywhere (see [`tries`]).
//!
//! # Invariants
//! - Neither a password nor a token nor a session's secret is ever here: only what they hash to.
//! - There is always an enabled user with the role `admin`, once there was one.
//! - A confirmation is used up by the entry of the act it was given for, whatever comes of the act.
//! - An entry with an [`Actor`] adds one audit entry, also when it is refused.
//!
//! # Sources
//! OWASP cheat sheets on session management and authentication; etcd #14571 (state of
//! authentication that changed outside the log).

pub mod audit;
mod command;
pub mod name;
pub mod policy;
pub mod service;
pub mod tries;

#[cfg(test)]
mod tests;

pub use command::{AccessCommand, AccessRefusal};

use crate::command::{Command, Refusal};
use crate::id::{LogIndex, ReplicaId};
use crate::state::{Change, ClusterState};
use crate::time::WallTime;
use crate::trust::{KeyKind, Stage};
use audit::{AuditEntry, AuditHead, AuditLink};
use name::{ApiTokenId, Digest, RoleName, SecretName, UserName};
use policy::Permission;
use serde::{Deserialize, Serialize};
use service::ServiceTokenRecord;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tries::{Guesser, Tries};

/// A session that nobody used for this long is over. Between two notes of its use
/// [`SESSION_TOUCHED_EVERY`] may pass, so that it ends after 25 to 30 minutes of silence.
pub const SESSION_IDLE: Duration = Duration::from_secs(30 * 60);
/// A session is over after this, used or not.
pub const SESSION_LONGEST: Duration = Duration::from_secs(12 * 3600);
/// The use of a session is written down at most this often: requests do not fill the log.
pub const SESSION_TOUCHED_EVERY: Duration = Duration::from_secs(5 * 60);
/// How long a confirmation can be used.
pub const CONFIRMED_FOR: Duration = Duration::from_secs(5 * 60);
/// How long an API token is valid unless somebody says otherwise.
pub const TOKEN_LASTS: Duration = Duration::from_secs(90 * 24 * 3600);
/// The longest that an API token can be valid.
pub const TOKEN_LASTS_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Everything that is decided about access.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AccessState {
    pub users: BTreeMap<UserName, UserRecord>,
    /// Those that differ from [`policy::built_in`], or are none of them.
    pub roles: BTreeMap<RoleName, RoleRecord>,
    pub sessions: BTreeMap<Digest, SessionRecord>,
    pub tokens: BTreeMap<ApiTokenId, TokenRecord>,
    /// Of replicas that are there.
    pub services: BTreeMap<ReplicaId, ServiceTokenRecord>,
    pub confirmations: BTreeMap<Digest, Confirmation>,
    pub tries: BTreeMap<Guesser, Tries>,
    pub secrets: BTreeMap<SecretName, SecretRecord>,
    /// The end of the audit. The entries themselves are in the database only.
    pub audit: AuditHead,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRecord {
    pub name: UserName,
    /// A PHC string, argon2id.
    pub password: String,
    pub roles: BTreeSet<RoleName>,
    #[serde(default)]
    pub disabled: bool,
    pub created: WallTime,
    pub password_changed: WallTime,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleRecord {
    pub name: RoleName,
    /// One sentence for people.
    pub purpose: String,
    /// Cannot be changed, only cloned.
    pub fixed: bool,
    pub built_in: bool,
    pub permissions: BTreeSet<Permission>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// SHA-256 of the 256 random bits that the browser has.
    pub hash: Digest,
    pub user: UserName,
    pub created: WallTime,
    /// Its last use that was written down.
    pub seen: WallTime,
    /// The address that logged in.
    pub from: String,
}

impl SessionRecord {
    #[must_use]
    pub fn is_over(&self, now: WallTime) -> bool {
        now.since(self.seen) >= SESSION_IDLE || now.since(self.created) >= SESSION_LONGEST
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    pub id: ApiTokenId,
    /// SHA-256 of the secret part.
    pub hash: Digest,
    pub user: UserName,
    /// What it is for, for people.
    pub label: String,
    /// What it may do at most. What its user may not do, it cannot do either.
    pub scopes: BTreeSet<Permission>,
    /// May do what a person has to confirm.
    pub dangerous: bool,
    pub created: WallTime,
    pub expires: WallTime,
}

/// The password was given again, for one act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    pub hash: Digest,
    pub user: UserName,
    /// The operation's word.
    pub what: String,
    pub target: String,
    pub expires: WallTime,
}

/// A sealed secret: whoever proposes it has sealed it before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRecord {
    pub name: SecretName,
    /// Ciphertext, base64. Quorate's state machine cannot read it.
    pub sealed: String,
    /// Number of the key that sealed it.
    #[serde(default)]
    pub key: u32,
    /// Grows with each change of the secret itself.
    pub version: u64,
    pub changed: WallTime,
}

/// Who wants a mutation, beside the command in its log entry. What has none is the cluster's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    pub who: String,
    pub from: String,
    /// [`policy::Operation::word`]. A text, so that an older node can write down what only a newer
    /// one knows.
    pub what: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// Hash of the confirmation that this act uses up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmation: Option<Digest>,
}

/// One record's new value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "access", rename_all = "kebab-case")]
pub enum AccessChange {
    User(UserRecord),
    UserGone { user: UserName },
    Role(RoleRecord),
    RoleGone { role: RoleName },
    Session(SessionRecord),
    SessionGone { hash: Digest },
    Token(TokenRecord),
    TokenGone { token: ApiTokenId },
    ServiceToken(ServiceTokenRecord),
    ServiceTokenGone { replica: ReplicaId },
    Confirmation(Confirmation),
    ConfirmationGone { hash: Digest },
    Tries { guesser: Guesser, tries: Tries },
    TriesGone { guesser: Guesser },
    Secret(SecretRecord),
    SecretGone { name: SecretName },
    Audit(AuditLink),
}

impl AccessState {
    /// Carries out what was decided.
    pub fn absorb(&mut self, change: AccessChange) {
        use AccessChange as C;
        match change {
            C::User(user) => drop(self.users.insert(user.name.clone(), user)),
            C::UserGone { user } => drop(self.users.remove(&user)),
            C::Role(role) => drop(self.roles.insert(role.name.clone(), role)),
            C::RoleGone { role } => drop(self.roles.remove(&role)),
            C::Session(session) => drop(self.sessions.insert(session.hash, session)),
            C::SessionGone { hash } => drop(self.sessions.remove(&hash)),
            C::Token(token) => drop(self.tokens.insert(token.id.clone(), token)),
            C::TokenGone { token } => drop(self.tokens.remove(&token)),
            C::ServiceToken(token) => drop(self.services.insert(token.replica, token)),
            C::ServiceTokenGone { replica } => drop(self.services.remove(&replica)),
            C::Confirmation(confirmation) => drop(self.confirmations.insert(confirmation.hash, confirmation)),
            C::ConfirmationGone { hash } => drop(self.confirmations.remove(&hash)),
            C::Tries { guesser, tries } => drop(self.tries.insert(guesser, tries)),
            C::TriesGone { guesser } => drop(self.tries.remove(&guesser)),
            C::Secret(secret) => drop(self.secrets.insert(secret.name.clone(), secret)),
            C::SecretGone { name } => drop(self.secrets.remove(&name)),
            C::Audit(link) => self.audit = link.head(),
        }
    }

    /// A role as it is now.
    #[must_use]
    pub fn role(&self, name: &RoleName) -> Option<RoleRecord> {
        self.roles.get(name).cloned().or_else(|| policy::built_in().find(|role| role.name == *name))
    }

    /// All roles as they are now, by name.
    #[must_use]
    pub fn all_roles(&self) -> BTreeMap<RoleName, RoleRecord> {
        let mut roles: BTreeMap<RoleName, RoleRecord> =
            policy::built_in().map(|role| (role.name.clone(), role)).collect();
        roles.extend(self.roles.iter().map(|(name, role)| (name.clone(), role.clone())));
        roles
    }

    #[must_use]
    pub fn grants(&self, role: &RoleName, permission: Permission) -> bool {
        self.role(role).is_some_and(|role| role.permissions.contains(&permission))
    }

    /// The session of this secret's hash, if it still holds.
    #[must_use]
    pub fn session(&self, hash: Digest, now: WallTime) -> Option<&SessionRecord> {
        let session = self.sessions.get(&hash).filter(|session| !session.is_over(now))?;
        self.users.get(&session.user).filter(|user| !user.disabled).map(|_| session)
    }

    /// The token of this id and secret's hash, if it still holds.
    #[must_use]
    pub fn token(&self, id: &ApiTokenId, hash: Digest, now: WallTime) -> Option<&TokenRecord> {
        let token = self.tokens.get(id).filter(|token| token.hash == hash && now < token.expires)?;
        self.users.get(&token.user).filter(|user| !user.disabled).map(|_| token)
    }

    /// The replica whose token has this secret's hash.
    #[must_use]
    pub fn service_token(&self, replica: ReplicaId, hash: Digest) -> Option<&ServiceTokenRecord> {
        self.services.get(&replica).filter(|token| token.hash == hash)
    }

    /// How long this account and source must wait before the next try.
    #[must_use]
    pub fn wait(&self, account: Option<&UserName>, source: &str, now: WallTime) -> Duration {
        let wait = |guesser: &Guesser| self.tries.get(guesser).map_or(Duration::ZERO, |tries| tries.wait(now));
        wait(&Guesser::Account(account.cloned())).max(wait(&Guesser::Source(source.to_owned())))
    }

    /// The confirmation that `actor` names, if it was given for what `actor` does.
    fn confirmation(&self, actor: &Actor, hash: Digest, now: WallTime) -> Result<(), AccessRefusal> {
        let known = self.confirmations.get(&hash);
        let fits = known.is_some_and(|known| {
            known.user.as_str() == actor.who
                && known.what == actor.what
                && known.target == actor.target
                && now < known.expires
        });
        if fits {
            Ok(())
        } else {
            Err(AccessRefusal::NotConfirmed { what: actor.what.clone(), target: actor.target.clone() })
        }
    }
}

/// What an entry with an actor leads to.
#[derive(Debug, Clone, PartialEq)]
pub struct Decided {
    pub outcome: Result<(), Refusal>,
    /// To be carried out whatever the outcome: a refusal leaves its trace, and uses up its
    /// confirmation.
    pub changes: Vec<Change>,
}

impl ClusterState {
    /// What `command` changes when `actor` wants it: [`decide`](ClusterState::decide) with the
    /// actor's confirmation and its audit entry.
    #[must_use]
    pub fn decide_for(&self, index: LogIndex, now: WallTime, command: &Command, actor: Option<&Actor>) -> Decided {
        let Some(actor) = actor else {
            return match self.decide(index, now, command) {
                Ok(changes) => Decided { outcome: Ok(()), changes },
                Err(refusal) => Decided { outcome: Err(refusal), changes: Vec::new() },
            };
        };
        let mut changes = Vec::new();
        let confirmed = match actor.confirmation {
            None => Ok(()),
            Some(hash) => {
                let confirmed = self.access.confirmation(actor, hash, now);
                if confirmed.is_ok() {
                    changes.push(Change::Access(AccessChange::ConfirmationGone { hash }));
                }
                confirmed.map_err(Refusal::Access)
            }
        };
        let decided = confirmed.and_then(|()| self.decide(index, now, command)).map(|mut decided| {
            for change in &mut decided {
                if let Change::Version(version) = change
                    && version.made == index
                {
                    version.by = Some(actor.who.clone());
                }
                if let Change::Service(service) = change
                    && let Some(stopped) = service.stopped.as_mut().filter(|stopped| stopped.index == index)
                    && !stopped.by_schedule
                {
                    stopped.by = Some(actor.who.clone());
                }
                if let Change::Drill(drill) = change
                    && drill.index == index
                {
                    drill.by = Some(actor.who.clone());
                }
            }
            decided
        });
        let (outcome, word) = match decided {
            Ok(decided) => {
                changes.extend(decided);
                (Ok(()), command.audit_word())
            }
            Err(refusal) => {
                let word = format!("refused: {refusal}");
                (Err(refusal), word)
            }
        };
        let entry = AuditEntry {
            seq: 0,
            index,
            at: now,
            who: actor.who.clone(),
            from: actor.from.clone(),
            what: actor.what.clone(),
            target: actor.target.clone(),
            outcome: word,
        };
        changes.push(Change::Access(AccessChange::Audit(self.access.audit.link(entry))));
        Decided { outcome, changes }
    }
}

impl ClusterState {
    /// What is sealed with a key that is about to be forgotten could soon be opened by nobody.
    pub(crate) fn sealed_well(&self, command: &AccessCommand) -> Result<(), AccessRefusal> {
        let (AccessCommand::SetSecret { key, .. } | AccessCommand::ResealSecret { key, .. }) = command else {
            return Ok(());
        };
        let newest = self.trust.key(KeyKind::Secrets);
        let in_use = if newest.stage == Stage::Spread { newest.number - 1 } else { newest.number };
        // The first key's number was not written down in the beginning.
        if (*key).max(1) < in_use { Err(AccessRefusal::OldKey { key: *key, in_use }) } else { Ok(()) }
    }
}

impl Command {
    fn audit_word(&self) -> String {
        match self {
            Command::Access(AccessCommand::Denied { why, unwritten: 0 }) => format!("denied: {why}"),
            Command::Access(AccessCommand::Denied { why, unwritten }) => {
                format!("denied: {why}; {unwritten} more were not written down")
            }
            Command::Access(AccessCommand::Begin {}) => "begun".into(),
            _ => "done".into(),
        }
    }
}
