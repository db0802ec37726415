//! Placeholders in a command or an environment variable: `{port}`, `{port.NAME}`, `{replica}`,
//! `{node}`, `{ordinal}`. `{{` and `}}` are literal braces.
//!
//! One scanner serves both the check of a spec and the launch of a replica, so what was accepted
//! can be filled. A brace that means nothing is an error: a typo must not reach a program as text.

use crate::id::ReplicaId;
use std::collections::BTreeMap;

/// All placeholders, as a message shows them.
const KNOWN: &str = "{port}, {port.NAME}, {replica}, {node}, {ordinal}";

/// What the placeholders of one replica stand for.
#[derive(Debug, Clone, Copy)]
pub struct Placeholders<'a> {
    /// The numbers of the replica's ports, by name.
    pub ports: &'a BTreeMap<String, u16>,
    /// The port that `{port}` stands for; see [`ServiceSpec::main_port`](super::ServiceSpec::main_port).
    pub main_port: Option<&'a str>,
    pub replica: ReplicaId,
    /// The node's name.
    pub node: &'a str,
    pub ordinal: u32,
}

/// Why a template cannot be filled. Its text goes on after the field's name: "`command` …".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    #[error("has the unknown placeholder `{{{name}}}`; known are {KNOWN}; a literal brace is written {{{{ or }}}}")]
    Unknown { name: String },
    #[error("has `{{port.{name}}}`, and `ports` declares no `{name}`")]
    UnknownPort { name: String },
    #[error("has `{{port}}`, and the service declares no port")]
    NoPort,
    #[error("has a `{{` without its `}}`; a literal brace is written {{{{")]
    Unclosed,
    #[error("has a `}}` without its `{{`; a literal brace is written }}}}")]
    Unopened,
}

/// Fills the placeholders of a template.
///
/// # Errors
/// [`TemplateError`] for a brace that means nothing and a port that has no number. A template of a
/// spec that passed [`SpecDocument::validate`](super::SpecDocument::validate) fails only when
/// `values` lacks a declared port.
pub fn expand(template: &str, values: &Placeholders<'_>) -> Result<String, TemplateError> {
    let mut filled = String::with_capacity(template.len());
    for piece in pieces(template) {
        match piece? {
            Piece::Text(text) => filled.push_str(text),
            Piece::MainPort => {
                let port = values.main_port.and_then(|name| values.ports.get(name)).ok_or(TemplateError::NoPort)?;
                filled.push_str(&port.to_string());
            }
            Piece::Port(name) => {
                let unknown = || TemplateError::UnknownPort { name: name.to_owned() };
                filled.push_str(&values.ports.get(name).ok_or_else(unknown)?.to_string());
            }
            Piece::Replica => filled.push_str(&values.replica.to_string()),
            Piece::Node => filled.push_str(values.node),
            Piece::Ordinal => filled.push_str(&values.ordinal.to_string()),
        }
    }
    Ok(filled)
}

/// Whether a template can be filled for a service that declares these ports.
pub(super) fn check<T>(template: &str, ports: &BTreeMap<String, T>) -> Result<(), TemplateError> {
    for piece in pieces(template) {
        match piece? {
            Piece::MainPort if ports.is_empty() => return Err(TemplateError::NoPort),
            Piece::Port(name) if !ports.contains_key(name) => {
                return Err(TemplateError::UnknownPort { name: name.to_owned() });
            }
            Piece::Text(_) | Piece::MainPort | Piece::Port(_) | Piece::Replica | Piece::Node | Piece::Ordinal => {}
        }
    }
    Ok(())
}

/// A part of a template.
enum Piece<'a> {
    Text(&'a str),
    MainPort,
    Port(&'a str),
    Replica,
    Node,
    Ordinal,
}

fn pieces(template: &str) -> impl Iterator<Item = Result<Piece<'_>, TemplateError>> {
    let mut rest = template;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, after) = match first(rest) {
            Ok((piece, after)) => (Ok(piece), after),
            Err(problem) => (Err(problem), ""),
        };
        rest = after;
        Some(piece)
    })
}

/// The first piece of a text that is not empty, and what follows it.
fn first(text: &str) -> Result<(Piece<'_>, &str), TemplateError> {
    // Braces are ASCII, so every cut is at a character's border.
    let brace = text.find(['{', '}']).unwrap_or(text.len());
    if brace > 0 {
        return Ok((Piece::Text(&text[..brace]), &text[brace..]));
    }
    if text.starts_with("{{") || text.starts_with("}}") {
        return Ok((Piece::Text(&text[..1]), &text[2..]));
    }
    let inner = text.strip_prefix('{').ok_or(TemplateError::Unopened)?;
    let (name, after) = inner.split_once('}').ok_or(TemplateError::Unclosed)?;
    let piece = match name {
        "port" => Piece::MainPort,
        "replica" => Piece::Replica,
        "node" => Piece::Node,
        "ordinal" => Piece::Ordinal,
        _ => match name.strip_prefix("port.") {
            Some(port) => Piece::Port(port),
            None => return Err(TemplateError::Unknown { name: name.to_owned() }),
        },
    };
    Ok((piece, after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fill(template: &str) -> Result<String, TemplateError> {
        let ports = BTreeMap::from([("http".to_owned(), 8080), ("admin".to_owned(), 9000)]);
        let replica = ReplicaId::from_u128(7);
        expand(template, &Placeholders { ports: &ports, main_port: Some("http"), replica, node: "n1", ordinal: 2 })
    }

    #[test]
    fn every_placeholder_is_filled() {
        assert_eq!(fill("--listen=:{port}").unwrap(), "--listen=:8080");
        assert_eq!(fill("{port.admin}/{node}/{ordinal}").unwrap(), "9000/n1/2");
        assert_eq!(fill("{replica}").unwrap(), "00000000-0000-0000-0000-000000000007");
    }

    #[test]
    fn a_doubled_brace_is_a_literal_one() {
        assert_eq!(fill(r#"{{"port": {port}}}"#).unwrap(), r#"{"port": 8080}"#);
        assert_eq!(fill("{{port}}").unwrap(), "{port}");
    }

    #[test]
    fn a_brace_that_means_nothing_is_refused() {
        assert_eq!(fill("{prot}").unwrap_err(), TemplateError::Unknown { name: "prot".into() });
        assert_eq!(fill("{port.x}").unwrap_err(), TemplateError::UnknownPort { name: "x".into() });
        assert_eq!(fill("{port").unwrap_err(), TemplateError::Unclosed);
        assert_eq!(fill("port}").unwrap_err(), TemplateError::Unopened);
    }

    proptest! {
        #[test]
        fn text_with_doubled_braces_comes_out_as_it_was(text in ".*") {
            let template = text.replace('{', "{{").replace('}', "}}");
            prop_assert_eq!(fill(&template).unwrap(), text);
        }

        #[test]
        fn a_template_that_passes_the_check_can_be_filled(template in r"([a-zé{}.]|\{port\}|\{node\}|\{port.admin\}){0,12}") {
            let ports = BTreeMap::from([("http".to_owned(), ()), ("admin".to_owned(), ())]);
            prop_assert_eq!(check(&template, &ports).is_ok(), fill(&template).is_ok());
        }
    }
}
