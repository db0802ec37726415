//! A gateway over real sockets, with replicas and managers made here.

mod requests;
pub(crate) mod rig;
mod survival;
