use super::*;
use crate::spec::{
    Balance, Driver, HealthCheck, Mode, Restart, RestartPolicy, RouteSpec, ServiceSpec, Stop, StopSignal,
};
use expect_test::{Expect, expect};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

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
            r#"`mode` in [[service]] `web` is "replicatd" (line 4, column 1); did you mean "replicated"? allowed: "replicated""#
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
        mode = "replicated"
        replicas = 3
        driver = "process"
        command = ["/opt/web", "{port}"]
        env = { A = "1" }
        ports = { http = "auto", admin = 9000 }
        health = { http = "/ok", tcp = true, port = "http", every = "3s", timeout = "2s", fail_after = 4 }
        restart = { policy = "never", backoff = "1s..2s" }
        stop = { signal = "INT", grace = "1m" }
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
    assert_eq!(all::<Mode>(&SERVICE, "mode"), 1);
    assert_eq!(all::<Driver>(&SERVICE, "driver"), 1);
    assert_eq!(all::<RestartPolicy>(&RESTART, "policy"), 3);
    assert_eq!(all::<StopSignal>(&STOP, "signal"), 6);
    assert_eq!(all::<Balance>(&ROUTE, "balance"), 1);
}

fn spans() -> impl Strategy<Value = Span> {
    (0..1u64 << 40).prop_map(Span::from_millis)
}

fn names() -> impl Strategy<Value = ServiceName> {
    "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?".prop_map(|name| ServiceName::new(&name).unwrap())
}

fn services() -> impl Strategy<Value = ServiceSpec> {
    let ports = btree_map(".{0,5}", prop_oneof![Just(Port::Auto), (1..=u16::MAX).prop_map(Port::Fixed)], 0..3);
    let health =
        (option::of(".*"), option::of(any::<bool>()), option::of(".*"), spans(), spans(), any::<u32>()).prop_map(
            |(http, tcp, port, every, timeout, fail_after)| HealthCheck { http, tcp, port, every, timeout, fail_after },
        );
    let policy = prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)];
    let restart = (policy, spans(), spans()).prop_map(|(policy, a, b)| Restart {
        policy,
        backoff: Backoff { first: a.min(b).max(Span::from_millis(1)), longest: a.max(b).max(Span::from_millis(1)) },
    });
    let stop = (prop_oneof![Just(StopSignal::Term), Just(StopSignal::Usr2)], spans())
        .prop_map(|(signal, grace)| Stop { signal, grace });
    let head = (names(), any::<u32>(), vec(".*", 0..4), btree_map(".*", ".*", 0..3));
    (head, ports, option::of(health), restart, stop).prop_map(
        |((name, replicas, command, env), ports, health, restart, stop)| {
            let (mode, driver) = (Mode::Replicated, Driver::Process);
            ServiceSpec { name, mode, replicas, driver, command, env, ports, health, restart, stop }
        },
    )
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
