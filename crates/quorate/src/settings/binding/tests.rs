use super::*;
use expect_test::{Expect, expect};
use proptest::prelude::*;

/// `eth0=10.0.0.1,fe80::1 lo=127.0.0.1`: interfaces numbered in this order.
fn machine(text: &str) -> Vec<Interface> {
    text.split_whitespace()
        .zip(1..)
        .map(|(interface, index)| {
            let (name, addresses) = interface.split_once('=').unwrap();
            let addresses = addresses.split(',').map(|address| address.parse().unwrap()).collect();
            Interface { name: name.into(), index, addresses }
        })
        .collect()
}

/// A server as they are: loopback, one card inside, one outside, a bridge for containers.
const SERVER: &str =
    "lo=127.0.0.1,::1 eth0=192.168.1.51,fe80::1,fd00::51 eth1=203.0.114.9,2a01:4f8::9 docker0=172.17.0.1";
const INSIDE: &str = "lo=127.0.0.1,::1 eth0=169.254.7.7,fe80::1 eth1=10.0.0.7,fd00::7 eth2=192.168.9.9";

fn check(on: &str, bindings: &[&str], expected: &Expect) {
    let mut table = String::new();
    for text in bindings {
        let line = match text.parse::<Binding>() {
            Err(problem) => format!("not a binding: {problem}"),
            Ok(binding) => match binding.resolve(7000, &machine(on)) {
                Err(problem) => format!("no address: {problem}"),
                Ok(bound) if bound.listen == bound.advertise => format!("{} ({})", bound.listen, bound.because),
                Ok(bound) => format!("{} as {} ({})", bound.listen, bound.advertise, bound.because),
            },
        };
        table.push_str(&format!("{text} → {line}\n"));
    }
    expected.assert_eq(&table);
}

#[test]
fn z4_every_way_to_write_an_address_means_one_address_of_the_machine() {
    check(
        SERVER,
        &[
            "tcp://[eth0:ipv4]:7511",
            "tcp://[_site_:ipv4]:7511",
            "_site_",
            "_site_:ipv6",
            "_site_:7001",
            "_site_:ipv6:7001",
            "[_site_:ipv6]:7001",
            "eth0",
            "eth0:ipv6",
            "eth0:7511",
            "docker0:ipv4:7511",
            "192.168.1.51",
            "tcp://192.168.1.51:7511",
            "[192.168.1.51:ipv4]:7511",
            "0.0.0.0",
            "0.0.0.0:7512",
            "::",
            "[::]:7512",
            "2a01:4f8::9",
            "[2a01:4f8::9]:7512",
            "lo",
        ],
        &expect![[r#"
            tcp://[eth0:ipv4]:7511 → 192.168.1.51:7511 (192.168.1.51 is the first IPv4 address of interface eth0)
            tcp://[_site_:ipv4]:7511 → 203.0.114.9:7511 (203.0.114.9 is the first public IPv4 address, on interface eth1)
            _site_ → 203.0.114.9:7000 (203.0.114.9 is the first public IPv4 address, on interface eth1)
            _site_:ipv6 → [2a01:4f8::9]:7000 (2a01:4f8::9 is the first public IPv6 address, on interface eth1)
            _site_:7001 → 203.0.114.9:7001 (203.0.114.9 is the first public IPv4 address, on interface eth1)
            _site_:ipv6:7001 → [2a01:4f8::9]:7001 (2a01:4f8::9 is the first public IPv6 address, on interface eth1)
            [_site_:ipv6]:7001 → [2a01:4f8::9]:7001 (2a01:4f8::9 is the first public IPv6 address, on interface eth1)
            eth0 → 192.168.1.51:7000 (192.168.1.51 is the first IPv4 address of interface eth0)
            eth0:ipv6 → [fd00::51]:7000 (fd00::51 is the first IPv6 address of interface eth0)
            eth0:7511 → 192.168.1.51:7511 (192.168.1.51 is the first IPv4 address of interface eth0)
            docker0:ipv4:7511 → 172.17.0.1:7511 (172.17.0.1 is the first IPv4 address of interface docker0)
            192.168.1.51 → 192.168.1.51:7000 (192.168.1.51 is configured)
            tcp://192.168.1.51:7511 → 192.168.1.51:7511 (192.168.1.51 is configured)
            [192.168.1.51:ipv4]:7511 → 192.168.1.51:7511 (192.168.1.51 is configured)
            0.0.0.0 → 0.0.0.0:7000 as 203.0.114.9:7000 (0.0.0.0 listens on every address and is announced as 203.0.114.9, the first public IPv4 address, on interface eth1)
            0.0.0.0:7512 → 0.0.0.0:7512 as 203.0.114.9:7512 (0.0.0.0 listens on every address and is announced as 203.0.114.9, the first public IPv4 address, on interface eth1)
            :: → [::]:7000 as [2a01:4f8::9]:7000 (:: listens on every address and is announced as 2a01:4f8::9, the first public IPv6 address, on interface eth1)
            [::]:7512 → [::]:7512 as [2a01:4f8::9]:7512 (:: listens on every address and is announced as 2a01:4f8::9, the first public IPv6 address, on interface eth1)
            2a01:4f8::9 → [2a01:4f8::9]:7000 (2a01:4f8::9 is configured)
            [2a01:4f8::9]:7512 → [2a01:4f8::9]:7512 (2a01:4f8::9 is configured)
            lo → 127.0.0.1:7000 (127.0.0.1 is the first IPv4 address of interface lo)
        "#]],
    );
}

#[test]
fn z4_without_a_public_address_the_first_private_one_counts_in_the_order_of_interfaces() {
    check(
        INSIDE,
        &["_site_", "_site_:ipv6", "0.0.0.0", "eth0", "eth2"],
        &expect![[r#"
        _site_ → 10.0.0.7:7000 (10.0.0.7 is the first private IPv4 address, on interface eth1, as none is public)
        _site_:ipv6 → [fd00::7]:7000 (fd00::7 is the first private IPv6 address, on interface eth1, as none is public)
        0.0.0.0 → 0.0.0.0:7000 as 10.0.0.7:7000 (0.0.0.0 listens on every address and is announced as 10.0.0.7, the first private IPv4 address, on interface eth1, as none is public)
        eth0 → no address: interface `eth0` has no IPv4 address that other servers could use
        eth2 → 192.168.9.9:7000 (192.168.9.9 is the first IPv4 address of interface eth2)
    "#]],
    );
    check(
        "lo=127.0.0.1,::1",
        &["_site_", "0.0.0.0", "::", "127.0.0.1", "lo"],
        &expect![[r#"
        _site_ → no address: no interface has an IPv4 address that other servers could use (loopback and link-local do not count)
        0.0.0.0 → no address: no interface has an IPv4 address that other servers could use (loopback and link-local do not count)
        :: → no address: no interface has an IPv6 address that other servers could use (loopback and link-local do not count)
        127.0.0.1 → 127.0.0.1:7000 (127.0.0.1 is configured)
        lo → 127.0.0.1:7000 (127.0.0.1 is the first IPv4 address of interface lo)
    "#]],
    );
}

#[test]
fn what_is_no_address_is_refused_with_the_part_that_is_wrong() {
    check(
        SERVER,
        &[
            "udp://eth0:7511",
            "tcp://[eth0:ipv4",
            "tcp://[eth0:ipv4]7511",
            "eth0:0",
            "eth0:70000",
            "[eth0:ip5]:7511",
            "[10.0.0.1:ipv6]:7511",
            "10.0.0.256",
            "",
            ":7000",
            "a name",
            "core-1.example.com:7000",
            "eth7",
        ],
        &expect![[r#"
            udp://eth0:7511 → not a binding: `udp` is not tcp: write tcp://HOST:PORT or HOST:PORT
            tcp://[eth0:ipv4 → not a binding: `tcp://[eth0:ipv4` has an opening bracket without a closing one behind the host
            tcp://[eth0:ipv4]7511 → not a binding: `tcp://[eth0:ipv4]7511` has an opening bracket without a closing one behind the host
            eth0:0 → not a binding: `0` is not a port: give 1 to 65535
            eth0:70000 → not a binding: `70000` is not a port: give 1 to 65535
            [eth0:ip5]:7511 → not a binding: `ip5` is not a family: give ipv4 or ipv6
            [10.0.0.1:ipv6]:7511 → not a binding: 10.0.0.1 is not an IPv6 address
            10.0.0.256 → not a binding: `10.0.0.256` is neither an address, nor _site_, nor the name of an interface
             → not a binding: `` is neither an address, nor _site_, nor the name of an interface
            :7000 → not a binding: `` is neither an address, nor _site_, nor the name of an interface
            a name → not a binding: `a name` is neither an address, nor _site_, nor the name of an interface
            core-1.example.com:7000 → not a binding: `core-1.example.com` is neither an address, nor _site_, nor the name of an interface
            eth7 → no address: this machine has no interface `eth7`; it has lo, eth0, eth1, docker0
        "#]],
    );
}

#[test]
fn the_kernels_number_decides_and_not_the_order_of_the_list() {
    let mut interfaces = machine("eth0=10.0.0.1 eth1=10.0.0.2");
    interfaces.reverse();
    let bound = "_site_".parse::<Binding>().unwrap().resolve(1, &interfaces).unwrap();
    assert_eq!(bound.advertise.to_string(), "10.0.0.1:1");
}

#[test]
fn this_machine_has_a_loopback_interface() {
    let found = interfaces().unwrap();
    assert!(found.iter().any(|interface| interface.addresses.iter().any(IpAddr::is_loopback)), "{found:?}");
    assert!(found.is_sorted_by_key(|interface| interface.index));
}

fn host() -> impl Strategy<Value = Host> {
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    prop_oneof![
        any::<IpAddr>().prop_map(Host::Address),
        family.clone().prop_map(Host::Site),
        ("[a-z][a-z0-9.-]{0,12}[a-z0-9]", family).prop_map(|(name, family)| Host::Interface(name, family)),
    ]
}

fn some_machine() -> impl Strategy<Value = Vec<Interface>> {
    let interface = ("[a-z]{3,4}[0-9]", 1..64_u32, prop::collection::vec(any::<IpAddr>(), 0..4))
        .prop_map(|(name, index, addresses)| Interface { name, index, addresses });
    prop::collection::vec(interface, 0..5)
}

proptest! {
    #[test]
    fn what_is_shown_is_read_as_the_same(host in host(), port in proptest::option::of(1..=u16::MAX)) {
        let binding = Binding { host, port };
        prop_assert_eq!(binding.to_string().parse::<Binding>(), Ok(binding));
    }

    #[test]
    fn any_text_is_a_binding_or_a_complaint(text in ".{0,40}") {
        let _ = text.parse::<Binding>();
    }

    #[test]
    fn a_site_is_an_address_of_the_machine_that_others_can_use(machine in some_machine(), v6: bool) {
        let family = if v6 { Family::V6 } else { Family::V4 };
        let site = Binding { host: Host::Site(family), port: Some(7000) };
        let usable = |address: &IpAddr| Family::of(*address) == family && reach(*address) != Reach::Nobody;
        let all: Vec<IpAddr> = machine.iter().flat_map(|it| it.addresses.clone()).filter(usable).collect();
        match site.resolve(1, &machine) {
            Ok(bound) => {
                prop_assert!(all.contains(&bound.advertise.ip()));
                prop_assert_eq!(bound.advertise.port(), 7000);
                let public = |address: &IpAddr| reach(*address) == Reach::World;
                prop_assert_eq!(public(&bound.advertise.ip()), all.iter().any(public));
            }
            Err(_) => prop_assert!(all.is_empty()),
        }
    }
}
