//! Takes over the configuration of a Kuzzle cluster (`.kuzzlerc`, or the part of it in a document).
//!
//! Only the cluster plugin's section has counterparts here. Everything else of the file is named
//! with what replaces it, so that nobody wonders where it went. Values that the file does not give
//! are Quorate's defaults: the plugin's own merge was shallow, and a file with one timer lost all
//! the others.
//!
//! # Sources
//! The plugin's README, and its defaults in `lib/index.js` (4.0).

mod loose;

use super::edit::{self, Edit};
use super::mistake::{Mistake, Mistakes, Place};
use super::read;
use super::value::Value;
use quorate_model::time::Span;
use serde_json::{Map, Value as Json};
use std::path::Path;

/// What a file becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Import {
    /// Settings, each with the key it was made from.
    pub settings: Vec<(&'static str, Value, String)>,
    /// What was not taken over as it is, and what replaces it.
    pub warnings: Vec<String>,
}

impl Import {
    pub(crate) fn edits(&self) -> Vec<Edit> {
        self.settings.iter().map(|(path, value, _)| Edit::Set(path, value.clone())).collect()
    }
}

/// Reads the whole text of `file`.
///
/// # Errors
/// It cannot be read as JSON (comments, missing quotes around keys and missing outer braces are
/// forgiven), has no cluster section, or has a value that cannot be taken over.
pub(crate) fn import(text: &str, file: &Path) -> Result<Import, Mistakes> {
    let root = loose::parse(text).map_err(|problem| {
        let (line, column) = read::position(text, problem.at);
        let place = Place::File { file: file.to_owned(), line, column };
        Mistake::new(
            "config-syntax",
            place,
            format!("this is not JSON: {}", problem.what),
            "give Kuzzle's configuration file (.kuzzlerc)",
        )
    })?;
    let mut importer =
        Importer { file, import: Import { settings: Vec::new(), warnings: Vec::new() }, mistakes: Vec::new() };
    importer.file(&root);
    if importer.mistakes.is_empty() { Ok(importer.import) } else { Err(Mistakes(importer.mistakes)) }
}

/// The text of a new file with these settings.
///
/// # Errors
/// Two of them contradict each other.
pub(crate) fn render(import: &Import, from: &Path) -> Result<String, Mistakes> {
    let name = from.file_name().unwrap_or(from.as_os_str()).to_string_lossy();
    let settings = edit::edit("", from, &import.edits())?;
    Ok(format!("# Taken over from {name} by `quorate config import kuzzle`.\n{settings}"))
}

struct Importer<'a> {
    file: &'a Path,
    import: Import,
    mistakes: Vec<Mistake>,
}

/// What replaces the parts of a Kuzzle configuration that have no counterpart.
const REPLACED: &[(&str, &str)] = &[
    ("plugins.common", "Quorate calls no plugins, so nothing waits for them: times for pipes are not needed"),
    (
        "plugins.cluster.privileged",
        "Quorate is the cluster and not a plugin of something: it needs no privileges in another server",
    ),
    ("plugins.cluster.redis", "Quorate keeps the cluster's state itself, on its managers: Redis is not needed"),
    ("services.internalCache", "Quorate keeps the cluster's state itself, on its managers: Redis is not needed"),
    (
        "services.memoryStorage",
        "Redis is not needed for the cluster; an application that uses one reaches it as before",
    ),
    ("services.db", "Elasticsearch is not needed for the cluster; an application that uses one reaches it as before"),
    (
        "plugins.cluster.timers.waitForMissingRooms",
        "this version has no realtime rooms, so nothing waits for one that is missing; keep the value until it has",
    ),
];

impl Importer<'_> {
    fn file(&mut self, root: &Map<String, Json>) {
        let cluster = root.get("plugins").and_then(|plugins| plugins.get("cluster")).and_then(Json::as_object);
        match cluster {
            Some(cluster) => self.cluster(cluster),
            None => self.mistakes.push(Mistake::new(
                "config-unknown-key",
                Place::WholeFile(self.file.to_owned()),
                "there is no `plugins.cluster` in this file",
                "give the configuration of a Kuzzle with the cluster plugin",
            )),
        }
        for (name, value) in root {
            match (name.as_str(), value) {
                ("plugins" | "services", Json::Object(parts)) => {
                    for part in parts.keys().filter(|part| (name.as_str(), part.as_str()) != ("plugins", "cluster")) {
                        self.unmapped(&format!("{name}.{part}"));
                    }
                }
                _ => self.unmapped(name),
            }
        }
    }

    fn cluster(&mut self, cluster: &Map<String, Json>) {
        for (name, value) in cluster {
            let path = format!("plugins.cluster.{name}");
            match (name.as_str(), value) {
                ("bindings", Json::Object(bindings)) => self.bindings(bindings),
                ("timers", Json::Object(timers)) => self.timers(timers),
                ("minimumNodes", value) => self.whole("cluster.minimum_nodes", &path, value),
                ("retryJoin", value) => self.whole("cluster.timers.retry_join", &path, value),
                ("bindings" | "timers", value) => self.bad(&path, &format!("{value} is not an object")),
                _ => self.unmapped(&path),
            }
        }
    }

    /// Both of Kuzzle's channels are one here: whichever is given sets the node link.
    fn bindings(&mut self, bindings: &Map<String, Json>) {
        for name in bindings.keys().filter(|name| !matches!(name.as_str(), "pub" | "router")) {
            self.unmapped(&format!("plugins.cluster.bindings.{name}"));
        }
        let (publish, router) = (bindings.get("pub"), bindings.get("router"));
        let (name, chosen) = match (publish, router) {
            (Some(publish), _) => ("pub", publish),
            (None, Some(router)) => ("router", router),
            (None, None) => return,
        };
        let path = format!("plugins.cluster.bindings.{name}");
        let Json::String(text) = chosen else { return self.bad(&path, &format!("{chosen} is not text")) };
        self.set("node.link", &path, text);
        if let (Some(_), Some(router)) = (publish, router) {
            let router = router.as_str().map_or_else(|| router.to_string(), str::to_owned);
            self.import.warnings.push(format!(
                "plugins.cluster.bindings.router ({router}): the node link carries both channels on one port, \
                 the one of `pub`; nothing listens at this one"
            ));
        }
    }

    fn timers(&mut self, timers: &Map<String, Json>) {
        const RIGHT: &str = "joinAttemptInterval";
        const MISSPELT: &str = "joinAttemptIntervall";
        for (name, value) in timers {
            let path = format!("plugins.cluster.timers.{name}");
            match name.as_str() {
                "discoverTimeout" => self.millis("cluster.timers.discover", &path, value),
                RIGHT => self.millis("cluster.timers.join_attempt", &path, value),
                MISSPELT if timers.contains_key(RIGHT) => {
                    self.import.warnings.push(format!("{path}: left out, as `{RIGHT}` is there too"));
                }
                MISSPELT => {
                    self.import.warnings.push(format!(
                        "{path}: misspelt, so Kuzzle never read it; taken for `{RIGHT}`, which it was meant to be"
                    ));
                    self.millis("cluster.timers.join_attempt", &path, value);
                }
                "heartbeat" => self.millis("cluster.timers.heartbeat", &path, value),
                _ => self.unmapped(&path),
            }
        }
    }

    fn millis(&mut self, to: &'static str, path: &str, value: &Json) {
        match value.as_u64() {
            Some(ms) => self.set(to, path, &Span::from_millis(ms).to_string()),
            None => self.bad(path, &format!("{value} is not a number of milliseconds")),
        }
    }

    fn whole(&mut self, to: &'static str, path: &str, value: &Json) {
        match value.as_u64() {
            Some(number) => self.set(to, path, &number.to_string()),
            None => self.bad(path, &format!("{value} is not a whole number")),
        }
    }

    fn set(&mut self, to: &'static str, path: &str, text: &str) {
        match Edit::parse(&format!("{to}={text}")) {
            Ok(Edit::Set(to, value)) => self.import.settings.push((to, value, path.to_owned())),
            Ok(Edit::Unset(_)) => {}
            Err(mistakes) => mistakes.0.iter().for_each(|mistake| self.bad(path, &mistake.why)),
        }
    }

    fn bad(&mut self, path: &str, problem: &str) {
        let place = Place::WholeFile(self.file.to_owned());
        let (error, fix) = (format!("`{path}` cannot be taken over"), "change it in the file and import it again");
        self.mistakes.push(Mistake::new("config-bad-value", place, error, fix).why(problem));
    }

    fn unmapped(&mut self, path: &str) {
        let replaced = REPLACED.iter().find(|(known, _)| *known == path).map(|(_, instead)| *instead);
        let instead = replaced.unwrap_or("not a part of the cluster; Quorate does nothing in its place");
        self.import.warnings.push(format!("{path}: {instead}"));
    }
}

#[cfg(test)]
mod tests;
