//! Real handshakes, in memory: who gets through, who does not, and what each side learns of it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use quorate_model::id::{ClusterId, NodeId};
use quorate_model::time::WallTime;
use quorate_trust::ca::{BACKDATED, Ca, CaError, NODE_LIFE, NodeCertificate};
use quorate_trust::fingerprint::Fingerprint;
use quorate_trust::identity::PeerIdentity;
use quorate_trust::key::{CertificateRequest, NodeKey, RequestError};
use quorate_trust::peer::{Credentials, CredentialsError, LinkTrust, MembershipCheck, NobodyExpelled, identity_of};
use quorate_trust::pin::{self, ALPN_PINNED, PinRefusal};
use quorate_trust::refusal::{Refusal, Verdict};
use quorate_trust::renewal::{RenewError, renewing, vouch};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ServerConfig;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ClientConnection, Connection, HandshakeKind, ServerConnection};
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// 2026-11-21, in seconds.
const NOW: u64 = 1_795_219_200;
const DAY: u64 = 24 * 3600;

fn cluster(number: u128) -> ClusterId {
    ClusterId::from_u128(number)
}

fn node(number: u128) -> NodeId {
    NodeId::from_u128(number)
}

fn wall(secs: u64) -> WallTime {
    WallTime(secs * 1_000_000)
}

#[derive(Debug, Default)]
struct Clock(AtomicU64);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.load(Ordering::Relaxed))))
    }
}

#[derive(Debug, Default)]
struct Expelled(Mutex<BTreeSet<NodeId>>);

impl MembershipCheck for Expelled {
    fn admits(&self, node: NodeId) -> bool {
        !self.0.lock().unwrap().contains(&node)
    }
}

fn ca(number: u128) -> Ca {
    Ca::create(cluster(number), wall(NOW), number).unwrap()
}

/// A node with what it shows.
struct Member {
    node: NodeId,
    credentials: Credentials,
}

fn member(ca: &Ca, number: u128) -> Member {
    let key = NodeKey::generate().unwrap();
    let certificate = ca.issue(&key.request().unwrap(), node(number), &[], wall(NOW), number).unwrap();
    Member { node: node(number), credentials: Credentials::new(&certificate, &key).unwrap() }
}

fn trust(number: u128, authorities: &[&Ca]) -> LinkTrust {
    LinkTrust {
        cluster: cluster(number),
        authorities: authorities.iter().map(|ca| ca.certificate().clone()).collect(),
        members: Arc::new(NobodyExpelled),
        clock: Arc::new(Clock(NOW.into())),
    }
}

/// The first error of each side.
#[derive(Debug, Default)]
struct Outcome {
    client: Option<rustls::Error>,
    server: Option<rustls::Error>,
    /// What the server could read.
    received: Vec<u8>,
}

impl Outcome {
    fn fine(&self) -> bool {
        self.client.is_none() && self.server.is_none()
    }
}

const SECRET: &[u8] = b"mfrggzdfmztwq2lknnwg23tpobyxe43u";

fn start(client: ClientConfig, server: ServerConfig) -> (ClientConnection, ServerConnection) {
    let name = ServerName::try_from("192.0.2.7").unwrap();
    (ClientConnection::new(Arc::new(client), name).unwrap(), ServerConnection::new(Arc::new(server)).unwrap())
}

/// Carries bytes between two ends until both are silent. The client says its secret at once.
fn converse(client: ClientConnection, server: ServerConnection) -> (Outcome, ClientConnection, ServerConnection) {
    let (mut client, mut server) = (Connection::from(client), Connection::from(server));
    client.writer().write_all(SECRET).unwrap();
    let mut outcome = Outcome::default();
    loop {
        let up = carry(&mut client, &mut server, &mut outcome.server);
        let down = carry(&mut server, &mut client, &mut outcome.client);
        let mut chunk = [0; 256];
        while let Ok(got @ 1..) = server.reader().read(&mut chunk) {
            outcome.received.extend_from_slice(&chunk[..got]);
        }
        if !up && !down {
            let (Connection::Client(client), Connection::Server(server)) = (client, server) else { unreachable!() };
            return (outcome, client, server);
        }
    }
}

fn carry(from: &mut Connection, to: &mut Connection, error: &mut Option<rustls::Error>) -> bool {
    let mut wire = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut wire).unwrap();
    }
    let moved = !wire.is_empty();
    let mut rest = wire.as_slice();
    while !rest.is_empty() && error.is_none() {
        to.read_tls(&mut rest).unwrap();
        if let Err(found) = to.process_new_packets() {
            error.get_or_insert(found);
        }
    }
    moved
}

fn link(client: (&LinkTrust, &Member), server: (&LinkTrust, &Member)) -> Outcome {
    let expected = server.1.node;
    dial(client, server, expected)
}

fn dial(client: (&LinkTrust, &Member), server: (&LinkTrust, &Member), expected: NodeId) -> Outcome {
    let client = client.0.client(&client.1.credentials, expected).unwrap();
    let server = server.0.server(&server.1.credentials).unwrap();
    let (client, server) = start(client, server);
    converse(client, server).0
}

fn refusal(error: Option<&rustls::Error>) -> Refusal {
    let error = error.expect("the handshake is refused");
    Refusal::of(error).unwrap_or_else(|| panic!("{error:?}"))
}

fn verdict(error: Option<&rustls::Error>) -> Verdict {
    let error = error.expect("the other side is told");
    Verdict::of(error).unwrap_or_else(|| panic!("{error:?}"))
}

#[test]
fn two_members_of_one_cluster_speak_to_each_other_and_know_to_whom() {
    let ca = ca(1);
    let trust = trust(1, &[&ca]);
    let (a, b) = (member(&ca, 10), member(&ca, 11));
    let (client, server) = start(trust.client(&a.credentials, b.node).unwrap(), trust.server(&b.credentials).unwrap());
    let (outcome, client, server) = converse(client, server);
    assert!(outcome.fine(), "{outcome:?}");
    assert_eq!(outcome.received, SECRET);
    assert_eq!(server.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let named = |node| Some(PeerIdentity { cluster: cluster(1), node });
    assert_eq!(identity_of(client.peer_certificates()), named(b.node));
    assert_eq!(identity_of(server.peer_certificates()), named(a.node));
}

#[test]
fn a_node_of_a_foreign_ca_is_refused_by_both_sides() {
    // The same cluster id, as somebody would choose it who wants to get in.
    let (ours, theirs) = (ca(1), ca(1));
    let trust_ours = trust(1, &[&ours]);
    let trust_both = trust(1, &[&ours, &theirs]);
    let (a, stranger) = (member(&ours, 10), member(&theirs, 11));
    let outcome = link((&trust_ours, &a), (&trust_both, &stranger));
    assert_eq!(refusal(outcome.client.as_ref()), Refusal::ForeignCa);
    assert_eq!(verdict(outcome.server.as_ref()), Verdict::ForeignCa);
    assert!(outcome.received.is_empty());
    let outcome = link((&trust_both, &stranger), (&trust_ours, &a));
    assert_eq!(refusal(outcome.server.as_ref()), Refusal::ForeignCa);
    assert_eq!(verdict(outcome.client.as_ref()), Verdict::ForeignCa);
    assert!(outcome.received.is_empty());
}

#[test]
fn an_expired_certificate_is_refused_and_both_sides_are_told() {
    let ca = ca(1);
    let (a, b) = (member(&ca, 10), member(&ca, 11));
    let later = LinkTrust { clock: Arc::new(Clock((NOW + 31 * DAY).into())), ..trust(1, &[&ca]) };
    let outcome = link((&trust(1, &[&ca]), &a), (&later, &b));
    assert_eq!(refusal(outcome.server.as_ref()), Refusal::Expired { ago: Duration::from_secs(DAY) });
    assert_eq!(verdict(outcome.client.as_ref()), Verdict::Expired);
    let outcome = link((&later, &a), (&trust(1, &[&ca]), &b));
    assert_eq!(refusal(outcome.client.as_ref()).to_string(), "its certificate expired 1d ago by this server's clock");
}

#[test]
fn a_clock_that_is_behind_cuts_no_member_off_and_makes_no_stranger_one() {
    let (ca, foreign) = (ca(1), ca(1));
    let (a, b) = (member(&ca, 10), member(&ca, 11));
    let behind = LinkTrust { clock: Arc::new(Clock((NOW - 400 * DAY).into())), ..trust(1, &[&ca]) };
    assert!(link((&trust(1, &[&ca]), &a), (&behind, &b)).fine());
    assert!(link((&behind, &a), (&trust(1, &[&ca]), &b)).fine());
    let outcome = link((&trust(1, &[&ca, &foreign]), &member(&foreign, 12)), (&behind, &b));
    assert_eq!(refusal(outcome.server.as_ref()), Refusal::ForeignCa);
}

#[test]
fn a_node_of_another_cluster_is_refused_even_under_a_ca_that_is_believed() {
    let (ours, theirs) = (ca(1), ca(2));
    let (a, stranger) = (member(&ours, 10), member(&theirs, 11));
    let trusting = trust(1, &[&ours, &theirs]);
    let wrong = Refusal::WrongCluster { expected: cluster(1), found: cluster(2) };
    let outcome = link((&trusting, &a), (&trusting, &stranger));
    assert_eq!(refusal(outcome.client.as_ref()), wrong);
    assert_eq!(verdict(outcome.server.as_ref()), Verdict::Refused);
    let outcome = link((&LinkTrust { cluster: cluster(1), ..trusting.clone() }, &stranger), (&trusting, &a));
    assert_eq!(refusal(outcome.server.as_ref()), wrong);
}

#[test]
fn who_answers_at_an_address_must_be_the_node_that_was_dialled() {
    let ca = ca(1);
    let trust = trust(1, &[&ca]);
    let (a, b) = (member(&ca, 10), member(&ca, 11));
    let outcome = dial((&trust, &a), (&trust, &b), node(12));
    assert_eq!(refusal(outcome.client.as_ref()), Refusal::WrongNode { expected: node(12), found: b.node });
    assert!(outcome.received.is_empty());
}

#[test]
fn an_expelled_node_is_refused_at_its_next_connection_with_no_ticket_to_return() {
    let ca = ca(1);
    let members = Arc::new(Expelled::default());
    let trust = LinkTrust { members: members.clone(), ..trust(1, &[&ca]) };
    let (a, b) = (member(&ca, 10), member(&ca, 11));
    // One configuration for all connections, so that there is a place for tickets if there are any.
    let client = Arc::new(trust.client(&a.credentials, b.node).unwrap());
    let server = Arc::new(trust.server(&b.credentials).unwrap());
    let connect = || {
        let name = ServerName::try_from("192.0.2.7").unwrap();
        let client = ClientConnection::new(client.clone(), name).unwrap();
        converse(client, ServerConnection::new(server.clone()).unwrap())
    };
    for _ in 0..2 {
        let (outcome, client, _) = connect();
        assert!(outcome.fine());
        // With the post-quantum key share no second hello is ever needed between two of us.
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
    }
    members.0.lock().unwrap().insert(a.node);
    let (outcome, ..) = connect();
    assert_eq!(refusal(outcome.server.as_ref()), Refusal::Expelled);
    assert_eq!(verdict(outcome.client.as_ref()), Verdict::Expelled);
    assert!(outcome.received.is_empty());
}

#[test]
fn nobody_dials_an_expelled_node() {
    let ca = ca(1);
    let members = Expelled(Mutex::new(BTreeSet::from([node(11)])));
    let trust = LinkTrust { members: Arc::new(members), ..trust(1, &[&ca]) };
    let outcome = link((&trust, &member(&ca, 10)), (&trust, &member(&ca, 11)));
    assert_eq!(refusal(outcome.client.as_ref()), Refusal::Expelled);
}

#[test]
fn who_shows_no_certificate_is_refused() {
    let ca = ca(1);
    let trust = trust(1, &[&ca]);
    let b = member(&ca, 11);
    let mut client = pin::pinned(ca.certificate().fingerprint(), Arc::new(Clock(NOW.into()))).unwrap();
    client.alpn_protocols.clear();
    let (client, server) = start(client, trust.server(&b.credentials).unwrap());
    let (outcome, ..) = converse(client, server);
    assert_eq!(outcome.server, Some(rustls::Error::NoCertificatesPresented));
    assert_eq!(verdict(outcome.client.as_ref()), Verdict::NoCertificate);
    assert!(outcome.received.is_empty());
}

#[test]
fn a_client_that_does_not_speak_the_link_is_refused() {
    let ca = ca(1);
    let trust = trust(1, &[&ca]);
    let (a, b) = (member(&ca, 10), member(&ca, 11));
    let mut client = trust.client(&a.credentials, b.node).unwrap();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    let (client, server) = start(client, trust.server(&b.credentials).unwrap());
    let (outcome, ..) = converse(client, server);
    assert_eq!(outcome.server, Some(rustls::Error::NoApplicationProtocol));
}

#[test]
fn while_the_ca_is_exchanged_nodes_of_both_speak_to_each_other() {
    let (old, new) = (ca(1), ca(1));
    let both = trust(1, &[&old, &new]);
    let (a, b) = (member(&old, 10), member(&new, 11));
    assert!(link((&both, &a), (&both, &b)).fine());
    assert!(link((&both, &b), (&both, &a)).fine());
    let after = trust(1, &[&new]);
    assert_eq!(refusal(link((&both, &a), (&after, &b)).server.as_ref()), Refusal::ForeignCa);
}

#[test]
fn names_that_a_request_asks_for_do_not_get_into_the_certificate() {
    let ca = ca(1);
    let mut wanted = rcgen::CertificateParams::new(vec!["admin.example.org".to_owned()]).unwrap();
    let uri = PeerIdentity { cluster: cluster(1), node: node(99) }.to_string();
    wanted.subject_alt_names.push(rcgen::SanType::URI(uri.as_str().try_into().unwrap()));
    wanted.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let request = CertificateRequest::from_der(wanted.serialize_request(&key).unwrap().der()).unwrap();
    let names = [ServerName::try_from("n1.example.org").unwrap()];
    let certificate = ca.issue(&request, node(10), &names, wall(NOW), 7).unwrap();
    assert_eq!(certificate.identity().unwrap(), PeerIdentity { cluster: cluster(1), node: node(10) });
    let (_, parsed) = x509_parser::parse_x509_certificate(&certificate.chain()[0]).unwrap();
    assert!(!parsed.is_ca());
    let shown = format!("{:?}", parsed.subject_alternative_name().unwrap().unwrap().value);
    assert!(shown.contains("n1.example.org") && !shown.contains("admin") && !shown.contains(&node(99).to_string()));
}

#[test]
fn a_request_that_was_signed_with_another_key_or_is_of_another_kind_is_refused() {
    let mut der = NodeKey::generate().unwrap().request().unwrap().as_der().to_vec();
    CertificateRequest::from_der(&der).unwrap();
    let last = der.len() - 1;
    der[last] ^= 1;
    assert!(matches!(CertificateRequest::from_der(&der), Err(RequestError::Malformed(_))));
    let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&other).unwrap();
    assert!(matches!(CertificateRequest::from_der(request.der()), Err(RequestError::Kind)));
}

#[test]
fn certificates_last_thirty_days_and_begin_an_hour_earlier() {
    let key = NodeKey::generate().unwrap();
    let certificate = ca(1).issue(&key.request().unwrap(), node(10), &[], wall(NOW), 7).unwrap();
    let expected = (wall(NOW - BACKDATED.as_secs()), wall(NOW + NODE_LIFE.as_secs()));
    assert_eq!(certificate.lasts().unwrap(), expected);
}

#[test]
fn keys_and_certificates_come_back_from_their_files() {
    let made = ca(1);
    let read = Ca::from_pem(&made.certificate().to_pem(), &made.key_pem()).unwrap();
    assert_eq!(read.certificate().fingerprint(), made.certificate().fingerprint());
    assert_eq!(read.certificate().cluster(), cluster(1));
    assert!(matches!(Ca::from_pem(&ca(1).certificate().to_pem(), &made.key_pem()), Err(CaError::Mismatch)));
    let key = NodeKey::generate().unwrap();
    let certificate = read.issue(&key.request().unwrap(), node(10), &[], wall(NOW), 7).unwrap();
    assert_eq!(NodeCertificate::from_pem(&certificate.to_pem()).unwrap(), certificate);
    let again = NodeKey::from_pem(&key.to_pem()).unwrap();
    Credentials::new(&certificate, &again).unwrap();
    let other = NodeKey::generate().unwrap();
    assert!(matches!(Credentials::new(&certificate, &other), Err(CredentialsError::Mismatch)));
    assert!(NodeKey::from_pem("-----BEGIN").is_err() && NodeCertificate::from_pem("").is_err());
}

/// A server of TLS that asks nobody for a certificate, as the API is.
fn api(
    credentials: (&Ca, NodeKey),
    chain: impl FnOnce(Vec<CertificateDer<'static>>) -> Vec<CertificateDer<'static>>,
) -> ServerConfig {
    let (ca, key) = credentials;
    let certificate = ca.issue(&key.request().unwrap(), node(10), &[], wall(NOW), 7).unwrap();
    let der = rustls::pki_types::pem::PemObject::from_pem_slice(key.to_pem().as_bytes()).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain(certificate.chain().to_vec()), der)
        .unwrap();
    config.alpn_protocols = vec![ALPN_PINNED.to_vec(), b"http/1.1".to_vec()];
    config
}

fn join(pinned: Fingerprint, now: u64, server: ServerConfig) -> (Outcome, ClientConnection) {
    let client = pin::pinned(pinned, Arc::new(Clock(now.into()))).unwrap();
    let (client, server) = start(client, server);
    let (outcome, client, _) = converse(client, server);
    (outcome, client)
}

fn pin_refusal(outcome: &Outcome) -> PinRefusal {
    let error = outcome.client.as_ref().expect("the server is refused");
    PinRefusal::of(error).unwrap_or_else(|| panic!("{error:?}"))
}

#[test]
fn a_joiner_tells_its_secret_to_the_cluster_of_its_token() {
    let ca = ca(1);
    let pinned = ca.certificate().fingerprint();
    let (outcome, client) = join(pinned, NOW, api((&ca, NodeKey::generate().unwrap()), |chain| chain));
    assert!(outcome.fine());
    assert_eq!(outcome.received, SECRET);
    let learned = pin::authority_of(client.peer_certificates(), pinned).unwrap();
    assert_eq!((learned.cluster(), learned.fingerprint()), (cluster(1), pinned));
}

/// Row E1, threat "false seed answers a joiner".
#[test]
fn a_man_in_the_middle_with_another_ca_sees_no_byte_of_the_secret() {
    let (ours, theirs) = (ca(1), ca(1));
    let pinned = ours.certificate().fingerprint();
    let check = |server: ServerConfig, expected: PinRefusal| {
        let (outcome, _) = join(pinned, NOW, server);
        assert_eq!(pin_refusal(&outcome), expected);
        assert_eq!(outcome.received.len(), 0);
    };
    let other = PinRefusal::OtherCa { pinned };
    // With its own chain; without its CA; with the real CA's certificate, which is public.
    check(api((&theirs, NodeKey::generate().unwrap()), |chain| chain), other.clone());
    check(api((&theirs, NodeKey::generate().unwrap()), |chain| chain[..1].to_vec()), other);
    let real = ours.certificate().as_der().clone();
    let with_real = |chain: Vec<CertificateDer<'static>>| vec![chain[0].clone(), real.clone()];
    check(api((&theirs, NodeKey::generate().unwrap()), with_real), PinRefusal::Server(Refusal::ForeignCa));
}

#[test]
fn a_man_in_the_middle_with_a_copied_certificate_lacks_its_key() {
    let ours = ca(1);
    let key = NodeKey::generate().unwrap();
    let copied = ours.issue(&key.request().unwrap(), node(10), &[], wall(NOW), 7).unwrap();
    let server = api((&ca(2), NodeKey::generate().unwrap()), |chain| chain);
    // The library refuses to combine them, so the pair is put together behind its back.
    let signer = server.cert_resolver.clone();
    let mut server = server;
    server.cert_resolver = Arc::new(Mixed { chain: copied.chain().to_vec(), signer });
    let (outcome, _) = join(ours.certificate().fingerprint(), NOW, server);
    assert!(matches!(outcome.client, Some(rustls::Error::InvalidCertificate(rustls::CertificateError::BadSignature))));
    assert_eq!(outcome.received.len(), 0);
}

#[derive(Debug)]
struct Mixed {
    chain: Vec<CertificateDer<'static>>,
    signer: Arc<dyn rustls::server::ResolvesServerCert>,
}

impl rustls::server::ResolvesServerCert for Mixed {
    fn resolve(&self, hello: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        let own = self.signer.resolve(hello)?;
        Some(Arc::new(rustls::sign::CertifiedKey::new(self.chain.clone(), own.key.clone())))
    }
}

#[test]
fn a_joiner_whose_clock_is_a_day_off_is_told_so() {
    let ca = ca(1);
    let pinned = ca.certificate().fingerprint();
    let (outcome, _) = join(pinned, NOW - DAY, api((&ca, NodeKey::generate().unwrap()), |chain| chain));
    assert_eq!(
        pin_refusal(&outcome).to_string(),
        "the server shows the right CA, but its certificate begins 23h from now by this server's clock: \
         is the clock right?"
    );
    assert_eq!(outcome.received.len(), 0);
}

#[test]
fn an_expired_certificate_is_renewed_for_the_same_key_and_for_no_other() {
    let ours = ca(1);
    let authorities = [ours.certificate().clone()];
    let key = NodeKey::generate().unwrap();
    let year_ago = wall(NOW - 365 * DAY);
    let old = ours.issue(&key.request().unwrap(), node(10), &[], year_ago, 7).unwrap();
    let new = NodeKey::generate().unwrap();
    let request = new.request().unwrap();
    let voucher = vouch(&key, &request).unwrap();
    let identity = renewing(&authorities, &old, &request, &voucher).unwrap();
    assert_eq!(identity, PeerIdentity { cluster: cluster(1), node: node(10) });
    // Vouched for by the new key itself, for another request, or not at all.
    let not_vouched = Err(RenewError::NotVouched);
    assert_eq!(renewing(&authorities, &old, &request, &vouch(&new, &request).unwrap()), not_vouched);
    let other = NodeKey::generate().unwrap().request().unwrap();
    assert_eq!(renewing(&authorities, &old, &other, &voucher), not_vouched);
    assert_eq!(renewing(&authorities, &old, &request, b""), not_vouched);
    let foreign = ca(1).issue(&key.request().unwrap(), node(10), &[], year_ago, 7).unwrap();
    let refused = Err(RenewError::Old(Refusal::ForeignCa));
    assert_eq!(renewing(&authorities, &foreign, &request, &voucher), refused);
}
