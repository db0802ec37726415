//! A gateway over real sockets, with replicas and managers made here.

mod requests;
mod rig;
mod survival;
