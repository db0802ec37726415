use super::*;
use crate::access::service::{Grant, GrantedDatabase, Right};
use crate::need::{Artifact, Requirement, S3};
use crate::place::Place;
use crate::resource::Resources;
use crate::spec::{
    Active, Autoscale, Balance, Clock, Container, Counted, Days, Driver, Engine, HealthCheck, Hours, Mode, Ocf,
    OcfTimeouts, Order, Promote, Restart, RestartPolicy, RouteSpec, Scrape, ServiceSpec, SqlCheck, Standby, StartStop,
    Stop, StopSignal, Systemd, Update, WithoutQuorum,
};
use crate::template::Template;
use crate::vip::ServiceVip;
use expect_test::{Expect, expect};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn check(text: &str, expected: Expect) {
    expected.assert_eq(&parse(text, Format::Toml).unwrap_err().to_string());
}

fn check_json(text: &str, expected: Expect) {
    expected.assert_eq(&parse(text, Format::Json).unwrap_err().to_string());
}

const WEB: &str = "[[service]]\nname = 'web'\ncommand = ['/bin/web']\n";

fn check_web(lines: &str, expected: Expect) {
    check(&format!("{WEB}{lines}"), expected);
}

#[test]
fn an_unknown_key_is_named_with_its_service_its_place_and_the_nearest_known_one() {
    check_web(
        "replcas = 3",
        expect!["unknown key `replcas` in [[service]] `web` (line 4, column 1); did you mean `replicas`?"],
    );
    check_web(
        "health = { tcp = true, evry = '1s' }",
        expect!["unknown key `evry` in health of [[service]] `web` (line 4, column 24); did you mean `every`?"],
    );
    check_web(
        "[[rout]]\nservice = 'web'",
        expect!["unknown key `rout` in the file (line 4, column 3); did you mean `route`?"],
    );
}

#[test]
fn an_unknown_key_like_no_other_brings_the_list() {
    check_web(
        "[stop]\nkill = 1",
        expect!["unknown key `stop` in the file (line 4, column 2); known keys: service, route"],
    );
    check_web(
        "stop = { kill = 1 }",
        expect!["unknown key `kill` in stop of [[service]] `web` (line 4, column 10); known keys: signal, grace"],
    );
}

#[test]
fn a_word_outside_a_set_brings_the_set() {
    check_web(
        "mode = 'replicatd'",
        expect![[
            r#"`mode` in [[service]] `web` is "replicatd" (line 4, column 1); did you mean "replicated"? allowed: "replicated", "singleton", "active-passive", "every-node""#
        ]],
    );
    check_web(
        "restart = { policy = 'sometimes' }",
        expect![[
            r#"`policy` in restart of [[service]] `web` is "sometimes" (line 4, column 13); allowed: "always", "on-failure", "never""#
        ]],
    );
    check_web(
        "stop = { signal = 'term' }",
        expect![[
            r#"`signal` in stop of [[service]] `web` is "term" (line 4, column 10); did you mean "TERM"? allowed: "TERM", "INT", "QUIT", "HUP", "USR1", "USR2""#
        ]],
    );
}

#[test]
fn a_missing_key_is_named() {
    check("[[service]]\nname = 'web'", expect!["missing key `command` in [[service]] `web` (line 1, column 1)"]);
    check("[[service]]\ncommand = ['x']", expect!["missing key `name` in [[service]] number 1 (line 1, column 1)"]);
}

#[test]
fn a_value_of_the_wrong_kind_is_told_in_words_of_people() {
    check_web(
        "replicas = '3'",
        expect!["`replicas` in [[service]] `web` must be a whole number, not text (line 4, column 1)"],
    );
    check_web(
        "replicas = 1.5",
        expect!["`replicas` in [[service]] `web` must be a whole number, not a fraction (line 4, column 1)"],
    );
    check_web("replicas = -1", expect!["`replicas` in [[service]] `web`: must be 0 to 4294967295 (line 4, column 1)"]);
    check_web(
        "env = { A = 1 }",
        expect!["`env.A` in [[service]] `web` must be text in quotes, not a whole number (line 4, column 9)"],
    );
    check_web(
        "health = '/ok'",
        expect![[
            r#"`health` in [[service]] `web` must be a table, like { key = "value" }, not text (line 4, column 1)"#
        ]],
    );
    check(
        "[[service]]\nname = 'web'\ncommand = 'web --port 1'",
        expect![[
            r#"`command` in [[service]] `web` must be an array of text, like ["/opt/web", "--port", "{port}"], not text (line 3, column 1)"#
        ]],
    );
    check(
        "[[service]]\nname = 'web'\ncommand = ['web', 1]",
        expect![
            "`command` in [[service]] `web`: each part must be text in quotes, not a whole number (line 3, column 1)"
        ],
    );
    check(
        "[service]\nname = 'web'",
        expect!["`service` in the file: write it with two brackets: [[service]] (line 1, column 2)"],
    );
}

#[test]
fn a_value_that_says_nothing_brings_an_example() {
    check(
        "[[service]]\nname = 'Web'\ncommand = ['x']",
        expect![
            "`name` in [[service]] `Web`: `Web` is not a service name: use 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit (line 2, column 1)"
        ],
    );
    check_web(
        "ports = { http = 0 }",
        expect![[
            r#"`ports.http` in [[service]] `web`: a port is a number from 1 to 65535 or "auto" (line 4, column 11)"#
        ]],
    );
    check_web(
        "ports = { http = 'any' }",
        expect![[
            r#"`ports.http` in [[service]] `web`: a port is a number from 1 to 65535 or "auto" (line 4, column 11)"#
        ]],
    );
    check_web(
        "stop = { grace = '10' }",
        expect![
            "`grace` in stop of [[service]] `web`: `10` is not a time span: write a number with its unit, like 250ms, 10s or 1m30s (line 4, column 10)"
        ],
    );
    check_web(
        "restart = { backoff = '30s..1s' }",
        expect![
            "`backoff` in restart of [[service]] `web`: `30s..1s` is not a back-off: write FIRST..LONGEST, like 200ms..30s (line 4, column 13)"
        ],
    );
}

#[test]
fn a_condition_on_nodes_that_is_none_is_found_where_it_is() {
    check_web(
        "place = { require = ['zone'] }",
        expect![
            "`require` in place of [[service]] `web`: `zone` is no condition on a node: write `zone = a`, `disk != hdd` or `node = n1|n2` (line 4, column 11)"
        ],
    );
    check_web(
        "place = { requires = ['zone = a'] }",
        expect![["unknown key `requires` in place of [[service]] `web` (line 4, column 11); did you mean `require`?"]],
    );
    check_web(
        "place = { prefer = 'zone = a' }",
        expect![[
            r#"`prefer` in place of [[service]] `web` must be an array of text, like ["one", "two"], not text (line 4, column 11)"#
        ]],
    );
}

#[test]
fn broken_syntax_has_a_place() {
    check(
        "[[service]]\nname = web",
        expect![[r#"this is not TOML: string values must be quoted, expected literal string (line 2, column 8)"#]],
    );
    check("[[service]]\nname = 'a'\nname = 'b'", expect!["this is not TOML: duplicate key (line 3, column 1)"]);
    check_json("{\n  \"service\": [,]\n}", expect!["this is not JSON: expected value (line 2, column 15)"]);
    check_json("", expect!["this is not JSON: EOF while parsing a value (line 1, column 1)"]);
    check_json("[]", expect!["this is not JSON: it must be an object (line 1, column 1)"]);
}

#[test]
fn json_gets_the_same_messages() {
    check_json(
        "{\n  \"service\": [\n    {\"name\": \"web\", \"command\": [\"x\"],\n     \"replcas\": 3}\n  ]\n}",
        expect!["unknown key `replcas` in [[service]] `web` (line 4, column 17); did you mean `replicas`?"],
    );
    check_json(
        r#"{"service": [{"name": "web", "command": ["x"], "ports": {"http": 1.5}}]}"#,
        expect![[
            r#"`ports.http` in [[service]] `web` must be a number from 1 to 65535 or "auto", not a fraction (line 1, column 66)"#
        ]],
    );
}

#[test]
fn resources_that_are_none_bring_an_example_and_the_place() {
    check_web(
        "resources = { cpu = 'half' }",
        expect![[
            r#"`cpu` in resources of [[service]] `web`: `half` is no CPU time: write "500m" for half a CPU, or a number like 1.5; 10m to 1024 (line 4, column 15)"#
        ]],
    );
    check_web(
        "resources = { cpu = 0.001 }",
        expect![[
            r#"`cpu` in resources of [[service]] `web`: `0.001` is no CPU time: write "500m" for half a CPU, or a number like 1.5; 10m to 1024 (line 4, column 15)"#
        ]],
    );
    check_web(
        "resources = { memory = 512 }",
        expect![
            "`memory` in resources of [[service]] `web` must be text in quotes, not a whole number (line 4, column 15)"
        ],
    );
    check_web(
        "resources = { memory = '512' }",
        expect![[
            r#"`memory` in resources of [[service]] `web`: `512` is no amount of memory: write a number with a unit, like "256MiB" or "2GiB"; 1MiB to 64TiB (line 4, column 15)"#
        ]],
    );
    check_web(
        "resources = { mem = '512MiB' }",
        expect!["unknown key `mem` in resources of [[service]] `web` (line 4, column 15); known keys: cpu, memory"],
    );
    let spec = parse("[[service]]\nname = 'web'\ncommand = ['x']\nresources = { cpu = 1.5 }", Format::Toml).unwrap();
    assert_eq!(spec.services[0].resources.cpu.unwrap().millis(), 1500);
}

#[test]
fn columns_count_characters_and_not_bytes() {
    check(
        "service = 'ééé'; x",
        expect!["this is not TOML: unexpected key or value, expected newline, `#` (line 1, column 16)"],
    );
}

/// A document in which every key has a value that is not its default.
fn full() -> SpecDocument {
    let text = r#"
        [[service]]
        name = "web"
        mode = "singleton"
        replicas = 3
        failover = "20s"
        unsafe_fast = true
        without_quorum = "keep"
        driver = "process"
        command = ["/opt/web", "{port}"]
        ocf = { agent = "a:b", params = { c = "d" }, every = "1m", timeouts = { start = "1s", monitor = "2s", promote = "3s", demote = "4s", notify = "5s" }, fail_after = 5 }
        container = { image = "a", rootfs = "/b", engine = "docker", volumes = ["/c:/d"], args = ["--e"] }
        systemd = { unit = "a.service" }
        vip = "10.0.0.9/24 on eth1"
        env = { A = "1" }
        ports = { http = "auto", admin = 9000 }
        health = { http = "/ok", tcp = true, exec = ["check"], grpc = "web", sql = { query = "SELECT 2", user = "joe", password = "{secret.pg}", database = "web" }, port = "http", every = "3s", timeout = "2s", fail_after = 4 }
        restart = { policy = "never", backoff = "1s..2s" }
        stop = { signal = "INT", grace = "1m" }
        artifact = [{ name = "app", source = "/opt/app", sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", unpack = true, s3 = { endpoint = "http://s3", region = "eu", access_key = "A", secret_key = "pg" } }]
        requires = [{ command = "java" }]
        secrets = ["pg"]
        grants = [{ database = "main", right = "write" }]
        uses = ["db"]
        reload = "HUP"
        externals = ["orders-db"]
        template = [{ text = "a", from = "/a", to = "b", mode = "0640" }]
        place = { require = ["disk = ssd"], spread = "zone", prefer = ["node != n1|n2"], near = ["db"], apart = ["api"] }
        resources = { cpu = "500m", memory = "256MiB" }
        autoscale = { enabled = false, min = 2, max = 8, cpu = "70%", memory = "80%", rps = 50, p95 = "250ms", scrape = { port = "http", path = "/m", name = "jobs", labels = { a = "b" }, target = 3 }, sql = { query = "SELECT 1", target = 5 }, schedule = [{ days = "mon-fri", from = "07:00", to = "19:00", min = 4, max = 9 }] }
        schedule = [{ days = "mon-fri", start = "07:00", stop = "19:00" }]
        active = { promote = ["/p"], demote = ["/d"], timeout = "3s", standby = "cold", prefer = ["zone = a"], failback = true }
        update = { order = "stop-first", batch = "25%", canary = 2, promote = "manual", healthy_for = "1s", healthy_within = "1m", progress_within = "2m", verify_for = "3s", rollback = false }
        [[route]]
        listen = ":80"
        host = "a"
        path = "/b"
        service = "web"
        balance = "leastconn"
    "#;
    parse(text, Format::Toml).unwrap()
}

#[test]
fn the_table_of_keys_is_that_of_the_types() {
    fn compare(keys: &Keys, value: &serde_json::Value) {
        let object = value.as_object().unwrap();
        let mut known: Vec<&str> = keys.known.iter().map(|(name, _)| *name).collect();
        let mut rendered: Vec<&str> = object.keys().map(String::as_str).collect();
        known.sort_unstable();
        rendered.sort_unstable();
        assert_eq!(known, rendered);
        for (name, kind) in keys.known {
            match kind {
                Kind::Table(keys) => compare(keys, &object[*name]),
                Kind::Tables(keys, _) => compare(keys, &object[*name][0]),
                _ => {}
            }
        }
    }
    compare(&DOCUMENT, &serde_json::to_value(full()).unwrap());
}

#[test]
fn every_word_of_a_set_is_one_of_the_types() {
    fn all<T: serde::de::DeserializeOwned>(keys: &Keys, key: &str) -> usize {
        let (_, kind) = keys.known.iter().find(|(name, _)| *name == key).unwrap();
        let Kind::OneOf(words) = kind else { panic!("{key} is no set") };
        for word in *words {
            through_serde::<T>((*word).into()).unwrap();
        }
        words.len()
    }
    assert_eq!(all::<Mode>(&SERVICE, "mode"), 4);
    assert_eq!(all::<Driver>(&SERVICE, "driver"), 5);
    assert_eq!(all::<Engine>(&CONTAINER, "engine"), 3);
    assert_eq!(all::<WithoutQuorum>(&SERVICE, "without_quorum"), 3);
    assert_eq!(all::<RestartPolicy>(&RESTART, "policy"), 3);
    assert_eq!(all::<StopSignal>(&STOP, "signal"), 6);
    assert_eq!(all::<Order>(&UPDATE, "order"), 2);
    assert_eq!(all::<Promote>(&UPDATE, "promote"), 2);
    assert_eq!(all::<Balance>(&ROUTE, "balance"), 1);
}

fn spans() -> impl Strategy<Value = Span> {
    (0..1u64 << 40).prop_map(Span::from_millis)
}

fn names() -> impl Strategy<Value = ServiceName> {
    "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?".prop_map(|name| ServiceName::new(&name).unwrap())
}

fn places() -> impl Strategy<Value = Place> {
    let constraint = || "[a-z0-9][a-z0-9._/-]{0,5} ?(=|==|!=) ?[A-Za-z0-9._-]{1,5}([|][A-Za-z0-9._-]{1,5}){0,2}";
    let constraints = move || vec(constraint().prop_map(|text| text.parse().unwrap()), 0..3);
    let services = || btree_set(names(), 0..3);
    (constraints(), option::of(".*"), constraints(), services(), services())
        .prop_map(|(require, spread, prefer, near, apart)| Place { require, spread, prefer, near, apart })
}

fn updates() -> impl Strategy<Value = Update> {
    let batch = prop_oneof![(1..=1000u32).prop_map(Batch::Count), (1..=100u8).prop_map(Batch::Percent)];
    let order = option::of(prop_oneof![Just(Order::StartFirst), Just(Order::StopFirst)]);
    let promote = prop_oneof![Just(Promote::Auto), Just(Promote::Manual)];
    let spans = (spans(), spans(), spans(), spans());
    (order, batch, any::<u32>(), promote, spans, any::<bool>()).prop_map(
        |(order, batch, canary, promote, (healthy_for, healthy_within, progress_within, verify_for), rollback)| {
            Update { order, batch, canary, promote, healthy_for, healthy_within, progress_within, verify_for, rollback }
        },
    )
}

fn clocks() -> impl Strategy<Value = Clock> {
    (0..24u16, 0..60u16).prop_map(|(hour, minute)| format!("{hour:02}:{minute:02}").parse().unwrap())
}

fn days() -> impl Strategy<Value = Days> {
    prop_oneof![Just("mon"), Just("sat-mon"), Just("mon-fri,sun")].prop_map(|text| text.parse().unwrap())
}

fn schedules() -> impl Strategy<Value = Vec<StartStop>> {
    let entry = (days(), option::of(clocks()), option::of(clocks()));
    vec(entry.prop_map(|(days, start, stop)| StartStop { days, start, stop }), 0..3)
}

fn autoscales() -> impl Strategy<Value = Autoscale> {
    let share = || option::of((1..=90u8).prop_map(|percent| format!("{percent}%").parse().unwrap()));
    let hours = (days(), clocks(), clocks(), option::of(any::<u32>()), option::of(any::<u32>()))
        .prop_map(|(days, from, to, min, max)| Hours { days, from, to, min, max });
    let numbers = (any::<bool>(), any::<u32>(), any::<u32>());
    let scrape = (option::of(".*"), ".*", ".*", btree_map(".*", ".*", 0..3), any::<u32>())
        .prop_map(|(port, path, name, labels, target)| Scrape { port, path, name, labels, target });
    let counted = (".*", any::<u32>()).prop_map(|(query, target)| Counted { query, target });
    let told = (option::of(scrape), option::of(counted));
    let traffic = (option::of(any::<u32>()), option::of(spans()), told);
    (numbers, share(), share(), traffic, (spans(), spans(), spans()), vec(hours, 0..3)).prop_map(
        |((enabled, min, max), cpu, memory, (rps, p95, (scrape, sql)), (every, warmup, down_after), schedule)| {
            Autoscale { enabled, min, max, cpu, memory, rps, p95, scrape, sql, every, warmup, down_after, schedule }
        },
    )
}

type Asked = (BTreeSet<SecretName>, BTreeSet<ExternalName>, BTreeSet<Grant>, BTreeSet<ServiceName>, Option<StopSignal>);
type Needs = (Vec<Artifact>, Vec<Requirement>, Asked, Vec<Template>);

fn needs() -> impl Strategy<Value = Needs> {
    let s3 = (option::of(".*"), ".*", option::of(".*")).prop_map(|(endpoint, region, access_key)| S3 {
        endpoint,
        region,
        access_key,
        secret_key: None,
    });
    let artifact = (".*", ".*", any::<[u8; 32]>(), any::<bool>(), option::of(s3))
        .prop_map(|(name, source, sha256, unpack, s3)| Artifact { name, source, sha256: Digest(sha256), unpack, s3 });
    let requirement = prop_oneof![
        ".*".prop_map(Requirement::Command),
        ".*".prop_map(Requirement::File),
        ".*".prop_map(Requirement::Mount),
        ".*".prop_map(Requirement::Reach),
        externals().prop_map(Requirement::External),
    ];
    let template = (option::of(".*"), option::of(".*"), ".*", "0?[0-7]{3}")
        .prop_map(|(text, from, to, mode)| Template { text, from, to, mode: mode.parse().unwrap() });
    let secret = "[a-z0-9][a-z0-9._-]{0,8}".prop_map(|name| SecretName::new(&name).unwrap());
    let databases = prop_oneof![Just(GrantedDatabase::Main), Just(GrantedDatabase::System)];
    let rights = prop_oneof![Just(Right::Read), Just(Right::Write)];
    let reload = option::of(prop_oneof![Just(StopSignal::Hup), Just(StopSignal::Usr1), Just(StopSignal::Usr2)]);
    let grant = (databases, rights).prop_map(|(database, right)| Grant { database, right });
    let given = (btree_set(secret, 0..3), btree_set(externals(), 0..3));
    let asked = (given, btree_set(grant, 0..3), btree_set(names(), 0..3), reload);
    let asked =
        asked.prop_map(|((secrets, externals), grants, uses, reload)| (secrets, externals, grants, uses, reload));
    (vec(artifact, 0..3), vec(requirement, 0..3), asked, vec(template, 0..3))
}

fn externals() -> impl Strategy<Value = ExternalName> {
    "[a-z0-9][a-z0-9-]{0,8}".prop_map(|name| ExternalName::new(&name).unwrap())
}

fn services() -> impl Strategy<Value = ServiceSpec> {
    let ports = btree_map(".{0,5}", prop_oneof![Just(Port::Auto), (1..=u16::MAX).prop_map(Port::Fixed)], 0..3);
    let asked = (option::of(".*"), option::of(any::<bool>()), option::of(vec(".*", 0..3)), option::of(".*"));
    let sql = (".*", ".*", option::of(".*"), option::of(".*")).prop_map(|(query, user, password, database)| SqlCheck {
        query,
        user,
        password,
        database,
    });
    let asked = (asked, option::of(sql));
    let health = (asked, option::of(".*"), spans(), spans(), any::<u32>()).prop_map(
        |(((http, tcp, exec, grpc), sql), port, every, timeout, fail_after)| HealthCheck {
            http,
            tcp,
            exec,
            grpc,
            sql,
            port,
            every,
            timeout,
            fail_after,
        },
    );
    let policy = prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)];
    let restart = (policy, spans(), spans()).prop_map(|(policy, a, b)| Restart {
        policy,
        backoff: Backoff { first: a.min(b).max(Span::from_millis(1)), longest: a.max(b).max(Span::from_millis(1)) },
    });
    let stop = (prop_oneof![Just(StopSignal::Term), Just(StopSignal::Usr2)], spans())
        .prop_map(|(signal, grace)| Stop { signal, grace });
    let modes =
        prop_oneof![Just(Mode::Replicated), Just(Mode::Singleton), Just(Mode::EveryNode), Just(Mode::ActivePassive)];
    let head = (names(), any::<u32>(), vec(".*", 1..4), btree_map(".*", ".*", 0..3));
    let policies = prop_oneof![Just(WithoutQuorum::Stop), Just(WithoutQuorum::Keep), Just(WithoutQuorum::Demote)];
    let once = (modes, option::of(spans()), any::<bool>(), policies);
    let resources =
        (option::of(10..=1_024_000u32), option::of(1 << 20..=1u64 << 46)).prop_map(|(cpu, memory)| Resources {
            cpu: cpu.map(|millis| format!("{millis}m").parse().unwrap()),
            memory: memory.map(|bytes| format!("{bytes}B").parse().unwrap()),
        });
    let scaled = (option::of(autoscales()), schedules());
    let rest = (restart, stop, places(), resources, (updates(), scaled, option::of(actives())));
    (head, once, ports, option::of(health), rest, drivers(), needs()).prop_map(
        |(
            (name, replicas, command, env),
            once,
            ports,
            health,
            (restart, stop, place, resources, (update, (autoscale, schedule), active)),
            drivers,
            (artifacts, requires, (secrets, externals, grants, uses, reload), templates),
        )| {
            let (mode, failover, unsafe_fast, without_quorum) = once;
            let ((driver, ocf, container, systemd), vip) = drivers;
            ServiceSpec {
                name,
                mode,
                replicas,
                driver,
                command,
                ocf,
                container,
                systemd,
                vip,
                env,
                ports,
                health,
                failover,
                unsafe_fast,
                without_quorum,
                restart,
                stop,
                place,
                resources,
                update,
                autoscale,
                schedule,
                active,
                artifacts,
                requires,
                secrets,
                grants,
                uses,
                reload,
                externals,
                templates,
            }
        },
    )
}

fn actives() -> impl Strategy<Value = Active> {
    let prefer = vec(Just("zone=a".parse().unwrap()), 0..3);
    let standby = prop_oneof![Just(Standby::Hot), Just(Standby::Cold)];
    (vec(".*", 0..3), vec(".*", 0..3), spans(), standby, prefer, any::<bool>()).prop_map(
        |(promote, demote, timeout, standby, prefer, failback)| Active {
            promote,
            demote,
            timeout,
            standby,
            prefer,
            failback,
        },
    )
}

type Drivers = (Driver, Option<Ocf>, Option<Container>, Option<Systemd>);

fn drivers() -> impl Strategy<Value = (Drivers, Option<ServiceVip>)> {
    let ocf = (btree_map(".*", ".*", 0..3), option::of(spans()), option::of(spans()), any::<u32>()).prop_map(
        |(params, every, start, fail_after)| Ocf {
            agent: "heartbeat:Dummy".to_owned(),
            params,
            every,
            timeouts: OcfTimeouts { start, ..OcfTimeouts::default() },
            fail_after,
        },
    );
    let container = (option::of(".*"), option::of(".*"), vec(".*", 0..3), vec(".*", 0..3))
        .prop_map(|(image, rootfs, volumes, args)| Container { image, rootfs, engine: Engine::Docker, volumes, args });
    let vip = prop_oneof![Just("10.0.0.9/24"), Just("10.0.0.9/32 on eth0"), Just("2001:db8::9/64 on br-a.7")]
        .prop_map(|text| text.parse::<ServiceVip>().unwrap());
    let kinds = prop_oneof![
        Just((Driver::Process, None, None, None)),
        ocf.prop_map(|ocf| (Driver::Ocf, Some(ocf), None, None)),
        container.prop_map(|container| (Driver::Container, None, Some(container), None)),
        "[a-z]{1,9}"
            .prop_map(|name| { (Driver::Systemd, None, None, Some(Systemd { unit: format!("{name}.service") })) }),
        Just((Driver::Vip, None, None, None))
    ];
    (kinds, option::of(vip))
        .prop_filter("the driver vip needs one", |((driver, ..), vip)| *driver != Driver::Vip || vip.is_some())
}

fn documents() -> impl Strategy<Value = SpecDocument> {
    let routes = (".*", ".*", ".*", names()).prop_map(|(listen, host, path, service)| RouteSpec {
        listen,
        host,
        path,
        service,
        balance: Balance::Leastconn,
    });
    (vec(services(), 0..3), vec(routes, 0..3)).prop_map(|(services, routes)| SpecDocument { services, routes })
}

/// Text that looks enough like a spec to get past the first characters.
fn almost_specs() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("[[service]]\n".to_owned()),
        Just("name = ".to_owned()),
        Just("\"service\":".to_owned()),
        Just("ports = {".to_owned()),
        "[\\[\\]{}\",:=\n0-9a-zé'. -]{0,4}",
    ];
    vec(word, 0..24).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn a_rendered_document_reads_as_the_same_one(document in documents()) {
        for format in [Format::Toml, Format::Json] {
            prop_assert_eq!(parse(&render(&document, format), format), Ok(document.clone()));
        }
    }

    #[test]
    fn garbage_is_refused_and_never_panics(text in prop_oneof![".*", almost_specs()]) {
        for format in [Format::Toml, Format::Json] {
            if let Ok(document) = parse(&text, format) {
                let _ = document.validate();
            }
        }
    }

    #[test]
    fn a_spec_cut_anywhere_never_panics(at in 0usize..2000, other in any::<char>()) {
        for format in [Format::Toml, Format::Json] {
            let text = render(&full(), format);
            let cut: String = text.chars().take(at).chain([other]).collect();
            let _ = parse(&cut, format);
            let replaced: String = text.chars().enumerate().map(|(i, c)| if i == at { other } else { c }).collect();
            let _ = parse(&replaced, format);
        }
    }

    #[test]
    fn no_document_makes_the_check_panic(document in documents()) {
        let _ = document.validate();
    }
}

#[test]
fn deep_nesting_is_refused_and_does_not_exhaust_the_stack() {
    for open in ["[", "{\"a\":", "{\"service\":["] {
        assert!(parse(&open.repeat(100_000), Format::Json).is_err());
    }
    assert!(parse(&format!("a = {}", "[".repeat(100_000)), Format::Toml).is_err());
}
