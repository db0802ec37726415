//! First inputs, made by the real encoders: each is one that its decoder takes.

use crate::{disk, dns, gossip, link};
use bytes::{Bytes, BytesMut};
use prost::Message as _;
use quorate_model::command::{Command, Refusal};
use quorate_model::entry::{Envelope, Outcome, Proposal};
use quorate_model::fence::FenceRefused;
use quorate_model::id::{LogIndex, NodeId, ReplicaId, RequestId, ServiceName};
use quorate_model::observed::{Casting, NodeReport, Part, Pending, ReplicaState, ReplicaStatus};
use quorate_model::resource::{Amount, Pressure, Usage};
use quorate_model::spec::{self, Format, SpecDocument};
use quorate_model::sql::{Scalar, SqlBatch, SqlOutcome, Statement, StatementResult};
use quorate_model::state::{Health, NodeIdentity, Role};
use quorate_model::time::WallTime;
use quorate_node::wire::{
    self, Ages, AskAges, AskSecrets, Body, Forward, ForwardedProposal, GiveSecrets, GivenSecret, GossipKeys, Hello,
    LeaseAge, LogAnswer, LogQuestion, Ping, RaftEntry, RaftMessage, Remembered, Renew, Renewal, Renewed, SnapshotHead,
    Status, Transfer, TriedExternal, TryExternal, Voters,
};
use quorate_trust::key::NodeKey;
use std::collections::BTreeMap;

const SPEC: &str = r#"[[service]]
name = "web"
replicas = 2
command = ["/opt/web", "--port={port}", "--admin={port.admin}", "{{{replica}}}"]
env = { WHO = "{node}-{ordinal}" }
ports = { http = "auto", admin = 9090 }
health = { http = "/health", port = "http", every = "1m30s", timeout = "250ms", fail_after = 2 }
restart = { policy = "on-failure", backoff = "200ms..30s" }
stop = { signal = "INT", grace = "5s" }

[[route]]
host = "shop.example"
path = "/api"
service = "web"
listen = ":8443"
"#;

/// Every seed of a target of [`crate::TARGETS`].
///
/// # Panics
/// When there is no such target.
#[must_use]
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "agent" => agent(),
        "dns" => dns::seeds(),
        "entry" => entries(),
        "gossip" => gossip::seeds(),
        "http" => texts(HTTP),
        "link" => frames(),
        "log" => logs(),
        "proxy" => texts(PROXY),
        "routes" => texts(ROUTES),
        "rqlite" => texts(RQLITE),
        "snapshot" => snapshots(),
        "spec" => specs(),
        "sql" => texts(SQL),
        "trust" => trusted(),
        other => panic!("{other} is no target"),
    }
}

/// A token, and a request that was signed by its key. Keys are random, so it differs each time.
fn trusted() -> Vec<Vec<u8>> {
    let request = NodeKey::generate().and_then(|key| key.request()).expect("the system gives randomness");
    let fingerprint = "0123456789abcdef".repeat(4);
    let token = |address: &str| format!("t{address}/mfrggzdfmztwq2lknnwg23tpobyxe43u/{fingerprint}").into_bytes();
    vec![
        token("192.0.2.7:7000"),
        token("[2001:db8::7]:7000"),
        token("node-1.example.org:65535"),
        [b"r", request.as_der()].concat(),
    ]
}

fn texts(all: &[&str]) -> Vec<Vec<u8>> {
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// As it is, and with checksums to be put right.
fn twice(input: Vec<u8>) -> [Vec<u8>; 2] {
    let mut repaired = input.clone();
    repaired[0] = 1;
    [input, repaired]
}

/// Also one whose last entry is damaged, and so is to be cut.
fn logs() -> Vec<Vec<u8>> {
    let mut damaged = disk::written_log(false);
    let entry = damaged.windows(12).position(|bytes| bytes == b"another four").expect("the last entry says so");
    damaged[entry] ^= 1;
    [false, true].into_iter().flat_map(|large| twice(disk::written_log(large))).chain([damaged]).collect()
}

fn document() -> SpecDocument {
    spec::parse(SPEC, Format::Toml).expect("the text above is a spec")
}

fn specs() -> Vec<Vec<u8>> {
    let document = document();
    let json = spec::render(&document, Format::Json);
    let toml = spec::render(&document, Format::Toml);
    let short = "j{\"service\":[{\"name\":\"a\",\"command\":[\"b\"]}]}";
    texts(&[&format!("t{SPEC}"), &format!("t{toml}"), &format!("j{json}"), short])
}

fn identity(number: u128) -> NodeIdentity {
    NodeIdentity {
        id: link::id(number),
        name: format!("n{number}"),
        roles: [Role::Manager, Role::Worker].into(),
        api: format!("127.0.0.1:800{number}"),
        link: format!("127.0.0.1:810{number}"),
        host: "127.0.0.1".into(),
    }
}

/// Commands as they are proposed, each kind that needs nothing from another.
pub(crate) fn commands() -> Vec<Proposal> {
    let web = ServiceName::new("web").expect("a name");
    let commands = [
        Command::RegisterNode { node: identity(1), boot: 4 },
        Command::ChangeHealth { node: link::id(1), generation: 1, health: Health::Down, at: WallTime(9) },
        Command::ApplySpec { document: document() },
        Command::ScaleService { service: web.clone(), replicas: 3 },
        Command::CarryOut { expected: LogIndex(4), steps: Vec::new() },
        Command::RemoveService { service: web },
    ];
    (1..).zip(commands).map(|(number, command)| Proposal::command(RequestId::from_u128(number), &command)).collect()
}

fn batch() -> SqlBatch {
    let mut statement = Statement::new("INSERT INTO t VALUES (?1, ?2, ?3, ?4)");
    let scalars =
        [Scalar::Integer(-7), Scalar::Real(0.5), Scalar::Text("x".into()), Scalar::Blob(Bytes::from_static(b"\0\xff"))];
    statement.positional = scalars.map(Into::into).to_vec();
    SqlBatch { statements: vec![statement, Statement::new("SELECT 1")], transaction: true }
}

fn entries() -> Vec<Vec<u8>> {
    let sql = Proposal::sql(RequestId::from_u128(5), &batch());
    let fenced = sql.clone().under(Some("web@4".parse().expect("a fence")));
    let envelopes = commands().into_iter().chain([sql, fenced]).map(|proposal| {
        let mut entry = vec![0xff];
        entry.extend(Envelope::stamp(proposal, WallTime(1_700_000_000_000_000), 7).encode_to_vec());
        entry
    });
    let result = StatementResult { rows_affected: 1, last_insert_id: -2, ..StatementResult::default() };
    let refusal = Refusal::Invalid { field: "replicas".into(), problem: "is 0".into() };
    let stale = FenceRefused { service: "web".into(), epoch: 3, newest: 4 };
    let outcomes = [
        (1, Outcome::Sql(SqlOutcome { results: vec![result], refused: None })),
        (1, Outcome::Sql(SqlOutcome { results: Vec::new(), refused: Some(stale) })),
        (2, Outcome::Command(Ok(()))),
        (2, Outcome::Command(Err(refusal))),
    ];
    let outcomes = outcomes.map(|(kind, outcome)| [vec![kind], outcome.to_bytes()].concat());
    envelopes.chain(outcomes).collect()
}

fn frames() -> Vec<Vec<u8>> {
    let id = |node: NodeId| Bytes::copy_from_slice(node.0.as_bytes());
    let replica = ReplicaStatus {
        replica: ReplicaId::from_u128(3),
        service: ServiceName::new("web").expect("a name"),
        state: ReplicaState::Healthy,
        pid: Some(7),
        ports: BTreeMap::from([("http".into(), 8080)]),
        started_at: Some(WallTime(5)),
        restarts: 0,
        detail: String::new(),
        log_dir: String::new(),
        fencing: None,
        casting: Some(Casting { part: Part::Active, epoch: 4, yielded: 0 }),
    };
    let pressure = Some(Pressure { cpu_permille: 10, ..Pressure::default() });
    let usage = Usage { cpu_millis: 500, memory_bytes: Some(1 << 20), pressure };
    let report = NodeReport {
        pending: Pending { changes: vec!["log.keep_mib 64 → 4".into()], mistake: String::new() },
        node: link::peer(),
        sequence: 3,
        replicas: vec![replica],
        reachable: vec![link::id(1)],
        gateways: Vec::new(),
        version: "1.2.3".into(),
        log_dir: String::new(),
        capacity: Some(Amount { cpu_millis: 2000, memory_bytes: 1 << 30 }),
        usage: BTreeMap::from([(ReplicaId::from_u128(3), usage)]),
        scraped: BTreeMap::from([(ReplicaId::from_u128(3), 2500)]),
        untold: BTreeMap::from([(ServiceName::new("web").expect("a name"), "status 404".into())]),
        drivers: Some(["process".to_owned()].into()),
        trust: None,
        prepared: Vec::new(),
    };
    let entry = RaftEntry { kind: 0, term: 2, index: 8, data: Bytes::from_static(b"data") };
    let append =
        RaftMessage { kind: 3, to: 1, from: 2, term: 2, index: 7, entries: vec![entry], ..RaftMessage::default() };
    let proposal = ForwardedProposal::new(&Proposal::sql(RequestId::from_u128(5), &batch()));
    let renewal = Renewal { name: "db".into(), epoch: 3, number: 12 };
    let age = LeaseAge { name: "db".into(), epoch: 3, number: 12, since_us: 6_250_000, fenced: true };
    let voters = Some(Voters { voters: vec![id(link::id(1)), id(link::peer())], outgoing: vec![id(link::id(1))] });
    let bodies = [
        Body::Hello(Hello {
            version: wire::VERSION,
            cluster: id(link::id(9)),
            node: id(link::peer()),
            bulk: false,
            link: "127.0.0.1:8102".into(),
            incarnation: 2,
            refused: String::new(),
        }),
        Body::Raft(append),
        Body::Forward(Forward { proposals: vec![proposal] }),
        Body::Status(Status::new(&report, LogIndex(8), Some([1, 2]), WallTime(1_700_000_000_000_000))),
        Body::Transfer(Transfer::new(link::id(1))),
        Body::Ping(Ping { is_answer: true }),
        Body::Remembered(Remembered { applied: 7 }),
        Body::LogQuestion(LogQuestion { last_lines: Some(50), bytes_max: 4_096, ..LogQuestion::default() }),
        Body::LogAnswer(LogAnswer { data: "line\n".into(), next: 5, ..LogAnswer::default() }),
        Body::AskSecrets(AskSecrets { names: vec!["db-password".into()] }),
        Body::GiveSecrets(GiveSecrets {
            secrets: vec![GivenSecret {
                name: "db-password".into(),
                version: 2,
                changed_us: 1_700_000_000_000_000,
                value: Bytes::from_static(b"value"),
            }],
        }),
        Body::TryExternal(TryExternal {
            ticket: 7,
            external: r#"{"name":"db","kind":"postgres","hosts":["h1:5432"],"user":"joe"}"#.into(),
            password: Some(Bytes::from_static(b"value")),
        }),
        Body::TriedExternal(TriedExternal { ticket: 7, login: r#"{"node":"n1","hosts":[{"host":"h1:5432"}]}"#.into() }),
        Body::GossipKeys(GossipKeys { ring: format!("1 {}\n", "07".repeat(32)) }),
        Body::Renew(Renew { run: 9, leases: vec![renewal.clone()] }),
        Body::Renewed(Renewed { run: 9, leases: vec![renewal.clone()], voters: voters.clone() }),
        Body::AskAges(AskAges { term: 2, leases: vec![renewal] }),
        Body::Ages(Ages { term: 2, ages: vec![age], voters }),
        Body::Snapshot(SnapshotHead { term: 3, manifest: disk::real_manifest().into() }),
    ];
    let stream = |bodies: &[Body]| {
        let mut out = BytesMut::from(&[5][..]);
        for body in bodies {
            body.clone().encode_into(&mut out);
        }
        out.to_vec()
    };
    bodies.iter().map(|body| stream(std::slice::from_ref(body))).chain([stream(&bodies)]).collect()
}

fn snapshots() -> Vec<Vec<u8>> {
    let manifest = disk::real_manifest();
    let length = u16::try_from(manifest.len()).expect("a short text").to_le_bytes();
    // The page of the freelist is not read by anyone.
    vec![vec![1, 0, 0], [&[1][..], &length, &manifest].concat()]
}

fn agent() -> Vec<Vec<u8>> {
    let id = ReplicaId::from_u128(3);
    let spec = serde_json::to_string(&document().services[0]).expect("a spec has string keys");
    let assigned = format!(r#"{{"replica":"{id}","ordinal":1,"spec":{spec},"phase":"run"}}"#);
    let leased = assigned.replace(r#""phase":"run""#, r#""phase":"run","lease":{"epoch":3,"ttl":"6s"}"#);
    let node = NodeId::from_u128(1);
    texts(&[
        r#"r{"v":1,"do":"watch"}"#,
        r#"r{"v":1,"do":"stop","signal":"TERM","grace_ms":5000}"#,
        &format!(
            r#"s{{"v":1,"replica":"{id}","shim_pid":7,"state":"backing-off","pid":8,"started_at":5,"restarts":1,"detail":"exited with status 1","ports":{{"http":8080}}}}"#
        ),
        &format!(
            r#"l{{"v":1,"assigned":{assigned},"command":["/opt/web"],"env":{{"A":"b"}},"ports":{{"http":8080,"admin":9090}},"restarts":2}}"#
        ),
        &format!(r#"a{{"node":"{node}","revision":7,"replicas":[{assigned}]}}"#),
        r#"r{"v":1,"do":"hold","epoch":3,"deadline":5500000000}"#,
        r#"r{"v":1,"do":"promote"}"#,
        r#"k{"seen":"failing","detail":"monitor of a:b said error (1)","fencing":"agent","may_be_left":true}"#,
        r#"m<?xml version="1.0"?><resource-agent name="a"><parameters><parameter name="ip" required="1"/></parameters><actions><action name="monitor" timeout="20s" interval="10"/></actions></resource-agent>"#,
        "p# HELP m Jobs that wait.\nm{l=\"v\",q=\"a\\n\\\"b\\\\\"} 2.5 1700000000000\nm{l=\"v\"} 1e3\nmore 1\n",
        &format!(
            r#"s{{"v":1,"replica":"{id}","shim_pid":7,"state":"running","pid":9,"lease":{{"epoch":3,"fencing":"pid-namespace","init":8,"let_go":false}}}}"#
        ),
        &format!(
            r#"l{{"v":1,"assigned":{leased},"command":["/opt/web"],"env":{{}},"ports":{{}},"restarts":0,"deadline":5500000000}}"#
        ),
        "R+OK\r\n+PONG\r\n$16\r\ncluster_state:ok\r\n",
        "R-WRONGPASS invalid username-password pair\r\n",
        "SHTTP/1.1 200 OK\r\n\r\n<ListBucketResult></ListBucketResult>",
        "SHTTP/1.1 404 Not Found\r\n\r\n<Error><Code>NoSuchBucket</Code><Message>none</Message></Error>",
        // No password is asked for; ready; ready again after one row.
        "PR\0\0\0\u{8}\0\0\0\0Z\0\0\0\u{5}IZ\0\0\0\u{5}I",
        "PE\0\0\0\u{10}C28P01\0Mno\0\0",
    ])
}

const HTTP: &[&str] = &[
    "GET /v1/status\n\n",
    "GET /v1/events?after=3&limit=7\n\n",
    "GET /v1/db/query?sql=SELECT%201&consistency=local&database=system&timeout_ms=100\n\n",
    "GET /db/query?q=SELECT+1&level=none&timeout=1s\n\n",
    "GET /ui/\nhost: 127.0.0.1:8001\n\n",
    "POST /v1/db/exec\nquorate-request-id: 7f1de2d3-7d53-4f5c-9f30-d5ab9b0b7d2e\n\n{\"sql\":\"SELECT ?\",\"params\":[1]}",
    "POST /db/execute?transaction\nidempotency-key: order-17\n\n[[\"INSERT INTO t VALUES (?)\",5]]",
    "POST /db/query\ncontent-type: text/plain\n\nSELECT 1",
    "POST /v1/specs?plan=true\n\n{\"service\":[{\"name\":\"a\",\"command\":[\"b\"]}]}",
    "POST /v1/specs\ncontent-type: application/toml\n\n[[service]]\nname = 'a'\ncommand = ['b']\n",
    "POST /v1/services/web/scale\norigin: http://127.0.0.1\nhost: 127.0.0.1\ncookie: quorate_console=token\nx-quorate-token: token\n\n{\"replicas\":3}",
    "POST /v1/services/web/scale\n\n{\"replicas\":3}",
    "DELETE /v1/services/web?timeout_ms=500\n\n",
    "POST /v1/gateway/report\n\n{\"gateway\":\"g\",\"url\":\"u\",\"revision\":4}",
    "GET /ui/%61pp.js\n\n",
    "GET /v1/gateway/stream?name=g\n\n",
    "GET /v1/stream\n\n",
];

const PROXY: &[&str] = &[
    "GET /x?y=1\nhost: shop.example:80\nconnection: keep-alive, X-Secret\nx-secret: 1\nte: trailers\nx-forwarded-for: 192.0.2.1\nx-quorate-error: no",
    "GET http://user@real.example/x\nhost: other.example\nconnection: upgrade\nupgrade: websocket",
    "POST /\nhost: a\ntransfer-encoding: chunked\nexpect: 100-continue\nproxy-authorization: b",
    "POST /\nhost: a\nContent-Length: 5\n\nhello",
];

const ROUTES: &[&str] = &[
    "shop.example:8000 /api/x\n\n{\"revision\":7,\"routes\":[{\"host\":\"Shop.example\",\"path\":\"/api/\",\"service\":\"web\"},{\"service\":\"web\"},{\"listen\":\":8443\",\"service\":\"db\"}],\"services\":[{\"service\":\"web\",\"balance\":\"leastconn\",\"check_path\":\"/health\",\"endpoints\":[{\"replica\":\"00000000-0000-0000-0000-000000000003\",\"node\":\"00000000-0000-0000-0000-000000000001\",\"address\":\"127.0.0.1:9000\",\"state\":\"healthy\"},{\"replica\":\"00000000-0000-0000-0000-000000000004\",\"node\":\"00000000-0000-0000-0000-000000000001\",\"address\":\"[::1]:9000\",\"state\":\"draining\"}]}]}",
];

const RQLITE: &[&str] = &[
    r#"["SELECT 1",["SELECT ?, ?, ?",1.5,"x'00ff'",[171,0],null,true]]"#,
    r#"[["INSERT INTO t VALUES (:a, $b)",{"a":"<&>","$b":18446744073709551615}]]"#,
];

const SQL: &[&str] = &[
    r#"{"statements":[{"sql":"SELECT ?","params":[1,-2.5e3,"x\u0000",null,true,{"base64":"AP8="}]}],"transaction":true,"database":"system","consistency":"local","timeout_ms":500}"#,
    r#"{"sql":"SELECT :a","params":{":a":0.1,"b":9223372036854775807}}"#,
];
