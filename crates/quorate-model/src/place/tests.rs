use super::*;
use crate::command::Command;
use crate::id::ReplicaId;
use crate::member::MemberCommand;
use crate::spec::{Format, parse};
use crate::state::NodeIdentity;
use crate::time::WallTime;
use expect_test::{Expect, expect};

const N1: u128 = 1 << 64;

fn node(number: u128) -> NodeId {
    NodeId::from_u128(number)
}

/// A cluster of so many workers, `n1` and so on.
fn cluster(nodes: u128) -> ClusterState {
    let mut state = ClusterState::default();
    for number in 1..=nodes {
        let identity = NodeIdentity {
            id: node(number << 64),
            name: format!("n{number}"),
            roles: BTreeSet::from([Role::Worker]),
            api: format!("a{number}:1"),
            link: format!("a{number}:2"),
            host: "127.0.0.1".into(),
        };
        run(&mut state, &Command::RegisterNode { node: identity, boot: 1 }).unwrap();
    }
    state
}

/// Decides and absorbs; `false`: nothing changed.
fn run(state: &mut ClusterState, command: &Command) -> Result<bool, Refusal> {
    let index = LogIndex(state.planned_on.0 + 1);
    let changes = state.decide(index, WallTime(index.0), command)?;
    state.absorb(index, &changes);
    Ok(!changes.is_empty())
}

fn label(state: &mut ClusterState, number: u128, labels: &[(&str, Option<&str>)]) -> Result<bool, Refusal> {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect();
    run(state, &Command::Member(MemberCommand::SetLabels { node: node(number << 64), labels }))
}

fn set(state: &mut ClusterState, number: u128, availability: Availability) -> Result<bool, Refusal> {
    run(state, &Command::Member(MemberCommand::SetAvailability { node: node(number << 64), availability }))
}

fn draining(deadline: Option<Span>) -> Availability {
    Availability::Draining(Drain { deadline, asked: LogIndex(0) })
}

fn apply(state: &mut ClusterState, lines: &str) -> Result<bool, Refusal> {
    let text = format!("[[service]]\nname = 'web'\ncommand = ['/bin/web']\n{lines}");
    run(state, &Command::ApplySpec { document: parse(&text, Format::Toml).unwrap() })
}

fn web(state: &ClusterState) -> &crate::state::ServiceRecord {
    &state.services[&ServiceName::new("web").unwrap()]
}

#[test]
fn a_condition_has_one_spelling_and_reads_several() {
    for (text, spelling) in [
        ("zone = a", "zone = a"),
        ("zone==a", "zone = a"),
        (" disk !=  hdd ", "disk != hdd"),
        ("node=n2|n1", "node = n1|n2"),
    ] {
        assert_eq!(text.parse::<Constraint>().unwrap().to_string(), spelling);
    }
    for text in ["zone", "= a", "zone =", "zone = a b", "Zone = a", "zone = a|", "zone = a = b", "zone ! a", ""] {
        assert!(text.parse::<Constraint>().is_err(), "{text}");
    }
}

#[test]
fn a_condition_asks_for_one_of_its_values_or_for_none() {
    let mut state = cluster(1);
    label(&mut state, 1, &[("zone", Some("a"))]).unwrap();
    let holds = |text: &str| text.parse::<Constraint>().unwrap().holds(&state.nodes[&node(N1)]);
    assert!(holds("zone = a") && holds("zone = b|a") && holds("zone != b") && holds("node = n1"));
    assert!(!holds("zone = b") && !holds("zone != a|b") && !holds("node != n1"));
    // A node without the label has none of the values.
    assert!(holds("disk != hdd") && !holds("disk = hdd"));
}

#[test]
fn labels_are_set_and_taken_away_one_by_one() {
    let mut state = cluster(1);
    assert!(label(&mut state, 1, &[("zone", Some("a")), ("disk", Some("ssd"))]).unwrap());
    assert!(label(&mut state, 1, &[("zone", None), ("rack", Some("7")), ("gone", None)]).unwrap());
    let labels = |state: &ClusterState| format!("{:?}", state.nodes[&node(N1)].labels);
    assert_eq!(labels(&state), r#"{"disk": "ssd", "rack": "7"}"#);
    assert!(!label(&mut state, 1, &[("zone", None)]).unwrap(), "nothing is left to do");
}

#[test]
fn a_label_that_could_not_be_asked_for_is_refused() {
    let mut state = cluster(1);
    let mut refused = |key: &str, value: &str, expected: Expect| {
        expected.assert_eq(&label(&mut state, 1, &[(key, Some(value))]).unwrap_err().to_string());
    };
    refused(
        "Zone",
        "a",
        expect![[r#"`labels` has the key "Zone": use 1 to 63 of a-z, 0-9, - _ . /, beginning with a letter or digit"#]],
    );
    refused("zone", "a b", expect![[r#"`labels` has the value "a b": use 1 to 63 of A-Z, a-z, 0-9, - _ ."#]]);
    refused("zone", "", expect![[r#"`labels` has the value "": use 1 to 63 of A-Z, a-z, 0-9, - _ ."#]]);
    refused("node", "n2", expect![[r#"`labels` has the key "node", which stands for the node's name"#]]);
    let many: Vec<String> = (0..=LABELS_MAX).map(|at| format!("l{at}")).collect();
    let many: Vec<(&str, Option<&str>)> = many.iter().map(|key| (key.as_str(), Some("x"))).collect();
    let refusal = label(&mut state, 1, &many).unwrap_err();
    assert_eq!(refusal.to_string(), "`labels` would be 65 of one node; at most 64 are allowed");
    assert!(state.nodes[&node(N1)].labels.is_empty());
}

#[test]
fn labels_and_a_drain_outlive_a_restart_of_the_node() {
    let mut state = cluster(1);
    label(&mut state, 1, &[("zone", Some("a"))]).unwrap();
    set(&mut state, 1, draining(None)).unwrap();
    let before = state.nodes[&node(N1)].clone();
    run(&mut state, &Command::RegisterNode { node: before.identity.clone(), boot: 2 }).unwrap();
    let after = &state.nodes[&node(N1)];
    assert_eq!((after.boot, &after.labels, after.availability), (2, &before.labels, before.availability));
}

#[test]
fn a_drain_is_asked_once_and_a_new_deadline_is_a_new_wish() {
    let mut state = cluster(1);
    assert!(set(&mut state, 1, draining(None)).unwrap());
    let asked = |state: &ClusterState| state.nodes[&node(N1)].availability.drain().unwrap().asked;
    let first = asked(&state);
    assert!(!set(&mut state, 1, draining(None)).unwrap());
    assert!(set(&mut state, 1, draining(Some(Span::from_secs(60)))).unwrap());
    assert!(asked(&state) > first);
    assert!(set(&mut state, 1, Availability::Open).unwrap());
    assert!(!set(&mut state, 1, Availability::Open).unwrap());
    let told: Vec<&Happening> = state.events.iter().map(|event| &event.what).skip(1).collect();
    let node = node(N1);
    assert_eq!(
        told,
        [&Happening::NodeDraining { node }, &Happening::NodeDraining { node }, &Happening::NodeOpened { node }]
    );
}

#[test]
fn records_of_older_logs_are_open_and_have_no_labels() {
    let state = cluster(1);
    let mut record = serde_json::to_value(&state.nodes[&node(N1)]).unwrap();
    record.as_object_mut().unwrap().remove("availability").unwrap();
    let record: NodeRecord = serde_json::from_value(record).unwrap();
    assert_eq!((record.availability, record.labels.len()), (Availability::Open, 0));
    let drain: Availability = serde_json::from_str(r#"{"draining":{}}"#).unwrap();
    assert_eq!(drain, draining(None));
}

#[test]
fn a_service_on_every_node_cannot_be_scaled_and_says_why() {
    let mut state = cluster(2);
    apply(&mut state, "mode = 'every-node'").unwrap();
    let scale = Command::ScaleService { service: ServiceName::new("web").unwrap(), replicas: 3 };
    let refusal = run(&mut state, &scale).unwrap_err();
    assert_eq!(refusal.to_string(), "web cannot be scaled: it runs once on each node that meets `place.require`");
}

#[test]
fn a_service_on_every_node_wants_one_on_each_that_fits_now() {
    let mut state = cluster(4);
    for number in [1, 2, 3] {
        label(&mut state, number, &[("disk", Some("ssd"))]).unwrap();
    }
    apply(&mut state, "mode = 'every-node'\nplace = { require = ['disk = ssd'] }").unwrap();
    let wanted = |state: &ClusterState| state.wanted(web(state));
    assert_eq!(wanted(&state), 3);
    set(&mut state, 1, draining(None)).unwrap();
    assert_eq!(wanted(&state), 2);
    set(&mut state, 2, Availability::Cordoned).unwrap();
    assert_eq!(wanted(&state), 1, "n2 takes nothing new");
    let service = ServiceName::new("web").unwrap();
    let place = crate::command::Step::Place {
        replica: ReplicaId::from_u128(1),
        service,
        ordinal: 0,
        node: node(2 << 64),
        version: None,
        epoch: None,
    };
    let carry_out = Command::CarryOut { expected: state.planned_on, steps: vec![place] };
    run(&mut state, &carry_out).unwrap();
    assert_eq!(wanted(&state), 2, "and keeps what it has");
}

#[test]
fn where_a_service_runs_is_no_new_version_of_it() {
    let mut state = cluster(1);
    apply(&mut state, "").unwrap();
    assert!(apply(&mut state, "place = { require = ['zone = a'] }").unwrap());
    assert_eq!(web(&state).version, 1);
    assert!(!web(&state).spec.place.is_anywhere());
    apply(&mut state, "env = { A = '1' }").unwrap();
    assert_eq!(web(&state).version, 2);
}

#[test]
fn a_place_that_contradicts_itself_is_refused() {
    let refused = |lines: &str, expected: Expect| {
        expected.assert_eq(&apply(&mut cluster(1), lines).unwrap_err().to_string());
    };
    refused(
        "mode = 'every-node'\nreplicas = 3",
        expect![[r#"`service.web.replicas` is 3, and mode "every-node" runs one on each node: leave it out"#]],
    );
    refused(
        "mode = 'every-node'\nplace = { prefer = ['disk = ssd'] }",
        expect![[
            r#"`service.web.place.prefer` chooses among nodes, and mode "every-node" takes each that meets `require`"#
        ]],
    );
    refused("place = { near = ['web'] }", expect!["`service.web.place.near` names web itself"]);
    refused(
        "place = { near = ['db'], apart = ['db'] }",
        expect!["`service.web.place.apart` names db, and so does `near`"],
    );
    refused(
        "place = { spread = 'node' }",
        expect![[r#"`service.web.place.spread` is "node", and replicas are spread over nodes anyway: leave it out"#]],
    );
    refused(
        "place = { spread = 'A' }",
        expect![[
            r#"`service.web.place.spread` has the key "A": use 1 to 63 of a-z, 0-9, - _ . /, beginning with a letter or digit"#
        ]],
    );
}
