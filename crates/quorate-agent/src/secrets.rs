//! Secrets that this node was given, for replicas that name them.
//!
//! They reach a replica through a pipe to its shim and stay in that process: neither `spec.json` nor a log
//! holds one.

use quorate_model::access::name::SecretName;
use quorate_model::assignment::AssignedReplica;
use quorate_model::need::SecretStamp;
use quorate_model::secret::Secret;
use std::collections::BTreeMap;

/// What a node has, by name. Shows names alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Secrets(pub BTreeMap<SecretName, HeldSecret>);

/// One secret's value and which of its values it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldSecret {
    pub stamp: SecretStamp,
    pub value: Secret<Vec<u8>>,
}

/// Why a replica does not get its secrets.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SecretError {
    /// It comes as soon as a manager is heard.
    #[error("its secret {0} is not on this node yet")]
    Absent(SecretName),
    #[error("its secret {0} is no text, or has a NUL byte: it cannot be in the environment")]
    NoText(SecretName),
}

impl Secrets {
    /// Those that a replica's service names, and those of its externals, as text.
    pub(crate) fn of(&self, assigned: &AssignedReplica) -> Result<BTreeMap<SecretName, String>, SecretError> {
        let one = |name: &SecretName| {
            let held = self.0.get(name).ok_or_else(|| SecretError::Absent(name.clone()))?;
            let text = std::str::from_utf8(held.value.expose()).ok().filter(|text| !text.contains('\0'));
            Ok((name.clone(), text.ok_or_else(|| SecretError::NoText(name.clone()))?.to_owned()))
        };
        let externals = assigned.externals.iter().filter_map(|external| external.password.as_ref());
        assigned.spec.secrets.iter().chain(externals).map(one).collect()
    }
}
