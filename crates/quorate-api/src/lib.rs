//! The control plane on the wire: the HTTP API, the SQL facade, live streams and the console.
//!
//! This crate knows nothing of the crates that do the work; it asks a [`backend::Backend`].
//!
//! # Invariants
//! - Every failure of a native path is a [`view::Problem`]; its code and status come from one
//!   table, in [`problem`].
//! - A web page of another origin can neither change anything nor read anything; see [`guard`].
//! - Every route declares its operation, and one place decides who may do it; see [`access`].
//! - Nothing queues for a slow reader: a stream sends the newest value or nothing.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod access;
pub mod activation;
mod asked;
pub mod autoscale;
pub mod backend;
pub mod certificates;
mod cluster;
mod console;
mod database;
pub mod drills;
pub mod externals;
pub mod failover;
mod guard;
pub mod ha;
mod health;
pub mod join;
mod json;
mod kuzzle;
mod log;
pub mod managers;
pub mod members;
mod openapi;
pub mod placement;
pub mod problem;
pub mod reconfigure;
mod request;
mod rqlite;
mod secrets;
mod server;
mod stream;
mod switch;
pub mod updates;
pub mod view;
pub mod vips;
mod waiting;

#[cfg(test)]
mod tests;

pub use access::AuthMode;
pub use access::audit::AuditVerdict;
pub use access::login::{Confirmed, LoggedIn, Me};
pub use access::password::{generate_password, hash_password};
pub use access::roles::RoleView;
pub use access::tokens::{SessionView, TokenView};
pub use access::users::UserView;
pub use cluster::{Changed, Difference, Leader, Scale, SpecAction, SpecAnswer, SpecResult, Transfer};
pub use health::Ready;
pub use openapi::document as openapi_document;
pub use secrets::SecretView;
pub use server::{Accept, ApiOptions, Plain, router, serve, serve_unix};
pub use waiting::Limits;
