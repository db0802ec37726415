use super::*;
use expect_test::{Expect, expect};
use serde_json::{Value, json};
use std::net::TcpListener;

fn node(number: u32, state: &str, clock_ahead_us: Option<i64>) -> Value {
    json!({
        "id": format!("00000000-0000-0000-0000-00000000000{number}"), "name": format!("n{number}"), "state": state,
        "mode": "passive", "roles": ["manager"], "api": format!("http://10.0.0.{number}:7000"),
        "link": format!("10.0.0.{number}:7001"), "generation": 1, "since": 1, "lag": 0, "replicas": 1,
        "clock_ahead_us": clock_ahead_us
    })
}

/// As n1 sees it.
fn overview(nodes: &[Value], voters: u32, joined: u32, can_lose: u32) -> Overview {
    let leader = (joined > voters / 2).then_some("n1");
    let health = if leader.is_some() { "healthy" } else { "no-quorum" };
    serde_json::from_value(json!({
        "sequence": 1, "answered_by": "n1", "nodes": nodes, "services": [], "events": [], "gateways": [],
        "cluster": {
            "id": "20000000-0000-0000-0000-000000000000", "name": "prod", "health": health, "summary": "",
            "leader": leader, "term": 4, "voters": voters, "voters_joined": joined, "can_lose": can_lose, "applied": 7,
            "version": "1.0.0"
        }
    }))
    .unwrap()
}

fn three(ahead: [Option<i64>; 3]) -> Overview {
    let nodes: Vec<Value> = (1..).zip(ahead).map(|(number, ahead)| node(number, "joined", ahead)).collect();
    overview(&nodes, 3, 3, 1)
}

fn judge(overview: &Overview) -> Finding {
    quorum(overview, overview.cluster.electors.as_ref().unwrap())
}

fn check(findings: impl IntoIterator<Item = Finding>, expected: &Expect) {
    let lines: Vec<String> = findings.into_iter().map(|finding| finding.line(false)).collect();
    expected.assert_eq(&lines.join("\n"));
}

#[test]
fn the_clock_that_is_wrong_is_named_and_not_the_others() {
    check(clocks(&three([None, Some(300), Some(-900)])), &expect!["✔ clock skew 0.9 ms at most"]);
    check(
        clocks(&three([None, Some(2_400_000), Some(10)])),
        &expect![
            "✕ clock skew 2.4 s to n2, which is ahead of the others   fix: systemctl enable --now chronyd   (on n2)"
        ],
    );
    // The node that answers is the one that is off.
    check(
        clocks(&three([None, Some(-2_400_000), Some(-2_400_100)])),
        &expect![
            "✕ clock skew 2.4 s to n1, which is ahead of the others   fix: systemctl enable --now chronyd   (on n1)"
        ],
    );
    check(
        clocks(&three([None, Some(300_000), None])),
        &expect![
            "! clock skew 0.30 s to n2, which is ahead of the others   fix: systemctl enable --now chronyd   (on n2)"
        ],
    );
    check(clocks(&three([None, None, None])), &expect![[r#""#]]);
}

#[test]
fn a_quorum_is_judged_by_what_may_still_be_lost() {
    let judged = |voters, joined, can_lose| judge(&overview(&[], voters, joined, can_lose));
    check(
        [judged(3, 3, 1), judged(3, 2, 0), judged(3, 1, 0), judged(1, 1, 0)],
        &expect![[r#"
        ✔ quorum 3 of 3 managers answer, can lose 1, leader n1
        ! quorum 2 of 3 managers answer, can lose 0   fix: bring the missing managers back
        ✕ quorum 1 of 3 managers answer, can lose 0, no leader   fix: start 1 more of the managers
        ! quorum 1 of 1 managers answer, can lose 0   fix: three managers survive the loss of one"#]],
    );
}

/// K6: two nodes are told why they are no more available than one.
#[test]
fn k6_two_nodes_are_told_why_they_may_lose_nobody() {
    let two = overview(&[node(1, "joined", None), node(2, "joined", Some(0))], 1, 1, 0);
    let finding = judge(&two).line(true);
    assert!(finding.contains("a majority of two would be both of them"), "{finding}");
}

#[test]
fn u4_an_even_number_of_voters_is_refused_and_an_odd_one_not_mentioned() {
    let judged = |voters| odd_number(overview(&[], voters, voters, 0).cluster.electors.as_ref().unwrap());
    assert!([1, 3, 5, 7, 9].into_iter().all(|voters| judged(voters).is_none()));
    check(
        [2, 4].into_iter().filter_map(judged),
        &expect![[r#"
        ✕ voters 2 is an even number   fix: make it 1 or 3
        ✕ voters 4 is an even number   fix: make it 3 or 5"#]],
    );
}

fn probed(number: u32, link: Result<(), Unreached>, says: Option<Overview>) -> Probe {
    let port = |what, port| Port { what, address: format!("10.0.0.{number}:{port}") };
    Probe {
        name: format!("n{number}"),
        state: NodeState::Joined,
        ports: vec![(port("API", 7000), Ok(())), (port("node link", 7001), link)],
        says,
    }
}

#[test]
fn a_port_that_is_closed_is_told_from_one_that_is_silent() {
    check(
        ports(&[probed(1, Ok(()), None), probed(2, Ok(()), None)], false),
        &expect!["✔ ports 4 of 4 answer from here"],
    );
    let ill = [
        probed(1, Err(Unreached::Refused), None),
        probed(2, Err(Unreached::Silent), None),
        Probe { state: NodeState::Removed, ..probed(3, Err(Unreached::Refused), None) },
    ];
    check(
        ports(&ill, false),
        &expect![[r#"
        ✕ ports node link of n1 at 10.0.0.1:7001: nothing listens   fix: systemctl start quorate   (on n1)
        ✕ ports node link of n2 at 10.0.0.2:7001: no answer   fix: open this port between the servers; see their firewalls and cables"#]],
    );
    assert_eq!(ports(&ill, true)[0].fix, "quorate dev start n1");
}

#[test]
fn real_ports_are_told_apart() {
    let open = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = open.local_addr().unwrap().to_string();
    assert_eq!(connect(&address), Ok(()));
    drop(open);
    assert_eq!(connect(&address), Err(Unreached::Refused));
    assert!(matches!(connect("no port"), Err(Unreached::Other(_))));
}

#[test]
fn nodes_that_are_away_are_named_one_by_one() {
    check(nodes(&three([None; 3]).nodes, true), &expect!["✔ nodes 3 of 3 joined"]);
    let one_left = overview(&[node(1, "joined", None), node(2, "joined", None), node(3, "removed", None)], 3, 2, 0);
    check(nodes(&one_left.nodes, true), &expect!["✔ nodes 2 of 3 joined, 1 stopped cleanly"]);
    let ill = overview(&[node(1, "joined", None), node(2, "down", None), node(3, "unreachable", None)], 3, 1, 0);
    check(
        nodes(&ill.nodes, true),
        &expect![[r#"
        ✕ nodes n2 is down   fix: quorate dev start n2
        ✕ nodes n3 is unreachable   fix: quorate dev start n3"#]],
    );
    check(
        nodes(&ill.nodes, false),
        &expect![[r#"
        ✕ nodes n2 is down   fix: systemctl start quorate   (on n2)
        ✕ nodes n3 is unreachable   fix: systemctl start quorate   (on n3)"#]],
    );
}

#[test]
fn two_nodes_that_pass_for_one_are_found() {
    let good = three([None; 3]);
    let says = |name: &str| Some(Overview { answered_by: name.into(), ..good.clone() });
    check(
        [identities(&good, &[probed(1, Ok(()), says("n1")), probed(2, Ok(()), says("n2"))])],
        &expect!["✔ identities every node has its own name, ID and addresses"],
    );
    let mut twin = good.clone();
    twin.nodes[1].name = "n1".into();
    twin.nodes[1].link = twin.nodes[0].link.clone();
    let mut foreign = good.clone();
    foreign.cluster.id = quorate_model::id::ClusterId::from_u128(9);
    foreign.cluster.name = "test".into();
    let probes = [probed(1, Ok(()), says("n3")), probed(2, Ok(()), Some(foreign))];
    check(
        [identities(&twin, &probes)],
        &expect![
            "✕ identities n1 and n1 have the name n1; n1 and n1 have the link address 10.0.0.1:7001; at the address of n1 is n3; at the address of n2 is a node of cluster test   fix: stop the copy, remove its data directory and let it join as a new node"
        ],
    );
}

#[test]
fn other_versions_are_named_with_their_nodes() {
    let good = three([None; 3]);
    let mut new = good.clone();
    new.cluster.version = "1.1.0".into();
    check(versions(&good, &[probed(1, Ok(()), Some(good.clone()))]), &expect!["✔ versions all nodes run 1.0.0"]);
    let probes = [probed(1, Ok(()), Some(good.clone())), probed(2, Ok(()), Some(new))];
    check(versions(&good, &probes), &expect!["! versions 1.0.0 on n1, 1.1.0 on n2   fix: upgrade the older ones"]);
}
