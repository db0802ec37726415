//! Messages of rtnetlink, as far as addresses and links need them.
//!
//! Written by hand: eight message types and six attributes of an interface that the kernel never changes,
//! against crates of many times their size whose types change with each release.
//!
//! ```text
//! length 4 │ type 2 │ flags 2 │ sequence 4 │ port 4 │ head of the type │ attributes (length 2 │ type 2 │ value)…
//! ```
//! All numbers are of the machine's byte order; attributes and messages begin at multiples of four.
//!
//! # Sources
//! netlink(7), rtnetlink(7); `include/uapi/linux/{netlink,rtnetlink,if_addr,if_link}.h` in Linux.

use quorate_model::vip::VipAddress;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const ERROR: u16 = 2;
pub(crate) const DONE: u16 = 3;
pub(crate) const NEW_LINK: u16 = 16;
pub(crate) const GET_LINK: u16 = 18;
pub(crate) const NEW_ADDRESS: u16 = 20;
pub(crate) const DELETE_ADDRESS: u16 = 21;
pub(crate) const GET_ADDRESS: u16 = 22;

pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACK: u16 = 0x4;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const CREATE: u16 = 0x400;

const HEADER: usize = 16;
const ADDRESS_HEAD: usize = 8;
const LINK_HEAD: usize = 16;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_RT_PRIORITY: u16 = 9;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;

/// No duplicate address detection: who adds the address has asked, or knows who had it.
const IFA_F_NODAD: u32 = 0x02;

const IFF_UP: u32 = 0x1;
const IFF_LOOPBACK: u32 = 0x8;
const IFF_LOWER_UP: u32 = 0x1_0000;

/// One message as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

/// An address of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) interface: u32,
    pub(crate) ip: IpAddr,
    pub(crate) prefix: u8,
    /// The metric of the route to its subnet, if whoever added it chose one; else 0.
    pub(crate) metric: u32,
}

/// An interface of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Its address on the wire, if that is Ethernet.
    pub(crate) hardware: Option<[u8; 6]>,
    /// It is up and has a carrier.
    pub(crate) works: bool,
    pub(crate) is_loopback: bool,
}

/// Ask for all links, or all addresses.
pub(crate) fn dump(kind: u16, sequence: u32) -> Vec<u8> {
    let head = if kind == GET_LINK { [0; LINK_HEAD].as_slice() } else { [0; ADDRESS_HEAD].as_slice() };
    finish(begin(kind, REQUEST | DUMP, sequence, head))
}

/// Adds an address, or gives the one that is there another life of that many seconds.
pub(crate) fn put(address: VipAddress, interface: u32, metric: u32, seconds: u32, sequence: u32) -> Vec<u8> {
    let mut message = begin(NEW_ADDRESS, REQUEST | ACK | CREATE | REPLACE, sequence, &head(address, interface));
    let preferred = match address.ip() {
        // Deprecated from the start: connections of this machine do not begin at it.
        IpAddr::V6(_) => 0,
        // As long as it is there: IPv4 chooses by subnet, and in one it comes behind the machine's own.
        IpAddr::V4(_) => seconds,
    };
    let life: Vec<u8> = [preferred, seconds, 0, 0].iter().flat_map(|number| number.to_ne_bytes()).collect();
    attributes(&mut message, address);
    attribute(&mut message, IFA_CACHEINFO, &life);
    attribute(&mut message, IFA_FLAGS, &IFA_F_NODAD.to_ne_bytes());
    attribute(&mut message, IFA_RT_PRIORITY, &metric.to_ne_bytes());
    finish(message)
}

/// Takes an address off.
pub(crate) fn delete(address: VipAddress, interface: u32, sequence: u32) -> Vec<u8> {
    let mut message = begin(DELETE_ADDRESS, REQUEST | ACK, sequence, &head(address, interface));
    attributes(&mut message, address);
    finish(message)
}

fn head(address: VipAddress, interface: u32) -> [u8; ADDRESS_HEAD] {
    let family = if address.ip().is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut head = [0; ADDRESS_HEAD];
    // Address families are small numbers, and this field has always been a byte.
    head[0] = u8::try_from(family).unwrap_or_default();
    head[1] = address.prefix();
    head[4..].copy_from_slice(&interface.to_ne_bytes());
    head
}

fn attributes(message: &mut Vec<u8>, address: VipAddress) {
    let (v4, v6);
    let bytes: &[u8] = match address.ip() {
        IpAddr::V4(ip) => {
            v4 = ip.octets();
            &v4
        }
        IpAddr::V6(ip) => {
            v6 = ip.octets();
            &v6
        }
    };
    attribute(message, IFA_LOCAL, bytes);
    attribute(message, IFA_ADDRESS, bytes);
}

fn begin(kind: u16, flags: u16, sequence: u32, head: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 4];
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend([0; 4]);
    message.extend(head);
    message
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).expect("what is said of an address is a few bytes");
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(aligned(message.len()), 0);
}

fn finish(mut message: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("a message has some dozen bytes");
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message
}

const fn aligned(length: usize) -> usize {
    (length + 3) & !3
}

/// The messages in what was received. What is cut ends it.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.get(..HEADER)?;
        let length = usize::try_from(number(&header[..4])).ok()?;
        let whole = bytes.get(..length)?;
        let message = Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            sequence: number(&header[8..12]),
            body: whole.get(HEADER..)?,
        };
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some(message)
    })
}

/// The error that a message of the kind [`ERROR`] or [`DONE`] tells; 0 is none.
pub(crate) fn errno(body: &[u8]) -> i32 {
    body.get(..4).map_or(0, |bytes| i32::from_ne_bytes(bytes.try_into().unwrap_or_default()).saturating_neg())
}

/// What a message of the kind [`NEW_ADDRESS`] says.
pub(crate) fn address(body: &[u8]) -> Option<Address> {
    let (head, rest) = body.split_at_checked(ADDRESS_HEAD)?;
    let (mut local, mut other, mut metric) = (None, None, 0);
    for (kind, value) in all_attributes(rest) {
        match kind {
            IFA_LOCAL => local = ip(value),
            IFA_ADDRESS => other = ip(value),
            IFA_RT_PRIORITY => metric = number(value),
            _ => {}
        }
    }
    // IPv6 has no local one where there is no peer.
    Some(Address { interface: number(&head[4..]), ip: local.or(other)?, prefix: head[1], metric })
}

/// What a message of the kind [`NEW_LINK`] says.
pub(crate) fn link(body: &[u8]) -> Option<Link> {
    let (head, rest) = body.split_at_checked(LINK_HEAD)?;
    let flags = number(&head[8..12]);
    let (mut name, mut hardware) = (None, None);
    for (kind, value) in all_attributes(rest) {
        match kind {
            IFLA_IFNAME => {
                let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
                name = std::str::from_utf8(&value[..end]).ok().map(str::to_owned);
            }
            IFLA_ADDRESS => hardware = value.try_into().ok(),
            _ => {}
        }
    }
    Some(Link {
        index: number(&head[4..8]),
        name: name?,
        hardware,
        works: flags & IFF_UP != 0 && flags & IFF_LOWER_UP != 0,
        is_loopback: flags & IFF_LOOPBACK != 0,
    })
}

fn all_attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(value).ok().map(|octets| Ipv6Addr::from(octets).into())
}

/// Of four bytes.
fn number(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_what_is_read_back() {
        for text in ["10.0.0.9/24", "2001:db8::9/64"] {
            let vip: VipAddress = text.parse().unwrap();
            let asked = put(vip, 7, 0x51, 3, 1);
            let read: Vec<_> = messages(&asked).collect();
            assert_eq!((read.len(), read[0].kind, read[0].sequence), (1, NEW_ADDRESS, 1));
            let address = address(read[0].body).unwrap();
            assert_eq!(address, Address { interface: 7, ip: vip.ip(), prefix: vip.prefix(), metric: 0x51 });
        }
    }

    #[test]
    fn bytes_that_are_no_messages_are_no_messages() {
        let whole = put("10.0.0.9/24".parse().unwrap(), 7, 0x51, 3, 1);
        for cut in 0..whole.len() {
            assert_eq!(messages(&whole[..cut]).count(), 0, "{cut} bytes");
            for from in 0..cut {
                let _ = (address(&whole[from..cut]), link(&whole[from..cut]), errno(&whole[from..cut]));
            }
        }
        // A length of zero would go on for ever.
        assert_eq!(messages(&[0; 64]).count(), 0);
        assert!(all_attributes(&[0; 64]).next().is_none());
        assert!(all_attributes(&[3, 0, 1, 0, 9]).next().is_none());
    }

    #[test]
    fn several_messages_follow_each_other() {
        let vip = "10.0.0.9/24".parse().unwrap();
        let mut both = delete(vip, 7, 1);
        both.extend(dump(GET_LINK, 2));
        let kinds: Vec<_> = messages(&both).map(|message| (message.kind, message.sequence)).collect();
        assert_eq!(kinds, [(DELETE_ADDRESS, 1), (GET_LINK, 2)]);
    }
}
