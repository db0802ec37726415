//! The link to the managers: tables come in, reports go out, and the last table is kept in a file.
//!
//! Any manager feeds a gateway. It stays with one until that one is silent, then takes the next; what
//! it knows stays in force meanwhile, however long that is.
//!
//! On the wire: `GET /v1/gateway/stream?name=NAME` answers one [`RoutingTable`] per line as JSON, the
//! first at once, and an empty line each second; `POST /v1/gateway/report` takes a `GatewayReport`.

use crate::manager::{Manager, Managers, NoConnection};
use crate::plane::{Origin, Plane};
use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::http1::SendRequest;
use quorate_model::routing::RoutingTable;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Longest line that is taken. 1,000 services with 10 replicas each need about 2 MB.
const LINE_MAX: usize = 64 * 1024 * 1024;

/// Pauses between rounds over all managers: the first, doubling up to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LONGEST: Duration = Duration::from_secs(1);

/// Why a manager feeds this gateway no longer.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    NoConnection(#[from] NoConnection),
    #[error("the connection broke")]
    Http(#[from] hyper::Error),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("it answered {0}: it wants a token of a user who may feed gateways, with the scope gateway-feed")]
    NotLetIn(StatusCode),
    #[error("it was silent for {0:?}")]
    Silent(Duration),
    #[error("it closed the stream")]
    Closed,
    #[error("what it sent is no routing table")]
    Table(#[from] serde_json::Error),
    #[error("it sent a line of more than {LINE_MAX} bytes")]
    TooLong,
}

impl Fault {
    fn of(status: StatusCode) -> Fault {
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Fault::NotLetIn(status),
            other => Fault::Status(other),
        }
    }

    /// Whether nothing changes before a person does something.
    fn is_for_people(&self) -> bool {
        matches!(self, Fault::NotLetIn(_) | Fault::NoConnection(NoConnection::Unproven(_)))
    }
}

/// Takes tables from one manager after the other, for ever. `feeder` holds the one that feeds.
pub(crate) async fn follow(plane: Arc<Plane>, managers: Arc<Managers>, feeder: watch::Sender<Option<Manager>>) {
    if managers.list.is_empty() {
        return std::future::pending().await;
    }
    let mut pause = PAUSE_FIRST;
    // What was said of each manager last, so that it is said once.
    let mut told: BTreeMap<Arc<str>, String> = BTreeMap::new();
    loop {
        for manager in &managers.list {
            let mut fed = false;
            let Err(fault) = feed(&plane, &managers, manager, &feeder, &mut fed).await;
            feeder.send_replace(None);
            if matches!(fault, Fault::NotLetIn(_)) {
                managers.read_token_again().await;
            }
            if fault.is_for_people() {
                let words = chain(&fault);
                if told.get(&manager.authority) != Some(&words) {
                    tracing::warn!(manager = %manager.authority, fault = %words, "a manager does not feed routes");
                    told.insert(manager.authority.clone(), words);
                }
            } else if fed {
                told.remove(&manager.authority);
            }
            if fed {
                tracing::warn!(manager = %manager.authority, fault = %chain(&fault), "lost the manager that feeds routes; they stay as they are");
                pause = PAUSE_FIRST;
            } else {
                tracing::debug!(manager = %manager.authority, fault = %chain(&fault), "a manager does not feed routes");
            }
            tokio::time::sleep(PAUSE_FIRST).await;
        }
        tokio::time::sleep(pause - PAUSE_FIRST).await;
        pause = (pause * 2).min(PAUSE_LONGEST);
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Takes tables from one manager as long as it sends something.
async fn feed(
    plane: &Arc<Plane>,
    managers: &Managers,
    manager: &Manager,
    feeder: &watch::Sender<Option<Manager>>,
    fed: &mut bool,
) -> Result<std::convert::Infallible, Fault> {
    let silence = plane.limits.manager_silence;
    let silent = |_| Fault::Silent(silence);
    let start = async {
        let mut sender = managers.open(manager).await?;
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = stream_path(&plane.config.name);
        managers.address(manager, &mut request);
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(Fault::of(response.status()));
        }
        // The sender stays: hyper ends the connection without it.
        Ok((sender, response.into_body()))
    };
    let (_sender, mut body) = tokio::time::timeout(silence, start).await.map_err(silent)??;
    let mut buffer = BytesMut::new();
    // Bytes of the buffer that hold no line end.
    let mut searched = 0;
    loop {
        let frame = tokio::time::timeout(silence, body.frame()).await.map_err(silent)?.ok_or(Fault::Closed)??;
        let Ok(data) = frame.into_data() else { continue };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer[searched..].iter().position(|&byte| byte == b'\n') {
            let line = buffer.split_to(searched + end + 1);
            searched = 0;
            if line.trim_ascii().is_empty() {
                continue;
            }
            let table: RoutingTable = serde_json::from_slice(&line)?;
            if !*fed {
                *fed = true;
                tracing::info!(manager = %manager.authority, revision = table.revision, "fed with routes");
                feeder.send_replace(Some(manager.clone()));
            }
            plane.install(table, Origin::Manager);
        }
        searched = buffer.len();
        if searched > LINE_MAX {
            return Err(Fault::TooLong);
        }
    }
}

/// The stream's path with the gateway's name, percent-encoded.
fn stream_path(name: &str) -> http::Uri {
    let mut path = String::from("/v1/gateway/stream?name=");
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path.parse().expect("a path of percent-encoded text is a URI")
}

/// Tells the manager that feeds this gateway how far it is: at once after a table came in force or
/// a draining endpoint became free, and regularly.
pub(crate) async fn report(plane: Arc<Plane>, managers: Arc<Managers>, mut fed_by: watch::Receiver<Option<Manager>>) {
    let mut received = plane.received.subscribe();
    let mut vips = plane.config.beside.as_ref().map(|beside| beside.vips.clone());
    let mut connection: Option<(Arc<str>, SendRequest<Full<Bytes>>)> = None;
    loop {
        let manager = fed_by.borrow_and_update().clone();
        received.mark_unchanged();
        if let Some(vips) = &mut vips {
            vips.mark_unchanged();
        }
        if let (Some(manager), Some(report)) = (manager, plane.report()) {
            let reporting = async {
                let mut sender = match connection.take() {
                    Some((authority, sender)) if authority == manager.authority && sender.is_ready() => sender,
                    _ => managers.open(&manager).await?,
                };
                let body = serde_json::to_vec(&report)?;
                let mut request = Request::new(Full::new(Bytes::from(body)));
                *request.method_mut() = Method::POST;
                *request.uri_mut() = http::Uri::from_static("/v1/gateway/report");
                managers.address(&manager, &mut request);
                request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                let response = sender.send_request(request).await?;
                let status = response.status();
                // Read to its end, so that the connection can be used again.
                response.into_body().collect().await?;
                if !status.is_success() {
                    return Err(Fault::of(status));
                }
                Ok(sender)
            };
            match tokio::time::timeout(plane.limits.manager_silence, reporting).await {
                Ok(Ok(sender)) => connection = Some((manager.authority, sender)),
                // The stream decides whether the manager is lost; a report comes again soon.
                Ok(Err(fault)) => {
                    tracing::debug!(fault = %chain(&fault), "a report did not reach the manager");
                    // The stream that was begun with the token goes on; reports must, too.
                    if matches!(fault, Fault::NotLetIn(_)) {
                        managers.read_token_again().await;
                    }
                }
                Err(_elapsed) => tracing::debug!("a report was not taken in time"),
            }
        }
        tokio::select! {
            () = plane.drained.notified() => {}
            _ = received.changed() => {}
            () = changes(&mut vips) => {}
            _ = fed_by.changed() => {}
            () = tokio::time::sleep(plane.limits.report_every) => {}
        }
    }
}

async fn changes<T>(watched: &mut Option<watch::Receiver<T>>) {
    let Some(receiver) = watched else { return std::future::pending().await };
    if receiver.changed().await.is_err() {
        // Whoever reported has ended; what it said last stays.
        *watched = None;
    }
}

/// The table that an earlier run of this gateway left, if it can be used.
pub(crate) fn read_snapshot(plane: &Plane) -> Option<RoutingTable> {
    let file = plane.config.snapshot_file.as_ref()?;
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "the last routes cannot be read; waiting for a manager");
            return None;
        }
    };
    match serde_json::from_slice(&bytes) {
        Ok(table) => Some(table),
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "the last routes are damaged; waiting for a manager");
            None
        }
    }
}

/// Keeps each table that comes in force, the latest only if they come faster than the disk.
pub(crate) async fn write_snapshots(plane: Arc<Plane>) {
    let Some(file) = plane.config.snapshot_file.clone() else {
        return;
    };
    let mut received = plane.received.subscribe();
    // A table that was read from the file before this began need not be written.
    while received.changed().await.is_ok() {
        let Some(table) = received.borrow_and_update().clone() else { continue };
        let path = file.clone();
        let written = tokio::task::spawn_blocking(move || write_snapshot(&path, &table)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(file = %file.display(), %error, "the routes cannot be kept for the next start");
        }
    }
}

fn write_snapshot(file: &Path, table: &RoutingTable) -> std::io::Result<()> {
    let bytes = serde_json::to_vec(table).map_err(std::io::Error::other)?;
    // Renamed into place, so that a reader finds the old or the new table. Not synced: after a power
    // loss a manager is asked anyway, and a damaged file is left alone.
    let fresh = file.with_extension("new");
    std::fs::write(&fresh, bytes)?;
    std::fs::rename(fresh, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_parameter() {
        assert_eq!(stream_path("gw 1&x=ü").to_string(), "/v1/gateway/stream?name=gw%201%26x%3D%C3%BC");
    }
}
