//! Virtual addresses: an address of the network that is not a server's but that of whoever serves.
//!
//! A gateway's VIP is a record of the cluster ([`VipRecord`]): any of the gateways that it names may hold
//! it, without a lease, and they settle between themselves who does. A service's VIP ([`ServiceVip`]) stands in
//! its spec and is held under the service's lease.
//!
//! # Invariants
//! - An address belongs to one VIP, of gateways or of a service, and never to a node itself.
//! - It is written in one way: the address and the length of its subnet's prefix.

use crate::command::Refusal;
use crate::event::Happening;
use crate::id::{NodeId, ServiceName};
use crate::place::{LABELS_MAX, is_label};
use crate::state::{Change, Changes, ClusterState, NodeRecord, Role};
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// Most VIPs of gateways in one cluster: what a gateway says of all of them fits into one datagram.
pub const VIPS_MAX: usize = 32;
/// Longest name of a network interface, as in Linux.
const INTERFACE_BYTES_MAX: usize = 15;

/// An address that may move between servers, with the length of its subnet's prefix: `10.0.0.9/24`.
///
/// One that a server can have for itself alone: no loopback, multicast, link-local IPv6 or unspecified
/// address, and neither the first nor the last of an IPv4 subnet. Without a prefix it is a subnet of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VipAddress {
    ip: IpAddr,
    prefix: u8,
}

/// The text is not the address of a VIP.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` {problem}")]
pub struct BadVip {
    pub text: String,
    pub problem: &'static str,
}

impl VipAddress {
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Length of the subnet's prefix in bits: 1 to 32, or 1 to 128.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `ip` is in the same subnet.
    #[must_use]
    pub fn is_near(&self, ip: IpAddr) -> bool {
        match (self.ip, ip) {
            (IpAddr::V4(mine), IpAddr::V4(other)) => (mine.to_bits() ^ other.to_bits()) & mask_v4(self.prefix) == 0,
            (IpAddr::V6(mine), IpAddr::V6(other)) => {
                let differ = mine.to_bits() ^ other.to_bits();
                differ.checked_shr(128 - u32::from(self.prefix)).unwrap_or(0) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    fn check(self) -> Result<(), &'static str> {
        const ONE_SERVERS: &str = "is no address that a server can have on a network";
        match self.ip {
            IpAddr::V4(ip) => {
                let host = !mask_v4(self.prefix);
                let within = ip.to_bits() & host;
                if !(1..=32).contains(&self.prefix) {
                    return Err("has a prefix that is not 1 to 32");
                }
                if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip == Ipv4Addr::BROADCAST {
                    return Err(ONE_SERVERS);
                }
                if self.prefix < 31 && (within == 0 || within == host) {
                    return Err("is the first or the last address of its subnet, which no server may have");
                }
                Ok(())
            }
            IpAddr::V6(ip) => {
                if !(1..=128).contains(&self.prefix) {
                    return Err("has a prefix that is not 1 to 128");
                }
                if ip.to_ipv4_mapped().is_some() {
                    return Err("is an IPv4 address in the dress of IPv6: write 10.0.0.9/24");
                }
                if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_unicast_link_local() {
                    return Err(ONE_SERVERS);
                }
                Ok(())
            }
        }
    }
}

fn mask_v4(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

impl FromStr for VipAddress {
    type Err = BadVip;

    fn from_str(text: &str) -> Result<VipAddress, BadVip> {
        let bad = |problem| BadVip { text: text.to_owned(), problem };
        let unreadable = || bad("is no address with a prefix: write it like 10.0.0.9/24 or 2001:db8::9/64");
        let (ip, prefix) = text.split_once('/').map_or((text, None), |(ip, prefix)| (ip, Some(prefix)));
        let ip: IpAddr = ip.parse().map_err(|_| unreadable())?;
        let whole = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => whole,
            Some(prefix) if prefix.bytes().all(|byte| byte.is_ascii_digit()) => {
                prefix.parse().map_err(|_| unreadable())?
            }
            Some(_) => return Err(unreadable()),
        };
        let address = VipAddress { ip, prefix };
        address.check().map_err(bad)?;
        Ok(address)
    }
}

impl fmt::Display for VipAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

impl Serialize for VipAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VipAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Name of a network interface, as in Linux: 1 to 15 bytes, printable, without `/`, `:` and spaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Interface(String);

impl Interface {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Interface {
    type Err = BadVip;

    fn from_str(text: &str) -> Result<Interface, BadVip> {
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
        let fits = (1..=INTERFACE_BYTES_MAX).contains(&text.len()) && text.bytes().all(plain);
        if !fits || text == "." || text == ".." {
            return Err(BadVip { text: text.to_owned(), problem: "is no name of a network interface" });
        }
        Ok(Interface(text.to_owned()))
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Interface {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The address of a service: `10.0.0.9/24`, or `10.0.0.9/24 on eth1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceVip {
    pub address: VipAddress,
    /// Default: the one that has an address in the same subnet.
    pub interface: Option<Interface>,
}

impl FromStr for ServiceVip {
    type Err = BadVip;

    fn from_str(text: &str) -> Result<ServiceVip, BadVip> {
        let (address, interface) =
            text.split_once(" on ").map_or((text, None), |(address, interface)| (address, Some(interface)));
        Ok(ServiceVip { address: address.parse()?, interface: interface.map(str::parse).transpose()? })
    }
}

impl fmt::Display for ServiceVip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)?;
        self.interface.as_ref().map_or(Ok(()), |interface| write!(f, " on {interface}"))
    }
}

impl Serialize for ServiceVip {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServiceVip {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A VIP of gateways, as decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipRecord {
    pub address: VipAddress,
    /// Default: the one that has an address in the same subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<Interface>,
    /// Labels that a gateway's node must have to hold it. Default: any gateway may.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gateways: BTreeMap<String, String>,
    /// When it was added.
    pub since: WallTime,
}

impl VipRecord {
    /// Whether gateways on this node may hold it.
    #[must_use]
    pub fn is_for(&self, node: &NodeRecord) -> bool {
        node.identity.roles.contains(&Role::Gateway)
            && !node.expelling
            && self.gateways.iter().all(|(key, value)| node.labels.get(key) == Some(value))
    }
}

/// What may be asked about VIPs of gateways.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "vip", rename_all = "kebab-case")]
pub enum VipCommand {
    /// Adds one. Added again as it is, nothing changes; otherwise it is refused.
    Add {
        address: VipAddress,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        interface: Option<Interface>,
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        gateways: BTreeMap<String, String>,
    },
    /// Whoever holds it takes it down.
    Remove { address: IpAddr },
}

impl ClusterState {
    /// What `command` changes.
    ///
    /// # Errors
    /// [`Refusal::VipTaken`], [`Refusal::UnknownVip`], [`Refusal::Invalid`].
    pub(crate) fn decide_vip(&self, changes: &mut Changes, command: &VipCommand) -> Result<(), Refusal> {
        match command {
            VipCommand::Add { address, interface, gateways } => {
                let record = VipRecord {
                    address: *address,
                    interface: interface.clone(),
                    gateways: gateways.clone(),
                    since: changes.now,
                };
                if let Some(known) = self.vips.get(&address.ip()) {
                    let same = VipRecord { since: known.since, ..record } == *known;
                    let owner = || "another VIP of gateways".to_owned();
                    return if same { Ok(()) } else { Err(taken(address.ip(), owner())) };
                }
                if self.vips.len() >= VIPS_MAX {
                    return Err(invalid(format!("would be one more than {VIPS_MAX}, which are allowed")));
                }
                if gateways.len() > LABELS_MAX || !gateways.iter().all(|(key, value)| is_label(key, value)) {
                    return Err(Refusal::Invalid {
                        field: "gateways".into(),
                        problem: "names labels that no node can have".into(),
                    });
                }
                self.is_free(address.ip(), |_| false)?;
                changes.list.push(Change::Vip(record));
                changes.event(Happening::VipAdded { address: *address });
            }
            VipCommand::Remove { address } => {
                let known = self.vips.get(address).ok_or(Refusal::UnknownVip { address: *address })?;
                changes.list.push(Change::VipGone { address: *address });
                changes.event(Happening::VipRemoved { address: known.address });
            }
        }
        Ok(())
    }

    /// Whether no node, no gateway and no service but those that `but` names has that address.
    ///
    /// # Errors
    /// [`Refusal::VipTaken`] names who has it.
    pub(crate) fn is_free(&self, ip: IpAddr, but: impl Fn(&ServiceName) -> bool) -> Result<(), Refusal> {
        let at = |text: &str| text.parse::<SocketAddr>().is_ok_and(|address| address.ip() == ip);
        let has = |node: &&NodeRecord| {
            at(&node.identity.link) || at(&node.identity.api) || node.identity.host.parse() == Ok(ip)
        };
        if let Some(node) = self.nodes.values().find(has) {
            return Err(taken(ip, format!("node `{}`", node.identity.name)));
        }
        if self.vips.contains_key(&ip) {
            return Err(taken(ip, "a VIP of gateways".to_owned()));
        }
        // What still runs has it too, whatever its service is to be by now, and so has what may run again.
        let wanted = self.services.values().map(|service| &service.spec);
        let running = self.replicas.values().map(|replica| &replica.spec);
        let may_return = self.deployments.values().filter(|deployment| !deployment.stage.is_over()).filter_map(|it| {
            let versions = self.versions.get(&it.service)?;
            Some(&versions.get(&it.from?)?.spec)
        });
        let mut others = wanted.chain(running).chain(may_return).filter(|spec| !but(&spec.name));
        match others.find(|spec| spec.vip.as_ref().is_some_and(|vip| vip.address.ip() == ip)) {
            Some(spec) => Err(taken(ip, format!("service `{}`", spec.name))),
            None => Ok(()),
        }
    }

    /// Who may hold a VIP of gateways, the first choice first. Each VIP has another order, so that several
    /// of them are spread; and a gateway that comes or goes changes the order of no others.
    #[must_use]
    pub fn gateways_of(&self, vip: &VipRecord) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> =
            self.nodes.values().filter(|node| vip.is_for(node)).map(|node| node.identity.id).collect();
        nodes.sort_by_key(|node| (std::cmp::Reverse(weight(vip.address.ip(), *node)), *node));
        nodes
    }
}

/// Rendezvous hashing: the node with the highest weight is the first choice.
fn weight(ip: IpAddr, node: NodeId) -> u64 {
    use sha2::{Digest as _, Sha256};
    let mut hash = Sha256::new();
    match ip {
        IpAddr::V4(ip) => hash.update(ip.octets()),
        IpAddr::V6(ip) => hash.update(ip.octets()),
    }
    hash.update(node.0.as_bytes());
    let digest: [u8; 32] = hash.finalize().into();
    u64::from_be_bytes(digest[..8].try_into().expect("a digest has more than eight bytes"))
}

pub(crate) fn taken(address: IpAddr, owner: String) -> Refusal {
    Refusal::VipTaken { address, owner }
}

fn invalid(problem: String) -> Refusal {
    Refusal::Invalid { field: "vip".into(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use crate::id::LogIndex;
    use crate::spec::{Format, parse};
    use crate::state::{Health, NodeIdentity};
    use std::collections::BTreeSet;

    fn address(text: &str) -> VipAddress {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_one_that_a_server_can_have_and_is_written_in_one_way() {
        for (text, shown) in [
            ("10.0.0.9/24", "10.0.0.9/24"),
            ("10.0.0.9", "10.0.0.9/32"),
            ("10.0.0.8/31", "10.0.0.8/31"),
            ("2001:DB8:0::9/64", "2001:db8::9/64"),
            ("2001:db8::9", "2001:db8::9/128"),
        ] {
            assert_eq!(address(text).to_string(), shown);
        }
        for text in [
            "",
            "10.0.0",
            "10.0.0.9/",
            "10.0.0.9/+8",
            "10.0.0.9/33",
            "10.0.0.9/0",
            "10.0.0.0/24",
            "10.0.0.255/24",
            "127.0.0.1/8",
            "0.0.0.0/8",
            "224.0.0.18/24",
            "255.255.255.255/32",
            "::1/128",
            "fe80::1/64",
            "ff02::1/64",
            "::ffff:10.0.0.9/120",
            "2001:db8::9/129",
            "host/24",
            "10.0.0.9/24/24",
        ] {
            assert!(text.parse::<VipAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_subnet_is_as_large_as_its_prefix_says() {
        let near = |vip: &str, ip: &str| address(vip).is_near(ip.parse().unwrap());
        assert!(near("10.0.0.9/24", "10.0.0.200") && !near("10.0.0.9/24", "10.0.1.9"));
        assert!(near("10.0.0.9/1", "100.0.0.1") && !near("10.0.0.9/32", "10.0.0.8"));
        assert!(near("2001:db8::9/64", "2001:db8::1:0:0:1") && !near("2001:db8::9/64", "2001:db8:0:1::1"));
        assert!(!near("2001:db8::9/128", "2001:db8::8") && !near("10.0.0.9/24", "::1"));
    }

    #[test]
    fn an_interface_has_a_name_that_linux_takes() {
        assert!(["eth0", "br-a.7", "enp0s31f6"].iter().all(|name| name.parse::<Interface>().is_ok()));
        assert!(
            ["", ".", "..", "a/b", "a b", "eth0:1", "sixteen-letters-"]
                .iter()
                .all(|name| name.parse::<Interface>().is_err())
        );
    }

    fn gateway(state: &mut ClusterState, number: u128, zone: &str) -> NodeId {
        let id = NodeId::from_u128(number << 64);
        let at = format!("10.0.0.{number}:7000");
        let identity = NodeIdentity {
            id,
            name: format!("n{number}"),
            roles: BTreeSet::from([Role::Gateway]),
            api: at.clone(),
            link: at,
            host: format!("10.0.0.{number}"),
        };
        let mut record = NodeRecord::started(identity, Health::Joined, WallTime(1));
        record.labels.insert("zone".into(), zone.into());
        state.nodes.insert(id, record);
        id
    }

    fn run(state: &mut ClusterState, command: VipCommand) -> Result<usize, Refusal> {
        let index = LogIndex(state.planned_on.0 + 1);
        let changes = state.decide(index, WallTime(index.0), &Command::Vip(command))?;
        state.absorb(index, &changes);
        Ok(changes.len())
    }

    fn add(text: &str) -> VipCommand {
        VipCommand::Add { address: address(text), interface: None, gateways: BTreeMap::new() }
    }

    #[test]
    fn an_address_has_one_owner() {
        let mut state = ClusterState::default();
        gateway(&mut state, 1, "a");
        assert_eq!(run(&mut state, add("10.0.0.9/24")).unwrap(), 2);
        assert_eq!(run(&mut state, add("10.0.0.9/24")).unwrap(), 0, "asked twice, nothing changes");
        let refused = run(&mut state, add("10.0.0.9/16")).unwrap_err().to_string();
        assert_eq!(refused, "10.0.0.9 belongs to another VIP of gateways already");
        let refused = run(&mut state, add("10.0.0.1/24")).unwrap_err().to_string();
        assert_eq!(refused, "10.0.0.1 belongs to node `n1` already");
        let remove = VipCommand::Remove { address: address("10.0.0.9/24").ip() };
        assert_eq!(run(&mut state, remove.clone()).unwrap(), 2);
        assert_eq!(run(&mut state, remove).unwrap_err().to_string(), "there is no VIP 10.0.0.9");
        for number in 0..VIPS_MAX {
            run(&mut state, add(&format!("10.1.0.{}/24", number + 1))).unwrap();
        }
        let refused = run(&mut state, add("10.2.0.1/24")).unwrap_err().to_string();
        assert_eq!(refused, "`vip` would be one more than 32, which are allowed");
    }

    #[test]
    fn an_address_of_gateways_is_no_services_and_the_other_way_round() {
        let mut state = ClusterState::default();
        let apply = |name: &str, ip: &str| {
            let text = format!("[[service]]\nname = '{name}'\nmode = 'singleton'\ndriver = 'vip'\nvip = '{ip}/24'");
            Command::ApplySpec { document: parse(&text, Format::Toml).unwrap() }
        };
        let refused = |state: &ClusterState, command: &Command| {
            state.decide(LogIndex(9), WallTime(9), command).map(drop).unwrap_err().to_string()
        };
        let changes = state.decide(LogIndex(1), WallTime(1), &apply("db", "10.0.0.8")).unwrap();
        state.absorb(LogIndex(1), &changes);
        assert!(state.decide(LogIndex(2), WallTime(2), &apply("db", "10.0.0.8")).unwrap().is_empty());
        assert_eq!(refused(&state, &apply("web", "10.0.0.8")), "10.0.0.8 belongs to service `db` already");
        assert_eq!(refused(&state, &Command::Vip(add("10.0.0.8/24"))), "10.0.0.8 belongs to service `db` already");
        run(&mut state, add("10.0.0.9/24")).unwrap();
        assert_eq!(refused(&state, &apply("web", "10.0.0.9")), "10.0.0.9 belongs to a VIP of gateways already");
    }

    #[test]
    fn labels_say_which_gateways_gateways_of_an_address() {
        let mut state = ClusterState::default();
        let nodes: Vec<NodeId> =
            [(1, "a"), (2, "a"), (3, "b")].iter().map(|(number, zone)| gateway(&mut state, *number, zone)).collect();
        let wanted = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        let add = VipCommand::Add { address: address("10.0.0.9/24"), interface: None, gateways: wanted };
        run(&mut state, add).unwrap();
        let vip = state.vips.values().next().unwrap().clone();
        let may = BTreeSet::from_iter(state.gateways_of(&vip));
        assert_eq!(may, BTreeSet::from([nodes[0], nodes[1]]));
        state.nodes.get_mut(&nodes[0]).unwrap().identity.roles.clear();
        assert_eq!(state.gateways_of(&vip), [nodes[1]]);
        let odd = BTreeMap::from([("zone".to_owned(), String::new())]);
        let add = VipCommand::Add { address: address("10.0.0.8/24"), interface: None, gateways: odd };
        assert!(run(&mut state, add).is_err());
    }

    #[test]
    fn first_choices_are_spread_and_a_gateway_that_goes_moves_no_others() {
        let mut state = ClusterState::default();
        let nodes: Vec<NodeId> = (1..5).map(|number| gateway(&mut state, number, "a")).collect();
        let vips: Vec<VipRecord> = (0..32)
            .map(|number| VipRecord {
                address: address(&format!("10.1.0.{}/24", number + 1)),
                interface: None,
                gateways: BTreeMap::new(),
                since: WallTime(1),
            })
            .collect();
        let first = |state: &ClusterState, node| vips.iter().filter(|vip| state.gateways_of(vip)[0] == node).count();
        assert!(nodes.iter().all(|node| (4..=13).contains(&first(&state, *node))));
        let before: Vec<_> = vips.iter().map(|vip| state.gateways_of(vip)).collect();
        state.nodes.remove(&nodes[2]);
        for (vip, before) in vips.iter().zip(before) {
            let without: Vec<NodeId> = before.into_iter().filter(|node| *node != nodes[2]).collect();
            assert_eq!(state.gateways_of(vip), without);
        }
    }
}
