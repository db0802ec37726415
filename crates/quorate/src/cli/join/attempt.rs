//! Asking a cluster to let this server in, once.
//!
//! The order is that of [`quorate_api::join`]. What the server shows of itself before it knows to
//! whom it speaks is nothing: the connection is pinned to the authority that the token names.
//!
//! An attempt that ended anywhere may be repeated: the key is kept, and by it the cluster knows that it
//! is the same server. `node.toml` is written last.

use crate::cli::failure::{Exit, Failure};
use crate::cli::place::{self, Place};
use crate::cli::screen::wall_now;
use crate::cli::{client, pinned};
use crate::config::{ClusterConfig, LogConfig, NodeConfig, ThisNode, Timers, Voter};
use crate::gossip_keys;
use crate::keys::{ManagerKeys, joining_key};
use crate::serve::admission::is_node_name;
use crate::trust::NodeFiles;
use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quorate_api::AuthMode;
use quorate_api::join::{JOIN_VERSION, JoinAnswer, JoinCheck, JoinRequest, ManagerAddress};
use quorate_api::view::Problem;
use quorate_membership::seal::KeyRing;
use quorate_model::id::NodeId;
use quorate_model::member::Vote;
use quorate_model::state::Role;
use quorate_node::wire;
use quorate_trust::ca::{CaCertificate, NodeCertificate};
use quorate_trust::key::NodeKey;
use quorate_trust::pin::PinRefusal;
use quorate_trust::refusal::Refusal;
use quorate_trust::token::JoinToken;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use ureq::http::header;

/// Longest wait for a manager's port to answer.
pub(super) const PORT_WITHIN: Duration = Duration::from_secs(3);
/// Longest wait for a manager's answer: it tries this server's ports, and an election may be going on.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// How often all is tried again because another manager appeared meanwhile. Servers join one at a time.
const CHECKED_AGAIN: u32 = 3;

/// What a server wants to be.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) name: String,
    pub(super) alias: Option<String>,
    /// Empty: what the token is for.
    pub(super) roles: BTreeSet<Role>,
    pub(super) vote: Vote,
}

/// A server that asks. Holds its ports, on which it says who it is.
pub(super) struct Applicant {
    name: String,
    place: Place,
    cluster: Cluster,
    request: JoinRequest,
    greeter: Greeter,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) answer: JoinAnswer,
    pub(super) config: NodeConfig,
    /// Managers whose ports were tried in both directions.
    pub(super) tried: usize,
}

impl Applicant {
    /// `handshake_within`: how long a manager may take until it has proved itself.
    ///
    /// # Errors
    /// The name is none, or the disk.
    pub(super) fn new(
        token: &JoinToken,
        wish: Wish,
        place: Place,
        handshake_within: Duration,
    ) -> Result<Applicant, Failure> {
        if !is_node_name(&wish.name) {
            return Err(Failure::new(Exit::Usage, "bad-name", format!("`{}` cannot be a name", wish.name))
                .fix("give --name, or node.name: 1 to 63 letters, digits, `-`, `_` and `.`"));
        }
        let key = joining_key(&place.data_dir)
            .map_err(|error| Failure::from(error).fix("run it as root, or choose another --data-dir"))?;
        let cluster = Cluster::new(token, handshake_within)?;
        let name = wish.name.clone();
        let request = request(token, wish, &place, &key)?;
        let greeter = Greeter::start(&place, &request.hail)?;
        Ok(Applicant { name, place, cluster, request, greeter })
    }

    /// Asks the manager at `address` and every one that it names, and writes down what this server is
    /// then.
    ///
    /// # Errors
    /// Why it is not let in; the same may be tried again.
    pub(super) fn join(&mut self, address: &str) -> Result<Joined, Failure> {
        let mut answer = self.ask(address);
        for _ in 0..CHECKED_AGAIN {
            match answer {
                // A manager has started since it was asked who there is.
                Err(failure) if failure.code == "ports-not-tried" => answer = self.ask(address),
                _ => break,
            }
        }
        let (answer, tried) = answer?;
        let config = keep(&answer, &self.name, &self.place)?;
        Ok(Joined { answer, config, tried })
    }

    fn ask(&mut self, address: &str) -> Result<(JoinAnswer, usize), Failure> {
        self.request.tried = BTreeSet::new();
        let check: JoinCheck = self.cluster.ask(address, "/v1/join/check", &mut self.request)?;
        self.request.tried = try_managers(&self.cluster, &check, &mut self.request)?;
        let answer = self.cluster.ask(address, "/v1/join", &mut self.request)?;
        Ok((answer, self.request.tried.len()))
    }

    /// Gives the ports back: from now on they are the node's.
    pub(super) fn end(self) {
        let Applicant { place, greeter, .. } = self;
        drop(greeter);
        drop(place);
    }
}

/// Speaks to managers of the cluster that the token is for.
struct Cluster {
    agent: ureq::Agent,
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

fn request(token: &JoinToken, wish: Wish, place: &Place, key: &NodeKey) -> Result<JoinRequest, Failure> {
    let certificate = key.request().context("asking for a certificate").map_err(Failure::from)?;
    let mut hail = [0; 16];
    getrandom::fill(&mut hail).map_err(|error| {
        Failure::new(Exit::Failed, "no-randomness", "this server gives no random numbers").why(error)
    })?;
    Ok(JoinRequest {
        secret: token.secret.to_text(),
        name: wish.name,
        alias: wish.alias,
        roles: wish.roles,
        api: place.api_address().to_string(),
        link: place.link_address().to_string(),
        vote: wish.vote,
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
fn try_managers(cluster: &Cluster, check: &JoinCheck, request: &mut JoinRequest) -> Result<BTreeSet<NodeId>, Failure> {
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
    fn new(token: &JoinToken, handshake_within: Duration) -> Result<Cluster, Failure> {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_connect(Some(handshake_within))
            .timeout_global(Some(handshake_within + ANSWER_WITHIN))
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
        // It is the right cluster, with a certificate that is good at another moment than this server's clock says.
        if let PinRefusal::Server(Refusal::NotYetValid { .. } | Refusal::Expired { .. }) = refusal {
            let error = format!("the clocks of this server and of {address} do not agree; the secret was not sent");
            return Failure::new(Exit::Conflict, "clock-off", error)
                .why(refusal)
                .fix("set the clocks, best by NTP, and run the same command again");
        }
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
fn keep(answer: &JoinAnswer, name: &str, place: &Place) -> Result<NodeConfig, Failure> {
    let write = || -> anyhow::Result<()> {
        let authorities =
            CaCertificate::all_from_pem(&answer.authorities).context("reading the cluster's authority")?;
        let certificate = NodeCertificate::from_pem(&answer.certificate).context("reading this node's certificate")?;
        let manager =
            answer.for_managers.as_ref().map(|text| ManagerKeys::from_text(text, &authorities)).transpose()?;
        let files = NodeFiles { authorities, certificate, key: Arc::new(joining_key(&place.data_dir)?) };
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
    write().map_err(|error| Failure::from(error).fix("run the same command again: it goes on where it was"))?;
    let peer = |manager: &ManagerAddress| {
        let link = manager.link.parse().ok()?;
        Some(Voter { id: manager.id, name: manager.name.clone(), link })
    };
    let config = NodeConfig {
        cluster: ClusterConfig {
            id: answer.cluster,
            name: answer.cluster_name.clone(),
            incarnation: answer.incarnation,
            ha: false,
        },
        node: ThisNode {
            id: answer.node,
            name: name.to_owned(),
            roles: answer.roles.clone(),
            api: place.addresses.api.listen,
            link: place.addresses.link.listen,
            announced: place.announced.clone(),
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
