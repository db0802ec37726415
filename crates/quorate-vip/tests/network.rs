//! The kernel's side, on a real network of two hosts: network namespaces, so these need root.
//!
//! Each test has a thread of its own that moves into a namespace; that ends with the thread.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use quorate_model::vip::VipAddress;
use quorate_vip::kernel::{Kernel, KernelError, LATENESS, Mark, Place};
use quorate_vip::neighbours::Neighbours;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A machine with work of its own may be slow.
const PATIENCE: Duration = Duration::from_secs(20);

fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}

fn vip(text: &str) -> VipAddress {
    text.parse().unwrap()
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "after {PATIENCE:?} still not: {what}");
        std::thread::yield_now();
    }
}

/// A host of its own, for as long as its process runs.
struct Host(Child);

impl Host {
    fn boot() -> Host {
        let host = Host(Command::new("unshare").args(["--net", "sleep", "1000"]).spawn().unwrap());
        let mine = std::fs::read_link("/proc/self/ns/net").unwrap();
        let its = format!("/proc/{}/ns/net", host.0.id());
        until("it has a namespace, which needs root", || {
            std::fs::read_link(&its).is_ok_and(|its| its != mine).then_some(())
        });
        host
    }

    /// What `work` finds here.
    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter(&namespace);
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two hosts with a cable between them, 10.77.0.1 and 10.77.0.2.
fn two_hosts() -> (Host, Host) {
    let (one, other) = (Host::boot(), Host::boot());
    let pid = other.0.id();
    one.within(|| ip(&format!("link add q0 type veth peer name q0 netns {pid}")));
    for (last, host) in [(1, &one), (2, &other)] {
        host.within(|| {
            ip(&format!("address add 10.77.0.{last}/24 dev q0"));
            ip(&format!("-6 address add 2001:db8::{last}/64 dev q0 nodad"));
            ip("link set up dev lo");
            ip("link set up dev q0");
        });
    }
    for host in [&one, &other] {
        host.within(|| {
            let mut kernel = Kernel::open().unwrap();
            until("the cable is there", || kernel.place(vip(V4), None).unwrap().works.then_some(()));
        });
    }
    (one, other)
}

fn enter(namespace: &File) {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

/// IPv6 takes a moment to be there after the cable.
fn announce(neighbours: &Neighbours) {
    until("IPv6 is there", || neighbours.announce().ok());
}

const V4: &str = "10.77.0.9/24";
const V6: &str = "2001:db8::9/64";
const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn an_address_goes_where_its_subnet_is_and_away_when_it_is_removed() {
    let (one, _other) = two_hosts();
    one.within(|| {
        let mut kernel = Kernel::open().unwrap();
        for vip in [vip(V4), vip(V6)] {
            let place = kernel.place(vip, None).unwrap();
            assert_eq!(place.name, "q0");
            kernel.put(vip, &place, Mark::Gateway, MINUTE).unwrap();
            kernel.put(vip, &place, Mark::Gateway, MINUTE).unwrap();
            std::net::TcpListener::bind((vip.ip(), 0)).unwrap();
            assert_eq!(kernel.held(Mark::Gateway).unwrap(), [vip.ip()]);
            let foreign = kernel.put(vip, &place, Mark::Service { epoch: 7 }, MINUTE).unwrap_err();
            assert!(matches!(foreign, KernelError::Foreign { .. }), "{foreign}");
            kernel.remove(vip.ip(), Mark::Service { epoch: 7 }).unwrap();
            assert_eq!(kernel.held(Mark::Gateway).unwrap(), [vip.ip()], "it was of another kind");
            kernel.remove(vip.ip(), Mark::Gateway).unwrap();
            kernel.remove(vip.ip(), Mark::Gateway).unwrap();
            assert!(kernel.held(Mark::Gateway).unwrap().is_empty());
        }
        // The host's own address is nobody's VIP, and never removed.
        let own = vip("10.77.0.1/24");
        let place = kernel.place(own, Some(&"q0".parse().unwrap())).unwrap();
        assert!(matches!(kernel.put(own, &place, Mark::Gateway, MINUTE), Err(KernelError::Foreign { .. })));
        kernel.remove(own.ip(), Mark::Gateway).unwrap();
        std::net::TcpListener::bind((own.ip(), 0)).unwrap();
        let far = kernel.place(vip("10.78.0.9/24"), None).unwrap_err().to_string();
        assert_eq!(far, "no interface has an address in the subnet of 10.78.0.9/24: name the interface");
        let unknown = kernel.place(vip(V4), Some(&"q7".parse().unwrap())).unwrap_err().to_string();
        assert_eq!(unknown, "there is no interface q7");
    });
}

#[test]
fn an_address_that_nobody_renews_goes_away_by_itself_in_time() {
    let (one, _other) = two_hosts();
    one.within(|| {
        let mut kernel = Kernel::open().unwrap();
        for vip in [vip(V4), vip(V6)] {
            let place = kernel.place(vip, None).unwrap();
            kernel.put(vip, &place, Mark::Service { epoch: 7 }, Duration::from_millis(2_900)).unwrap();
            let put = Instant::now();
            until("it is gone", || kernel.held(Mark::Service { epoch: 7 }).unwrap().is_empty().then_some(()));
            let lived = put.elapsed();
            // Whole seconds count. Whoever looks may itself be late on a busy machine, so there is room above.
            assert!(lived >= Duration::from_millis(1_900), "{lived:?}");
            assert!(lived <= Duration::from_secs(2) + LATENESS + Duration::from_secs(5), "{lived:?}");
        }
    });
}

#[test]
fn what_a_killed_process_left_is_found_and_nothing_else() {
    let (one, _other) = two_hosts();
    one.within(|| {
        let mut kernel = Kernel::open().unwrap();
        let place = kernel.place(vip(V4), None).unwrap();
        for (text, mark) in [(V4, Mark::Gateway), (V6, Mark::Gateway), ("10.77.0.8/24", Mark::Service { epoch: 7 })] {
            kernel.put(vip(text), &place, mark, MINUTE).unwrap();
        }
        drop(kernel);
        let mut kernel = Kernel::open().unwrap();
        let mut removed = kernel.remove_all(Mark::Gateway).unwrap();
        removed.sort();
        assert_eq!(removed, [vip(V4).ip(), vip(V6).ip()]);
        assert_eq!(kernel.held(Mark::Service { epoch: 7 }).unwrap(), [vip("10.77.0.8/24").ip()]);
    });
}

#[test]
fn an_interface_without_a_cable_does_not_work() {
    let (one, other) = two_hosts();
    one.within(|| {
        other.within(|| ip("link set down dev q0"));
        let mut kernel = Kernel::open().unwrap();
        until("it is noticed", || (!kernel.place(vip(V4), None).unwrap().works).then_some(()));
    });
}

#[test]
fn a_host_that_has_an_address_is_found_by_asking_and_nobody_else_is() {
    let (one, other) = two_hosts();
    for text in [V4, V6] {
        let theirs = other.within(|| {
            let mut kernel = Kernel::open().unwrap();
            let place = kernel.place(vip(text), None).unwrap();
            kernel.put(vip(text), &place, Mark::Gateway, MINUTE).unwrap();
            place.hardware
        });
        one.within(|| {
            let place = Kernel::open().unwrap().place(vip(text), None).unwrap();
            let neighbours = Neighbours::listen(vip(text), &place).unwrap().unwrap();
            until("IPv6 is there", || neighbours.ask().ok());
            let found = until("the answer", || neighbours.other().unwrap());
            assert_eq!(Some(found), theirs);
            // Nobody has this one; the answer to the next question shows that one to it would be here.
            let nobody = vip(&text.replace('9', "77"));
            let silent = Neighbours::listen(nobody, &place).unwrap().unwrap();
            silent.ask().unwrap();
            until("IPv6 is there", || neighbours.ask().ok());
            until("the answer", || neighbours.other().unwrap());
            assert_eq!(silent.other().unwrap(), None);
        });
    }
}

#[test]
fn an_announcement_is_believed_by_whoever_knew_another_host() {
    let (one, other) = two_hosts();
    for text in [V4, V6] {
        let vip = vip(text);
        let bind = |host: &Host| {
            host.within(|| {
                let mut kernel = Kernel::open().unwrap();
                let place = kernel.place(vip, None).unwrap();
                kernel.put(vip, &place, Mark::Gateway, MINUTE).unwrap();
                place
            })
        };
        let place = bind(&one);
        // The other host learns where the address is by speaking to it.
        other.within(|| {
            until("it is reached", || {
                let tried = std::net::TcpStream::connect_timeout(&(vip.ip(), 9).into(), Duration::from_secs(1));
                tried.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused).then_some(())
            });
        });
        let knows = |hardware: [u8; 6]| {
            let text = hardware.map(|byte| format!("{byte:02x}")).join(":");
            let output = Command::new("ip").args(["neighbour", "show", &vip.ip().to_string()]).output().unwrap();
            String::from_utf8(output.stdout).unwrap().contains(&text)
        };
        other.within(|| assert!(knows(place.hardware.unwrap())));
        // As if another host of the network had taken it: the same cable, another Ethernet address.
        let moved = Place { hardware: Some([2, 0x51, 0, 0, 0, 7]), ..place.clone() };
        let neighbours = one.within(|| Neighbours::listen(vip, &moved).unwrap().unwrap());
        // The first may come too early for IPv6, whose own addresses are not all there yet.
        until(&format!("{text} is believed"), || {
            announce(&neighbours);
            other.within(|| knows([2, 0x51, 0, 0, 0, 7])).then_some(())
        });
        one.within(|| Kernel::open().unwrap().remove(vip.ip(), Mark::Gateway).unwrap());
    }
}

#[test]
fn a_host_hears_when_somebody_else_announces_its_address() {
    let (one, other) = two_hosts();
    for text in [V4, V6] {
        let theirs = |host: &Host| host.within(|| Kernel::open().unwrap().place(vip(text), None).unwrap());
        let place = theirs(&one);
        let heard = one.within(|| {
            let neighbours = Neighbours::listen(vip(text), &place).unwrap().unwrap();
            announce(&neighbours);
            assert_eq!(neighbours.other().unwrap(), None, "what it says itself is no news");
            let place = theirs(&other);
            other.within(|| announce(&Neighbours::listen(vip(text), &place).unwrap().unwrap()));
            (until("it is heard", || neighbours.other().unwrap()), place.hardware)
        });
        assert_eq!(Some(heard.0), heard.1);
    }
}
