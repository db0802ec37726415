//! Reads a spec from TOML or JSON, with errors for a person in a hurry.
//!
//! Two passes over the same text. The first walks it along a table of all keys ([`DOCUMENT`]) and
//! finds what people get wrong: unknown keys, values outside a set, wrong kinds. It knows where it
//! is and what was meant. The second is serde, and decides alone what the text means. serde's own
//! messages are not enough: they name types of Rust, and not the service.
//!
//! The table repeats the types of [`super`]; a test holds the two together.

use super::{Backoff, Batch, Clock, Days, Port, Share, SpecDocument, driver};
use crate::access::name::{Digest, ExternalName, SecretName};
use crate::id::ServiceName;
use crate::place::Constraint;
use crate::resource::{Cpu, Memory};
use crate::template::FileMode;
use crate::time::Span;
use crate::vip::ServiceVip;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::fmt;
use toml::de::{DeTable, DeValue};

/// How a spec file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Toml,
    Json,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Toml => "TOML",
            Format::Json => "JSON",
        })
    }
}

/// A position in the text; both count from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// Why a text is not a spec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    #[error("this is not {format}: {problem} ({at})")]
    Syntax { format: Format, problem: String, at: Position },
    #[error("unknown key `{key}` in {table} ({at}); {}", suggest_key(*.similar, .known))]
    UnknownKey { key: String, table: String, at: Position, similar: Option<&'static str>, known: Vec<&'static str> },
    #[error("missing key `{key}` in {table} ({at})")]
    MissingKey { key: &'static str, table: String, at: Position },
    #[error("`{key}` in {table} must be {expected}, not {found} ({at})")]
    WrongKind { key: String, table: String, at: Position, expected: &'static str, found: &'static str },
    #[error("`{key}` in {table} is {value:?} ({at}); {}", suggest_value(*.similar, .allowed))]
    UnknownValue {
        key: String,
        table: String,
        at: Position,
        value: String,
        similar: Option<&'static str>,
        allowed: &'static [&'static str],
    },
    #[error("`{key}` in {table}: {problem} ({at})")]
    BadValue { key: String, table: String, at: Position, problem: String },
}

fn suggest_key(similar: Option<&str>, known: &[&str]) -> String {
    match similar {
        Some(similar) => format!("did you mean `{similar}`?"),
        None => format!("known keys: {}", known.join(", ")),
    }
}

fn suggest_value(similar: Option<&str>, allowed: &[&str]) -> String {
    let allowed = allowed.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ");
    match similar {
        Some(similar) => format!("did you mean {similar:?}? allowed: {allowed}"),
        None => format!("allowed: {allowed}"),
    }
}

/// Reads a spec. It is not validated; see [`SpecDocument::validate`].
///
/// # Errors
/// [`SpecError`] with the position of the first problem.
pub fn parse(text: &str, format: Format) -> Result<SpecDocument, SpecError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let walk = Walk { text, format };
    match format {
        Format::Toml => {
            let bad = |problem: &toml::de::Error| walk.syntax(problem.message(), problem.span().unwrap_or(0..0).start);
            let root = DeTable::parse(text).map_err(|problem| bad(&problem))?;
            walk.table("the file", &DOCUMENT, Node::Toml(0, Toml::Table(root.get_ref())))?;
            toml::from_str(text).map_err(|problem| bad(&problem))
        }
        Format::Json => {
            let bad = |problem: &serde_json::Error| {
                // serde_json ends its message with the position, which we give in our own words.
                let message = problem.to_string();
                let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
                let at = Position { line: problem.line().max(1), column: problem.column().max(1) };
                SpecError::Syntax { format, problem: message.to_owned(), at }
            };
            // Also refuses nesting beyond serde_json's limit before the walk looks at anything.
            let _: serde_json::Value = serde_json::from_str(text).map_err(|problem| bad(&problem))?;
            let root: &RawValue = serde_json::from_str(text).map_err(|problem| bad(&problem))?;
            walk.table("the file", &DOCUMENT, Node::Json(root))?;
            serde_json::from_str(text).map_err(|problem| bad(&problem))
        }
    }
}

/// Writes a spec; [`parse`] reads it as the same one.
#[must_use]
pub fn render(document: &SpecDocument, format: Format) -> String {
    match format {
        Format::Toml => toml::to_string(document).expect("a spec has string keys and only values that TOML has"),
        Format::Json => serde_json::to_string_pretty(document).expect("a spec has string keys and writes to memory"),
    }
}

/// What a key's value must look like.
enum Kind {
    Text,
    /// A whole number that fits `u32`.
    Whole,
    Flag,
    OneOf(&'static [&'static str]),
    /// Text that must satisfy a parser; the text says what it is.
    Parsed(fn(&str) -> Result<(), String>),
    Port,
    /// Text or a number, with or without a fraction.
    Cpu,
    /// A number or a share.
    Batch,
    /// An array of text.
    Texts,
    /// An array of text of which each part must satisfy a parser.
    Each(fn(&str) -> Result<(), String>),
    /// A table with any keys.
    Map(&'static Kind),
    Table(&'static Keys),
    /// An array of tables, each with a name for messages taken from this key.
    Tables(&'static Keys, &'static str),
    /// An array of tables, each with exactly one of these keys.
    Choices(&'static Keys),
}

struct Keys {
    known: &'static [(&'static str, Kind)],
    required: &'static [&'static str],
    /// What is required with certain words of another key.
    needs: &'static [Need],
}

/// `key` is required if `of` is one of `words`. The first word of a set is its default.
struct Need {
    key: &'static str,
    of: &'static str,
    words: &'static [&'static str],
}

static DOCUMENT: Keys = Keys {
    known: &[("service", Kind::Tables(&SERVICE, "name")), ("route", Kind::Tables(&ROUTE, "service"))],
    required: &[],
    needs: &[],
};

static SERVICE: Keys = Keys {
    known: &[
        ("name", Kind::Parsed(service_name)),
        ("mode", Kind::OneOf(&["replicated", "singleton", "active-passive", "every-node"])),
        ("replicas", Kind::Whole),
        ("driver", Kind::OneOf(&["process", "ocf", "container", "systemd", "vip"])),
        ("command", Kind::Texts),
        ("ocf", Kind::Table(&OCF)),
        ("container", Kind::Table(&CONTAINER)),
        ("systemd", Kind::Table(&SYSTEMD)),
        ("vip", Kind::Parsed(service_vip)),
        ("env", Kind::Map(&Kind::Text)),
        ("ports", Kind::Map(&Kind::Port)),
        ("health", Kind::Table(&HEALTH)),
        ("failover", Kind::Parsed(span)),
        ("unsafe_fast", Kind::Flag),
        ("without_quorum", Kind::OneOf(&["stop", "keep", "demote"])),
        ("restart", Kind::Table(&RESTART)),
        ("stop", Kind::Table(&STOP)),
        ("place", Kind::Table(&PLACE)),
        ("resources", Kind::Table(&RESOURCES)),
        ("update", Kind::Table(&UPDATE)),
        ("autoscale", Kind::Table(&AUTOSCALE)),
        ("schedule", Kind::Tables(&START_STOP, "days")),
        ("active", Kind::Table(&ACTIVE)),
        ("artifact", Kind::Tables(&ARTIFACT, "name")),
        ("requires", Kind::Choices(&REQUIREMENT)),
        ("secrets", Kind::Each(secret_name)),
        ("grants", Kind::Tables(&GRANT, "database")),
        ("uses", Kind::Each(service_name)),
        ("reload", Kind::OneOf(&["HUP", "USR1", "USR2"])),
        ("externals", Kind::Each(external_name)),
        ("template", Kind::Tables(&TEMPLATE, "to")),
    ],
    required: &["name"],
    needs: &[
        Need { key: "command", of: "driver", words: &["process"] },
        Need { key: "ocf", of: "driver", words: &["ocf"] },
        Need { key: "container", of: "driver", words: &["container"] },
        Need { key: "systemd", of: "driver", words: &["systemd"] },
        Need { key: "vip", of: "driver", words: &["vip"] },
    ],
};

static GRANT: Keys = Keys {
    known: &[("database", Kind::OneOf(&["main", "system"])), ("right", Kind::OneOf(&["read", "write"]))],
    required: &["database"],
    needs: &[],
};

static OCF: Keys = Keys {
    known: &[
        ("agent", Kind::Parsed(ocf_agent)),
        ("params", Kind::Map(&Kind::Text)),
        ("every", Kind::Parsed(span)),
        ("timeouts", Kind::Table(&OCF_TIMEOUTS)),
        ("fail_after", Kind::Whole),
    ],
    required: &["agent"],
    needs: &[],
};

static OCF_TIMEOUTS: Keys = Keys {
    known: &[
        ("start", Kind::Parsed(span)),
        ("monitor", Kind::Parsed(span)),
        ("promote", Kind::Parsed(span)),
        ("demote", Kind::Parsed(span)),
        ("notify", Kind::Parsed(span)),
    ],
    required: &[],
    needs: &[],
};

static CONTAINER: Keys = Keys {
    known: &[
        ("image", Kind::Text),
        ("rootfs", Kind::Text),
        ("engine", Kind::OneOf(&["auto", "podman", "docker"])),
        ("volumes", Kind::Texts),
        ("args", Kind::Texts),
    ],
    required: &[],
    needs: &[],
};

static ACTIVE: Keys = Keys {
    known: &[
        ("promote", Kind::Texts),
        ("demote", Kind::Texts),
        ("timeout", Kind::Parsed(span)),
        ("standby", Kind::OneOf(&["hot", "cold"])),
        ("prefer", Kind::Each(constraint)),
        ("failback", Kind::Flag),
    ],
    required: &[],
    needs: &[],
};

static SYSTEMD: Keys = Keys { known: &[("unit", Kind::Parsed(unit_name))], required: &["unit"], needs: &[] };

static HEALTH: Keys = Keys {
    known: &[
        ("http", Kind::Text),
        ("tcp", Kind::Flag),
        ("exec", Kind::Texts),
        ("grpc", Kind::Text),
        ("sql", Kind::Table(&SQL_CHECK)),
        ("port", Kind::Text),
        ("every", Kind::Parsed(span)),
        ("timeout", Kind::Parsed(span)),
        ("fail_after", Kind::Whole),
    ],
    required: &[],
    needs: &[],
};

static SQL_CHECK: Keys = Keys {
    known: &[("query", Kind::Text), ("user", Kind::Text), ("password", Kind::Text), ("database", Kind::Text)],
    required: &["user"],
    needs: &[],
};

static RESTART: Keys = Keys {
    known: &[("policy", Kind::OneOf(&["always", "on-failure", "never"])), ("backoff", Kind::Parsed(backoff))],
    required: &[],
    needs: &[],
};

static STOP: Keys = Keys {
    known: &[("signal", Kind::OneOf(&["TERM", "INT", "QUIT", "HUP", "USR1", "USR2"])), ("grace", Kind::Parsed(span))],
    required: &[],
    needs: &[],
};

static PLACE: Keys = Keys {
    known: &[
        ("require", Kind::Each(constraint)),
        ("spread", Kind::Text),
        ("prefer", Kind::Each(constraint)),
        ("near", Kind::Each(service_name)),
        ("apart", Kind::Each(service_name)),
    ],
    required: &[],
    needs: &[],
};

static ARTIFACT: Keys = Keys {
    known: &[
        ("name", Kind::Text),
        ("source", Kind::Text),
        ("sha256", Kind::Parsed(sha256)),
        ("unpack", Kind::Flag),
        ("s3", Kind::Table(&S3)),
    ],
    required: &["source", "sha256"],
    needs: &[],
};

static TEMPLATE: Keys = Keys {
    known: &[("text", Kind::Text), ("from", Kind::Text), ("to", Kind::Text), ("mode", Kind::Parsed(file_mode))],
    required: &["to"],
    needs: &[],
};

static S3: Keys = Keys {
    known: &[
        ("endpoint", Kind::Text),
        ("region", Kind::Text),
        ("access_key", Kind::Text),
        ("secret_key", Kind::Parsed(secret_name)),
    ],
    required: &[],
    needs: &[],
};

static REQUIREMENT: Keys = Keys {
    known: &[
        ("command", Kind::Text),
        ("file", Kind::Text),
        ("mount", Kind::Text),
        ("reach", Kind::Text),
        ("external", Kind::Parsed(external_name)),
    ],
    required: &[],
    needs: &[],
};

static RESOURCES: Keys =
    Keys { known: &[("cpu", Kind::Cpu), ("memory", Kind::Parsed(memory))], required: &[], needs: &[] };

static UPDATE: Keys = Keys {
    known: &[
        ("order", Kind::OneOf(&["start-first", "stop-first"])),
        ("batch", Kind::Batch),
        ("canary", Kind::Whole),
        ("promote", Kind::OneOf(&["auto", "manual"])),
        ("healthy_for", Kind::Parsed(span)),
        ("healthy_within", Kind::Parsed(span)),
        ("progress_within", Kind::Parsed(span)),
        ("verify_for", Kind::Parsed(span)),
        ("rollback", Kind::Flag),
    ],
    required: &[],
    needs: &[],
};

static AUTOSCALE: Keys = Keys {
    known: &[
        ("enabled", Kind::Flag),
        ("min", Kind::Whole),
        ("max", Kind::Whole),
        ("cpu", Kind::Parsed(share)),
        ("memory", Kind::Parsed(share)),
        ("rps", Kind::Whole),
        ("p95", Kind::Parsed(span)),
        ("scrape", Kind::Table(&SCRAPE)),
        ("sql", Kind::Table(&COUNTED)),
        ("every", Kind::Parsed(span)),
        ("warmup", Kind::Parsed(span)),
        ("down_after", Kind::Parsed(span)),
        ("schedule", Kind::Tables(&HOURS, "days")),
    ],
    required: &["min", "max"],
    needs: &[],
};

static SCRAPE: Keys = Keys {
    known: &[
        ("port", Kind::Text),
        ("path", Kind::Text),
        ("name", Kind::Text),
        ("labels", Kind::Map(&Kind::Text)),
        ("target", Kind::Whole),
    ],
    required: &["name", "target"],
    needs: &[],
};

static COUNTED: Keys =
    Keys { known: &[("query", Kind::Text), ("target", Kind::Whole)], required: &["query", "target"], needs: &[] };

static START_STOP: Keys = Keys {
    known: &[("days", Kind::Parsed(days)), ("start", Kind::Parsed(clock)), ("stop", Kind::Parsed(clock))],
    required: &[],
    needs: &[],
};

static HOURS: Keys = Keys {
    known: &[
        ("days", Kind::Parsed(days)),
        ("from", Kind::Parsed(clock)),
        ("to", Kind::Parsed(clock)),
        ("min", Kind::Whole),
        ("max", Kind::Whole),
    ],
    required: &["from", "to"],
    needs: &[],
};

static ROUTE: Keys = Keys {
    known: &[
        ("listen", Kind::Text),
        ("host", Kind::Text),
        ("path", Kind::Text),
        ("service", Kind::Parsed(service_name)),
        ("balance", Kind::OneOf(&["leastconn"])),
    ],
    required: &["service"],
    needs: &[],
};

fn service_name(text: &str) -> Result<(), String> {
    ServiceName::new(text).map(drop).map_err(|problem| problem.to_string())
}

fn service_vip(text: &str) -> Result<(), String> {
    text.parse::<ServiceVip>().map(drop).map_err(|problem| problem.to_string())
}

fn constraint(text: &str) -> Result<(), String> {
    text.parse::<Constraint>().map(drop).map_err(|problem| problem.to_string())
}

fn secret_name(text: &str) -> Result<(), String> {
    SecretName::new(text).map(drop).map_err(|problem| problem.to_string())
}

fn external_name(text: &str) -> Result<(), String> {
    ExternalName::new(text).map(drop).map_err(|problem| problem.to_string())
}

fn file_mode(text: &str) -> Result<(), String> {
    text.parse::<FileMode>().map(drop).map_err(|problem| problem.to_string())
}

fn ocf_agent(text: &str) -> Result<(), String> {
    driver::agent_name(text).map(drop).ok_or_else(|| driver::NO_AGENT.to_owned())
}

fn sha256(text: &str) -> Result<(), String> {
    text.parse::<Digest>().map(drop).map_err(|problem| problem.to_string())
}

fn unit_name(text: &str) -> Result<(), String> {
    if driver::is_unit(text) { Ok(()) } else { Err(driver::NO_UNIT.to_owned()) }
}

fn span(text: &str) -> Result<(), String> {
    text.parse::<Span>().map(drop).map_err(|problem| problem.to_string())
}

fn share(text: &str) -> Result<(), String> {
    text.parse::<Share>().map(drop).map_err(|problem| problem.to_string())
}

fn days(text: &str) -> Result<(), String> {
    text.parse::<Days>().map(drop).map_err(|problem| problem.to_string())
}

fn clock(text: &str) -> Result<(), String> {
    text.parse::<Clock>().map(drop).map_err(|problem| problem.to_string())
}

fn cpu(text: &str) -> Result<(), String> {
    text.parse::<Cpu>().map(drop).map_err(|problem| problem.to_string())
}

fn memory(text: &str) -> Result<(), String> {
    text.parse::<Memory>().map(drop).map_err(|problem| problem.to_string())
}

fn backoff(text: &str) -> Result<(), String> {
    through_serde::<Backoff>(text.into())
}

fn through_serde<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> Result<(), String> {
    serde_json::from_value::<T>(value).map(drop).map_err(|problem| problem.to_string())
}

/// A value of either format, and where it is.
#[derive(Clone, Copy)]
enum Node<'a> {
    /// With the byte where it begins.
    Toml(usize, Toml<'a>),
    /// A part of the text itself, so its address tells where it is.
    Json(&'a RawValue),
}

#[derive(Clone, Copy)]
enum Toml<'a> {
    Table(&'a DeTable<'a>),
    Value(&'a DeValue<'a>),
}

/// One level of a value, its parts unread.
enum Shape<'a> {
    Text(String),
    /// `None` when it is beyond every range of ours.
    Whole(Option<i64>),
    /// As it is written.
    Fraction(String),
    Flag,
    List(Vec<Node<'a>>),
    /// Keys with their place, in the order of the text.
    Table(Vec<(String, usize, Node<'a>)>),
    Other(&'static str),
}

impl Shape<'_> {
    fn name(&self) -> &'static str {
        match self {
            Shape::Text(_) => "text",
            Shape::Whole(_) => "a whole number",
            Shape::Fraction(_) => "a fraction",
            Shape::Flag => "true or false",
            Shape::List(_) => "an array",
            Shape::Table(_) => "a table",
            Shape::Other(name) => name,
        }
    }
}

struct Walk<'a> {
    text: &'a str,
    format: Format,
}

/// The key whose value is looked at, for messages.
#[derive(Clone, Copy)]
struct Key<'a> {
    name: &'a str,
    table: &'a str,
    at: Position,
}

impl<'a> Walk<'a> {
    fn position(&self, byte: usize) -> Position {
        let before = self.text.get(..byte).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Position { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
    }

    fn syntax(&self, problem: &str, byte: usize) -> SpecError {
        SpecError::Syntax { format: self.format, problem: problem.to_owned(), at: self.position(byte) }
    }

    fn start(&self, node: Node<'a>) -> usize {
        match node {
            Node::Toml(byte, _) => byte,
            // serde_json lends parts of the text it was given; a stranger's address would only
            // give a wrong line, never a panic.
            Node::Json(raw) => (raw.get().as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize),
        }
    }

    fn shape(&self, node: Node<'a>) -> Shape<'a> {
        match node {
            Node::Toml(_, Toml::Table(table)) => {
                let mut keys: Vec<_> = table
                    .iter()
                    .map(|(key, value)| {
                        let node = Node::Toml(value.span().start, Toml::Value(value.get_ref()));
                        (key.get_ref().to_string(), key.span().start, node)
                    })
                    .collect();
                keys.sort_by_key(|(_, byte, _)| *byte);
                Shape::Table(keys)
            }
            Node::Toml(byte, Toml::Value(value)) => match value {
                DeValue::String(text) => Shape::Text(text.to_string()),
                DeValue::Integer(number) => Shape::Whole(i64::from_str_radix(number.as_str(), number.radix()).ok()),
                DeValue::Float(number) => Shape::Fraction(number.as_str().to_owned()),
                DeValue::Boolean(_) => Shape::Flag,
                DeValue::Datetime(_) => Shape::Other("a date"),
                DeValue::Array(items) => Shape::List(
                    items.iter().map(|item| Node::Toml(item.span().start, Toml::Value(item.get_ref()))).collect(),
                ),
                DeValue::Table(table) => self.shape(Node::Toml(byte, Toml::Table(table))),
            },
            Node::Json(raw) => self.json_shape(raw.get()),
        }
    }

    fn json_shape(&self, text: &'a str) -> Shape<'a> {
        match text.as_bytes().first() {
            Some(b'"') => serde_json::from_str(text).map_or(Shape::Other("broken text"), Shape::Text),
            Some(b't' | b'f') => Shape::Flag,
            Some(b'n') => Shape::Other("null"),
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(text).unwrap_or_default();
                Shape::List(items.into_iter().map(Node::Json).collect())
            }
            Some(b'{') => {
                let keys: BTreeMap<String, &RawValue> = serde_json::from_str(text).unwrap_or_default();
                let mut keys: Vec<_> = keys
                    .into_iter()
                    .map(|(key, value)| (key, self.start(Node::Json(value)), Node::Json(value)))
                    .collect();
                keys.sort_by_key(|(_, byte, _)| *byte);
                Shape::Table(keys)
            }
            _ if text.contains(['.', 'e', 'E']) => Shape::Fraction(text.to_owned()),
            _ => Shape::Whole(text.parse().ok()),
        }
    }

    fn table(&self, title: &str, keys: &Keys, node: Node<'a>) -> Result<(), SpecError> {
        let at = self.position(self.start(node));
        let Shape::Table(entries) = self.shape(node) else {
            return Err(self.syntax("it must be an object", self.start(node)));
        };
        for (name, byte, value) in &entries {
            let at = self.position(*byte);
            let Some((_, kind)) = keys.known.iter().find(|(known, _)| known == name) else {
                let known: Vec<&'static str> = keys.known.iter().map(|(known, _)| *known).collect();
                let similar = nearest(name, &known);
                return Err(SpecError::UnknownKey { key: name.clone(), table: title.to_owned(), at, similar, known });
            };
            self.value(Key { name, table: title, at }, kind, *value)?;
        }
        let needed = keys.needs.iter().filter(|need| need.words.contains(&self.word(keys, &entries, need.of)));
        for key in keys.required.iter().copied().chain(needed.map(|need| need.key)) {
            if !entries.iter().any(|(name, _, _)| name == key) {
                return Err(SpecError::MissingKey { key, table: title.to_owned(), at });
            }
        }
        Ok(())
    }

    /// The word that a key of a set has, or has by default.
    fn word(&self, keys: &Keys, entries: &[(String, usize, Node<'a>)], key: &str) -> &'static str {
        let Some((_, Kind::OneOf(words))) = keys.known.iter().find(|(name, _)| *name == key) else { return "" };
        let said = entries.iter().find(|(name, _, _)| name == key).map(|(_, _, value)| self.shape(*value));
        match said {
            Some(Shape::Text(said)) => words.iter().find(|word| **word == said).copied().unwrap_or_default(),
            _ => words.first().copied().unwrap_or_default(),
        }
    }

    fn value(&self, key: Key<'_>, kind: &Kind, node: Node<'a>) -> Result<(), SpecError> {
        let shape = self.shape(node);
        let wrong = |expected| {
            let (name, table) = (key.name.to_owned(), key.table.to_owned());
            Err(SpecError::WrongKind { key: name, table, at: key.at, expected, found: shape.name() })
        };
        let bad = |problem| {
            let (name, table) = (key.name.to_owned(), key.table.to_owned());
            SpecError::BadValue { key: name, table, at: key.at, problem }
        };
        match (kind, &shape) {
            (Kind::Text, Shape::Text(_)) | (Kind::Flag, Shape::Flag) => Ok(()),
            (Kind::Text | Kind::Parsed(_), _) if !matches!(shape, Shape::Text(_)) => wrong("text in quotes"),
            (Kind::Flag, _) => wrong("true or false"),
            (Kind::Whole, Shape::Whole(number)) => match number.map(u32::try_from) {
                Some(Ok(_)) => Ok(()),
                _ => Err(bad(format!("must be 0 to {}", u32::MAX))),
            },
            (Kind::Whole, _) => wrong("a whole number"),
            (Kind::OneOf(allowed), Shape::Text(text)) if !allowed.contains(&text.as_str()) => {
                Err(SpecError::UnknownValue {
                    key: key.name.to_owned(),
                    table: key.table.to_owned(),
                    at: key.at,
                    value: text.clone(),
                    similar: nearest(text, allowed),
                    allowed,
                })
            }
            (Kind::OneOf(_), Shape::Text(_)) => Ok(()),
            (Kind::OneOf(_), _) => wrong("text in quotes"),
            (Kind::Parsed(parse), Shape::Text(text)) => parse(text).map_err(bad),
            (Kind::Port, Shape::Text(text)) => through_serde::<Port>(text.as_str().into()).map_err(bad),
            (Kind::Port, Shape::Whole(number)) => through_serde::<Port>((*number).into()).map_err(bad),
            (Kind::Port, _) => wrong("a number from 1 to 65535 or \"auto\""),
            (Kind::Cpu, Shape::Text(text) | Shape::Fraction(text)) => cpu(text).map_err(bad),
            (Kind::Cpu, Shape::Whole(number)) => cpu(&number.unwrap_or(-1).to_string()).map_err(bad),
            (Kind::Cpu, _) => wrong("a number of CPUs, or text like \"500m\""),
            (Kind::Batch, Shape::Text(text)) => through_serde::<Batch>(text.as_str().into()).map_err(bad),
            (Kind::Batch, Shape::Whole(number)) => through_serde::<Batch>((*number).into()).map_err(bad),
            (Kind::Batch, _) => wrong("a number, or a share like \"25%\""),
            (Kind::Texts, Shape::List(items)) => {
                let other = items.iter().map(|item| self.shape(*item)).find(|item| !matches!(item, Shape::Text(_)));
                other
                    .map_or(Ok(()), |other| Err(bad(format!("each part must be text in quotes, not {}", other.name()))))
            }
            (Kind::Each(parse), Shape::List(items)) => items.iter().try_for_each(|item| match self.shape(*item) {
                Shape::Text(text) => parse(&text).map_err(bad),
                other => Err(bad(format!("each part must be text in quotes, not {}", other.name()))),
            }),
            (Kind::Each(_), _) => wrong("an array of text, like [\"one\", \"two\"]"),
            (Kind::Texts, _) => wrong("an array of text, like [\"/opt/web\", \"--port\", \"{port}\"]"),
            (Kind::Map(kind), Shape::Table(entries)) => entries.iter().try_for_each(|(name, byte, value)| {
                let name = format!("{}.{name}", key.name);
                self.value(Key { name: &name, table: key.table, at: self.position(*byte) }, kind, *value)
            }),
            (Kind::Table(keys), Shape::Table(_)) => self.table(&format!("{} of {}", key.name, key.table), keys, node),
            (Kind::Map(_) | Kind::Table(_), _) => wrong("a table, like { key = \"value\" }"),
            (Kind::Tables(keys, named_by), Shape::List(items)) => {
                items.iter().enumerate().try_for_each(|(at, item)| {
                    let title = self.title(key.name, named_by, at, *item);
                    match self.shape(*item) {
                        Shape::Table(_) => self.table(&title, keys, *item),
                        other => Err(bad(format!("each must be a table, not {}", other.name()))),
                    }
                })
            }
            (Kind::Choices(keys), Shape::List(items)) => items.iter().try_for_each(|item| match self.shape(*item) {
                Shape::Table(entries) => {
                    self.table(&format!("{} of {}", key.name, key.table), keys, *item)?;
                    let known: Vec<&str> = keys.known.iter().map(|(known, _)| *known).collect();
                    match entries.len() {
                        1 => Ok(()),
                        _ => Err(bad(format!("each part has exactly one of {}", known.join(", ")))),
                    }
                }
                other => Err(bad(format!("each part must be a table, not {}", other.name()))),
            }),
            (Kind::Choices(_), _) => wrong("an array of tables, like [{ key = \"value\" }]"),
            (Kind::Tables(..), Shape::Table(_)) => Err(bad(format!("write it with two brackets: [[{}]]", key.name))),
            (Kind::Tables(..), _) => wrong("an array of tables"),
            (Kind::Text | Kind::Parsed(_), _) => Ok(()),
        }
    }

    /// How messages call the table at position `at` of an array of tables.
    fn title(&self, array: &str, named_by: &str, at: usize, node: Node<'a>) -> String {
        if let Shape::Table(entries) = self.shape(node)
            && let Some((_, _, value)) = entries.iter().find(|(name, _, _)| name == named_by)
            && let Shape::Text(name) = self.shape(*value)
        {
            return format!("[[{array}]] `{name}`");
        }
        format!("[[{array}]] number {}", at + 1)
    }
}

/// The known word that was probably meant: at most a third of the letters differ.
#[must_use]
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = word.to_lowercase();
    known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(&known.to_lowercase(), &word), *known))
        .filter(|(distance, known)| *distance <= (known.len() / 3).max(1))
        .min()
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests;
