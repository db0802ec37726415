//! What resource agents of the driver `ocf` ask of Pacemaker, answered by the cluster.
//!
//! The agents of databases are written for Pacemaker: they keep values of their nodes in it, ask it where the active
//! copy is, and tell it how well their own copy would do as that. Called by the names of its commands, this program
//! does what agents use of them, with the API of the node; a keeper puts these names in the agents' way
//! (`quorate_agent`, `keeper/pacemaker.rs`). They are for agents: people have `quorate`.
//!
//! What is not known here is refused, with exit status 64, rather than taken for done.
//!
//! # Sources
//! `crm_attribute(8)`, `attrd_updater(8)`, `crm_mon(8)`, `crm_node(8)`, `crm_resource(8)` of Pacemaker 2.1; what the
//! agents of ClusterLabs' resource-agents 4.12 call.

use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::target::Target;
use options::{Options, Unknown};
use quorate_api::placement::AttributeChange;
use quorate_api::view::{NodeState, NodeView, Overview, ServiceView};
use quorate_model::attribute::score_of;
use std::env;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use ureq::http::Method;

mod options;

/// Agents call again what did not work, for as long as their own time allows.
const PATIENCE: Duration = Duration::from_secs(10);

/// The version that agents take us for; they know of newer ones that do the same.
const VERSION: &str = "2.1.5";

/// Exit statuses of Pacemaker's commands.
const FAILED: u8 = 1;
const USAGE: u8 = 64;
const NO_SUCH: u8 = 105;

/// A command of Pacemaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    Updater,
    Attribute,
    Master,
    Mon,
    Node,
    Resource,
    Daemon,
}

/// Why there is nothing to say.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Usage(#[from] Unknown),
    #[error("{0}")]
    Misses(&'static str),
    #[error("no value of {0}: attribute does not exist")]
    NoSuch(String),
    #[error("no node of this cluster is named {0}")]
    NoNode(String),
    #[error("{}", .0.to_json())]
    Cluster(Failure),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Trouble {
        Trouble::Cluster(failure)
    }
}

impl Trouble {
    fn status(&self) -> u8 {
        match self {
            Trouble::Usage(_) | Trouble::Misses(_) => USAGE,
            Trouble::NoSuch(_) | Trouble::NoNode(_) => NO_SUCH,
            Trouble::Cluster(_) => FAILED,
        }
    }
}

impl Tool {
    /// The one by whose name this process was called.
    pub(crate) fn called(name: Option<&OsStr>) -> Option<Tool> {
        Some(match Path::new(name?).file_name()?.to_str()? {
            "attrd_updater" => Tool::Updater,
            "crm_attribute" => Tool::Attribute,
            "crm_master" => Tool::Master,
            "crm_mon" => Tool::Mon,
            "crm_node" => Tool::Node,
            "crm_resource" => Tool::Resource,
            "pacemakerd" => Tool::Daemon,
            _ => return None,
        })
    }

    pub(crate) fn run(self) -> ExitCode {
        let words: Vec<String> = env::args().skip(1).collect();
        // Whoever does not listen any more has what it wants.
        match self.answer(&words, &Cluster::of_the_environment()) {
            Ok(text) => {
                let _ = io::stdout().write_all(text.as_bytes());
                ExitCode::SUCCESS
            }
            Err(trouble) => {
                let _ = writeln!(io::stderr(), "{trouble}");
                ExitCode::from(trouble.status())
            }
        }
    }

    fn answer(self, words: &[String], cluster: &Cluster) -> Result<String, Trouble> {
        let given = Options::read(self, words)?;
        match self {
            Tool::Daemon => Ok(format!("Pacemaker {VERSION}\n")),
            Tool::Attribute | Tool::Master | Tool::Updater => self.attribute(&given, cluster),
            Tool::Node => node(&given, cluster),
            Tool::Mon if given.has('X') => Ok(overview(&cluster.overview()?)),
            Tool::Mon => Err(Trouble::Misses("it is shown as XML only: --output-as=xml")),
            Tool::Resource if given.has('B') => {
                let resource = given.value('r').ok_or(Trouble::Misses("which resource? -r NAME"))?;
                // With a number in Pacemaker's names of copies, the service is what stands before it.
                let service = resource.split(':').next().unwrap_or_default();
                cluster.set(given.value('N'), &score_of(service), Some("-INFINITY"), false)?;
                Ok(String::new())
            }
            Tool::Resource => Err(Trouble::Misses("only a ban is known here: --ban -r NAME -N NODE")),
        }
    }

    fn attribute(self, given: &Options, cluster: &Cluster) -> Result<String, Trouble> {
        let name = match given.value('n') {
            Some(name) => name.to_owned(),
            None if self == Tool::Master || given.has('p') => {
                let asked = given.value('p').or(cluster.resource.as_deref());
                let resource = asked.ok_or(Trouble::Misses("a score of which resource? OCF_RESOURCE_INSTANCE"))?;
                score_of(resource.split(':').next().unwrap_or_default())
            }
            None => return Err(Trouble::Misses("which attribute? -n NAME")),
        };
        let node = given.value('N');
        if let Some(value) = given.value('v') {
            let lasts = given.value('l').is_some_and(|lifetime| lifetime == "forever");
            cluster.set(node, &name, Some(value), lasts)?;
            return Ok(String::new());
        }
        if given.has('D') {
            cluster.set(node, &name, None, false)?;
            return Ok(String::new());
        }
        let node = cluster.node(node)?;
        let value = node.attributes.get(&name).ok_or_else(|| Trouble::NoSuch(name.clone()))?;
        Ok(match self {
            Tool::Updater => format!("name=\"{name}\" host=\"{}\" value=\"{value}\"\n", node.name),
            _ if given.has('q') => format!("{value}\n"),
            _ => format!("scope=status  name={name} value={value}\n"),
        })
    }
}

fn node(given: &Options, cluster: &Cluster) -> Result<String, Trouble> {
    if given.has('n') {
        return Ok(format!("{}\n", cluster.me));
    }
    let overview = cluster.overview()?;
    let known = || overview.nodes.iter().filter(|node| node.state != NodeState::Removed);
    if given.has('q') {
        // An answer of the API is one of a node that knows of a majority, or says so.
        return Ok(format!("{}\n", u8::from(overview.cluster.leader.is_some())));
    }
    if given.has('p') {
        let names: Vec<&str> = known().filter(|node| is_online(node)).map(|node| node.name.as_str()).collect();
        return Ok(format!("{}\n", names.join(" ")));
    }
    let mut text = String::new();
    for (number, node) in known().enumerate() {
        let standing = if is_online(node) { "member" } else { "lost" };
        let _ = writeln!(text, "{} {} {standing}", number + 1, node.name);
    }
    Ok(text)
}

fn is_online(node: &NodeView) -> bool {
    node.state == NodeState::Joined
}

/// The cluster as `crm_mon` shows it: nodes, and what runs of the driver `ocf`.
fn overview(overview: &Overview) -> String {
    let mut text = format!("<crm_mon version=\"{VERSION}\">\n");
    let _ = writeln!(
        text,
        "  <summary>\n    <current_dc present=\"true\" with_quorum=\"{}\"/>\n  </summary>\n  <nodes>",
        overview.cluster.leader.is_some()
    );
    for node in overview.nodes.iter().filter(|node| node.state != NodeState::Removed) {
        let _ = writeln!(
            text,
            "    <node name=\"{}\" id=\"{}\" online=\"{}\" standby=\"false\" type=\"member\"/>",
            escaped(&node.name),
            node.id,
            is_online(node)
        );
    }
    text.push_str("  </nodes>\n  <resources>\n");
    for service in &overview.services {
        copies(&mut text, service);
    }
    text.push_str("  </resources>\n</crm_mon>\n");
    text
}

/// Agents look for `id`, something, and `role` in one line.
fn copies(text: &mut String, service: &ServiceView) {
    let runs = |state: &str| matches!(state, "healthy" | "unhealthy" | "draining" | "stopping");
    for replica in service.replicas.iter().filter(|replica| runs(&replica.state)) {
        let role = match replica.role.as_deref() {
            Some("active" | "demoting") => "Promoted",
            Some(_) => "Unpromoted",
            None => "Started",
        };
        let _ = writeln!(
            text,
            "    <resource id=\"{}\" managed=\"true\" role=\"{role}\" active=\"true\" failed=\"{}\" nodes_running_on=\"1\">\n      \
             <node name=\"{}\" id=\"{}\" cached=\"true\"/>\n    </resource>",
            escaped(service.name.as_str()),
            replica.state == "unhealthy",
            escaped(&replica.node),
            replica.node_id
        );
    }
}

/// For XML, and for the `printf` that agents give it to.
fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut text, character| {
        match character {
            '<' | '>' | '&' | '"' | '%' | '\\' => {
                let _ = write!(text, "&#{};", u32::from(character));
            }
            _ => text.push(character),
        }
        text
    })
}

/// Whom to ask, and for whom.
struct Cluster {
    socket: Option<String>,
    /// The node's name.
    me: String,
    /// The resource of the agent that asks.
    resource: Option<String>,
}

impl Cluster {
    fn of_the_environment() -> Cluster {
        let of = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        Cluster {
            socket: of("QUORATE_SOCKET"),
            me: of("QUORATE_NODE").unwrap_or_default(),
            resource: of("OCF_RESOURCE_INSTANCE"),
        }
    }

    fn client(&self) -> Result<Client, Trouble> {
        let socket = self.socket.as_ref().ok_or(Trouble::Misses(
            "this is Quorate in the place of Pacemaker, for resource agents that it calls; people have `quorate`",
        ))?;
        let target = Target { servers: vec![format!("unix:{socket}")], dev: None, tls: None };
        Ok(Client::new(&target, PATIENCE))
    }

    fn overview(&self) -> Result<Overview, Trouble> {
        Ok(self.client()?.get("/v1/status")?)
    }

    /// By name, however it is written; `None`: this one.
    fn node(&self, name: Option<&str>) -> Result<NodeView, Trouble> {
        let name = name.unwrap_or(&self.me);
        let mut nodes = self.overview()?.nodes.into_iter();
        let found = nodes.find(|node| node.state != NodeState::Removed && node.name.eq_ignore_ascii_case(name));
        found.ok_or_else(|| Trouble::NoNode(name.to_owned()))
    }

    fn set(&self, node: Option<&str>, name: &str, value: Option<&str>, lasts: bool) -> Result<(), Trouble> {
        let node = self.node(node)?;
        // Most calls change nothing, and need no entry of the log.
        if node.attributes.get(name).map(String::as_str) == value {
            return Ok(());
        }
        let change = AttributeChange { name: name.to_owned(), value: value.map(str::to_owned), lasts };
        self.client()?.change(Method::POST, &format!("/v1/nodes/{}/attributes", node.id), Some(&change))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
