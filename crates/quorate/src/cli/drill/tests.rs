//! What people read of a drill, before it and after it.

use super::*;
use expect_test::expect;
use quorate_api::drills::{CopyView, SuccessorView};
use quorate_api::placement::{HeldView, MoveView};
use quorate_model::id::{LogIndex, ServiceName};
use quorate_model::time::WallTime;

fn service(name: &str, mode: Mode, took: Option<u64>, verdict: Verdict) -> ServiceDrillView {
    let limit = if mode == Mode::Singleton { 30 } else { 40 };
    let serving = took.map(Span::from_millis);
    let placed = took.map(|took| Span::from_millis(took - 500));
    ServiceDrillView {
        service: ServiceName::new(name).unwrap(),
        mode,
        setting: Span::from_secs(30),
        limit: Span::from_secs(limit),
        took: serving,
        verdict,
        copies: vec![CopyView { name: format!("{name}.0"), to: placed.map(|_| "n3".into()), placed, serving }],
    }
}

fn drill() -> DrillView {
    DrillView {
        id: 7,
        node: "n1".into(),
        away: Span::from_secs(50),
        by: Some("anna".into()),
        began: WallTime(1_700_000_000_000_000),
        index: LogIndex(99),
        over: true,
        successor: Some(SuccessorView { node: "n2".into(), after: Span::from_millis(1_240) }),
        noticed: Some(Span::from_millis(3_210)),
        returned: Some(Span::from_millis(50_900)),
        ended: Some(Span::from_millis(50_900)),
        services: vec![
            service("agent", Mode::EveryNode, None, Verdict::Stays),
            service("db", Mode::Singleton, Some(19_400), Verdict::Ok),
            service("queue", Mode::Replicated, None, Verdict::NotRecovered),
            service("web", Mode::Replicated, Some(41_000), Verdict::Late),
        ],
    }
}

#[test]
fn n4_a_report_says_for_each_service_what_was_promised_and_what_was_measured() {
    let text = report(&drill());
    let (head, tables) = text.split_once('\n').unwrap();
    assert!(head.starts_with("drill 7 took n1 away for 50s, at ") && head.ends_with(" by anna"), "{head}");
    expect![[r#"
          n1 was missed after 3.2 s
          n1 led; n2 led after 1.2 s
          n1 was back after 50.9 s
        SERVICE  SETTING  LIMIT  WHOLE AFTER  VERDICT
        agent        30s      -            -  - not meant to move
        db           30s    30s       19.4 s  ✔ in time
        queue        30s    40s            -  ✘ not before the node was back
        web          30s    40s       41.0 s  ! late
        COPY     TO  PLACED AFTER  SERVING AFTER
        db.0     n3        18.9 s         19.4 s
        queue.0  -              -              -
        web.0    n3        40.5 s         41.0 s"#]]
    .assert_eq(tables);
}

#[test]
fn n4_a_report_is_a_page_of_markdown_as_well() {
    let text = page(&drill());
    assert!(text.starts_with("# Drill 7: n1 away for 50s\n\n- begun at "), "{text}");
    let tables: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
    expect![[r#"
        | service | setting | limit | whole after | verdict |
        | --- | --- | --- | --- | --- |
        | agent | 30s | - | - | - not meant to move |
        | db | 30s | 30s | 19.4 s | ✔ in time |
        | queue | 30s | 40s | - | ✘ not before the node was back |
        | web | 30s | 40s | 41.0 s | ! late |
        | copy | to | placed after | serving after |
        | --- | --- | --- | --- |
        | db.0 | n3 | 18.9 s | 19.4 s |
        | queue.0 | - | - | - |
        | web.0 | n3 | 40.5 s | 41.0 s |"#]]
    .assert_eq(&tables.join("\n"));
}

#[test]
fn n4_a_plan_says_what_would_move_and_why_nothing_would_begin() {
    let forecast = DrillForecast {
        node: "n1".into(),
        leads: true,
        away: Span::from_secs(50),
        services: vec![
            service("agent", Mode::EveryNode, None, Verdict::Stays),
            service("db", Mode::Singleton, None, Verdict::Open),
        ],
        moves: vec![MoveView { name: "db.0".into(), from: Some("n1".into()), to: Some("n3".into()) }],
        roles: vec![],
        held: vec![HeldView { service: ServiceName::new("web").unwrap(), why: "no node can take web.0".into() }],
        refused: Some("no drill begins: n2 is not joined".into()),
    };
    expect![[r#"
        n1 would be silent to all other nodes for 50s, and another node would lead
        SERVICE  MODE        COPIES THERE  SETTING  WHOLE WITHIN
        agent    every-node             1      30s             -
        db       singleton              1      30s           30s
        if n1 were lost, 1 replica would move
        REPLICA  FROM  TO
        db.0     n1    n3
        ! web: no node can take web.0
        ! no drill begins: n2 is not joined"#]]
    .assert_eq(&plan_text(&forecast));
}
