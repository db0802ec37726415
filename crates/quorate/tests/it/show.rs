//! What tests ask a cluster about its services, by the same commands that scripts use.

use crate::cluster::{PATIENCE, TestCluster, wait_for};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;

impl TestCluster {
    /// The output of a command in JSON.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["-o", "json"]].concat())).unwrap()
    }

    pub(crate) fn service(&self, name: &str) -> Value {
        self.json(&["service", "show", name])
    }

    /// Writes a spec file beside the nodes.
    pub(crate) fn spec_file(&self, name: &str, text: &str) -> String {
        let path: PathBuf = self.dir.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Applies a spec and waits until its copies are healthy.
    pub(crate) fn apply(&self, text: &str) -> Value {
        let file = self.spec_file("test.toml", text);
        self.json(&["service", "apply", "-f", &file, "--yes"])
    }

    /// Waits until a service is as `wanted` says.
    pub(crate) fn wait_service(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, PATIENCE, || {
            let ran = self.run(&["service", "show", name, "-o", "json"]);
            serde_json::from_str(&ran.stdout).ok().filter(|view| wanted(view))
        })
    }

    /// HOST:PORT of the gateway.
    pub(crate) fn gateway_address(&self) -> &str {
        self.gateway.strip_prefix("http://").unwrap()
    }
}

pub(crate) fn replicas(view: &Value) -> &[Value] {
    view["replicas"].as_array().unwrap()
}

pub(crate) fn healthy(view: &Value) -> u64 {
    view["healthy"].as_u64().unwrap()
}

/// Exactly the wanted number of copies is there, and all are healthy.
pub(crate) fn is_whole(view: &Value) -> bool {
    replicas(view).len() as u64 == view["want"] && view["healthy"] == view["want"]
}

pub(crate) fn pids(view: &Value) -> BTreeSet<u32> {
    replicas(view).iter().filter_map(|replica| u32::try_from(replica["pid"].as_u64()?).ok()).collect()
}

pub(crate) fn nodes(view: &Value) -> BTreeSet<String> {
    replicas(view).iter().map(|replica| replica["node"].as_str().unwrap().to_owned()).collect()
}

/// Whether the process has not ended.
pub(crate) fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// The demo program under another name.
pub(crate) fn demo(name: &str, replicas: u32, more: &str) -> String {
    let program = env!("CARGO_BIN_EXE_quorate");
    format!(
        r#"[[service]]
name = "{name}"
replicas = {replicas}
command = ["{program}", "demo", "--port", "{{port}}", "--replica", "{{replica}}", "--node", "{{node}}", "--ordinal", "{{ordinal}}"]
ports = {{ http = "auto" }}
health = {{ http = "/healthz", every = "500ms" }}
{more}
"#
    )
}
