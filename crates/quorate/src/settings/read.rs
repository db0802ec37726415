//! Reads the file and the environment, with errors for a person in a hurry.
//!
//! The file is walked along [`KEYS`], which says what was meant and where; nothing goes through
//! serde, whose messages name types of Rust.

use super::keys::{self, KEYS, Key};
use super::mistake::{Mistake, Mistakes, Place};
use super::value::Value;
use super::{Loaded, Origin, Redirect, Settings};
use crate::cli::failure::nearest;
use std::collections::BTreeMap;
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// Variables that begin like ours and are what a replica is told about itself.
const OTHERS: &[&str] = &["QUORATE_NODE_ID"];

/// Settings from the text of `file` and from `environment`, which goes before it.
///
/// # Errors
/// Everything that is wrong with both.
pub(crate) fn read(text: &str, file: &Path, environment: &BTreeMap<String, String>) -> Result<Loaded, Mistakes> {
    let mut reader = Reader {
        text: text.strip_prefix('\u{feff}').unwrap_or(text),
        file,
        loaded: Loaded { settings: Settings::default(), origins: BTreeMap::new() },
        mistakes: Vec::new(),
    };
    match DeTable::parse(reader.text) {
        Ok(root) => reader.table("", root.get_ref()),
        Err(problem) => {
            let place = reader.place(problem.span().map_or(0, |span| span.start));
            let error = format!("this is not TOML: {}", problem.message());
            reader.mistakes.push(Mistake::new(
                "config-syntax",
                place,
                error,
                "correct the line; the others were not looked at",
            ));
        }
    }
    reader.environment(environment);
    if reader.mistakes.is_empty() {
        reader.contradictions();
    }
    // In the order of the file; what is wrong in the environment comes after it.
    reader.mistakes.sort_by_key(|mistake| match mistake.place {
        Place::File { line, column, .. } => (line, column),
        Place::WholeFile(_) | Place::Environment(_) | Place::CommandLine => (usize::MAX, 0),
    });
    if reader.mistakes.is_empty() { Ok(reader.loaded) } else { Err(Mistakes(reader.mistakes)) }
}

struct Reader<'a> {
    text: &'a str,
    file: &'a Path,
    loaded: Loaded,
    mistakes: Vec<Mistake>,
}

impl Reader<'_> {
    fn place(&self, byte: usize) -> Place {
        let (line, column) = position(self.text, byte);
        Place::File { file: self.file.to_owned(), line, column }
    }

    /// Reads the table that is at `path`, the file itself at "".
    fn table(&mut self, path: &str, table: &DeTable<'_>) {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in entries {
            let at = name.span().start;
            let path = if path.is_empty() { name.get_ref().to_string() } else { format!("{path}.{}", name.get_ref()) };
            match (keys::find(&path), value.get_ref()) {
                (Some(key), value) => self.value(key, value, at),
                (None, DeValue::Table(inner)) if is_section(&path) => self.table(&path, inner),
                (None, _) if is_section(&path) => {
                    let fix = format!("write it as a section, [{path}]");
                    let error = format!("`{path}` is a section, not a value");
                    let place = self.place(at);
                    self.mistakes.push(Mistake::new("config-bad-value", place, error, fix));
                }
                (None, _) => {
                    let place = self.place(at);
                    self.mistakes.push(unknown_key(&path, place));
                }
            }
        }
    }

    fn value(&mut self, key: &'static Key, value: &DeValue<'_>, at: usize) {
        let place = self.place(at);
        let Place::File { line, .. } = place else { return };
        let origin = Origin::File { file: self.file.to_owned(), line };
        match Value::from_toml(value) {
            Ok(value) => self.set(key, value, place, origin),
            Err(found) => self.mistakes.push(bad_value(key, place, &format!("it is {found}"))),
        }
    }

    fn set(&mut self, key: &'static Key, value: Value, place: Place, origin: Origin) {
        match key.set(&mut self.loaded.settings, value) {
            Ok(()) => drop(self.loaded.origins.insert(key.path, origin)),
            Err(problem) => self.mistakes.push(bad_value(key, place, &problem)),
        }
    }

    fn environment(&mut self, environment: &BTreeMap<String, String>) {
        let known: BTreeMap<String, &'static Key> = KEYS.iter().map(|key| (key.variable(), key)).collect();
        let prefixes: Vec<String> =
            keys::sections().iter().map(|section| format!("QUORATE_{}_", section.to_uppercase())).collect();
        let short = KEYS.iter().filter_map(|key| Some((key.short_variable()?.to_owned(), key)));
        // Short names first: the long name of the same setting goes before it.
        for (variable, key) in short.chain(known.clone()) {
            let Some(text) = environment.get(&variable) else { continue };
            let place = Place::Environment(variable.clone());
            match key.kind.read(text) {
                Ok(value) => self.set(key, value, place, Origin::Environment(variable)),
                Err(problem) => self.mistakes.push(bad_value(key, place, &problem)),
            }
        }
        for variable in environment.keys() {
            let ours = prefixes.iter().any(|prefix| variable.starts_with(prefix));
            if !ours || known.contains_key(variable) || OTHERS.contains(&variable.as_str()) {
                continue;
            }
            let fix = match nearest(variable, known.keys().map(String::as_str)) {
                Some(similar) => format!("did you mean {similar}?"),
                None => "take it away; `quorate config show` lists every setting".into(),
            };
            let place = Place::Environment(variable.clone());
            self.mistakes.push(Mistake::new("config-unknown-key", place, "there is no setting of that name", fix));
        }
    }

    /// What is wrong between settings that are good by themselves.
    fn contradictions(&mut self) {
        let console = &self.loaded.settings.console;
        if console.redirect == Redirect::Balancer && console.balancer_url.is_none() {
            let place = self.place_of("console.redirect");
            self.mistakes.push(Mistake::new(
                "config-contradiction",
                place,
                "`console.redirect` is \"balancer\" and there is no balancer",
                "set `console.balancer_url`, or redirect to \"active\"",
            ));
        }
        let node = &self.loaded.settings.node;
        if node.listen.host == node.link.host
            && node.listen.port.unwrap_or(super::API_PORT) == node.link.port.unwrap_or(super::LINK_PORT)
        {
            let place = self.place_of("node.link");
            self.mistakes.push(Mistake::new(
                "config-contradiction",
                place,
                format!("the API and the node link cannot both listen at {}", node.listen),
                "give `node.link` another port",
            ));
        }
    }

    fn place_of(&self, path: &str) -> Place {
        match self.loaded.origin(path) {
            Origin::Environment(name) => Place::Environment(name),
            Origin::File { file, line } => Place::File { file, line, column: 1 },
            Origin::Default => Place::WholeFile(self.file.to_owned()),
        }
    }
}

/// Line and column of a byte, both from 1, the column in characters.
pub(crate) fn position(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

fn is_section(path: &str) -> bool {
    let prefix = format!("{path}.");
    KEYS.iter().any(|key| key.path.starts_with(&prefix))
}

fn bad_value(key: &Key, place: Place, problem: &str) -> Mistake {
    let error = format!("`{}` has a value that it cannot have", key.path);
    Mistake::new("config-bad-value", place, error, format!("it takes: {}", key.kind.describe())).why(problem)
}

/// The mistake of using `path`, which no setting has.
pub(crate) fn unknown_key(path: &str, place: Place) -> Mistake {
    let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
    // What could stand in that place; and what has that very name in another one.
    let here = beside(section);
    let elsewhere = KEYS.iter().map(|key| key.path).find(|known| known.rsplit('.').next() == Some(name));
    let fix = match elsewhere.or_else(|| nearest(name, here.iter().copied())) {
        Some(similar) => format!("did you mean `{similar}`?"),
        None if here.is_empty() => format!("sections are {}", keys::sections().join(", ")),
        None => format!("there is {}", here.join(", ")),
    };
    let error = if section.is_empty() {
        format!("unknown key `{name}`")
    } else {
        format!("unknown key `{name}` in [{section}]")
    };
    Mistake::new("config-unknown-key", place, error, fix)
}

/// The names that may stand in a section, those of sections in it included.
fn beside(section: &str) -> Vec<&'static str> {
    let rest = |key: &'static Key| match section {
        "" => Some(key.path),
        section => key.path.strip_prefix(section)?.strip_prefix('.'),
    };
    let mut names: Vec<&str> = KEYS.iter().filter_map(rest).filter_map(|rest| rest.split('.').next()).collect();
    names.dedup();
    names
}
