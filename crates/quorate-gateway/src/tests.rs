//! A gateway over real sockets, with replicas and managers made here.

mod counting;
mod requests;
pub(crate) mod rig;
mod survival;
