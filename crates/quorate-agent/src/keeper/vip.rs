//! The driver `vip`: a service that is nothing but an address.
//!
//! The address is its shim's business, as with any service that has one: it is up before this keeper is started,
//! and down after it has ended. So there is nothing to start and nothing to look at.

use super::desk::Desk;
use super::{Backend, Look, Trouble};
use quorate_model::observed::Fencing;
use std::os::fd::BorrowedFd;
use std::time::Duration;

pub(crate) struct Vip;

impl Backend for Vip {
    /// The kernel takes the address away in time.
    fn fencing(&self) -> Fencing {
        Fencing::PidNamespace
    }

    fn start(&mut self, _: &mut Desk) -> Result<(), Trouble> {
        Ok(())
    }

    fn look(&mut self, _: &mut Desk) -> Look {
        Look::Up
    }

    fn stop(&mut self, _: &mut Desk) -> Result<(), Trouble> {
        Ok(())
    }

    /// There is one of it, so there is nothing to be.
    fn promote(&mut self, _: &mut Desk) -> Result<(), Trouble> {
        Ok(())
    }

    fn demote(&mut self, _: &mut Desk) -> Result<(), Trouble> {
        Ok(())
    }

    fn clean_up(&mut self, _: &mut Desk) -> Result<(), Trouble> {
        Ok(())
    }

    fn news(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn every(&self) -> Option<Duration> {
        None
    }

    fn fail_after(&self) -> u32 {
        1
    }
}
