//! `quorate service activate`: another copy of an active-passive service takes over.

use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::screen::took;
use crate::cli::service;
use clap::Args;
use quorate_api::activation::{Activate, Activated};
use quorate_api::view::ServiceView;
use std::time::{Duration, Instant};
use ureq::http::Method;

/// How often it is looked whether it is done. It bounds the error of the printed time.
const LOOK_EVERY: Duration = Duration::from_millis(25);

#[derive(Debug, Args)]
pub(crate) struct ActivateArgs {
    /// Name of the service
    name: String,
    /// The node whose copy takes over; left out: the best standby
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// Do not wait until it has
    #[arg(long)]
    no_wait: bool,
}

pub(crate) fn activate(context: &Context, args: &ActivateArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let started = Instant::now();
    let before = service::show(&client, &args.name)?;
    let wanted = Activate { node: args.to.clone() };
    let path = format!("/v1/services/{}/activate", before.name);
    let asked: Activated = client.change(Method::POST, &path, Some(&wanted))?.json()?;
    if args.no_wait {
        return context.show(&asked, |asked| format!("{} gets another active copy", asked.service));
    }
    let from = active_on(&before);
    loop {
        let view = service::show(&client, &args.name)?;
        let now = active_on(&view);
        let is_done = match &asked.node {
            Some(node) => now.as_ref() == Some(node),
            None => now.is_some() && now != from,
        };
        if let Some(node) = now.filter(|_| is_done) {
            context.screen.progress_over();
            let line = format!("{} is active on {node}   {}", view.name, took(started.elapsed()));
            return context.show(&view, |_| line);
        }
        if client.remaining() <= LOOK_EVERY {
            let why = if view.held.is_empty() { "it goes on by itself".to_owned() } else { view.held.join("\n") };
            return Err(Failure::new(Exit::TimedOut, "timed-out", format!("{} has not changed over yet", view.name))
                .why(why)
                .fix(format!("quorate service show {}\nor wait longer: --timeout 2m", view.name)));
        }
        context.screen.progress(&format!("{} changes over", view.name));
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The node on which the active copy is.
fn active_on(view: &ServiceView) -> Option<String> {
    let active = view.replicas.iter().find(|replica| replica.role.as_deref() == Some("active"));
    active.map(|replica| replica.node.clone())
}
