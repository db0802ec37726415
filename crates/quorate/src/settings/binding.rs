//! Addresses as operators write them, and which address of this machine each one means.
//!
//! ```text
//! [tcp://] HOST [:PORT]          HOST may stand in brackets, and must if it is IPv6 and a port follows
//! HOST = address | _site_ | interface, the last two with :ipv4 (default) or :ipv6 behind them
//! ```
//! So `tcp://[eth0:ipv4]:7511`, `_site_`, `_site_:ipv6`, `192.168.1.51:7000`, `[::1]:7000` and
//! `0.0.0.0` are all good. What was written is kept; what it means is looked up on the machine at
//! hand, by [`Binding::resolve`], which is pure: the same interfaces give the same answer, and the
//! answer says in a sentence how it was found.
//!
//! `_site_` is the first public address of the family, in the order of the interfaces; if there is
//! none, the first private one. Loopback and link-local addresses are never chosen: no other server
//! could use them.
//!
//! # Sources
//! The syntax is that of the bindings of Kuzzle's cluster plugin.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The name that stands for "however others reach this machine".
const SITE: &str = "_site_";
/// Longest name of an interface (IFNAMSIZ without its end).
const INTERFACE_MAX: usize = 15;

/// Where to listen, or how to be reached, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binding {
    pub host: Host,
    /// `None`: the default of the setting.
    pub port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    Address(IpAddr),
    /// An address of the interface with this name.
    Interface(String, Family),
    /// The address at which other servers most likely reach this one.
    Site(Family),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }
}

/// The text is not a binding; the message says what is wrong with which part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadBinding {
    #[error("`{0}` is not tcp: write tcp://HOST:PORT or HOST:PORT")]
    Scheme(String),
    #[error("`{0}` has an opening bracket without a closing one behind the host")]
    Bracket(String),
    #[error("`{0}` is not a port: give 1 to 65535")]
    Port(String),
    #[error("`{0}` is not a family: give ipv4 or ipv6")]
    Family(String),
    #[error("{address} is not an {} address", .family.name())]
    OtherFamily { address: IpAddr, family: Family },
    #[error("`{0}` is neither an address, nor _site_, nor the name of an interface")]
    Host(String),
}

impl FromStr for Binding {
    type Err = BadBinding;

    fn from_str(text: &str) -> Result<Self, BadBinding> {
        let text = text.trim();
        let rest = match text.split_once("://") {
            Some(("tcp", rest)) => rest,
            Some((scheme, _)) => return Err(BadBinding::Scheme(scheme.to_owned())),
            None => text,
        };
        if let Some(inside) = rest.strip_prefix('[') {
            let (host, behind) = inside.split_once(']').ok_or_else(|| BadBinding::Bracket(text.to_owned()))?;
            let port = match behind.strip_prefix(':') {
                Some(port) => Some(port_of(port)?),
                None if behind.is_empty() => None,
                None => return Err(BadBinding::Bracket(text.to_owned())),
            };
            return Ok(Binding { host: host.parse()?, port });
        }
        // An IPv6 address without brackets is all colons, so nothing of it is a port.
        if let Ok(address) = rest.parse::<Ipv6Addr>() {
            return Ok(Binding { host: Host::Address(address.into()), port: None });
        }
        match rest.rsplit_once(':') {
            // `_site_:ipv6` ends in a family, not in a port.
            Some((_, last)) if family_of(last).is_ok() => Ok(Binding { host: rest.parse()?, port: None }),
            Some((host, port)) => Ok(Binding { host: host.parse()?, port: Some(port_of(port)?) }),
            None => Ok(Binding { host: rest.parse()?, port: None }),
        }
    }
}

impl FromStr for Host {
    type Err = BadBinding;

    /// What is between the brackets.
    fn from_str(text: &str) -> Result<Self, BadBinding> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Host::Address(address));
        }
        let (name, family) = match text.rsplit_once(':') {
            Some((name, family)) => (name, Some(family_of(family)?)),
            None => (text, None),
        };
        if let Ok(address) = name.parse::<IpAddr>() {
            return match family {
                Some(family) if family != Family::of(address) => Err(BadBinding::OtherFamily { address, family }),
                _ => Ok(Host::Address(address)),
            };
        }
        let family = family.unwrap_or(Family::V4);
        if name == SITE {
            return Ok(Host::Site(family));
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '@');
        // Four numbers with dots are a mistyped address rather than an interface.
        let numeric = name.chars().all(|c| c.is_ascii_digit() || c == '.');
        if name.is_empty() || name.len() > INTERFACE_MAX || numeric || !name.chars().all(legal) {
            return Err(BadBinding::Host(name.to_owned()));
        }
        Ok(Host::Interface(name.to_owned(), family))
    }
}

fn port_of(text: &str) -> Result<u16, BadBinding> {
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| BadBinding::Port(text.to_owned()))
}

fn family_of(text: &str) -> Result<Family, BadBinding> {
    match text {
        "ipv4" => Ok(Family::V4),
        "ipv6" => Ok(Family::V6),
        _ => Err(BadBinding::Family(text.to_owned())),
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Address(address) => write!(f, "{address}"),
            Host::Interface(name, Family::V4) => f.write_str(name),
            Host::Interface(name, Family::V6) => write!(f, "{name}:ipv6"),
            Host::Site(Family::V4) => f.write_str(SITE),
            Host::Site(Family::V6) => write!(f, "{SITE}:ipv6"),
        }
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.host.to_string();
        match self.port {
            Some(port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Some(port) => write!(f, "{host}:{port}"),
            None => f.write_str(&host),
        }
    }
}

/// A network interface of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    pub name: String,
    /// The kernel's number; interfaces are looked at in its order.
    pub index: u32,
    pub addresses: Vec<IpAddr>,
}

/// What a binding means on one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bound {
    /// Where to listen.
    pub listen: SocketAddr,
    /// How others reach it.
    pub advertise: SocketAddr,
    /// How that was found, in a sentence for `status`.
    pub because: String,
}

/// This machine has no address that the binding means.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoAddress {
    #[error("this machine has no interface `{name}`; it has {}", .known.join(", "))]
    NoInterface { name: String, known: Vec<String> },
    #[error("interface `{name}` has no {} address that other servers could use", .family.name())]
    NotOnInterface { name: String, family: Family },
    #[error("no interface has an {} address that other servers could use (loopback and link-local do not count)", .0.name())]
    NoSite(Family),
}

/// Why an address was taken that needed no choice.
const AS_WRITTEN: &str = " is configured";

/// Whether this is why an address was taken that somebody wrote down.
pub(crate) fn is_as_written(because: &str) -> bool {
    because.strip_suffix(AS_WRITTEN).is_some_and(|address| address.parse::<IpAddr>().is_ok())
}

impl Binding {
    /// What this means on a machine with these interfaces.
    ///
    /// # Errors
    /// [`NoAddress`] when the machine has nothing of the kind.
    pub(crate) fn resolve(&self, default_port: u16, interfaces: &[Interface]) -> Result<Bound, NoAddress> {
        let port = self.port.unwrap_or(default_port);
        let bound = |listen: IpAddr, advertise: IpAddr, because: String| Bound {
            listen: SocketAddr::new(listen, port),
            advertise: SocketAddr::new(advertise, port),
            because,
        };
        match &self.host {
            Host::Address(all) if all.is_unspecified() => {
                let family = Family::of(*all);
                let (site, how) = site(family, interfaces)?;
                Ok(bound(*all, site, format!("{all} listens on every address and is announced as {site}, {how}")))
            }
            Host::Address(address) => Ok(bound(*address, *address, format!("{address}{AS_WRITTEN}"))),
            Host::Interface(name, family) => {
                let address = on_interface(name, *family, interfaces)?;
                let how = format!("{address} is the first {} address of interface {name}", family.name());
                Ok(bound(address, address, how))
            }
            Host::Site(family) => {
                let (site, how) = site(*family, interfaces)?;
                Ok(bound(site, site, format!("{site} is {how}")))
            }
        }
    }
}

/// Interfaces with their addresses of a family, in the order of their numbers.
fn addresses(family: Family, interfaces: &[Interface]) -> Vec<(&str, IpAddr)> {
    let mut ordered: Vec<&Interface> = interfaces.iter().collect();
    ordered.sort_by_key(|interface| interface.index);
    ordered
        .into_iter()
        .flat_map(|interface| interface.addresses.iter().map(|address| (interface.name.as_str(), *address)))
        .filter(|(_, address)| Family::of(*address) == family)
        .collect()
}

fn on_interface(name: &str, family: Family, interfaces: &[Interface]) -> Result<IpAddr, NoAddress> {
    if !interfaces.iter().any(|interface| interface.name == name) {
        let known = interfaces.iter().map(|interface| interface.name.clone()).collect();
        return Err(NoAddress::NoInterface { name: name.to_owned(), known });
    }
    addresses(family, interfaces)
        .into_iter()
        // Whoever names `lo` means it; a link-local address would need its interface with it everywhere.
        .find(|(of, address)| *of == name && (address.is_loopback() || reach(*address) != Reach::Nobody))
        .map(|(_, address)| address)
        .ok_or_else(|| NoAddress::NotOnInterface { name: name.to_owned(), family })
}

fn site(family: Family, interfaces: &[Interface]) -> Result<(IpAddr, String), NoAddress> {
    let all = addresses(family, interfaces);
    let first = |wanted| all.iter().find(|(_, address)| reach(*address) == wanted);
    let how = |kind: &str, name: &str| format!("the first {kind} {} address, on interface {name}", family.name());
    match (first(Reach::World), first(Reach::Site)) {
        (Some((name, address)), _) => Ok((*address, how("public", name))),
        (None, Some((name, address))) => Ok((*address, format!("{}, as none is public", how("private", name)))),
        (None, None) => Err(NoAddress::NoSite(family)),
    }
}

/// Who can use an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    World,
    /// Servers of the same site: private and shared ranges, and those set aside for examples.
    Site,
    /// This machine alone, or only together with the name of an interface.
    Nobody,
}

fn reach(address: IpAddr) -> Reach {
    match address {
        IpAddr::V4(address) => reach_v4(address),
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(inner) => reach_v4(inner),
            None => reach_v6(address),
        },
    }
}

fn reach_v4(address: Ipv4Addr) -> Reach {
    let [a, b, ..] = address.octets();
    if address.is_loopback() || address.is_link_local() || a == 0 || a >= 224 {
        return Reach::Nobody;
    }
    // 100.64/10 is a provider's inside (RFC 6598), 198.18/15 is for benchmarks (RFC 2544).
    let inside = address.is_private()
        || (a == 100 && (64..128).contains(&b))
        || (a == 198 && (18..20).contains(&b))
        || address.is_documentation();
    if inside { Reach::Site } else { Reach::World }
}

fn reach_v6(address: Ipv6Addr) -> Reach {
    let segments = address.segments();
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() || address.is_unicast_link_local() {
        return Reach::Nobody;
    }
    // fc00::/7 is private (RFC 4193); 2001:db8::/32 is for examples (RFC 3849).
    let inside = address.is_unique_local() || (segments[0] == 0x2001 && segments[1] == 0xdb8);
    if inside { Reach::Site } else { Reach::World }
}

/// The interfaces of this machine that have an address, in the order of their numbers.
///
/// # Errors
/// What the system says when it does not tell.
pub(crate) fn interfaces() -> std::io::Result<Vec<Interface>> {
    let mut found: Vec<Interface> = Vec::new();
    for entry in if_addrs::get_if_addrs()? {
        let address = entry.ip();
        match found.iter_mut().find(|known| known.name == entry.name) {
            Some(known) => known.addresses.push(address),
            None => found.push(Interface {
                index: entry.index.unwrap_or(u32::MAX),
                name: entry.name,
                addresses: vec![address],
            }),
        }
    }
    found.sort_by_key(|interface| interface.index);
    Ok(found)
}

#[cfg(test)]
mod tests;
