//! Which counters of a stream have been seen.

/// How far behind the newest a counter may come: what a network reorders is a few, and what comes
/// later than that is of no use to gossip.
pub(super) const WIDTH: u64 = 128;

/// The newest counter and, bit by bit, the [`WIDTH`] ones up to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Window {
    newest: u64,
    /// Bit `i` stands for `newest - i`.
    seen: u128,
}

impl Window {
    pub(super) fn would_take(&self, counter: u64) -> bool {
        // Counters begin at 1, so 0 is nobody's.
        match self.newest.checked_sub(counter) {
            _ if counter == 0 => false,
            None => true,
            Some(behind) => behind < WIDTH && self.seen & (1 << behind) == 0,
        }
    }

    /// Notes a counter that was authenticated. Others must not get here: one large counter would
    /// make all that follow look old.
    pub(super) fn take(&mut self, counter: u64) {
        match self.newest.checked_sub(counter) {
            None => {
                let ahead = counter - self.newest;
                self.seen = if ahead < WIDTH { self.seen << ahead } else { 0 } | 1;
                self.newest = counter;
            }
            Some(behind) if behind < WIDTH => self.seen |= 1 << behind,
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_counter_is_taken_once_in_whatever_order_they_come() {
        let mut window = Window::default();
        let mut taken = BTreeSet::new();
        // A fixed shuffle that goes forward, back within the window, and far back.
        let mut at: u64 = 1;
        for step in 0..5_000_u64 {
            at = match step % 7 {
                0 | 1 => at + step % 90,
                2 => at.saturating_sub(step % 200),
                _ => at + 1,
            };
            let newest = taken.last().copied().unwrap_or(0);
            let fresh = at > 0 && !taken.contains(&at) && newest < at + WIDTH;
            assert_eq!(window.would_take(at), fresh, "{at} with {newest} as the newest");
            if fresh {
                window.take(at);
                taken.insert(at);
            }
        }
    }

    #[test]
    fn a_jump_over_the_whole_window_forgets_what_was_before() {
        let mut window = Window::default();
        window.take(1);
        window.take(1 + WIDTH);
        assert!(!window.would_take(1));
        assert!(window.would_take(2));
        assert!(!window.would_take(1 + WIDTH));
        window.take(u64::MAX);
        assert!(!window.would_take(u64::MAX));
        assert!(window.would_take(u64::MAX - 1));
    }
}
