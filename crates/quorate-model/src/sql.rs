//! SQL as it travels: what a client asks, what came of it.
//!
//! These types are prost messages because they are the payload of the hottest log entry and of
//! its stored outcome: fields are only ever added, never renumbered.

use crate::fence::FenceRefused;
use serde::{Deserialize, Serialize};

/// One value of a row or a parameter.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Value {
    /// Absent means NULL.
    #[prost(oneof = "Scalar", tags = "1, 2, 3, 4")]
    pub scalar: Option<Scalar>,
}

/// A value that is not NULL.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Scalar {
    #[prost(sint64, tag = "1")]
    Integer(i64),
    #[prost(double, tag = "2")]
    Real(f64),
    #[prost(string, tag = "3")]
    Text(String),
    #[prost(bytes = "bytes", tag = "4")]
    Blob(bytes::Bytes),
}

impl Value {
    pub const NULL: Value = Value { scalar: None };
}

impl From<Scalar> for Value {
    fn from(scalar: Scalar) -> Self {
        Value { scalar: Some(scalar) }
    }
}

/// One statement with its parameters.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Statement {
    #[prost(string, tag = "1")]
    pub sql: String,
    /// Bound to `?1`, `?2`, … in this order.
    #[prost(message, repeated, tag = "2")]
    pub positional: Vec<Value>,
    /// Bound to `:name`, `@name` or `$name`; the name is without its sign.
    #[prost(message, repeated, tag = "3")]
    pub named: Vec<NamedValue>,
}

/// A named parameter.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NamedValue {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, required, tag = "2")]
    pub value: Value,
}

impl Statement {
    #[must_use]
    pub fn new(sql: impl Into<String>) -> Statement {
        Statement { sql: sql.into(), ..Statement::default() }
    }
}

/// Statements that are one log entry.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SqlBatch {
    #[prost(message, repeated, tag = "1")]
    pub statements: Vec<Statement>,
    /// All or nothing: the first failing statement undoes the ones before it and ends the batch.
    /// Without it each statement stands alone and later ones go on.
    #[prost(bool, tag = "2")]
    pub transaction: bool,
}

/// What came of a [`SqlBatch`]: one result per statement that ran, in order. With `transaction`,
/// nothing follows the first failed one.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SqlOutcome {
    #[prost(message, repeated, tag = "1")]
    pub results: Vec<StatementResult>,
    /// The write was made under an epoch that is not the newest: nothing ran, and there are no results.
    #[prost(message, optional, tag = "2")]
    pub refused: Option<FenceRefused>,
}

/// What came of one statement.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatementResult {
    /// Why SQLite refused it; nothing of it remains. Absent means success.
    #[prost(message, optional, tag = "1")]
    pub error: Option<SqlError>,
    #[prost(uint64, tag = "2")]
    pub rows_affected: u64,
    #[prost(sint64, tag = "3")]
    pub last_insert_id: i64,
    /// Present when the statement returns rows (`RETURNING`, or a query).
    #[prost(message, optional, tag = "4")]
    pub rows: Option<Rows>,
}

/// Why SQLite refused a statement, the same on every node.
#[derive(Clone, PartialEq, prost::Message, thiserror::Error)]
#[error("{message}")]
pub struct SqlError {
    /// SQLite's extended result code.
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
}

/// A table of values.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Rows {
    #[prost(string, repeated, tag = "1")]
    pub columns: Vec<String>,
    /// The declared type of each column in lower case; empty for an expression.
    #[prost(string, repeated, tag = "2")]
    pub types: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    pub rows: Vec<Row>,
}

/// One row; as many values as there are columns.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Row {
    #[prost(message, repeated, tag = "1")]
    pub values: Vec<Value>,
}

/// Which answer a reader asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// What this node has applied, however old. Works without a leader.
    Local,
    /// Everything acknowledged before the read began is in it.
    #[default]
    Linearizable,
}
