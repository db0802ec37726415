//! The `quorate` binary: the daemon, the command line, and `quorate dev`.
//!
//! It reads as a map: [`cli`] is what people type, [`dev`] is a whole cluster on one machine,
//! [`daemon`] is what a server runs, [`demo`] is a service to look at, [`pacemaker`] is how it answers when
//! resource agents call it by the names of Pacemaker's commands. All real work is in the other crates.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod cli;
mod config;
mod daemon;
mod demo;
mod dev;
mod gossip_keys;
mod keys;
mod lifeline;
mod pacemaker;
mod recover;
mod serve;
mod settings;
mod torture;
mod trust;

fn main() -> std::process::ExitCode {
    #[cfg(feature = "unfenced")]
    quorate_model::planted::plant(Some(quorate_model::planted::Bug::KillTimerOff));
    match pacemaker::Tool::called(std::env::args_os().next().as_deref()) {
        Some(tool) => tool.run(),
        None => cli::main(),
    }
}
