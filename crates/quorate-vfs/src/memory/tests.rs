//! The simulated machine against a real one, and its promises about crashes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod database;
mod files;
