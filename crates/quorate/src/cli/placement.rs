//! Where replicas go: `node label`, `node cordon`, `node drain`, `node undrain`, `explain`, `whatif`, `rebalance`.

use crate::cli::Context;
use crate::cli::client::Client;
use crate::cli::failure::{Exit, Failure};
use crate::cli::members::in_path;
use crate::cli::{screen, service, switch};
use clap::{Args, Subcommand};
use quorate_api::placement::{
    ActiveView, Availability, AvailabilityWish, ExplanationView, FitView, ForecastView, LabelChange, PlacedView,
    Rebalance, RebalanceView, Rebalanced, RoleMoveView, RolesView, RoomView, RunningView, SearchView, UnfitView,
};
use quorate_api::view::{NodeView, Overview};
use quorate_model::id::NodeId;
use quorate_model::spec::Mode;
use quorate_model::time::Span;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;
use ureq::http::Method;

/// How often a waiting command looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(crate) struct LabelArgs {
    /// Name, id, or how the id begins
    node: String,
    /// KEY=VALUE sets a label, KEY- takes it away
    #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
    labels: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// Name, id, or how the id begins
    node: String,
    /// After this, stop also what finds no other place; without it, that stays
    #[arg(long, value_name = "SPAN")]
    deadline: Option<Span>,
    /// Do not wait until the node is empty
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WhatifCommand {
    /// A node loses its power and does not come back
    #[command(after_help = "Examples:\n  quorate whatif kill n2\n  quorate whatif kill n2 -o json")]
    Kill {
        /// Name, id, or how the id begins
        node: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RebalanceArgs {
    /// Most copies that move, 1 to 100
    #[arg(long, value_name = "N", default_value_t = quorate_api::placement::MOVES)]
    moves: u32,
    /// Only say what would move, and why
    #[arg(long)]
    plan: bool,
    /// Move nothing more; what has begun to move goes on
    #[arg(long, conflicts_with_all = ["moves", "plan"])]
    stop: bool,
    /// Do not wait until all have moved
    #[arg(long)]
    no_wait: bool,
    /// Ask nothing
    #[arg(short, long)]
    yes: bool,
}

pub(crate) fn label(context: &Context, args: &LabelArgs) -> Result<(), Failure> {
    let labels: BTreeMap<String, Option<String>> =
        args.labels.iter().map(|text| read_label(text)).collect::<Result<_, _>>()?;
    let path = format!("/v1/nodes/{}/labels", in_path(&args.node));
    let view: NodeView = context.client()?.change(Method::POST, &path, Some(&LabelChange { labels }))?.json()?;
    let text = match labels_text(&view.labels) {
        text if text.is_empty() => format!("✔ {} has no labels", view.name),
        text => format!("✔ {} has {text}", view.name),
    };
    context.done(&view, &text)
}

fn read_label(text: &str) -> Result<(String, Option<String>), Failure> {
    match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) => Ok((key.to_owned(), Some(value.to_owned()))),
        (None, Some(key)) => Ok((key.to_owned(), None)),
        (None, None) => Err(Failure::new(Exit::Usage, "bad-label", format!("`{text}` is neither KEY=VALUE nor KEY-"))
            .fix(format!(
                "quorate node label NODE {text}=VALUE   sets it\nquorate node label NODE {text}-   takes it away"
            ))),
    }
}

pub(crate) fn labels_text(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

/// What a node takes, and until when what it has may stay.
pub(crate) fn availability_text(node: &NodeView) -> String {
    match (node.availability, node.drain_deadline) {
        (Availability::Open, _) => "open".into(),
        (Availability::Cordoned, _) => "cordoned".into(),
        (Availability::Draining, None) => "draining".into(),
        (Availability::Draining, Some(deadline)) => format!("draining, for at most {deadline}"),
    }
}

fn set(client: &Client, node: &str, availability: Availability, deadline: Option<Span>) -> Result<NodeView, Failure> {
    let path = format!("/v1/nodes/{}/availability", in_path(node));
    client.change(Method::PUT, &path, Some(&AvailabilityWish { availability, deadline }))?.json()
}

pub(crate) fn cordon(context: &Context, node: &str) -> Result<(), Failure> {
    let view = set(&context.client()?, node, Availability::Cordoned, None)?;
    context.done(&view, &format!("✔ {} takes no more replicas; those that it has stay", view.name))
}

pub(crate) fn undrain(context: &Context, node: &str) -> Result<(), Failure> {
    let view = set(&context.client()?, node, Availability::Open, None)?;
    context.done(&view, &format!("✔ {} takes replicas again; none is brought back by itself", view.name))
}

pub(crate) fn drain(context: &Context, args: &DrainArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let view = set(&client, &args.node, Availability::Draining, args.deadline)?;
    if args.no_wait {
        return context.done(&view, &format!("✔ {} is draining", view.name));
    }
    until_empty(context, &client, &view)?;
    let path = format!("/v1/nodes/{}", view.id);
    let view: NodeView = client.get(&path)?;
    context.done(&view, &format!("✔ {} is empty; `quorate node undrain {0}` opens it again", view.name))
}

fn until_empty(context: &Context, client: &Client, node: &NodeView) -> Result<(), Failure> {
    loop {
        let overview: Overview = client.get("/v1/status")?;
        let left = left_on(&overview, node.id);
        if left.is_empty() {
            context.screen.progress_over();
            return Ok(());
        }
        if client.remaining() <= LOOK_EVERY * 2 {
            let held =
                overview.services.iter().filter(|service| left.iter().any(|(name, _)| *name == service.name.as_str()));
            let why: Vec<&str> = held.flat_map(|service| &service.held).map(String::as_str).collect();
            let failure = Failure::new(
                Exit::TimedOut,
                "not-drained",
                format!("{} still has {} after {}", node.name, listed(&left), Span(context.timeout)),
            );
            let failure = if why.is_empty() { failure } else { failure.why(why.join("\n")) };
            return Err(failure.fix(format!(
                "nothing is lost: it goes on by itself\nquorate node drain {0} --timeout 10m   waits longer\n\
                 quorate node drain {0} --deadline 1m   stops what finds no other place",
                node.name
            )));
        }
        context.screen.progress(&format!("{} is draining   {} left", node.name, listed(&left)));
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Services and ordinals of what is on the node, in whatever state.
fn left_on(overview: &Overview, node: NodeId) -> Vec<(&str, u32)> {
    let replicas = overview.services.iter().flat_map(|service| service.replicas.iter().map(move |one| (service, one)));
    replicas
        .filter(|(_, replica)| replica.node_id == node)
        .map(|(service, replica)| (service.name.as_str(), replica.ordinal))
        .collect()
}

fn listed(replicas: &[(&str, u32)]) -> String {
    let named: Vec<String> = replicas.iter().take(3).map(|(service, ordinal)| format!("{service}.{ordinal}")).collect();
    match replicas.len() - named.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

pub(crate) fn explain(context: &Context, name: &str) -> Result<(), Failure> {
    let client = context.client()?;
    // Its own words for a name that is not known.
    let service = service::show(&client, name)?.name;
    let explanation: ExplanationView = client.get(&format!("/v1/services/{service}/explain"))?;
    context.show(&explanation, explanation_text)
}

fn explanation_text(explanation: &ExplanationView) -> String {
    let ExplanationView { service, mode, want, roles, running, searches, without, room, stopped, next, held } =
        explanation;
    let mode = match mode {
        Mode::Replicated | Mode::Singleton => "",
        Mode::ActivePassive => ", one of them active",
        Mode::EveryNode => ", one on each node that fits",
    };
    let mut first = format!("{service} wants {want}{mode}");
    if let Some(line) = switch::line(service.as_str(), stopped.as_ref(), next.as_ref()) {
        // A String takes all that is written into it.
        let _ = write!(first, "\nit {line}");
    }
    let mut parts = vec![first];
    parts.extend(roles.as_ref().map(roles_text));
    parts.extend(room.as_ref().map(room_text));
    parts.extend(running.iter().map(|one| running_text(one) + &nodes_text(&one.fit, &one.unfit)));
    parts.extend(searches.iter().map(|one| search_text(one) + &nodes_text(&one.fit, &one.unfit)));
    if !without.is_empty() {
        parts.push("nodes without it".to_owned() + &nodes_text(&[], without));
    }
    if !held.is_empty() {
        parts.push(held.iter().map(|held| format!("! {held}")).collect::<Vec<_>>().join("\n"));
    }
    parts.join("\n\n")
}

/// Who is active and why, and who would be next.
fn roles_text(roles: &RolesView) -> String {
    let RolesView { active, cold, standbys } = roles;
    let mut text = match active {
        Some(ActiveView { name, node, epoch, since, why }) => {
            format!("{name} on {node} is active under epoch {epoch}, since {}: {why}", screen::moment(*since, false))
        }
        None => "no copy is active".to_owned(),
    };
    let places: Vec<String> = standbys.iter().map(|one| format!("{} on {}", one.name, one.node)).collect();
    let width = places.iter().map(|place| place.chars().count()).max().unwrap_or_default();
    for (at, (place, one)) in places.iter().zip(standbys).enumerate() {
        let what = match &one.unfit {
            Some(why) => format!("cannot be promoted: {why}"),
            None if at == 0 => "would be promoted next".to_owned(),
            None => "would follow after that".to_owned(),
        };
        let part = if *cold { "standby (cold)" } else { "standby" };
        // A String takes all that is written into it.
        let _ = write!(text, "\n  {place:<width$}  {part}, {what}");
    }
    text
}

/// What a service asks for against what there is, and what of it finds no room.
pub(crate) fn room_text(room: &RoomView) -> String {
    let RoomView { each, replicas, free, fit, lost, free_then, fit_then } = room;
    let copies = |count: u32| if count == 1 { "1 copy".to_owned() } else { format!("{count} copies") };
    let mut text = format!("{replicas} × ({each}) = {}", each.times(*replicas));
    let Some(lost) = lost else {
        return text + "\n! no node that could run it has said what it has room for";
    };
    // A String takes all that is written into it.
    let _ = write!(text, "; free: {free}, room for {}", copies(*fit));
    let _ = write!(text, "; with {lost} lost: {free_then}, room for {}", copies(*fit_then));
    if fit < replicas {
        let _ = write!(text, "\n! {} will wait for room", copies(replicas - fit));
    } else if fit_then < replicas {
        let _ = write!(text, "\n! with {lost} lost, {} would find no room", copies(replicas - fit_then));
    }
    text
}

fn running_text(one: &RunningView) -> String {
    let RunningView { name, node, rank, fit, .. } = one;
    match (rank, fit.first()) {
        (Some(1), _) => format!("{name} runs on {node}, where it would be placed now"),
        (Some(rank), Some(best)) => {
            format!(
                "{name} runs on {node}, now number {rank} for it after {}; what runs is not moved for that",
                best.node
            )
        }
        _ => format!("{name} runs on {node}, where it could not be placed now"),
    }
}

fn search_text(one: &SearchView) -> String {
    let SearchView { name, from, to, .. } = one;
    match (from, to) {
        (Some(from), Some(to)) if from == to => format!("{name} on {from} is replaced there"),
        (Some(from), Some(to)) => format!("{name} goes from {from} to {to}"),
        (Some(from), None) => format!("{name} should go from {from}, and no node can take it"),
        (None, Some(to)) => format!("{name} goes to {to}"),
        (None, None) => format!("{name} runs nowhere: no node can take it"),
    }
}

fn nodes_text(fit: &[FitView], unfit: &[UnfitView]) -> String {
    let lines = fit.iter().map(|one| (&one.node, &one.score)).chain(unfit.iter().map(|one| (&one.node, &one.why)));
    let width = lines.clone().map(|(node, _)| node.chars().count()).max().unwrap_or_default();
    lines.fold(String::new(), |mut text, (node, words)| {
        // A String takes all that is written into it.
        let _ = write!(text, "\n  {node:<width$}  {words}");
        text
    })
}

pub(crate) fn whatif(context: &Context, command: &WhatifCommand) -> Result<(), Failure> {
    let WhatifCommand::Kill { node } = command;
    let forecast: ForecastView = context.client()?.get(&format!("/v1/whatif/kill/{}", in_path(node)))?;
    context.show(&forecast, forecast_text)
}

pub(crate) fn forecast_text(forecast: &ForecastView) -> String {
    let ForecastView { node, moves, roles, held } = forecast;
    let mut text = match moves.len() {
        0 => format!("if {node} were lost, no replica would move"),
        1 => format!("if {node} were lost, 1 replica would move\n"),
        count => format!("if {node} were lost, {count} replicas would move\n"),
    };
    if !moves.is_empty() {
        let cell = |node: &Option<String>| node.clone().unwrap_or_else(|| "-".into());
        let rows = moves.iter().map(|one| vec![one.name.clone(), cell(&one.from), cell(&one.to)]);
        text.push_str(&screen::table(&["REPLICA", "FROM", "TO"], &[], rows));
    }
    for RoleMoveView { service, from, to } in roles {
        let from = from.as_ref().map_or_else(|| "nobody".to_owned(), copy_text);
        // A String takes all that is written into it.
        let _ = match to {
            Some(to) => write!(text, "\n✔ {service}: {} would be promoted, after {from}", copy_text(to)),
            None => write!(text, "\n! {service}: no copy would be active, after {from}"),
        };
    }
    for held in held {
        // As above.
        let _ = write!(text, "\n! {}: {}", held.service, held.why);
    }
    text
}

fn copy_text(copy: &PlacedView) -> String {
    format!("{} on {}", copy.name, copy.node)
}

pub(crate) fn rebalance(context: &Context, args: &RebalanceArgs) -> Result<(), Failure> {
    let client = context.client()?;
    if args.stop {
        let none = Rebalance { replicas: BTreeSet::new() };
        let done: Rebalanced = client.change(Method::POST, "/v1/rebalance", Some(&none))?.json()?;
        return context.done(&done, "✔ nothing more is moved; a copy whose successor runs already still ends");
    }
    let proposed: RebalanceView = client.get(&format!("/v1/rebalance?moves={}", args.moves))?;
    if args.plan || proposed.moves.is_empty() {
        return context.show(&proposed, rebalance_text);
    }
    if !args.yes {
        context.screen.say(&rebalance_text(&proposed));
        service::confirm(context.screen, "Move them, one copy of a service after another? [y/N] ", false)?;
    }
    let wish = Rebalance { replicas: proposed.moves.iter().map(|one| one.id).collect() };
    let done: Rebalanced = client.change(Method::POST, "/v1/rebalance", Some(&wish))?.json()?;
    if args.no_wait {
        return context.done(&done, "✔ they move; `quorate rebalance --plan` tells what is left to move");
    }
    until_balanced(context, &client)?;
    let copies =
        if done.moves == 1 { "1 copy has moved".to_owned() } else { format!("{} copies have moved", done.moves) };
    context.done(&done, &format!("✔ {copies}"))
}

fn until_balanced(context: &Context, client: &Client) -> Result<(), Failure> {
    loop {
        let RebalanceView { under_way, .. } = client.get("/v1/rebalance?moves=1")?;
        if under_way.is_empty() {
            context.screen.progress_over();
            return Ok(());
        }
        if client.remaining() <= LOOK_EVERY * 2 {
            let left = format!("{} still to move after {}", under_way.join(", "), Span(context.timeout));
            return Err(Failure::new(Exit::TimedOut, "not-moved", left).fix(
                "nothing is lost: it goes on by itself\nquorate rebalance --plan   tells what is left to move\n\
                 quorate rebalance --stop   lets the rest stay",
            ));
        }
        context.screen.progress(&format!("{} still to move", under_way.join(", ")));
        std::thread::sleep(LOOK_EVERY);
    }
}

fn rebalance_text(proposed: &RebalanceView) -> String {
    let RebalanceView { moves, under_way, left_out } = proposed;
    let mut text = match moves.len() {
        0 => "every copy that may be moved is where it would be placed now".to_owned(),
        1 => "1 copy would run better elsewhere\n".to_owned(),
        count => format!("{count} copies would run better elsewhere\n"),
    };
    if !moves.is_empty() {
        let rows = moves.iter().map(|one| [&one.name, &one.from, &one.to, &one.why].map(String::clone).to_vec());
        text.push_str(&screen::table(&["REPLICA", "FROM", "TO", "WHY"], &[], rows));
    }
    if !under_way.is_empty() {
        // A String takes all that is written into it.
        let _ = write!(text, "\n! {} still to move; `quorate rebalance --stop` lets them stay", under_way.join(", "));
    }
    for service in left_out {
        // As above.
        let _ = write!(text, "\n! {service} is left out: it is being updated, moved or ended, or is out of reach");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use quorate_api::placement::{HeldView, MoveView, ShiftView, StandbyView};
    use quorate_api::view::MomentView;
    use quorate_model::id::{ReplicaId, ServiceName};
    use quorate_model::resource::Amount;
    use quorate_model::time::WallTime;

    fn fit(node: &str, score: &str) -> FitView {
        FitView { node: node.into(), score: score.into() }
    }

    fn unfit(node: &str, why: &str) -> UnfitView {
        UnfitView { node: node.into(), why: why.into() }
    }

    #[test]
    fn a_label_is_set_or_taken_away() {
        assert_eq!(read_label("zone=a").unwrap(), ("zone".into(), Some("a".into())));
        assert_eq!(read_label("zone=a-").unwrap(), ("zone".into(), Some("a-".into())));
        assert_eq!(read_label("zone-").unwrap(), ("zone".into(), None));
        assert_eq!(read_label("zone").unwrap_err().code, "bad-label");
    }

    #[test]
    fn an_explanation_tells_each_replica_and_each_node() {
        let id = ReplicaId::from_u128(1);
        let running = |name: &str, node: &str, rank| RunningView {
            name: name.into(),
            id,
            node: node.into(),
            rank,
            fit: vec![fit("n2", "no other here, runs 1"), fit("n10", "1 other here, runs 2")],
            unfit: vec![unfit("n3", "is cordoned")],
        };
        let search = |name: &str, from: Option<&str>, to: Option<&str>| SearchView {
            name: name.into(),
            from: from.map(Into::into),
            to: to.map(Into::into),
            fit: to.map(|to| fit(to, "no other here, runs 0")).into_iter().collect(),
            unfit: vec![unfit("n3", "is draining")],
        };
        let explanation = ExplanationView {
            service: ServiceName::new("web").unwrap(),
            mode: Mode::Replicated,
            want: 5,
            roles: None,
            running: vec![
                running("web.0", "n2", Some(1)),
                running("web.1", "n10", Some(2)),
                running("web.2", "n3", None),
            ],
            searches: vec![
                search("web.2", Some("n3"), Some("n4")),
                search("web.3", None, Some("n4")),
                search("web.4", None, None),
            ],
            without: vec![],
            room: None,
            stopped: None,
            next: Some(MomentView { at: WallTime(0), starts: false }),
            held: vec!["no node can take web.4: n3 is draining".into()],
        };
        expect![[r#"
            web wants 5
            it runs until its schedule stops it at 1970-01-01 00:00:00Z

            web.0 runs on n2, where it would be placed now
              n2   no other here, runs 1
              n10  1 other here, runs 2
              n3   is cordoned

            web.1 runs on n10, now number 2 for it after n2; what runs is not moved for that
              n2   no other here, runs 1
              n10  1 other here, runs 2
              n3   is cordoned

            web.2 runs on n3, where it could not be placed now
              n2   no other here, runs 1
              n10  1 other here, runs 2
              n3   is cordoned

            web.2 goes from n3 to n4
              n4  no other here, runs 0
              n3  is draining

            web.3 goes to n4
              n4  no other here, runs 0
              n3  is draining

            web.4 runs nowhere: no node can take it
              n3  is draining

            ! no node can take web.4: n3 is draining"#]]
        .assert_eq(&explanation_text(&explanation));
    }

    #[test]
    fn an_explanation_tells_who_is_active_and_who_would_be_next() {
        let standby = |name: &str, node: &str, unfit: Option<&str>| StandbyView {
            name: name.into(),
            node: node.into(),
            unfit: unfit.map(Into::into),
        };
        let active = ActiveView {
            name: "db.0".into(),
            node: "n1".into(),
            epoch: 3,
            since: WallTime(1_790_000_000_000_000),
            why: "its node is preferred: zone = b".into(),
        };
        let standbys = vec![
            standby("db.2", "n3", None),
            standby("db.1", "n12", None),
            standby("db.3", "n4", Some("it is starting")),
        ];
        let hot = RolesView { active: Some(active), cold: false, standbys };
        expect![[r#"
            db.0 on n1 is active under epoch 3, since 2026-09-21 14:13:20Z: its node is preferred: zone = b
              db.2 on n3   standby, would be promoted next
              db.1 on n12  standby, would follow after that
              db.3 on n4   standby, cannot be promoted: it is starting"#]]
        .assert_eq(&roles_text(&hot));
        let cold = RolesView { active: None, cold: true, standbys: vec![standby("db.1", "n2", None)] };
        expect![[r#"
            no copy is active
              db.1 on n2  standby (cold), would be promoted next"#]]
        .assert_eq(&roles_text(&cold));
    }

    #[test]
    fn n5_a_forecast_names_who_would_be_promoted() {
        let copy = |name: &str, node: &str| Some(PlacedView { name: name.into(), node: node.into() });
        let role = |service: &str, from, to| RoleMoveView { service: ServiceName::new(service).unwrap(), from, to };
        let forecast = ForecastView {
            node: "n1".into(),
            moves: vec![],
            roles: vec![role("db", copy("db.0", "n1"), copy("db.1", "n2")), role("queue", copy("queue.0", "n1"), None)],
            held: vec![],
        };
        expect![[r#"
            if n1 were lost, no replica would move
            ✔ db: db.1 on n2 would be promoted, after db.0 on n1
            ! queue: no copy would be active, after queue.0 on n1"#]]
        .assert_eq(&forecast_text(&forecast));
    }

    #[test]
    fn e2_what_a_service_needs_is_shown_against_what_is_free_with_a_node_lost() {
        let amount = |cpu_millis, mib: u64| Amount { cpu_millis, memory_bytes: mib << 20 };
        let room = |replicas| RoomView {
            each: amount(500, 256),
            replicas,
            free: amount(4000, 8192),
            fit: 8,
            lost: Some("n2".into()),
            free_then: amount(2000, 4096),
            fit_then: 4,
        };
        let fits = "4 × (500m CPU and 256MiB) = 2 CPU and 1GiB; free: 4 CPU and 8GiB, room for 8 copies; with n2 lost: 2 CPU and 4GiB, room for 4 copies";
        assert_eq!(room_text(&room(4)), fits);
        assert!(room_text(&room(5)).ends_with("\n! with n2 lost, 1 copy would find no room"));
        assert!(room_text(&room(10)).ends_with("\n! 2 copies will wait for room"));
        let unknown = RoomView { lost: None, ..room(4) };
        assert!(room_text(&unknown).ends_with("has said what it has room for"));
    }

    #[test]
    fn what_would_move_for_balance_is_a_table_with_reasons() {
        let one = ShiftView {
            id: ReplicaId::from_u128(1),
            service: ServiceName::new("web").unwrap(),
            name: "web.2".into(),
            from: "n1".into(),
            to: "n3".into(),
            why: "1 fewer of its own service run there".into(),
        };
        let proposed = RebalanceView {
            moves: vec![one],
            under_way: vec!["api.0".into()],
            left_out: vec![ServiceName::new("db").unwrap()],
        };
        expect![[r#"
            1 copy would run better elsewhere
            REPLICA  FROM  TO  WHY
            web.2    n1    n3  1 fewer of its own service run there
            ! api.0 still to move; `quorate rebalance --stop` lets them stay
            ! db is left out: it is being updated, moved or ended, or is out of reach"#]]
        .assert_eq(&rebalance_text(&proposed));
        let quiet = RebalanceView { moves: vec![], under_way: vec![], left_out: vec![] };
        expect!["every copy that may be moved is where it would be placed now"].assert_eq(&rebalance_text(&quiet));
    }

    #[test]
    fn n5_a_forecast_is_a_table_of_moves() {
        let one = |name: &str, to: Option<&str>| MoveView {
            name: name.into(),
            from: Some("n1".into()),
            to: to.map(Into::into),
        };
        let service = ServiceName::new("db").unwrap();
        let forecast = ForecastView {
            node: "n1".into(),
            moves: vec![one("db.0", None), one("web.0", Some("n3"))],
            roles: vec![],
            held: vec![HeldView { service, why: "no node can take db.0: n1 is down".into() }],
        };
        expect![[r#"
            if n1 were lost, 2 replicas would move
            REPLICA  FROM  TO
            db.0     n1    -
            web.0    n1    n3
            ! db: no node can take db.0: n1 is down"#]]
        .assert_eq(&forecast_text(&forecast));
        let quiet = ForecastView { moves: vec![], held: vec![], ..forecast };
        expect!["if n1 were lost, no replica would move"].assert_eq(&forecast_text(&quiet));
    }
}
