//! The node link: what peers send.

use bytes::BytesMut;
use quorate_model::external::{External, NodeLogin};
use quorate_model::id::{LogIndex, NodeId};
use quorate_model::state::{ClusterState, NodeIdentity, Role};
use quorate_model::time::{Timestamp, WallTime};
use quorate_node::consensus::RecoveredLog;
use quorate_node::wire::{Body, RaftMessage, Voters};
use quorate_node::{Configuration, Event, Node, NodeOptions, Now};
use raft::eraftpb;
use std::collections::BTreeMap;
use std::time::Duration;

/// A stream of frames from a peer, its first byte being where it is torn.
///
/// # Panics
/// When the frames depend on how the stream was torn, when one is another after it was encoded again,
/// or when a node cannot take one that is no consensus message. (Those are checked by the consensus
/// library, which trusts voters: what a voter says about its log is taken as true.)
pub fn link(data: &[u8]) -> bool {
    let Some((&torn, stream)) = data.split_first() else { return false };
    let (whole, complete) = frames(&[stream]);
    let (left, right) = stream.split_at(usize::from(torn).min(stream.len()));
    let (pieces, also_complete) = frames(&[left, right]);
    assert_eq!(encoded(&whole), encoded(&pieces), "frames depend on how a stream is torn");
    assert_eq!(complete, also_complete, "the end depends on how a stream is torn");
    let mut out = Vec::new();
    let mut node = node(1);
    for (at, body) in (1..).zip(&whole) {
        look(body);
        if !matches!(body, Body::Raft(_)) {
            let now = now(at);
            node.step(now, Event::Received { from: peer(), message: body.clone() }, &mut out);
            node.flush(now, &mut out);
        }
    }
    complete && !whole.is_empty()
}

/// The frames in these pieces of a stream, and whether it ended with the last of them, unharmed.
fn frames(pieces: &[&[u8]]) -> (Vec<Body>, bool) {
    let mut received = BytesMut::new();
    let mut bodies = Vec::new();
    for piece in pieces {
        received.extend_from_slice(piece);
        loop {
            match Body::take(&mut received) {
                Ok(Some(body)) => bodies.push(body),
                Ok(None) => break,
                Err(_) => return (bodies, false),
            }
        }
    }
    (bodies, received.is_empty())
}

fn encoded(bodies: &[Body]) -> BytesMut {
    let mut out = BytesMut::new();
    for body in bodies {
        body.clone().encode_into(&mut out);
    }
    out
}

/// Everything that the shell or the node asks of a frame.
fn look(body: &Body) {
    let written = encoded(std::slice::from_ref(body));
    let again = Body::take(&mut written.clone()).expect("a frame that was written can be read").expect("it is whole");
    assert_eq!(encoded(&[again]), written, "a frame changed when it was written and read");
    match body {
        Body::Hello(hello) => drop(hello.node_id()),
        Body::Transfer(transfer) => drop(transfer.node()),
        Body::Status(status) => drop(status.report()),
        Body::Forward(forward) => {
            for proposal in &forward.proposals {
                drop(proposal.clone().proposal());
            }
        }
        Body::Raft(message) => {
            if let Ok(native) = eraftpb::Message::try_from(message.clone()) {
                assert_eq!(RaftMessage::from(native), *message, "a consensus message changed on its way");
            }
        }
        Body::Ping(_) | Body::Remembered(_) | Body::LogAnswer(_) | Body::AskSecrets(_) | Body::GiveSecrets(_) => {}
        Body::TryExternal(message) => drop(serde_json::from_slice::<External>(&message.external)),
        Body::TriedExternal(message) => drop(serde_json::from_slice::<NodeLogin>(&message.login)),
        Body::LogQuestion(question) => drop(question.replica()),
        Body::Renew(message) => message.leases.iter().for_each(|lease| drop(lease.lease())),
        Body::AskAges(message) => message.leases.iter().for_each(|lease| drop(lease.lease())),
        Body::Renewed(message) => {
            message.leases.iter().for_each(|lease| drop(lease.lease()));
            drop(message.voters.as_ref().map(Voters::electorate));
        }
        Body::Ages(message) => {
            message.ages.iter().for_each(|age| drop(age.lease()));
            drop(message.voters.as_ref().map(Voters::electorate));
        }
        Body::GossipKeys(keys) => drop(quorate_membership::seal::KeyRing::from_text(&keys.ring)),
        Body::Snapshot(head) => drop(quorate_store::databases::Manifest::read(&head.manifest)),
    }
}

pub(crate) fn id(number: u128) -> NodeId {
    NodeId::from_u128((number << 64) | 0xabc)
}

pub(crate) fn peer() -> NodeId {
    id(2)
}

fn now(seconds: u64) -> Now {
    Now::of(Timestamp(Duration::from_secs(seconds)), WallTime(1_700_000_000_000_000 + seconds * 1_000_000))
}

fn node(number: u128) -> Node {
    let identity = NodeIdentity {
        id: id(number),
        name: format!("n{number}"),
        roles: [Role::Manager, Role::Worker].into(),
        api: "127.0.0.1:8001".into(),
        link: "127.0.0.1:8101".into(),
        host: "127.0.0.1".into(),
    };
    let configuration = Configuration::of([id(1), id(2), id(3)].into());
    let options = NodeOptions {
        identity,
        boot: 1,
        contacts: BTreeMap::new(),
        replace_after: Duration::from_secs(30),
        replace_voter_after: Duration::from_secs(30),
        seed: 7,
    };
    let log = RecoveredLog { configuration, ..RecoveredLog::default() };
    Node::new(options, log, ClusterState::default(), LogIndex(0), now(0)).expect("an empty log can be started on")
}
