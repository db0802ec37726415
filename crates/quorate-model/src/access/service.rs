//! What a replica may do with the cluster itself: what its spec grants, with a token of its own.
//!
//! The node that runs it makes 256 random bits up, hands them to the replica and to nobody else, and proposes
//! their hash. So every node can tell whose token it is shown, also one that hears no majority, and none can
//! make one from what is in the log.
//!
//! # Invariants
//! - A record goes with its replica, in the same log entry: whoever has applied that entry refuses the token.
//! - What is granted is what the spec of the replica's own version grants; it does not change in its life.

use super::AccessChange;
use super::name::Digest;
use super::policy::Permission;
use crate::command::Refusal;
use crate::entry::Database;
use crate::id::{ReplicaId, ServiceName};
use crate::spec::ServiceSpec;
use crate::state::{Change, ClusterState};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

#[cfg(test)]
mod tests;

/// Something of the cluster that a service's replicas may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// `main`, the users' tables, or `system`, the cluster's own, which nobody writes.
    pub database: GrantedDatabase,
    /// `read`, or `write`, which is both. Default `read`.
    #[serde(default)]
    pub right: Right,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GrantedDatabase {
    Main,
    System,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    #[default]
    Read,
    Write,
}

impl From<GrantedDatabase> for Database {
    fn from(granted: GrantedDatabase) -> Database {
        match granted {
            GrantedDatabase::Main => Database::Main,
            GrantedDatabase::System => Database::System,
        }
    }
}

/// A replica that was handed a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceTokenRecord {
    pub replica: ReplicaId,
    pub service: ServiceName,
    /// SHA-256 of the secret part.
    pub hash: Digest,
    pub grants: BTreeSet<Grant>,
}

impl ServiceTokenRecord {
    #[must_use]
    pub fn allows(&self, permission: Permission) -> bool {
        match permission {
            Permission::SqlRead => !self.grants.is_empty(),
            Permission::SqlWrite => self.grants.iter().any(|grant| grant.right == Right::Write),
            _ => false,
        }
    }

    #[must_use]
    pub fn reads(&self, database: Database) -> bool {
        self.grants.iter().any(|grant| Database::from(grant.database) == database)
    }
}

/// What is wrong with what a spec grants, after the field's name.
pub(crate) fn validate(spec: &ServiceSpec) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for grant in &spec.grants {
        if grant.database == GrantedDatabase::System && grant.right == Right::Write {
            return Err("has the right `write` for `system`, which only the cluster writes: grant `read`".into());
        }
        if !seen.insert(grant.database) {
            return Err("has two entries for one database: `write` is `read` too".into());
        }
    }
    Ok(())
}

impl ClusterState {
    /// Notes whose token has this hash. Nothing, if it is noted already.
    pub(crate) fn hand_out(&self, replica: ReplicaId, hash: Digest) -> Result<Option<Change>, Refusal> {
        let record = self.replicas.get(&replica).filter(|record| !record.spec.grants.is_empty());
        let record = record.ok_or(Refusal::NothingGranted { replica })?;
        let token =
            ServiceTokenRecord { replica, service: record.service.clone(), hash, grants: record.spec.grants.clone() };
        let known = self.access.services.get(&replica) == Some(&token);
        Ok((!known).then_some(Change::Access(AccessChange::ServiceToken(token))))
    }

    /// Ends the tokens of the replicas that `changes` end.
    pub(crate) fn take_tokens_back(&self, changes: &mut Vec<Change>) {
        let gone = |change: &Change| match change {
            Change::ReplicaGone { replica } if self.access.services.contains_key(replica) => Some(*replica),
            _ => None,
        };
        let gone: Vec<ReplicaId> = changes.iter().filter_map(gone).collect();
        changes.extend(gone.into_iter().map(|replica| Change::Access(AccessChange::ServiceTokenGone { replica })));
    }
}
