//! Everything a shim needs to run its replica: `spec.json`.
//!
//! The agent fills in placeholders, environment and ports, so the shim makes no choice of its own
//! but when to restart.

use crate::protocol::VERSION;
use quorate_model::assignment::AssignedReplica;
use quorate_model::id::NodeId;
use quorate_model::spec::{Placeholders, TemplateError, expand};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the file in the replica's directory.
pub(crate) const FILE: &str = "spec.json";

/// The mark by which processes of a replica are recognised; see [`crate::sweep`].
pub(crate) const REPLICA_VARIABLE: &str = "QUORATE_REPLICA";

/// The same on every node and however the agent was started, so that a workload behaves alike everywhere.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) v: u32,
    pub(crate) assigned: AssignedReplica,
    /// Program and arguments, placeholders filled.
    pub(crate) command: Vec<String>,
    /// The whole environment.
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) ports: BTreeMap<String, u16>,
    /// How often it was restarted under earlier shims.
    pub(crate) restarts: u32,
    /// How the last shim's life ended, if it was not asked to end.
    #[serde(default)]
    pub(crate) detail: String,
}

impl Launch {
    /// # Errors
    /// A placeholder of the spec that cannot be filled.
    pub(crate) fn new(
        assigned: &AssignedReplica,
        node: NodeId,
        node_name: &str,
        replica_dir: &Path,
        ports: BTreeMap<String, u16>,
    ) -> Result<Launch, TemplateError> {
        let spec = &assigned.spec;
        let main_port = spec.main_port();
        let values = Placeholders {
            ports: &ports,
            main_port,
            replica: assigned.replica,
            node: node_name,
            ordinal: assigned.ordinal,
        };
        let command = spec.command.iter().map(|word| expand(word, &values)).collect::<Result<_, _>>()?;

        let mut env: BTreeMap<String, String> = [
            ("PATH", SEARCH_PATH.to_owned()),
            ("HOME", replica_dir.join("work").to_string_lossy().into_owned()),
            ("TZ", "UTC".to_owned()),
            ("LANG", "C.UTF-8".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        for (name, template) in &spec.env {
            env.insert(name.clone(), expand(template, &values)?);
        }
        // Last, so that a spec cannot take the mark off its processes.
        env.insert("QUORATE_SERVICE".to_owned(), spec.name.to_string());
        env.insert(REPLICA_VARIABLE.to_owned(), assigned.replica.to_string());
        env.insert("QUORATE_ORDINAL".to_owned(), assigned.ordinal.to_string());
        env.insert("QUORATE_NODE".to_owned(), node_name.to_owned());
        env.insert("QUORATE_NODE_ID".to_owned(), node.to_string());
        if let Some(port) = main_port.and_then(|name| ports.get(name)) {
            env.insert("QUORATE_PORT".to_owned(), port.to_string());
        }
        for (name, port) in &ports {
            let name = name.to_uppercase().replace('-', "_");
            env.insert(format!("QUORATE_PORT_{name}"), port.to_string());
        }
        let assigned = assigned.clone();
        Ok(Launch { v: VERSION, assigned, command, env, ports, restarts: 0, detail: String::new() })
    }
}
