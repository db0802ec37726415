use super::*;

fn node(number: u128) -> NodeId {
    NodeId::from_u128(number)
}

fn key(id: u32) -> Key {
    Key { id: KeyId(id), secret: [id as u8; 32] }
}

fn seal(number: u128, epoch: u64) -> Seal {
    Seal::new(node(number), epoch, KeyRing::new(key(1)))
}

fn rejections(seal: &Seal) -> u64 {
    seal.rejected().values().sum()
}

#[test]
fn what_was_sealed_for_a_node_opens_there_once() {
    let (mut one, mut two) = (seal(1, 7), seal(2, 8));
    let datagram = one.seal(node(2), b"hello");
    assert_eq!(datagram.len(), 5 + OVERHEAD);
    assert!(!datagram.windows(5).any(|bytes| bytes == b"hello"), "it can be read on its way");
    assert_eq!(two.open(&datagram), Ok(Opened { from: node(1), payload: b"hello".to_vec() }));
    assert_eq!(two.open(&datagram), Err(Rejected::Replayed));
    assert_eq!(two.rejected()[&Rejected::Replayed], 1);
}

#[test]
fn a_datagram_says_nothing_to_another_node_and_nothing_to_its_sender() {
    let (mut one, mut three) = (seal(1, 7), seal(3, 9));
    let datagram = one.seal(node(2), b"hello");
    assert_eq!(three.open(&datagram), Err(Rejected::Forged));
    assert_eq!(one.open(&datagram), Err(Rejected::FromMyself));
}

#[test]
fn a_datagram_that_was_changed_in_any_bit_does_not_open() {
    let (mut one, mut two) = (seal(1, 7), seal(2, 8));
    let datagram = one.seal(node(2), b"hello");
    for bit in 0..datagram.len() * 8 {
        let mut changed = datagram.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(two.open(&changed).is_err(), "bit {bit}");
    }
    for length in 0..datagram.len() {
        assert!(two.open(&datagram[..length]).is_err(), "cut to {length}");
    }
    assert_eq!(rejections(&two), (datagram.len() * 9) as u64);
    assert!(two.open(&datagram).is_ok(), "forgeries made a real datagram look old");
}

#[test]
fn datagrams_may_overtake_each_other_but_not_by_much() {
    let (mut one, mut two) = (seal(1, 7), seal(2, 8));
    let datagrams: Vec<_> = (0..200_u8).map(|number| one.seal(node(2), &[number])).collect();
    assert!(two.open(&datagrams[150]).is_ok());
    assert!(two.open(&datagrams[149]).is_ok());
    assert!(two.open(&datagrams[23]).is_ok());
    assert_eq!(two.open(&datagrams[22]), Err(Rejected::Replayed));
}

#[test]
fn a_node_that_was_started_again_is_heard_and_its_earlier_life_is_not_replayed() {
    let mut two = seal(2, 8);
    let before = seal(1, 7).seal(node(2), b"before");
    assert!(two.open(&before).is_ok());
    let after = seal(1, 70).seal(node(2), b"after");
    assert!(two.open(&after).is_ok());
    assert_eq!(two.open(&before), Err(Rejected::Replayed));
    assert_eq!(two.open(&after), Err(Rejected::Replayed));
}

#[test]
fn what_is_remembered_of_a_sender_is_bounded_and_the_one_that_speaks_stays() {
    let (mut one, mut two) = (seal(1, 0), seal(2, 8));
    let first = one.seal(node(2), b"x");
    assert!(two.open(&first).is_ok());
    for epoch in 1..20 {
        assert!(two.open(&seal(1, epoch).seal(node(2), b"y")).is_ok());
        assert!(two.open(&one.seal(node(2), b"x")).is_ok());
        assert!(two.streams[&node(1)].len() <= EPOCHS);
    }
    assert_eq!(two.open(&first), Err(Rejected::Replayed));
    two.forget(node(1));
    assert!(two.streams.is_empty());
}

#[test]
fn keys_are_replaced_without_losing_a_datagram() {
    let (mut one, mut two) = (seal(1, 7), seal(2, 8));
    let exchange = |one: &mut Seal, two: &mut Seal| {
        let there = one.seal(node(2), b"there");
        let back = two.seal(node(1), b"back");
        assert!(two.open(&there).is_ok() && one.open(&back).is_ok());
    };
    exchange(&mut one, &mut two);
    type Change = fn(&mut KeyRing) -> Result<(), RingError>;
    let changes: [Change; 3] =
        [|ring| ring.install(key(2)), |ring| ring.make_use_of(KeyId(2)), |ring| ring.remove(KeyId(1))];
    for change in changes {
        // Never both at once.
        for first in [true, false] {
            let seal = if first { &mut one } else { &mut two };
            let mut ring = seal.ring().clone();
            change(&mut ring).unwrap();
            seal.set_ring(ring);
            exchange(&mut one, &mut two);
        }
    }
    assert_eq!(one.ring().in_use(), KeyId(2));
    let mut expelled = seal(3, 9);
    assert_eq!(two.open(&expelled.seal(node(2), b"hello")), Err(Rejected::UnknownKey));
}

#[test]
fn a_key_of_another_cluster_under_the_same_number_opens_nothing() {
    let mut other = Seal::new(node(1), 7, KeyRing::new(Key { id: KeyId(1), secret: [9; 32] }));
    let mut two = seal(2, 8);
    assert_eq!(two.open(&other.seal(node(2), b"hello")), Err(Rejected::Forged));
}

#[test]
fn a_ring_holds_two_keys_and_keeps_the_one_in_use() {
    let mut ring = KeyRing::new(key(1));
    assert_eq!(ring.make_use_of(KeyId(2)), Err(RingError::Unknown(KeyId(2))));
    ring.install(key(2)).unwrap();
    ring.install(key(2)).unwrap();
    assert_eq!(ring.install(Key { id: KeyId(2), secret: [7; 32] }), Err(RingError::OtherSecret(KeyId(2))));
    assert_eq!(ring.install(key(3)), Err(RingError::Full));
    assert_eq!(ring.remove(KeyId(1)), Err(RingError::InUse(KeyId(1))));
    ring.make_use_of(KeyId(2)).unwrap();
    assert_eq!(ring.ids().collect::<Vec<_>>(), [KeyId(2), KeyId(1)]);
    assert_eq!(KeyRing::from_text(&ring.to_text()), Ok(ring.clone()));
    ring.remove(KeyId(1)).unwrap();
    ring.remove(KeyId(1)).unwrap();
    assert_eq!(ring.ids().collect::<Vec<_>>(), [KeyId(2)]);
}

#[test]
fn a_text_that_is_no_ring_is_refused_without_showing_what_is_in_it() {
    let secret = "ab".repeat(32);
    for (text, why) in [
        (String::new(), BadRing::Empty),
        (format!("# comment\n\n1 {}", &secret[1..]), BadRing::Line { line: 3 }),
        (format!("x {secret}"), BadRing::Line { line: 1 }),
        (format!("1 {}é", &secret[2..]), BadRing::Line { line: 1 }),
        (secret.clone(), BadRing::Line { line: 1 }),
        (format!("1 {secret}\n2 {secret}\n3 {secret}"), BadRing::Ring(RingError::Full)),
    ] {
        let refused = KeyRing::from_text(&text).unwrap_err();
        assert_eq!(refused, why, "{text}");
        assert!(!refused.to_string().contains("abab"));
    }
    let ring = KeyRing::from_text(&format!("7 {secret}")).unwrap();
    assert!(!format!("{ring:?}").contains("171"), "a secret is shown");
}

#[test]
fn members_end_with_the_same_keys_in_whatever_order_they_speak() {
    let ring = |ids: &[u32]| {
        let mut ring = KeyRing::new(key(ids[0]));
        ids[1..].iter().for_each(|id| ring.install(key(*id)).unwrap());
        ring
    };
    // Two rings, what the first is after it heard of the second: the key in use comes first.
    for (mine, theirs, after) in [
        (&[1][..], &[1][..], &[1][..]),
        (&[1], &[1, 2], &[1, 2]),
        (&[1, 2], &[2], &[2, 1]),
        (&[1, 2], &[2, 1], &[2, 1]),
        (&[1], &[3], &[3, 1]),
        (&[1, 2], &[2, 3], &[2, 3]),
        (&[2, 1], &[1], &[2, 1]),
        (&[2], &[1, 2], &[2]),
    ] {
        let mut learning = ring(mine);
        let changed = learning.learn(&ring(theirs));
        assert_eq!(learning, ring(after), "{mine:?} hears of {theirs:?}");
        assert_eq!(changed, mine != after, "{mine:?} hears of {theirs:?}");
    }
}

#[test]
fn of_two_keys_with_one_number_the_same_one_stays_everywhere() {
    let made = |secret| {
        let mut ring = KeyRing::new(key(1));
        ring.install(Key { id: KeyId(2), secret: [secret; 32] }).unwrap();
        ring
    };
    let (mut first, mut second) = (made(7), made(9));
    assert!(!first.learn(&second) && second.learn(&first));
    assert_eq!(first, second);
}

#[test]
fn keys_for_another_purpose_open_nothing_of_gossip_and_differ_from_each_other() {
    let ring = |purpose: &[u8]| KeyRing::new(key(1)).derived(purpose);
    let mut gossip = seal(1, 7);
    let mut vip = Seal::new(node(1), 7, ring(b"vip"));
    let mut other = Seal::new(node(2), 8, ring(b"vip"));
    assert_eq!(other.open(&gossip.seal(node(2), b"hello")), Err(Rejected::Forged));
    assert_eq!(other.open(&vip.seal(node(2), b"hello")).map(|opened| opened.payload), Ok(b"hello".to_vec()));
    assert_ne!(ring(b"vip"), ring(b"pip"));
    assert_eq!(ring(b"vip").in_use(), KeyId(1), "what replaces keys one by one goes by their numbers");
}
