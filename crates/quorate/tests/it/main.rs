//! The binary as its users run it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod access;
mod bad_input;
mod certificates;
mod cli;
mod cluster;
mod determinism;
mod dev;
mod durability;
mod examples;
mod fake;
mod founded;
mod gateway;
mod gossiping;
mod growing;
mod ha;
mod lan;
mod leftovers;
mod load;
mod managers;
mod members;
mod races;
mod secrets;
mod seeds;
mod services;
mod settings;
mod show;
mod storage;
mod tls;
mod torture;
mod trusting;
mod typed;
