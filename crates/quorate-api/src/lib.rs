//! The control plane on the wire: the HTTP API, the SQL facade, live streams and the console.
//!
//! This crate knows nothing of the crates that do the work; it asks a [`backend::Backend`].
pub mod backend;
pub mod view;
