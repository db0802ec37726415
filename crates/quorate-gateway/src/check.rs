//! The gateway's own checks: is an endpoint there, as seen from here?
//!
//! Nodes check replicas too, with the service's own rules; this one notices within two periods what
//! no node can see: that the path from this gateway is broken, or that a whole server is gone. Where requests
//! wait and none is answered it does not wait for its turn, and a server without power costs them less than a second.

use crate::endpoint::{CheckResult, Endpoint};
use crate::manager;
use crate::plane::Plane;
use bytes::Bytes;
use http::Request;
use http::header::HOST;
use http_body_util::Empty;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// Checks an endpoint until the returned handle is used.
///
/// A server that loses its power is noticed after two connects of half a period each with a quarter
/// between them: 2.25 s at the longest with the period of 1 s. Where requests wait in vain it is after two looks, and two
/// connects of a quarter of a period with a sixteenth between them: 0.77 s.
pub(crate) fn start(plane: Arc<Plane>, endpoint: Arc<Endpoint>, path: Option<String>) -> AbortHandle {
    let period = plane.limits.check_every;
    tokio::spawn(async move {
        // Spread over the period, so that many endpoints are not asked all at once.
        let (_, low) = endpoint.replica.0.as_u64_pair();
        tokio::time::sleep(period * u32::try_from(low % 64).unwrap_or(0) / 64).await;
        let mut hurries = false;
        loop {
            let patience = if hurries { period / 4 } else { period / 2 };
            let result = check(endpoint.address, path.as_deref(), patience, period).await;
            if endpoint.checked(result) {
                plane.tell_changed();
                plane.clients.wake_waiting();
            }
            // Once more, and it is certain.
            hurries &= result == CheckResult::Silent && !endpoint.is_silent();
            let pause = match result {
                CheckResult::Passed => period,
                CheckResult::Failed | CheckResult::Silent if hurries => period / 16,
                CheckResult::Failed | CheckResult::Silent => period / 4,
            };
            hurries |= timeout(pause, endpoint.doubt()).await.is_ok();
        }
    })
    .abort_handle()
}

/// Tells checks where requests wait in vain, as long as the gateway runs.
pub(crate) async fn look(plane: Arc<Plane>) {
    let mut interval = tokio::time::interval(plane.limits.look_every);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        plane.look();
    }
}

async fn check(address: SocketAddr, path: Option<&str>, patience: Duration, period: Duration) -> CheckResult {
    let mut sender = match timeout(patience, manager::open(address)).await {
        Ok(Ok(sender)) => sender,
        Ok(Err(_refused)) => return CheckResult::Failed,
        Err(_elapsed) => return CheckResult::Silent,
    };
    let Some(path) = path else { return CheckResult::Passed };
    let request = Request::get(path).header(HOST, address.to_string()).body(Empty::<Bytes>::new());
    let Ok(request) = request else { return CheckResult::Failed };
    match timeout(period, sender.send_request(request)).await {
        Ok(Ok(response)) if (200..400).contains(&response.status().as_u16()) => CheckResult::Passed,
        _ => CheckResult::Failed,
    }
}
