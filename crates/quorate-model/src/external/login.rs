//! What came of logging in to an external, node by node and host by host.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a host did not let a node in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// Its name has no address.
    Unresolved,
    /// Somebody says that nothing listens there.
    Refused,
    /// No answer in time.
    Unreachable,
    Tls,
    /// It knows the user or the password otherwise.
    Login,
    /// The database, virtual host or bucket is not there, or not for this user.
    Database,
    /// It is there, and does not work: it starts, or its cluster is not whole.
    Unready,
    /// What answers is something else.
    Protocol,
}

impl Why {
    /// What to do about it.
    #[must_use]
    pub fn fix(self) -> &'static str {
        match self {
            Why::Unresolved => "correct the host's name, or make it known to the node's DNS",
            Why::Refused => "start the server there, or correct the port",
            Why::Unreachable => "let the node reach that host and port: see routes and firewalls between them",
            Why::Tls => {
                "set `tls` as the server has it, or give the authority that signed its certificate with --ca-file"
            }
            Why::Login => "correct the user or the password",
            Why::Database => "create it, let this user use it, or correct its name",
            Why::Unready => "wait until the server is ready, or mend it",
            Why::Protocol => "correct the kind, host or port",
        }
    }

    /// Whether other hosts of the same system may still serve: this one is away, and said nothing about the login.
    #[must_use]
    pub fn is_absence(self) -> bool {
        matches!(self, Why::Unresolved | Why::Refused | Why::Unreachable)
    }
}

/// Why a host did not let a node in, with its own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginProblem {
    pub why: Why,
    /// For people. Never holds a password.
    pub text: String,
}

impl LoginProblem {
    #[must_use]
    pub fn new(why: Why, text: impl Into<String>) -> LoginProblem {
        LoginProblem { why, text: text.into() }
    }
}

impl fmt::Display for LoginProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One host's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostLogin {
    /// `HOST:PORT`.
    pub host: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<LoginProblem>,
}

/// What one node found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLogin {
    pub node: String,
    /// Why the node could not try at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostLogin>,
}

impl NodeLogin {
    /// Whether the node can use the external; see [`usable`].
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.silent.is_none() && usable(&self.hosts).is_ok()
    }
}

/// Whether a node that found this can use the external: one host let it in, and none had something against the
/// login itself. That another is away is what several hosts are for.
///
/// # Errors
/// What keeps the node from using it, in words.
pub fn usable(hosts: &[HostLogin]) -> Result<(), String> {
    let problems = || hosts.iter().filter_map(|host| Some((host, host.problem.as_ref()?)));
    let against = problems().find(|(_, problem)| !problem.why.is_absence());
    let all_away = || problems().next().filter(|_| hosts.iter().all(|host| host.problem.is_some()));
    match against.or_else(all_away) {
        Some((host, problem)) => Err(format!("{}: {problem}", host.host)),
        None => Ok(()),
    }
}
