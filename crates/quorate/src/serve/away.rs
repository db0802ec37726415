//! Whether this node is away for a drill: the one switch that its links, gossip and API look at.
//!
//! A node that is away is silent like one whose cable was pulled: nothing is said on connections, which stay
//! open, and what comes in on them is thrown away; nobody is dialled and nobody who dials is answered. So the
//! others find out as they find out about a lost server, by silence, and not by connections that are closed.
//! Afterwards every connection is ended and made anew, as they are after a cable was out for longer.
//!
//! # Invariants
//! - Being away ends by this process' monotonic clock alone: nothing is to be done, to be heard or to be alive
//!   for it. A process that starts is not away.
//! - It is never longer than [`AWAY_MAX`], whoever asks.

use quorate_model::drill::AWAY_MAX;
use std::future::pending;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Clones are the same switch.
#[derive(Debug, Clone)]
pub(super) struct Away(Arc<Switch>);

#[derive(Debug)]
struct Switch {
    /// From when until when; what is over stays there.
    span: Mutex<Option<(Instant, Instant)>>,
    /// Counts how often somebody wanted this node to go away or to come back.
    asked: watch::Sender<u64>,
}

impl Default for Away {
    fn default() -> Away {
        Away(Arc::new(Switch { span: Mutex::default(), asked: watch::Sender::new(0) }))
    }
}

impl Away {
    /// From so long after now, this node is away for so long.
    pub(super) fn go(&self, after: Duration, away: Duration) {
        let from = Instant::now() + after.min(AWAY_MAX.0);
        *self.0.span.lock().unwrap_or_else(PoisonError::into_inner) = Some((from, from + away.min(AWAY_MAX.0)));
        self.0.asked.send_modify(|times| *times += 1);
    }

    fn span(&self) -> Option<(Instant, Instant)> {
        *self.0.span.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For how long still; `None`: this node is not away.
    pub(super) fn left(&self) -> Option<Duration> {
        let (from, until) = self.span()?;
        let now = Instant::now();
        (from <= now && now < until).then(|| until - now)
    }

    pub(super) fn is_now(&self) -> bool {
        self.left().is_some()
    }

    /// # Errors
    /// While this node is away, what a lost server's network says of the others.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.is_now() { Err(away()) } else { Ok(()) }
    }

    /// Returns once this node is away.
    pub(super) async fn begins(&self) {
        let mut asked = self.0.asked.subscribe();
        loop {
            asked.borrow_and_update();
            let now = Instant::now();
            let begins = self.span().filter(|(_, until)| now < *until).map(|(from, _)| from);
            match begins {
                Some(from) if from <= now => return,
                Some(from) => tokio::select! {
                    () = tokio::time::sleep_until(from.into()) => {}
                    _ = asked.changed() => {}
                },
                None => {
                    if asked.changed().await.is_err() {
                        return pending().await;
                    }
                }
            }
        }
    }

    /// Returns once this node is not away.
    pub(super) async fn over(&self) {
        while let Some(left) = self.left() {
            tokio::time::sleep(left).await;
        }
    }

    /// Returns when this node has been away and is back.
    pub(super) async fn comes_back(&self) {
        self.begins().await;
        self.over().await;
    }
}

/// What whoever waits for the others is told.
pub(super) fn away() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "this node is away for a drill")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[tokio::test]
    async fn a_node_that_was_never_sent_away_is_there() {
        let switch = Away::default();
        assert!(!switch.is_now() && switch.check().is_ok());
        switch.over().await;
    }

    #[tokio::test]
    async fn n4_being_away_begins_and_ends_by_the_clock_alone() {
        let switch = Away::default();
        let (begins, comes_back) = (switch.clone(), switch.clone());
        let begins = tokio::spawn(async move { begins.begins().await });
        let comes_back = tokio::spawn(async move { comes_back.comes_back().await });
        let began = Instant::now();
        switch.go(Duration::from_millis(50), Duration::from_millis(100));
        assert!(!switch.is_now(), "not yet");
        begins.await.unwrap();
        assert!(began.elapsed() >= Duration::from_millis(50));
        comes_back.await.unwrap();
        assert!(!switch.is_now() && began.elapsed() >= Duration::from_millis(150));
        switch.go(Duration::ZERO, Duration::from_secs(100_000));
        assert!(switch.left().unwrap() <= AWAY_MAX.0, "whoever asks");
    }
}
