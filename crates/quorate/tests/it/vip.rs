//! Virtual addresses of gateways, on servers with networks of their own.

use crate::cluster::{PATIENCE, wait_for};
use crate::lan::Lan;
use serde_json::Value;
use std::time::{Duration, Instant};

const VIP: &str = "192.168.1.90";
const SERVERS: [&str; 3] = ["n1", "n2", "n3"];

/// Three managers that are gateways too, and a VIP that one of them holds.
fn gateways() -> Lan {
    let lan = Lan::new(&SERVERS);
    lan.make_cluster(&SERVERS);
    for server in SERVERS {
        lan.ok("n1", &format!("quorate node roles {server} manager worker gateway"));
        start(&lan, server);
    }
    lan.ok("n1", &format!("quorate vip add {VIP}/24"));
    settled(&lan);
    lan
}

fn start(lan: &Lan, server: &str) {
    let gateway = "quorate gateway --listen 0.0.0.0:80 --url http://gw --manager unix:/var/lib/quorate/api.sock";
    let gateway = format!("{gateway} --name {server} --data-dir /var/lib/quorate/gateway");
    lan.ok(server, &format!("setsid {gateway} < /dev/null > /dev/null 2>> gateway.log & echo $! > gateway.pid"));
}

fn signal(lan: &Lan, server: &str, signal: &str) {
    lan.ok(server, &format!("kill -{signal} $(cat gateway.pid)"));
}

/// Whether this server's kernel answers for the address.
fn has(lan: &Lan, server: &str) -> bool {
    lan.ok(server, "ip -4 address show dev eth0").contains(&format!(" {VIP}/"))
}

fn holders(lan: &Lan) -> Vec<&'static str> {
    SERVERS.into_iter().filter(|server| has(lan, server)).collect()
}

/// As `vip list` shows it on a server.
fn shown(lan: &Lan, server: &str) -> Option<Value> {
    Some(lan.ask(server, "vip list")?.as_array()?.first()?.clone())
}

fn states(vip: &Value) -> Vec<String> {
    let all = vip["candidates"].as_array().unwrap().iter();
    let mut states: Vec<String> = all.map(|candidate| candidate["state"].as_str().unwrap().to_owned()).collect();
    states.sort();
    states
}

/// The one that holds it, when all others stand by and everybody shows that.
fn settled(lan: &Lan) -> &'static str {
    wait_for("one holds the VIP and the others stand by", PATIENCE, || {
        let holders = holders(lan);
        let [holder] = holders[..] else { return None };
        let all = SERVERS.iter().all(|server| {
            shown(lan, server)
                .is_some_and(|vip| vip["holder"] == holder && states(&vip) == ["holding", "standby", "standby"])
        });
        all.then_some(holder)
    })
}

/// Whoever has it besides `before`.
fn successor(lan: &Lan, before: &str) -> &'static str {
    wait_for("another has the VIP", PATIENCE, || holders(lan).into_iter().find(|holder| *holder != before))
}

fn other_than(server: &str) -> &'static str {
    SERVERS.into_iter().find(|other| *other != server).unwrap()
}

/// What a connection through the VIP is answered, from a server that does not have it.
fn answers(lan: &Lan, from: &str) -> bool {
    let ask = format!(
        "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | timeout 3 bash -c 'exec 3<>/dev/tcp/{VIP}/80; cat >&3; head -1 <&3'"
    );
    lan.types(from, &ask).stdout.starts_with("HTTP/1.")
}

/// E10.
#[test]
fn e10_a_gateways_vip_is_always_at_one_that_serves() {
    let lan = gateways();
    let first = settled(&lan);
    assert!(answers(&lan, other_than(first)));

    // The node beside it dies: the gateway serves, so it keeps the address, and so it does after a restart of it.
    lan.kill(first);
    let watched = Instant::now();
    wait_for("adverts and renewals went on for longer than an address lives", PATIENCE, || {
        assert_eq!(holders(&lan), [first]);
        (watched.elapsed() > Duration::from_secs(5)).then_some(())
    });
    lan.start(first);
    assert_eq!(settled(&lan), first);

    // It stands still: another takes the address, and its own kernel lets it go by itself.
    signal(&lan, first, "STOP");
    let second = successor(&lan, first);
    wait_for("the kernel of one that stands still lets go", PATIENCE, || (holders(&lan) == [second]).then_some(()));
    assert!(answers(&lan, SERVERS.into_iter().find(|server| ![first, second].contains(server)).unwrap()));
    signal(&lan, first, "CONT");
    assert_eq!(settled(&lan), second, "who comes back takes nothing");

    // It is killed. The next one that starts there takes down what that left.
    signal(&lan, second, "KILL");
    start(&lan, second);
    let third = successor(&lan, second);
    assert_eq!(settled(&lan), third);
    let log = lan.ok(second, "cat gateway.log");
    assert!(log.contains("took down a VIP that an earlier gateway left"), "{log}");

    // It ends in an orderly way.
    signal(&lan, third, "TERM");
    let fourth = successor(&lan, third);
    start(&lan, third);
    assert_eq!(settled(&lan), fourth);

    lan.ok("n1", &format!("quorate vip remove {VIP} --yes"));
    wait_for("nobody has it", PATIENCE, || holders(&lan).is_empty().then_some(()));
    assert_eq!(lan.ask("n1", "vip list").unwrap(), serde_json::json!([]));
    let kinds: Vec<Value> = lan.ask("n1", "events").unwrap().as_array().unwrap().clone();
    assert!(["vip-added", "vip-removed"].iter().all(|kind| kinds.iter().any(|event| event["kind"] == *kind)));
    let audit = lan.ok("n1", "quorate audit list -o json");
    assert!(audit.contains("vip-add") && audit.contains("vip-remove"), "{audit}");
}

#[test]
fn a_vip_that_a_stranger_has_is_not_taken_and_says_who_has_it() {
    let lan = Lan::new(&["n1", "stranger"]);
    lan.ok("n1", &format!("quorate init --name prod --advertise {}", lan.address("n1")));
    lan.wait_status("n1", "it leads", |status| status["cluster"]["leader"].as_str().map(drop));
    lan.ok("stranger", &format!("ip address add {VIP}/24 dev eth0"));
    let link = lan.ok("stranger", "ip -oneline link show eth0");
    let hardware = link.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    lan.ok("n1", "quorate node roles n1 manager worker gateway");
    start(&lan, "n1");
    lan.ok("n1", &format!("quorate vip add {VIP}/24"));
    wait_for("it is told", PATIENCE, || {
        let vip = shown(&lan, "n1")?;
        (vip["candidates"][0]["detail"] == format!("{hardware} says that it has the address")).then_some(())
    });
    assert!(!has(&lan, "n1"));
    lan.ok("stranger", &format!("ip address del {VIP}/24 dev eth0"));
    wait_for("it is taken when the stranger is gone", PATIENCE, || has(&lan, "n1").then_some(()));
    let refused = |line: &str| lan.types("n1", line);
    let own = refused(&format!("quorate vip add {}/24", lan.address("n1")));
    assert!(own.stderr.contains("belongs to node `n1` already"), "{}", own.stderr);
    let twice = refused(&format!("quorate vip add {VIP}/16"));
    assert!(twice.stderr.contains(&format!("{VIP} belongs to another VIP")), "{}", twice.stderr);
    assert_eq!(refused("quorate vip add 192.168.1.255/24").code, 2);
    assert_eq!(refused("quorate vip remove 192.168.1.99 --yes").code, 6);
}

/// A service that is nothing but an address.
const FRONT: &str = "[[service]]\nname = \"front\"\nmode = \"singleton\"\ndriver = \"vip\"\nvip = \"192.168.1.90/24\"\nfailover = \"10s\"\n";

fn apply(lan: &Lan, spec: &str) {
    std::fs::write(lan.home("n1").join("spec.toml"), spec).unwrap();
    lan.ok("n1", "quorate service apply -f spec.toml --yes");
}

/// Where the only replica is healthy, by way of a server that is asked.
fn home(lan: &Lan, ask: &str, service: &str) -> Option<String> {
    let shown = lan.ask(ask, &format!("service show {service}"))?;
    let [replica] = shown["replicas"].as_array()?.as_slice() else { return None };
    (replica["state"] == "healthy").then(|| replica["node"].as_str().unwrap().to_owned())
}

/// The moments at which a server's kernel got or lost the address, as it said itself, in order; `true`: got. It
/// says so at each renewal as well.
fn changes(lan: &Lan, server: &str) -> Vec<(String, bool)> {
    let said = lan.ok(server, "cat monitor.out");
    let mine = said.lines().filter(|line| line.contains(&format!(" {VIP}/")));
    mine.map(|line| {
        let at = line.trim_start_matches('[').split(']').next().unwrap().to_owned();
        (at, !line.contains("Deleted"))
    })
    .collect()
}

fn watch_kernels(lan: &Lan) {
    for server in SERVERS {
        lan.ok(server, "setsid ip -tshort -oneline monitor address < /dev/null > monitor.out 2>&1 &");
    }
}

/// E10, N1.
#[test]
fn e10_a_services_vip_is_never_at_two_servers_also_while_server_and_shim_stand_still() {
    let lan = Lan::new(&SERVERS);
    lan.make_cluster(&SERVERS);
    watch_kernels(&lan);
    apply(&lan, FRONT);
    let first = wait_for("it runs", PATIENCE, || home(&lan, "n1", "front"));
    let first = SERVERS.into_iter().find(|server| *server == first).unwrap();
    assert_eq!(holders(&lan), [first]);
    let other = other_than(first);
    let reached = |from: &str| lan.types(from, &format!("timeout 3 bash -c 'exec 3<>/dev/tcp/{VIP}/7000'")).code == 0;
    assert!(reached(other), "whoever listens on that server is reached there");

    // Nobody renews anything any more, and nobody takes anything down.
    lan.ok(first, "pkill -STOP -f '[q]uorate shim' && kill -STOP $(cat server.pid)");
    let second = successor(&lan, first);
    assert!(!has(&lan, first), "its kernel has let go");
    let lost = changes(&lan, first).into_iter().rfind(|(_, got)| !got).expect("it was lost");
    let got = changes(&lan, second).into_iter().find(|(_, got)| *got).expect("it was taken");
    assert!(lost.0 < got.0, "{first} lost it at {}, {second} took it at {}", lost.0, got.0);
    assert!(reached(SERVERS.into_iter().find(|server| ![first, second].contains(server)).unwrap()));
    lan.ok(first, "kill -CONT $(cat server.pid); pkill -CONT -f '[q]uorate shim' || true");
    let taken = changes(&lan, first).len();
    wait_for("it runs there alone", PATIENCE, || {
        (home(&lan, other_than(first), "front").as_deref() == Some(second)).then_some(())
    });
    assert_eq!(holders(&lan), [second]);
    assert_eq!(changes(&lan, first).len(), taken, "it took nothing back");

    // A drain: the address is down before it is up elsewhere, and that takes no lease's end.
    let begun = Instant::now();
    lan.ok(other_than(second), &format!("quorate node drain {second} --no-wait"));
    let third = successor(&lan, second);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let lost = changes(&lan, second).into_iter().rfind(|(_, got)| !got).expect("it was lost");
    let got = changes(&lan, third).into_iter().rev().take_while(|(_, got)| *got).last().expect("it was taken");
    assert!(lost.0 < got.0, "{second} lost it at {}, {third} took it at {}", lost.0, got.0);
    lan.ok(third, "quorate service remove front --yes");
    wait_for("nobody has it", PATIENCE, || holders(&lan).is_empty().then_some(()));
}

#[test]
fn a_program_finds_its_services_address_up_and_a_killed_shim_leaves_none_to_another_server() {
    let lan = Lan::new(&SERVERS);
    lan.make_cluster(&SERVERS);
    watch_kernels(&lan);
    // Somebody else has the address first.
    lan.ok("n3", &format!("ip address add {VIP}/24 dev eth0"));
    let command = format!("ip -4 address show dev eth0 | grep -q ' {VIP}/' && exec sleep 1000");
    let spec = FRONT.replace("driver = \"vip\"", &format!("command = [\"/bin/sh\", \"-c\", \"{command}\"]"));
    std::fs::write(lan.home("n1").join("spec.toml"), format!("{spec}place = {{ require = [\"node = n1|n2\"] }}\n"))
        .unwrap();
    let refused = lan.types("n1", "quorate service apply -f spec.toml --yes");
    assert!(refused.stderr.contains("its address 192.168.1.90/24 is in use: "), "{}", refused.stderr);
    wait_for("it is told who has it", PATIENCE, || {
        let shown = lan.ask("n1", "service show front")?;
        let detail = shown["replicas"][0]["detail"].as_str()?.to_owned();
        (detail.contains("its address 192.168.1.90/24 is in use: ") && detail.ends_with(" has it")).then_some(())
    });
    lan.ok("n3", &format!("ip address del {VIP}/24 dev eth0"));
    let first = wait_for("it runs", PATIENCE, || home(&lan, "n1", "front"));
    assert_eq!(holders(&lan), [first.as_str()]);

    // Its shim is killed: the agent takes down what that left, and starts it again.
    lan.ok(&first, "pkill -KILL -f '[q]uorate shim'");
    wait_for("another shim has it", PATIENCE, || {
        let shown = lan.ask("n1", "service show front")?;
        (shown["replicas"][0]["restarts"] == 1 && home(&lan, "n1", "front")? == first).then_some(())
    });
    assert_eq!(holders(&lan), [first.as_str()]);
    assert!(changes(&lan, &first).iter().any(|(_, got)| !got), "it was down in between");
}
