//! What an operator asks of the cluster, and goes on asking until it is answered.
//!
//! A wish keeps its request id as long as any attempt may have been heard, on every node, so that it is
//! granted once. A refusal for a reason that passes (no majority at the moment, a clock that jumped) is
//! no answer yet; any other one is.

use super::found::NotMade;
use crate::torture::reach::Reach;
use quorate_api::certificates::CertificatesView;
use quorate_api::members::Invited;
use quorate_api::view::{Overview, Problem};
use quorate_model::state::Role;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE};
use ureq::http::{Method, Request};
use uuid::Uuid;

/// Longest wait for one node; the cluster's own answer, that it does not know, comes first.
const ATTEMPT: Duration = Duration::from_secs(4);
const NODE_PATIENCE_MS: u64 = 3_000;
/// Between two rounds over all nodes.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a change may take after the faults that were beside it.
pub(super) const AFTERWARDS: Duration = Duration::from_secs(90);

/// Nobody knows whether it was done.
const UNKNOWN: [&str; 5] = ["connection-lost", "no-answer", "outcome-unknown", "being-removed", "strange-answer"];

/// It was not done, and may be later, or on another node.
const PASSING: [&str; 13] = [
    "unreachable",
    "no-leader",
    "overloaded",
    "shutting-down",
    "manager-stopped",
    // A worker was asked.
    "no-authority",
    "not-taken",
    "cannot-lead",
    "loses-majority",
    "last-voter",
    "key-changing",
    "stale-plan",
    // By nodes that are behind.
    "unknown-node",
];

/// Whether the faults beside a change are over, and until when it may go on then.
#[derive(Debug, Clone, Default)]
pub(super) struct Patience(Arc<Mutex<Option<Instant>>>);

impl Patience {
    /// From now on it must come to an end.
    pub(super) fn ends_in(&self, time: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + time);
    }

    /// Whether nothing is broken any more.
    pub(super) fn faults_are_over(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn is_over(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|end| Instant::now() >= end)
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Operator {
    agent: ureq::Agent,
    reach: Arc<Reach>,
    patience: Patience,
}

impl Operator {
    pub(super) fn new(reach: &Arc<Reach>) -> Operator {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(ATTEMPT))
            .max_idle_connections(0)
            .build();
        Operator { agent: reach.agent(config), reach: reach.clone(), patience: Patience::default() }
    }

    pub(super) fn patience(&self) -> &Patience {
        &self.patience
    }

    /// Until the cluster has done it; how often it was asked.
    ///
    /// # Errors
    /// What it answers, if that is no, or that time is over.
    pub(super) fn wish(&self, method: &Method, path: &str, body: &Value) -> Result<u32, NotMade> {
        let path = format!("{path}?timeout_ms={NODE_PATIENCE_MS}");
        let (mut id, mut asked, mut unknown) = (Uuid::new_v4(), 0, false);
        self.rounds(|url| {
            asked += 1;
            match self.attempt::<Value>(url, method, &path, body, Some(id)) {
                Ok(_) => Some(Ok(asked)),
                Err(why) if UNKNOWN.contains(&why.code.as_str()) => {
                    unknown = true;
                    None
                }
                Err(why) if PASSING.contains(&why.code.as_str()) => {
                    // The cluster remembers what it answered to an id, a refusal too.
                    if !unknown {
                        id = Uuid::new_v4();
                    }
                    None
                }
                Err(why) => Some(Err(why)),
            }
        })?
    }

    /// A token with which a server of this name may join, once. What became of an earlier request is of
    /// no interest: a token that nobody has is of no use.
    pub(super) fn invite(&self, role: Role, name: &str) -> Result<String, NotMade> {
        // Clocks jump by an hour, in which the usual one would expire.
        let wish = json!({ "role": role, "ttl": "24h", "name": name });
        let invited = self.rounds(|url| {
            let id = Some(Uuid::new_v4());
            self.attempt::<Invited>(url, &Method::POST, "/v1/join-tokens", &wish, id).ok()
        })?;
        let command = invited.commands.first().and_then(|command| command.strip_prefix("quorate join "));
        let strange = || NotMade { code: "strange-answer".into(), message: format!("{:?}", invited.commands) };
        command.map(str::to_owned).ok_or_else(strange)
    }

    /// The token with the address of another node: every manager lets servers in.
    pub(super) fn at_another(&self, token: &str, turn: usize) -> String {
        let nodes = self.reach.nodes();
        let (Some((_, rest)), Some(node)) = (token.split_once('/'), nodes.get(turn % nodes.len().max(1))) else {
            return token.to_owned();
        };
        format!("{}/{rest}", node.url.trim_start_matches("https://"))
    }

    /// One round over all nodes for what is no entry of the log: it has no id, and may be done twice.
    ///
    /// # Errors
    /// What the last node said.
    pub(super) fn once(&self, method: &Method, path: &str, body: &Value) -> Result<Value, NotMade> {
        let mut last = NotMade { code: "unreachable".into(), message: "there is no node".into() };
        for node in self.reach.nodes().iter() {
            match self.attempt(&node.url, method, path, body, None) {
                Ok(answer) => return Ok(answer),
                Err(why) => last = why,
            }
        }
        Err(last)
    }

    /// Waits until `found` finds something in what any node says of the cluster.
    pub(super) fn until<T>(&self, mut found: impl FnMut(&Overview) -> Option<T>) -> Result<T, NotMade> {
        self.rounds(|url| {
            let overview = self.attempt(url, &Method::GET, "/v1/status", &Value::Null, None).ok()?;
            found(&overview)
        })
    }

    /// The same of what any node says of certificates.
    pub(super) fn until_certificates<T>(
        &self,
        mut found: impl FnMut(&CertificatesView) -> Option<T>,
    ) -> Result<T, NotMade> {
        self.rounds(|url| {
            let view = self.attempt(url, &Method::GET, "/v1/certificates", &Value::Null, None).ok()?;
            found(&view)
        })
    }

    /// What a node itself says.
    pub(super) fn attempt<T: DeserializeOwned>(
        &self,
        url: &str,
        method: &Method,
        path: &str,
        body: &Value,
        id: Option<Uuid>,
    ) -> Result<T, NotMade> {
        let made = |code: &str, why: &dyn std::fmt::Display| NotMade { code: code.into(), message: why.to_string() };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{url}{path}"))
            .header(AUTHORIZATION, self.reach.authorization())
            .header(CONTENT_TYPE, "application/json");
        if let Some(id) = id {
            request = request.header("Quorate-Request-Id", id.to_string());
        }
        let sent = match body {
            Value::Null => {
                request.body(()).map_err(|error| made("bad-request", &error)).map(|it| self.agent.run(it))?
            }
            body => request
                .body(body.to_string())
                .map_err(|error| made("bad-request", &error))
                .map(|it| self.agent.run(it))?,
        };
        let mut response = sent.map_err(|error| match &error {
            error if crate::cli::client::never_sent(error) => made("unreachable", error),
            ureq::Error::Timeout(_) => made("no-answer", &error),
            error => made("connection-lost", error),
        })?;
        if response.status().is_success() {
            return response.body_mut().read_json().map_err(|error| made("strange-answer", &error));
        }
        let problem = response.body_mut().read_json::<Problem>();
        Err(problem.map_or_else(|error| made("strange-answer", &error), |it| made(&it.code, &it.message)))
    }

    /// Asks one node after the other until `ask` has something, or time is over.
    fn rounds<T>(&self, mut ask: impl FnMut(&str) -> Option<T>) -> Result<T, NotMade> {
        loop {
            for node in self.reach.nodes().iter() {
                if let Some(found) = ask(&node.url) {
                    return Ok(found);
                }
                self.hurry()?;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// A pause between two attempts of something else.
    ///
    /// # Errors
    /// Time is over.
    pub(super) fn pause(&self) -> Result<(), NotMade> {
        std::thread::sleep(PAUSE);
        self.hurry()
    }

    fn hurry(&self) -> Result<(), NotMade> {
        if self.patience.is_over() {
            let message = format!("not even {} s after the faults beside it", AFTERWARDS.as_secs());
            return Err(NotMade { code: "not-in-time".into(), message });
        }
        Ok(())
    }
}
