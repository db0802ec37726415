//! `quorate events`: what happened, oldest first.

use crate::cli::Context;
use crate::cli::client::Client;
use crate::cli::failure::{Exit, Failure};
use crate::cli::screen;
use clap::Args;
use quorate_api::view::EventView;
use std::time::{Duration, Instant};

/// How often a follower asks. People do not notice it, and a node answers from memory.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Go on with what happens from now on
    #[arg(short, long)]
    follow: bool,
}

pub(crate) fn run(context: &Context, args: &EventsArgs) -> Result<(), Failure> {
    let target = context.choice.find()?;
    let mut events = after(&context.client_for(&target), 0)?;
    if !args.follow {
        if context.screen.is_json() {
            context.screen.json(&events);
        } else {
            events.iter().for_each(|event| context.screen.data(&line(event)));
        }
        return Ok(());
    }
    let mut last = 0;
    let mut heard = Instant::now();
    loop {
        for event in &events {
            last = last.max(event.index.0);
            if context.screen.is_json() {
                context.screen.json(event);
            } else {
                context.screen.data(&line(event));
            }
        }
        std::thread::sleep(PAUSE);
        // A new client each time: following has no end, one question has.
        events = match after(&context.client_for(&target), last) {
            Ok(events) => {
                heard = Instant::now();
                events
            }
            Err(failure) if failure.exit == Exit::Unreachable && heard.elapsed() < context.timeout => Vec::new(),
            Err(failure) => return Err(failure),
        };
    }
}

/// Events whose entry is later than `index`, oldest first.
pub(crate) fn after(client: &Client, index: u64) -> Result<Vec<EventView>, Failure> {
    let mut events: Vec<EventView> = client.get(&format!("/v1/events?after={index}"))?;
    events.retain(|event| event.index.0 > index);
    // They come newest first; those of one entry keep their order.
    events.reverse();
    events.sort_by_key(|event| event.index);
    Ok(events)
}

fn line(event: &EventView) -> String {
    format!("{}  {} {}", screen::moment(event.at, true), symbol(&event.kind), event.text)
}

/// How an event of this kind looks: good, bad, or just news.
fn symbol(kind: &str) -> char {
    match kind {
        "node-joined" | "node-returned" | "service-healthy" => '✔',
        "node-down" | "diverged" => '✕',
        "service-degraded" => '!',
        _ => '○',
    }
}
