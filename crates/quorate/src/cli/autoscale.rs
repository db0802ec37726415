//! `quorate autoscale …`: how many copies follow what they have to do.

use crate::cli::Context;
use crate::cli::failure::Failure;
use crate::cli::screen::{self, moment};
use crate::cli::service;
use clap::{Args, Subcommand};
use quorate_api::Changed;
use quorate_api::autoscale::{AutoscaleChange, AutoscaleView, FoundView, ReadingView, TrafficView};
use quorate_model::resource::{CpuMillis, MemoryBytes};
use quorate_model::spec::Share;
use quorate_model::time::Span;
use std::fmt::Write as _;
use ureq::http::Method;

#[derive(Debug, Subcommand)]
pub(crate) enum AutoscaleCommand {
    /// Let the number of a service's copies follow what they have to do
    #[command(
        after_help = "Examples:\n  quorate autoscale on web --min 2 --max 8 --cpu 70%\n  quorate autoscale on web --max 12\n  quorate autoscale on web --rps 100\n  quorate autoscale on web"
    )]
    On(OnArgs),
    /// Leave the number of copies as it is; what it went by is kept
    #[command(after_help = "Examples:\n  quorate autoscale off web")]
    Off {
        /// Name of the service
        name: String,
    },
    /// Why a service has as many copies as it has: what was measured, and what keeps them from being more or fewer
    #[command(after_help = "Examples:\n  quorate autoscale explain web\n  quorate autoscale explain web -o json")]
    Explain {
        /// Name of the service
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct OnArgs {
    /// Name of the service
    name: String,
    /// Never fewer copies; needed the first time
    #[arg(long, value_name = "N")]
    min: Option<u32>,
    /// Never more copies; needed the first time
    #[arg(long, value_name = "N")]
    max: Option<u32>,
    /// How much of `resources.cpu` copies are to use, like 70%
    #[arg(long, value_name = "SHARE")]
    cpu: Option<Share>,
    /// How much of `resources.memory` copies are to use
    #[arg(long, value_name = "SHARE")]
    memory: Option<Share>,
    /// How many requests a second a copy is to have, as gateways count them
    #[arg(long, value_name = "N")]
    rps: Option<u32>,
    /// How long 95 of 100 requests may take at most, like 250ms
    #[arg(long, value_name = "SPAN")]
    p95: Option<Span>,
    /// How often it is looked whether the number is right
    #[arg(long, value_name = "SPAN")]
    every: Option<Span>,
    /// For how long a copy that has just become healthy does not count
    #[arg(long, value_name = "SPAN")]
    warmup: Option<Span>,
    /// No fewer copies than were needed within this
    #[arg(long, value_name = "SPAN")]
    down_after: Option<Span>,
}

pub(crate) fn run(context: &Context, command: AutoscaleCommand) -> Result<(), Failure> {
    match command {
        AutoscaleCommand::On(args) => {
            let OnArgs { name, min, max, cpu, memory, rps, p95, every, warmup, down_after } = args;
            let enabled = Some(true);
            let change = AutoscaleChange { enabled, min, max, cpu, memory, rps, p95, every, warmup, down_after };
            set(context, &name, &change)
        }
        AutoscaleCommand::Off { name } => {
            set(context, &name, &AutoscaleChange { enabled: Some(false), ..AutoscaleChange::default() })
        }
        AutoscaleCommand::Explain { name } => explain(context, &name),
    }
}

fn set(context: &Context, name: &str, change: &AutoscaleChange) -> Result<(), Failure> {
    let client = context.client()?;
    // Its own words for a name that is not known.
    let name = service::show(&client, name)?.name;
    let changed: Changed =
        client.change(Method::PUT, &format!("/v1/services/{name}/autoscale"), Some(change))?.json()?;
    let view: AutoscaleView = client.get(&format!("/v1/services/{name}/autoscale"))?;
    let number = changed.replicas.unwrap_or(view.want);
    let text = match (&view.table, view.on) {
        (Some(table), true) => format!("✔ {name} is autoscaled, {} to {} copies; now {number}", table.min, table.max),
        (Some(_) | None, _) => {
            let copies = copies(number);
            format!("✔ {name} is not autoscaled; it has {copies} until somebody scales it")
        }
    };
    context.done(&view, &text)
}

fn explain(context: &Context, name: &str) -> Result<(), Failure> {
    let client = context.client()?;
    let name = service::show(&client, name)?.name;
    let view: AutoscaleView = client.get(&format!("/v1/services/{name}/autoscale"))?;
    context.show(&view, explanation)
}

fn explanation(view: &AutoscaleView) -> String {
    let AutoscaleView { service, want, found, .. } = view;
    let Some(found) = found else {
        let on = match view.table {
            Some(_) => format!("quorate autoscale on {service}"),
            None => format!("quorate autoscale on {service} --min N --max N --cpu 70%"),
        };
        return format!("{service} is not autoscaled: {}, as somebody said\nswitch it on: {on}", copies(*want));
    };
    let FoundView { min, max, hours, load, readings, traffic, right, to, why, looked, changes } = found;
    let mut text = format!("{service} is autoscaled: {}, {min} to {max} allowed", copies(*want));
    if let Some(hours) = hours {
        let _ = write!(text, " ({hours})");
    }
    if let Some(load) = load {
        let _ = write!(text, ", load {load}");
    }
    if !readings.is_empty() {
        let header = ["METRIC", "EACH HAS", "TARGET", "OF TARGET", "MEASURED", "RIGHT"];
        text.push('\n');
        text.push_str(&screen::table(&header, &[1, 2, 3, 4, 5], readings.iter().map(row)));
    }
    if let Some(traffic) = traffic {
        let _ = write!(text, "\n{}", told(traffic));
    }
    if let (Some(right), Some(to)) = (right, to) {
        let ago = looked.map_or_else(String::new, |ago| format!(", looked at {ago} ago"));
        let _ = write!(text, "\n{} would be right", copies(*right));
        if to != right {
            let _ = write!(text, "; {to} for now");
        }
        text.push_str(&ago);
    } else {
        let every =
            view.table.as_ref().map_or_else(String::new, |table| format!("; it is looked every {}", table.every));
        let _ = write!(text, "\nnothing is found yet{every}");
    }
    for line in why {
        let _ = write!(text, "\n- {line}");
    }
    for change in changes {
        let _ = write!(text, "\n{}  {} → {}: {}", moment(change.at, false), change.from, change.to, change.why);
    }
    text
}

/// What gateways told, in one line.
fn told(traffic: &TrafficView) -> String {
    let TrafficView { gateways, silent, millirequests, waiting, p95_us } = traffic;
    let from = match (*gateways, *silent) {
        (0, _) => return "no gateway has told of requests".to_owned(),
        (1, 0) => "1 gateway".to_owned(),
        (gateways, 0) => format!("{gateways} gateways"),
        (gateways, silent) => format!("{} of {gateways} gateways", gateways - silent),
    };
    let (rate, slowest) = (a_second(*millirequests), taking(*p95_us));
    format!("{from} had {rate}, 95 of 100 answered within {slowest}, {waiting} waiting")
}

fn a_second(millirequests: u64) -> String {
    format!("{}.{}/s", millirequests / 1000, millirequests % 1000 / 100)
}

fn taking(us: u64) -> String {
    if us < 10_000 { format!("{}.{}ms", us / 1000, us % 1000 / 100) } else { format!("{}ms", us / 1000) }
}

fn copies(count: u32) -> String {
    if count == 1 { "1 copy".to_owned() } else { format!("{count} copies") }
}

fn row(reading: &ReadingView) -> Vec<String> {
    let ReadingView { metric, mean, target, percent, copies, right } = reading;
    let amount = |amount: u64| match metric.as_str() {
        "cpu" => CpuMillis(amount).to_string(),
        "memory" => MemoryBytes(amount).to_string(),
        "rps" => a_second(amount),
        "p95" => taking(amount),
        "scrape" | "sql" => format!("{}.{}", amount / 1000, amount % 1000 / 100),
        _ => amount.to_string(),
    };
    let numbers = [amount(*mean), amount(*target), format!("{percent}%"), copies.to_string(), right.to_string()];
    std::iter::once(metric.clone()).chain(numbers).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use quorate_api::autoscale::AutoscaledView;
    use quorate_model::id::ServiceName;
    use quorate_model::spec::Autoscale;
    use quorate_model::time::WallTime;

    fn view() -> AutoscaleView {
        let reading = |metric: &str, mean, target, right| ReadingView {
            metric: metric.into(),
            mean,
            target,
            percent: mean * 100 / target,
            copies: 4,
            right,
        };
        AutoscaleView {
            service: ServiceName::new("web").unwrap(),
            on: true,
            want: 4,
            table: None,
            found: Some(FoundView {
                min: 2,
                max: 8,
                hours: None,
                load: Some("high".into()),
                readings: vec![
                    reading("cpu", 480, 350, 6),
                    reading("memory", 100 << 20, 200 << 20, 4),
                    reading("rps", 12_340, 20_000, 3),
                    reading("p95", 130_000, 250_000, 4),
                    reading("sql", 7_500, 10_000, 3),
                ],
                traffic: Some(TrafficView {
                    gateways: 3,
                    silent: 1,
                    millirequests: 49_360,
                    waiting: 2,
                    p95_us: 130_000,
                }),
                right: Some(6),
                to: Some(5),
                why: vec!["1 copy more would find no node with room".into()],
                looked: Some(Span::from_secs(3)),
                changes: vec![AutoscaledView {
                    at: WallTime(0),
                    from: 2,
                    to: 4,
                    why: "cpu is at 200% of its target".into(),
                }],
            }),
        }
    }

    fn table() -> Autoscale {
        serde_json::from_str(r#"{ "min": 2, "max": 8 }"#).unwrap()
    }

    /// One copy of a service whose query is wrong.
    fn alone(found: FoundView) -> FoundView {
        FoundView {
            min: 1,
            hours: None,
            right: Some(1),
            to: Some(1),
            why: vec!["the query of sql gives no number: no such table: jobs".into()],
            looked: Some(Span::from_secs(3)),
            ..found
        }
    }

    #[test]
    fn e3_an_explanation_tells_what_was_measured_and_what_keeps_the_number() {
        expect![[r#"
            web is autoscaled: 4 copies, 2 to 8 allowed, load high
            METRIC  EACH HAS  TARGET  OF TARGET  MEASURED  RIGHT
            cpu         480m    350m       137%         4      6
            memory    100MiB  200MiB        50%         4      4
            rps       12.3/s  20.0/s        61%         4      3
            p95        130ms   250ms        52%         4      4
            sql          7.5    10.0        75%         4      3
            2 of 3 gateways had 49.3/s, 95 of 100 answered within 130ms, 2 waiting
            6 copies would be right; 5 for now, looked at 3s ago
            - 1 copy more would find no node with room
            1970-01-01 00:00:00Z  2 → 4: cpu is at 200% of its target"#]]
        .assert_eq(&explanation(&view()));
        let unseen = FoundView {
            hours: Some("mon-fri 07:00-19:00 UTC".into()),
            load: None,
            readings: vec![],
            traffic: None,
            right: None,
            to: None,
            why: vec![],
            looked: None,
            changes: vec![],
            ..view().found.unwrap()
        };
        expect![[r#"
            web is autoscaled: 4 copies, 2 to 8 allowed (mon-fri 07:00-19:00 UTC)
            nothing is found yet; it is looked every 15s"#]]
        .assert_eq(&explanation(&AutoscaleView { found: Some(unseen.clone()), table: Some(table()), ..view() }));
        expect![[r#"
            web is autoscaled: 1 copy, 1 to 8 allowed
            1 copy would be right, looked at 3s ago
            - the query of sql gives no number: no such table: jobs"#]]
        .assert_eq(&explanation(&AutoscaleView { want: 1, found: Some(alone(unseen)), ..view() }));
        expect![[r#"
            web is not autoscaled: 4 copies, as somebody said
            switch it on: quorate autoscale on web --min N --max N --cpu 70%"#]]
        .assert_eq(&explanation(&AutoscaleView { found: None, on: false, ..view() }));
    }
}
