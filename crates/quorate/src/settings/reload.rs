//! What a change of the file means for a server that runs: some settings are in force at once, others
//! need a restart, and a file with a mistake changes nothing.

use super::Settings;
use super::keys::{Applies, KEYS};
use super::value::Value;
use std::fmt;

/// A setting with another value than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub path: &'static str,
    pub applies: Applies,
    /// `None`: not set.
    pub from: Option<Value>,
    pub to: Option<Value>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Option<Value>| value.as_ref().map_or_else(|| "not set".to_owned(), ToString::to_string);
        write!(f, "{} {} → {}", self.path, show(&self.from), show(&self.to))
    }
}

/// Every setting that differs, in the order of the table.
pub(crate) fn changes(from: &Settings, to: &Settings) -> Vec<Change> {
    KEYS.iter()
        .map(|key| Change { path: key.path, applies: key.applies, from: key.get(from), to: key.get(to) })
        .filter(|change| change.from != change.to)
        .collect()
}

/// What is in force after `wanted` was read while `current` was: the live settings of the one, all
/// others of the other.
pub(crate) fn in_force(current: &Settings, wanted: &Settings) -> Settings {
    let mut settings = current.clone();
    // Field by field, so that what is live is decided in the table alone; see the test.
    settings.cluster.minimum_nodes = wanted.cluster.minimum_nodes;
    settings.console = wanted.console.clone();
    settings.log.level = wanted.log.level.clone();
    settings
}

#[cfg(test)]
mod tests {
    use super::super::keys;
    use super::*;

    /// Another good value of every setting.
    fn other() -> Settings {
        let mut settings = Settings::default();
        for (path, text) in [
            ("node.name", "n9"),
            ("node.alias", "nine"),
            ("node.roles", "gateway"),
            ("node.data_dir", "/data"),
            ("node.listen", "127.0.0.1:7100"),
            ("node.advertise", "_site_"),
            ("node.link", "eth0:7101"),
            ("cluster.seed", "a:1,b:2"),
            ("cluster.token_file", "/token"),
            ("cluster.minimum_nodes", "3"),
            ("cluster.timers.heartbeat", "5s"),
            ("cluster.timers.discover", "4s"),
            ("cluster.timers.join_attempt", "3s"),
            ("cluster.timers.retry_join", "2"),
            ("ha.enabled", "true"),
            ("ha.failover_time", "10s"),
            ("console.redirect", "balancer"),
            ("console.balancer_url", "https://lb.example.com"),
            ("dns.listen", "127.0.0.1:53"),
            ("log.level", "debug"),
            ("log.format", "json"),
            ("log.keep_mib", "4"),
        ] {
            let key = keys::find(path).unwrap();
            key.set(&mut settings, key.kind.read(text).unwrap()).unwrap();
        }
        settings
    }

    #[test]
    fn exactly_what_the_table_calls_live_is_in_force_without_a_restart() {
        let (before, wanted) = (Settings::default(), other());
        assert_eq!(changes(&before, &wanted).len(), KEYS.len(), "every key has another value in this test");
        let after = in_force(&before, &wanted);
        for key in KEYS {
            let expected = if key.applies == Applies::Live { &wanted } else { &before };
            assert_eq!(key.get(&after), key.get(expected), "{}", key.path);
        }
    }

    #[test]
    fn a_change_says_what_was_and_what_will_be() {
        let lines: Vec<String> = changes(&Settings::default(), &other()).iter().map(ToString::to_string).collect();
        assert_eq!(lines[0], "node.name not set → \"n9\"");
        assert!(lines.contains(&"cluster.minimum_nodes 1 → 3".to_owned()), "{lines:?}");
        assert_eq!(changes(&other(), &other()), []);
    }
}
