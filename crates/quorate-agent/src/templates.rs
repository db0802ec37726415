//! The files that are made for a replica right before it starts.
//!
//! A template sees `service`, `replica`, `ordinal`, `node`, `dir`, `port`, `ports.NAME`, `artifact`,
//! `artifacts.NAME`, `secrets.NAME` (names with other letters than of a word: `secrets["db-password"]`),
//! `external.NAME.FIELD`, where `-` in the name is written `_`: `external.orders_db.url`, and `endpoints.NAME` of the
//! services that it uses, by which files are made anew while it runs. What it does not find is an error, never an empty text. It reaches neither other files nor the system, and
//! its work is bounded.

use crate::endpoints::{self, Endpoints};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value};
use quorate_model::external::Injected;
use quorate_model::spec::{Placeholders, ServiceSpec, TemplateError, expand};
use quorate_model::template::Template;
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Steps of one template: a loop over thousands of things fits, one without end does not.
const FUEL: u64 = 1_000_000;
/// The largest template of a file, and the largest file that is made.
const BYTES_MAX: usize = 1 << 20;

/// Why a file was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RenderError {
    #[error("the template of {to} {source}")]
    From { to: String, source: TemplateError },
    #[error("the template of {to}: {problem}")]
    Bad { to: String, problem: String },
    #[error("cannot make {to}")]
    Io { to: String, source: io::Error },
}

/// What of a file is beyond its replica and that one's node.
#[derive(Clone, Copy)]
pub(crate) struct Beyond<'a> {
    pub(crate) endpoints: &'a Endpoints,
    pub(crate) externals: &'a [Injected<'a>],
}

/// Makes all files of a service below `work`, and says whether one has another content than before.
pub(crate) fn render(
    spec: &ServiceSpec,
    values: &Placeholders<'_>,
    beyond: &Beyond<'_>,
    work: &Path,
) -> Result<bool, RenderError> {
    let mut changed = false;
    for template in &spec.templates {
        let to = || template.to.clone();
        let text = text_of(template, values)?;
        let made = filled(&text, spec, values, beyond).map_err(|problem| RenderError::Bad { to: to(), problem })?;
        if fs::read(work.join(&template.to)).is_ok_and(|before| before == made.as_bytes()) {
            continue;
        }
        write(template, &made, work).map_err(|source| RenderError::Io { to: to(), source })?;
        changed = true;
    }
    Ok(changed)
}

/// Removes the files: what was made with secrets is not kept with the logs.
pub(crate) fn remove(spec: &ServiceSpec, work: &Path) -> io::Result<()> {
    spec.templates.iter().try_for_each(|template| crate::files::remove_file(&work.join(&template.to)))
}

fn text_of(template: &Template, values: &Placeholders<'_>) -> Result<String, RenderError> {
    let to = || template.to.clone();
    let Some(from) = &template.from else { return Ok(template.text.clone().unwrap_or_default()) };
    let from = expand(from, values).map_err(|source| RenderError::From { to: to(), source })?;
    let failed = |source| RenderError::Io { to: to(), source };
    let size = fs::metadata(&from).map_err(failed)?.len();
    if size > BYTES_MAX as u64 {
        return Err(RenderError::Bad {
            to: to(),
            problem: format!("{from} has {size} bytes; at most {BYTES_MAX} are read"),
        });
    }
    fs::read_to_string(&from).map_err(failed)
}

fn filled(text: &str, spec: &ServiceSpec, values: &Placeholders<'_>, beyond: &Beyond<'_>) -> Result<String, String> {
    let Beyond { endpoints, externals } = *beyond;
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    environment.set_syntax(syntax.map_err(|error| error.to_string())?);
    environment.set_fuel(Some(FUEL));
    let artifacts: BTreeMap<&str, &str> =
        values.artifacts.iter().map(|(name, path)| (name.as_str(), path.as_str())).collect();
    // Passwords of externals have their own place.
    let secrets: BTreeMap<&str, &str> = values
        .secrets
        .iter()
        .filter(|(name, _)| spec.secrets.contains(*name))
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let fields = |it: &Injected<'_>| (it.external.name.as_str().replace('-', "_"), Value::from_pairs(it.fields()));
    let externals: BTreeMap<String, Value> = externals.iter().map(fields).collect();
    let ports: BTreeMap<&str, u16> = values.ports.iter().map(|(name, port)| (name.as_str(), *port)).collect();
    let number = |name: &str| values.ports.get(name).map_or(Value::UNDEFINED, |port| Value::from(*port));
    let given = Value::from_pairs([
        ("service", Value::from(spec.name.as_str())),
        ("replica", Value::from(values.replica.to_string())),
        ("ordinal", Value::from(values.ordinal)),
        ("node", Value::from(values.node)),
        ("dir", Value::from(values.dir)),
        ("port", values.main_port.map_or(Value::UNDEFINED, number)),
        ("ports", Value::from_pairs(ports)),
        ("artifact", values.artifacts.first().map_or(Value::UNDEFINED, |(_, path)| Value::from(path.as_str()))),
        ("artifacts", Value::from_pairs(artifacts)),
        ("secrets", Value::from_pairs(secrets)),
        ("endpoints", endpoints::value(endpoints)),
        ("external", Value::from_pairs(externals)),
    ]);
    // What is said beyond the kind may show a value, except of the text itself.
    let at = |error: minijinja::Error| {
        let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
        let detail = error.detail().filter(|_| error.kind() == ErrorKind::SyntaxError);
        format!("{line}{}{}", error.kind(), detail.map(|detail| format!(": {detail}")).unwrap_or_default())
    };
    let made = environment.render_str(text, given).map_err(at)?;
    if made.len() > BYTES_MAX {
        Err(format!("makes {} bytes; at most {BYTES_MAX} are written", made.len()))
    } else {
        Ok(made)
    }
}

fn write(template: &Template, content: &str, work: &Path) -> io::Result<()> {
    let path = work.join(&template.to);
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    // One that was left behind may have another mode.
    crate::files::remove_file(&new)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(content.as_bytes())?;
    // Also what the process's umask would take away.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(template.mode.bits()))?;
    fs::rename(&new, &path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_model::access::name::SecretName;
    use quorate_model::id::ReplicaId;
    use std::os::unix::fs::PermissionsExt as _;

    fn rendered(templates: serde_json::Value) -> Result<tempfile::TempDir, RenderError> {
        let work = tempfile::tempdir().unwrap();
        fs::write(work.path().join("file.j2"), "from {{ node }}").unwrap();
        let spec = serde_json::json!({ "name": "web", "command": ["x"], "secrets": ["db-pw"], "template": templates });
        let spec: ServiceSpec = serde_json::from_value(spec).unwrap();
        let secret = SecretName::new("db-pw").unwrap();
        let values = Placeholders {
            ports: &BTreeMap::from([("http".to_owned(), 8080)]),
            main_port: Some("http"),
            replica: ReplicaId::from_u128(1),
            node: "n1",
            ordinal: 2,
            dir: "/work",
            artifacts: &[("main".to_owned(), work.path().display().to_string())],
            secrets: &BTreeMap::from([(secret, "<p&w>".to_owned())]),
            externals: &[],
        };
        let orders = serde_json::json!({
            "name": "orders-db", "kind": "postgres", "hosts": ["h1", "h2:6000"], "user": "joe", "database": "orders",
        });
        let orders = serde_json::from_value(orders).unwrap();
        let externals = [Injected { external: &orders, password: Some("p@w") }];
        let beyond = Beyond { endpoints: &Endpoints::new(), externals: &externals };
        render(&spec, &values, &beyond, work.path()).map(|_| work)
    }

    #[test]
    fn a_file_has_ports_secrets_and_its_mode_and_nothing_is_escaped() {
        let text = "{{ service }} {{ port }} {{ ports.http }} {{ ordinal }} {{ dir }} {{ secrets['db-pw'] }}\n\
                    {% for name, port in ports|items %}{{ name }}={{ port }}{% endfor %}\n";
        let work = rendered(serde_json::json!([
            { "text": text, "to": "conf/app.html", "mode": "0640" },
            { "from": "{artifact}/file.j2", "to": "other" },
        ]));
        let work = work.unwrap();
        let path = work.path().join("conf/app.html");
        assert_eq!(fs::read_to_string(&path).unwrap(), "web 8080 8080 2 /work <p&w>\nhttp=8080\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        let other = work.path().join("other");
        assert_eq!(fs::read_to_string(&other).unwrap(), "from n1");
        assert_eq!(fs::metadata(&other).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn e6_a_file_has_what_its_service_is_told_of_externals() {
        let text = "{{ external.orders_db.url }} {{ external.orders_db.hosts }} {{ external.orders_db.password }}";
        let work = rendered(serde_json::json!([{ "text": text, "to": "a" }])).unwrap();
        assert_eq!(
            fs::read_to_string(work.path().join("a")).unwrap(),
            "postgres://joe:p%40w@h1:5432,h2:6000/orders?sslmode=disable h1:5432,h2:6000 p@w"
        );
    }

    #[test]
    fn what_is_not_there_is_an_error_with_its_line_and_no_work_is_without_end() {
        let error = |text: &str| rendered(serde_json::json!([{ "text": text, "to": "a" }])).unwrap_err().to_string();
        assert_eq!(error("a\n{{ secrets.nothing }}"), "the template of a: line 2: undefined value");
        assert!(error("{{ port").starts_with("the template of a: line 1: syntax error"));
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
        assert!(error(endless).contains("fuel"), "{}", error(endless));
        assert!(error("{% include '/etc/passwd' %}").contains("line 1"));
    }
}
