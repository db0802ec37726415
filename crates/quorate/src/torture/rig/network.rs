//! The network of a run: one namespace for each node, and a switch of our own between them.
//!
//! Each namespace has one TAP interface. A thread reads the frames that leave one and writes them
//! to the one that they are for, unless a [`Rule`] loses, repeats or holds them. Every fault of the
//! network is so one decision about one frame, in one place, with a count that proves it.
//!
//! Why not the kernel's bridge with nftables: loss, repetition and delay would need three mechanisms
//! there, of which some kernels have some (here no `netem`, and `queue` only through iptables), and
//! each of them packages that a user's server may not have. TUN is everywhere. The price is a detour
//! of some microseconds for each frame.
//!
//! # Invariants
//! - Whoever is cut off hears nothing: no refusal, no reset, no failed address resolution (all
//!   neighbours are known for ever), as with a pulled cable.
//! - Rules are about links between nodes; clients reach every node whose cable is plugged in.
//! - Frames of one link keep their order unless a rule delays them.

use super::dice::Dice;
use super::kernel;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Where a cable ends: 0 is the clients' namespace, which the run itself is in; then the nodes.
pub(super) type Port = u8;
pub(super) const CLIENTS: Port = 0;

/// The name of the one interface that each namespace has.
const INTERFACE: &str = "q0";
/// Where nodes answer probes of the network.
const PROBE_PORT: u16 = 7_999;
/// Larger than any frame of an interface with the usual 1,500 bytes.
const FRAME_MAX: usize = 2_048;
/// Frames from one port before the others get their turn.
const TURN: usize = 64;
/// Held frames: beyond that a real switch would drop them, too. A second of what one cluster sends.
const HELD_MAX: usize = 20_000;
/// How soon the thread notices that it is to end, when there is no traffic.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What happens to frames of some links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// All are lost.
    Cut,
    /// So many of a thousand are lost.
    Lose(u16),
    /// So many of a thousand arrive twice.
    Repeat(u16),
    /// Each arrives later, by a time of its own between the two.
    Hold(Duration, Duration),
}

/// A directed link.
pub(super) type Link = (Port, Port);

/// What happens, where, and how often it has.
#[derive(Debug)]
struct Rule {
    links: BTreeSet<Link>,
    effect: Effect,
    count: u64,
}

/// Names a rule until it is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RuleId(u64);

/// All that decides about a frame.
#[derive(Debug)]
struct Rules {
    rules: BTreeMap<RuleId, Rule>,
    next: u64,
    unplugged: BTreeSet<Port>,
    dice: Dice,
}

impl Rules {
    fn new(seed: u64) -> Rules {
        Rules { rules: BTreeMap::new(), next: 0, unplugged: BTreeSet::new(), dice: Dice::new(seed) }
    }

    fn add(&mut self, links: BTreeSet<Link>, effect: Effect) -> RuleId {
        let id = RuleId(self.next);
        self.next += 1;
        self.rules.insert(id, Rule { links, effect, count: 0 });
        id
    }

    /// After what time each copy of a frame arrives. None: it is lost.
    fn fate(&mut self, link: Link) -> Vec<Duration> {
        if self.unplugged.contains(&link.0) || self.unplugged.contains(&link.1) {
            return Vec::new();
        }
        let mut copies = vec![Duration::ZERO];
        for rule in self.rules.values_mut().filter(|rule| rule.links.contains(&link)) {
            let before = copies.clone();
            match rule.effect {
                Effect::Cut => copies.clear(),
                Effect::Lose(per_mille) => copies.retain(|_| !self.dice.happens(per_mille)),
                Effect::Repeat(per_mille) => {
                    if self.dice.happens(per_mille) {
                        copies.extend_from_within(..);
                    }
                }
                Effect::Hold(least, most) => {
                    let span = u64::try_from((most.saturating_sub(least)).as_micros()).unwrap_or(u64::MAX);
                    for copy in &mut copies {
                        *copy += least + Duration::from_micros(self.dice.below(span));
                    }
                }
            }
            if copies != before {
                rule.count += 1;
            }
        }
        copies
    }
}

/// A namespace of the network, alive as long as this is.
#[derive(Debug)]
pub(super) struct Namespace(File);

impl Namespace {
    /// A new one with its end of a cable.
    fn new() -> io::Result<(Namespace, File)> {
        let make = || {
            kernel::new_network()?;
            let tap = kernel::open_tap(INTERFACE)?;
            Ok((Namespace(File::open("/proc/thread-self/ns/net")?), tap))
        };
        on_a_thread(make)
    }

    /// Runs `work` in it. What it starts or opens there stays there.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        on_a_thread(|| {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        })
    }
}

/// A thread is in one namespace; one that was moved is of no use to anybody else.
fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("namespace".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread in a namespace panicked")))
    })
}

/// The address of a port. The network is nobody else's, so any will do.
pub(super) fn address(port: Port) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + port)
}

fn hardware(port: Port) -> [u8; 6] {
    // Locally administered.
    [0x02, 0x71, 0x75, 0x6f, 0x72, port]
}

/// The commands for `ip` that make a namespace's interface ready.
fn interface_script(port: Port, ports: u8) -> String {
    let text = |bytes: [u8; 6]| bytes.map(|byte| format!("{byte:02x}")).join(":");
    let mut script = format!(
        "link set lo up\nlink set {INTERFACE} addrgenmode none\nlink set {INTERFACE} address {}\n\
         addr add {}/24 dev {INTERFACE}\nlink set {INTERFACE} up\n",
        text(hardware(port)),
        address(port)
    );
    for other in (0..ports).filter(|other| *other != port) {
        let (to, hardware) = (address(other), text(hardware(other)));
        script.push_str(&format!("neigh replace {to} lladdr {hardware} dev {INTERFACE} nud permanent\n"));
    }
    script
}

fn ip(script: &str) -> io::Result<()> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(script.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("ip: {}", String::from_utf8_lossy(&output.stderr).trim()))),
    }
}

/// The running network.
#[derive(Debug)]
pub(super) struct Network {
    /// Those of the nodes: port 1 is the first.
    namespaces: Vec<Arc<Namespace>>,
    /// One at each node, in its namespace.
    probes: Vec<UdpSocket>,
    shared: Arc<Shared>,
    switch: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    rules: Mutex<Rules>,
    over: std::sync::atomic::AtomicBool,
}

impl Shared {
    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Network {
    /// Makes the network of so many nodes, with its clients' end in the namespace of this process.
    pub(super) fn new(nodes: u8, seed: u64) -> io::Result<Network> {
        let ports = nodes + 1;
        let mut taps = vec![kernel::open_tap(INTERFACE)?];
        ip(&interface_script(CLIENTS, ports))?;
        let (mut namespaces, mut probes) = (Vec::new(), Vec::new());
        for port in 1..ports {
            let (namespace, tap) = Namespace::new()?;
            namespace.run(|| ip(&interface_script(port, ports)))?;
            probes.push(namespace.run(|| UdpSocket::bind((address(port), PROBE_PORT)))?);
            namespaces.push(Arc::new(namespace));
            taps.push(tap);
        }
        let shared = Arc::new(Shared { rules: Mutex::new(Rules::new(seed)), over: false.into() });
        let of_switch = shared.clone();
        let switch =
            std::thread::Builder::new().name("switch".into()).spawn(move || Switch::new(taps, of_switch).run())?;
        Ok(Network { namespaces, probes, shared, switch: Some(switch) })
    }

    /// Where a node lives.
    pub(super) fn namespace(&self, port: Port) -> Arc<Namespace> {
        self.namespaces[usize::from(port) - 1].clone()
    }

    pub(super) fn add(&self, links: BTreeSet<Link>, effect: Effect) -> RuleId {
        self.shared.rules().add(links, effect)
    }

    /// Ends a rule; how many frames it has met.
    pub(super) fn remove(&self, id: RuleId) -> u64 {
        self.shared.rules().rules.remove(&id).map_or(0, |rule| rule.count)
    }

    /// Pulls a cable: silence, both ways, for clients too.
    pub(super) fn unplug(&self, port: Port) {
        self.shared.rules().unplugged.insert(port);
    }

    pub(super) fn plug(&self, port: Port) {
        self.shared.rules().unplugged.remove(&port);
    }

    pub(super) fn is_unplugged(&self, port: Port) -> bool {
        self.shared.rules().unplugged.contains(&port)
    }

    /// Sends `count` numbered packets from one node to another and returns those that arrive, in
    /// order of arrival, each with the time it took.
    pub(super) fn probe(&self, (from, to): Link, count: u32, wait: Duration) -> io::Result<Vec<(u32, Duration)>> {
        let (sender, receiver) = (&self.probes[usize::from(from) - 1], &self.probes[usize::from(to) - 1]);
        let token = uuid::Uuid::new_v4();
        let target = SocketAddr::new(IpAddr::V4(address(to)), PROBE_PORT);
        let mut sent = Vec::new();
        for number in 0..count {
            let packet = [token.as_bytes().as_slice(), &number.to_be_bytes()].concat();
            sent.push(Instant::now());
            sender.send_to(&packet, target)?;
        }
        let deadline = Instant::now() + wait;
        let mut arrived = Vec::new();
        while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            receiver.set_read_timeout(Some(left))?;
            let mut packet = [0; 64];
            match receiver.recv(&mut packet) {
                // Of an earlier probe.
                Ok(length) if length != 20 || packet[..16] != *token.as_bytes() => {}
                Ok(_) => {
                    let number = u32::from_be_bytes([packet[16], packet[17], packet[18], packet[19]]);
                    let took = sent.get(number as usize).map_or(Duration::ZERO, Instant::elapsed);
                    arrived.push((number, took));
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => break,
                Err(error) => return Err(error),
            }
            // More than one may come of each, but only while something repeats them.
            if arrived.len() >= count as usize && count == 1 {
                break;
            }
        }
        Ok(arrived)
    }

    /// Whether a packet gets from one node to another. Where it should, several have the chance.
    pub(super) fn passes(&self, link: Link) -> io::Result<bool> {
        for _ in 0..PASS_TRIES {
            if !self.probe(link, 1, PASS_WAIT)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether packets from one node to another are lost.
    pub(super) fn is_cut(&self, link: Link) -> io::Result<bool> {
        Ok(self.probe(link, CUT_PROBES, CUT_WAIT)?.is_empty())
    }
}

const PASS_TRIES: u32 = 10;
const PASS_WAIT: Duration = Duration::from_millis(300);
const CUT_PROBES: u32 = 3;
/// A thousand times what a packet takes.
const CUT_WAIT: Duration = Duration::from_millis(100);

impl Drop for Network {
    fn drop(&mut self) {
        self.shared.over.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(switch) = self.switch.take() {
            // It has no way to fail; and if it had, the network is gone all the same.
            let _ = switch.join();
        }
    }
}

/// A frame that is on its way for longer. Equal times keep the order of `number`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    due: Instant,
    number: u64,
    to: Port,
    frame: Vec<u8>,
}

/// The thread that carries frames.
#[derive(Debug)]
struct Switch {
    taps: Vec<File>,
    shared: Arc<Shared>,
    held: BinaryHeap<Reverse<Held>>,
    number: u64,
}

impl Switch {
    fn new(taps: Vec<File>, shared: Arc<Shared>) -> Switch {
        Switch { taps, shared, held: BinaryHeap::new(), number: 0 }
    }

    fn run(mut self) {
        let mut frame = [0; FRAME_MAX];
        while !self.shared.over.load(std::sync::atomic::Ordering::Relaxed) {
            let ready = self.wait();
            for (from, _) in ready.into_iter().enumerate().filter(|(_, ready)| *ready) {
                for _ in 0..TURN {
                    match (&self.taps[from]).read(&mut frame) {
                        Ok(length) => self.carry(u8::try_from(from).unwrap_or(u8::MAX), &frame[..length]),
                        // Nothing more to read; and an interface that is down sends nothing.
                        Err(_) => break,
                    }
                }
            }
            self.release();
        }
    }

    /// Waits for a frame or for the time of a held one; which ports have something.
    fn wait(&self) -> Vec<bool> {
        let next = self.held.peek().map(|Reverse(held)| held.due.saturating_duration_since(Instant::now()));
        let wait = next.map_or(LOOK_EVERY, |next| next.min(LOOK_EVERY));
        let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
        let mut polled: Vec<PollFd<'_>> = self.taps.iter().map(|tap| PollFd::new(tap, PollFlags::IN)).collect();
        match poll(&mut polled, Some(&wait)) {
            Ok(_) => polled.iter().map(|one| one.revents().contains(PollFlags::IN)).collect(),
            // Interrupted: the next round looks again.
            Err(_) => Vec::new(),
        }
    }

    fn carry(&mut self, from: Port, frame: &[u8]) {
        // Broadcasts are for nobody: neighbours are known, and there is no other use of them here.
        let Some(to) = (0..self.taps.len() as u64).find_map(|port| {
            let port = u8::try_from(port).ok()?;
            frame.starts_with(&hardware(port)).then_some(port)
        }) else {
            return;
        };
        let fate = self.shared.rules().fate((from, to));
        for delay in fate {
            if delay.is_zero() {
                self.deliver(to, frame);
            } else if self.held.len() < HELD_MAX {
                self.number += 1;
                let due = Instant::now() + delay;
                self.held.push(Reverse(Held { due, number: self.number, to, frame: frame.to_vec() }));
            }
        }
    }

    /// Delivers what was held long enough.
    fn release(&mut self) {
        let now = Instant::now();
        while self.held.peek().is_some_and(|Reverse(held)| held.due <= now) {
            if let Some(Reverse(held)) = self.held.pop() {
                self.deliver(held.to, &held.frame);
            }
        }
    }

    fn deliver(&self, to: Port, frame: &[u8]) {
        // A full queue drops frames, as anywhere.
        let _ = (&self.taps[usize::from(to)]).write(frame);
    }
}

/// Both directions between each of `one` and each of `other`.
pub(super) fn between(one: &[Port], other: &[Port]) -> BTreeSet<Link> {
    one.iter().flat_map(|one| other.iter().flat_map(move |other| [(*one, *other), (*other, *one)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_rules_a_frame_arrives_once_and_at_once() {
        assert_eq!(Rules::new(1).fate((1, 2)), [Duration::ZERO]);
    }

    #[test]
    fn a_cut_is_of_the_links_that_it_names() {
        let mut rules = Rules::new(1);
        // The bridge: 1 and 3 do not hear each other, 2 hears both.
        let bridge = rules.add(between(&[1], &[3]), Effect::Cut);
        for lost in [(1, 3), (3, 1)] {
            assert!(rules.fate(lost).is_empty());
        }
        for passed in [(1, 2), (2, 1), (2, 3), (3, 2), (CLIENTS, 1), (3, CLIENTS)] {
            assert_eq!(rules.fate(passed).len(), 1, "{passed:?}");
        }
        assert_eq!(rules.rules[&bridge].count, 2);
        let one_way = rules.add(BTreeSet::from([(1, 2)]), Effect::Cut);
        assert!(rules.fate((1, 2)).is_empty());
        assert_eq!(rules.fate((2, 1)).len(), 1);
        rules.rules.remove(&one_way);
        assert_eq!(rules.fate((1, 2)).len(), 1);
    }

    #[test]
    fn a_pulled_cable_is_silent_for_clients_too() {
        let mut rules = Rules::new(1);
        rules.unplugged.insert(2);
        for lost in [(1, 2), (2, 1), (CLIENTS, 2), (2, CLIENTS)] {
            assert!(rules.fate(lost).is_empty());
        }
        assert_eq!(rules.fate((1, 3)).len(), 1);
    }

    #[test]
    fn loss_repetition_and_delay_are_as_frequent_and_as_long_as_they_say() {
        let links = BTreeSet::from([(1, 2)]);
        let of = |effect| {
            let mut rules = Rules::new(7);
            let id = rules.add(links.clone(), effect);
            let fates: Vec<Vec<Duration>> = (0..10_000).map(|_| rules.fate((1, 2))).collect();
            (fates, rules.rules[&id].count)
        };
        let (lost, count) = of(Effect::Lose(300));
        assert!((2_800..3_200).contains(&count), "{count}");
        assert_eq!(lost.iter().filter(|fate| fate.is_empty()).count() as u64, count);
        let (twice, count) = of(Effect::Repeat(200));
        assert!((1_800..2_200).contains(&count), "{count}");
        assert_eq!(twice.iter().filter(|fate| fate.len() == 2).count() as u64, count);
        let (least, most) = (Duration::from_millis(10), Duration::from_millis(90));
        let (held, count) = of(Effect::Hold(least, most));
        assert_eq!(count, 10_000);
        assert!(held.iter().all(|fate| fate.len() == 1 && (least..most).contains(&fate[0])));
        assert!(!held.is_sorted(), "frames overtake each other");
    }

    #[test]
    fn two_rules_about_one_link_both_hold() {
        let links = BTreeSet::from([(1, 2)]);
        let mut rules = Rules::new(3);
        rules.add(links.clone(), Effect::Repeat(1_000));
        let wait = Duration::from_millis(5);
        rules.add(links, Effect::Hold(wait, wait));
        assert_eq!(rules.fate((1, 2)), [wait, wait]);
    }

    /// Runs `test` with a network of two nodes in a namespace of its own. Without root, makes sure
    /// that this machine would be said to have none.
    fn with_network(test: impl FnOnce(Network) + Send) {
        let is_root = rustix::process::geteuid().is_root();
        let lacks = crate::torture::rig::tools::look(is_root);
        assert_eq!(is_root, !lacks.contains_key(&crate::torture::fault::Need::Network), "{lacks:?}");
        if is_root {
            let run = || {
                kernel::new_network()?;
                test(Network::new(2, 1)?);
                Ok(())
            };
            on_a_thread(run).unwrap();
        }
    }

    #[test]
    fn a_probe_passes_before_a_cut_and_after_it_and_is_dropped_meanwhile() {
        with_network(|network| {
            assert!(network.passes((1, 2)).unwrap() && network.passes((2, 1)).unwrap());
            let rule = network.add(BTreeSet::from([(1, 2)]), Effect::Cut);
            assert!(network.is_cut((1, 2)).unwrap());
            assert!(network.passes((2, 1)).unwrap(), "only one way is cut");
            assert!(network.remove(rule) > 0);
            assert!(network.passes((1, 2)).unwrap());
            network.unplug(2);
            assert!(network.is_cut((1, 2)).unwrap() && network.is_cut((2, 1)).unwrap());
            network.plug(2);
            assert!(network.passes((1, 2)).unwrap());
        });
    }

    #[test]
    fn held_packets_overtake_each_other_and_repeated_ones_come_twice() {
        with_network(|network| {
            let links = BTreeSet::from([(1, 2)]);
            let (least, most) = (Duration::from_millis(5), Duration::from_millis(60));
            let held = network.add(links.clone(), Effect::Hold(least, most));
            let arrived = network.probe((1, 2), 50, Duration::from_millis(500)).unwrap();
            assert_eq!(arrived.len(), 50);
            assert!(arrived.iter().all(|(_, took)| *took >= least), "{arrived:?}");
            assert!(!arrived.iter().map(|(number, _)| number).is_sorted(), "{arrived:?}");
            network.remove(held);
            network.add(links, Effect::Repeat(1_000));
            assert_eq!(network.probe((1, 2), 50, Duration::from_millis(300)).unwrap().len(), 100);
        });
    }

    #[test]
    fn a_connection_between_nodes_is_made_through_the_switch_and_a_cut_one_is_silent() {
        with_network(|network| {
            let target = SocketAddr::from((address(2), 80));
            let listener = network.namespace(2).run(|| std::net::TcpListener::bind(target)).unwrap();
            let wait = Duration::from_millis(300);
            let dial = || network.namespace(1).run(|| std::net::TcpStream::connect_timeout(&target, wait));
            dial().unwrap();
            listener.accept().unwrap();
            network.unplug(2);
            assert_eq!(dial().unwrap_err().kind(), io::ErrorKind::TimedOut, "no refusal, no reset");
        });
    }

    #[test]
    fn every_neighbour_is_known_from_the_start() {
        expect_test::expect![[r"
            link set lo up
            link set q0 addrgenmode none
            link set q0 address 02:71:75:6f:72:01
            addr add 10.77.0.11/24 dev q0
            link set q0 up
            neigh replace 10.77.0.10 lladdr 02:71:75:6f:72:00 dev q0 nud permanent
            neigh replace 10.77.0.12 lladdr 02:71:75:6f:72:02 dev q0 nud permanent
        "]]
        .assert_eq(&interface_script(1, 3));
    }
}
