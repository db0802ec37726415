//! Placeholders in a command or an environment variable: `{port}`, `{port.NAME}`, `{replica}`,
//! `{node}`, `{ordinal}`, `{artifact}`, `{artifact.NAME}`, `{dir}`, `{secret.NAME}`, `{external.NAME.FIELD}`. `{{`
//! and `}}` are literal braces.
//!
//! One scanner serves both the check of a spec and the launch of a replica, so what was accepted
//! can be filled. A brace that means nothing is an error: a typo must not reach a program as text.

use super::ServiceSpec;
use crate::access::name::{ExternalName, SecretName};
use crate::external::{FIELDS, Injected};
use crate::id::ReplicaId;
use std::collections::BTreeMap;

/// All placeholders, as a message shows them.
const KNOWN: &str = "{port}, {port.NAME}, {replica}, {node}, {ordinal}, {artifact}, {artifact.NAME}, {dir}, \
                     {secret.NAME}, {external.NAME.FIELD}";

/// What the placeholders of one replica stand for.
#[derive(Clone, Copy)]
pub struct Placeholders<'a> {
    /// The numbers of the replica's ports, by name.
    pub ports: &'a BTreeMap<String, u16>,
    /// The port that `{port}` stands for; see [`ServiceSpec::main_port`](super::ServiceSpec::main_port).
    pub main_port: Option<&'a str>,
    pub replica: ReplicaId,
    /// The node's name.
    pub node: &'a str,
    pub ordinal: u32,
    /// The replica's working directory.
    pub dir: &'a str,
    /// Where the service's artifacts lie, in the order of the spec, by name.
    pub artifacts: &'a [(String, String)],
    /// The values of the service's secrets.
    pub secrets: &'a BTreeMap<SecretName, String>,
    /// The service's externals.
    pub externals: &'a [Injected<'a>],
}

impl std::fmt::Debug for Placeholders<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Placeholders").field("replica", &self.replica).finish_non_exhaustive()
    }
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
    #[error("has `{{artifact.{name}}}`, and `artifact` has none of this name")]
    UnknownArtifact { name: String },
    #[error("has `{{secret.{name}}}`, and `secrets` does not list it")]
    UnknownSecret { name: SecretName },
    #[error("has `{{external.{name}.…}}`, and `externals` does not list `{name}`")]
    UnknownExternal { name: String },
    #[error("has `{{external.{name}.{field}}}`, and externals have no `{field}`; they have {}", FIELDS.join(", "))]
    UnknownField { name: String, field: String },
    #[error("has `{{artifact}}`, and the service has no artifact")]
    NoArtifact,
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
            Piece::Dir => filled.push_str(values.dir),
            Piece::Ordinal => filled.push_str(&values.ordinal.to_string()),
            Piece::MainArtifact => {
                let (_, path) = values.artifacts.first().ok_or(TemplateError::NoArtifact)?;
                filled.push_str(path);
            }
            Piece::Artifact(name) => {
                let unknown = || TemplateError::UnknownArtifact { name: name.to_owned() };
                let (_, path) = values.artifacts.iter().find(|(known, _)| known == name).ok_or_else(unknown)?;
                filled.push_str(path);
            }
            Piece::Secret(name) => {
                let value = values.secrets.get(&name).ok_or(TemplateError::UnknownSecret { name })?;
                filled.push_str(value);
            }
            Piece::External { name, field } => {
                let unknown = || TemplateError::UnknownExternal { name: name.to_owned() };
                let found =
                    values.externals.iter().find(|it| is_called(&it.external.name, name)).ok_or_else(unknown)?;
                // What it does not have is empty, as in the environment.
                filled.push_str(&found.fields().remove(field).unwrap_or_default());
            }
        }
    }
    Ok(filled)
}

/// Templates of files write `_` for `-`, so that is understood here as well.
fn is_called(name: &ExternalName, written: &str) -> bool {
    name.as_str() == written || name.as_str().replace('-', "_") == written
}

/// Whether a secret is part of what the template becomes.
#[must_use]
pub fn tells_secrets(template: &str) -> bool {
    let tells = |piece: Piece<'_>| match piece {
        Piece::Secret(_) => true,
        Piece::External { field, .. } => Injected::is_secret(field),
        _ => false,
    };
    pieces(template).any(|piece| piece.is_ok_and(tells))
}

/// Whether this secret is part of what the template becomes, by its own name.
pub(super) fn names_secret(template: &str, secret: &SecretName) -> bool {
    pieces(template).any(|piece| matches!(piece, Ok(Piece::Secret(name)) if name == *secret))
}

/// The variable in which a replica finds a secret field of an external that the template has, as it is written there.
pub(super) fn secret_variable(template: &str) -> Option<(String, String)> {
    pieces(template).find_map(|piece| match piece {
        Ok(Piece::External { name, field }) if Injected::is_secret(field) => {
            Some((format!("{{external.{name}.{field}}}"), Injected::variable_of(name, field)))
        }
        Ok(_) | Err(_) => None,
    })
}

/// Whether a template can be filled for this service.
pub(super) fn check(
    template: &str,
    ServiceSpec { ports, artifacts, secrets, externals, .. }: &ServiceSpec,
) -> Result<(), TemplateError> {
    for piece in pieces(template) {
        match piece? {
            Piece::MainPort if ports.is_empty() => return Err(TemplateError::NoPort),
            Piece::Port(name) if !ports.contains_key(name) => {
                return Err(TemplateError::UnknownPort { name: name.to_owned() });
            }
            Piece::MainArtifact if artifacts.is_empty() => return Err(TemplateError::NoArtifact),
            Piece::Artifact(name) if artifacts.iter().all(|artifact| artifact.name != name) => {
                return Err(TemplateError::UnknownArtifact { name: name.to_owned() });
            }
            Piece::Text(_)
            | Piece::MainPort
            | Piece::Port(_)
            | Piece::Replica
            | Piece::Node
            | Piece::Dir
            | Piece::Ordinal => {}
            Piece::Secret(name) if !secrets.contains(&name) => return Err(TemplateError::UnknownSecret { name }),
            Piece::External { name, .. } if !externals.iter().any(|external| is_called(external, name)) => {
                return Err(TemplateError::UnknownExternal { name: name.to_owned() });
            }
            Piece::External { name, field } if !FIELDS.contains(&field) => {
                return Err(TemplateError::UnknownField { name: name.to_owned(), field: field.to_owned() });
            }
            Piece::MainArtifact | Piece::Artifact(_) | Piece::Secret(_) | Piece::External { .. } => {}
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
    Dir,
    Ordinal,
    MainArtifact,
    Artifact(&'a str),
    Secret(SecretName),
    External { name: &'a str, field: &'a str },
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
        "dir" => Piece::Dir,
        "ordinal" => Piece::Ordinal,
        "artifact" => Piece::MainArtifact,
        _ => match name.split_once('.') {
            Some(("port", port)) => Piece::Port(port),
            Some(("artifact", artifact)) => Piece::Artifact(artifact),
            Some(("secret", secret)) if SecretName::new(secret).is_ok_and(|name| name.as_str() == secret) => {
                Piece::Secret(SecretName::new(secret).expect("it was one"))
            }
            Some(("external", rest)) if rest.contains('.') => {
                let (name, field) = rest.split_once('.').unwrap_or_default();
                Piece::External { name, field }
            }
            _ => return Err(TemplateError::Unknown { name: name.to_owned() }),
        },
    };
    Ok((piece, after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::external::{External, ExternalKind};
    use proptest::prelude::*;

    fn orders() -> External {
        let orders = serde_json::json!({
            "name": "orders-db", "kind": "postgres", "hosts": ["h1", "h2:6000"], "user": "joe", "database": "orders",
        });
        serde_json::from_value(orders).unwrap()
    }

    fn fill(template: &str) -> Result<String, TemplateError> {
        let orders = orders();
        let ports = BTreeMap::from([("http".to_owned(), 8080), ("admin".to_owned(), 9000)]);
        let replica = ReplicaId::from_u128(7);
        let secrets = BTreeMap::from([(SecretName::new("db.pw").unwrap(), "{x}".to_owned())]);
        let artifacts = [("app".to_owned(), "/a/app".to_owned()), ("jre".to_owned(), "/a/jre".to_owned())];
        expand(
            template,
            &Placeholders {
                ports: &ports,
                main_port: Some("http"),
                replica,
                node: "n1",
                ordinal: 2,
                dir: "/work",
                artifacts: &artifacts,
                secrets: &secrets,
                externals: &[Injected { external: &orders, password: Some("p@w") }],
            },
        )
    }

    #[test]
    fn every_placeholder_is_filled() {
        assert_eq!(fill("--listen=:{port}").unwrap(), "--listen=:8080");
        assert_eq!(fill("{port.admin}/{node}/{ordinal}{dir}").unwrap(), "9000/n1/2/work");
        assert_eq!(fill("{artifact}/bin:{artifact.jre}").unwrap(), "/a/app/bin:/a/jre");
        assert_eq!(fill("pw={secret.db.pw}").unwrap(), "pw={x}", "a value is no template");
        assert!(tells_secrets("pw={secret.db.pw}") && !tells_secrets("{port}{{secret.db.pw}}"));
        assert_eq!(fill("{replica}").unwrap(), "00000000-0000-0000-0000-000000000007");
    }

    #[test]
    fn e6_fields_of_an_external_are_filled_and_the_secret_ones_are_known() {
        assert_eq!(fill("{external.orders-db.host}:{external.orders_db.port}").unwrap(), "h1:5432");
        assert_eq!(fill("jdbc:{external.orders-db.hosts}").unwrap(), "jdbc:h1:5432,h2:6000");
        assert_eq!(fill("pw={external.orders-db.password}").unwrap(), "pw=p@w");
        assert_eq!(fill("<{external.orders-db.region}>").unwrap(), "<>", "what it does not have is empty");
        for (template, secret) in [("{external.x.password}", true), ("{external.x.url}", true)] {
            assert_eq!(tells_secrets(template), secret);
        }
        assert!(!tells_secrets("{external.x.host}{{external.x.url}}"));
        let told = secret_variable("a {external.orders-db.url}").unwrap();
        assert_eq!(told, ("{external.orders-db.url}".to_owned(), "ORDERS_DB_URL".to_owned()));
        let unknown = fill("{external.other.url}").unwrap_err();
        assert_eq!(unknown, TemplateError::UnknownExternal { name: "other".into() });
        assert_eq!(fill("{external.url}").unwrap_err(), TemplateError::Unknown { name: "external.url".into() });
    }

    #[test]
    fn e6_every_field_that_an_external_can_have_is_known() {
        let all = orders();
        let fields = Injected { external: &all, password: None }.fields();
        assert!(fields.keys().all(|field| FIELDS.contains(&field.as_str())), "{fields:?}");
        let settings = ExternalKind::ALL.into_iter().flat_map(ExternalKind::settings);
        assert!(settings.into_iter().all(|field| FIELDS.contains(field)));
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
            let text = "[[service]]\nname = 'web'\ncommand = ['x']\nports = { http = 1, admin = 2 }";
            let spec = crate::spec::parse(text, crate::spec::Format::Toml).unwrap().services.remove(0);
            prop_assert_eq!(check(&template, &spec).is_ok(), fill(&template).is_ok());
        }
    }
}
