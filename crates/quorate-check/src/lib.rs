//! Checkers of histories: did the cluster keep its word to its clients?
//!
//! A history is what clients asked, when, and what they were told. The checkers know nothing of how
//! the answers came about, so the simulator and `quorate torture` use the same ones.

pub mod history;
