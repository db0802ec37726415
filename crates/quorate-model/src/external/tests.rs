use super::*;
use crate::command::Command;
use crate::id::LogIndex;
use crate::spec::{Format, parse};
use expect_test::{Expect, expect};
use proptest::prelude::*;

fn read(kind: &str, url: &str) -> Result<External, String> {
    let name = ExternalName::new("db").unwrap();
    let read = FromUrl::read(name, kind.parse().unwrap(), url).map_err(|error| error.to_string())?;
    let password = read.password.is_some().then(|| External::own_secret(&read.external.name));
    let external = External { password, ..read.external };
    external.validate().map_err(|(field, problem)| format!("`{field}` {problem}"))?;
    Ok(external)
}

fn check(kind: &str, url: &str, expected: Expect) {
    let shown = read(kind, url).map(|external| {
        let secret = Some("p/@w").filter(|_| external.password.is_some());
        let fields = Injected { external: &external, password: secret }.fields();
        fields.iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| format!("{name}={value}\n")).collect()
    });
    expected.assert_eq(&shown.unwrap_or_else(|problem| problem));
}

#[test]
fn e6_a_connection_string_says_what_fields_would() {
    check(
        "postgres",
        "postgresql://joe:p%2F%40w@h1:6000,[::1],h3/orders?sslmode=verify-full&application_name=shop",
        expect![[r"
            application_name=shop
            database=orders
            host=h1
            hosts=h1:6000,[::1]:5432,h3:5432
            password=p/@w
            port=6000
            tls=verify
            url=postgres://joe:p%2F%40w@h1:6000,[::1]:5432,h3:5432/orders?sslmode=verify-full&application_name=shop
            user=joe
        "]],
    );
    check(
        "rabbitmq",
        "amqps://joe:secret@h1/%2Fjobs",
        expect![[r"
            database=/jobs
            host=h1
            hosts=h1:5671
            password=p/@w
            port=5671
            tls=verify
            url=amqps://joe:p%2F%40w@h1:5671/%2Fjobs
            user=joe
        "]],
    );
    check(
        "s3",
        "http://KEY:secret@minio:9000/bucket?region=eu",
        expect![[r"
            database=bucket
            host=minio
            hosts=minio:9000
            password=p/@w
            port=9000
            region=eu
            tls=off
            url=http://minio:9000/bucket
            user=KEY
        "]],
    );
}

#[test]
fn e6_what_is_wrong_with_a_connection_string_is_said_without_it() {
    check("postgres", "joe:canary@h1", expect!["the URL has no scheme: write postgres://…"]);
    check(
        "postgres",
        "mysql://joe:canary@h1",
        expect!["the scheme of the URL, `mysql`, is not one of postgres: postgres, postgresql"],
    );
    check(
        "postgres",
        "postgres://joe:%zz@h1",
        expect![
            "the password of the URL has a % that is not followed by two hexadecimal digits, or bytes that are no UTF-8"
        ],
    );
    check(
        "postgres",
        "postgres://joe@h1?sslmode=prefer",
        expect![
            "`sslmode` in the URL is `prefer`: known are disable, require (encrypted, to whoever answers) and verify-full"
        ],
    );
    check("postgres", "postgres://h1/db", expect!["`user` is missing: PostgreSQL lets nobody in without one"]);
    check("postgres", "postgres://joe@h1:0/db", expect!["`hosts` has `h1:0`, which is not HOST or HOST:PORT"]);
    check("postgres", "postgres://joe@/db", expect!["`hosts` has 0 entries; 1 to 32 are needed"]);
    check(
        "postgres",
        "postgres://joe@h?aplication_name=x",
        expect![
            "`set.aplication_name` is no setting of postgres; did you mean `application_name`?; known: application_name, connect_timeout, target_session_attrs"
        ],
    );
}

#[test]
fn e6_a_list_of_redis_nodes_has_the_database_0_alone() {
    assert!(read("redis", "redis://h1,h2/0").is_ok() && read("redis", "redis://h1/3").is_ok());
    let reason =
        || expect!["`database` is 3, and a cluster of Redis nodes has the database 0 alone: write 0, or name one host"];
    check("redis", "redis://:secret@h1,h2/3", reason());
    check("redis", "redis://h1/3?cluster=true", reason());
    check("redis", "redis://h1/x", expect!["`database` is `x`; databases of Redis have numbers, the first is 0"]);
}

#[test]
fn e6_kinds_that_are_not_there_yet_are_told_from_mistakes() {
    let kind = |text: &str| text.parse::<ExternalKind>().unwrap_err().to_string();
    assert!(kind("mongodb").contains("not supported yet") && kind("elasticsearch").contains("not supported yet"));
    assert!(kind("postgrse").contains("did you mean `postgres`?"));
}

#[test]
fn one_host_that_is_away_does_not_matter_and_one_that_refuses_the_login_does() {
    let host = |why: Option<Why>| HostLogin { host: "h".into(), problem: why.map(|why| LoginProblem::new(why, "x")) };
    assert!(usable(&[host(None), host(Some(Why::Refused))]).is_ok());
    assert!(usable(&[host(None), host(Some(Why::Login))]).is_err());
    assert!(usable(&[host(Some(Why::Unreachable)), host(Some(Why::Refused))]).is_err());
}

fn run(state: &mut ClusterState, index: u64, command: &Command) -> Result<bool, Refusal> {
    let index = LogIndex(index);
    let changes = state.decide(index, WallTime(index.0), command)?;
    state.absorb(index, &changes);
    Ok(!changes.is_empty())
}

fn set(external: &External, sealed: Option<&str>) -> Command {
    let (definition, sealed) = (Box::new(external.clone()), sealed.map(str::to_owned));
    Command::External(ExternalCommand::Set { definition, sealed, key: 1, unchecked: false })
}

#[test]
fn e6_a_change_restarts_what_uses_it_and_what_is_used_is_not_removed() {
    let mut state = ClusterState::default();
    let db = read("postgres", "postgres://joe:secret@h1/orders").unwrap();
    let own = External::own_secret(&db.name);
    assert!(run(&mut state, 1, &set(&db, Some("c2VhbGVk"))).unwrap());
    assert!(state.access.secrets.contains_key(&own), "its password is a secret of the cluster");
    assert!(!run(&mut state, 2, &set(&db, None)).unwrap(), "the same again changes nothing");
    let spec = "[[service]]\nname = 'web'\ncommand = ['x']\nexternals = ['db']\n\
                [[service]]\nname = 'other'\ncommand = ['x']\nrequires = [{ external = 'db' }]";
    run(&mut state, 3, &Command::ApplySpec { document: parse(spec, Format::Toml).unwrap() }).unwrap();
    let web = || crate::id::ServiceName::new("web").unwrap();
    let needs = state.needs(&state.services[&web()].spec).unwrap();
    assert_eq!(needs.externals[&db.name].as_ref(), Some(&db));
    assert!(needs.secrets.contains_key(&own), "its nodes are given the password");

    run(&mut state, 4, &set(&db, Some("YW5vdGhlcg"))).unwrap();
    assert_eq!(state.services[&web()].version, 2);
    let remove = Command::External(ExternalCommand::Remove { name: db.name.clone() });
    assert!(matches!(run(&mut state, 5, &remove), Err(Refusal::ExternalInUse { .. })));
    for (index, name) in [(6, "web"), (7, "other")] {
        let service = crate::id::ServiceName::new(name).unwrap();
        run(&mut state, index, &Command::RemoveService { service }).unwrap();
    }
    run(&mut state, 8, &remove).unwrap();
    assert!(state.externals.is_empty() && state.access.secrets.is_empty());
    let unknown = run(&mut state, 9, &remove);
    assert!(matches!(unknown, Err(Refusal::UnknownExternal { similar: None, .. })));
}

#[test]
fn what_is_told_of_an_external_are_variables_by_its_name() {
    let mut db = read("postgres", "postgres://joe@h1/orders").unwrap();
    db.name = ExternalName::new("orders-db").unwrap();
    let told = Injected { external: &db, password: None };
    assert_eq!(told.variable("url"), "ORDERS_DB_URL");
    assert!(Injected::is_secret("url") && Injected::is_secret("password") && !Injected::is_secret("hosts"));
}

proptest! {
    #[test]
    fn no_text_is_too_odd_to_be_refused_and_no_refusal_shows_a_password(rest in "[a-z:%/,?=&\\[\\]]{0,20}") {
        let _ = read("postgres", &rest);
        let refusal = read("postgres", &format!("postgres://joe:canary-of-a-password@{rest}")).err();
        prop_assert!(!refusal.as_ref().is_some_and(|shown| shown.contains("canary")), "{refusal:?}");
    }

    #[test]
    fn what_services_are_told_reads_as_the_same_login(user in "[ -~]{1,12}", password in "[ -~]{1,12}", database in "[ -~]{1,12}") {
        let hosts = vec!["h1:1".to_owned(), "h2:2".to_owned()];
        let (name, kind) = (ExternalName::new("db").unwrap(), ExternalKind::Postgres);
        let (tls, ca, set) = (Some(Tls::Off), None, BTreeMap::new());
        let external = External { name: name.clone(), kind, hosts, user: Some(user), password: None, database: Some(database), tls, ca, set };
        let url = Injected { external: &external, password: Some(&password) }.fields().remove("url").unwrap();
        let read = FromUrl::read(name, kind, &url).unwrap();
        prop_assert_eq!(read.external, external);
        prop_assert_eq!(read.password.map(|password| password.expose().clone()), Some(password));
    }
}
