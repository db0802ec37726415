//! One member of a Quorate cluster as a state machine: events in, effects out.
//!
//! [`Node`] composes consensus, membership and the scheduler. It has no clock, no threads, no
//! sockets and no files: the server's shell and the simulator both feed it [`Event`]s and carry
//! out its [`Effect`]s. Start reading at [`Node::step`].
//!
//! # Invariants
//! - Equal events at equal times, with an equal seed, give equal effects.
//! - Nothing here waits for one peer, and every collection has a bound.
//! - Only the leader proposes what concerns others; what it proposes is checked again when it is
//!   applied, so a deposed leader does no harm.

mod address_book;
mod censor;
mod clocks;
pub mod configuration;
pub mod consensus;
mod digests;
pub mod electorate;
pub mod event;
mod leading;
mod leases;
mod node;
mod outcast;
mod reads;
pub mod recovery;
mod requests;
mod sight;
pub mod succession;
pub mod wire;

pub use configuration::Configuration;
pub use event::{AppliedEntry, Effect, Event, Held, Now, Refused, Ticket, TransferFailed, Unfit};
pub use node::{Node, NodeOptions, PeerView, REPLACE_VOTER_AFTER, StartError};
pub use sight::Sight;
