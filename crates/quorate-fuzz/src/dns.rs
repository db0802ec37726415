//! DNS: whatever reaches the port.

use quorate_dns::{Transport, answer, is_reply_to};
use quorate_model::discovery::{Directory, Instance, Listed};
use quorate_model::id::{NodeId, ReplicaId, ServiceName};
use quorate_model::routing::EndpointState;
use std::collections::BTreeMap;

/// A message, as it comes in a datagram and over a connection.
///
/// # Panics
/// When an answer is longer than a datagram may be, or is no answer to this question.
pub fn dns(data: &[u8]) -> bool {
    let directory = directory();
    let mut found = false;
    for transport in [Transport::Udp, Transport::Tcp] {
        let Some(reply) = answer(&directory, data, transport) else { continue };
        assert!(is_reply_to(&reply, data), "not an answer to it");
        assert!(transport == Transport::Tcp || reply.len() <= 1232, "{} bytes in a datagram", reply.len());
        assert_eq!(answer(&directory, &reply, transport), None, "an answer is answered");
        // NOERROR.
        found |= reply[3] & 0xf == 0;
    }
    found
}

fn directory() -> Directory {
    let instance = |ordinal: u32, address: &str| Instance {
        replica: ReplicaId::from_u128(u128::from(ordinal)),
        ordinal,
        node: NodeId::from_u128(1),
        node_name: "n1".into(),
        address: address.parse().expect("an address"),
        ports: BTreeMap::from([("http".to_owned(), 8080)]),
        state: EndpointState::Healthy,
    };
    let listed = Listed {
        main_port: Some("http".into()),
        fixed_port: None,
        ports: vec!["http".into()],
        instances: vec![instance(0, "192.0.2.1"), instance(1, "2001:db8::1")],
    };
    let name = ServiceName::new("web").expect("a name");
    Directory { revision: 1, services: BTreeMap::from([(name, listed)]) }
}

/// Questions as `dig` sends them.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let question = |name: &str, kind: u8, edns: bool| {
        let mut bytes = vec![0x12, 0x34, 0x01, 0x20, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
        for label in name.split('.') {
            bytes.push(u8::try_from(label.len()).expect("a short label"));
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.extend_from_slice(&[0, 0, kind, 0, 1]);
        if edns {
            // With a cookie.
            bytes.extend_from_slice(&[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
        }
        bytes
    };
    vec![
        question("web.quorate", 1, true),
        question("web.quorate", 28, false),
        question("1.web.quorate", 255, true),
        question("_http._tcp.web.quorate", 33, true),
        question("quorate", 6, true),
    ]
}
