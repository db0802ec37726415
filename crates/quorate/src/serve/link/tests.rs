//! Two ends of a link over real sockets.

use super::super::inbox::inbox;
use super::*;
use crate::cli::screen::wall_now;
use crate::trust::{Founder, NodeFiles, lay_out};
use quorate_model::time::WallTime;
use quorate_node::wire::{GossipKeys, Ping, SnapshotHead};
use quorate_trust::ca::Ca;
use quorate_trust::key::NodeKey;
use std::collections::BTreeSet;
use std::sync::mpsc::Receiver;
use tokio::sync::watch;

const DEADLINE: Duration = Duration::from_secs(10);
const CLUSTER: u128 = 1;

/// A node with a certificate of the authority in a directory.
pub(in crate::serve) struct Member {
    pub(in crate::serve) me: LinkIdentity,
    pub(in crate::serve) expelled: watch::Sender<BTreeSet<NodeId>>,
    lost: watch::Sender<BTreeSet<NodeId>>,
    files: NodeFiles,
}

pub(in crate::serve) fn member(authority: &tempfile::TempDir, node: u128) -> Member {
    let (cluster, node) = (ClusterId::from_u128(CLUSTER), NodeId::from_u128(node));
    let home = authority.path().join(node.to_string());
    lay_out(authority.path(), cluster, &[Founder { node, data_dir: &home, host: [127, 0, 0, 1].into() }]).unwrap();
    let (expelled, seen) = watch::channel(BTreeSet::new());
    let files = NodeFiles::read(&home).unwrap();
    let tls = LinkTls::of(&files, cluster, node, seen).unwrap();
    let link = SocketAddr::from(([127, 0, 0, 1], 1));
    let (lost, lost_seen) = watch::channel(BTreeSet::new());
    let (tls, beside) = (Arc::new(tls), Beside::new().0);
    let newer = watch::Sender::new(1);
    let me = LinkIdentity {
        cluster,
        node,
        link,
        version: wire::VERSION,
        incarnation: 1,
        newer,
        lost: lost_seen,
        tls,
        beside,
        away: Away::default(),
    };
    Member { me, expelled, lost, files }
}

/// The same files with another certificate: of `authority`, for `node`, made `days` ago.
fn with_certificate(files: &NodeFiles, authority: &Ca, node: NodeId, days: u64) -> NodeFiles {
    let key = NodeKey::generate().unwrap();
    let made = WallTime(wall_now().0 - days * 86_400_000_000);
    let certificate = authority.issue(&key.request().unwrap(), node, &[], made, 7).unwrap();
    NodeFiles { certificate, key: Arc::new(key), ..files.clone() }
}

fn authority_in(dir: &tempfile::TempDir) -> Ca {
    let read = |name| std::fs::read_to_string(dir.path().join("tls").join(name)).unwrap();
    Ca::from_pem(&read("ca.crt"), &read("ca.key")).unwrap()
}

#[derive(Clone)]
struct NoBulk;

impl BulkReceiver for NoBulk {
    async fn receive(&self, _: NodeId, _: Accepted) {}
}

/// Accepts for `member`, and gives what it hears.
async fn listen(member: &Member) -> (SocketAddr, Receiver<Event>) {
    let (address, events, _) = listen_for_all(member).await;
    (address, events)
}

/// The same, and who is turned away.
async fn listen_for_all(member: &Member) -> (SocketAddr, Receiver<Event>, mpsc::Receiver<TurnedAway>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (inbox, events) = inbox();
    let (refused, turned_away) = mpsc::channel(16);
    tokio::spawn(accept(listener, member.me.clone(), inbox, NoBulk, refused));
    (address, events, turned_away)
}

/// Dials from `member`, and gives what comes of it.
fn reach(member: &Member, peer: &Member, address: SocketAddr) -> (Arc<Outbox>, Receiver<Event>) {
    let outbox = Arc::new(Outbox::new(member.me.away.clone()));
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
    Body::Hello(peer.me.hello(false)).encode_into(&mut hello);
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
async fn n4_a_node_that_is_away_neither_speaks_nor_hears_and_its_links_are_made_anew() {
    let authority = tempfile::tempdir().unwrap();
    let (drilled, peer) = (member(&authority, 2), member(&authority, 3));
    let (peer_at, peer_hears) = listen(&peer).await;
    let (drilled_at, drilled_hears) = listen(&drilled).await;
    let (to_peer, from_drilled) = reach(&drilled, &peer, peer_at);
    let (to_drilled, from_peer) = reach(&peer, &drilled, drilled_at);
    let frame = |term: u64| [Body::Snapshot(SnapshotHead { term, manifest: Bytes::new() })].into_iter();
    let mut ends = Vec::new();
    for (outbox, dials, hears) in [(to_peer, from_drilled, peer_hears), (to_drilled, from_peer, drilled_hears)] {
        let (up, dials) = next(dials).await;
        let (called, hears) = next(hears).await;
        assert!(matches!((&up, &called), (Event::LinkUp { .. }, Event::Called { .. })), "{up:?} {called:?}");
        ends.push((outbox, dials, hears));
    }
    drilled.me.away.go(Duration::ZERO, Duration::from_secs(1));
    ends.iter().for_each(|(outbox, ..)| outbox.send(frame(1)));
    assert_eq!(why(handshake(&drilled.me, peer.me.node, peer_at).await), "this node is away for a drill");
    for (outbox, dials, hears) in ends {
        let (up, _dials) = next(dials).await;
        assert!(matches!(up, Event::LinkUp { .. }), "nobody was told that it ended: {up:?}");
        outbox.send(frame(2));
        let (called, hears) = next(hears).await;
        let (heard, _hears) = next(hears).await;
        let is_second = |message: &Body| frame(2).next().as_ref() == Some(message);
        assert!(matches!(called, Event::Called { .. }), "what was said meanwhile is lost: {called:?}");
        assert!(matches!(&heard, Event::Received { message, .. } if is_second(message)), "{heard:?}");
    }
    assert!(!drilled.me.away.is_now());
}

#[tokio::test]
async fn a_node_of_another_authority_is_not_let_in_and_both_sides_know_why() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (peer, stranger) = (member(&ours, 3), member(&theirs, 4));
    let (address, _heard) = listen(&peer).await;
    let error = why(handshake(&stranger.me, peer.me.node, address).await);
    assert!(
        error.starts_with("the other side is refused: its certificate is not from the CA of this cluster"),
        "{error}"
    );
    // One that believes everybody is refused by the other side.
    let mut forged = member(&theirs, 2);
    let home = theirs.path().join(forged.me.node.to_string());
    std::fs::copy(ours.path().join("tls/ca.crt"), home.join("tls/ca.crt")).unwrap();
    let files = NodeFiles::read(&home).unwrap();
    let tls = LinkTls::of(&files, forged.me.cluster, forged.me.node, forged.expelled.subscribe()).unwrap();
    forged.me.tls = Arc::new(tls);
    let error = why(handshake(&forged.me, peer.me.node, address).await);
    assert!(error.starts_with("the other side does not know the CA of this node's certificate"), "{error}");
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
async fn a_node_of_another_version_is_refused_with_both_versions_named_on_both_sides() {
    let authority = tempfile::tempdir().unwrap();
    let (mut newer, old) = (member(&authority, 2), member(&authority, 3));
    newer.me.version = wire::VERSION + 1;
    let named = |here: u32, there: u32, said: &str| {
        let words = [format!("speaks version {here} of the link"), format!("version {there}: install the same")];
        words.iter().for_each(|words| assert!(said.contains(words), "no `{words}` in `{said}`"));
    };
    let (address, heard, mut refused) = listen_for_all(&newer).await;
    named(wire::VERSION, wire::VERSION + 1, &why(handshake(&old.me, newer.me.node, address).await));
    named(wire::VERSION + 1, wire::VERSION, &refused.recv().await.unwrap().1);
    assert!(heard.try_recv().is_err(), "it was not heard");
}

/// That it was expelled is said in the handshake, before anybody speaks of versions: else one that was upgraded,
/// or that others left behind, would never hear of it and run for ever what runs elsewhere by now.
#[tokio::test]
async fn an_expelled_node_of_another_version_is_told_that_it_is_expelled() {
    for version in [wire::VERSION + 1, wire::VERSION - 1] {
        let authority = tempfile::tempdir().unwrap();
        let (mut outcast, peer) = (member(&authority, 2), member(&authority, 3));
        outcast.me.version = version;
        let (address, heard, mut turned_away) = listen_for_all(&peer).await;
        let error = why(handshake(&outcast.me, peer.me.node, address).await);
        assert!(error.starts_with("incompatible version"), "as long as it is a member: {error}");
        assert!(turned_away.recv().await.unwrap().1.starts_with("incompatible version"));
        peer.expelled.send_replace(BTreeSet::from([outcast.me.node]));
        let (_, events) = reach(&outcast, &peer, address);
        let (event, _) = next(events).await;
        assert!(matches!(event, Event::Expelled { by } if by == peer.me.node), "{event:?}");
        assert_eq!(turned_away.recv().await.unwrap().1, "the other side is refused: it was expelled from this cluster");
        assert!(heard.try_recv().is_err(), "it was not heard");
    }
}

#[tokio::test]
async fn a_node_knows_those_of_another_authority_whoever_of_the_two_does_not_believe_the_other() {
    let (authority, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (me, peer, _) = (member(&authority, 2), member(&authority, 3), member(&other, 4));
    let (old, new) = (authority_in(&authority), authority_in(&other));
    let believing = |side: &Member, authorities: &[&Ca]| {
        let authorities = authorities.iter().map(|ca| ca.certificate().clone()).collect();
        NodeFiles { authorities, ..side.files.clone() }
    };
    let theirs = with_certificate(&believing(&peer, &[&new]), &new, peer.me.node, 0);
    peer.me.tls.put_in_force(&theirs).unwrap();
    let (address, heard) = listen(&peer).await;
    // It missed the rotation, or all of it but the first step.
    for believes in [&[&old][..], &[&old, &new]] {
        me.me.tls.put_in_force(&believing(&me, believes)).unwrap();
        let (_, events) = reach(&me, &peer, address);
        let (event, _) = next(events).await;
        assert!(matches!(event, Event::Stranger { peer: node } if node == peer.me.node), "{event:?}");
    }
    assert!(heard.try_recv().is_err());
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
    Body::Hello(peer.me.hello(false)).encode_into(&mut hello);
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
    assert!(error.starts_with("incompatible incarnation: this node is of 1 and node"), "{error}");
    assert!(error.contains("of 2: the cluster was recovered without this one"), "{error}");
    assert_eq!(*old.me.newer.borrow(), 2, "it knows what it would have to follow");
    let (address, old_heard) = listen(&old).await;
    let error = why(handshake(&survivor.me, old.me.node, address).await);
    assert!(error.contains("is of 1 and this one of 2, since the cluster was recovered"), "{error}");
    assert!(heard.try_recv().is_err() && old_heard.try_recv().is_err(), "neither was heard");
}

#[tokio::test]
async fn a_node_that_runs_twice_is_heard_once_and_the_other_is_told_where() {
    let authority = tempfile::tempdir().unwrap();
    let (mine, peer) = (member(&authority, 2), member(&authority, 3));
    let (address, _heard, mut refused) = listen_for_all(&mine).await;
    let first = handshake(&peer.me, mine.me.node, address).await.unwrap();
    let said = why(handshake(&peer.me, mine.me.node, address).await);
    assert!(said.contains("is heard from 127.0.0.1:") && said.contains("does it run twice"), "{said}");
    assert_eq!(refused.recv().await.unwrap().1, said);
    // A connection for a snapshot is beside it.
    connect_bulk(&peer.me, mine.me.node, &[address]).await.unwrap();
    // When the first has ended, or is silent, the other takes its place.
    drop(first);
    let deadline = Instant::now() + DEADLINE;
    while let Err(error) = handshake(&peer.me, mine.me.node, address).await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::task::yield_now().await;
    }
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
    assert!(error.contains("is of 1 and this one of 1, since the cluster was recovered"), "{error}");
    assert!(heard.try_recv().is_err(), "it was not heard");
}

#[tokio::test]
async fn a_ping_is_answered_on_the_link_back_and_keys_of_gossip_do_not_reach_the_core() {
    let authority = tempfile::tempdir().unwrap();
    let (mut me, mut peer) = (member(&authority, 2), member(&authority, 3));
    let (mine, mut heard) = Beside::new();
    let (theirs, mut heard_there) = Beside::new();
    (me.me.beside, peer.me.beside) = (mine.clone(), theirs.clone());
    let ((there, _events_there), (back, _events_back)) = (listen(&peer).await, listen(&me).await);
    for (from, to, address) in [(&me, &peer, there), (&peer, &me, back)] {
        let (outbox, events) = reach(from, to, address);
        from.me.beside.add(to.me.node, outbox);
        let (event, _) = next(events).await;
        assert!(matches!(event, Event::LinkUp { .. }), "{event:?}");
    }
    assert!(matches!(heard_there.keys.recv().await, Some(KeyNews::LinkUp(node)) if node == me.me.node));
    mine.say(peer.me.node, Body::Ping(Ping { is_answer: false }));
    let answered = tokio::time::timeout(DEADLINE, heard.answered.recv()).await.unwrap();
    assert_eq!(answered, Some(peer.me.node));
    mine.say_to_all(&Body::GossipKeys(GossipKeys { ring: "1 2".into() }));
    let news = tokio::time::timeout(DEADLINE, heard_there.keys.recv()).await.unwrap();
    assert!(matches!(news, Some(KeyNews::Ring { from, text }) if from == me.me.node && text == "1 2"));
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_new_connections_and_leaves_open_ones_alone() {
    let authority = tempfile::tempdir().unwrap();
    let (me, peer) = (member(&authority, 2), member(&authority, 3));
    let (address, mut heard) = listen(&peer).await;
    let (outbox, events) = reach(&me, &peer, address);
    assert_eq!(names(events, 1).await, ["up"]);
    let (event, back) = next(heard).await;
    assert!(matches!(event, Event::Called { .. }), "{event:?}");
    heard = back;
    // For bulk: what a node says it says on one connection.
    let shown = async || {
        let stream = connect_bulk(&me.me, peer.me.node, &[address]).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let before = shown().await;
    assert_eq!(before, peer.files.certificate.chain()[0]);

    let renewed = with_certificate(&peer.files, &authority_in(&authority), peer.me.node, 0);
    peer.me.tls.put_in_force(&renewed).unwrap();
    let after = shown().await;
    assert_eq!(after, renewed.certificate.chain()[0]);
    assert_ne!(after, before);
    // What is said on the connection of before arrives.
    outbox.send(std::iter::once(Body::Snapshot(SnapshotHead { term: 7, manifest: Bytes::new() })));
    loop {
        let (event, back) = next(heard).await;
        heard = back;
        match event {
            Event::Called { .. } => {}
            Event::Received { message: Body::Snapshot(head), .. } => break assert_eq!(head.term, 7),
            other => panic!("{other:?}"),
        }
    }
    // One that is not this node's changes nothing.
    let wrong = with_certificate(&peer.files, &authority_in(&authority), NodeId::from_u128(9), 0);
    peer.me.tls.put_in_force(&wrong).unwrap_err();
    assert_eq!(shown().await, after);
}

#[tokio::test]
async fn when_an_authority_is_dropped_connections_are_made_anew_and_its_certificates_are_refused() {
    let (authority, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (me, peer, _) = (member(&authority, 2), member(&authority, 3), member(&other, 4));
    let (old, new) = (authority_in(&authority), authority_in(&other));
    let both = vec![old.certificate().clone(), new.certificate().clone()];
    for side in [&me, &peer] {
        side.me.tls.put_in_force(&NodeFiles { authorities: both.clone(), ..side.files.clone() }).unwrap();
    }
    let (address, _heard) = listen(&peer).await;
    let (_, mut events) = reach(&me, &peer, address);
    let (up, back) = next(events).await;
    assert!(matches!(up, Event::LinkUp { .. }), "{up:?}");
    events = back;
    // Both have certificates of the new one now; the connection of before goes on.
    let renewed = |side: &Member| {
        let files = NodeFiles { authorities: both.clone(), ..side.files.clone() };
        with_certificate(&files, &new, side.me.node, 0)
    };
    let [mine, theirs] = [&me, &peer].map(|side| {
        let files = renewed(side);
        side.me.tls.put_in_force(&files).unwrap();
        files
    });
    assert!(events.try_recv().is_err());
    // One forgets the old authority: the connection, which may be of it, ends and is made anew.
    let forget = |files: &NodeFiles| NodeFiles { authorities: vec![new.certificate().clone()], ..files.clone() };
    peer.me.tls.put_in_force(&forget(&theirs)).unwrap();
    let (up, _events) = next(events).await;
    assert!(matches!(up, Event::LinkUp { .. }), "{up:?}");
    // Who missed it is a stranger, and is told what may have happened.
    let late = member(&authority, 5);
    let late_believes = NodeFiles { authorities: both, ..late.files.clone() };
    late.me.tls.put_in_force(&late_believes).unwrap();
    let error = why(handshake(&late.me, peer.me.node, address).await);
    assert!(error.contains("does not know the CA") && error.contains("cert show"), "{error}");
    me.me.tls.put_in_force(&forget(&mine)).unwrap();
    handshake(&me.me, peer.me.node, address).await.map(drop).unwrap();
}

#[tokio::test]
async fn certificates_that_ended_or_name_another_node_are_refused_with_the_reason_on_both_sides() {
    let authority = tempfile::tempdir().unwrap();
    let (me, peer) = (member(&authority, 2), member(&authority, 3));
    let ca = authority_in(&authority);
    let (address, heard, mut turned_away) = listen_for_all(&peer).await;
    me.me.tls.put_in_force(&with_certificate(&me.files, &ca, me.me.node, 31)).unwrap();
    let error = why(handshake(&me.me, peer.me.node, address).await);
    assert_eq!(
        error,
        "the other side says that this node's certificate is expired or not valid yet: compare the clocks"
    );
    let (from, reason) = tokio::time::timeout(DEADLINE, turned_away.recv()).await.unwrap().unwrap();
    assert!(from.ip().is_loopback() && reason.contains("its certificate expired 1d ago"), "{reason}");
    me.me.tls.put_in_force(&me.files).unwrap();
    peer.me.tls.put_in_force(&with_certificate(&peer.files, &ca, peer.me.node, 31)).unwrap();
    let error = why(handshake(&me.me, peer.me.node, address).await);
    assert!(error.starts_with("the other side is refused: its certificate expired 1d ago"), "{error}");
    // Who answers is a member, and another one than was dialled.
    peer.me.tls.put_in_force(&peer.files).unwrap();
    let error = why(handshake(&me.me, NodeId::from_u128(9), address).await);
    assert!(error.starts_with("the other side is refused: it is node") && error.contains("not 0000"), "{error}");
    assert!(heard.try_recv().is_err(), "nobody got in");
}
