//! Addresses on the interfaces of this machine, each with an end.
//!
//! An address is added with a life of whole seconds and renewed by whoever holds it. When nobody does, the
//! kernel removes it: that fences a VIP also while its holder is stopped, or dead.
//!
//! # How exactly the kernel keeps that end
//! It counts whole seconds from when it was asked, and looks at all addresses of a namespace at once, at most
//! once a second. Measured on Linux 6.18 (250 Hz), 2 cores with a load of about 8, 12 times each, from the end
//! that was asked for to the message that the address is gone:
//!
//! | life | IPv4 | IPv6 |
//! |---|---|---|
//! | 1 to 4 s, alone | 0.00 – 0.37 s late | 0.02 s early – 0.32 s late |
//! | 3 s, while another address expires shortly before | 0.00 – 1.06 s late | 0.03 s early – 1.00 s late |
//!
//! By its source (`check_lifetime` in `net/ipv4/devinet.c`, `addrconf_verify_rtnl` in `net/ipv6/addrconf.c`) it
//! may be 20 ms early, and late by a second between two looks and a quarter of one for rounding. [`LATENESS`] is
//! that and a quarter of a second for a machine with other work. The kernel counts ticks: it stands still while
//! the machine sleeps, as with everything else of a machine that is suspended.
//!
//! # Invariants
//! - Only addresses with a [`Mark`] are ever removed, or renewed.
//! - Every address that is added has an end.

use crate::message::{self, Address, Link};
use quorate_model::vip::{Interface, VipAddress};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// How much later than asked for the kernel may remove an address, at the most.
pub const LATENESS: Duration = Duration::from_millis(1_500);

/// The kernel answers within microseconds, unless something holds its lock on addresses.
const PATIENCE: Duration = Duration::from_secs(2);
/// The kernel fills at most 32 KiB with one piece of a list.
const PIECE: usize = 32 * 1024;

/// Who added an address. It is kept as the metric of the route to the address's subnet: the kernel keeps that
/// for both families since Linux 4.18 (a field for who added it came with 5.18, labels are for IPv4 alone), and
/// the route must come behind the machine's own in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// A gateway, for a VIP of gateways.
    Gateway,
    /// Whoever holds the lease of that epoch, for the VIP of a service. Another epoch's address is not removed:
    /// what an earlier holder left is cleaned up without harm to the next one here.
    Service { epoch: u64 },
}

/// The first byte of the metric says what kind of mark it is, the rest is of the epoch.
const GATEWAY: u32 = 0x5100_0000;
const SERVICE: u32 = 0x5200_0000;
const KIND: u32 = 0xff00_0000;

impl Mark {
    fn metric(self) -> u32 {
        match self {
            Mark::Gateway => GATEWAY,
            // Epochs that differ by 16 million are not of one boot.
            Mark::Service { epoch } => SERVICE | u32::try_from(epoch & 0x00ff_ffff).unwrap_or(0),
        }
    }

    /// Whether an address with that metric may be taken over.
    fn succeeds(self, metric: u32) -> bool {
        metric & KIND == self.metric() & KIND
    }
}

/// An interface that an address can be put on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub index: u32,
    pub name: String,
    /// Its Ethernet address, if it has one.
    pub hardware: Option<[u8; 6]>,
    /// It is up and its cable leads somewhere.
    pub works: bool,
}

/// Why an address is not as it should be. It is as it was before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    #[error("changing addresses needs the capability CAP_NET_ADMIN: run it as root")]
    NotAllowed,
    #[error("no interface has an address in the subnet of {0}: name the interface")]
    NoSubnet(VipAddress),
    #[error("there is no interface {0}")]
    NoInterface(Interface),
    #[error("{ip} is an address of this machine, on {interface}, that somebody else put there")]
    Foreign { ip: IpAddr, interface: String },
    #[error("the kernel does not answer")]
    Silent,
    #[error("the kernel refused it")]
    Refused(#[source] io::Error),
}

impl From<Errno> for KernelError {
    fn from(errno: Errno) -> KernelError {
        match errno {
            Errno::PERM | Errno::ACCESS => KernelError::NotAllowed,
            // EAGAIN is what a time limit on a socket gives.
            Errno::AGAIN => KernelError::Silent,
            other => KernelError::Refused(other.into()),
        }
    }
}

/// The kernel's door for addresses. One question at a time.
#[derive(Debug)]
pub struct Kernel {
    socket: OwnedFd,
    sequence: u32,
}

impl Kernel {
    /// # Errors
    /// The system gives no socket.
    pub fn open() -> Result<Kernel, KernelError> {
        // `None` stands for the protocol 0, which is that of routes and addresses.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Kernel { socket, sequence: 0 })
    }

    /// Where an address goes: the interface of that name, or the one with an address in its subnet. An address
    /// with a mark of ours is no reason, its own host's is.
    ///
    /// # Errors
    /// [`KernelError::NoInterface`], [`KernelError::NoSubnet`].
    pub fn place(&mut self, vip: VipAddress, named: Option<&Interface>) -> Result<Place, KernelError> {
        let links = self.links()?;
        let index = match named {
            Some(named) => links
                .values()
                .find(|link| link.name == named.as_str())
                .map(|link| link.index)
                .ok_or_else(|| KernelError::NoInterface(named.clone()))?,
            None => {
                let near = |address: &&Address| {
                    vip.is_near(address.ip) && address.ip != vip.ip() && !is_marked(address.metric)
                };
                let addresses = self.addresses()?;
                let real = |address: &&Address| !links.get(&address.interface).is_none_or(|link| link.is_loopback);
                addresses
                    .iter()
                    .filter(near)
                    .find(real)
                    .map(|address| address.interface)
                    .ok_or(KernelError::NoSubnet(vip))?
            }
        };
        let link = links.get(&index).ok_or(KernelError::NoSubnet(vip))?;
        Ok(Place { index, name: link.name.clone(), hardware: link.hardware, works: link.works })
    }

    /// Has the kernel answer for `vip` on that interface, and stop by itself after `life`, of which whole
    /// seconds count; at least one. Asked again, the life begins anew. What an earlier epoch left is taken over.
    ///
    /// # Errors
    /// [`KernelError::Foreign`] when this machine has it already and it is not ours.
    pub fn put(&mut self, vip: VipAddress, place: &Place, mark: Mark, life: Duration) -> Result<(), KernelError> {
        let same = |address: &&Address| address.ip == vip.ip() && !mark.succeeds(address.metric);
        if let Some(foreign) = self.addresses()?.iter().find(same) {
            let links = self.links()?;
            let interface = links.get(&foreign.interface).map_or_else(String::new, |link| link.name.clone());
            return Err(KernelError::Foreign { ip: vip.ip(), interface });
        }
        self.renew(vip, place, mark, life)
    }

    /// As [`put`](Kernel::put), for an address that was put there before: does not look whose it is.
    ///
    /// # Errors
    /// The kernel's.
    pub fn renew(&mut self, vip: VipAddress, place: &Place, mark: Mark, life: Duration) -> Result<(), KernelError> {
        let seconds = u32::try_from(life.as_secs().max(1)).unwrap_or(u32::MAX - 1);
        let sequence = self.next();
        self.carry_out(&message::put(vip, place.index, mark.metric(), seconds, sequence))
    }

    /// Takes an address with that mark off every interface that has it. One that is not there changes nothing.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove(&mut self, ip: IpAddr, mark: Mark) -> Result<(), KernelError> {
        self.remove_if(mark, |address| address.ip == ip).map(drop)
    }

    /// Takes everything off that has this mark, as a process may have left it that was killed. Says what that
    /// was.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove_all(&mut self, mark: Mark) -> Result<Vec<IpAddr>, KernelError> {
        self.remove_if(mark, |_| true)
    }

    /// What has this mark.
    ///
    /// # Errors
    /// The kernel's.
    pub fn held(&mut self, mark: Mark) -> Result<Vec<IpAddr>, KernelError> {
        let addresses = self.addresses()?.into_iter();
        Ok(addresses.filter(|address| address.metric == mark.metric()).map(|address| address.ip).collect())
    }

    fn remove_if(&mut self, mark: Mark, which: impl Fn(&Address) -> bool) -> Result<Vec<IpAddr>, KernelError> {
        let mut removed = Vec::new();
        for address in self.addresses()?.into_iter().filter(|address| address.metric == mark.metric()) {
            if !which(&address) {
                continue;
            }
            // It was one of ours, so it can be written as one.
            let Ok(vip) = format!("{}/{}", address.ip, address.prefix).parse() else { continue };
            let sequence = self.next();
            match self.carry_out(&message::delete(vip, address.interface, sequence)) {
                // Its life ended in between.
                Err(KernelError::Refused(error)) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
                done => done?,
            }
            removed.push(address.ip);
        }
        Ok(removed)
    }

    fn addresses(&mut self) -> Result<Vec<Address>, KernelError> {
        let mut found = Vec::new();
        self.list(message::GET_ADDRESS, message::NEW_ADDRESS, |body| found.extend(message::address(body)))?;
        Ok(found)
    }

    fn links(&mut self) -> Result<BTreeMap<u32, Link>, KernelError> {
        let mut found = BTreeMap::new();
        self.list(message::GET_LINK, message::NEW_LINK, |body| {
            found.extend(message::link(body).map(|link| (link.index, link)));
        })?;
        Ok(found)
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn list(&mut self, ask: u16, answer: u16, mut take: impl FnMut(&[u8])) -> Result<(), KernelError> {
        let sequence = self.next();
        self.send(&message::dump(ask, sequence))?;
        let mut buffer = vec![0; PIECE];
        loop {
            let length = self.receive(&mut buffer)?;
            for message in message::messages(&buffer[..length]).filter(|message| message.sequence == sequence) {
                match message.kind {
                    message::DONE => return Ok(()),
                    message::ERROR => return result(message.body),
                    kind if kind == answer => take(message.body),
                    _ => {}
                }
            }
        }
    }

    fn carry_out(&mut self, request: &[u8]) -> Result<(), KernelError> {
        self.send(request)?;
        let sequence = self.sequence;
        let mut buffer = vec![0; PIECE];
        loop {
            let length = self.receive(&mut buffer)?;
            // Anything else is the answer to a question that was given up.
            let mut all = message::messages(&buffer[..length]);
            if let Some(answer) = all.find(|it| it.sequence == sequence && it.kind == message::ERROR) {
                return result(answer.body);
            }
        }
    }

    fn send(&self, request: &[u8]) -> Result<(), KernelError> {
        sendto(&self.socket, request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        Ok(())
    }

    fn receive(&self, buffer: &mut [u8]) -> Result<usize, KernelError> {
        loop {
            match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((length, _)) => return Ok(length),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn is_marked(metric: u32) -> bool {
    [GATEWAY, SERVICE].contains(&(metric & KIND))
}

fn result(body: &[u8]) -> Result<(), KernelError> {
    match message::errno(body) {
        0 => Ok(()),
        number => Err(Errno::from_raw_os_error(number).into()),
    }
}
