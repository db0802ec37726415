//! The few questions that the rig itself asks of servers, over their public API.

use crate::cli::unix;
use crate::torture::reach::Reach;
use quorate_api::certificates::CertificatesView;
use quorate_api::view::Overview;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use ureq::http::header::AUTHORIZATION;

/// A node that answers does so in milliseconds; one that stands still must not hold up the rest.
const LOOK: Duration = Duration::from_millis(700);
const WORK: Duration = Duration::from_secs(5);

/// Asks one node at a time, and takes no other's word for it.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    look: ureq::Agent,
    work: ureq::Agent,
    reach: Arc<Reach>,
}

impl Ask {
    pub(super) fn new(reach: &Arc<Reach>) -> Ask {
        let agent = |timeout| {
            let config = ureq::Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .proxy(None)
                .timeout_global(Some(timeout))
                // A connection to a server that was killed is of no use to the next one.
                .max_idle_connections(0)
                .build();
            reach.agent(config)
        };
        Ask { look: agent(LOOK), work: agent(WORK), reach: reach.clone() }
    }

    pub(super) fn status(&self, api: SocketAddr) -> Option<Overview> {
        let request = self.look.get(format!("https://{api}/v1/status"));
        let mut response = request.header(AUTHORIZATION, self.reach.authorization()).call().ok()?;
        if response.status() != 200 { None } else { response.body_mut().read_json().ok() }
    }

    pub(super) fn certificates(&self, api: SocketAddr) -> Option<CertificatesView> {
        let request = self.look.get(format!("https://{api}/v1/certificates"));
        let mut response = request.header(AUTHORIZATION, self.reach.authorization()).call().ok()?;
        if response.status() != 200 { None } else { response.body_mut().read_json().ok() }
    }

    /// What a node says to its server's own user.
    pub(super) fn by_socket(&self, socket: &Path) -> Option<Overview> {
        let config = ureq::Agent::config_builder().timeout_global(Some(LOOK)).build();
        let agent = unix::agent(config, &socket.to_string_lossy());
        agent.get("http://localhost/v1/status").call().ok()?.body_mut().read_json().ok()
    }

    /// Runs a statement. `None`: it is not known to be done, and may be all the same. Else the one
    /// value that it returns, or null.
    pub(super) fn exec_value(&self, api: SocketAddr, sql: &str, params: &Value) -> Option<Value> {
        let id = uuid::Uuid::new_v4().to_string();
        let body = json!({ "sql": sql, "params": params, "timeout_ms": 3_000 });
        let request = self.work.post(format!("https://{api}/v1/db/exec")).header("Quorate-Request-Id", id);
        let mut response = request.header(AUTHORIZATION, self.reach.authorization()).send_json(body).ok()?;
        if response.status() != 200 {
            return None;
        }
        let answer: Value = response.body_mut().read_json().ok()?;
        Some(answer["results"][0]["rows"][0][0].clone())
    }

    /// The one value that a statement reads on this node, however old it is there.
    pub(super) fn local(&self, api: SocketAddr, sql: &str) -> Option<Value> {
        let body = json!({ "sql": sql, "consistency": "local" });
        let request = self.look.post(format!("https://{api}/v1/db/query"));
        let mut response = request.header(AUTHORIZATION, self.reach.authorization()).send_json(body).ok()?;
        let answer: Value = response.body_mut().read_json().ok()?;
        Some(answer["results"][0]["rows"][0][0].clone()).filter(|value| !value.is_null())
    }
}
