//! The table `autoscale` as it is written, and what is wrong with one.

use super::*;
use crate::spec::{Format, SpecDocument, parse};
use expect_test::{Expect, expect};

fn spec(table: &str) -> SpecDocument {
    let text = format!("[[service]]\nname = 'web'\ncommand = ['web']\n{table}");
    parse(&text, Format::Toml).unwrap_or_else(|problem| panic!("{problem}\n{text}"))
}

/// Validates a service with this table and resources.
fn check(table: &str, expected: Expect) {
    let resources = "resources = { cpu = '500m', memory = '256MiB' }";
    let said = spec(&format!("{resources}\nautoscale = {{ {table} }}")).validate();
    expected.assert_eq(&said.map_or_else(|problem| problem.to_string(), |()| "ok".into()));
}

fn check_bare(lines: &str, expected: Expect) {
    let said = spec(lines).validate();
    expected.assert_eq(&said.map_or_else(|problem| problem.to_string(), |()| "ok".into()));
}

#[test]
fn e3_a_table_has_limits_and_something_to_go_by() {
    check("min = 2, max = 8, cpu = '70%', memory = '80%'", expect!["ok"]);
    check("min = 1, max = 1, cpu = '70%', every = '5s', warmup = '0s', down_after = '0s'", expect!["ok"]);
    check("min = 0, max = 8, cpu = '70%'", expect!["`service.web.autoscale.min` is 0; it must be 1 to 1000"]);
    check("min = 1, max = 1001, cpu = '70%'", expect!["`service.web.autoscale.max` is 1001; it must be 1 to 1000"]);
    check("min = 3, max = 2, cpu = '70%'", expect!["`service.web.autoscale.max` is 2, and the minimum is 3"]);
    check(
        "min = 1, max = 2",
        expect![[
            r#"`service.web.autoscale` goes by nothing: write cpu = "70%", rps = 100, another target or a schedule"#
        ]],
    );
    check(
        "min = 1, max = 2, cpu = '70%', every = '4s'",
        expect!["`service.web.autoscale.every` is 4s; it must be 5s to 10m"],
    );
    check(
        "min = 1, max = 2, cpu = '70%', down_after = '2h'",
        expect!["`service.web.autoscale.down_after` is 2h; it must be 0s to 1h"],
    );
}

#[test]
fn e3_a_target_is_a_share_of_what_is_set_aside() {
    check_bare(
        "autoscale = { min = 1, max = 2, cpu = '70%' }",
        expect![[
            r#"`service.web.autoscale.cpu` is a share of `resources.cpu`, which is not there: add it, like "500m""#
        ]],
    );
    check_bare(
        "resources = { cpu = 1 }\nautoscale = { min = 1, max = 2, memory = '70%' }",
        expect![[
            r#"`service.web.autoscale.memory` is a share of `resources.memory`, which is not there: add it, like "256MiB""#
        ]],
    );
    check_bare(
        "driver = 'container'\ncontainer = { image = 'x' }\nresources = { cpu = 1 }\nautoscale = { min = 1, max = 2, cpu = '70%' }",
        expect![
            "`service.web.autoscale.cpu` cannot be gone by: what runs under another supervisor is not measured; leave it out"
        ],
    );
}

#[test]
fn e3_what_runs_once_or_everywhere_is_not_autoscaled() {
    check_bare(
        "mode = 'singleton'\nautoscale = { min = 1, max = 2 }",
        expect!["`service.web.autoscale` is for several copies, and a singleton has one: leave it out"],
    );
    check_bare(
        "mode = 'every-node'\nautoscale = { min = 1, max = 2 }",
        expect![[
            r#"`service.web.autoscale` is for services that can be scaled, and "every-node" runs one on each node"#
        ]],
    );
}

#[test]
fn the_number_to_start_with_is_not_above_the_limits() {
    let table = |enabled| {
        format!(
            "replicas = 5\nresources = {{ cpu = 1 }}\nautoscale = {{ enabled = {enabled}, min = 2, max = 4, cpu = '50%' }}"
        )
    };
    check_bare(&table(true), expect!["`service.web.replicas` is 5, and `autoscale.max` is 4"]);
    check_bare(&table(false), expect!["ok"]);
    let settled = |document: SpecDocument, present| document.services[0].settled(present).replicas;
    let on = || spec("autoscale = { min = 2, max = 4, cpu = '50%' }");
    assert_eq!(settled(on(), None), 2, "a new one begins at the minimum at the least");
    assert_eq!([1, 3, 9].map(|present| settled(on(), Some(present))), [2, 3, 4], "what runs goes on");
    let off = spec("replicas = 7\nautoscale = { enabled = false, min = 2, max = 4, cpu = '50%' }");
    assert_eq!(settled(off, Some(3)), 7);
}

#[test]
fn mistakes_in_the_table_have_a_place_and_a_suggestion() {
    let read = |table: &str, expected: Expect| {
        let text = format!("[[service]]\nname = 'web'\ncommand = ['web']\nautoscale = {{ {table} }}");
        expected.assert_eq(&parse(&text, Format::Toml).unwrap_err().to_string());
    };
    read(
        "min = 1, max = 2, cpus = '70%'",
        expect!["unknown key `cpus` in autoscale of [[service]] `web` (line 4, column 33); did you mean `cpu`?"],
    );
    read("min = 1", expect!["missing key `max` in autoscale of [[service]] `web` (line 4, column 13)"]);
    for bad in ["91%", "0%", "70", "+7%", "7.5%", "%"] {
        let text =
            format!("[[service]]\nname = 'web'\ncommand = ['web']\nautoscale = {{ min = 1, max = 2, cpu = '{bad}' }}");
        let refused = parse(&text, Format::Toml).unwrap_err().to_string();
        assert!(refused.contains("is no share: write one like \"70%\"") && refused.contains("line 4"), "{refused}");
    }
    read(
        "min = 1, max = 2, schedule = [{ days = 'weekdays', from = '07:00', to = '19:00' }]",
        expect![[
            r#"`days` in [[schedule]] `weekdays`: `weekdays` names no days: write some of mon, tue, wed, thu, fri, sat, sun, like "mon-fri" or "sat,sun" (line 4, column 47)"#
        ]],
    );
    read(
        "min = 1, max = 2, schedule = [{ from = '7:00', to = '19:00' }]",
        expect![
            "`from` in [[schedule]] number 1: `7:00` is no time of day: write HH:MM in UTC, 00:00 to 24:00 (line 4, column 47)"
        ],
    );
}

#[test]
fn a_schedule_says_something_sane() {
    let one = |rest: &str| format!("min = 2, max = 4, schedule = [{{ from = '07:00', to = '19:00'{rest} }}]");
    check(&one(", min = 3"), expect!["ok"]);
    check(
        &one(""),
        expect!["`service.web.autoscale.schedule` says nothing for mon-sun 07:00-19:00 UTC: give `min` or `max`"],
    );
    check(&one(", min = 5"), expect!["`service.web.autoscale.schedule.max` is 4, and the minimum is 5"]);
}

/// 2026-11-23 was a Monday.
fn at(day: u64, hour: u64, minute: u64) -> WallTime {
    const MONDAY_DAYS: u64 = 20_780;
    WallTime((((MONDAY_DAYS + day) * 24 + hour) * 60 + minute) * 60_000_000)
}

#[test]
fn hours_hold_on_their_days_and_over_midnight() {
    let hours = |days: &str, from: &str, to: &str| Hours {
        days: days.parse().unwrap(),
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
        min: Some(1),
        max: None,
    };
    let work = hours("mon-fri", "07:00", "19:00");
    assert!(work.hold(at(0, 7, 0)) && work.hold(at(4, 18, 59)));
    assert!(!work.hold(at(0, 6, 59)) && !work.hold(at(0, 19, 0)) && !work.hold(at(5, 12, 0)));
    let night = hours("fri", "22:00", "06:00");
    assert!(night.hold(at(4, 23, 0)) && night.hold(at(5, 5, 59)));
    assert!(!night.hold(at(4, 5, 0)) && !night.hold(at(5, 6, 0)) && !night.hold(at(5, 23, 0)));
    let sunday = hours("sun", "12:00", "12:00");
    assert!(sunday.hold(at(6, 12, 0)) && sunday.hold(at(0, 11, 59)) && !sunday.hold(at(0, 12, 0)));
    let all_day = hours("sat", "00:00", "24:00");
    assert!(all_day.hold(at(5, 0, 0)) && all_day.hold(at(5, 23, 59)) && !all_day.hold(at(6, 0, 0)));
}

#[test]
fn days_are_written_in_one_way() {
    for (read, written) in [
        ("mon-fri", "mon-fri"),
        ("sun,sat", "sat-sun"),
        ("sat-mon", "mon,sat-sun"),
        ("wed", "wed"),
        ("mon,tue,wed,fri", "mon-wed,fri"),
        ("mon-sun", "mon-sun"),
    ] {
        assert_eq!(read.parse::<Days>().unwrap().to_string(), written);
    }
    for bad in ["", "mon-", "Mon", "mon fri", "daily", "mon--fri"] {
        assert!(bad.parse::<Days>().is_err(), "{bad}");
    }
}

#[test]
fn the_first_hours_that_hold_count() {
    let document = spec(
        "autoscale = { min = 1, max = 3, schedule = [{ days = 'mon', from = '09:00', to = '10:00', min = 5, max = 9 }, { from = '08:00', to = '12:00', min = 2 }] }",
    );
    let autoscale = document.services[0].autoscale.as_ref().unwrap();
    let bounds = |at| autoscale.bounds(at).0.to_string();
    assert_eq!(bounds(at(0, 9, 30)), "5 to 9");
    assert_eq!(bounds(at(0, 10, 30)), "2 to 3");
    assert_eq!(bounds(at(1, 9, 30)), "2 to 3");
    assert_eq!(bounds(at(0, 13, 0)), "1 to 3");
    assert_eq!(autoscale.widest().to_string(), "1 to 9");
}

#[test]
fn k15_what_gateways_count_has_a_target_in_range_and_a_port_to_send_to() {
    let port = |table: &str| format!("ports = {{ http = 'auto' }}\nautoscale = {{ min = 1, max = 2, {table} }}");
    check_bare(&port("rps = 100"), expect!["ok"]);
    check_bare(&port("p95 = '250ms'"), expect!["ok"]);
    check_bare(&port("rps = 0"), expect!["`service.web.autoscale.rps` is 0; it must be 1 to 1000000"]);
    check_bare(&port("p95 = '11s'"), expect!["`service.web.autoscale.p95` is 11s; it must be 1ms to 10s"]);
    check_bare(
        "autoscale = { min = 1, max = 2, p95 = '1s' }",
        expect![
            "`service.web.autoscale.p95` is what gateways count, and the service has no port that they could send to"
        ],
    );
    let text = "[[service]]\nname = 'web'\ncommand = ['web']\nautoscale = { min = 1, max = 2, p59 = '1s' }";
    let refused = parse(text, Format::Toml).unwrap_err().to_string();
    assert!(refused.contains("did you mean `p95`?"), "{refused}");
}

#[test]
fn k15_a_number_that_somebody_tells_has_a_name_and_a_target() {
    let port = |table: &str| format!("ports = {{ http = 'auto' }}\nautoscale = {{ min = 1, max = 2, {table} }}");
    let scrape = |rest: &str| port(&format!("scrape = {{ {rest} }}"));
    check_bare(&scrape("name = 'jobs', target = 5"), expect!["ok"]);
    check_bare(
        &scrape("name = 'a:jobs', target = 5, port = 'http', path = '/m?x=1', labels = { queue = 'a b' }"),
        expect!["ok"],
    );
    check_bare(
        &scrape("name = 'jobs', target = 0"),
        expect!["`service.web.autoscale.scrape.target` is 0; it must be 1 to 1000000000"],
    );
    check_bare(
        &scrape("name = '9jobs', target = 1"),
        expect!["`service.web.autoscale.scrape.name` is `9jobs`, which is no name of a metric, like queue_length"],
    );
    check_bare(
        &scrape("name = 'jobs', target = 1, port = 'web'"),
        expect!["`service.web.autoscale.scrape.port` is `web`, which is not among the service's `ports`"],
    );
    check_bare(
        &scrape("name = 'jobs', target = 1, path = 'metrics'"),
        expect!["`service.web.autoscale.scrape.path` is `metrics`; it must be a path like /metrics, at most 500 bytes"],
    );
    check_bare(
        &scrape("name = 'jobs', target = 1, labels = { 'a:b' = 'c' }"),
        expect!["`service.web.autoscale.scrape.labels` has `a:b`, which is no name of a label"],
    );
    check_bare(
        "autoscale = { min = 1, max = 2, scrape = { name = 'jobs', target = 1 } }",
        expect!["`service.web.autoscale.scrape` asks copies, and the service has no port: add one to `ports`"],
    );
    let sql = |rest: &str| format!("autoscale = {{ min = 1, max = 2, sql = {{ {rest} }} }}");
    check_bare(&sql("query = 'SELECT count(*) FROM jobs', target = 50"), expect!["ok"]);
    check_bare(&sql("query = ' ', target = 50"), expect!["`service.web.autoscale.sql.query` is empty"]);
    check_bare(
        &sql("query = 'SELECT 1', target = 2000000000"),
        expect!["`service.web.autoscale.sql.target` is 2000000000; it must be 1 to 1000000000"],
    );
    let text = "[[service]]\nname = 'web'\ncommand = ['web']\nautoscale = { min = 1, max = 2, scrape = { metric = 'a', name = 'a', target = 1, lables = {} } }";
    let refused = parse(text, Format::Toml).unwrap_err().to_string();
    assert!(refused.contains("unknown key `metric` in scrape"), "{refused}");
}
