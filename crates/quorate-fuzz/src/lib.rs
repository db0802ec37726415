//! What must hold for any bytes: a function for each decoder of bytes that this program did not make
//! itself, or made long ago on a disk that may rot.
//!
//! Each takes anything, panics when something that must hold does not, and answers whether the bytes
//! were taken for what they should be. `cargo xtask fuzz` feeds them whatever makes them take another
//! way through the code; the tests of this crate replay what is worth keeping:
//!
//! - `fuzz/corpus/NAME/`: inputs that together reach what fuzzing has reached, small;
//! - `fuzz/regressions/NAME/`: inputs that broke something once.
//!
//! Why a crate of its own, and not only `fuzz/`: the fuzzer needs a nightly compiler, these tests run
//! with the stable one in CI. [`seeds`] makes the first inputs, with the real encoders, so that
//! a decoder that refuses everything is noticed.

mod api;
mod disk;
mod dns;
mod entry;
mod gossip;
mod link;
mod proxy;
pub mod seeds;
mod spec;
mod trust;
mod workload;

pub use api::{http, rqlite, sql};
pub use disk::{log, snapshot};
pub use dns::dns;
pub use entry::entry;
pub use gossip::gossip;
pub use link::link;
pub use proxy::{proxy, routes};
pub use spec::spec;
pub use trust::trust;
pub use workload::agent;

/// What feeds a decoder; `true` when the bytes were taken for what they should be.
pub type Target = fn(&[u8]) -> bool;

/// Every target by name. `fuzz/fuzz_targets/NAME.rs` calls the function of that name.
pub const TARGETS: &[(&str, Target)] = &[
    ("agent", agent),
    ("dns", dns),
    ("entry", entry),
    ("gossip", gossip),
    ("http", http),
    ("link", link),
    ("log", log),
    ("proxy", proxy),
    ("routes", routes),
    ("rqlite", rqlite),
    ("snapshot", snapshot),
    ("spec", spec),
    ("sql", sql),
    ("trust", trust),
];

/// Cuts `data` at its first empty line: what is before it, and the rest.
fn head(data: &[u8]) -> (&[u8], &[u8]) {
    match data.windows(2).position(|two| two == b"\n\n") {
        Some(end) => (&data[..end], &data[end + 2..]),
        None => (data, &[]),
    }
}
