//! When a copy counts as healthy: the kinds of checks, and what of them can be asked at all.
//!
//! Pure, as all of a spec. How they are asked is the agent's (`quorate_agent::health`).

use super::validate::{Problem, open_template, sane_path, template, within, within_text};
use super::{ServiceSpec, placeholder};
use crate::time::Span;
use serde::{Deserialize, Serialize};

/// Longest name of a gRPC service: its length is one byte in the question.
const GRPC_NAME_BYTES_MAX: usize = 127;
/// Longest query of a check.
const QUERY_BYTES_MAX: usize = 4096;
/// Longest name of a user or a database: PostgreSQL's own limit.
const IDENTIFIER_BYTES_MAX: usize = 63;

/// When a copy counts as healthy. Exactly one of `http`, `tcp`, `exec`, `grpc` and `sql` is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// Path that must answer 200 to 399 to a GET.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// `true`: the port must accept a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<bool>,
    /// A program and its arguments that must end with status 0: it runs beside the copy, with its environment and
    /// in its directory, and is killed with whatever it started when it is late. Placeholders work as in
    /// `command`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<Vec<String>>,
    /// A name that the port must call serving by `grpc.health.v1.Health`, without TLS; `""` is the server as a
    /// whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<String>,
    /// A query that the port must answer in PostgreSQL's protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql: Option<SqlCheck>,
    /// Name of the port; default the service's main port. Not with `exec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Pause between two checks. 100ms to 1h; default 2s. Until the first success: a tenth of it.
    #[serde(default = "every")]
    pub every: Span,
    /// Longest wait for an answer. 10ms to 1m; default 1s.
    #[serde(default = "timeout")]
    pub timeout: Span,
    /// Failed checks in a row until the copy counts as unhealthy. 1 to 100; default 3.
    #[serde(default = "fail_after")]
    pub fail_after: u32,
}

/// What a database is asked: it is well when the first value that the query gives is there, and neither false nor 0.
/// Logs in anew for each check, without TLS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqlCheck {
    /// 1 to 4096 bytes. Default `SELECT 1`.
    #[serde(default = "query")]
    pub query: String,
    /// Who logs in: 1 to 63 bytes.
    pub user: String,
    /// How: `{secret.NAME}` with a name of `secrets`. Default: without a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// Where: 1 to 63 bytes. Default: the one that is called as the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
}

fn query() -> String {
    "SELECT 1".into()
}
fn every() -> Span {
    Span::from_secs(2)
}
fn timeout() -> Span {
    Span::from_secs(1)
}
fn fail_after() -> u32 {
    3
}

/// What is wrong with a check, and where in it.
pub(super) fn check(check: &HealthCheck, spec: &ServiceSpec) -> Result<(), Problem> {
    let at = |name: &str, problem: String| Err((name.to_owned(), problem));
    if check.tcp == Some(false) {
        return at(".tcp", "is false: write true, or leave it out".into());
    }
    let kinds = [("http", check.http.is_some()), ("tcp", check.tcp.is_some()), ("exec", check.exec.is_some())];
    let kinds = kinds.into_iter().chain([("grpc", check.grpc.is_some()), ("sql", check.sql.is_some())]);
    let kinds: Vec<&str> = kinds.filter(|(_, given)| *given).map(|(kind, _)| kind).collect();
    match kinds.as_slice() {
        [_] => {}
        [] => {
            let kinds =
                "http = \"/path\", tcp = true, exec = [\"/path/to/program\"], grpc = \"\" or sql = { user = \"joe\" }";
            return at("", format!("checks nothing: write {kinds}"));
        }
        [one, other] => return at("", format!("has both `{one}` and `{other}`: keep one")),
        [one, ..] => return at("", format!("has `{one}` and others: keep one")),
    }
    if let Some(path) = &check.http {
        sane_path(path).map_err(|problem| (".http".to_owned(), problem))?;
    }
    if let Some(name) = &check.grpc
        && (name.len() > GRPC_NAME_BYTES_MAX || name.bytes().any(|b| !b.is_ascii_graphic()))
    {
        return at(".grpc", format!("is {name:?}; write the name of a service like \"my.Service\", or \"\""));
    }
    if let Some(sql) = &check.sql {
        asked(sql, spec).map_err(|(name, problem)| (format!(".sql.{name}"), problem))?;
    }
    if let Some(command) = &check.exec {
        if command.first().is_none_or(|program| program.trim().is_empty()) {
            return at(".exec", "names no program: write [\"/path/to/program\", \"argument\", …]".into());
        }
        for word in command {
            open_template(word, spec).map_err(|problem| (".exec".to_owned(), problem))?;
        }
        if check.port.is_some() {
            return at(".port", "is for checks that ask a port: leave it out".into());
        }
    } else if spec.ports.is_empty() {
        return at("", "needs a port: declare one, like ports = { http = \"auto\" }".into());
    }
    if let Some(port) = &check.port
        && !spec.ports.contains_key(port)
    {
        let declared: Vec<&str> = spec.ports.keys().map(String::as_str).collect();
        return at(".port", format!("is {port:?}, which `ports` does not declare; declared: {}", declared.join(", ")));
    }
    within(check.every, Span::from_millis(100), Span::from_secs(3600)).map_err(|p| (".every".to_owned(), p))?;
    within(check.timeout, Span::from_millis(10), Span::from_secs(60)).map_err(|p| (".timeout".to_owned(), p))?;
    if !(1..=100).contains(&check.fail_after) {
        return at(".fail_after", format!("is {}; it must be 1 to 100", check.fail_after));
    }
    Ok(())
}

fn asked(SqlCheck { query, user, password, database }: &SqlCheck, spec: &ServiceSpec) -> Result<(), Problem> {
    let words = [("query", Some(query), QUERY_BYTES_MAX), ("user", Some(user), IDENTIFIER_BYTES_MAX)];
    for (name, text, most) in words.into_iter().chain([("database", database.as_ref(), IDENTIFIER_BYTES_MAX)]) {
        let Some(text) = text else { continue };
        let fits = within_text(text, most).and_then(|()| without_nul(text));
        fits.map_err(|problem| (name.to_owned(), problem))?;
    }
    let Some(password) = password else { return Ok(()) };
    let wrong = |problem: String| ("password".to_owned(), problem);
    template(password, spec).map_err(wrong)?;
    if !placeholder::tells_secrets(password) {
        return Err(wrong(
            "is in clear, and everybody who may see the service sees it: write \"{secret.NAME}\"".into(),
        ));
    }
    Ok(())
}

fn without_nul(text: &str) -> Result<(), String> {
    if text.contains('\0') { Err("has a NUL byte, which ends a text in PostgreSQL's protocol".into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use crate::spec::{Format, parse};
    use expect_test::{Expect, expect};

    /// Validates one service with these lines.
    fn check(lines: &str, expected: Expect) {
        let text = format!("[[service]]\nname = 'web'\ncommand = ['/bin/web']\n{lines}");
        let document = parse(&text, Format::Toml).unwrap_or_else(|problem| panic!("{problem}\n{text}"));
        expected.assert_eq(&document.validate().map_or_else(|problem| problem.to_string(), |()| "ok".into()));
    }

    #[test]
    fn a_health_check_asks_one_thing_on_a_declared_port() {
        let health = |lines: &str, expected: Expect| check(&format!("ports = {{ http = 'auto' }}\n{lines}"), expected);
        check(
            "health = { tcp = true }",
            expect![[r#"`service.web.health` needs a port: declare one, like ports = { http = "auto" }"#]],
        );
        health("health = { tcp = true }", expect!["ok"]);
        health(
            "health = {}",
            expect![[
                r#"`service.web.health` checks nothing: write http = "/path", tcp = true, exec = ["/path/to/program"], grpc = "" or sql = { user = "joe" }"#
            ]],
        );
        check("health = { exec = ['pg_isready', '--host', '{node}'] }", expect!["ok"]);
        health("health = { grpc = '' }", expect!["ok"]);
        check(
            "health = { exec = [] }",
            expect![[r#"`service.web.health.exec` names no program: write ["/path/to/program", "argument", …]"#]],
        );
        health(
            "health = { exec = ['x'], port = 'http' }",
            expect!["`service.web.health.port` is for checks that ask a port: leave it out"],
        );
        health(
            "health = { exec = ['x'], grpc = 'a', http = '/' }",
            expect!["`service.web.health` has `http` and others: keep one"],
        );
        health(
            "health = { grpc = 'my service' }",
            expect![[
                r#"`service.web.health.grpc` is "my service"; write the name of a service like "my.Service", or """#
            ]],
        );
        health(
            "health = { http = '/', tcp = true }",
            expect!["`service.web.health` has both `http` and `tcp`: keep one"],
        );
        health("health = { tcp = false }", expect!["`service.web.health.tcp` is false: write true, or leave it out"]);
        health("health = { http = 'ok' }", expect![[r#"`service.web.health.http` is "ok"; it must begin with /"#]]);
        health(
            "health = { tcp = true, port = 'htp' }",
            expect![[r#"`service.web.health.port` is "htp", which `ports` does not declare; declared: http"#]],
        );
        health(
            "health = { tcp = true, every = '99ms' }",
            expect!["`service.web.health.every` is 99ms; it must be 100ms to 1h"],
        );
        health(
            "health = { tcp = true, timeout = '61s' }",
            expect!["`service.web.health.timeout` is 1m1s; it must be 10ms to 1m"],
        );
        health(
            "health = { tcp = true, fail_after = 0 }",
            expect!["`service.web.health.fail_after` is 0; it must be 1 to 100"],
        );
    }

    #[test]
    fn a_database_is_asked_as_somebody_whose_password_is_a_secret() {
        let sql = |table: &str, expected: Expect| {
            check(
                &format!("ports = {{ db = 'auto' }}\nsecrets = ['pg']\nhealth = {{ sql = {{ {table} }} }}"),
                expected,
            );
        };
        sql("user = 'joe'", expect!["ok"]);
        sql(
            "query = 'SELECT NOT pg_is_in_recovery()', user = 'joe', password = '{secret.pg}', database = 'x'",
            expect!["ok"],
        );
        sql("user = ''", expect!["`service.web.health.sql.user` is empty"]);
        sql("user = 'joe', query = ''", expect!["`service.web.health.sql.query` is empty"]);
        sql(
            "user = 'joe', database = \"a\\u0000b\"",
            expect!["`service.web.health.sql.database` has a NUL byte, which ends a text in PostgreSQL's protocol"],
        );
        sql(
            "user = 'joe', password = 'geheim'",
            expect![[
                r#"`service.web.health.sql.password` is in clear, and everybody who may see the service sees it: write "{secret.NAME}""#
            ]],
        );
        sql(
            "user = 'joe', password = '{secret.my}'",
            expect!["`service.web.health.sql.password` has `{secret.my}`, and `secrets` does not list it"],
        );
        check(
            "health = { sql = { user = 'joe' } }",
            expect![[r#"`service.web.health` needs a port: declare one, like ports = { http = "auto" }"#]],
        );
    }
}
