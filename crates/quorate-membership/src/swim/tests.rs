use super::protocol::{read_frame, write_frame, write_left, write_message};
use super::*;

fn node(number: u128) -> NodeId {
    NodeId::from_u128(number)
}

fn at(ms: u64) -> Timestamp {
    Timestamp(Duration::from_millis(ms))
}

fn address(number: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], number))
}

fn identity(number: u128, generation: u64) -> Identity {
    Identity { node: node(number), generation, renewal: 0 }
}

/// Node 1 in its third generation.
fn gossip() -> Gossip {
    let shown_after = SHOWN_AFTER;
    Gossip::new(Options { me: node(1), generation: 3, seed: 1, local_health: true, shown_after }, at(0))
}

/// What node 2, in `generation`, says to node 1.
fn said(generation: u64, message: Message<Identity>, broadcast: Option<&[u8]>) -> Vec<u8> {
    let header = Header { src: identity(2, generation), src_incarnation: 0, dst: identity(1, 3), message };
    write_frame(None, &write_message(&header, broadcast))
}

fn hear(gossip: &mut Gossip, from: u128, payload: Vec<u8>) -> Vec<Effect> {
    let mut out = Vec::new();
    gossip.step(at(1), Input::Received { from: node(from), address: address(2), payload }, &mut out);
    gossip.check();
    out
}

fn changes(effects: &[Effect]) -> Vec<(NodeId, u64, Rumor)> {
    let change = |effect: &Effect| match effect {
        Effect::Changed { node, generation, rumor } => Some((*node, *generation, *rumor)),
        Effect::Send { .. } | Effect::ProbeOverStream { .. } => None,
    };
    effects.iter().filter_map(change).collect()
}

#[test]
fn an_identity_is_short_and_the_newer_one_wins() {
    let mut bytes = Vec::new();
    let header = Header { src: identity(2, 1), src_incarnation: 0, dst: identity(1, 3), message: Message::Announce };
    bytes.extend(write_message(&header, None));
    assert_eq!(bytes.len(), 26 + 2 + 26 + 1);
    let renewed = foca::Identity::renew(&identity(2, 1)).unwrap();
    assert!(foca::Identity::win_addr_conflict(&renewed, &identity(2, 1)));
    assert!(foca::Identity::win_addr_conflict(&identity(2, 2), &renewed));
    assert_eq!(foca::Identity::renew(&Identity { renewal: u16::MAX, ..renewed }), None);
}

#[test]
fn a_frame_is_read_as_it_was_written() {
    let notice = Notice { suspect: identity(7, 9), incarnation: 4 };
    for notice in [None, Some(notice)] {
        let frame = write_frame(notice, b"message");
        assert_eq!(read_frame(&frame), Ok((notice, &b"message"[..])));
    }
    assert!(read_frame(b"").is_err() && read_frame(b"\x02").is_err() && read_frame(b"\x01short").is_err());
}

#[test]
fn what_makes_no_sense_is_counted_and_changes_nothing() {
    let mut gossip = gossip();
    let message = said(1, Message::Gossip, None);
    // What is missing at the end may be the count of members, but not half of it.
    let lengths = (0..message.len() - 2).chain([message.len() - 1]);
    for length in lengths {
        assert_eq!(hear(&mut gossip, 2, message[..length].to_vec()), [], "cut to {length}");
    }
    assert_eq!(gossip.refused(), message.len() as u64 - 1);
}

#[test]
fn a_member_speaks_for_itself_only() {
    let mut gossip = gossip();
    assert_eq!(hear(&mut gossip, 3, said(1, Message::Gossip, None)), []);
    assert_eq!(gossip.refused(), 1);
    assert_eq!(changes(&hear(&mut gossip, 2, said(1, Message::Gossip, None))), [(node(2), 1, Rumor::Alive)]);
}

#[test]
fn an_older_generation_that_left_does_not_take_the_newer_one_along() {
    let mut gossip = gossip();
    hear(&mut gossip, 2, said(5, Message::Gossip, None));
    let left = |generation| said(5, Message::Gossip, Some(&write_left(node(2), generation)));
    assert_eq!(changes(&hear(&mut gossip, 2, left(4))), []);
    assert_eq!(changes(&hear(&mut gossip, 2, left(5))), [(node(2), 5, Rumor::Left)]);
    assert_eq!(changes(&hear(&mut gossip, 2, said(5, Message::Gossip, None))), [], "it has left");
    assert_eq!(changes(&hear(&mut gossip, 2, said(6, Message::Gossip, None))), [(node(2), 6, Rumor::Alive)]);
    let late = said(6, Message::Gossip, Some(&write_left(node(2), 5)));
    assert_eq!(changes(&hear(&mut gossip, 2, late)), []);
}

#[test]
fn nobody_else_says_that_a_node_has_left_to_that_node() {
    let mut gossip = gossip();
    let left = said(5, Message::Gossip, Some(&write_left(node(1), 3)));
    assert_eq!(changes(&hear(&mut gossip, 2, left)), [(node(2), 5, Rumor::Alive)]);
    assert!(gossip.next_wake().is_some());
}

#[test]
fn a_suspect_that_is_told_denies_it_at_once() {
    let mut gossip = gossip();
    hear(&mut gossip, 2, said(5, Message::Gossip, None));
    for suspect in [identity(1, 3), identity(1, 2)] {
        let notice = Notice { suspect, incarnation: 0 };
        let header = Header { src: identity(2, 5), src_incarnation: 0, dst: suspect, message: Message::Gossip };
        let frame = write_frame(Some(notice), &write_message(&header, None));
        let effects = hear(&mut gossip, 2, frame);
        let to_it = effects.iter().filter(|effect| matches!(effect, Effect::Send { to, .. } if *to == node(2)));
        assert!(to_it.count() >= 1, "{suspect:?}");
    }
    assert_eq!(gossip.notes.lock().incarnation, 1, "only what is said of this life is denied with a new incarnation");
}

#[test]
fn the_generation_grows_and_never_shrinks() {
    let mut gossip = gossip();
    let mut out = Vec::new();
    gossip.step(at(1), Input::Generation(2), &mut out);
    assert_eq!(gossip.generation(), 3);
    gossip.step(at(1), Input::Generation(8), &mut out);
    assert_eq!(gossip.generation(), 8);
}

#[test]
fn decided_addresses_come_before_those_that_datagrams_show() {
    let mut gossip = gossip();
    hear(&mut gossip, 2, said(1, Message::Gossip, None));
    let sent_to = |gossip: &mut Gossip| {
        let effects = hear(gossip, 2, said(1, Message::Ping(1), None));
        let address = |effect| match effect {
            Effect::Send { address, .. } => Some(address),
            _ => None,
        };
        effects.into_iter().find_map(address)
    };
    assert_eq!(sent_to(&mut gossip), Some(address(2)));
    for (generation, port, expected) in [(4, 40, 40), (3, 30, 40), (5, 50, 50)] {
        let peer = Peer { node: node(2), generation, address: address(port) };
        gossip.step(at(1), Input::Peers(vec![peer]), &mut Vec::new());
        assert_eq!(sent_to(&mut gossip), Some(address(expected)));
    }
}

#[test]
fn a_suspicion_is_shown_after_as_long_as_the_operator_wants() {
    for (wanted, shown) in [(2_000, 2_000), (0, 300)] {
        let options = Options {
            me: node(1),
            generation: 3,
            seed: 1,
            local_health: true,
            shown_after: Duration::from_millis(wanted),
        };
        let mut gossip = Gossip::new(options, at(0));
        hear(&mut gossip, 2, said(5, Message::Gossip, None));
        let (mut suspected, mut told) = (None, None);
        for ms in 0..4_000 {
            let mut out = Vec::new();
            gossip.step(at(ms), Input::Wake, &mut out);
            if suspected.is_none() && gossip.members[&node(2)].state == State::Suspect {
                suspected = Some(ms);
            }
            if changes(&out).contains(&(node(2), 5, Rumor::Unreachable)) {
                told = Some(ms);
            }
        }
        assert_eq!(told.unwrap() - suspected.unwrap(), shown);
    }
}
