//! `quorate torture`: a real cluster under real faults, and a verdict.
#![allow(dead_code, unused_imports, reason = "the command that drives the rig is a part of its own")]

pub(crate) mod fault;
pub(crate) mod rig;
