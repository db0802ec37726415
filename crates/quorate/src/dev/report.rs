//! `quorate dev kill|stop|start`: gives the order, then watches through another node what the
//! cluster makes of it.
//!
//! The times are differences of two moments that were written down when they happened: the one
//! before the first signal, by the process that sent it, and the event's own. When this program
//! gets to see them plays no part.

use crate::cli::failure::{self, Exit, Failure};
use crate::cli::screen::took;
use crate::cli::status::mode;
use crate::cli::target::Target;
use crate::cli::{Context, events, service};
use crate::dev::control::{self, Order};
use crate::dev::registry::Record;
use quorate_api::view::{EventView, NodeMode, NodeState, NodeView, Overview, ServiceView};
use quorate_model::time::WallTime;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Longest wait for the cluster to be whole again.
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// After this a service that is whole and of which no event has told was never in trouble.
const UNNOTICED: Duration = Duration::from_secs(3);

/// What will have to happen after the order.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Expected {
    node: String,
    at: WallTime,
    leader: bool,
    gone: bool,
    back: bool,
    /// Services with a copy on the node.
    services: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gone {
    Down,
    Left,
}

/// What has happened, each with its time since the order.
#[derive(Debug, Clone, PartialEq, Default)]
struct Happened {
    leader: Option<(String, Duration)>,
    /// The cluster knows that the node is down, or that it left as it was asked to.
    gone: Option<(Gone, Duration)>,
    back: Option<Duration>,
    /// Those that are healthy, by name.
    services: BTreeMap<String, Duration>,
}

impl Happened {
    fn read(expected: &Expected, events: &[EventView]) -> Happened {
        let later = || events.iter().filter(|event| event.at >= expected.at);
        let since = |event: &EventView| event.at.since(expected.at);
        let about = |event: &&EventView| event.node.as_ref() == Some(&expected.node);
        let of_kind = |kind: &'static str| move |event: &&EventView| event.kind == kind;
        Happened {
            // With split votes there may be several; the last one is the one that leads.
            leader: later()
                .filter(of_kind("leader-elected"))
                .rfind(|event| expected.back || !about(event))
                .map(|event| (event.node.clone().unwrap_or_default(), since(event))),
            gone: later().filter(about).find_map(|event| match event.kind.as_str() {
                "node-down" => Some((Gone::Down, since(event))),
                "node-left" => Some((Gone::Left, since(event))),
                _ => None,
            }),
            back: later()
                .filter(|event| matches!(event.kind.as_str(), "node-returned" | "node-joined"))
                .find(about)
                .map(since),
            services: expected
                .services
                .iter()
                .filter_map(|name| {
                    let of_service =
                        later().filter(|event| event.service.as_ref().is_some_and(|it| it.as_str() == name));
                    let mut verdict = of_service
                        .filter(|event| matches!(event.kind.as_str(), "service-healthy" | "service-degraded"));
                    let healthy = verdict.next_back().filter(|event| event.kind == "service-healthy")?;
                    Some((name.clone(), since(healthy)))
                })
                .collect(),
        }
    }

    fn is_all_of(&self, expected: &Expected) -> bool {
        (!expected.leader || self.leader.is_some())
            && (!expected.gone || self.gone.is_some())
            && (!expected.back || self.back.is_some())
            && expected.services.iter().all(|name| self.services.contains_key(name))
    }
}

#[derive(Debug, Serialize)]
struct After {
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    after_ms: Option<f64>,
}

/// Milliseconds to the microsecond.
fn ms(span: Duration) -> f64 {
    // Exact for some hundred years.
    span.as_micros() as f64 / 1_000.0
}

pub(crate) fn run(context: &Context, order: &Order) -> Result<(), Failure> {
    let record = context.choice.find_dev()?;
    let node = order.node().to_owned();
    let names = || record.nodes.iter().map(|known| known.name.as_str());
    if !names().any(|name| name == node) {
        return Err(failure::unknown("node", &node, names(), "quorate node list"));
    }
    let watched = others(&record, &node);
    let client = || context.client_for(&watched);
    // Without a cluster that answers there is only the order itself to report.
    let before: Option<Overview> = client().get("/v1/status").ok();
    let at = control::give(&record, order)?;
    let mut expected = expect(order, at, before.as_ref());
    if !context.screen.is_json() {
        context.screen.data(&first_line(order, before.as_ref()));
    }
    let seen_before = before.as_ref().and_then(|before| before.events.iter().map(|event| event.index.0).max());
    let given = Instant::now();
    let deadline = given + PATIENCE;
    let mut printed = Happened::default();
    let mut after: Option<Overview> = None;
    let happened = loop {
        let happened = match events::after(&client(), seen_before.unwrap_or(0)) {
            Ok(events) => {
                if given.elapsed() >= UNNOTICED && !expected.services.is_empty() {
                    let services: Vec<ServiceView> = client().get("/v1/services").unwrap_or_default();
                    forget_unaffected(&mut expected, &events, &services);
                }
                Happened::read(&expected, &events)
            }
            // Between two leaders, or the only node is just being started.
            Err(_) => printed.clone(),
        };
        if happened != printed {
            after = client().get("/v1/status").ok().or(after);
            if !context.screen.is_json() {
                lines(&expected, &printed, &happened, after.as_ref()).iter().for_each(|line| context.screen.data(line));
            }
            printed = happened.clone();
        }
        if happened.is_all_of(&expected) || Instant::now() >= deadline {
            break happened;
        }
        std::thread::sleep(LOOK_EVERY);
    };
    if context.screen.is_json() {
        context.screen.json(&to_json(order, &expected, &happened, before.as_ref(), after.as_ref()));
    } else if let Some(before) = before.as_ref().filter(|_| !expected.leader && !matches!(order, Order::Start { .. }))
        && !majority_left(before, &node)
    {
        context.screen.data("! No majority of managers is left: writes wait.  Next: quorate dev start NODE");
    }
    missing(&expected, &happened)
}

/// Takes out the services that got along without anybody noticing: they are whole without the node,
/// and no event says that they ever were not.
fn forget_unaffected(expected: &mut Expected, events: &[EventView], services: &[ServiceView]) {
    let Expected { at, node, services: names, .. } = expected;
    names.retain(|name| {
        let told = events.iter().any(|event| {
            event.at >= *at
                && event.service.as_ref().is_some_and(|service| service.as_str() == name)
                && matches!(event.kind.as_str(), "service-healthy" | "service-degraded")
        });
        let whole =
            |view: &ServiceView| service::is_settled(view) && service::live(view).all(|replica| replica.node != *node);
        told || !services.iter().any(|view| view.name.as_str() == name && whole(view))
    });
}

/// The nodes to watch through: all but the one that the order is about, unless it is the only one.
fn others(record: &Record, node: &str) -> Target {
    let others: Vec<String> =
        record.nodes.iter().filter(|known| known.name != node).map(|known| known.api.clone()).collect();
    let mut target = Target::from(record.clone());
    if !others.is_empty() {
        target.servers = others;
    }
    target
}

fn majority_left(before: &Overview, without: &str) -> bool {
    let left = before.nodes.iter().filter(|node| node.state == NodeState::Joined && node.name != without).count();
    u32::try_from(left)
        .is_ok_and(|left| left > before.cluster.electors.as_ref().map_or(1, |electors| electors.voters) / 2)
}

fn is_leader(before: &Overview, node: &str) -> bool {
    before.cluster.leader.as_deref() == Some(node)
}

fn expect(order: &Order, at: WallTime, before: Option<&Overview>) -> Expected {
    let node = order.node().to_owned();
    let mut expected = Expected { node, at, leader: false, gone: false, back: false, services: Vec::new() };
    if matches!(order, Order::Start { .. }) {
        expected.back = true;
        return expected;
    }
    // Without a majority nothing more is decided, so there is nothing to wait for.
    let Some(before) = before.filter(|before| majority_left(before, &expected.node)) else { return expected };
    expected.leader = is_leader(before, &expected.node);
    expected.gone = true;
    let has_copy = |view: &&ServiceView| service::live(view).any(|replica| replica.node == expected.node);
    expected.services = before.services.iter().filter(has_copy).map(|service| service.name.to_string()).collect();
    expected
}

fn first_line(order: &Order, before: Option<&Overview>) -> String {
    let name = order.node();
    let view: Option<&NodeView> = before.and_then(|before| before.nodes.iter().find(|node| node.name == name));
    let was = match (view.and_then(|view| view.mode), before.is_some_and(|before| is_leader(before, name))) {
        (_, true) => " (was Active, leader)",
        (Some(NodeMode::Active), _) => " (was Active)",
        (Some(NodeMode::Passive), _) => " (was Passive)",
        (None, _) => "",
    };
    match order {
        Order::Kill { server_only: true, .. } => format!("✕ the server of {name} killed{was}"),
        Order::Kill { .. } => format!("✕ {name} killed{was}"),
        Order::Stop { .. } => format!("○ {name} stopped{was}"),
        Order::Start { .. } => format!("○ {name} started"),
    }
}

/// A line for each thing that is new in `now`.
fn lines(expected: &Expected, before: &Happened, now: &Happened, after: Option<&Overview>) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = |text: String, span: Duration| lines.push(format!("{text:<42} after {}", took(span)));
    if let Some((leader, span)) = now.leader.as_ref().filter(|_| now.leader != before.leader && expected.leader) {
        let term = after.map(|after| format!(", leader of term {}", after.cluster.term)).unwrap_or_default();
        line(format!("✔ {leader} is Active{term}"), *span);
    }
    if let Some((gone, span)) = now.gone.filter(|_| now.gone != before.gone && expected.gone) {
        let what = match gone {
            Gone::Down => "is known to be down",
            Gone::Left => "is known to have left",
        };
        line(format!("✔ {} {what}", expected.node), span);
    }
    if let Some(span) = now.back.filter(|_| now.back != before.back && expected.back) {
        let view = after.and_then(|after| after.nodes.iter().find(|node| node.name == expected.node));
        let mode = view.map(|view| format!(", {}", mode(view.mode))).unwrap_or_default();
        line(format!("✔ {} is back{mode}", expected.node), span);
    }
    for name in &expected.services {
        let known = before.services.get(name);
        let Some(span) = now.services.get(name).copied().filter(|span| known != Some(span)) else {
            continue;
        };
        let view = after.and_then(|after| after.services.iter().find(|service| service.name.as_str() == name));
        let count = view.map(|view| format!(" {}/{}", view.healthy, view.want)).unwrap_or_default();
        line(format!("✔ {name}{count} healthy again"), span);
    }
    lines
}

fn to_json(
    order: &Order,
    expected: &Expected,
    happened: &Happened,
    before: Option<&Overview>,
    after: Option<&Overview>,
) -> serde_json::Value {
    let services: Vec<After> = expected
        .services
        .iter()
        .map(|name| After {
            node: None,
            name: Some(name.clone()),
            after_ms: happened.services.get(name).copied().map(ms),
        })
        .collect();
    let leader = happened.leader.as_ref().filter(|_| expected.leader);
    let gone =
        |how: Gone| happened.gone.filter(|(gone, _)| *gone == how).map(|(_, span)| json!({ "after_ms": ms(span) }));
    let mut value = json!({
        "node": expected.node,
        "was_leader": before.is_some_and(|before| is_leader(before, &expected.node)),
        "leader": leader.map(|(node, span)| After { node: Some(node.clone()), name: None, after_ms: Some(ms(*span)) }),
        "term": after.or(before).map(|overview| overview.cluster.term),
        "down": gone(Gone::Down),
        "left": gone(Gone::Left),
        "services": services,
    });
    let at = match order {
        Order::Kill { .. } => "killed_at_us",
        Order::Stop { .. } => "stopped_at_us",
        Order::Start { .. } => "started_at_us",
    };
    value[at] = expected.at.as_micros().into();
    if expected.back {
        value["returned"] = json!(happened.back.map(|span| json!({ "after_ms": ms(span) })));
    }
    value
}

/// What should have happened in time and has not.
fn missing(expected: &Expected, happened: &Happened) -> Result<(), Failure> {
    let mut missing = Vec::new();
    if expected.leader && happened.leader.is_none() {
        missing.push("no new leader was elected".to_owned());
    }
    if expected.gone && happened.gone.is_none() {
        missing.push(format!("{} was not declared down", expected.node));
    }
    if expected.back && happened.back.is_none() {
        missing.push(format!("{} has not joined", expected.node));
    }
    for name in expected.services.iter().filter(|name| !happened.services.contains_key(*name)) {
        missing.push(format!("{name} has not become healthy again"));
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Exit::TimedOut, "timed-out", format!("within {} {}", took(PATIENCE), missing.join(", and ")))
        .fix("quorate status\nquorate events"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use quorate_model::id::{LogIndex, ServiceName};

    const KILLED: WallTime = WallTime(1_000_000);

    fn event(index: u64, at: u64, kind: &str, about: &str) -> EventView {
        let of_service = kind.starts_with("service");
        EventView {
            index: LogIndex(index),
            at: WallTime(at),
            kind: kind.into(),
            text: String::new(),
            node: (!of_service).then(|| about.to_owned()),
            service: of_service.then(|| ServiceName::new(about).unwrap()),
        }
    }

    fn expected() -> Expected {
        Expected { node: "n1".into(), at: KILLED, leader: true, gone: true, back: false, services: vec!["demo".into()] }
    }

    #[test]
    fn times_are_from_the_kill_to_the_events_own_moment() {
        let events = [
            event(4, 400_000, "leader-elected", "n1"),
            event(5, 500_000, "service-healthy", "demo"),
            event(9, 1_048_213, "leader-elected", "n2"),
            event(10, 1_050_000, "node-down", "n1"),
            event(10, 1_050_000, "service-degraded", "demo"),
            event(12, 1_900_000, "service-healthy", "demo"),
        ];
        let happened = Happened::read(&expected(), &events);
        assert!(happened.is_all_of(&expected()));
        assert_eq!(ms(happened.leader.clone().unwrap().1), 48.213);
        expect![[r"
            ✔ n2 is Active                             after 0.05 s
            ✔ n1 is known to be down                   after 0.05 s
            ✔ demo healthy again                       after 0.90 s"]]
        .assert_eq(&lines(&expected(), &Happened::default(), &happened, None).join("\n"));
        missing(&expected(), &happened).unwrap();
    }

    #[test]
    fn what_was_before_the_kill_does_not_count() {
        let events = [event(4, 999_999, "leader-elected", "n2"), event(5, 900_000, "service-healthy", "demo")];
        let happened = Happened::read(&expected(), &events);
        assert!(!happened.is_all_of(&expected()));
        let failure = missing(&expected(), &happened).unwrap_err();
        assert_eq!(failure.exit, Exit::TimedOut);
        assert_eq!(
            failure.error,
            "within 15 s no new leader was elected, and n1 was not declared down, and demo has not become healthy again"
        );
    }

    #[test]
    fn a_service_that_got_worse_again_is_not_healthy() {
        let mut events =
            vec![event(6, 1_100_000, "service-healthy", "demo"), event(7, 1_200_000, "service-degraded", "demo")];
        assert!(Happened::read(&expected(), &events).services.is_empty());
        events.push(event(8, 1_300_000, "service-healthy", "demo"));
        assert_eq!(Happened::read(&expected(), &events).services["demo"], Duration::from_millis(300));
    }

    #[test]
    fn a_service_that_nobody_missed_is_not_waited_for() {
        let view = |node: &str| -> ServiceView {
            serde_json::from_value(json!({
                "name": "demo", "mode": "replicated", "driver": "process", "want": 1, "healthy": 1, "version": 1,
                "routes": [], "held": [], "spec": { "name": "demo", "command": ["x"] },
                "replicas": [{
                    "id": "10000000-0000-0000-0000-000000000000", "ordinal": 0, "node": node,
                    "node_id": "10000000-0000-0000-0000-000000000001", "state": "healthy", "pid": 1,
                    "addresses": {}, "version": 1, "restarts": 0, "started_at": null, "detail": "", "log_dir": ""
                }]
            }))
            .unwrap()
        };
        let left = |events: &[EventView], node: &str| {
            let mut expected = expected();
            forget_unaffected(&mut expected, events, &[view(node)]);
            expected.services.len()
        };
        assert_eq!(left(&[], "n2"), 0);
        assert_eq!(left(&[], "n1"), 1, "its copy is still said to be on the killed node");
        assert_eq!(left(&[event(7, 1_200_000, "service-degraded", "demo")], "n2"), 1, "its recovery is an event");
    }

    #[test]
    fn a_line_is_printed_once() {
        let first = Happened::read(&expected(), &[event(9, 1_048_000, "leader-elected", "n2")]);
        let both = Happened::read(
            &expected(),
            &[event(9, 1_048_000, "leader-elected", "n2"), event(10, 1_050_000, "node-down", "n1")],
        );
        assert_eq!(lines(&expected(), &Happened::default(), &first, None).len(), 1);
        assert_eq!(lines(&expected(), &first, &both, None).len(), 1);
    }
}
