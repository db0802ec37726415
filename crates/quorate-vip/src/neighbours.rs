//! Who else on the network has an address, and telling everybody that this machine has it.
//!
//! IPv4 by ARP on a packet socket, IPv6 by neighbour solicitation and advertisement on a raw one. Nothing here
//! waits: the holder of a [`Neighbours`] asks when it wants to, and looks at what has come in since.
//!
//! Neighbours believe an announcement when it comes, and forget none of it; a lost one is told again
//! ([`ANNOUNCED_AFTER`]).
//!
//! # Sources
//! RFC 826 (ARP), RFC 5227 (probes, announcements, conflicts), RFC 4861 (neighbour discovery) and packet(7).

#![allow(unsafe_code, reason = "rustix has no address of a packet socket, which is a plain struct")]

use crate::kernel::Place;
use quorate_model::vip::VipAddress;
use rustix::io::Errno;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::sockopt::{set_ipv6_multicast_hops, set_ipv6_multicast_if, set_ipv6_multicast_loop};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrAny, SocketAddrV6, SocketFlags, SocketType, bind, eth, ipproto,
    recv, recvfrom, sendto, socket_with,
};
use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// When an address is announced, counted from when it was taken: at once, soon again in case that was lost, and
/// until whoever had it before has surely lost it.
pub const ANNOUNCED_AFTER: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

const BROADCAST: [u8; 6] = [0xff; 6];
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
/// An Ethernet head and an ARP packet for IPv4.
const ARP_FRAME: usize = 14 + 28;

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Flag of an advertisement: what was known before is to be overwritten.
const OVERRIDE: u8 = 0x20;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// As many packets are looked at in one go. Nobody's flood keeps the holder from its own work.
const LOOKED_AT: usize = 64;

/// Somebody else's Ethernet address; zeros if it was not told.
pub type Hardware = [u8; 6];

/// One address, seen from one interface.
#[derive(Debug)]
pub struct Neighbours {
    ip: IpAddr,
    interface: u32,
    /// Of this interface.
    hardware: Hardware,
    socket: OwnedFd,
}

impl Neighbours {
    /// Begins to listen. `None`: the interface is no Ethernet, so nobody is asked and nobody needs to be told.
    ///
    /// # Errors
    /// The system gives no such socket; without CAP_NET_RAW the error says so.
    pub fn listen(vip: VipAddress, place: &Place) -> io::Result<Option<Neighbours>> {
        Neighbours::open(vip, place).map_err(|errno| match errno {
            Errno::PERM | Errno::ACCESS => {
                let needs = "asking the network who has an address needs the capability CAP_NET_RAW: run it as root";
                io::Error::new(io::ErrorKind::PermissionDenied, needs)
            }
            other => other.into(),
        })
    }

    fn open(vip: VipAddress, place: &Place) -> rustix::io::Result<Option<Neighbours>> {
        let Some(hardware) = place.hardware.filter(|hardware| *hardware != [0; 6]) else { return Ok(None) };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match vip.ip() {
            IpAddr::V4(_) => {
                let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(eth::ARP))?;
                bind(&socket, &LinkAddress::of(place.index))?;
                socket
            }
            IpAddr::V6(_) => {
                let socket = socket_with(AddressFamily::INET6, SocketType::RAW, flags, Some(ipproto::ICMPV6))?;
                set_ipv6_multicast_if(&socket, place.index)?;
                // Others take nothing that may have come through a router.
                set_ipv6_multicast_hops(&socket, 255)?;
                set_ipv6_multicast_loop(&socket, false)?;
                socket
            }
        };
        Ok(Some(Neighbours { ip: vip.ip(), interface: place.index, hardware, socket }))
    }

    /// Asks who has the address; [`other`](Neighbours::other) hears the answer. Whoever does not have it
    /// learns nothing wrong from the question.
    ///
    /// # Errors
    /// The interface is down, or the system has no memory.
    pub fn ask(&self) -> io::Result<()> {
        match self.ip {
            // No sender: a probe as in RFC 5227.
            IpAddr::V4(ip) => self.send_arp(ARP_REQUEST, Ipv4Addr::UNSPECIFIED, ip, [0; 6]),
            IpAddr::V6(ip) => {
                let octets = ip.octets();
                let to =
                    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, octets[13], octets[14], octets[15]]);
                self.send_icmp(&discovery(SOLICITATION, 0, ip, 1, self.hardware), to)
            }
        }
    }

    /// Tells everybody that this machine has the address.
    ///
    /// # Errors
    /// The interface is down, or the system has no memory.
    pub fn announce(&self) -> io::Result<()> {
        match self.ip {
            // Some systems learn from a request and some from a reply; Linux from one to the sender itself.
            IpAddr::V4(ip) => {
                self.send_arp(ARP_REQUEST, ip, ip, [0; 6])?;
                self.send_arp(ARP_REPLY, ip, ip, self.hardware)
            }
            IpAddr::V6(ip) => self.send_icmp(&discovery(ADVERTISEMENT, OVERRIDE, ip, 2, self.hardware), ALL_NODES),
        }
    }

    /// Who else said since the last look that it has the address.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn other(&self) -> io::Result<Option<Hardware>> {
        let mut buffer = [0; 1_500];
        let mut found = None;
        for _ in 0..LOOKED_AT {
            let said = match self.ip {
                IpAddr::V4(ip) => match recv(&self.socket, &mut buffer, RecvFlags::empty()) {
                    Ok((length, _)) => claims_arp(&buffer[..length], ip),
                    Err(error) => return until_now(error, found),
                },
                IpAddr::V6(ip) => match recvfrom(&self.socket, &mut buffer, RecvFlags::empty()) {
                    Ok((length, _, from)) if self.is_here(from.as_ref()) => claims_icmp(&buffer[..length], ip),
                    Ok(_) => None,
                    Err(error) => return until_now(error, found),
                },
            };
            found = said.filter(|hardware| *hardware != self.hardware).or(found);
        }
        Ok(found)
    }

    /// The raw socket hears every interface; neighbours speak from addresses of theirs.
    fn is_here(&self, from: Option<&SocketAddrAny>) -> bool {
        let from = from.and_then(|from| SocketAddrV6::try_from(from.clone()).ok());
        from.is_some_and(|from| from.scope_id() == 0 || from.scope_id() == self.interface)
    }

    fn send_arp(&self, operation: u16, sender: Ipv4Addr, target: Ipv4Addr, asked: Hardware) -> io::Result<()> {
        let frame = arp(self.hardware, operation, sender, target, asked);
        sendto(&self.socket, &frame, SendFlags::empty(), &LinkAddress::of(self.interface))?;
        Ok(())
    }

    fn send_icmp(&self, packet: &[u8], to: Ipv6Addr) -> io::Result<()> {
        // The kernel fills in the checksum of what leaves such a socket.
        sendto(&self.socket, packet, SendFlags::empty(), &SocketAddrV6::new(to, 0, 0, self.interface))?;
        Ok(())
    }
}

fn until_now(error: Errno, found: Option<Hardware>) -> io::Result<Option<Hardware>> {
    match error {
        Errno::AGAIN | Errno::INTR => Ok(found),
        // Told once, by whichever call comes next; the interface may be up again by then.
        Errno::NETDOWN => Ok(found),
        other => Err(other.into()),
    }
}

fn arp(from: Hardware, operation: u16, sender: Ipv4Addr, target: Ipv4Addr, asked: Hardware) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ARP_FRAME);
    frame.extend(BROADCAST);
    frame.extend(from);
    // ARP; Ethernet with 6 bytes, IPv4 with 4.
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(from);
    frame.extend(sender.octets());
    frame.extend(asked);
    frame.extend(target.octets());
    frame
}

/// Who says by ARP that it has `ip`: as its own, whatever it asks or answers; or because it is about to take it.
fn claims_arp(frame: &[u8], ip: Ipv4Addr) -> Option<Hardware> {
    let packet = frame.get(14..ARP_FRAME)?;
    if packet[..6] != [0, 1, 0x08, 0x00, 6, 4] || packet[14..18] != ip.octets() {
        return None;
    }
    packet[8..14].try_into().ok()
}

/// A neighbour's solicitation or advertisement, with its Ethernet address as the option of that kind.
fn discovery(kind: u8, flags: u8, target: Ipv6Addr, option: u8, hardware: Hardware) -> Vec<u8> {
    let mut packet = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    packet.extend(target.octets());
    packet.extend([option, 1]);
    packet.extend(hardware);
    packet
}

/// Who says by an advertisement that it has `ip`.
fn claims_icmp(packet: &[u8], ip: Ipv6Addr) -> Option<Hardware> {
    if packet.first() != Some(&ADVERTISEMENT) || packet.get(8..24)? != ip.octets() {
        return None;
    }
    let option = packet.get(24..32).filter(|option| option[..2] == [2, 1]);
    Some(option.and_then(|option| option[2..].try_into().ok()).unwrap_or_default())
}

/// Where a packet socket sends to and hears from: everybody at one interface.
struct LinkAddress(libc::sockaddr_ll);

impl LinkAddress {
    fn of(interface: u32) -> LinkAddress {
        let mut halves = [0; 8];
        halves[..6].copy_from_slice(&BROADCAST);
        LinkAddress(libc::sockaddr_ll {
            sll_family: u16::try_from(libc::AF_PACKET).unwrap_or_default(),
            sll_protocol: u16::try_from(libc::ETH_P_ARP).unwrap_or_default().to_be(),
            sll_ifindex: interface.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: halves,
        })
    }
}

// SAFETY: what `f` is given points to a whole `sockaddr_ll`, which is what a packet socket takes.
unsafe impl SocketAddrArg for LinkAddress {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        let length = SocketAddrLen::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
        f((&raw const self.0).cast(), length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINE: Hardware = [2, 0, 0, 0, 0, 1];
    const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);

    #[test]
    fn who_has_an_address_says_so_and_who_asks_for_it_does_not() {
        assert_eq!(claims_arp(&arp(MINE, ARP_REPLY, IP, IP, BROADCAST), IP), Some(MINE));
        assert_eq!(claims_arp(&arp(MINE, ARP_REQUEST, IP, IP, [0; 6]), IP), Some(MINE));
        assert_eq!(claims_arp(&arp(MINE, ARP_REQUEST, Ipv4Addr::UNSPECIFIED, IP, [0; 6]), IP), None);
        assert_eq!(claims_arp(&arp(MINE, ARP_REPLY, Ipv4Addr::new(10, 0, 0, 8), IP, BROADCAST), IP), None);
        let ip = "2001:db8::9".parse().unwrap();
        assert_eq!(claims_icmp(&discovery(ADVERTISEMENT, OVERRIDE, ip, 2, MINE), ip), Some(MINE));
        assert_eq!(claims_icmp(&discovery(SOLICITATION, 0, ip, 1, MINE), ip), None);
        assert_eq!(claims_icmp(&discovery(ADVERTISEMENT, OVERRIDE, "2001:db8::8".parse().unwrap(), 2, MINE), ip), None);
    }

    #[test]
    fn what_is_cut_says_nothing() {
        let (frame, ip) = (arp(MINE, ARP_REPLY, IP, IP, BROADCAST), "2001:db8::9".parse().unwrap());
        assert!((0..frame.len()).all(|cut| claims_arp(&frame[..cut], IP).is_none()));
        let packet = discovery(ADVERTISEMENT, OVERRIDE, ip, 2, MINE);
        assert!((0..24).all(|cut| claims_icmp(&packet[..cut], ip).is_none()));
        assert_eq!(claims_icmp(&packet[..24], ip), Some([0; 6]), "an advertisement need not say whose it is");
    }
}
