//! High availability as this server carries it out (K6): the node link's port is open while other nodes
//! may be there, and closed while this one is alone.
//!
//! Both happen while it serves: nobody restarts, and what runs here notices nothing. Gossip opens its own
//! port with the first peer ([`super::gossip`]).

use super::backend::NodeBackend;
use super::bulk::Bulk;
use super::inbox::Inbox;
use super::link::{self, LinkIdentity};
use super::turned_away::TurnedAway;
use crate::trust::serial;
use quorate_api::backend::Backend as _;
use quorate_model::command::Command;
use quorate_model::entry::{Outcome, Proposal};
use quorate_model::id::{NodeId, RequestId};
use quorate_model::member::MemberCommand;
use quorate_model::state::ClusterState;
use std::net::{SocketAddr, TcpListener as StdListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

/// A port that is taken is tried again after this.
const BIND_AGAIN: Duration = Duration::from_secs(1);
/// How long the cluster may take to decide.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where other nodes come in.
pub(super) struct Door {
    pub(super) address: SocketAddr,
    pub(super) me: LinkIdentity,
    pub(super) inbox: Inbox,
    pub(super) bulk: Bulk,
    /// Who was not believed.
    pub(super) refused: mpsc::Sender<TurnedAway>,
    pub(super) listens: watch::Sender<bool>,
}

impl Door {
    /// Opens and closes as is `wanted`, for as long as the server runs. `listener`: what is open already.
    pub(super) async fn run(self, mut listener: Option<TcpListener>, mut wanted: watch::Receiver<bool>) {
        loop {
            if !*wanted.borrow_and_update() {
                drop(listener.take());
                self.listens.send_replace(false);
                if wanted.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let open = match listener.take() {
                Some(open) => open,
                None => match TcpListener::bind(self.address).await {
                    Ok(open) => open,
                    Err(why) => {
                        error!(address = %self.address, %why, "other nodes cannot connect");
                        tokio::select! {
                            changed = wanted.changed() => if changed.is_err() { return },
                            () = tokio::time::sleep(BIND_AGAIN) => {}
                        }
                        continue;
                    }
                },
            };
            info!(link = %self.address, "listening for other nodes");
            self.listens.send_replace(true);
            let (me, inbox, bulk) = (self.me.clone(), self.inbox.clone(), self.bulk.clone());
            tokio::select! {
                () = link::accept(open, me, inbox, bulk, self.refused.clone()) => return,
                closes = wanted.wait_for(|wanted| !wanted) => if closes.is_err() { return },
            }
            info!(link = %self.address, "this node is alone: nobody is listened for");
        }
    }
}

/// Whether the link's port is free, for TCP and for gossip's UDP.
///
/// # Errors
/// Why not, for people.
pub(super) fn try_bind(address: SocketAddr) -> Result<(), String> {
    let tcp = StdListener::bind(address).map(drop).map_err(|why| format!("TCP {address}: {why}"));
    tcp.and_then(|()| UdpSocket::bind(address).map(drop).map_err(|why| format!("UDP {address}: {why}")))
}

/// Switches it on, as the settings want it, if nobody has switched it yet.
pub(super) async fn switch_on(me: NodeId, backend: NodeBackend) {
    let mut known = backend.0.known.clone();
    loop {
        let has_me = |state: &Arc<ClusterState>| state.nodes.contains_key(&me);
        let Ok(is_decided) = known.wait_for(has_me).await.map(|state| state.members.ha.is_some() || state.ha()) else {
            return;
        };
        if is_decided {
            return;
        }
        match decide(&backend).await {
            Ok(()) => return,
            Err(why) => warn!("high availability is not switched on yet: {why}"),
        }
        tokio::time::sleep(BIND_AGAIN).await;
    }
}

async fn decide(backend: &NodeBackend) -> Result<(), String> {
    backend.try_link()?;
    let id = serial().map_err(|why| format!("{why:#}"))?;
    let command = Command::Member(MemberCommand::SetHa { on: true });
    let committed = backend.propose(Proposal::command(RequestId::from_u128(id), &command), PATIENCE).await;
    match committed.map_err(|why| why.to_string())?.outcome {
        Outcome::Command(Err(refusal)) => Err(refusal.to_string()),
        Outcome::Command(Ok(())) | Outcome::Noop | Outcome::Sql(_) => Ok(()),
    }
}
