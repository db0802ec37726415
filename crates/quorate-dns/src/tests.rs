use super::*;
use expect_test::{Expect, expect};
use quorate_model::id::{NodeId, ReplicaId};
use quorate_model::routing::EndpointState::{self, Doubtful, Healthy};
use std::collections::BTreeMap;

fn instance(ordinal: u32, address: &str, port: u16, state: EndpointState) -> Instance {
    Instance {
        replica: ReplicaId::from_u128(u128::from(port)),
        ordinal,
        node: NodeId::from_u128(1),
        node_name: "n1".into(),
        address: address.parse().unwrap(),
        ports: BTreeMap::from([("http".to_owned(), port)]),
        state,
    }
}

fn listed(instances: Vec<Instance>) -> Listed {
    Listed { main_port: Some("http".into()), fixed_port: None, ports: vec!["http".into()], instances }
}

fn directory() -> Directory {
    let web = vec![
        instance(0, "10.0.0.1", 20_001, Healthy),
        // Its predecessor, during an update.
        instance(0, "10.0.0.9", 20_009, Healthy),
        instance(1, "10.0.0.2", 20_002, Doubtful),
        instance(2, "fd00::3", 20_003, Healthy),
    ];
    let services = [("web", listed(web)), ("old", listed(vec![instance(0, "10.0.0.4", 1, Doubtful)]))];
    let mut services: BTreeMap<_, _> =
        services.into_iter().map(|(name, listed)| (ServiceName::new(name).unwrap(), listed)).collect();
    services.insert(ServiceName::new("quiet").unwrap(), Listed::default());
    Directory { revision: 7, services }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn asked(message: &Message, transport: Transport, directory: &Directory) -> Message {
    Message::from_vec(&answer(directory, &message.to_vec().unwrap(), transport).unwrap()).unwrap()
}

/// The code and the records of an answer.
fn check(name: &str, kind: RecordType, expected: Expect) {
    let reply = asked(&question(name, kind), Transport::Udp, &directory());
    let mut text = format!("{:?}\n", reply.metadata.response_code);
    for (section, records) in [("", &reply.answers), ("~ ", &reply.authorities), ("+ ", &reply.additionals)] {
        records.iter().for_each(|record| text.push_str(&format!("{section}{record}\n")));
    }
    expected.assert_eq(&text);
}

#[test]
fn a_service_has_the_addresses_of_what_gateways_would_choose() {
    check(
        "web.quorate.",
        RecordType::A,
        expect![[r#"
        NoError
        web.quorate. 1 IN A 10.0.0.1
    "#]],
    );
    check(
        "WEB.Quorate.",
        RecordType::AAAA,
        expect![[r#"
        NoError
        WEB.Quorate. 1 IN AAAA fd00::3
    "#]],
    );
    check(
        "old.quorate.",
        RecordType::A,
        expect![[r#"
        NoError
        old.quorate. 1 IN A 10.0.0.4
    "#]],
    );
}

#[test]
fn ports_are_under_the_name_of_each_ordinal() {
    check(
        "_http._tcp.web.quorate.",
        RecordType::SRV,
        expect![[r#"
        NoError
        _http._tcp.web.quorate. 1 IN SRV 0 0 20001 0.web.quorate.
        _http._tcp.web.quorate. 1 IN SRV 0 0 20003 2.web.quorate.
        + 0.web.quorate. 1 IN A 10.0.0.1
        + 2.web.quorate. 1 IN AAAA fd00::3
    "#]],
    );
    check(
        "2.web.quorate.",
        RecordType::AAAA,
        expect![[r#"
        NoError
        2.web.quorate. 1 IN AAAA fd00::3
    "#]],
    );
}

#[test]
fn a_name_that_is_there_without_records_is_no_error_and_one_that_is_not_is() {
    check(
        "quiet.quorate.",
        RecordType::A,
        expect![[r#"
        NoError
        ~ quorate. 1 IN SOA ns.quorate. hostmaster.quorate. 7 1 1 1 1
    "#]],
    );
    check(
        "_tcp.web.quorate.",
        RecordType::A,
        expect![[r#"
        NoError
        ~ quorate. 1 IN SOA ns.quorate. hostmaster.quorate. 7 1 1 1 1
    "#]],
    );
    check(
        "_grpc._tcp.web.quorate.",
        RecordType::SRV,
        expect![[r#"
        NXDomain
        ~ quorate. 1 IN SOA ns.quorate. hostmaster.quorate. 7 1 1 1 1
    "#]],
    );
    check(
        "3.web.quorate.",
        RecordType::A,
        expect![[r#"
        NXDomain
        ~ quorate. 1 IN SOA ns.quorate. hostmaster.quorate. 7 1 1 1 1
    "#]],
    );
    check(
        "1.web.quorate.",
        RecordType::A,
        expect![[r#"
        NoError
        ~ quorate. 1 IN SOA ns.quorate. hostmaster.quorate. 7 1 1 1 1
    "#]],
    );
    check(
        "nobody.quorate.",
        RecordType::A,
        expect![[r#"
        NXDomain
        ~ quorate. 1 IN SOA ns.quorate. hostmaster.quorate. 7 1 1 1 1
    "#]],
    );
    check(
        "quorate.",
        RecordType::SOA,
        expect![[r#"
        NoError
        quorate. 1 IN SOA ns.quorate. hostmaster.quorate. 7 1 1 1 1
    "#]],
    );
}

#[test]
fn other_zones_and_other_than_questions_are_refused() {
    check(
        "example.com.",
        RecordType::A,
        expect![[r#"
        Refused
    "#]],
    );
    check(
        "web.quorate.",
        RecordType::AXFR,
        expect![[r#"
        Refused
    "#]],
    );
    let mut update = question("web.quorate.", RecordType::A);
    update.metadata.op_code = OpCode::Update;
    let reply = asked(&update, Transport::Udp, &directory());
    assert_eq!((reply.metadata.response_code, reply.metadata.op_code), (ResponseCode::NotImp, OpCode::Update));
    let mut future = question("web.quorate.", RecordType::A);
    future.edns.insert(Edns::new()).set_version(1);
    let reply = answer(&directory(), &future.to_vec().unwrap(), Transport::Udp).unwrap();
    // The number has two names.
    let code = Message::from_vec(&reply).unwrap().metadata.response_code;
    assert_eq!(u16::from(code), u16::from(ResponseCode::BADVERS));
}

#[test]
fn nonsense_is_answered_once_and_answers_are_not() {
    let good = question("web.quorate.", RecordType::A).to_vec().unwrap();
    let torn = answer(&directory(), &good[..good.len() - 3], Transport::Udp).unwrap();
    assert_eq!(Message::from_vec(&torn).unwrap().metadata.response_code, ResponseCode::FormErr);
    assert_eq!(answer(&directory(), &torn, Transport::Udp), None, "two servers would never stop");
    assert_eq!(answer(&directory(), &good[..HEADER - 1], Transport::Udp), None);
}

#[test]
fn what_does_not_fit_a_datagram_is_told_over_tcp_and_each_question_has_another_first() {
    let many = (0..300).map(|at: u32| instance(at, &format!("10.0.{}.{}", at / 250, at % 250), 1, Healthy)).collect();
    let directory =
        Directory { revision: 1, services: BTreeMap::from([(ServiceName::new("web").unwrap(), listed(many))]) };
    let plain = question("web.quorate.", RecordType::A);
    let mut modern = plain.clone();
    modern.edns.insert(Edns::new()).set_max_payload(u16::MAX);
    for (asking, most) in [(&plain, DATAGRAM_PLAIN), (&modern, DATAGRAM_MAX)] {
        let bytes = answer(&directory, &asking.to_vec().unwrap(), Transport::Udp).unwrap();
        assert!(bytes.len() <= usize::from(most) && Message::from_vec(&bytes).unwrap().metadata.truncation);
    }
    let whole = asked(&plain, Transport::Tcp, &directory);
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (ANSWERS_MAX, false));
    let mut another = plain;
    another.metadata.id = 299;
    let first = |reply: &Message| reply.answers[0].to_string();
    assert_ne!(first(&asked(&another, Transport::Tcp, &directory)), first(&whole));
    let ports = asked(&question("_http._tcp.web.quorate.", RecordType::SRV), Transport::Tcp, &directory);
    assert_eq!((ports.answers.len(), ports.additionals.len()), (ANSWERS_MAX, ANSWERS_MAX));
}
