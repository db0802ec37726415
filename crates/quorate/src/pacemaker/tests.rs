//! Commands as agents write them, and what they print.

use super::*;
use expect_test::{Expect, expect};
use serde_json::json;

/// A node that nobody is asked about.
fn alone() -> Cluster {
    Cluster { socket: None, me: "n1".into(), resource: Some("db:1".into()) }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn check(tool: Tool, line: &str, expect: &Expect) {
    let text = match Options::read(tool, &words(line)) {
        Ok(options) => format!("{options:?}"),
        Err(unknown) => unknown.to_string(),
    };
    expect.assert_eq(&text);
}

#[test]
fn a_tool_is_what_it_is_called() {
    let called = |name: &str| Tool::called(Some(OsStr::new(name)));
    assert_eq!(called("/run/db/pacemaker/crm_attribute"), Some(Tool::Attribute));
    assert_eq!(called("pacemakerd"), Some(Tool::Daemon));
    assert_eq!((called("quorate"), called("/usr/bin/quorate"), Tool::called(None)), (None, None, None));
}

/// As they stand in the agents `pgsql`, `mysql`, `galera` and `redis`.
#[test]
fn options_are_read_as_agents_write_them() {
    check(
        Tool::Attribute,
        "-l reboot -N n2 -n db-xlog-loc -G -q",
        &expect![[
            r#"Options({'G': None, 'N': Some("n2"), 'l': Some("reboot"), 'n': Some("db-xlog-loc"), 'q': None})"#
        ]],
    );
    check(Tool::Attribute, "-p -v -INFINITY", &expect![[r#"Options({'p': None, 'v': Some("-INFINITY")})"#]]);
    check(Tool::Attribute, "-pdb -v 100", &expect![[r#"Options({'p': Some("db"), 'v': Some("100")})"#]]);
    check(
        Tool::Attribute,
        "--promotion=db --update=5 --node n1",
        &expect![[r#"Options({'N': Some("n1"), 'p': Some("db"), 'v': Some("5")})"#]],
    );
    check(Tool::Attribute, "-GqN n1", &expect![[r#"Options({'G': None, 'N': Some("n1"), 'q': None})"#]]);
    check(Tool::Updater, "-p -n gtid -U 7", &expect![[r#"Options({'P': None, 'n': Some("gtid"), 'v': Some("7")})"#]]);
    check(Tool::Mon, "-1X", &expect![[r#"Options({'1': None, 'X': None})"#]]);
    check(Tool::Mon, "-1 --output-as=xml", &expect![[r#"Options({'1': None, 'X': None})"#]]);
    check(
        Tool::Resource,
        "-B -r db -N n2 -Q",
        &expect![[r#"Options({'B': None, 'N': Some("n2"), 'q': None, 'r': Some("db")})"#]],
    );
    check(
        Tool::Attribute,
        "--type crm_config",
        &expect!["--type is not known here, where Quorate answers in the place of Pacemaker"],
    );
    check(Tool::Attribute, "-n", &expect!["-n is not known here, where Quorate answers in the place of Pacemaker"]);
    check(Tool::Node, "-", &expect!["- is not known here, where Quorate answers in the place of Pacemaker"]);
}

#[test]
fn what_needs_nobody_is_answered_and_what_cannot_be_done_is_not_taken_for_done() {
    let of = |tool: Tool, line: &str| tool.answer(&words(line), &alone()).map_err(|trouble| trouble.status());
    assert_eq!(of(Tool::Daemon, "-$"), Ok("Pacemaker 2.1.5\n".into()));
    assert_eq!(of(Tool::Node, "-n"), Ok("n1\n".into()));
    assert_eq!(of(Tool::Resource, "--cleanup"), Err(USAGE));
    assert_eq!(of(Tool::Mon, "-1"), Err(USAGE));
    assert_eq!(of(Tool::Attribute, "-G"), Err(USAGE));
    let nobody = Tool::Node.answer(&words("-l"), &alone()).unwrap_err().to_string();
    assert!(nobody.contains("people have `quorate`"), "{nobody}");
}

#[test]
fn an_overview_is_read_by_those_who_look_for_a_line_of_it() {
    let node = |name: &str, state: &str| {
        json!({ "id": quorate_model::id::NodeId::from_u128(1), "name": name, "state": state, "mode": null,
            "roles": [], "api": "", "link": "", "generation": 1, "since": 1, "lag": null, "replicas": 0 })
    };
    let seen: Overview = serde_json::from_value(json!({ "sequence": 1, "answered_by": "n2", "services": [],
        "nodes": [node("n1", "joined"), node("n2", "down"), node("n3", "removed")], "gateways": [], "events": [],
        "cluster": { "id": quorate_model::id::NodeId::from_u128(1), "name": "test", "health": "healthy",
            "summary": "", "leader": null, "term": 1, "applied": 1, "version": "0" } }))
    .unwrap();
    expect![[r#"
        <crm_mon version="2.1.5">
          <summary>
            <current_dc present="true" with_quorum="false"/>
          </summary>
          <nodes>
            <node name="n1" id="00000000-0000-0000-0000-000000000001" online="true" standby="false" type="member"/>
            <node name="n2" id="00000000-0000-0000-0000-000000000001" online="false" standby="false" type="member"/>
          </nodes>
          <resources>
          </resources>
        </crm_mon>
    "#]]
    .assert_eq(&overview(&seen));
    assert_eq!(escaped(r#"a<b>&"%\"#), "a&#60;b&#62;&#38;&#34;&#37;&#92;");
}
