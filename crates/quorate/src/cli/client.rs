//! Asks the API, on whichever node answers.
//!
//! A node that cannot be reached is passed over without a word. A mutation carries an id that is
//! the same on every node that it is sent to, so it is done once, however often it was tried.

pub(crate) mod tls;

use crate::cli::failure::{Exit, Failure};
use crate::cli::target::Target;
use crate::cli::{password, unix};
use quorate_api::view::Problem;
use quorate_api::{Confirmed, Me};
use quorate_model::secret::Secret;
use quorate_trust::pin::PinRefusal;
use quorate_trust::refusal::Refusal;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::{Cell, OnceCell};
use std::collections::BTreeMap;
use std::io::Read;
use std::time::{Duration, Instant};
use tls::TlsConnector;
use ureq::http;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{ConnectProxyConnector, Connector as _, TcpConnector};

/// The header that makes a mutation idempotent.
const REQUEST_ID: &str = "Quorate-Request-Id";
/// The header that says where a log goes on.
const LOG_NEXT: &str = "Quorate-Log-Next";
/// The header that says that the password was given again.
const CONFIRMATION: &str = "Quorate-Confirmation";
/// Longest wait for a connection. A node in the same building takes milliseconds.
const CONNECT: Duration = Duration::from_millis(1_500);
/// Longest wait for one node's answer to a question, while others could be asked instead.
const ANSWER: Duration = Duration::from_secs(3);
/// The same for a mutation or a query, which a node may rightly hold back during an election: a
/// little more than the patience of the API itself, so that its own answer comes first.
const WORK: Duration = Duration::from_secs(12);
/// Longest answer that is read. Larger than any view of 100 nodes and 1000 replicas.
const BODY_MAX: u64 = 256 * 1024 * 1024;

/// One command's connection to a cluster.
#[derive(Debug)]
pub(crate) struct Client {
    servers: Vec<String>,
    agent: ureq::Agent,
    /// For the servers that are sockets of this machine.
    sockets: BTreeMap<String, ureq::Agent>,
    /// What a person is told to do when nobody answers.
    advice: String,
    token: Option<Secret<String>>,
    deadline: Instant,
    /// The server that answered last is asked first.
    preferred: Cell<usize>,
    /// Asked once a command, which may do several dangerous things.
    password: OnceCell<Secret<String>>,
}

/// A question or a mutation.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub method: http::Method,
    /// Path and query, beginning with a slash.
    pub path: &'a str,
    /// Content type and content.
    pub body: Option<(&'a str, Vec<u8>)>,
    /// A header besides those of every request.
    pub header: Option<(&'a str, String)>,
    /// Whether it changes something, and so gets an id.
    pub mutation: bool,
    /// Whether the node may rightly take its time.
    pub patient: bool,
}

/// A successful answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub body: Vec<u8>,
}

impl Client {
    pub(crate) fn new(target: &Target, timeout: Duration) -> Client {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            // The nodes of a cluster are reached directly, whatever the environment says.
            .proxy(None)
            .timeout_connect(Some(CONNECT))
            .user_agent(concat!("quorate/", env!("CARGO_PKG_VERSION")))
            .build();
        let sockets = target.servers.iter().filter_map(|server| {
            let path = server.strip_prefix("unix:")?;
            Some((server.clone(), unix::agent(config.clone(), path)))
        });
        let sockets = sockets.collect();
        let token = match &target.dev {
            Some(dev) => Some(Secret::new(dev.token.clone())),
            None => password::Sessions::here().and_then(|sessions| sessions.of(&target.servers)),
        };
        let agent = match &target.tls {
            None => config.into(),
            Some(tls) => {
                // Nothing but our own may speak TLS: it alone knows the pin.
                let plain = ().chain(ConnectProxyConnector::default()).chain(TcpConnector::default());
                let connector = plain.chain(TlsConnector(tls.clone()));
                ureq::Agent::with_parts(config, connector, DefaultResolver::default())
            }
        };
        let advice = match &target.dev {
            Some(dev) => format!("does `quorate dev` still run? Its process is {}", dev.pid),
            None => "check the address, and that `quorate serve` runs there".into(),
        };
        Client {
            servers: target.servers.clone(),
            agent,
            sockets,
            advice,
            token,
            deadline: Instant::now() + timeout,
            preferred: Cell::new(0),
            password: OnceCell::new(),
        }
    }

    pub(crate) fn with_token(self, token: Secret<String>) -> Client {
        Client { token: Some(token), ..self }
    }

    pub(crate) fn without_token(self) -> Client {
        Client { token: None, ..self }
    }

    /// Time until the command has to end.
    pub(crate) fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let call = Call { method: http::Method::GET, path, body: None, header: None, mutation: false, patient: false };
        self.send(&call)?.json()
    }

    /// A mutation with a JSON body, or none.
    pub(crate) fn change(
        &self,
        method: http::Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Answer, Failure> {
        let body = body.map(|body| ("application/json", to_json(body)));
        self.send(&Call { method, path, body, header: None, mutation: true, patient: true })
    }

    /// A question with a JSON body.
    pub(crate) fn ask<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let body = Some(("application/json", to_json(body)));
        self.send(&Call { method: http::Method::POST, path, body, header: None, mutation: false, patient: true })?
            .json()
    }

    /// Sends it, and asks for the password when the cluster wants it again.
    ///
    /// # Errors
    /// As [`send_once`](Self::send_once), and when the password is wrong.
    pub(crate) fn send(&self, call: &Call<'_>) -> Result<Answer, Failure> {
        let failure = match self.send_once(call, None) {
            Err(failure) if failure.code == "confirmation-needed" => failure,
            other => return other,
        };
        let (operation, target) = (&failure.details["operation"], &failure.details["target"]);
        let me: Me = self.get("/v1/me")?;
        let question = format!("{}. Password of {}", failure.error, me.who);
        let password = match self.password.get() {
            Some(password) => password,
            None => {
                let password = password::ask(&question, "use a token that was made with --dangerous")?;
                self.password.get_or_init(|| password)
            }
        };
        let body = serde_json::json!({ "password": password.expose(), "operation": operation, "target": target });
        let body = Some(("application/json", to_json(&body)));
        let (method, path) = (http::Method::POST, "/v1/confirm");
        let confirm = Call { method, path, body, header: None, mutation: true, patient: true };
        let confirmed: Confirmed = self.send_once(&confirm, None)?.json()?;
        self.send_once(call, Some(&confirmed.confirmation))
    }

    /// # Errors
    /// Exit 3 when no node could be reached, 10 when none answered in time, else what the API says.
    fn send_once(&self, call: &Call<'_>, confirmation: Option<&str>) -> Result<Answer, Failure> {
        let id = call.mutation.then(|| uuid::Uuid::new_v4().to_string());
        let mut problems = Vec::new();
        let mut may_have_arrived = false;
        let first = self.preferred.get();
        for turn in 0..self.servers.len() {
            let number = (first + turn) % self.servers.len();
            let server = &self.servers[number];
            match self.try_one(server, call, id.as_deref(), confirmation) {
                Ok((status, answer)) => {
                    self.preferred.set(number);
                    match answer.accept(status) {
                        // It is about to end and has done nothing: the next one will.
                        Err(failure) if failure.code == "shutting-down" => problems.push((server, failure.error)),
                        // Its manager is stopped, or a drill has taken it away, and others may answer.
                        Err(failure)
                            if matches!(&*failure.code, "manager-stopped" | "away-for-drill")
                                && turn + 1 < self.servers.len() =>
                        {
                            problems.push((server, failure.error));
                        }
                        accepted => return accepted,
                    }
                }
                Err(error) => {
                    may_have_arrived |= !never_sent(&error);
                    problems.push((server, reason(&error)));
                }
            }
            if self.remaining().is_zero() {
                break;
            }
        }
        let why: Vec<String> = problems.iter().map(|(server, problem)| format!("{server}: {problem}")).collect();
        let why = why.join("\n");
        if may_have_arrived && call.mutation {
            return Err(Failure::new(
                Exit::TimedOut,
                "outcome-unknown",
                "no node confirmed the change; it may still happen",
            )
            .why(why)
            .fix("look with `quorate status` before you repeat it"));
        }
        if may_have_arrived {
            return Err(Failure::new(Exit::TimedOut, "timed-out", "no node answered in time")
                .why(why)
                .fix("quorate status"));
        }
        Err(Failure::new(Exit::Unreachable, "unreachable", "cannot reach any node of the cluster")
            .why(why)
            .fix(self.advice.clone()))
    }

    /// Opens an answer that has no end, on the first server that gives one.
    ///
    /// # Errors
    /// As [`send_once`](Self::send_once) of a question.
    pub(crate) fn stream(&self, path: &str) -> Result<impl Read + use<>, Failure> {
        Ok(self.open(path)?.into_body().into_reader())
    }

    /// A piece of a log, and the offset to go on from.
    ///
    /// # Errors
    /// As [`stream`](Self::stream).
    pub(crate) fn log_piece(&self, path: &str) -> Result<(u64, Vec<u8>), Failure> {
        let response = self.open(path)?;
        let next = response.headers().get(LOG_NEXT).and_then(|next| next.to_str().ok()?.parse().ok());
        let next = next.ok_or_else(|| {
            Failure::new(Exit::Failed, "strange-answer", "the node does not say where the log goes on")
                .fix("compare `quorate version` with the version that `quorate status` shows")
        })?;
        let cut = |error: ureq::Error| {
            Failure::new(Exit::Unreachable, "log-cut", "the log ended in the middle")
                .why(reason(&error))
                .fix(&*self.advice)
        };
        Ok((next, read(response.into_body()).map_err(cut)?))
    }

    fn open(&self, path: &str) -> Result<http::Response<ureq::Body>, Failure> {
        let first = self.preferred.get();
        let mut problems = Vec::new();
        for turn in 0..self.servers.len() {
            let number = (first + turn) % self.servers.len();
            let server = &self.servers[number];
            let response = match self.open_on(server, path) {
                Ok(response) => response,
                Err(error) => {
                    problems.push(format!("{server}: {}", reason(&error)));
                    continue;
                }
            };
            let status = response.status();
            if status.is_success() {
                self.preferred.set(number);
                return Ok(response);
            }
            let failure = match read(response.into_body()) {
                Ok(body) => problem(status.as_u16(), &body),
                Err(error) => {
                    problems.push(format!("{server}: {}", reason(&error)));
                    continue;
                }
            };
            if !matches!(&*failure.code, "shutting-down" | "away-for-drill") {
                return Err(failure);
            }
            problems.push(format!("{server}: {}", failure.error));
        }
        Err(Failure::new(Exit::Unreachable, "unreachable", "cannot reach any node of the cluster")
            .why(problems.join("\n"))
            .fix(self.advice.clone()))
    }

    fn open_on(&self, server: &str, path: &str) -> Result<http::Response<ureq::Body>, ureq::Error> {
        let (agent, base) = self.agent_for(server);
        let mut request = agent.get(format!("{base}{path}"));
        if let Some(token) = &self.token {
            request = request.header(http::header::AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        // The node may have to ask others first.
        request.config().timeout_recv_response(Some(WORK)).build().call()
    }

    /// The agent for this server, and what its URLs begin with.
    fn agent_for<'a>(&'a self, server: &'a str) -> (&'a ureq::Agent, &'a str) {
        match self.sockets.get(server) {
            Some(agent) => (agent, "http://localhost"),
            None => (&self.agent, server),
        }
    }

    fn try_one(
        &self,
        server: &str,
        call: &Call<'_>,
        id: Option<&str>,
        confirmation: Option<&str>,
    ) -> Result<(u16, Answer), ureq::Error> {
        let (agent, base) = self.agent_for(server);
        let mut request = http::Request::builder().method(call.method.clone()).uri(format!("{base}{}", call.path));
        if let Some(confirmation) = confirmation {
            request = request.header(CONFIRMATION, confirmation);
        }
        if let Some((name, value)) = &call.header {
            request = request.header(*name, value);
        }
        if let Some((content_type, _)) = &call.body {
            request = request.header(http::header::CONTENT_TYPE, *content_type);
        }
        if let Some(id) = id {
            request = request.header(REQUEST_ID, id);
        }
        if let Some(token) = &self.token {
            request = request.header(http::header::AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        let longest = if call.patient { WORK } else { ANSWER };
        // Zero would mean "no limit".
        let limit = longest.min(self.remaining()).max(Duration::from_millis(1));
        // A change without a body says that it is empty. Otherwise its end would be sent apart from its head, to a
        // server that may have answered and hung up by then, and the answer would be lost.
        let nothing = matches!(call.method, http::Method::POST | http::Method::PUT).then_some(&[][..]);
        let content = call.body.as_ref().map(|(_, content)| content.as_slice()).or(nothing);
        let response = match content {
            Some(content) => run(agent, request.body(content)?, limit)?,
            None => run(agent, request.body(())?, limit)?,
        };
        let (parts, body) = response.into_parts();
        Ok((parts.status.as_u16(), Answer { body: read(body)? }))
    }
}

fn run(
    agent: &ureq::Agent,
    request: http::Request<impl ureq::AsSendBody>,
    limit: Duration,
) -> Result<http::Response<ureq::Body>, ureq::Error> {
    let request = agent.configure_request(request).timeout_global(Some(limit)).build();
    agent.run(request)
}

impl Answer {
    fn accept(self, status: u16) -> Result<Answer, Failure> {
        if (200..300).contains(&status) { Ok(self) } else { Err(problem(status, &self.body)) }
    }

    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Failure::new(Exit::Failed, "strange-answer", "the node's answer is not what this version expects")
                .why(error)
                .fix("compare `quorate version` with the version that `quorate status` shows")
        })
    }
}

fn problem(status: u16, body: &[u8]) -> Failure {
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => Failure::from_problem(status, problem),
        Err(_) => Failure::from_problem(
            status,
            Problem {
                code: format!("http-{status}"),
                message: format!("the node answered with HTTP status {status}"),
                fix: String::new(),
                details: serde_json::Value::Null,
            },
        ),
    }
}

fn read(mut body: ureq::Body) -> Result<Vec<u8>, ureq::Error> {
    body.with_config().limit(BODY_MAX).read_to_vec()
}

pub(crate) fn to_json(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).expect("what the command line sends has string keys only")
}

/// Whether the request certainly did not reach the node.
pub(crate) fn never_sent(error: &ureq::Error) -> bool {
    match error {
        // A server that did not prove itself got nothing.
        ureq::Error::Io(error) => error.kind() == std::io::ErrorKind::ConnectionRefused || is_unproved(error),
        ureq::Error::Timeout(what) => matches!(what, ureq::Timeout::Connect | ureq::Timeout::Resolve),
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
            true
        }
        _ => false,
    }
}

/// Whether the server did not prove itself.
pub(crate) fn is_unproved(error: &std::io::Error) -> bool {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
}

fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            "nothing listens there".into()
        }
        ureq::Error::Io(error) => match (Refusal::of_io(error), PinRefusal::of_io(error)) {
            (Some(refusal), _) => format!("the server is not believed: {refusal}"),
            (None, Some(refusal)) => refusal.to_string(),
            (None, None) => error.to_string(),
        },
        ureq::Error::Timeout(_) => "no answer in time".into(),
        error => error.to_string(),
    }
}
