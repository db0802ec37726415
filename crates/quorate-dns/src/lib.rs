//! Names of services: a question's bytes in, an answer's bytes out. No sockets, no clock.
//!
//! ```text
//! web.quorate              A, AAAA   addresses of the replicas that are reachable
//! 3.web.quorate            A, AAAA   the replica with this ordinal
//! _http._tcp.web.quorate   SRV       port and name of each replica, for the port named http
//! quorate                  SOA
//! ```
//! What is not in the zone is refused: this is no resolver, and whoever asks it for anything else asks the
//! next server of his list. Nothing is looked up anywhere else than in the [`Directory`] that is given.
//!
//! # Invariants
//! - Any bytes get an answer of bounded size or none, and never make it panic: see the target `dns` of the fuzzer.
//! - A name that exists has no error (NOERROR without answers), one that does not is NXDOMAIN; both with the
//!   zone's SOA, so that they are remembered no longer than [`TTL_SECS`].
//!
//! # Sources
//! RFC 1035, 2308 (negative answers), 2782 (SRV), 6891 (EDNS), 7766 (TCP), 8020 (NXDOMAIN means nothing below).

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable as _, BinEncoder};
use quorate_model::discovery::{Directory, Instance, Listed, ZONE};
use quorate_model::id::ServiceName;
use std::net::IpAddr;

#[cfg(test)]
mod tests;

/// How long an answer may be kept, in seconds, with or without records: what a client goes on with after a
/// replica has died. As little as resolvers keep to.
pub const TTL_SECS: u32 = 1;
/// The most that is sent in one datagram: what passes everywhere unfragmented (RFC 9715).
const DATAGRAM_MAX: u16 = 1232;
/// What a client that says nothing of EDNS takes.
const DATAGRAM_PLAIN: u16 = 512;
/// Replicas in one answer. More do not fit a datagram by far, and no client tries so many.
const ANSWERS_MAX: usize = 128;
/// A message's header. Less has no id to answer to.
const HEADER: usize = 12;
/// The header's bit that says "this is a response".
const RESPONSE_BIT: u8 = 0x80;

/// How the question came, which says how long its answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// The answer to a question, or none: to what is shorter than a header, and to what is an answer itself.
#[must_use]
pub fn answer(directory: &Directory, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
    // Two servers that answer each other's answers would never stop.
    if question.len() < HEADER || question[2] & RESPONSE_BIT != 0 {
        return None;
    }
    let Ok(asked) = Message::from_vec(question) else {
        let id = u16::from_be_bytes([question[0], question[1]]);
        return encoded(&Message::error_msg(id, OpCode::Query, ResponseCode::FormErr), DATAGRAM_PLAIN);
    };
    let mut reply = Message::response(asked.metadata.id, asked.metadata.op_code);
    reply.metadata.recursion_desired = asked.metadata.recursion_desired;
    reply.add_queries(asked.queries.iter().take(1).cloned());
    if asked.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(DATAGRAM_MAX);
        reply.set_edns(edns);
    }
    fill(&mut reply, directory, &asked);
    let limit = match (transport, &asked.edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(DATAGRAM_PLAIN, DATAGRAM_MAX),
        (Transport::Udp, None) => DATAGRAM_PLAIN,
    };
    encoded(&reply, limit)
}

fn encoded(reply: &Message, limit: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = BinEncoder::new(&mut bytes);
    // What does not fit is left out, and the reply says so.
    encoder.set_max_size(limit);
    reply.emit(&mut encoder).ok()?;
    Some(bytes)
}

fn fill(reply: &mut Message, directory: &Directory, asked: &Message) {
    let refuse = |reply: &mut Message, code| reply.metadata.response_code = code;
    if asked.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
        return refuse(reply, ResponseCode::BADVERS);
    }
    if asked.metadata.op_code != OpCode::Query {
        return refuse(reply, ResponseCode::NotImp);
    }
    let [query] = &asked.queries[..] else { return refuse(reply, ResponseCode::FormErr) };
    let Some(name) = Asked::read(query.name()) else { return refuse(reply, ResponseCode::Refused) };
    let transfers = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
    if query.query_class() != DNSClass::IN || transfers {
        return refuse(reply, ResponseCode::Refused);
    }
    reply.metadata.authoritative = true;
    match name.look_up(directory) {
        Found::Nothing => reply.metadata.response_code = ResponseCode::NXDomain,
        Found::Apex => {
            if matches!(query.query_type(), RecordType::SOA | RecordType::ANY) {
                reply.add_answer(soa(directory));
            }
        }
        Found::Empty => {}
        Found::Hosts(instances) => {
            let hosts = instances.iter().map(|instance| host(query.name(), instance.address));
            let wanted = hosts.filter(|record| fits(query, record)).collect();
            reply.add_answers(rotated(wanted, asked.metadata.id));
        }
        Found::Ports { service, port, instances } => {
            if matches!(query.query_type(), RecordType::SRV | RecordType::ANY) {
                services(reply, query.name(), service, port, &instances, asked.metadata.id);
            }
        }
    }
    if reply.answers.is_empty() {
        reply.add_authority(soa(directory));
    }
}

/// A name of the zone, as its labels from the left, in lower case.
struct Asked(Vec<String>);

/// What a name stands for.
enum Found<'a> {
    Nothing,
    /// The name is there, and has no records.
    Empty,
    Apex,
    Hosts(Vec<&'a Instance>),
    Ports {
        service: &'a ServiceName,
        port: &'a str,
        instances: Vec<&'a Instance>,
    },
}

impl Asked {
    /// `None`: it is in another zone.
    fn read(name: &Name) -> Option<Asked> {
        let mut labels: Vec<String> =
            name.iter().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect();
        (labels.pop()? == ZONE).then_some(Asked(labels))
    }

    fn look_up<'a>(&self, directory: &'a Directory) -> Found<'a> {
        let labels: Vec<&str> = self.0.iter().map(String::as_str).collect();
        let Some((service, below)) = labels.split_last() else { return Found::Apex };
        let known = ServiceName::new(service).ok().and_then(|name| directory.services.get_key_value(&name));
        let Some((service, listed)) = known else { return Found::Nothing };
        match below {
            [] => Found::Hosts(listed.reachable().collect()),
            ["_tcp"] if !listed.ports.is_empty() => Found::Empty,
            [port, "_tcp"] => port_of(service, listed, port),
            [ordinal] => ordinal_of(listed, ordinal),
            _ => Found::Nothing,
        }
    }
}

fn port_of<'a>(service: &'a ServiceName, listed: &'a Listed, label: &str) -> Found<'a> {
    let wanted = label.strip_prefix('_');
    // Ports are named as in the spec, labels are compared without regard to case.
    match listed.ports.iter().find(|port| wanted.is_some_and(|wanted| port.eq_ignore_ascii_case(wanted))) {
        Some(port) => Found::Ports { service, port, instances: listed.reachable().collect() },
        None => Found::Nothing,
    }
}

fn ordinal_of<'a>(listed: &'a Listed, label: &str) -> Found<'a> {
    let of = |instance: &&Instance| instance.ordinal.to_string() == label;
    match listed.reachable().find(of) {
        Some(instance) => Found::Hosts(vec![instance]),
        // It is there and not to be reached.
        None if listed.instances.iter().any(|instance| of(&instance)) => Found::Empty,
        None => Found::Nothing,
    }
}

fn fits(query: &Query, record: &Record) -> bool {
    query.query_type() == record.record_type() || query.query_type() == RecordType::ANY
}

fn host(name: &Name, address: IpAddr) -> Record {
    let data = match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    };
    Record::from_rdata(name.clone(), TTL_SECS, data)
}

/// Each replica's port under a name of its own, and the addresses of these names, so that nobody asks again.
fn services(reply: &mut Message, name: &Name, service: &ServiceName, port: &str, instances: &[&Instance], turn: u16) {
    let mut pairs = Vec::new();
    for instance in instances {
        let Some(number) = instance.ports.get(port) else { continue };
        let Ok(target) = Name::from_ascii(format!("{}.{service}.{ZONE}.", instance.ordinal)) else { continue };
        let address = host(&target, instance.address);
        pairs.push((Record::from_rdata(name.clone(), TTL_SECS, RData::SRV(SRV::new(0, 0, *number, target))), address));
    }
    for (record, address) in rotated(pairs, turn) {
        reply.add_answer(record);
        reply.add_additional(address);
    }
}

/// Clients take the first of what they get: the question's id, which they choose at random, says which that is.
fn rotated<T>(mut items: Vec<T>, turn: u16) -> Vec<T> {
    if !items.is_empty() {
        let by = usize::from(turn) % items.len();
        items.rotate_left(by);
    }
    items.truncate(ANSWERS_MAX);
    items
}

fn soa(directory: &Directory) -> Record {
    let zone = Name::from_ascii(format!("{ZONE}.")).expect("the zone is a name");
    let (server, mailbox) = (prefixed("ns", &zone), prefixed("hostmaster", &zone));
    let ttl = i32::try_from(TTL_SECS).expect("it is small");
    // Serial numbers go round (RFC 1982).
    let data = SOA::new(server, mailbox, directory.revision as u32, ttl, ttl, ttl, TTL_SECS);
    Record::from_rdata(zone, TTL_SECS, RData::SOA(data))
}

fn prefixed(label: &str, zone: &Name) -> Name {
    zone.prepend_label(label).expect("a short name with one label more is a name")
}

/// Whether these bytes are a reply to that question: for tests and the fuzzer.
#[must_use]
pub fn is_reply_to(reply: &[u8], question: &[u8]) -> bool {
    reply.len() >= HEADER
        && question.len() >= HEADER
        && reply[..2] == question[..2]
        && Message::from_vec(reply).is_ok_and(|reply| reply.metadata.message_type == MessageType::Response)
}
