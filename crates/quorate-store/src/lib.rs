//! (skeleton)
pub mod disk;
pub mod log;
