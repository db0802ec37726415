//! Commands against an API that answers what the test says.

use crate::fake::{Asked, FakeApi, Then, refusing};
use expect_test::{Expect, expect};
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) fn quorate(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    // Neither clusters nor settings of this machine reach a test.
    let nowhere = std::env::temp_dir().join("quorate-tests-have-no-registry");
    command
        .args(args)
        .env_remove("QUORATE_SERVER")
        .env_remove("QUORATE_CA_PIN")
        .env_remove("QUORATE_CA_FILE")
        .env_remove("XDG_RUNTIME_DIR")
        .env("TMPDIR", nowhere);
    command.stdin(Stdio::null());
    command
}

pub(crate) fn run(args: &[&str]) -> (i32, String, String) {
    finished(quorate(args).output().unwrap())
}

fn ask(api: &FakeApi, args: &[&str]) -> (i32, String, String) {
    run(&[&["--server", &api.address], args].concat())
}

pub(crate) fn finished(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn check(api: &FakeApi, args: &[&str], code: i32, out: &Expect, err: &Expect) {
    let (got, stdout, stderr) = ask(api, args);
    out.assert_eq(&stdout);
    err.assert_eq(&stderr);
    assert_eq!(got, code);
}

fn node(number: u32, state: &str, mode: &str) -> Value {
    json!({
        "id": format!("00000000-0000-0000-0000-00000000000{number}"), "name": format!("n{number}"), "state": state,
        "mode": mode, "roles": ["manager", "worker"], "api": format!("http://127.0.0.1:800{number}"),
        "link": format!("127.0.0.1:810{number}"), "generation": 1, "since": 1_700_000_000_000_000_u64, "lag": 0,
        "replicas": 1
    })
}

fn replica(ordinal: u32, state: &str, detail: &str) -> Value {
    json!({
        "id": format!("10000000-0000-0000-0000-00000000000{ordinal}"), "ordinal": ordinal,
        "node": format!("n{}", ordinal + 1), "node_id": format!("00000000-0000-0000-0000-00000000000{}", ordinal + 1),
        "state": state, "pid": 100 + ordinal, "addresses": { "http": format!("127.0.0.1:3000{ordinal}") },
        "version": 1, "restarts": 0, "started_at": null, "detail": detail, "log_dir": "/logs"
    })
}

fn service(want: u32, replicas: &[Value]) -> Value {
    let healthy = replicas.iter().filter(|replica| replica["state"] == "healthy").count();
    json!({
        "name": "web", "mode": "replicated", "driver": "process", "want": want, "healthy": healthy, "version": 1,
        "routes": [{ "service": "web" }], "replicas": replicas, "held": [],
        "spec": { "name": "web", "replicas": want, "command": ["serve", "{port}"], "ports": { "http": "auto" } }
    })
}

fn overview(nodes: &[Value], services: &[Value], health: &str) -> Value {
    let joined = nodes.iter().filter(|node| node["state"] == "joined").count();
    json!({
        "sequence": 1, "answered_by": "n2", "nodes": nodes, "services": services, "events": [],
        "cluster": {
            "id": "20000000-0000-0000-0000-000000000000", "name": "prod", "health": health,
            "summary": "Something needs a look.", "leader": "n1", "term": 4, "voters": 3, "voters_joined": joined,
            "can_lose": joined.saturating_sub(2), "applied": 7, "version": "0.0.0"
        },
        "gateways": [{
            "name": "gw1", "url": "http://127.0.0.1:8000", "fed_by": "n1", "revision": 3, "requests": 412, "failed": 0
        }]
    })
}

fn problem(status: u16, code: &str, message: &str, fix: &str) -> Then {
    Then::Answer(status, json!({ "code": code, "message": message, "fix": fix }))
}

#[test]
fn status_shows_the_cluster_and_what_to_do_next() {
    let nodes = [node(1, "joined", "active"), node(2, "joined", "passive"), node(3, "down", "passive")];
    let services = [service(3, &[replica(0, "healthy", ""), replica(1, "healthy", "")])];
    let status = overview(&nodes, &services, "degraded");
    let shown = status.clone();
    let api = FakeApi::start(move |_| Then::Answer(200, shown.clone()));
    let (code, stdout, stderr) = ask(&api, &["status"]);
    // How long ago that was depends on the day of the test.
    let since = without_ages(&stdout);
    expect![[r"
        Cluster prod · ▲ degraded · 2/3 managers, cannot lose any · leader n1 (term 4)
        NODE  MODE     STATE     ROLES           LAG  REPLICAS  SINCE
        n1    Active   ● joined  manager,worker    0         1  AGE
        n2    Passive  ● joined  manager,worker    0         1  AGE
        n3    Passive  ✕ down    manager,worker    0         1  AGE
        SERVICE  WANT  HEALTHY  NODES  VERSION  ROUTES
        web         3        2  n1 n2        1  */
        GATEWAY  URL                    FED BY  REQUESTS  FAILED
        gw1      http://127.0.0.1:8000  n1           412       0
        ! n3 is down since 2023-11-14 22:13:20Z (AGE).  Next: systemctl status quorate   (on n3)
        ! web has 2 of 3 copies healthy.  Next: quorate service show web
    "]]
    .assert_eq(&since);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(ask(&api, &["status", "--check"]).0, 5);
    let (_, stdout, _) = ask(&api, &["status", "-o", "json"]);
    let answer: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&answer["cluster"]["can_lose"], &answer["nodes"][2]["state"]), (&json!(0), &json!("down")));
}

/// Replaces spans like `1103d 4h` by AGE.
fn without_ages(text: &str) -> String {
    let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
    for i in 1..words.len() {
        let days = words[i - 1].trim_start_matches('(').strip_suffix('d').is_some_and(|it| it.parse::<u32>().is_ok());
        if days {
            let end = words[i].find('h').unwrap();
            let rest = words[i][end + 1..].to_owned();
            let open = if words[i - 1].starts_with('(') { "(" } else { "" };
            words[i - 1] = format!("{open}AGE{rest}");
            words[i].clear();
            words[i].push('\0');
        }
    }
    words.retain(|word| word != "\0");
    words.join(" ")
}

#[test]
fn a_dead_node_is_passed_over_without_a_word() {
    let (_port, dead) = refusing();
    let api = FakeApi::start(|_| Then::Answer(200, json!([node(1, "joined", "active")])));
    let servers = format!("{dead},{}", api.address);
    let (code, stdout, stderr) = run(&["--server", &servers, "node", "list", "-o", "json"]);
    let nodes: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, stderr.as_str(), &nodes[0]["name"]), (0, "", &json!("n1")));
}

#[test]
fn a_change_that_one_node_dropped_is_sent_to_the_next_with_the_same_id() {
    let dying = FakeApi::start(|asked| match asked.what.as_str() {
        "GET /v1/nodes" => Then::Answer(200, json!([node(1, "joined", "active"), node(2, "joined", "passive")])),
        _ => Then::Die,
    });
    let other = FakeApi::start(|_| Then::Answer(200, json!({ "leader": "n2" })));
    let servers = format!("{},{}", dying.address, other.address);
    let (code, stdout, stderr) = run(&["--server", &servers, "raft", "transfer", "n2"]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert!(stdout.starts_with("✔ n2 is Active   "), "{stdout}");
    let ids: Vec<Option<String>> =
        [&dying, &other].iter().flat_map(|api| api.changes()).map(|asked| asked.request_id).collect();
    assert!(ids.len() >= 2 && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(other.changes()[0].body, r#"{"node":"n2"}"#);
}

#[test]
fn an_unknown_outcome_is_not_called_a_failure() {
    let api = FakeApi::start(|asked| match asked.what.as_str() {
        "GET /v1/services/web" => Then::Answer(200, service(1, &[replica(0, "healthy", "")])),
        _ => Then::Die,
    });
    let (code, _, stderr) = ask(&api, &["service", "remove", "web", "--yes"]);
    assert_eq!(code, 10);
    assert!(stderr.starts_with("error: no node confirmed the change; it may still happen\n"), "{stderr}");
}

#[test]
fn nobody_to_reach_is_exit_3_and_names_who_was_tried() {
    let (_port, dead) = refusing();
    let dead = dead.to_string();
    let (code, stdout, stderr) = run(&["--server", &dead, "status"]);
    expect![[r"
        error: cannot reach any node of the cluster
        why:   http://ADDRESS: nothing listens there
        fix:   check the address, and that `quorate serve` runs there
    "]]
    .assert_eq(&stderr.replace(&dead, "ADDRESS"));
    assert_eq!((code, stdout.as_str()), (3, ""));
    let (code, _, stderr) = run(&["status", "-o", "json"]);
    let error: Value = serde_json::from_str(&stderr).unwrap();
    assert_eq!((code, &error["error"]["code"]), (3, &json!("no-cluster")));
    assert!(error["error"]["fix"].as_str().unwrap().starts_with("quorate dev"));
}

#[test]
fn scale_waits_until_all_copies_are_healthy() {
    let looks = AtomicUsize::new(0);
    let api = FakeApi::start(move |asked| {
        if asked.what.starts_with("POST") {
            return Then::Answer(200, json!({ "service": "web", "index": 9 }));
        }
        let (a, b) = (replica(0, "healthy", ""), replica(1, "healthy", ""));
        Then::Answer(
            200,
            match looks.fetch_add(1, Ordering::Relaxed) {
                // The change is not visible yet; then one copy starts; then one drains.
                0 | 1 => service(2, &[a, b]),
                2 => service(3, &[a, b, replica(2, "starting", "")]),
                _ => service(3, &[a, b, replica(2, "healthy", ""), replica(3, "draining", "")]),
            },
        )
    });
    let (code, stdout, stderr) = ask(&api, &["scale", "web", "3"]);
    assert!(stdout.starts_with("web 2 → 3   ✔ 3/3 healthy on n1 n2 n3   "), "{stdout}{stderr}");
    assert_eq!((code, stderr.as_str()), (0, ""));
    let change = &api.changes()[0];
    assert_eq!((change.what.as_str(), change.body.as_str()), ("POST /v1/services/web/scale", r#"{"replicas":3}"#));
    assert!(api.asked().len() >= 5);
}

#[test]
fn a_copy_that_cannot_be_started_ends_the_wait_with_its_reason() {
    let api = FakeApi::start(|asked| match asked.what.starts_with("POST") {
        true => Then::Answer(200, json!({})),
        false => Then::Answer(200, service(1, &[replica(0, "failed", "no such file: /opt/web")])),
    });
    check(
        &api,
        &["scale", "web", "1"],
        9,
        &expect![[""]],
        &expect![[r"
            error: web.0 on n1 cannot be started
            why:   no such file: /opt/web
            fix:   quorate logs web --replica 0
        "]],
    );
}

#[test]
fn a_wait_that_is_too_long_says_what_is_missing() {
    let api = FakeApi::start(|asked| match asked.what.starts_with("POST") {
        true => Then::Answer(200, json!({})),
        false => Then::Answer(200, service(2, &[replica(0, "healthy", ""), replica(1, "starting", "")])),
    });
    check(
        &api,
        &["scale", "web", "2", "--timeout", "200ms"],
        10,
        &expect![[""]],
        &expect![[r"
            error: web has 1 of 2 copies healthy after 0.20 s
            why:   web.1 on n2 is starting
            fix:   quorate logs web
                   or wait longer: --timeout 2m
        "]],
    );
}

#[test]
fn a_wait_whose_last_look_is_not_answered_says_what_is_missing_too() {
    let looks = AtomicUsize::new(0);
    let api = FakeApi::start(move |asked| match asked.what.starts_with("POST") {
        true => Then::Answer(200, json!({})),
        // One look before the change and one after it; whoever asks again waits for ever.
        false if looks.fetch_add(1, Ordering::Relaxed) >= 2 => loop {
            std::thread::park();
        },
        false => Then::Answer(200, service(1, &[replica(0, "starting", "")])),
    });
    check(
        &api,
        &["scale", "web", "1", "--timeout", "500ms"],
        10,
        &expect![[""]],
        &expect![[r"
            error: web has 0 of 1 copies healthy after 0.50 s
            why:   web.0 on n1 is starting
            fix:   quorate logs web
                   or wait longer: --timeout 2m
        "]],
    );
}

#[test]
fn what_the_cluster_refuses_is_passed_on_with_its_fix() {
    let api = FakeApi::start(|asked| match asked.what.starts_with("POST") {
        true => problem(422, "invalid", "`service.web.replicas` is 1000000; it must be 1 to 1000", "choose 1 to 1000"),
        false => Then::Answer(200, service(2, &[])),
    });
    check(
        &api,
        &["scale", "web", "1000000"],
        2,
        &expect![[""]],
        &expect![[r"
            error: `service.web.replicas` is 1000000; it must be 1 to 1000
            fix:   choose 1 to 1000
        "]],
    );
}

#[test]
fn a_misspelt_service_is_exit_6_with_the_right_name() {
    let api = FakeApi::start(|asked| match asked.what.as_str() {
        "GET /v1/services" => Then::Answer(200, json!([service(1, &[])])),
        _ => problem(404, "unknown-service", "there is no service", "see"),
    });
    check(
        &api,
        &["service", "show", "wbe"],
        6,
        &expect![[""]],
        &expect![[r"
            error: there is no service `wbe`
            fix:   did you mean `web`?
        "]],
    );
}

#[test]
fn a_service_is_shown_with_its_copies() {
    let api = FakeApi::start(|_| {
        Then::Answer(200, service(2, &[replica(0, "healthy", ""), replica(1, "backing-off", "exit status 1")]))
    });
    check(
        &api,
        &["service", "show", "web"],
        0,
        &expect![[r"
            web ! 1/2 healthy, version 1
            command  serve {port}
            REPLICA  NODE  STATE          ADDRESS          PID  RESTARTS  DETAIL
            web.0    n1    ● healthy      127.0.0.1:30000  100         0
            web.1    n2    ▲ backing-off  127.0.0.1:30001  101         0  exit status 1
        "]],
        &expect![[""]],
    );
}

const SPEC: &str =
    "[[service]]\nname = 'web'\nreplicas = 1\ncommand = ['serve', '{port}']\nports = { http = 'auto' }\n";

fn spec_file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn spec_api() -> FakeApi {
    FakeApi::start(|asked: &Asked| match asked.what.as_str() {
        "POST /v1/specs?plan=true" => Then::Answer(
            200,
            json!({ "services": [{ "service": "web", "action": "update", "version": 2, "differences": [
                { "field": "replicas", "from": 2, "to": 1 }, { "field": "env.TZ", "from": null, "to": "UTC" },
            ] }] }),
        ),
        "POST /v1/specs" => Then::Answer(200, json!({ "services": [], "index": 4 })),
        _ => Then::Answer(200, service(1, &[replica(0, "healthy", "")])),
    })
}

#[test]
fn apply_shows_the_plan_and_waits_until_it_is_true() {
    let (api, file) = (spec_api(), spec_file(SPEC));
    let (code, stdout, stderr) = ask(&api, &["service", "apply", "-f", file.path().to_str().unwrap(), "--yes"]);
    assert!(stdout.starts_with("web update   ✔ 1/1 healthy on n1   "), "{stdout}{stderr}");
    expect![[r"
        web  update
          ~ replicas 2 → 1
          + env.TZ UTC
    "]]
    .assert_eq(&stderr);
    assert_eq!(code, 0);
    let change = &api.changes()[0];
    assert_eq!((change.what.as_str(), change.body.as_str()), ("POST /v1/specs", SPEC));
    assert_eq!(change.content_type.as_deref(), Some("application/toml"));
}

#[test]
fn a_plan_changes_nothing_and_without_a_terminal_nothing_is_asked() {
    let (api, file) = (spec_api(), spec_file(SPEC));
    let path = file.path().to_str().unwrap();
    assert_eq!(ask(&api, &["service", "apply", "-f", path, "--plan"]).0, 0);
    let (code, _, stderr) = ask(&api, &["service", "apply", "-f", path]);
    assert_eq!(code, 2);
    assert!(stderr.ends_with("error: this needs a yes, and nobody is there to ask\nfix:   add --yes\n"), "{stderr}");
    assert!(api.changes().is_empty());
}

#[test]
fn a_spec_with_an_unknown_key_is_refused_with_the_key_that_was_meant() {
    let (api, file) = (spec_api(), spec_file("[[service]]\nname = 'web'\nreplicsa = 3\ncommand = ['x']\n"));
    let (code, _, stderr) = ask(&api, &["service", "apply", "-f", file.path().to_str().unwrap(), "--yes"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("replicsa") && stderr.ends_with("fix:   did you mean `replicas`?\n"), "{stderr}");
    assert!(api.asked().is_empty(), "nothing was sent");
    let (code, _, stderr) = ask(&api, &["service", "apply", "-f", "/no/such/file", "--yes"]);
    assert_eq!(code, 2);
    assert!(stderr.starts_with("error: cannot read /no/such/file\n"), "{stderr}");
}

#[test]
fn a_query_is_a_table_for_people_and_columns_and_rows_for_programs() {
    let api = FakeApi::start(|asked| match asked.body.contains("bad") {
        true => Then::Answer(200, json!({ "results": [{ "error": { "code": 1, "message": "no such table: bad" } }] })),
        false => Then::Answer(
            200,
            json!({ "results": [{ "columns": ["id", "text"], "types": ["integer", "text"], "rows": [[7, "seven"]] }],
                "applied": 12, "age_ms": 0 }),
        ),
    });
    check(
        &api,
        &["db", "query", "SELECT 1"],
        0,
        &expect![[r"
        id  text
         7  seven
    "]],
        &expect![[""]],
    );
    check(
        &api,
        &["db", "query", "SELECT 1", "-o", "json", "--local"],
        0,
        &expect![[r#"
            {"columns":["id","text"],"rows":[[7,"seven"]]}
        "#]],
        &expect![[""]],
    );
    assert!(api.asked()[1].body.contains(r#""consistency":"local""#));
    check(
        &api,
        &["db", "exec", "INSERT INTO bad"],
        1,
        &expect![[""]],
        &expect![[r"
        error: SQLite refused the statement
        why:   no such table: bad
    "]],
    );
}

#[test]
fn logs_of_several_copies_come_from_one_server_with_a_name_before_each_line() {
    let api = FakeApi::start(move |asked| match asked.what.strip_prefix("GET /v1/replicas/") {
        Some(replica) => Then::Text(format!("hello from {}\nand good bye", &replica[..8])),
        None => Then::Answer(200, service(2, &[replica(0, "healthy", ""), replica(1, "healthy", "")])),
    });
    check(
        &api,
        &["logs", "web", "--replica", "1", "-n", "5"],
        0,
        &expect![[r"
            hello from 10000000
            and good bye
        "]],
        &expect![[""]],
    );
    assert!(api.asked().iter().any(|asked| asked.what.contains("lines=5")));
    let (_, stdout, _) = ask(&api, &["logs", "web"]);
    let mut lines: Vec<&str> = stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines[1], "web.0 n1 │ hello from 10000000");
    assert_eq!(lines.len(), 4);
}

#[test]
fn events_are_shown_oldest_first() {
    let event = |index: u64, kind: &str, text: &str| json!({ "index": index, "at": 1_700_000_000_000_000_u64 + index, "kind": kind, "text": text, "node": "n1", "service": null });
    let events = json!([event(5, "node-down", "n1 is down"), event(3, "leader-elected", "n1 leads term 2")]);
    let api = FakeApi::start(move |_| Then::Answer(200, events.clone()));
    check(
        &api,
        &["events"],
        0,
        &expect![[r"
            2023-11-14 22:13:20.000Z  ○ n1 leads term 2
            2023-11-14 22:13:20.000Z  ✕ n1 is down
        "]],
        &expect![[""]],
    );
}

#[test]
fn colours_are_only_for_terminals_or_on_demand() {
    let api = FakeApi::start(|_| Then::Answer(200, json!([node(1, "joined", "active")])));
    assert!(!ask(&api, &["node", "list"]).1.contains('\x1b'));
    assert!(ask(&api, &["node", "list", "--color", "always"]).1.contains('\x1b'));
}

#[test]
fn the_api_can_be_called_as_it_is() {
    let api = FakeApi::start(|asked| Then::Answer(200, json!({ "got": asked.body, "id": asked.request_id.is_some() })));
    let (code, stdout, _) = ask(&api, &["api", "post", "/v1/x", "--data", "hello"]);
    assert_eq!((code, stdout.as_str()), (0, "{\"got\":\"hello\",\"id\":true}\n"));
    assert_eq!(ask(&api, &["api", "DANCE", "/v1/x"]).0, 2);
}

#[test]
fn dev_starts_nothing_when_something_is_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, stdout, stderr) = run(&["dev", "--keep", path, "--port-base", &port]);
    assert_eq!((code, stdout.as_str()), (7, ""));
    assert!(stderr.starts_with(&format!("error: port {port} (gateway) is in use\n")), "{stderr}");

    let lock = std::fs::File::create(dir.path().join("dev.lock")).unwrap();
    lock.lock().unwrap();
    let (code, _, stderr) = run(&["dev", "--keep", path, "--port-base", "0"]);
    assert_eq!(code, 7);
    assert!(stderr.starts_with("error: another `quorate dev` runs in "), "{stderr}");
    assert_eq!(run(&["dev", "--nodes", "0"]).0, 2);
    assert_eq!(run(&["dev", "--service", "/no/such/file"]).0, 2);
    assert_eq!(run(&["dev", "kill", "n1", "--keep", path]).0, 3);
}

#[test]
fn completions_and_version_need_no_cluster() {
    assert!(run(&["completion", "bash"]).1.contains("_quorate"));
    assert!(run(&["version"]).1.starts_with("quorate "));
    assert_eq!(run(&["frobnicate"]).0, 2);
}
