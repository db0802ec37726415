//! A simulated network of gateways: datagrams are late and get lost, cables are cut, processes stand still and
//! die. A seed decides everything.

use super::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

const MS: Duration = Duration::from_millis(1);

fn node(number: usize) -> NodeId {
    NodeId::from_u128((number as u128 + 1) << 64)
}

fn vip() -> IpAddr {
    IpAddr::from([10, 0, 0, 9])
}

struct Gateway {
    election: Election,
    /// What its kernel answers for, and since when.
    holds: BTreeMap<IpAddr, Timestamp>,
    alive: bool,
    /// It does nothing until then; its kernel goes on, for as long as an address lives.
    stopped_until: Timestamp,
    inbox: Vec<(NodeId, Advert)>,
    asked: usize,
}

struct Net {
    now: Timestamp,
    random: ChaCha8Rng,
    gateways: Vec<Gateway>,
    /// When, to whom, from whom.
    flying: Vec<(Timestamp, usize, NodeId, Advert)>,
    /// Of a thousand.
    lost: u32,
    /// Gateways of different sides hear nothing of each other.
    side: Vec<u32>,
    stranger: bool,
}

impl Net {
    fn new(seed: u64, gateways: usize, seats: &[Seat]) -> Net {
        let now = Timestamp(Duration::from_secs(100));
        let mut net = Net {
            now,
            random: ChaCha8Rng::seed_from_u64(seed),
            gateways: Vec::new(),
            flying: Vec::new(),
            lost: 0,
            side: vec![0; gateways],
            stranger: false,
        };
        for number in 0..gateways {
            let election = Election::new(node(number), 0, now);
            let (holds, stopped_until) = (BTreeMap::new(), now);
            net.gateways.push(Gateway { election, holds, alive: true, stopped_until, inbox: vec![], asked: 0 });
        }
        (0..gateways).for_each(|number| net.begin(number, seats));
        net
    }

    fn begin(&mut self, number: usize, seats: &[Seat]) {
        let run = self.random.next_u64();
        self.gateways[number].election = Election::new(node(number), run, self.now);
        self.gateways[number].holds.clear();
        self.gateways[number].alive = true;
        self.step(number, Input::Seats(seats.to_vec()));
        for seat in seats {
            self.step(number, Input::Fit { ip: seat.ip, fit: true });
        }
    }

    fn below(&mut self, limit: u32) -> u32 {
        self.random.next_u32() % limit
    }

    fn step(&mut self, number: usize, input: Input) {
        let mut out = Vec::new();
        let gateway = &mut self.gateways[number];
        gateway.election.step(self.now, input, &mut out);
        let mut strange = Vec::new();
        for effect in out {
            match effect {
                Effect::Send { to, advert } => {
                    let at = self.now.plus(MS * (1 + self.random.next_u32() % 3));
                    let to = (0..self.gateways.len()).find(|other| node(*other) == to).unwrap();
                    let lost = self.random.next_u32() % 1_000 < self.lost;
                    if !lost && self.side[to] == self.side[number] {
                        self.flying.push((at, to, node(number), advert));
                    }
                }
                Effect::Take { ip, .. } => {
                    assert!(self.gateways[number].holds.insert(ip, self.now).is_none(), "it takes what it has")
                }
                Effect::GiveUp { ip, .. } => {
                    assert!(self.gateways[number].holds.remove(&ip).is_some(), "it gives up what it does not have")
                }
                Effect::Ask { ip } => {
                    self.gateways[number].asked += 1;
                    strange.extend(self.stranger.then_some(ip));
                }
                Effect::Announce { .. } => {}
            }
        }
        for ip in strange {
            self.step(number, Input::Stranger { ip });
        }
    }

    fn run(&mut self, span: Duration) {
        let end = self.now.plus(span);
        while self.now < end {
            self.now = self.now.plus(MS);
            let (due, later) = std::mem::take(&mut self.flying).into_iter().partition(|it| it.0 <= self.now);
            self.flying = later;
            let due: Vec<_> = due;
            for (_, to, from, advert) in due {
                if self.gateways[to].alive {
                    self.gateways[to].inbox.push((from, advert));
                }
            }
            for number in 0..self.gateways.len() {
                let gateway = &mut self.gateways[number];
                if !gateway.alive || gateway.stopped_until > self.now {
                    continue;
                }
                // What came in is read before time passes.
                for (from, advert) in std::mem::take(&mut gateway.inbox) {
                    self.step(number, Input::Heard { from, advert });
                }
                if self.gateways[number].election.next_wake() <= self.now {
                    self.step(number, Input::Wake);
                }
            }
        }
    }

    fn power_off(&mut self, number: usize) {
        self.gateways[number].alive = false;
        self.gateways[number].holds.clear();
        self.gateways[number].inbox.clear();
    }

    /// Who has the address, of those that hear each other with `side`.
    fn holders(&self, ip: IpAddr, side: u32) -> Vec<usize> {
        let all = 0..self.gateways.len();
        all.filter(|number| self.side[*number] == side && self.gateways[*number].holds.contains_key(&ip)).collect()
    }

    /// The one that has it.
    fn only(&self, ip: IpAddr) -> usize {
        let holders = self.holders(ip, 0);
        assert_eq!(holders.len(), 1, "{holders:?} hold it");
        holders[0]
    }

    /// Until somebody other than `before` holds the address.
    fn until_taken(&mut self, before: usize, patience: Duration) -> Duration {
        let began = self.now;
        while self.holders(vip(), 0).iter().all(|holder| *holder == before) {
            assert!(self.now.since(began) < patience, "nobody took the address within {patience:?}");
            self.run(MS);
        }
        self.now.since(began)
    }
}

fn seat(gateways: usize) -> Vec<Seat> {
    vec![Seat { ip: vip(), order: (0..gateways).map(node).collect() }]
}

#[test]
fn the_first_choice_takes_an_address_that_nobody_has_and_asks_the_network_before() {
    for seed in 0..20 {
        let mut net = Net::new(seed, 3, &seat(3));
        net.run(Duration::from_millis(399));
        assert!(net.holders(vip(), 0).is_empty());
        net.run(Duration::from_millis(50));
        assert_eq!(net.only(vip()), 0);
        assert!(net.gateways[0].asked >= 2);
    }
}

#[test]
fn an_address_that_a_stranger_has_is_not_taken() {
    let mut net = Net::new(1, 2, &seat(2));
    net.stranger = true;
    net.run(Duration::from_secs(20));
    assert!(net.holders(vip(), 0).is_empty());
    net.stranger = false;
    net.run(Duration::from_secs(6));
    net.only(vip());
}

/// E10.
#[test]
fn e10_when_the_holder_falls_silent_another_takes_its_address_within_310_ms() {
    let mut all = Vec::new();
    for seed in 0..200 {
        let mut net = Net::new(seed, 3, &seat(3));
        let settle = net.below(1_000);
        net.run(Duration::from_secs(1) + MS * settle);
        let before = net.only(vip());
        net.power_off(before);
        all.push(net.until_taken(before, Duration::from_secs(2)));
        net.run(Duration::from_secs(1));
        net.only(vip());
    }
    all.sort();
    assert!(all[all.len() - 1] <= Duration::from_millis(310), "{:?}", all[all.len() - 1]);
    assert!(all[all.len() / 2] <= Duration::from_millis(270), "{:?}", all[all.len() / 2]);
}

#[test]
fn who_ends_says_so_and_the_next_one_takes_over_within_milliseconds() {
    let mut net = Net::new(7, 3, &seat(3));
    net.run(Duration::from_secs(1));
    net.step(0, Input::Leave);
    assert!(net.holders(vip(), 0).is_empty());
    assert!(net.until_taken(0, Duration::from_secs(1)) <= MS * 5);
    assert_eq!(net.only(vip()), 1);
}

#[test]
fn who_cannot_serve_gives_up_and_takes_nothing_until_it_can() {
    let mut net = Net::new(8, 2, &seat(2));
    net.run(Duration::from_secs(1));
    net.step(0, Input::Fit { ip: vip(), fit: false });
    net.run(Duration::from_millis(20));
    assert_eq!(net.only(vip()), 1);
    net.power_off(1);
    net.run(Duration::from_secs(2));
    assert!(net.holders(vip(), 0).is_empty());
    net.step(0, Input::Fit { ip: vip(), fit: true });
    net.run(Duration::from_millis(20));
    assert_eq!(net.only(vip()), 0);
}

#[test]
fn who_comes_back_takes_nothing() {
    for seed in 0..50 {
        let mut net = Net::new(seed, 3, &seat(3));
        net.run(Duration::from_secs(1));
        net.power_off(0);
        net.run(Duration::from_secs(1));
        let holder = net.only(vip());
        net.begin(0, &seat(3));
        let since = net.gateways[holder].holds[&vip()];
        net.run(Duration::from_secs(5));
        assert_eq!(net.only(vip()), holder);
        assert_eq!(net.gateways[holder].holds[&vip()], since, "it was never put down");
    }
}

#[test]
fn a_gateway_whose_cable_was_pulled_takes_nothing_from_the_others_when_it_is_plugged_in() {
    for seed in 0..50 {
        for cut in 0..3 {
            let mut net = Net::new(seed, 3, &seat(3));
            net.run(Duration::from_secs(1));
            net.side[cut] = 1;
            net.run(Duration::from_secs(2));
            let holder = net.only(vip());
            assert_eq!(net.holders(vip(), 1), [cut], "it cannot know that it is the one that is cut off");
            net.side[cut] = 0;
            net.run(Duration::from_millis(110));
            assert_eq!(net.only(vip()), holder, "seed {seed}, {cut} was cut off");
        }
    }
}

#[test]
fn who_stood_still_gives_up_before_it_says_anything() {
    for seed in 0..50 {
        let mut net = Net::new(seed, 2, &seat(2));
        net.run(Duration::from_secs(1));
        let pause = 400 + net.below(3_000);
        net.gateways[0].stopped_until = net.now.plus(MS * pause);
        net.run(MS * (pause - 1));
        assert_eq!(net.holders(vip(), 0), [0, 1], "its kernel still answers");
        net.run(MS * 3);
        assert_eq!(net.only(vip()), 1, "seed {seed}");
    }
}

#[test]
fn who_stood_still_and_heard_nothing_meanwhile_takes_nothing() {
    // As when a virtual machine is paused: what is sent to it is gone.
    for seed in 0..50 {
        let mut net = Net::new(seed, 2, &seat(2));
        net.run(Duration::from_secs(1));
        net.gateways[1].stopped_until = net.now.plus(Duration::from_secs(3));
        net.run(Duration::from_secs(3) - MS);
        net.gateways[1].inbox.clear();
        net.run(Duration::from_secs(1));
        assert_eq!(net.only(vip()), 0);
    }
}

#[test]
fn one_of_ten_datagrams_may_get_lost_and_the_address_stays_where_it_is() {
    let mut moves = 0;
    for seed in 0..20 {
        let mut net = Net::new(seed, 3, &seat(3));
        net.run(Duration::from_secs(1));
        net.lost = 100;
        let since = net.gateways[0].holds[&vip()];
        net.run(Duration::from_secs(60));
        moves += u32::from(net.gateways[net.holders(vip(), 0)[0]].holds[&vip()] != since);
    }
    // Three in a row are lost once in a thousand times; 20 minutes have 12,000 times two of them.
    assert!(moves <= 20, "{moves}");
}

#[test]
fn several_addresses_are_spread_and_survive_together() {
    let ip = |last| IpAddr::from([10, 0, 0, last]);
    let seats: Vec<Seat> = (0..6)
        .map(|number| {
            let order = (0..3).map(|place| node((place + number) % 3)).collect();
            Seat { ip: ip(100 + u8::try_from(number).unwrap()), order }
        })
        .collect();
    let mut net = Net::new(3, 3, &seats);
    net.run(Duration::from_secs(1));
    assert!(net.gateways.iter().all(|gateway| gateway.holds.len() == 2));
    net.power_off(1);
    net.run(Duration::from_millis(500));
    assert_eq!(net.gateways[0].holds.len() + net.gateways[2].holds.len(), 6);
}

#[test]
fn whoever_may_not_hold_an_address_any_more_puts_it_down() {
    let mut net = Net::new(4, 2, &seat(2));
    net.run(Duration::from_secs(1));
    assert_eq!(net.only(vip()), 0);
    let other = vec![Seat { ip: vip(), order: vec![node(1)] }];
    net.step(0, Input::Seats(other.clone()));
    net.step(1, Input::Seats(other));
    net.run(Duration::from_millis(350));
    assert_eq!(net.only(vip()), 1);
    net.step(1, Input::Seats(Vec::new()));
    assert!(net.holders(vip(), 0).is_empty());
}

/// Everything at once, and then nothing: one holder, and it stays.
#[test]
fn after_any_disorder_there_is_one_holder_again_within_a_second() {
    let mut overlaps = 0;
    for seed in 0..300 {
        let count = 2 + usize::try_from(seed % 4).unwrap();
        let mut net = Net::new(seed, count, &seat(count));
        for _ in 0..20 {
            let victim = usize::try_from(net.below(u32::try_from(count).unwrap())).unwrap();
            match net.below(6) {
                0 => net.power_off(victim),
                1 if !net.gateways[victim].alive => net.begin(victim, &seat(count)),
                2 => net.side[victim] = net.below(2),
                3 => net.lost = net.below(400),
                4 => {
                    let pause = net.below(2_000);
                    net.gateways[victim].stopped_until = net.now.plus(MS * pause);
                    if pause.is_multiple_of(2) {
                        net.gateways[victim].inbox.clear();
                    }
                }
                _ => {
                    let fit = net.below(2) == 0;
                    if net.gateways[victim].alive && net.gateways[victim].stopped_until <= net.now {
                        net.step(victim, Input::Fit { ip: vip(), fit });
                    }
                }
            }
            let span = net.below(700);
            net.run(MS * span);
            overlaps += usize::from(net.holders(vip(), 0).len() > 1);
        }
        net.lost = 0;
        net.side.fill(0);
        for number in 0..count {
            net.gateways[number].stopped_until = net.now;
            match net.gateways[number].alive {
                false => net.begin(number, &seat(count)),
                true => net.step(number, Input::Fit { ip: vip(), fit: true }),
            }
        }
        net.run(Duration::from_secs(1));
        let holder = net.only(vip());
        let since = net.gateways[holder].holds[&vip()];
        net.run(Duration::from_secs(3));
        assert_eq!(net.only(vip()), holder, "seed {seed}");
        assert_eq!(net.gateways[holder].holds[&vip()], since, "seed {seed}");
    }
    assert!(overlaps > 0, "a run in which nothing was ever contested shows nothing");
}
