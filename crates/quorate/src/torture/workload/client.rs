//! One client of the cluster: asks one thing at a time, on whichever node answers.
//!
//! A write keeps its request id on every node and over every retry, so it is done at most once
//! however often it is sent. What a client was not told it does not know: only when no attempt
//! can have reached a node is an operation *refused*.

use crate::cli::client::never_sent;
use crate::torture::dice::Dice;
use crate::torture::reach::Node;
use crate::torture::record::{Call, End, Line, Operation};
use crate::torture::workload::{Shared, sql};
use quorate_api::view::Problem;
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};
use ureq::http;
use uuid::Uuid;

/// Longest wait for a connection. Between servers of one cluster it takes a millisecond.
const CONNECT: Duration = Duration::from_millis(500);
/// How long a node may try before it says that it does not know; a client goes on elsewhere then.
const NODE_PATIENCE: Duration = Duration::from_millis(1_500);
/// Longest wait for one node: its own answer comes first if there is any.
const ATTEMPT: Duration = Duration::from_millis(2_000);
/// Longest time that a client spends on one operation before it gives up.
const DEADLINE: Duration = Duration::from_secs(5);
/// The same for a read of one node, which nobody else can answer.
const LOCAL_DEADLINE: Duration = Duration::from_millis(500);
/// Between two rounds over all nodes.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest answer that is read: the whole contents at the end of a long run.
const BODY_MAX: u64 = 256 * 1024 * 1024;
/// An operation goes to the client's own node, or in so many of 100 cases to any.
const ELSEWHERE: usize = 20;

pub(crate) struct Client {
    pub(crate) number: u32,
    pub(crate) dice: Dice,
    pub(crate) shared: Arc<Shared>,
    agent: ureq::Agent,
}

/// What one attempt brought.
pub(crate) enum Reply {
    Answered(Value),
    /// Nothing came of it, and nothing will.
    NotDone(String),
    /// Nobody knows.
    Lost(String),
}

/// What a request is, to whichever node it goes.
pub(crate) struct Request {
    pub(crate) method: http::Method,
    pub(crate) path: String,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn post(path: &str, body: &Value) -> Request {
        Request { method: http::Method::POST, path: path.into(), body: body.to_string().into_bytes() }
    }
}

impl Client {
    pub(crate) fn new(number: u32, shared: Arc<Shared>) -> Client {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_connect(Some(CONNECT))
            .user_agent("quorate-torture")
            .build();
        let (dice, agent) = (Dice::new(shared.seed, 1_000 + u64::from(number)), shared.reach.agent(config));
        Client { number, dice, agent, shared }
    }

    /// Asks until an answer comes or the deadline, and writes the operation into the record.
    pub(crate) fn perform(&mut self, call: Call) -> End {
        let id = call.writes().then(|| self.request_id());
        let number = self.shared.record.number();
        let asked = self.shared.record.now();
        let deadline = if matches!(call, Call::GetLocal { .. }) { LOCAL_DEADLINE } else { DEADLINE };
        let end = self.try_until(&call, id, Instant::now() + deadline);
        let operation = Operation { number, client: self.number, id, asked, call, end: end.clone() };
        if matches!(end, End::Unknown { .. }) && id.is_some() {
            self.shared.remember_unknown(&operation);
        }
        self.shared.record.write(Line::Operation(operation));
        end
    }

    /// Sends an operation of which nothing is known once more, on every node in turn.
    pub(crate) fn try_until(&mut self, call: &Call, id: Option<Uuid>, deadline: Instant) -> End {
        let request = sql::request(call, NODE_PATIENCE);
        let order = self.order(call);
        let mut lost = None;
        loop {
            let mut refused = String::new();
            for node in &order {
                match self.attempt(node, &request, id, ATTEMPT) {
                    Reply::Answered(answer) => match sql::read(call, &answer) {
                        Ok((index, answer)) => return End::Answered { at: self.shared.record.now(), index, answer },
                        // An answer that nobody understands is an error of its own, and counted as such.
                        Err(code) => {
                            self.shared.count(&code);
                            lost = Some(code);
                        }
                    },
                    Reply::NotDone(code) => refused = code,
                    Reply::Lost(code) => lost = Some(code),
                }
                if Instant::now() >= deadline {
                    break;
                }
            }
            // A node that was removed meanwhile is asked by nobody: there may be none to ask.
            if order.is_empty() || Instant::now() >= deadline {
                let at = self.shared.record.now();
                return match lost {
                    Some(code) => End::Unknown { at, code },
                    None => End::Refused { at, code: refused },
                };
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// One attempt on one node.
    pub(crate) fn attempt(&self, node: &Node, request: &Request, id: Option<Uuid>, limit: Duration) -> Reply {
        let reply = match self.send(node, request, id, limit) {
            Ok((status, body)) if (200..300).contains(&status) => match serde_json::from_slice(&body) {
                Ok(answer) => return Reply::Answered(answer),
                Err(_) => Reply::Lost("strange-answer".into()),
            },
            Ok((status, body)) => {
                let problem = serde_json::from_slice::<Problem>(&body);
                let code = problem.map_or_else(|_| format!("http-{status}"), |problem| problem.code);
                match code.as_str() {
                    // The documented meaning of these: nothing was written, retry elsewhere.
                    "overloaded" | "shutting-down" | "manager-stopped" => Reply::NotDone(code),
                    _ => Reply::Lost(code),
                }
            }
            Err(error) if never_sent(&error) => Reply::NotDone("unreachable".into()),
            Err(ureq::Error::Timeout(_)) => Reply::Lost("no-answer".into()),
            Err(_) => Reply::Lost("connection-lost".into()),
        };
        if let Reply::NotDone(code) | Reply::Lost(code) = &reply {
            self.shared.count(code);
        }
        reply
    }

    /// The status and the body of what a node answers.
    fn send(
        &self,
        node: &Node,
        request: &Request,
        id: Option<Uuid>,
        limit: Duration,
    ) -> Result<(u16, Vec<u8>), ureq::Error> {
        let mut builder = http::Request::builder()
            .method(request.method.clone())
            .uri(format!("{}{}", node.url, request.path))
            .header(http::header::CONTENT_TYPE, "application/json")
            .header(http::header::AUTHORIZATION, self.shared.reach.authorization());
        if let Some(id) = id {
            builder = builder.header("Quorate-Request-Id", id.to_string());
        }
        let response = if request.method == http::Method::GET {
            self.agent.run(self.agent.configure_request(builder.body(())?).timeout_global(Some(limit)).build())?
        } else {
            let body = builder.body(request.body.as_slice())?;
            self.agent.run(self.agent.configure_request(body).timeout_global(Some(limit)).build())?
        };
        let (parts, mut body) = response.into_parts();
        Ok((parts.status.as_u16(), body.with_config().limit(BODY_MAX).read_to_vec()?))
    }

    /// An answer of `node` without an end, for `limit`.
    pub(crate) fn open(
        &self,
        node: &Node,
        path: &str,
        limit: Duration,
    ) -> Result<ureq::BodyReader<'static>, ureq::Error> {
        let request = self.agent.get(format!("{}{path}", node.url));
        let request = request.header(http::header::AUTHORIZATION, self.shared.reach.authorization());
        let request = request.config().timeout_global(Some(limit)).build();
        Ok(request.call()?.into_body().into_reader())
    }

    /// Which nodes are asked in which order.
    fn order(&mut self, call: &Call) -> Vec<Node> {
        let nodes = self.shared.nodes();
        if let Call::GetLocal { node, .. } = call {
            return nodes.iter().filter(|one| one.name == *node).cloned().collect();
        }
        let home = self.number as usize % nodes.len();
        let first = if self.dice.chance(ELSEWHERE) { self.dice.below(nodes.len()) } else { home };
        (0..nodes.len()).map(|turn| nodes[(first + turn) % nodes.len()].clone()).collect()
    }

    /// Ids of two runs on one cluster must not be equal: only half of one comes from the seed.
    fn request_id(&mut self) -> Uuid {
        Uuid::from_u64_pair(self.dice.next(), self.shared.run_id ^ self.dice.next())
    }
}
