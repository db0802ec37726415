//! How the rig's cluster is made: as its users make theirs, with `quorate init`, a token of
//! `add-node` for each further server, and `quorate join` on it.
//!
//! Afterwards a few lines of `node.toml` are changed that no command sets: little log is kept, so that
//! snapshots are common, a voter that is away is replaced soon, and nothing outlives the run.

use super::arena;
use super::node::Node;
use super::seat::Seat;
use crate::cli::{place, unix};
use crate::config::{self, NodeConfig};
use quorate_api::TokenView;
use quorate_model::access::policy::Permission;
use quorate_model::secret::Secret;
use quorate_model::state::Role;
use quorate_model::time::Span;
use serde_json::{Value, json};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// A voter that is away for this long loses its vote to a standby: within the run's longer faults.
const REPLACE_VOTER_AFTER: Span = Span::from_secs(6);
/// Longest wait for an answer of the first node, which leads alone.
const ANSWER: Duration = Duration::from_secs(10);

/// What all nodes of a run have in common.
#[derive(Debug, Clone)]
pub(super) struct Ground {
    pub executable: PathBuf,
    /// Where servers' logs are: not on their own disks, of whose end they tell.
    pub dir: PathBuf,
    pub log_retain: u64,
}

/// Why a server is not a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub(super) struct NotMade {
    /// Stable, of the command that failed.
    pub code: String,
    pub message: String,
}

impl From<io::Error> for NotMade {
    fn from(error: io::Error) -> NotMade {
        NotMade { code: "io".into(), message: error.to_string() }
    }
}

impl Ground {
    /// The first node of a new cluster, not yet started.
    pub(super) fn init(&self, seat: &Arc<Seat>, name: &str) -> Result<Node, NotMade> {
        let data_dir = seat.emptied()?;
        self.run(seat, &data_dir, &["init", "--name", "torture", "--node-name", name])?;
        self.node(seat, name, data_dir)
    }

    /// Lets a server join that has a token. An attempt that failed may be repeated in the same directory.
    pub(super) fn join(
        &self,
        seat: &Arc<Seat>,
        name: &str,
        token: &str,
        data_dir: &Path,
        role: Role,
    ) -> Result<Node, NotMade> {
        let role = if role == Role::Manager { "manager" } else { "worker" };
        self.run(seat, data_dir, &["join", token, "--name", name, "--role", role])?;
        self.node(seat, name, data_dir.to_owned())
    }

    fn run(&self, seat: &Seat, data_dir: &Path, args: &[&str]) -> Result<(), NotMade> {
        let mut command = Command::new(&self.executable);
        command
            .args(["-o", "json"])
            .args(args)
            // What is set for this machine's own server is not for these; an empty file is valid.
            .args(["--no-start", "--config", "/dev/null", "--data-dir"])
            .arg(data_dir)
            .args(["--listen", &seat.api.to_string(), "--link", &seat.link.to_string()])
            .env_remove("QUORATE_SERVER")
            .stdin(Stdio::null());
        arena::not_inside(&mut command);
        let output = seat.inside(|| command.output())?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        match serde_json::from_str::<Value>(&said) {
            Ok(said) => Err(NotMade { code: text(&said["error"]["code"]), message: text(&said["error"]["message"]) }),
            Err(_) => Err(NotMade { code: "strange-answer".into(), message: said.trim().to_owned() }),
        }
    }

    /// The node in a directory that a command has just prepared.
    fn node(&self, seat: &Arc<Seat>, name: &str, data_dir: PathBuf) -> Result<Node, NotMade> {
        let text = std::fs::read_to_string(data_dir.join(config::FILE))?;
        let mut config: NodeConfig = toml::from_str(&text).map_err(io::Error::other)?;
        config.log.retain = self.log_retain;
        config.timers.replace_voter_after = Some(REPLACE_VOTER_AFTER);
        config.node.end_with_pid = Some(std::process::id());
        let written = place::write_config(&data_dir, &config);
        written.map_err(|failure| NotMade { code: failure.code.to_string(), message: failure.to_string() })?;
        Ok(Node::new(
            seat.clone(),
            name,
            config.node.id,
            config.node.roles.contains(&Role::Manager),
            data_dir,
            &self.dir,
        ))
    }
}

/// Makes the first user, as `quorate init` does where it starts the node, and a token of theirs that
/// may do everything.
pub(super) fn admins_token(first: &Node) -> Result<Secret<String>, String> {
    let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(ANSWER)).build();
    let agent = unix::agent(config, &first.data_dir.join(config::API_SOCKET).to_string_lossy());
    let ask = |path: &str, body: Value| -> Result<Value, String> {
        let sent = agent.post(format!("http://localhost{path}")).send_json(body);
        let mut response = sent.map_err(|error| format!("{path}: {error}"))?;
        let answer: Value = response.body_mut().read_json().map_err(|error| format!("{path}: {error}"))?;
        if response.status().is_success() { Ok(answer) } else { Err(format!("{path}: {answer}")) }
    };
    ask("/v1/first-admin", json!({ "name": "admin" }))?;
    let wish = json!({ "label": "torture", "scopes": Permission::ALL, "dangerous": true, "lasts": "30d" });
    let made: TokenView =
        serde_json::from_value(ask("/v1/users/admin/tokens", wish)?).map_err(|error| error.to_string())?;
    made.token.map(Secret::new).ok_or_else(|| "the cluster made a token and did not show it".into())
}
