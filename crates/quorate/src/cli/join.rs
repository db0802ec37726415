//! `quorate join`: this server becomes a node.
//!
//! The order is that of [`quorate_api::join`]. What the server shows of itself before it knows to
//! whom it speaks is nothing: the connection is pinned to the authority that the token names.
//!
//! An attempt that ended anywhere may be repeated with the same command: the key is kept, and by it
//! the cluster knows that it is the same server. `node.toml` is written last.

use crate::cli::failure::{Exit, Failure};
use crate::cli::place::{self, Place, PlaceArgs};
use crate::cli::screen::{took, wall_now};
use crate::cli::{Context, client, pinned, waiting};
use crate::config::{ClusterConfig, LogConfig, NodeConfig, ThisNode, Timers, Voter};
use crate::gossip_keys;
use crate::keys::{ManagerKeys, joining_key};
use crate::serve::admission::{is_node_name, roles_of};
use crate::trust::NodeFiles;
use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, ValueEnum};
use quorate_api::AuthMode;
use quorate_api::join::{JOIN_VERSION, JoinAnswer, JoinCheck, JoinRequest, ManagerAddress};
use quorate_api::view::{Overview, Problem, Standing};
use quorate_membership::seal::KeyRing;
use quorate_model::member::Vote;
use quorate_model::state::Role;
use quorate_node::wire;
use quorate_trust::ca::{CaCertificate, NodeCertificate};
use quorate_trust::key::NodeKey;
use quorate_trust::token::JoinToken;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use ureq::http::header;

/// Longest wait for a manager's port to answer.
const PORT_WITHIN: Duration = Duration::from_secs(3);
/// Longest wait for a manager's answer: it tries this server's ports, and an election may be going on.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// What `quorate add-node` printed: HOST:PORT/SECRET/FINGERPRINT
    token: String,
    /// Name of the node; without it, that of the server
    #[arg(long)]
    name: Option<String>,
    /// What the node is to do; without it, what the token is for
    #[arg(long, value_enum)]
    role: Option<RoleArg>,
    /// Ask for a vote, also where the cluster would let the node stand by
    #[arg(long)]
    voter: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

/// A role as people type it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleArg {
    /// Takes part in decisions, and runs services as well
    Manager,
    /// Runs services
    Worker,
    /// Lets clients in
    Gateway,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Role {
        match role {
            RoleArg::Manager => Role::Manager,
            RoleArg::Worker => Role::Worker,
            RoleArg::Gateway => Role::Gateway,
        }
    }
}

/// Speaks to managers of the cluster that the token is for.
struct Cluster {
    agent: ureq::Agent,
}

pub(crate) fn run(context: &Context, args: &JoinArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let token: JoinToken = args.token.parse().map_err(|error: quorate_trust::token::ParseTokenError| {
        Failure::new(Exit::Usage, "bad-token", "this is not a join token")
            .why(error)
            .fix("copy the whole line that `quorate add-node` printed")
    })?;
    let name = args.name.clone().unwrap_or_else(place::host_name);
    if !is_node_name(&name) {
        return Err(Failure::new(Exit::Usage, "bad-name", format!("`{name}` cannot be a name"))
            .fix("give --name 1 to 63 letters, digits, `-`, `_` and `.`"));
    }
    let address = token.address.to_string();
    let towards = resolve(&address)?;
    let taken = args.place.take(Some(towards))?;
    let key = joining_key(&taken.data_dir)
        .map_err(|error| Failure::from(error).fix("run it as root, or choose another --data-dir"))?;
    let cluster = Cluster::new(&token)?;
    let mut request = request(&token, &name, args, &taken, &key)?;
    let greeter = Greeter::start(&taken, &request.hail)?;

    let check: JoinCheck = cluster.ask(&address, "/v1/join/check", &mut request)?;
    let fingerprint = token.authority.to_string();
    let mut lines = vec![format!("✔ reached {address}, certificate {} matches", &fingerprint[..12])];
    request.tried = try_managers(&cluster, &check, &mut request)?;
    let others = check.managers.len().saturating_sub(1);
    if others > 0 {
        lines.push(format!("✔ ports of {} open in both directions", count(others + 1, "manager")));
    }
    let answer: JoinAnswer = cluster.ask(&address, "/v1/join", &mut request)?;
    drop(greeter);
    lines.push(format!("✔ assigned ID {}, name {name}", answer.node));
    let config = keep(&answer, &name, &taken, key)?;
    let is_manager = config.node.roles.contains(&Role::Manager);
    let data_dir = taken.data_dir.clone();
    // From here on the ports are the node's.
    drop(taken);
    let start = !args.place.no_start && place::has_systemd();
    let mut standing = None;
    if start {
        place::start_unit(&data_dir)?;
        let client = waiting::until_serving(context, &data_dir)?;
        let overview: Overview = client.get("/v1/status")?;
        standing = overview.nodes.iter().find(|node| node.id == answer.node).and_then(|node| node.standing);
        lines.push(format!("✔ database copied, {}   {}", position(is_manager, standing), took(started.elapsed())));
    } else {
        lines.push(format!("  start it: quorate serve --data-dir {}", data_dir.display()));
    }
    if is_manager {
        lines.extend(advice(answer.voters, standing));
    }
    if context.screen.is_json() {
        context.screen.json(&json!({
            "cluster": answer.cluster, "cluster_name": answer.cluster_name, "node": answer.node, "name": name,
            "started": start,
        }));
    } else {
        context.screen.data(&lines.join("\n"));
    }
    Ok(())
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

fn position(is_manager: bool, standing: Option<Standing>) -> &'static str {
    match standing {
        _ if !is_manager => "worker",
        Some(Standing::Voter) => "voting manager",
        Some(Standing::Stopped) => "stopped manager",
        Some(Standing::Standby) | None => "standby manager",
    }
}

/// What an even number of managers means (U4).
fn advice(voters: u32, standing: Option<Standing>) -> Option<String> {
    match (voters, standing) {
        (1, Some(Standing::Standby) | None) => Some(
            "! 1 voting manager cannot be lost. The next manager makes three voters: sudo quorate add-node".to_owned(),
        ),
        (voters, Some(Standing::Standby)) => Some(format!(
            "! {voters} managers vote, {} may be lost. The next manager makes {} voters: sudo quorate add-node",
            voters.saturating_sub(1) / 2,
            voters + 2
        )),
        _ => None,
    }
}

fn resolve(address: &str) -> Result<SocketAddr, Failure> {
    let unknown = |why: String| {
        Failure::new(Exit::Unreachable, "unreachable", format!("cannot reach {address}"))
            .why(why)
            .fix("check the address in the token, the name service and the network")
    };
    let mut found = address.to_socket_addrs().map_err(|error| unknown(error.to_string()))?;
    found.next().ok_or_else(|| unknown("the name has no address".into()))
}

fn request(
    token: &JoinToken,
    name: &str,
    args: &JoinArgs,
    place: &Place,
    key: &NodeKey,
) -> Result<JoinRequest, Failure> {
    let certificate = key.request().context("asking for a certificate").map_err(Failure::from)?;
    let mut hail = [0; 16];
    getrandom::fill(&mut hail).map_err(|error| {
        Failure::new(Exit::Failed, "no-randomness", "this server gives no random numbers").why(error)
    })?;
    Ok(JoinRequest {
        secret: token.secret.to_text(),
        name: name.to_owned(),
        roles: args.role.map(|role| roles_of(role.into())).unwrap_or_default(),
        api: place.api_address().to_string(),
        link: place.link_address().to_string(),
        vote: if args.voter { Vote::Asked } else { Vote::Auto },
        version: env!("CARGO_PKG_VERSION").to_owned(),
        join_version: JOIN_VERSION,
        link_version: wire::VERSION,
        now: wall_now(),
        certificate_request: STANDARD.encode(certificate.as_der()),
        hail: hail.iter().map(|byte| format!("{byte:02x}")).collect(),
        tried: BTreeSet::new(),
    })
}

/// Tries both ports of every manager, and lets each try those of this server.
fn try_managers(
    cluster: &Cluster,
    check: &JoinCheck,
    request: &mut JoinRequest,
) -> Result<BTreeSet<quorate_model::id::NodeId>, Failure> {
    let mut tried = BTreeSet::new();
    for manager in &check.managers {
        try_link(manager)?;
        if manager.id != check.answered_by {
            let _: JoinCheck = cluster.ask(&manager.api, "/v1/join/check", request)?;
        }
        tried.insert(manager.id);
    }
    Ok(tried)
}

fn try_link(manager: &ManagerAddress) -> Result<(), Failure> {
    let reach = || TcpStream::connect_timeout(&resolve(&manager.link).map_err(std::io::Error::other)?, PORT_WITHIN);
    reach().map(drop).map_err(|error| {
        Failure::new(
            Exit::Unreachable,
            "port-unreachable",
            format!("cannot reach the node link of {} at {}", manager.name, manager.link),
        )
        .why(error)
        .fix(format!("let TCP connections from this server to {} through the firewalls between them", manager.link))
    })
}

impl Cluster {
    fn new(token: &JoinToken) -> Result<Cluster, Failure> {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_connect(Some(PORT_WITHIN))
            .timeout_global(Some(ANSWER_WITHIN))
            .user_agent(concat!("quorate/", env!("CARGO_PKG_VERSION")))
            .build();
        let agent = pinned::agent(config, token.authority).context("preparing TLS").map_err(Failure::from)?;
        Ok(Cluster { agent })
    }

    fn ask<T: DeserializeOwned>(&self, address: &str, path: &str, request: &mut JoinRequest) -> Result<T, Failure> {
        request.now = wall_now();
        let body = serde_json::to_vec(request).expect("a request has string keys");
        let sent = self
            .agent
            .post(format!("https://{address}{path}"))
            .header(header::CONTENT_TYPE, "application/json")
            // Names keep foreign web pages out; the pin says already who is spoken to.
            .header(header::HOST, "localhost")
            .send(body.as_slice());
        let response = sent.map_err(|error| unreachable(address, path, &error))?;
        let status = response.status().as_u16();
        let read = response.into_body().with_config().limit(1 << 20).read_to_vec();
        let bytes = read.map_err(|error| unreachable(address, path, &error))?;
        let strange = |error: serde_json::Error| {
            Failure::new(Exit::Failed, "strange-answer", format!("{address} answers what this version does not expect"))
                .why(error)
                .fix("install the version that the cluster runs")
        };
        if (200..300).contains(&status) {
            return serde_json::from_slice(&bytes).map_err(strange);
        }
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) => Err(Failure::from_problem(status, problem)),
            Err(error) => Err(strange(error)),
        }
    }
}

fn unreachable(address: &str, path: &str, error: &ureq::Error) -> Failure {
    if let Some(refusal) = pinned::refusal(error) {
        return Failure::new(
            Exit::Conflict,
            "other-cluster",
            format!("{address} is not the cluster that this token is for; the secret was not sent"),
        )
        .why(refusal)
        .fix("make a new token with `quorate add-node` on a node of the right cluster");
    }
    if path == "/v1/join" && !client::never_sent(error) {
        return Failure::new(
            Exit::TimedOut,
            "outcome-unknown",
            format!("{address} did not say whether it let this server in"),
        )
        .why(error)
        .fix("run the same command again: it goes on where it was");
    }
    Failure::new(Exit::Unreachable, "unreachable", format!("cannot reach {address}"))
        .why(error)
        .fix("see whether `quorate serve` runs there, and let TCP connections to it through the firewalls")
}

/// Writes down what this server is now.
fn keep(answer: &JoinAnswer, name: &str, place: &Place, key: NodeKey) -> Result<NodeConfig, Failure> {
    let write = |key: NodeKey| -> anyhow::Result<()> {
        let authorities =
            CaCertificate::all_from_pem(&answer.authorities).context("reading the cluster's authority")?;
        let certificate = NodeCertificate::from_pem(&answer.certificate).context("reading this node's certificate")?;
        let manager =
            answer.for_managers.as_ref().map(|text| ManagerKeys::from_text(text, &authorities)).transpose()?;
        let files = NodeFiles { authorities, certificate, key: std::sync::Arc::new(key) };
        files.credentials(answer.cluster, answer.node)?;
        if let Some(text) = &answer.gossip_keys {
            let ring = KeyRing::from_text(text).context("reading the keys of gossip")?;
            gossip_keys::write(&place.data_dir, &ring)?;
        }
        files.write(&place.data_dir).with_context(|| format!("writing into {}", place.data_dir.display()))?;
        if let Some(manager) = &manager {
            manager.write(&place.data_dir)?;
        }
        Ok(())
    };
    write(key).map_err(|error| Failure::from(error).fix("run the same command again: it goes on where it was"))?;
    let peer = |manager: &ManagerAddress| {
        let link = manager.link.parse().ok()?;
        Some(Voter { id: manager.id, name: manager.name.clone(), link })
    };
    let config = NodeConfig {
        cluster: ClusterConfig {
            id: answer.cluster,
            name: answer.cluster_name.clone(),
            incarnation: answer.incarnation,
        },
        node: ThisNode {
            id: answer.node,
            name: name.to_owned(),
            roles: answer.roles.clone(),
            api: place.api_listen,
            link: place.link_listen,
            advertise: place.advertise,
            plain_http: false,
            auth: AuthMode::Required,
            console_token: None,
            api_certificate: None,
            end_with_pid: None,
        },
        timers: Timers::default(),
        log: LogConfig::default(),
        voters: Vec::new(),
        peers: answer.managers.iter().filter_map(peer).collect(),
    };
    place::write_config(&place.data_dir, &config)?;
    Ok(config)
}

/// Answers on both ports of this server while it joins, so that managers know that it is this server.
struct Greeter {
    ends: Arc<AtomicBool>,
    threads: Vec<(std::thread::JoinHandle<()>, SocketAddr)>,
}

impl Greeter {
    fn start(place: &Place, hail: &str) -> Result<Greeter, Failure> {
        let ends = Arc::new(AtomicBool::new(false));
        let mut greeter = Greeter { ends: ends.clone(), threads: Vec::new() };
        for listener in [&place.api, &place.link] {
            let failed = |error| Failure::new(Exit::Failed, "port", "a port cannot be listened to").why(error);
            let mut address = listener.local_addr().map_err(failed)?;
            if address.ip().is_unspecified() {
                address.set_ip(if address.is_ipv6() { [0, 0, 0, 0, 0, 0, 0, 1].into() } else { [127, 0, 0, 1].into() });
            }
            let (listener, ends, hail): (TcpListener, _, _) =
                (listener.try_clone().map_err(failed)?, ends.clone(), hail.to_owned());
            let greet = move || {
                while !ends.load(Ordering::Relaxed) {
                    let Ok((mut stream, _)) = listener.accept() else { return };
                    // Whoever does not take it is not a manager.
                    let _ = stream.set_write_timeout(Some(PORT_WITHIN));
                    let _ = stream.write_all(hail.as_bytes());
                }
            };
            greeter.threads.push((std::thread::spawn(greet), address));
        }
        Ok(greeter)
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for (thread, address) in self.threads.drain(..) {
            // Wakes it from waiting for somebody.
            if TcpStream::connect_timeout(&address, PORT_WITHIN).is_ok() {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn u4_the_second_and_the_fourth_manager_are_told_that_they_stand_by() {
        let standby = Some(Standing::Standby);
        assert_eq!(
            advice(1, standby).unwrap(),
            "! 1 voting manager cannot be lost. The next manager makes three voters: sudo quorate add-node"
        );
        assert_eq!(
            advice(3, standby).unwrap(),
            "! 3 managers vote, 1 may be lost. The next manager makes 5 voters: sudo quorate add-node"
        );
        assert_eq!(advice(3, Some(Standing::Voter)), None);
        assert_eq!(position(true, standby), "standby manager");
        assert_eq!(position(false, None), "worker");
    }
}
