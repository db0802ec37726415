//! `quorate stop` and `quorate start`: services that keep what they are to be while none of them runs.

use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::screen::{moment, took};
use crate::cli::service::{self, Follow};
use clap::Args;
use quorate_api::view::{MomentView, ServiceView, StoppedView};
use serde::Serialize;
use std::time::{Duration, Instant};
use ureq::http::Method;

/// How often it is looked whether nothing is left. It bounds the error of the printed time.
const LOOK_EVERY: Duration = Duration::from_millis(25);

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Name of the service, or `all`
    name: String,
    /// Do not ask; only `all` does
    #[arg(long)]
    yes: bool,
    /// Do not wait until the copies have ended
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Name of the service, or `all`
    name: String,
    /// Do not wait until the copies are healthy
    #[arg(long)]
    no_wait: bool,
}

/// What became of one service, for `-o json`.
#[derive(Debug, Serialize)]
struct Ended {
    name: String,
    stopped: StoppedView,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<MomentView>,
    took_ms: u64,
}

pub(crate) fn stop(context: &Context, args: &StopArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let services = service::named(&client, &args.name)?;
    if args.name == "all" && !args.yes {
        service::confirm(context.screen, &format!("Stop all {} services? [y/N] ", services.len()), false)?;
    }
    let started = Instant::now();
    for service in &services {
        client.change(Method::POST, &format!("/v1/services/{}/stop", service.name), None::<&()>)?;
    }
    let mut ended = Vec::new();
    for service in &services {
        let name = service.name.as_str();
        if args.no_wait {
            context.screen.say(&format!("{name} stops"));
            continue;
        }
        let view = until_nothing_is_left(context, name)?;
        let Some(stopped) = view.stopped.clone() else { continue };
        let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        if !context.screen.is_json() {
            let line = line(name, view.stopped.as_ref(), view.next.as_ref()).unwrap_or_default();
            context.screen.data(&format!("✔ {name} {line}   {}", took(started.elapsed())));
        }
        ended.push(Ended { name: name.to_owned(), stopped, next: view.next, took_ms });
    }
    if context.screen.is_json() {
        context.screen.json(&ended);
    }
    Ok(())
}

/// Waits until a service is stopped and no copy of it is left, or somebody has started it again.
fn until_nothing_is_left(context: &Context, name: &str) -> Result<ServiceView, Failure> {
    let client = context.client()?;
    let mut seen = false;
    loop {
        let view = service::show(&client, name)?;
        // What is shown may be a moment behind what was done.
        seen |= view.stopped.is_some();
        if seen && (view.stopped.is_none() || view.replicas.is_empty()) {
            context.screen.progress_over();
            return Ok(view);
        }
        let left: Vec<String> = view
            .replicas
            .iter()
            .map(|replica| format!("{name}.{} on {} {}", replica.ordinal, replica.node, replica.state))
            .collect();
        if client.remaining() <= LOOK_EVERY {
            return Err(Failure::new(
                Exit::TimedOut,
                "timed-out",
                format!("{name} is stopped, and not all of it has ended"),
            )
            .why(left.join("\n"))
            .fix(format!("quorate service show {name}\nor wait longer: --timeout 2m")));
        }
        context.screen.progress(&format!("{name} stops   {}", left.join("   ")));
        std::thread::sleep(LOOK_EVERY);
    }
}

pub(crate) fn start(context: &Context, args: &StartArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let services = service::named(&client, &args.name)?;
    let started = Instant::now();
    for service in &services {
        client.change(Method::POST, &format!("/v1/services/{}/start", service.name), None::<&()>)?;
    }
    let title = |service: &ServiceView| (format!("{} starts", service.name), Follow::Nothing);
    let accepted = |_: &ServiceView, view: &ServiceView| view.stopped.is_none();
    service::follow(context, &client, &services, started, args.no_wait, title, accepted)
}

/// Why a service does not run, and when its schedule changes that. `None`: it runs, and goes on.
pub(crate) fn line(name: &str, stopped: Option<&StoppedView>, next: Option<&MomentView>) -> Option<String> {
    let at = |next: &MomentView| moment(next.at, false);
    let Some(StoppedView { since, by_schedule, by }) = stopped else {
        return next.map(|next| format!("runs until its schedule stops it at {}", at(next)));
    };
    let who = match (by_schedule, by) {
        (true, _) => "its schedule".to_owned(),
        (false, Some(by)) => by.clone(),
        (false, None) => "hand".to_owned(),
    };
    let until = match next {
        Some(next) => format!("its schedule starts it at {}, or now: quorate start {name}", at(next)),
        None => format!("it starts by: quorate start {name}"),
    };
    Some(format!("was stopped by {who} at {}; {until}", moment(*since, false)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use quorate_model::time::WallTime;

    #[test]
    fn k12_it_is_said_who_stopped_a_service_and_what_its_schedule_does_next() {
        let noon = WallTime(12 * 3_600_000_000);
        let check = |stopped: Option<(bool, Option<&str>)>, next: Option<bool>, expected: Expect| {
            let stopped = stopped.map(|(by_schedule, by)| StoppedView {
                since: WallTime(0),
                by_schedule,
                by: by.map(ToOwned::to_owned),
            });
            let next = next.map(|starts| MomentView { at: noon, starts });
            expected.assert_eq(&line("web", stopped.as_ref(), next.as_ref()).unwrap_or_default());
        };
        check(None, None, expect![""]);
        check(None, Some(false), expect!["runs until its schedule stops it at 1970-01-01 12:00:00Z"]);
        check(
            Some((false, Some("anna"))),
            None,
            expect!["was stopped by anna at 1970-01-01 00:00:00Z; it starts by: quorate start web"],
        );
        check(
            Some((true, None)),
            Some(true),
            expect![
                "was stopped by its schedule at 1970-01-01 00:00:00Z; its schedule starts it at 1970-01-01 12:00:00Z, or now: quorate start web"
            ],
        );
        check(
            Some((false, None)),
            None,
            expect!["was stopped by hand at 1970-01-01 00:00:00Z; it starts by: quorate start web"],
        );
    }
}
