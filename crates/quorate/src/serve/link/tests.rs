//! Two ends of a link over real sockets.

use super::super::inbox::inbox;
use super::*;
use crate::trust::{Founder, NodeFiles, lay_out};
use quorate_node::wire::SnapshotHead;
use std::collections::BTreeSet;
use std::sync::mpsc::Receiver;
use tokio::sync::watch;

const DEADLINE: Duration = Duration::from_secs(10);
const CLUSTER: u128 = 1;

/// A node with a certificate of the authority in a directory.
struct Member {
    me: LinkIdentity,
    expelled: watch::Sender<BTreeSet<NodeId>>,
    lost: watch::Sender<BTreeSet<NodeId>>,
}

fn member(authority: &tempfile::TempDir, node: u128) -> Member {
    let (cluster, node) = (ClusterId::from_u128(CLUSTER), NodeId::from_u128(node));
    let home = authority.path().join(node.to_string());
    lay_out(authority.path(), cluster, &[Founder { node, data_dir: &home, host: [127, 0, 0, 1].into() }]).unwrap();
    let (expelled, seen) = watch::channel(BTreeSet::new());
    let tls = LinkTls::of(&NodeFiles::read(&home).unwrap(), cluster, node, seen).unwrap();
    let link = SocketAddr::from(([127, 0, 0, 1], 1));
    let (lost, lost_seen) = watch::channel(BTreeSet::new());
    let me = LinkIdentity { cluster, node, link, incarnation: 1, lost: lost_seen, tls: Arc::new(tls) };
    Member { me, expelled, lost }
}

#[derive(Clone)]
struct NoBulk;

impl BulkReceiver for NoBulk {
    async fn receive(&self, _: NodeId, _: Accepted) {}
}

/// Accepts for `member`, and gives what it hears.
async fn listen(member: &Member) -> (SocketAddr, Receiver<Event>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (inbox, events) = inbox();
    tokio::spawn(accept(listener, member.me.clone(), inbox, NoBulk));
    (address, events)
}

/// Dials from `member`, and gives what comes of it.
fn reach(member: &Member, peer: &Member, address: SocketAddr) -> (Arc<Outbox>, Receiver<Event>) {
    let outbox = Arc::new(Outbox::default());
    let (inbox, events) = inbox();
    let links = watch::Sender::new(vec![address]);
    tokio::spawn(dial(member.me.clone(), peer.me.node, links.subscribe(), outbox.clone(), inbox));
    (outbox, events)
}

/// The next event, from another thread than those that make it.
async fn next(events: Receiver<Event>) -> (Event, Receiver<Event>) {
    tokio::task::spawn_blocking(move || (events.recv_timeout(DEADLINE).expect("an event before the deadline"), events))
        .await
        .unwrap()
}

async fn names(mut events: Receiver<Event>, count: usize) -> Vec<&'static str> {
    let mut names = Vec::new();
    for _ in 0..count {
        let (event, back) = next(events).await;
        events = back;
        names.push(match event {
            Event::LinkUp { .. } => "up",
            Event::LinkDown { refused: false, .. } => "down",
            Event::LinkDown { refused: true, .. } => "gone",
            _ => "something else",
        });
    }
    names
}

fn why(result: io::Result<Connection>) -> String {
    result.map(drop).unwrap_err().to_string()
}

#[tokio::test]
async fn a_peer_that_still_accepts_while_it_ends_is_soon_known_to_be_gone() {
    let authority = tempfile::tempdir().unwrap();
    let (me, peer) = (member(&authority, 2), member(&authority, 3));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_, events) = reach(&me, &peer, listener.local_addr().unwrap());

    let (first, _) = listener.accept().await.unwrap();
    let (mut first, shown) = peer.me.tls.accept(first).await.unwrap();
    assert_eq!(shown, me.me.node);
    read_frame(&mut first).await.unwrap();
    let mut hello = BytesMut::new();
    peer.me.hello(false).encode_into(&mut hello);
    say(&mut first, &hello).await.unwrap();
    drop(first);
    // The kernel goes on accepting for a process that is ending, until it closes the listener.
    drop(listener.accept().await.unwrap());
    drop(listener);

    assert_eq!(names(events, 3).await, ["up", "down", "gone"]);
}

#[tokio::test]
async fn more_than_a_socket_takes_arrives_in_order_and_unaltered() {
    let authority = tempfile::tempdir().unwrap();
    let (me, peer) = (member(&authority, 2), member(&authority, 3));
    let (address, mut heard) = listen(&peer).await;
    let (outbox, events) = reach(&me, &peer, address);
    assert_eq!(names(events, 1).await, ["up"]);

    // Small ones and one larger than a batch, all at once: 12 MiB.
    let frame = |term: u64| {
        let bytes = if term == 5 { 3 << 20 } else { 1 << 20 };
        Body::Snapshot(SnapshotHead { term, manifest: vec![term as u8; bytes].into() })
    };
    outbox.send((0..10).map(frame));
    let (event, back) = next(heard).await;
    assert!(matches!(event, Event::Called { .. }), "{event:?}");
    heard = back;
    for term in 0..10 {
        let (event, back) = next(heard).await;
        heard = back;
        let Event::Received { from, message } = event else { panic!("{event:?}") };
        assert_eq!(from, me.me.node);
        assert!(message == frame(term), "frame {term} was altered");
    }
}

#[tokio::test]
async fn a_node_of_another_authority_is_not_let_in_and_both_sides_know_why() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (peer, stranger) = (member(&ours, 3), member(&theirs, 4));
    let (address, _heard) = listen(&peer).await;
    let error = why(handshake(&stranger.me, peer.me.node, address).await);
    assert_eq!(error, "the other side is refused: its certificate is not from the CA of this cluster");
    // One that believes everybody is refused by the other side.
    let mut forged = member(&theirs, 2);
    let home = theirs.path().join(forged.me.node.to_string());
    std::fs::copy(ours.path().join("tls/ca.crt"), home.join("tls/ca.crt")).unwrap();
    let files = NodeFiles::read(&home).unwrap();
    let tls = LinkTls::of(&files, forged.me.cluster, forged.me.node, forged.expelled.subscribe()).unwrap();
    forged.me.tls = Arc::new(tls);
    let error = why(handshake(&forged.me, peer.me.node, address).await);
    assert_eq!(error, "the other side does not know the CA of this node's certificate");
}

/// DESIGN §2, *expelled*: open connections are cut within 1 s.
#[tokio::test]
async fn an_expelled_node_is_cut_off_at_once_and_does_not_come_back() {
    let authority = tempfile::tempdir().unwrap();
    let (outcast, peer) = (member(&authority, 2), member(&authority, 3));
    let (address, _heard) = listen(&peer).await;
    let (_, events) = reach(&outcast, &peer, address);
    let (up, events) = next(events).await;
    assert!(matches!(up, Event::LinkUp { .. }), "{up:?}");

    let began = Instant::now();
    peer.expelled.send_replace(BTreeSet::from([outcast.me.node]));
    // It looks whether the peer lives before it says that the link is down: that one refuses it.
    assert_eq!(names(events, 1).await, ["down"]);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let error = why(handshake(&outcast.me, peer.me.node, address).await);
    assert_eq!(error, "the other side says that this node was expelled");
}

#[tokio::test]
async fn a_connection_to_a_node_that_is_expelled_ends() {
    let authority = tempfile::tempdir().unwrap();
    let (me, outcast) = (member(&authority, 2), member(&authority, 3));
    let (address, _heard) = listen(&outcast).await;
    let (_, events) = reach(&me, &outcast, address);
    let (up, events) = next(events).await;
    assert!(matches!(up, Event::LinkUp { .. }), "{up:?}");
    me.expelled.send_replace(BTreeSet::from([outcast.me.node]));
    assert_eq!(names(events, 1).await, ["down"]);
}

#[tokio::test]
async fn who_says_hello_for_another_node_than_its_certificate_names_is_sent_away() {
    let authority = tempfile::tempdir().unwrap();
    let (peer, liar) = (member(&authority, 3), member(&authority, 4));
    let (address, heard) = listen(&peer).await;
    let pretended = LinkIdentity { node: NodeId::from_u128(2), ..liar.me.clone() };
    handshake(&pretended, peer.me.node, address).await.map(drop).unwrap_err();
    handshake(&liar.me, peer.me.node, address).await.map(drop).unwrap();
    let (event, _) = next(heard).await;
    assert!(matches!(event, Event::Called { peer, .. } if peer == liar.me.node), "{event:?}");
}

#[tokio::test]
async fn what_does_not_speak_tls_gets_no_word() {
    let authority = tempfile::tempdir().unwrap();
    let peer = member(&authority, 3);
    let (address, heard) = listen(&peer).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut hello = BytesMut::new();
    peer.me.hello(false).encode_into(&mut hello);
    stream.write_all(&hello).await.unwrap();
    let mut answer = Vec::new();
    // An alert of TLS at most, and then the end, by whatever way.
    let _ = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("it is sent away");
    assert!(answer.len() < 16, "{answer:?}");
    assert!(heard.try_recv().is_err());
}

#[tokio::test]
async fn members_of_different_incarnations_are_told_so_on_both_sides() {
    let authority = tempfile::tempdir().unwrap();
    let (mut survivor, old) = (member(&authority, 2), member(&authority, 3));
    survivor.me.incarnation = 2;
    let (address, heard) = listen(&survivor).await;
    let error = why(handshake(&old.me, survivor.me.node, address).await);
    assert!(error.starts_with("incompatible incarnation: the cluster was recovered without this node"), "{error}");
    assert!(error.contains("incarnation 1") && error.contains("is of 2"), "{error}");
    let (address, old_heard) = listen(&old).await;
    let error = why(handshake(&survivor.me, old.me.node, address).await);
    assert!(error.contains("is of incarnation 1 and was given up"), "{error}");
    assert!(heard.try_recv().is_err() && old_heard.try_recv().is_err(), "neither was heard");
}

#[tokio::test]
async fn a_member_that_was_given_up_is_refused_whatever_incarnation_it_claims() {
    let authority = tempfile::tempdir().unwrap();
    let (survivor, old) = (member(&authority, 2), member(&authority, 3));
    survivor.lost.send_replace(BTreeSet::from([old.me.node]));
    let (address, heard) = listen(&survivor).await;
    // It is told by the end of the connection.
    let _ = handshake(&old.me, survivor.me.node, address).await;
    let error = why(handshake(&survivor.me, old.me.node, listen(&old).await.0).await);
    assert!(error.contains("was given up when the cluster was recovered"), "{error}");
    assert!(heard.try_recv().is_err(), "it was not heard");
}
