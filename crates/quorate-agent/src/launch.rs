//! Everything a shim needs to run its replica: `spec.json`.
//!
//! The agent fills in placeholders, environment and ports, so the shim makes no choice of its own
//! but when to restart.

use crate::cgroup::Group;
use crate::protocol::VERSION;
use crate::shim::role;
use quorate_agent_core::lease::BootTime;
use quorate_model::access::name::SecretName;
use quorate_model::assignment::AssignedReplica;
use quorate_model::external::{External, Injected};
use quorate_model::id::NodeId;
use quorate_model::secret::Secret;
use quorate_model::spec::{Placeholders, TemplateError, expand, tells_secrets};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the file in the replica's directory.
pub(crate) const FILE: &str = "spec.json";

/// The mark by which processes of a replica are recognised where there are no groups; see [`crate::sweep`].
pub(crate) const REPLICA_VARIABLE: &str = "QUORATE_REPLICA";

/// The same on every node and however the agent was started, so that a workload behaves alike everywhere.
pub(crate) const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) v: u32,
    pub(crate) assigned: AssignedReplica,
    /// Program and arguments, placeholders filled.
    pub(crate) command: Vec<String>,
    /// The programs that make a running copy the active one and a standby again, placeholders filled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) promote: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) demote: Vec<String>,
    /// The environment, without what holds secrets.
    pub(crate) env: BTreeMap<String, String>,
    /// What holds secrets. Not in the file: the shim reads it from its standard input.
    #[serde(skip, default = "no_variables")]
    pub(crate) secret_env: Secret<BTreeMap<String, String>>,
    /// Whether there is something to be read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) has_secret_env: bool,
    pub(crate) ports: BTreeMap<String, u16>,
    /// Parameters of an OCF agent, placeholders filled.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) ocf_params: BTreeMap<String, String>,
    /// Options of a container's `run`, placeholders filled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) container_args: Vec<String>,
    /// How often it was restarted under earlier shims.
    pub(crate) restarts: u32,
    /// How the last shim's life ended, if it was not asked to end.
    #[serde(default)]
    pub(crate) detail: String,
    /// When the kernel is to kill it unless its lease is held longer; of a replica with a lease. Written right
    /// before the shim is started, so it is of this run of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) deadline: Option<BootTime>,
    /// What its processes are in. Absent: nothing can be made here, or an agent wrote this that knew of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<Group>,
    /// What of its spec is not enforced here, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) note: String,
}

fn no_secrets() -> Secret<BTreeMap<SecretName, String>> {
    Secret::new(BTreeMap::new())
}

fn no_variables() -> Secret<BTreeMap<String, String>> {
    Secret::new(BTreeMap::new())
}

/// What the node has for a replica.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Given<'a> {
    /// Where its artifacts lie, by name.
    pub(crate) artifacts: &'a [(String, String)],
    pub(crate) secrets: &'a Secret<BTreeMap<SecretName, String>>,
}

/// What placeholders and templates of a replica stand for.
pub(crate) fn values<'a>(
    assigned: &'a AssignedReplica,
    node: &'a str,
    dir: &'a str,
    ports: &'a BTreeMap<String, u16>,
    given: Given<'a>,
    externals: &'a [Injected<'a>],
) -> Placeholders<'a> {
    Placeholders {
        ports,
        main_port: assigned.spec.main_port(),
        replica: assigned.replica,
        node,
        ordinal: assigned.ordinal,
        dir,
        artifacts: given.artifacts,
        secrets: given.secrets.expose(),
        externals,
    }
}

/// The replica's externals with their passwords.
pub(crate) fn injected<'a>(assigned: &'a AssignedReplica, given: Given<'a>) -> Vec<Injected<'a>> {
    let password = |external: &External| given.secrets.expose().get(external.password.as_ref()?).map(String::as_str);
    assigned.externals.iter().map(|external| Injected { external, password: password(external) }).collect()
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
        given: Given<'_>,
    ) -> Result<Launch, TemplateError> {
        let spec = &assigned.spec;
        let work = replica_dir.join("work").to_string_lossy().into_owned();
        let externals = injected(assigned, given);
        let values = values(assigned, node_name, &work, &ports, given, &externals);
        // All but a part of the environment is in the file or on a command line, so no secret is to be had there.
        let open: Vec<Injected<'_>> = externals.iter().map(|it| Injected { password: None, ..*it }).collect();
        let shown = Placeholders { secrets: &BTreeMap::new(), externals: &open, ..values };
        let fill_each = |words: &[String]| words.iter().map(|word| expand(word, &shown)).collect::<Result<Vec<_>, _>>();
        let command = fill_each(&spec.command)?;
        let (promote, demote) = match &spec.active {
            Some(active) => (fill_each(&active.promote)?, fill_each(&active.demote)?),
            None => (Vec::new(), Vec::new()),
        };
        let mut container_args = Vec::new();
        if let Some(container) = &spec.container {
            container_args
                .extend(fill_each(&container.volumes)?.into_iter().map(|volume| format!("--volume={volume}")));
            container_args.extend(fill_each(&container.args)?);
        }
        let mut ocf_params = BTreeMap::new();
        for (name, template) in spec.ocf.iter().flat_map(|ocf| &ocf.params) {
            ocf_params.insert(name.clone(), expand(template, &shown)?);
        }

        let mut env: BTreeMap<String, String> = [
            ("PATH", SEARCH_PATH.to_owned()),
            ("HOME", work.clone()),
            ("TZ", "UTC".to_owned()),
            ("LANG", "C.UTF-8".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let mut secret_env = BTreeMap::new();
        // First, so that a spec can say otherwise.
        for external in &externals {
            for (field, value) in external.fields() {
                let into = if Injected::is_secret(&field) { &mut secret_env } else { &mut env };
                into.insert(external.variable(&field), value);
            }
        }
        for (name, template) in &spec.env {
            let value = expand(template, &values)?;
            if tells_secrets(template) {
                env.remove(name);
                secret_env.insert(name.clone(), value);
            } else {
                secret_env.remove(name);
                env.insert(name.clone(), value);
            }
        }
        // Last, so that a spec cannot take the mark off its processes.
        env.insert("QUORATE_SERVICE".to_owned(), spec.name.to_string());
        env.insert(REPLICA_VARIABLE.to_owned(), assigned.replica.to_string());
        env.insert("QUORATE_ORDINAL".to_owned(), assigned.ordinal.to_string());
        env.insert("QUORATE_NODE".to_owned(), node_name.to_owned());
        env.insert("QUORATE_NODE_ID".to_owned(), node.to_string());
        if spec.changes_parts() {
            let file = replica_dir.join(role::FILE).to_string_lossy().into_owned();
            env.insert("QUORATE_ROLE_FILE".to_owned(), file);
        }
        if let Some(lease) = &assigned.lease {
            env.insert("QUORATE_EPOCH".to_owned(), lease.epoch.to_string());
        }
        if let Some(port) = spec.main_port().and_then(|name| ports.get(name)) {
            env.insert("QUORATE_PORT".to_owned(), port.to_string());
        }
        for (name, port) in &ports {
            let name = name.to_uppercase().replace('-', "_");
            env.insert(format!("QUORATE_PORT_{name}"), port.to_string());
        }
        // The mark and what else is Quorate's own stay what they are.
        secret_env.retain(|name, _| !env.contains_key(name));
        Ok(Launch {
            v: VERSION,
            assigned: assigned.clone(),
            command,
            promote,
            demote,
            env,
            has_secret_env: !secret_env.is_empty(),
            secret_env: Secret::new(secret_env),
            ports,
            ocf_params,
            container_args,
            restarts: 0,
            detail: String::new(),
            deadline: None,
            group: None,
            note: String::new(),
        })
    }

    /// Fills placeholders as they are filled in the command: without secrets.
    pub(crate) fn fill(
        &self,
        words: &[String],
        node_name: &str,
        replica_dir: &Path,
        artifacts: &[(String, String)],
    ) -> Result<Vec<String>, TemplateError> {
        let given = Given { artifacts, secrets: &no_secrets() };
        words.iter().map(|word| self.fill_secret(word, node_name, replica_dir, given)).collect()
    }

    /// Fills placeholders as they are filled in the environment.
    pub(crate) fn fill_secret(
        &self,
        template: &str,
        node_name: &str,
        replica_dir: &Path,
        given: Given<'_>,
    ) -> Result<String, TemplateError> {
        let work = replica_dir.join("work").to_string_lossy().into_owned();
        let externals = injected(&self.assigned, given);
        expand(template, &values(&self.assigned, node_name, &work, &self.ports, given, &externals))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_model::assignment::Phase;
    use quorate_model::id::ReplicaId;

    #[test]
    fn e6_fields_of_externals_are_filled_in_and_what_has_the_password_is_in_no_file() {
        let spec = serde_json::json!({
            "name": "shop",
            "command": ["shop", "--db={external.orders-db.host}"],
            "externals": ["orders-db"],
            "env": { "AT": "{external.orders_db.hosts}", "DB": "jdbc:{external.orders-db.url}" },
        });
        let external = serde_json::json!({
            "name": "orders-db", "kind": "postgres", "hosts": ["h1"], "user": "joe", "password": "pg", "database": "orders",
        });
        let assigned = AssignedReplica {
            replica: ReplicaId::from_u128(1),
            ordinal: 0,
            spec: serde_json::from_value(spec).unwrap(),
            phase: Phase::Run,
            lease: None,
            externals: vec![serde_json::from_value(external).unwrap()],
        };
        let secrets = Secret::new(BTreeMap::from([(SecretName::new("pg").unwrap(), "p@w".to_owned())]));
        let given = Given { artifacts: &[], secrets: &secrets };
        let (node, dir) = (NodeId::from_u128(2), Path::new("/r"));
        let launch = Launch::new(&assigned, node, "n1", dir, BTreeMap::new(), given).unwrap();
        assert_eq!(launch.command, ["shop", "--db=h1"]);
        assert_eq!(launch.env["AT"], "h1:5432");
        assert_eq!(launch.secret_env.expose()["DB"], "jdbc:postgres://joe:p%40w@h1:5432/orders?sslmode=disable");
        let file = serde_json::to_string(&launch).unwrap();
        assert!(!file.contains("p@w") && !file.contains("p%40w"), "{file}");
    }
}
