//! Waiting for a node of this server to be there.

use crate::cli::Context;
use crate::cli::client::Client;
use crate::cli::failure::{Exit, Failure};
use crate::cli::target::Target;
use quorate_api::view::Overview;
use std::path::Path;
use std::time::Duration;

/// The poll interval: shorter than what a person notices.
const EVERY: Duration = Duration::from_millis(50);

/// Waits until the node in this directory answers and knows a leader.
///
/// # Errors
/// Exit 10 when it takes longer than the command may.
pub(crate) fn until_serving(context: &Context, data_dir: &Path) -> Result<Client, Failure> {
    let socket = format!("unix:{}", data_dir.join("api.sock").display());
    let client = context.client_for(&Target { servers: vec![socket], dev: None, tls: None });
    while !client.remaining().is_zero() {
        if client.get::<Overview>("/v1/status").is_ok_and(|overview| overview.cluster.leader.is_some()) {
            return Ok(client);
        }
        std::thread::sleep(EVERY);
    }
    Err(Failure::new(Exit::TimedOut, "not-serving", "the node was started and does not serve yet")
        .fix("journalctl -u quorate.service"))
}
