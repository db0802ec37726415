//! Ports on which clients connect: `default` as long as the gateway runs, others as routes name them.

use crate::downstream;
use crate::plane::Plane;
use crate::table::{DEFAULT, Listen};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;

/// Connections that wait to be accepted. The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: u32 = 4096;

/// Pause after a failed accept (no file descriptors left, usually) and before a listener is tried again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const BIND_AGAIN: Duration = Duration::from_secs(1);

/// # Errors
/// The system's.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A gateway that starts again must not wait for the connections of its predecessor to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts on the default listener and on the ports of the table in force. Ends when dropped; the
/// connections that it accepted go on.
pub(crate) async fn run(plane: Arc<Plane>, default: TcpListener) {
    let mut accepting = JoinSet::new();
    let mut open = BTreeMap::new();
    let mut failing = BTreeSet::new();
    accepting.spawn(accept(plane.clone(), default, DEFAULT));
    let mut received = plane.received.subscribe();
    loop {
        received.mark_unchanged();
        let wanted = plane.table.load().as_ref().map(|table| table.ports()).unwrap_or_default();
        open.retain(|port, task: &mut tokio::task::AbortHandle| {
            let keep = wanted.contains(port);
            if !keep {
                task.abort();
                tracing::info!(port, "listener closed: no route names it any more");
            }
            keep
        });
        // Joined, so that the port is free again before someone else is told so.
        while accepting.try_join_next().is_some() {}
        failing.retain(|port| wanted.contains(port));
        for port in wanted {
            if open.contains_key(&port) {
                continue;
            }
            match bind(SocketAddr::new(plane.address.ip(), port)) {
                Ok(listener) => {
                    failing.remove(&port);
                    tracing::info!(port, "listener opened");
                    open.insert(port, accepting.spawn(accept(plane.clone(), listener, port)));
                }
                Err(error) => {
                    if failing.insert(port) {
                        tracing::error!(port, %error, "a route's listener cannot be opened; trying again each second");
                    }
                }
            }
        }
        if failing.is_empty() {
            if received.changed().await.is_err() {
                return;
            }
        } else {
            let _ = tokio::time::timeout(BIND_AGAIN, received.changed()).await;
        }
    }
}

async fn accept(plane: Arc<Plane>, listener: TcpListener, listen: Listen) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::spawn(downstream::serve(plane.clone(), stream, peer.ip(), listen));
            }
            Err(error) => {
                tracing::warn!(listen, %error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
