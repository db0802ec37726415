//! Gossip: sealed datagrams, what members say in them, the file with the keys.

use crate::link::id;
use quorate_membership::seal::{Key, KeyId, KeyRing, Rejected, Seal};
use quorate_membership::swim::{self, Effect, Gossip, Input, Options, Peer};
use quorate_model::time::Timestamp;
use std::net::SocketAddr;
use std::time::Duration;

const SEALED: u8 = 0;
const SAID: u8 = 1;
const KEYS: u8 = 2;

/// The first byte says what the rest is: a datagram; what members say, each word after its length (two
/// bytes) and its sender (one); or a file of keys.
///
/// # Panics
/// When a datagram opens twice, when gossip's own picture and the library's differ after a word, or when
/// keys are others after they were written again.
pub fn gossip(data: &[u8]) -> bool {
    match data.split_first() {
        Some((&SEALED, datagram)) => sealed(datagram),
        Some((&SAID, words)) => said(words),
        Some((&KEYS, text)) => std::str::from_utf8(text).is_ok_and(keys),
        _ => false,
    }
}

fn ring() -> KeyRing {
    KeyRing::new(Key { id: KeyId(1), secret: [7; 32] })
}

fn sealed(datagram: &[u8]) -> bool {
    let mut seal = Seal::new(id(1), 1, ring());
    let opens = seal.open(datagram).is_ok();
    if opens {
        assert_eq!(seal.open(datagram), Err(Rejected::Replayed), "a datagram opens twice");
    }
    opens
}

fn said(mut words: &[u8]) -> bool {
    let mut gossip = node(1);
    let mut heard = false;
    let mut effects = Vec::new();
    for turn in 1.. {
        let Some((head, rest)) = words.split_at_checked(3) else { break };
        let length = usize::from(u16::from_be_bytes([head[0], head[1]])).min(rest.len());
        let (word, rest) = rest.split_at(length);
        words = rest;
        let from = u128::from(head[2]);
        let input = Input::Received { from: id(from), address: address(from), payload: word.to_vec() };
        // A quarter of a second between two words, so that probes end between them.
        for input in [input, Input::Wake] {
            gossip.step(at(turn * 250), input, &mut effects);
            gossip.check();
        }
        heard = true;
    }
    heard && words.is_empty() && gossip.refused() == 0
}

fn keys(text: &str) -> bool {
    let Ok(ring) = KeyRing::from_text(text) else { return false };
    assert_eq!(KeyRing::from_text(&ring.to_text()), Ok(ring), "keys changed when they were written and read");
    true
}

fn at(ms: u64) -> Timestamp {
    Timestamp(Duration::from_millis(ms))
}

fn address(node: u128) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7_000 + (node % 1_000) as u16))
}

fn node(number: u128) -> Gossip {
    let options =
        Options { me: id(number), generation: 1, seed: 1, local_health: true, shown_after: swim::SHOWN_AFTER };
    Gossip::new(options, at(0))
}

/// What the real encoders write.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let datagram = Seal::new(id(2), 9, ring()).seal(id(1), b"hello");
    let mut seeds = vec![[&[SEALED][..], &datagram].concat(), [&[KEYS][..], ring().to_text().as_bytes()].concat()];
    let words = words();
    // Short ones, and the whole of it.
    seeds.extend(words.chunks(4).take(3).chain([&words[..]]).map(|words| {
        let mut seed = vec![SAID];
        for (from, word) in words {
            seed.extend((word.len() as u16).to_be_bytes());
            seed.push(*from as u8);
            seed.extend(word);
        }
        seed
    }));
    seeds
}

/// All that node 1 hears of nodes 2 to 4 while they find each other, probe each other, one of them falls
/// silent and one leaves.
fn words() -> Vec<(u128, Vec<u8>)> {
    let numbers = [1, 2, 3, 4];
    let mut nodes = numbers.map(node);
    let peers: Vec<Peer> =
        numbers.iter().map(|number| Peer { node: id(*number), generation: 1, address: address(*number) }).collect();
    let mut heard = Vec::new();
    for ms in (0..4_000).step_by(10) {
        for number in numbers {
            let input = match (ms, number) {
                (0, _) => Input::Peers(peers.clone()),
                (1_500, 3) => Input::Leave,
                _ => Input::Wake,
            };
            let mut inputs = vec![(number, input)];
            while let Some((to, input)) = inputs.pop() {
                if to == 4 && ms > 2_000 {
                    continue;
                }
                let mut effects = Vec::new();
                nodes[to as usize - 1].step(at(ms), input, &mut effects);
                for effect in effects {
                    let Effect::Send { to: receiver, payload, .. } = effect else { continue };
                    if receiver == id(1) {
                        heard.push((to, payload.clone()));
                    }
                    let receiver = numbers.into_iter().find(|number| id(*number) == receiver).expect("one of them");
                    inputs.push((receiver, Input::Received { from: id(to), address: address(to), payload }));
                }
            }
        }
    }
    heard
}
