//! The workload's words in the cluster's: each call as a request of the public API, and the answer back.

use crate::torture::record::{Answer, Call, Step};
use crate::torture::workload::client::Request;
use crate::torture::workload::services::SCALED;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const PUT: &str = "INSERT INTO registers VALUES (?1, ?2) ON CONFLICT (k) DO UPDATE SET v = excluded.v";
const CAS: &str = "UPDATE registers SET v = ?3 WHERE k = ?1 AND v = ?2";
const GET: &str = "SELECT v FROM registers WHERE k = ?1";
const APPEND: &str = "INSERT INTO elements (list, value) VALUES (?1, ?2)";
const READ: &str = "SELECT value FROM elements WHERE list = ?1 ORDER BY position";
const INSERT: &str = "INSERT INTO inserted VALUES (?1)";

/// The tables. Nothing in them is unique that a second execution would violate: it must be seen.
pub(crate) fn tables() -> Value {
    json!({ "statements": [
        { "sql": "CREATE TABLE registers (k INTEGER PRIMARY KEY, v INTEGER NOT NULL)" },
        { "sql": "CREATE TABLE elements (position INTEGER PRIMARY KEY, list INTEGER NOT NULL, value INTEGER NOT NULL)" },
        { "sql": "CREATE INDEX elements_by_list ON elements (list, position)" },
        { "sql": "CREATE TABLE inserted (n INTEGER NOT NULL)" },
    ], "transaction": true })
}

/// The request that asks for `call`.
pub(crate) fn request(call: &Call, patience: Duration) -> Request {
    let timeout = patience.as_millis();
    let exec = |sql: &str, params: Value| {
        Request::post("/v1/db/exec", &json!({ "sql": sql, "params": params, "timeout_ms": timeout }))
    };
    let query = |key: &u64, consistency: &str| {
        let body = json!({ "sql": GET, "params": [key], "consistency": consistency, "timeout_ms": timeout });
        Request::post("/v1/db/query", &body)
    };
    match call {
        Call::Put { key, value } => exec(PUT, json!([key, value])),
        Call::Cas { key, from, value } => exec(CAS, json!([key, from, value])),
        Call::Get { key } => query(key, "linearizable"),
        Call::GetLocal { key, .. } => query(key, "local"),
        Call::Insert { row } => exec(INSERT, json!([row])),
        Call::Scale { replicas } => Request::post(
            &format!("/v1/services/{SCALED}/scale?timeout_ms={timeout}"),
            &json!({ "replicas": replicas }),
        ),
        Call::Transaction { steps } => {
            let statements: Vec<Value> = steps
                .iter()
                .map(|step| match step {
                    Step::Append { list, value } => json!({ "sql": APPEND, "params": [list, value] }),
                    Step::Read { list } => json!({ "sql": READ, "params": [list] }),
                })
                .collect();
            // A transaction that only reads is one batch of queries: all of one moment.
            let (path, whole) = if call.writes() { ("/v1/db/exec", true) } else { ("/v1/db/query", false) };
            Request::post(path, &json!({ "statements": statements, "transaction": whole, "timeout_ms": timeout }))
        }
    }
}

/// What `answer` says of `call`: the index, and what the client learns.
///
/// # Errors
/// A code for an answer that is not what the API promises; an error of SQLite is one, because no
/// statement of the workload can be refused.
pub(crate) fn read(call: &Call, answer: &Value) -> Result<(u64, Answer), String> {
    let strange = || "strange-answer".to_owned();
    let index = answer.get("index").or_else(|| answer.get("applied")).and_then(Value::as_u64).ok_or_else(strange)?;
    if let Call::Scale { .. } = call {
        return Ok((index, Answer::Done));
    }
    let results = answer["results"].as_array().ok_or_else(strange)?;
    if let Some(error) = results.iter().find_map(|result| result.get("error")) {
        return Err(format!("sqlite-{}", error["code"]));
    }
    let first = results.first().ok_or_else(strange)?;
    let affected = || first["rows_affected"].as_u64().ok_or_else(strange);
    let answer = match call {
        Call::Put { .. } | Call::Insert { .. } if affected()? == 1 => Answer::Done,
        Call::Cas { .. } if affected()? <= 1 => Answer::Swapped(affected()? == 1),
        Call::Get { .. } | Call::GetLocal { .. } => {
            Answer::Value(column(first).ok_or_else(strange)?.first().copied().unwrap_or(0))
        }
        Call::Transaction { steps } if results.len() == steps.len() => {
            let reads = steps.iter().zip(results).filter(|(step, _)| matches!(step, Step::Read { .. }));
            Answer::Lists(reads.map(|(_, result)| column(result)).collect::<Option<_>>().ok_or_else(strange)?)
        }
        _ => return Err(strange()),
    };
    Ok((index, answer))
}

/// All that the workload wrote, in one answer of one moment.
pub(crate) fn everything(consistency: &str) -> Request {
    let body = json!({ "statements": [
        { "sql": "SELECT k, v FROM registers ORDER BY k" },
        { "sql": "SELECT list, value FROM elements ORDER BY position" },
        { "sql": "SELECT n FROM inserted ORDER BY n" },
    ], "consistency": consistency, "timeout_ms": 20_000 });
    Request::post("/v1/db/query", &body)
}

/// Registers, lists and rows of such an answer, and the index of its moment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Everything {
    pub(crate) applied: u64,
    pub(crate) registers: Vec<(u64, u64)>,
    pub(crate) lists: Vec<(u64, Vec<u64>)>,
    pub(crate) rows: Vec<u64>,
}

impl Everything {
    /// Whether the contents are equal, whatever the moment.
    pub(crate) fn same(&self, other: &Everything) -> bool {
        (&self.registers, &self.lists, &self.rows) == (&other.registers, &other.lists, &other.rows)
    }
}

/// `None` for an answer that is none.
pub(crate) fn read_everything(answer: &Value) -> Option<Everything> {
    let applied = answer["applied"].as_u64()?;
    let results = answer["results"].as_array()?;
    let mut lists: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for (list, value) in pairs(results.get(1)?)? {
        lists.entry(list).or_default().push(value);
    }
    let (registers, rows) = (pairs(results.first()?)?, column(results.get(2)?)?);
    Some(Everything { applied, registers, lists: lists.into_iter().collect(), rows })
}

/// The first column of a result.
fn column(result: &Value) -> Option<Vec<u64>> {
    result["rows"].as_array()?.iter().map(|row| row[0].as_u64()).collect()
}

fn pairs(result: &Value) -> Option<Vec<(u64, u64)>> {
    result["rows"].as_array()?.iter().map(|row| Some((row[0].as_u64()?, row[1].as_u64()?))).collect()
}

/// The cluster's own table of events behind `position`.
pub(crate) fn events_after(position: u64) -> Request {
    let sql = "SELECT position, idx, kind FROM events WHERE position > ?1 ORDER BY position LIMIT 1000";
    let body = json!({ "sql": sql, "params": [position], "database": "system", "timeout_ms": 1_500 });
    Request::post("/v1/db/query", &body)
}

/// The index of the newest event in the cluster's own table.
pub(crate) fn newest_event() -> Request {
    let sql = "SELECT coalesce(max(idx), 0) FROM events";
    Request::post("/v1/db/query", &json!({ "sql": sql, "database": "system", "timeout_ms": 1_500 }))
}

pub(crate) fn read_number(answer: &Value) -> Option<u64> {
    answer["results"][0]["rows"][0][0].as_u64()
}

/// Positions, indexes and kinds of such an answer.
pub(crate) fn read_events(answer: &Value) -> Option<Vec<(u64, u64, String)>> {
    let rows = answer["results"][0]["rows"].as_array()?;
    rows.iter().map(|row| Some((row[0].as_u64()?, row[1].as_u64()?, row[2].as_str()?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_what_was_asked() {
        let done = json!({ "results": [{ "rows_affected": 1, "last_insert_id": 3 }], "index": 9 });
        assert_eq!(read(&Call::Put { key: 1, value: 2 }, &done), Ok((9, Answer::Done)));
        let cas = Call::Cas { key: 1, from: 2, value: 3 };
        assert_eq!(read(&cas, &done), Ok((9, Answer::Swapped(true))));
        let not = json!({ "results": [{ "rows_affected": 0, "last_insert_id": 3 }], "index": 9 });
        assert_eq!(read(&cas, &not), Ok((9, Answer::Swapped(false))));
        let found = |rows: Value| json!({ "results": [{ "columns": ["v"], "rows": rows }], "applied": 7, "age_ms": 0 });
        assert_eq!(read(&Call::Get { key: 1 }, &found(json!([[5]]))), Ok((7, Answer::Value(5))));
        assert_eq!(read(&Call::Get { key: 1 }, &found(json!([]))), Ok((7, Answer::Value(0))));
    }

    #[test]
    fn a_write_that_sqlite_refuses_or_that_touches_nothing_is_not_a_success() {
        let refused = json!({ "results": [{ "error": { "code": 19, "message": "m" } }], "index": 9 });
        assert_eq!(read(&Call::Insert { row: 1 }, &refused), Err("sqlite-19".into()));
        let nothing = json!({ "results": [{ "rows_affected": 0 }], "index": 9 });
        assert_eq!(read(&Call::Insert { row: 1 }, &nothing), Err("strange-answer".into()));
        let short = json!({ "results": [{ "rows_affected": 1 }], "index": 9 });
        let steps = vec![Step::Append { list: 1, value: 1 }, Step::Append { list: 2, value: 1 }];
        assert_eq!(read(&Call::Transaction { steps }, &short), Err("strange-answer".into()));
    }

    #[test]
    fn the_reads_of_a_transaction_come_in_their_order() {
        let answer = json!({ "results": [
            { "rows_affected": 0, "last_insert_id": 0, "rows": [[1], [2]] },
            { "rows_affected": 1, "last_insert_id": 3 },
            { "rows_affected": 0, "last_insert_id": 0, "rows": [] },
        ], "index": 4 });
        let steps = vec![Step::Read { list: 1 }, Step::Append { list: 1, value: 3 }, Step::Read { list: 2 }];
        let expected = Answer::Lists(vec![vec![1, 2], vec![]]);
        assert_eq!(read(&Call::Transaction { steps }, &answer), Ok((4, expected)));
    }
}
