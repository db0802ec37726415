//! Attributes of nodes: what resource agents of the driver `ocf` write down about their node, for themselves on
//! other nodes and for whoever decides which copy is the active one.
//!
//! Agents were written for Pacemaker, which keeps such values for them. Those of databases need them: how far each
//! copy has come, whose data is the newest, which copy may be promoted. To us all values are text but one, the score
//! of a copy (`master-SERVICE`): see [`NodeRecord::score`].
//!
//! # Invariants
//! - What does not last is forgotten when the node is down or has left: whoever comes back says it anew.
//! - A value is replaced as a whole, by an entry of the log; who reads it after that entry reads it.
//!
//! # Sources
//! Pacemaker Administration 2.1, "Node Attributes" and "Promotion scores"; `crm_attribute(8)`.

use crate::command::Refusal;
use crate::id::{NodeId, ServiceName};
use crate::state::{Changes, ClusterState, NodeRecord};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most attributes of one node.
pub const ATTRIBUTES_MAX: usize = 64;
/// Longest name and longest value, in bytes.
const NAME_BYTES_MAX: usize = 128;
const VALUE_BYTES_MAX: usize = 256;

/// What Pacemaker's `INFINITY` is worth; no score is higher, nor lower than the same with a minus.
const INFINITY: i64 = 1_000_000;

/// One value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribute {
    pub value: String,
    /// It stays when the node is down or leaves.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lasts: bool,
}

/// Attributes of a node, by name.
pub type Attributes = BTreeMap<String, Attribute>;

/// Name of the attribute with the score of a service's copy on the node.
#[must_use]
pub fn score_of(service: &str) -> String {
    format!("master-{service}")
}

impl NodeRecord {
    /// How well the copy here would do as the active one, as its agent says: less than 0 is not to be promoted, and
    /// more is promoted rather than less. `None`: nothing was said.
    #[must_use]
    pub fn score(&self, service: &ServiceName) -> Option<i64> {
        let said = self.attributes.get(&score_of(service.as_str()))?.value.as_str();
        let (sign, amount) = match said.strip_prefix('-') {
            Some(amount) => (-1, amount),
            None => (1, said.strip_prefix('+').unwrap_or(said)),
        };
        // What is no number is worth as much as Pacemaker makes of it: nothing.
        let amount = if amount.eq_ignore_ascii_case("INFINITY") { INFINITY } else { amount.parse().unwrap_or(0) };
        Some(sign * amount.clamp(0, INFINITY))
    }

    /// Without what is over when the node is away.
    pub(crate) fn forget(&mut self) {
        self.attributes.retain(|_, attribute| attribute.lasts);
    }
}

impl ClusterState {
    /// `None` takes an attribute away; taking away one that is not there changes nothing.
    pub(crate) fn set_attribute(
        &self,
        changes: &mut Changes,
        node: NodeId,
        name: &str,
        attribute: Option<&Attribute>,
    ) -> Result<(), Refusal> {
        check("name", name, NAME_BYTES_MAX)?;
        if name.is_empty() {
            return Err(Refusal::Invalid { field: "name".into(), problem: "is empty".into() });
        }
        attribute.map_or(Ok(()), |attribute| check("value", &attribute.value, VALUE_BYTES_MAX))?;
        let known = self.nodes.get(&node).ok_or(Refusal::UnknownNode { node })?;
        if known.attributes.get(name) == attribute {
            return Ok(());
        }
        let mut all = known.attributes.clone();
        match attribute {
            Some(attribute) => all.insert(name.to_owned(), attribute.clone()),
            None => all.remove(name),
        };
        if all.len() > ATTRIBUTES_MAX {
            let problem = format!("would be attribute {} of one node; at most {ATTRIBUTES_MAX} are allowed", all.len());
            return Err(Refusal::Invalid { field: "name".into(), problem });
        }
        self.edit(changes, node, |record| record.attributes.clone_from(&all))
    }
}

fn check(field: &str, text: &str, bytes_max: usize) -> Result<(), Refusal> {
    let problem = if text.len() > bytes_max {
        format!("has {} bytes; at most {bytes_max} are allowed", text.len())
    } else if text.chars().any(char::is_control) {
        "has a control character, like the end of a line".to_owned()
    } else {
        return Ok(());
    };
    Err(Refusal::Invalid { field: field.to_owned(), problem })
}

#[cfg(test)]
mod tests;
