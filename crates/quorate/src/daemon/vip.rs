//! Virtual addresses of a gateway: the shell around [`Election`].
//!
//! The process that serves the traffic is the one that says so to the others: a gateway goes on when the node
//! beside it does not, and so do its VIPs; a gateway that stands still, or has ended, is silent whatever its
//! node does. It speaks for the node whose socket it is fed from, with keys that are derived from those of
//! gossip, on a UDP port of its own ([`PORT`]) at the address of the node link.
//!
//! One loop on the gateway's only thread, so that a gateway that serves nobody says nothing either.
//!
//! # Invariants
//! - What has come in is read before time passes ([`Election`] needs that).
//! - An address lives for [`LIFE`] from when it was renewed last. It is renewed each [`CARE_EVERY`], never by a
//!   process that has not looked at what the others say.
//! - What an earlier process left is taken off before anything is said, and only by whoever has the port: a
//!   second gateway beside one node has nothing to do with VIPs.

use crate::config::NodeConfig;
use crate::{config, gossip_keys};
use anyhow::Context as _;
use quorate_membership::seal::{KeyRing, OVERHEAD, Seal};
use quorate_model::id::NodeId;
use quorate_model::observed::{VipReport, VipState};
use quorate_model::routing::{OfferedVip, RoutingTable};
use quorate_model::time::Timestamp;
use quorate_vip::advert::ADVERT_MAX;
use quorate_vip::election::{Advert, Effect, Election, Input, Seat, Stance, Why};
use quorate_vip::kernel::{Kernel, Mark, Place};
use quorate_vip::neighbours::{ANNOUNCED_AFTER, Hardware, Neighbours};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::sync::{oneshot, watch};
use tokio::time::sleep;
use tracing::{debug, error, info, warn};

/// Where gateways hear of each other. One port for a whole cluster.
pub(crate) const PORT: u16 = 7002;
/// How long the kernel answers for an address that nobody renews. Three rounds of care, in whole seconds.
const LIFE: Duration = Duration::from_secs(3);
/// How often addresses are renewed, interfaces and keys looked at.
const CARE_EVERY: Duration = Duration::from_secs(1);
/// A port that is taken, or a node that is not there yet, is tried again after this.
const BEGIN_AGAIN: Duration = Duration::from_secs(1);
/// After the kernel refused an address it is not asked again at once.
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// Who else says that it has an address that is held here is answered, but not more often than this.
const DEFEND_EVERY: Duration = Duration::from_secs(1);
/// Datagrams that are read before time passes; more are a flood.
const READ_FIRST: usize = 256;
/// Tells these keys from others that are derived from gossip's.
const PURPOSE: &[u8] = b"vip";

/// The node that a gateway is beside, by what is on its disk.
#[derive(Debug)]
struct Beside {
    dir: PathBuf,
    me: NodeId,
    address: IpAddr,
}

impl Beside {
    fn read(dir: &Path) -> anyhow::Result<Beside> {
        let file = dir.join(config::FILE);
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let config: NodeConfig = toml::from_str(&text).with_context(|| format!("in {}", file.display()))?;
        Ok(Beside { dir: dir.to_owned(), me: config.node.id, address: config.node.link_address().ip() })
    }

    fn keys(&self) -> anyhow::Result<KeyRing> {
        let ring = gossip_keys::read(&self.dir)?.context("the node has no keys for gossip")?;
        Ok(ring.derived(PURPOSE))
    }
}

/// The directory of the node that feeds a gateway on its socket, if one does.
pub(crate) fn node_dir(managers: &[String]) -> Option<PathBuf> {
    let socket = managers.iter().find_map(|manager| manager.strip_prefix("unix:"))?;
    Some(Path::new(socket).parent()?.to_owned())
}

/// What the gateway and its VIPs tell each other.
pub(crate) struct Ears {
    pub(crate) tables: watch::Receiver<Option<Arc<RoutingTable>>>,
    pub(crate) reports: watch::Sender<Vec<VipReport>>,
    /// The gateway ends: whoever sends it hears when the addresses are down and the others know.
    pub(crate) leave: oneshot::Receiver<oneshot::Sender<()>>,
}

/// Holds VIPs for as long as the gateway runs. `dir` is the directory of the node beside it.
pub(crate) async fn run(dir: PathBuf, port: u16, mut ears: Ears) {
    let mut told = String::new();
    loop {
        // A gateway of a cluster without VIPs has no port for them.
        let none = |table: &Option<Arc<RoutingTable>>| table.as_ref().is_none_or(|table| table.vips.is_empty());
        let idle = none(&ears.tables.borrow_and_update());
        let begun = if idle { None } else { Some(begin(&dir, port).await) };
        match begun {
            Some(Ok(holder)) => return holder.run(ears).await,
            Some(Err(why)) => {
                let why = format!("{why:#}");
                let report = |vip: &OfferedVip| unfit(vip.address.ip(), &why);
                let table = ears.tables.borrow().clone();
                ears.reports.send_replace(table.iter().flat_map(|table| &table.vips).map(report).collect());
                if told != why {
                    warn!(why, "this gateway can hold no VIPs");
                    told = why;
                }
            }
            None => {
                ears.reports.send_replace(Vec::new());
            }
        }
        tokio::select! {
            leave = &mut ears.leave => {
                let _ = leave.map(|done| done.send(()));
                return;
            }
            changed = ears.tables.changed() => if changed.is_err() { return },
            () = sleep(BEGIN_AGAIN), if !idle => {}
        }
    }
}

fn unfit(address: IpAddr, detail: &str) -> VipReport {
    VipReport { address, state: VipState::Unfit, epoch: 0, detail: detail.to_owned() }
}

async fn begin(dir: &Path, port: u16) -> anyhow::Result<Holder> {
    let beside = Beside::read(dir)?;
    let keys = beside.keys()?;
    let mut kernel = Kernel::open()?;
    let address = SocketAddr::new(beside.address, port);
    let bound = UdpSocket::bind(address).await;
    let socket = bound.with_context(|| format!("binding UDP {address} (does another gateway run here?)"))?;
    for left in kernel.remove_all(Mark::Gateway)? {
        info!(address = %left, "took down a VIP that an earlier gateway left");
    }
    let random = crate::serve::random_u128()?;
    let started = Instant::now();
    info!(%address, "listening for gateways that may hold the same VIPs");
    Ok(Holder {
        election: Election::new(beside.me, random as u64, Timestamp(Duration::ZERO)),
        seal: Seal::new(beside.me, (random >> 64) as u64, keys),
        beside,
        port,
        kernel,
        socket,
        started,
        seats: BTreeMap::new(),
        addresses: BTreeMap::new(),
    })
}

/// One VIP as this gateway sees it.
struct Local {
    vip: OfferedVip,
    place: Option<Place>,
    neighbours: Option<Neighbours>,
    /// What is wrong with the place.
    trouble: String,
    /// The kernel refused it, and is not asked again before.
    refused_until: Option<Timestamp>,
    /// Since when it is held.
    taken: Option<Timestamp>,
    /// From when announcements are counted, and how many were made.
    announced: Option<(Timestamp, usize)>,
    defended: Option<Timestamp>,
    stranger: Option<Hardware>,
}

struct Holder {
    beside: Beside,
    port: u16,
    election: Election,
    seal: Seal,
    kernel: Kernel,
    socket: UdpSocket,
    started: Instant,
    seats: BTreeMap<IpAddr, Local>,
    /// Where the others are.
    addresses: BTreeMap<NodeId, IpAddr>,
}

impl Holder {
    async fn run(mut self, mut ears: Ears) {
        let mut buffer = vec![0; ADVERT_MAX + OVERHEAD];
        let table = ears.tables.borrow_and_update().clone();
        self.sit(table.as_deref());
        let mut care_at = self.now();
        loop {
            self.read_all(&mut buffer);
            if self.now() >= care_at {
                care_at = self.now().plus(CARE_EVERY);
                self.care();
            }
            self.listen();
            self.announce();
            self.step(Input::Wake);
            self.report(&ears.reports);
            let wake = self.election.next_wake().min(care_at);
            tokio::select! {
                biased;
                leave = &mut ears.leave => {
                    self.step(Input::Leave);
                    self.report(&ears.reports);
                    let _ = leave.map(|done| done.send(()));
                    return;
                }
                _ = self.socket.readable() => {}
                changed = ears.tables.changed() => {
                    if changed.is_err() {
                        self.step(Input::Leave);
                        return;
                    }
                    let table = ears.tables.borrow_and_update().clone();
                    self.sit(table.as_deref());
                    care_at = self.now();
                }
                () = sleep(wake.since(self.now())) => {}
            }
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.started.elapsed())
    }

    /// What the others have said.
    fn read_all(&mut self, buffer: &mut [u8]) {
        for _ in 0..READ_FIRST {
            match self.socket.try_recv_from(buffer) {
                Ok((length, address)) => match self.seal.open(&buffer[..length]) {
                    Ok(opened) => match Advert::from_bytes(&opened.payload) {
                        Ok(advert) => self.step(Input::Heard { from: opened.from, advert }),
                        Err(why) => debug!(%address, %why, "a gateway says what is not understood"),
                    },
                    Err(why) => debug!(%address, %why, "a datagram says nothing"),
                },
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                // An answer to what was sent before: nobody listens there. It is said to the next call only.
                Err(error) => debug!(%error, "the socket of VIPs"),
            }
        }
    }

    /// Takes over which VIPs there are, and who may hold them.
    fn sit(&mut self, table: Option<&RoutingTable>) {
        let vips = table.map(|table| table.vips.as_slice()).unwrap_or_default();
        let mine = |vip: &&OfferedVip| vip.candidates.iter().any(|candidate| candidate.node == self.beside.me);
        let vips: Vec<&OfferedVip> = vips.iter().filter(mine).collect();
        self.addresses = vips.iter().flat_map(|vip| &vip.candidates).map(|it| (it.node, it.address)).collect();
        let seat = |vip: &&OfferedVip| Seat {
            ip: vip.address.ip(),
            order: vip.candidates.iter().map(|candidate| candidate.node).collect(),
        };
        let seats = vips.iter().map(seat).collect();
        // What is given up now still needs its place.
        self.step(Input::Seats(seats));
        let kept: BTreeSet<IpAddr> = vips.iter().map(|vip| vip.address.ip()).collect();
        self.seats.retain(|ip, _| kept.contains(ip));
        for vip in vips {
            let local = self.seats.entry(vip.address.ip()).or_insert_with(|| Local::new(vip));
            if (local.vip.address, &local.vip.interface) != (vip.address, &vip.interface) {
                *local = Local { taken: local.taken, ..Local::new(vip) };
            }
        }
    }

    /// Renews what is held, and looks whether everything is still where it was.
    fn care(&mut self) {
        match self.beside.keys() {
            Ok(ring) if ring != *self.seal.ring() => self.seal.set_ring(ring),
            Ok(_) => {}
            Err(why) => warn!(why = format!("{why:#}"), "the keys for VIPs stay as they are"),
        }
        let now = self.now();
        for ip in self.seats.keys().copied().collect::<Vec<_>>() {
            let Some(local) = self.seats.get_mut(&ip) else { continue };
            local.refused_until = local.refused_until.filter(|until| *until > now);
            if local.refused_until.is_none() {
                local.look(&mut self.kernel);
            }
            if local.trouble.is_empty() && local.taken.is_some() && !local.renew(&mut self.kernel) {
                local.refused_until = Some(now.plus(REFUSED_FOR));
            }
            let fit = local.trouble.is_empty();
            self.step(Input::Fit { ip, fit });
        }
    }

    /// Whether somebody else says that it has one of the addresses.
    fn listen(&mut self) {
        let now = self.now();
        let mut strangers = Vec::new();
        for (ip, local) in &mut self.seats {
            match local.neighbours.as_ref().map(Neighbours::other) {
                Some(Ok(Some(hardware))) => {
                    strangers.push(*ip);
                    let held = local.taken.is_some();
                    let due = local.defended.is_none_or(|at| now.since(at) >= DEFEND_EVERY);
                    if held && due {
                        local.defended = Some(now);
                        local.say();
                    }
                    if local.stranger != Some(hardware) {
                        local.stranger = Some(hardware);
                        if held || self.election.holder(*ip).is_none() {
                            warn!(address = %ip, by = shown(hardware), held, "somebody else says that it has a VIP");
                        }
                    }
                }
                Some(Err(error)) => {
                    debug!(address = %ip, %error, "cannot hear who has a VIP");
                    local.neighbours = None;
                }
                Some(Ok(None)) | None => {}
            }
        }
        for ip in strangers {
            self.step(Input::Stranger { ip });
        }
    }

    fn announce(&mut self) {
        let now = self.now();
        for local in self.seats.values_mut().filter(|local| local.taken.is_some()) {
            let Some((since, count)) = local.announced else { continue };
            match ANNOUNCED_AFTER.get(count) {
                Some(after) if now >= since.plus(*after) => {
                    local.announced = Some((since, count + 1));
                    local.say();
                }
                Some(_) => {}
                None => local.announced = None,
            }
        }
    }

    fn step(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut effects = Vec::new();
            let now = self.now();
            self.election.step(now, input, &mut effects);
            for effect in effects {
                match effect {
                    Effect::Send { to, advert } => self.send(to, &advert),
                    Effect::Ask { ip } => self.ask(ip),
                    Effect::Take { ip, epoch } => {
                        if !self.take(now, ip, epoch) {
                            inputs.push(Input::Fit { ip, fit: false });
                        }
                    }
                    Effect::GiveUp { ip, why } => self.give_up(ip, why),
                    Effect::Announce { ip } => {
                        if let Some(local) = self.seats.get_mut(&ip) {
                            local.stranger = None;
                            local.announced = Some((now, 0));
                        }
                    }
                }
            }
        }
    }

    fn send(&mut self, to: NodeId, advert: &Advert) {
        let Some(address) = self.addresses.get(&to) else { return };
        let datagram = self.seal.seal(to, &advert.to_bytes());
        if let Err(error) = self.socket.try_send_to(&datagram, SocketAddr::new(*address, self.port)) {
            debug!(%address, %error, "another gateway cannot be told of VIPs");
        }
    }

    fn ask(&self, ip: IpAddr) {
        if let Some(Err(error)) = self.seats.get(&ip).and_then(|local| local.neighbours.as_ref()).map(Neighbours::ask) {
            debug!(address = %ip, %error, "cannot ask who has a VIP");
        }
    }

    /// Whether the kernel answers there now.
    fn take(&mut self, now: Timestamp, ip: IpAddr, epoch: u64) -> bool {
        let Some(local) = self.seats.get_mut(&ip) else { return false };
        let Some(place) = local.place.clone() else { return false };
        if let Err(why) = self.kernel.put(local.vip.address, &place, Mark::Gateway, LIFE) {
            local.trouble = chain(&why);
            local.refused_until = Some(now.plus(REFUSED_FOR));
            error!(address = %ip, why = local.trouble, "this gateway cannot take a VIP");
            return false;
        }
        info!(address = %local.vip.address, interface = place.name, epoch, "took a VIP");
        (local.taken, local.announced, local.stranger) = (Some(now), Some((now, 0)), None);
        // The first one before anything else.
        self.announce();
        true
    }

    fn give_up(&mut self, ip: IpAddr, why: Why) {
        if let Some(local) = self.seats.get_mut(&ip) {
            (local.taken, local.announced) = (None, None);
        }
        match why {
            Why::Newer { holder, epoch } => info!(address = %ip, %holder, epoch, "gave up a VIP: another one has it"),
            Why::Unfit => info!(address = %ip, "gave up a VIP: this gateway cannot serve there"),
            Why::NotMine => info!(address = %ip, "gave up a VIP: it is not for this gateway"),
        }
        if let Err(why) = self.kernel.remove(ip, Mark::Gateway) {
            error!(address = %ip, why = chain(&why), "a VIP is not taken down; it ends by itself within seconds");
        }
    }

    fn report(&self, reports: &watch::Sender<Vec<VipReport>>) {
        let report = |(ip, local): (&IpAddr, &Local)| {
            let (state, epoch) = match self.election.stance(*ip) {
                Some(Stance::Holding(claim)) => (VipState::Holding, claim.epoch),
                Some(Stance::Standby) => (VipState::Standby, 0),
                Some(Stance::Unfit) | None => (VipState::Unfit, 0),
            };
            let disputed = self.election.is_contested(*ip) || (state == VipState::Unfit && local.trouble.is_empty());
            let detail = match local.stranger.filter(|_| disputed) {
                Some(hardware) => format!("{} says that it has the address", shown(hardware)),
                None => local.trouble.clone(),
            };
            VipReport { address: *ip, state, epoch, detail }
        };
        let now: Vec<VipReport> = self.seats.iter().map(report).collect();
        reports.send_if_modified(|known| {
            let news = *known != now;
            *known = now;
            news
        });
    }
}

impl Local {
    fn new(vip: &OfferedVip) -> Local {
        Local {
            vip: vip.clone(),
            place: None,
            neighbours: None,
            trouble: "not looked at yet".into(),
            refused_until: None,
            taken: None,
            announced: None,
            defended: None,
            stranger: None,
        }
    }

    /// Where it goes, and what is wrong there.
    fn look(&mut self, kernel: &mut Kernel) {
        let place = match kernel.place(self.vip.address, self.vip.interface.as_ref()) {
            Ok(place) => place,
            Err(why) => {
                self.trouble = chain(&why);
                return;
            }
        };
        let same = |known: &Place| (known.index, known.hardware) == (place.index, place.hardware);
        if self.neighbours.is_none() || !self.place.as_ref().is_some_and(same) {
            match Neighbours::listen(self.vip.address, &place) {
                Ok(neighbours) => self.neighbours = neighbours,
                Err(why) => {
                    self.trouble = format!("cannot listen on {}: {why}", place.name);
                    return;
                }
            }
        }
        self.trouble = if place.works { String::new() } else { format!("{} is down, or has no carrier", place.name) };
        self.place = Some(place);
    }

    /// Lets the kernel answer for longer. Whether it does.
    fn renew(&mut self, kernel: &mut Kernel) -> bool {
        let Some(place) = &self.place else { return false };
        match kernel.renew(self.vip.address, place, Mark::Gateway, LIFE) {
            Ok(()) => true,
            Err(why) => {
                self.trouble = chain(&why);
                error!(address = %self.vip.address, why = self.trouble, "a VIP cannot be held");
                false
            }
        }
    }

    fn say(&self) {
        if let Some(Err(error)) = self.neighbours.as_ref().map(Neighbours::announce) {
            debug!(address = %self.vip.address, %error, "a VIP is not announced");
        }
    }
}

fn shown(hardware: Hardware) -> String {
    hardware.map(|byte| format!("{byte:02x}")).join(":")
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        None => error.to_string(),
        Some(cause) => format!("{error}: {cause}"),
    }
}
