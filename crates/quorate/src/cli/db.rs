//! `quorate db`: SQL from the command line.

use crate::cli::Context;
use crate::cli::client::{Call, to_json};
use crate::cli::failure::{Exit, Failure};
use crate::cli::screen;
use clap::{Args, Subcommand, ValueEnum};
use quorate_model::fence::{BadFence, Fence};
use serde::Deserialize;
use serde_json::{Value, json};
use std::str::FromStr;
use ureq::http::Method;

#[derive(Debug, Subcommand)]
pub(crate) enum DbCommand {
    /// Read
    #[command(
        after_help = "Examples:\n  quorate db query 'SELECT * FROM notes'\n  quorate db query --local -o json 'SELECT count(*) FROM notes'\n  quorate db query --database system 'SELECT name FROM sqlite_schema'"
    )]
    Query {
        #[command(flatten)]
        what: Sql,
        /// What the answering node has, however old; works without a majority
        #[arg(long)]
        local: bool,
    },
    /// Write
    #[command(
        after_help = "Examples:\n  quorate db exec 'CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)'\n  quorate db exec \"INSERT INTO notes (text) VALUES ('hello')\"\n  quorate db exec --fence env 'UPDATE notes SET seen = 1'   (in a service that runs once)"
    )]
    Exec {
        #[command(flatten)]
        what: Sql,
        /// Only while no newer copy of the service has taken over; `env`: the service and the epoch of the copy
        /// that this runs in
        #[arg(long, value_name = "SERVICE@EPOCH|env")]
        fence: Option<FenceOf>,
    },
}

/// Where a fence is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FenceOf {
    Copy(Fence),
    /// In what a copy of a service finds in its environment.
    Environment,
}

impl FromStr for FenceOf {
    type Err = BadFence;

    fn from_str(text: &str) -> Result<FenceOf, BadFence> {
        if text == "env" { Ok(FenceOf::Environment) } else { text.parse().map(FenceOf::Copy) }
    }
}

impl FenceOf {
    fn find(self, variable: impl Fn(&str) -> Option<String>) -> Result<Fence, Failure> {
        if let FenceOf::Copy(fence) = self {
            return Ok(fence);
        }
        let missing = |name: &str| {
            Failure::new(Exit::Usage, "no-fence", format!("{name} is not set, so there is no fence to be found"))
                .why("only copies of services with mode = \"singleton\" find QUORATE_SERVICE and QUORATE_EPOCH there")
                .fix("say it yourself: --fence SERVICE@EPOCH")
        };
        let of = |name| variable(name).ok_or_else(|| missing(name));
        let text = format!("{}@{}", of("QUORATE_SERVICE")?, of("QUORATE_EPOCH")?);
        let bad = |error: BadFence| {
            Failure::new(Exit::Usage, "bad-fence", format!("`{text}` of the environment is not a fence"))
                .why(error)
                .fix("say it yourself: --fence SERVICE@EPOCH")
        };
        text.parse().map_err(bad)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Sql {
    /// One statement
    sql: String,
    /// Which database
    #[arg(long, value_enum, default_value_t = Database::Main)]
    database: Database,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Database {
    /// Yours
    Main,
    /// The cluster's own, only to be read
    System,
}

#[derive(Debug, Deserialize)]
struct Results {
    results: Vec<StatementResult>,
}

#[derive(Debug, Deserialize)]
struct StatementResult {
    #[serde(default)]
    error: Option<Value>,
    #[serde(default)]
    columns: Vec<String>,
    #[serde(default)]
    rows: Vec<Vec<Value>>,
    #[serde(default)]
    rows_affected: u64,
    #[serde(default)]
    last_insert_id: i64,
}

pub(crate) fn run(context: &Context, command: DbCommand) -> Result<(), Failure> {
    let client = context.client()?;
    match command {
        DbCommand::Query { what, local } => {
            let consistency = if local { "local" } else { "linearizable" };
            let result = only(client.ask("/v1/db/query", &what.body(Some(consistency)))?)?;
            if context.screen.is_json() {
                context.screen.json(&json!({ "columns": result.columns, "rows": result.rows }));
            } else {
                context.screen.data(&rows_table(&result));
            }
        }
        DbCommand::Exec { what, fence } => {
            let fence = fence.map(|fence| fence.find(|name| std::env::var(name).ok())).transpose()?;
            let header = fence.map(|fence| ("Quorate-Fence", fence.to_string()));
            let body = Some(("application/json", to_json(&what.body(None))));
            let call = Call { method: Method::POST, path: "/v1/db/exec", body, header, mutation: true, patient: true };
            let result = only(client.send(&call)?.json()?)?;
            if context.screen.is_json() {
                context.screen.json(&json!({
                    "rows_affected": result.rows_affected,
                    "last_insert_id": result.last_insert_id,
                    "columns": result.columns,
                    "rows": result.rows,
                }));
            } else if result.columns.is_empty() {
                let rows = if result.rows_affected == 1 { "row" } else { "rows" };
                context.screen.data(&format!("✔ {} {rows} changed", result.rows_affected));
            } else {
                context.screen.data(&rows_table(&result));
            }
        }
    }
    Ok(())
}

impl Sql {
    fn body(&self, consistency: Option<&str>) -> Value {
        let database = match self.database {
            Database::Main => "main",
            Database::System => "system",
        };
        let mut body = json!({ "sql": self.sql, "database": database });
        if let Some(consistency) = consistency {
            body["consistency"] = consistency.into();
        }
        body
    }
}

/// The result of the one statement that was sent.
fn only(mut answer: Results) -> Result<StatementResult, Failure> {
    if answer.results.is_empty() {
        return Err(Failure::new(Exit::Usage, "no-statement", "there is no statement in this")
            .fix("quorate db query 'SELECT 1'"));
    }
    let result = answer.results.remove(0);
    match &result.error {
        None | Some(Value::Null) => Ok(result),
        Some(error) => {
            let message = error.as_str().or_else(|| error["message"].as_str()).unwrap_or("it gave no reason");
            Err(Failure::new(Exit::Failed, "sql-error", "SQLite refused the statement").why(message))
        }
    }
}

fn rows_table(result: &StatementResult) -> String {
    let header: Vec<&str> = result.columns.iter().map(String::as_str).collect();
    let numbers: Vec<usize> = (0..header.len())
        .filter(|&column| {
            let mut values = result.rows.iter().filter_map(|row| row.get(column)).filter(|value| !value.is_null());
            result.rows.iter().any(|row| row.get(column).is_some_and(Value::is_number)) && values.all(Value::is_number)
        })
        .collect();
    let shown = |value: &Value| match value {
        Value::Null => "NULL".to_owned(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    screen::table(&header, &numbers, result.rows.iter().map(|row| row.iter().map(shown).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn rows_are_a_table_with_figures_flush_right() {
        let result = serde_json::from_value(json!({
            "columns": ["id", "text"], "rows": [[7, "hello"], [12, null], [null, "x"]]
        }))
        .unwrap();
        expect![[r"
              id  text
               7  hello
              12  NULL
            NULL  x"]]
        .assert_eq(&rows_table(&result));
    }

    #[test]
    fn a_copy_finds_its_fence_in_its_environment() {
        let find = |service: Option<&str>, epoch: Option<&str>| {
            let fence: FenceOf = "env".parse().unwrap();
            fence.find(|name| if name == "QUORATE_SERVICE" { service } else { epoch }.map(str::to_owned))
        };
        assert_eq!(find(Some("db"), Some("4")).unwrap().to_string(), "db@4");
        assert_eq!(find(Some("web"), None).unwrap_err().code, "no-fence");
        assert_eq!(find(None, Some("4")).unwrap_err().code, "no-fence");
        assert_eq!(find(Some("db"), Some("0")).unwrap_err().code, "bad-fence");
        assert_eq!("db@4".parse::<FenceOf>().unwrap().find(|_| None).unwrap().to_string(), "db@4");
        assert!("db".parse::<FenceOf>().is_err());
    }

    #[test]
    fn a_refused_statement_is_a_failure_with_the_words_of_sqlite() {
        for error in [json!("no such table: t"), json!({ "code": 1, "message": "no such table: t" })] {
            let answer = serde_json::from_value(json!({ "results": [{ "error": error }] })).unwrap();
            let failure = only(answer).unwrap_err();
            assert_eq!((failure.exit, failure.why.as_str()), (Exit::Failed, "no such table: t"));
        }
    }
}
