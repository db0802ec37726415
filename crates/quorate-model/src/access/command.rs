//! What may be asked about access, and what it changes.

use super::name::{ApiTokenId, BadName, Digest, RoleName, SecretName, UserName};
use super::policy::{ADMIN, Permission};
use super::tries::{Guesser, REMEMBERED_MAX, Tries};
use super::{
    AccessChange, AccessState, CONFIRMED_FOR, Confirmation, RoleRecord, SESSION_TOUCHED_EVERY, SecretRecord,
    SessionRecord, TOKEN_LASTS_MAX, TokenRecord, UserRecord,
};
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;

/// All of these are in every node's memory; together they stay below 20 MiB.
const USERS_MAX: usize = 1_000;
const ROLES_MAX: usize = 100;
const SESSIONS_MAX: usize = 10_000;
/// A user's oldest session ends when one more begins.
const SESSIONS_A_USER_MAX: usize = 32;
const TOKENS_MAX: usize = 2_000;
const CONFIRMATIONS_A_USER_MAX: usize = 16;
const SECRETS_MAX: usize = 1_000;
/// Accounts and sources that make room at once: looking for them is work.
const ROOM: usize = REMEMBERED_MAX / 64;
/// Bytes of a sealed secret as base64: 64 KiB of the secret itself.
const SECRET_BYTES_MAX: usize = 96 << 10;
/// Of all of them together. The state is copied when it changes while somebody looks at it.
const SECRETS_BYTES_MAX: usize = 4 << 20;

/// A mutation of [`AccessState`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "access", rename_all = "kebab-case")]
pub enum AccessCommand {
    /// The first user, with the role `admin`. Does nothing when there are users already.
    EnsureAdmin {
        user: UserName,
        password: String,
    },
    CreateUser {
        user: UserName,
        password: String,
        roles: BTreeSet<RoleName>,
    },
    /// Ends the user's sessions, but for `keep`.
    SetPassword {
        user: UserName,
        password: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keep: Option<Digest>,
    },
    /// The same password with newer parameters of its hash; nothing else changes.
    Rehash {
        user: UserName,
        verified: Digest,
        password: String,
    },
    DisableUser {
        user: UserName,
    },
    EnableUser {
        user: UserName,
    },
    RemoveUser {
        user: UserName,
    },
    GrantRole {
        user: UserName,
        role: RoleName,
    },
    RevokeRole {
        user: UserName,
        role: RoleName,
    },
    CloneRole {
        role: RoleName,
        from: RoleName,
    },
    SetPermission {
        role: RoleName,
        permission: Permission,
        granted: bool,
    },
    RemoveRole {
        role: RoleName,
    },
    /// Somebody is about to try a password; see [`super::tries`]. `account`: as typed, if an
    /// account can have that name.
    Try {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        account: Option<UserName>,
        source: String,
    },
    /// The password was right. `verified`: SHA-256 of the PHC string that it was compared with.
    OpenSession {
        session: Digest,
        user: UserName,
        verified: Digest,
        source: String,
    },
    TouchSession {
        session: Digest,
    },
    CloseSession {
        session: Digest,
    },
    CreateToken {
        token: ApiTokenId,
        hash: Digest,
        user: UserName,
        label: String,
        scopes: BTreeSet<Permission>,
        dangerous: bool,
        /// Microseconds from the entry's time; at most [`TOKEN_LASTS_MAX`].
        lasts_us: u64,
    },
    RevokeToken {
        token: ApiTokenId,
        /// Only if it is this user's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of: Option<UserName>,
    },
    /// The password was right again, for one act.
    Confirm {
        confirmation: Digest,
        user: UserName,
        verified: Digest,
        source: String,
        what: String,
        target: String,
    },
    /// An act begins that is no command itself. Its actor is written down and its confirmation used up.
    Begin {},
    /// Somebody was turned away. `unwritten`: so many more before, of which nothing is written.
    Denied {
        why: String,
        unwritten: u64,
    },
    /// `sealed` is ciphertext, base64.
    SetSecret {
        name: SecretName,
        sealed: String,
        /// Number of the key that sealed it.
        #[serde(default)]
        key: u32,
    },
    /// The same secret, sealed with a newer key. Ignored when it was changed meanwhile.
    ResealSecret {
        name: SecretName,
        version: u64,
        sealed: String,
        key: u32,
    },
    RemoveSecret {
        name: SecretName,
    },
}

/// Why an [`AccessCommand`], or an act that needs a confirmation, changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "access", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum AccessRefusal {
    #[error("there is no user `{user}`")]
    UnknownUser { user: UserName },
    #[error("there is a user `{user}` already")]
    UserExists { user: UserName },
    #[error("there is no role `{role}`")]
    UnknownRole { role: RoleName },
    #[error("there is a role `{role}` already")]
    RoleExists { role: RoleName },
    #[error("the role `{role}` cannot be changed")]
    FixedRole { role: RoleName },
    #[error("the role `{role}` is a role of `{user}`")]
    RoleInUse { role: RoleName, user: UserName },
    #[error("`{user}` is the last admin that can log in")]
    LastAdmin { user: UserName },
    #[error("there is no such session")]
    UnknownSession,
    #[error("there is no token `{token}`")]
    UnknownToken { token: ApiTokenId },
    #[error("there is no secret `{name}`")]
    UnknownSecret { name: SecretName },
    /// The cluster's key changed at this moment.
    #[error("the secret was sealed with key {key}, and key {in_use} is in use by now")]
    OldKey { key: u32, in_use: u32 },
    /// A password was changed, or its user disabled, while it was looked at.
    #[error("the password is no longer right")]
    PasswordChanged,
    #[error("too many tries; the next one may be made in {wait_ms} ms")]
    TooSoon { wait_ms: u64 },
    #[error("`{what} {target}` was not confirmed, or the confirmation is used or too old")]
    NotConfirmed { what: String, target: String },
    #[error("there are {limit} {what} already, which is the most")]
    Full { what: String, limit: u64 },
    #[error("`{field}` {problem}")]
    Invalid { field: String, problem: String },
}

impl From<BadName> for AccessRefusal {
    fn from(name: BadName) -> AccessRefusal {
        AccessRefusal::Invalid { field: "name".into(), problem: format!("is {name}") }
    }
}

type Changes = Vec<AccessChange>;

fn full(have: usize, limit: usize, what: &str) -> Result<(), AccessRefusal> {
    if have < limit { Ok(()) } else { Err(AccessRefusal::Full { what: what.into(), limit: limit as u64 }) }
}

impl AccessState {
    /// What `command` changes at `now`. Changes nothing itself.
    ///
    /// # Errors
    /// [`AccessRefusal`] when it cannot be carried out.
    pub fn decide(&self, now: WallTime, command: &AccessCommand) -> Result<Changes, AccessRefusal> {
        use AccessChange as C;
        use AccessCommand as A;
        Ok(match command {
            A::EnsureAdmin { user, password } if self.users.is_empty() => {
                vec![C::User(new_user(now, user, password, [admin()].into()))]
            }
            A::EnsureAdmin { .. } | A::Begin {} | A::Denied { .. } => Vec::new(),
            A::CreateUser { user, password, roles } => {
                full(self.users.len(), USERS_MAX, "users")?;
                if self.users.contains_key(user) {
                    return Err(AccessRefusal::UserExists { user: user.clone() });
                }
                roles.iter().try_for_each(|role| self.known_role(role).map(drop))?;
                vec![C::User(new_user(now, user, password, roles.clone()))]
            }
            A::SetPassword { user, password, keep } => {
                let known = self.user(user)?;
                let changed = UserRecord { password: password.clone(), password_changed: now, ..known.clone() };
                let mut changes = vec![C::User(changed)];
                changes.extend(self.sessions_gone(|session| session.user == *user && Some(session.hash) != *keep));
                changes.extend(self.confirmations_gone(|confirmation| confirmation.user == *user));
                changes
            }
            A::Rehash { user, verified, password } => {
                let known = self.verified(user, *verified)?;
                vec![C::User(UserRecord { password: password.clone(), ..known.clone() })]
            }
            A::DisableUser { user } => {
                let known = self.user(user)?;
                self.not_the_last_admin(user)?;
                let mut changes = vec![C::User(UserRecord { disabled: true, ..known.clone() })];
                changes.extend(self.leaves(user));
                changes
            }
            A::EnableUser { user } => vec![C::User(UserRecord { disabled: false, ..self.user(user)?.clone() })],
            A::RemoveUser { user } => {
                self.user(user)?;
                self.not_the_last_admin(user)?;
                let mut changes = self.leaves(user);
                let tokens = self.tokens.values().filter(|token| token.user == *user);
                changes.extend(tokens.map(|token| C::TokenGone { token: token.id.clone() }));
                changes.push(C::UserGone { user: user.clone() });
                changes
            }
            A::GrantRole { user, role } => {
                let known = self.user(user)?;
                self.known_role(role)?;
                let mut roles = known.roles.clone();
                roles.insert(role.clone());
                vec![C::User(UserRecord { roles, ..known.clone() })]
            }
            A::RevokeRole { user, role } => {
                let known = self.user(user)?;
                self.known_role(role)?;
                if *role == admin() {
                    self.not_the_last_admin(user)?;
                }
                let mut roles = known.roles.clone();
                roles.remove(role);
                vec![C::User(UserRecord { roles, ..known.clone() })]
            }
            A::CloneRole { role, from } => {
                full(self.roles.len(), ROLES_MAX, "roles")?;
                let model = self.known_role(from)?;
                if self.role(role).is_some() {
                    return Err(AccessRefusal::RoleExists { role: role.clone() });
                }
                let purpose = format!("a clone of {from}");
                vec![C::Role(RoleRecord { name: role.clone(), purpose, fixed: false, built_in: false, ..model })]
            }
            A::SetPermission { role, permission, granted } => {
                let mut changed = self.changeable_role(role)?;
                if *granted {
                    changed.permissions.insert(*permission);
                } else {
                    changed.permissions.remove(permission);
                }
                vec![C::Role(changed)]
            }
            A::RemoveRole { role } => {
                let known = self.changeable_role(role)?;
                if known.built_in {
                    return Err(AccessRefusal::FixedRole { role: role.clone() });
                }
                if let Some(user) = self.users.values().find(|user| user.roles.contains(role)) {
                    return Err(AccessRefusal::RoleInUse { role: role.clone(), user: user.name.clone() });
                }
                vec![C::RoleGone { role: role.clone() }]
            }
            A::Try { account, source } => self.count_try(now, account.as_ref(), source)?,
            A::OpenSession { session, user, verified, source } => {
                self.verified(user, *verified)?;
                let mut changes = self.right_password(user, source);
                changes.extend(self.sessions_gone(|known| known.is_over(now)));
                let mut open: Vec<&SessionRecord> =
                    self.sessions.values().filter(|known| !known.is_over(now)).collect();
                full(open.len(), SESSIONS_MAX, "sessions")?;
                open.retain(|known| known.user == *user);
                open.sort_by_key(|known| (known.created, known.hash));
                let too_many = (open.len() + 1).saturating_sub(SESSIONS_A_USER_MAX);
                changes.extend(open.iter().take(too_many).map(|known| C::SessionGone { hash: known.hash }));
                changes.push(C::Session(SessionRecord {
                    hash: *session,
                    user: user.clone(),
                    created: now,
                    seen: now,
                    from: source.clone(),
                }));
                changes
            }
            A::TouchSession { session } => {
                let known = self.sessions.get(session).ok_or(AccessRefusal::UnknownSession)?;
                // Several nodes may want to write down the same use.
                if known.is_over(now) || now.since(known.seen) < SESSION_TOUCHED_EVERY {
                    return Ok(Vec::new());
                }
                vec![C::Session(SessionRecord { seen: now, ..known.clone() })]
            }
            A::CloseSession { session } => {
                if !self.sessions.contains_key(session) {
                    return Err(AccessRefusal::UnknownSession);
                }
                vec![C::SessionGone { hash: *session }]
            }
            A::CreateToken { token, hash, user, label, scopes, dangerous, lasts_us } => {
                full(self.tokens.len(), TOKENS_MAX, "tokens")?;
                self.user(user)?;
                let lasts = Duration::from_micros(*lasts_us);
                if lasts.is_zero() || lasts > TOKEN_LASTS_MAX || self.tokens.contains_key(token) {
                    let problem = "must be more than zero and at most 366 days".into();
                    return Err(AccessRefusal::Invalid { field: "lasts".into(), problem });
                }
                let expired = self.tokens.values().filter(|known| known.expires <= now);
                let mut changes: Changes = expired.map(|known| C::TokenGone { token: known.id.clone() }).collect();
                changes.push(C::Token(TokenRecord {
                    id: token.clone(),
                    hash: *hash,
                    user: user.clone(),
                    label: label.clone(),
                    scopes: scopes.clone(),
                    dangerous: *dangerous,
                    created: now,
                    expires: WallTime(now.0.saturating_add(*lasts_us)),
                }));
                changes
            }
            A::RevokeToken { token, of } => {
                let known = self.tokens.get(token).filter(|known| of.as_ref().is_none_or(|of| known.user == *of));
                known.ok_or_else(|| AccessRefusal::UnknownToken { token: token.clone() })?;
                vec![C::TokenGone { token: token.clone() }]
            }
            A::Confirm { confirmation, user, verified, source, what, target } => {
                self.verified(user, *verified)?;
                let mut changes = self.right_password(user, source);
                changes.extend(self.confirmations_gone(|known| known.expires <= now));
                let mut live: Vec<&Confirmation> =
                    self.confirmations.values().filter(|known| known.expires > now && known.user == *user).collect();
                live.sort_by_key(|known| (known.expires, known.hash));
                let too_many = (live.len() + 1).saturating_sub(CONFIRMATIONS_A_USER_MAX);
                changes.extend(live.iter().take(too_many).map(|known| C::ConfirmationGone { hash: known.hash }));
                changes.push(C::Confirmation(Confirmation {
                    hash: *confirmation,
                    user: user.clone(),
                    what: what.clone(),
                    target: target.clone(),
                    expires: WallTime(now.0.saturating_add(micros(CONFIRMED_FOR))),
                }));
                changes
            }
            A::SetSecret { name, sealed, key } => {
                let known = self.secrets.get(name);
                if known.is_none() {
                    full(self.secrets.len(), SECRETS_MAX, "secrets")?;
                }
                if sealed.len() > SECRET_BYTES_MAX {
                    let problem = format!("is {} bytes long, sealed; at most {SECRET_BYTES_MAX} fit", sealed.len());
                    return Err(AccessRefusal::Invalid { field: "secret".into(), problem });
                }
                let others = self.secrets.values().filter(|other| other.name != *name).map(|other| other.sealed.len());
                if others.sum::<usize>() + sealed.len() > SECRETS_BYTES_MAX {
                    return Err(AccessRefusal::Full {
                        what: "bytes of secrets".into(),
                        limit: SECRETS_BYTES_MAX as u64,
                    });
                }
                let version = known.map_or(1, |known| known.version + 1);
                let sealed = sealed.clone();
                vec![C::Secret(SecretRecord { name: name.clone(), sealed, key: *key, version, changed: now })]
            }
            A::ResealSecret { name, version, sealed, key } => {
                let known = self.secrets.get(name).filter(|known| known.version == *version && known.key < *key);
                let resealed =
                    |known: &SecretRecord| SecretRecord { sealed: sealed.clone(), key: *key, ..known.clone() };
                known.map(|known| C::Secret(resealed(known))).into_iter().collect()
            }
            A::RemoveSecret { name } => {
                if !self.secrets.contains_key(name) {
                    return Err(AccessRefusal::UnknownSecret { name: name.clone() });
                }
                vec![C::SecretGone { name: name.clone() }]
            }
        })
    }

    fn user(&self, name: &UserName) -> Result<&UserRecord, AccessRefusal> {
        self.users.get(name).ok_or_else(|| AccessRefusal::UnknownUser { user: name.clone() })
    }

    /// The user, if this is still the hash of its password and it may log in.
    fn verified(&self, name: &UserName, hash: Digest) -> Result<&UserRecord, AccessRefusal> {
        let user = self.users.get(name).filter(|user| !user.disabled && Digest::of(user.password.as_bytes()) == hash);
        user.ok_or(AccessRefusal::PasswordChanged)
    }

    fn known_role(&self, name: &RoleName) -> Result<RoleRecord, AccessRefusal> {
        self.role(name).ok_or_else(|| AccessRefusal::UnknownRole { role: name.clone() })
    }

    fn changeable_role(&self, name: &RoleName) -> Result<RoleRecord, AccessRefusal> {
        let role = self.known_role(name)?;
        if role.fixed { Err(AccessRefusal::FixedRole { role: name.clone() }) } else { Ok(role) }
    }

    fn not_the_last_admin(&self, user: &UserName) -> Result<(), AccessRefusal> {
        let is_admin = |user: &&UserRecord| !user.disabled && user.roles.contains(&admin());
        let mut admins = self.users.values().filter(is_admin);
        match (admins.next(), admins.next()) {
            (Some(last), None) if last.name == *user => Err(AccessRefusal::LastAdmin { user: user.clone() }),
            _ => Ok(()),
        }
    }

    fn sessions_gone(&self, gone: impl Fn(&SessionRecord) -> bool) -> Changes {
        let gone = self.sessions.values().filter(|session| gone(session));
        gone.map(|session| AccessChange::SessionGone { hash: session.hash }).collect()
    }

    fn confirmations_gone(&self, gone: impl Fn(&Confirmation) -> bool) -> Changes {
        let gone = self.confirmations.values().filter(|confirmation| gone(confirmation));
        gone.map(|confirmation| AccessChange::ConfirmationGone { hash: confirmation.hash }).collect()
    }

    /// Everything with which somebody could act as this user, but for tokens, ends.
    fn leaves(&self, user: &UserName) -> Changes {
        let mut changes = self.sessions_gone(|session| session.user == *user);
        changes.extend(self.confirmations_gone(|confirmation| confirmation.user == *user));
        changes
    }

    fn count_try(&self, now: WallTime, account: Option<&UserName>, source: &str) -> Result<Changes, AccessRefusal> {
        let wait = self.wait(account, source, now);
        if !wait.is_zero() {
            let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
            return Err(AccessRefusal::TooSoon { wait_ms });
        }
        let mut changes = Vec::new();
        let both = [Guesser::Account(account.cloned()), Guesser::Source(source.to_owned())];
        let new = both.iter().filter(|guesser| !self.tries.contains_key(guesser)).count();
        if self.tries.len() + new > REMEMBERED_MAX {
            changes.extend(self.make_room(now, &both));
        }
        for guesser in both {
            let tries = self.tries.get(&guesser).copied().unwrap_or_default().counted(now);
            changes.push(AccessChange::Tries { guesser, tries });
        }
        Ok(changes)
    }

    /// Forgets those who are quiet for long, or else some of those with the fewest tries: a
    /// flood of new names must not push out the one that is being guessed at.
    fn make_room(&self, now: WallTime, spared: &[Guesser]) -> Changes {
        let mut others: Vec<(&Guesser, &Tries)> =
            self.tries.iter().filter(|(guesser, _)| !spared.contains(guesser)).collect();
        others.sort_by_key(|(guesser, tries)| (!tries.forgotten(now), tries.count, tries.last, *guesser));
        let forgotten = others.iter().take_while(|(_, tries)| tries.forgotten(now)).count();
        let gone = others.into_iter().take(forgotten.max(ROOM));
        gone.map(|(guesser, _)| AccessChange::TriesGone { guesser: guesser.clone() }).collect()
    }

    /// The account begins anew; the source gets this one try back, so that an account of one's own
    /// does not wash away what was tried with others.
    fn right_password(&self, user: &UserName, source: &str) -> Changes {
        let mut changes = Vec::new();
        let account = Guesser::Account(Some(user.clone()));
        if self.tries.contains_key(&account) {
            changes.push(AccessChange::TriesGone { guesser: account });
        }
        let guesser = Guesser::Source(source.to_owned());
        if let Some(tries) = self.tries.get(&guesser).map(|tries| tries.given_back()) {
            changes.push(match tries.count {
                0 => AccessChange::TriesGone { guesser },
                _ => AccessChange::Tries { guesser, tries },
            });
        }
        changes
    }
}

fn admin() -> RoleName {
    RoleName::new(ADMIN).expect("a role name")
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

fn new_user(now: WallTime, name: &UserName, password: &str, roles: BTreeSet<RoleName>) -> UserRecord {
    let password = password.to_owned();
    UserRecord { name: name.clone(), password, roles, disabled: false, created: now, password_changed: now }
}
