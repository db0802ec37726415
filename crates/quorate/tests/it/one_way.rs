//! Datagrams that get through in one direction alone: gossip asks on the link, and nobody is given up.

use crate::cluster::{PATIENCE, wait_for};
use crate::lan::Lan;
use std::time::{Duration, Instant};

const ALL: [&str; 3] = ["n1", "n2", "n3"];
/// Without its second way gossip suspects somebody within 2 s.
const WATCHED: Duration = Duration::from_secs(3);
const WATCHES: usize = 4;

/// Datagrams that this server's programs have got, and those that they have sent.
fn datagrams(lan: &Lan, server: &str) -> (u64, u64) {
    let numbers = lan.ok(server, "grep '^Udp: [0-9]' /proc/net/snmp");
    let numbers: Vec<u64> = numbers.split_whitespace().skip(1).map(|it| it.parse().unwrap()).collect();
    (numbers[0], numbers[3])
}

/// How often a server has heard the rumor that somebody does not answer.
fn suspicions(lan: &Lan, server: &str) -> usize {
    lan.log(server).matches("rumor=Unreachable").count()
}

/// Makes a server throw away datagrams that come `from` somewhere, without a word.
fn swallow(lan: &Lan, server: &str, from: &str) {
    // Rules count in their order; addresses of the server itself are looked up by the first.
    lan.ok(server, "ip rule add pref 100 table local && ip rule del pref 0 table local");
    lan.ok(server, &format!("ip rule add pref 10 ipproto udp {from} blackhole"));
}

fn mend(lan: &Lan, server: &str) {
    lan.ok(server, "ip rule del pref 10 && ip rule add pref 0 table local && ip rule del pref 100");
}

/// Everybody is joined in everybody's eyes for as long as this lasts, and writes work.
fn watch(lan: &Lan) {
    let began = Instant::now();
    while began.elapsed() < WATCHED {
        for server in ALL {
            for of in ALL {
                assert_eq!(lan.state(server, of).as_deref(), Some("joined"), "{server} sees {of}");
            }
        }
        lan.write("n3", "INSERT INTO t VALUES (1)");
    }
}

/// D5.
#[test]
fn d5_a_one_way_cut_of_datagrams_makes_nobody_unreachable() {
    let lan = Lan::new(&ALL);
    lan.make_cluster(&ALL);
    lan.write("n1", "CREATE TABLE t (n INTEGER)");
    wait_for("datagrams reach n3", PATIENCE, || (datagrams(&lan, "n3").0 > 0).then_some(()));
    let suspected = || ALL.iter().map(|server| suspicions(&lan, server)).collect::<Vec<usize>>();
    // A server that stands still for want of a processor is suspected too, at times. The cut would bring that
    // about in every watch.
    let watch_without_suspicion = |cut: &str| {
        let quiet = (0..WATCHES).any(|_| {
            let before = suspected();
            watch(&lan);
            suspected() == before
        });
        assert!(quiet, "suspicions in each of {WATCHES} watches while n3 {cut}: {:?}", suspected());
    };

    swallow(&lan, "n3", "iif eth0");
    let before = datagrams(&lan, "n3");
    watch_without_suspicion("hears nothing");
    let after = datagrams(&lan, "n3");
    assert_eq!(after.0, before.0, "nothing gets in");
    assert!(after.1 > before.1, "and it goes on asking");
    mend(&lan, "n3");

    for server in ["n1", "n2"] {
        swallow(&lan, server, &format!("from {}", lan.address("n3")));
    }
    let before = datagrams(&lan, "n3");
    watch_without_suspicion("is not heard");
    let after = datagrams(&lan, "n3");
    assert!(after.0 > before.0 && after.1 > before.1, "it is asked, and answers into the void");
    ["n1", "n2"].iter().for_each(|server| mend(&lan, server));

    // Where the link is cut as well it is seen: the watching above can fail.
    let before = suspicions(&lan, "n1");
    lan.ok("n3", "ip link set eth0 down");
    wait_for("n1 sees that n3 is gone", PATIENCE, || (lan.state("n1", "n3")? != "joined").then_some(()));
    wait_for("by gossip too", PATIENCE, || (suspicions(&lan, "n1") > before).then_some(()));
}
