//! Numbers that queries find in the cluster's database, for services whose copies follow them (K15).
//!
//! Every node asks, of its own file, as every node watches what copies use: so each can explain what it sees, and
//! whoever leads next knows the number already. The leader's counts. What is a moment old there is as good, since it
//! is asked again soon.
//!
//! # Invariants
//! - A query reads, for [`WITHIN`] at the most, one after another: they take one reader from others, and no more.

use super::inbox::Inbox;
use super::reads::ReaderPool;
use quorate_api::backend::{Query, ReadError};
use quorate_model::entry::Database;
use quorate_model::id::ServiceName;
use quorate_model::sql::{Consistency, Rows, Scalar, SqlBatch, Statement};
use quorate_node::{Event, Node};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

/// As often as copies are measured.
const EVERY: Duration = Duration::from_secs(5);
const WITHIN: Duration = Duration::from_secs(1);
/// Longest reason that is passed on.
const REASON_MAX: usize = 200;

/// What is to be asked now, by service.
pub(super) type Queries = BTreeMap<ServiceName, String>;

pub(super) fn queries(node: &Node) -> Queries {
    let services = node.state().services.iter();
    let query = |autoscale: &quorate_model::spec::Autoscale| Some(autoscale.sql.as_ref()?.query.clone());
    services.filter_map(|(name, service)| Some((name.clone(), query(service.spec.autoscaled()?)?))).collect()
}

/// Asks for as long as the node runs.
pub(super) async fn run(mut queries: watch::Receiver<Arc<Queries>>, readers: ReaderPool, inbox: Inbox) {
    let mut often = interval(EVERY);
    often.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while queries.wait_for(|queries| !queries.is_empty()).await.is_ok() {
        often.tick().await;
        let asked = queries.borrow().clone();
        let mut found = BTreeMap::new();
        for (service, query) in asked.iter() {
            found.insert(service.clone(), ask(&readers, query).await);
        }
        if !found.is_empty() {
            inbox.send(Event::Counted(found)).await;
        }
    }
}

/// In thousandths.
async fn ask(readers: &ReaderPool, query: &str) -> Result<u64, String> {
    let batch = SqlBatch { statements: vec![Statement::new(query)], transaction: false };
    let query = Query { database: Database::Main, batch, consistency: Consistency::Local, patience: WITHIN };
    let answer = readers.query(query).await.map_err(|error| match error {
        ReadError::TooSlow { .. } => format!("it took longer than {}s", WITHIN.as_secs()),
        error => error.to_string(),
    })?;
    match answer.results.into_iter().next() {
        Some(Ok(rows)) => number(&rows),
        Some(Err(error)) => Err(error.message.chars().take(REASON_MAX).collect()),
        None => Err("it is no statement".to_owned()),
    }
}

/// The one number that a query gave.
fn number(rows: &Rows) -> Result<u64, String> {
    let [row] = &rows.rows[..] else { return Err(format!("it gave {} rows, and one is needed", rows.rows.len())) };
    let [value] = &row.values[..] else {
        return Err(format!("it gave {} columns, and one is needed", row.values.len()));
    };
    match &value.scalar {
        Some(Scalar::Integer(whole)) => u64::try_from(*whole)
            .map(|whole| whole.saturating_mul(1000))
            .map_err(|_| format!("it gave {whole}, and an amount is needed")),
        // What is too large to tell is as large as can be told.
        Some(Scalar::Real(real)) if real.is_finite() && *real >= 0.0 => Ok((real * 1000.0).round() as u64),
        Some(Scalar::Real(real)) => Err(format!("it gave {real}, and an amount is needed")),
        Some(Scalar::Text(_) | Scalar::Blob(_)) => Err("it gave text, and a number is needed".to_owned()),
        None => Err("it gave NULL, and a number is needed: coalesce(…, 0) makes one".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_model::sql::{Row, Value};

    fn of(values: Vec<Option<Scalar>>) -> Result<u64, String> {
        let values = values.into_iter().map(|scalar| Value { scalar }).collect();
        number(&Rows { rows: vec![Row { values }], ..Rows::default() })
    }

    #[test]
    fn k15_a_query_gives_one_amount_or_a_reason() {
        assert_eq!(of(vec![Some(Scalar::Integer(7))]), Ok(7000));
        assert_eq!(of(vec![Some(Scalar::Real(0.25))]), Ok(250));
        assert_eq!(of(vec![Some(Scalar::Integer(i64::MAX))]), Ok(u64::MAX));
        assert_eq!(number(&Rows::default()).unwrap_err(), "it gave 0 rows, and one is needed");
        for (values, why) in [
            (vec![Some(Scalar::Integer(-1))], "it gave -1, and an amount is needed"),
            (vec![Some(Scalar::Real(f64::INFINITY))], "it gave inf, and an amount is needed"),
            (vec![Some(Scalar::Text("7".into()))], "it gave text, and a number is needed"),
            (vec![None], "it gave NULL, and a number is needed: coalesce(…, 0) makes one"),
            (vec![None, None], "it gave 2 columns, and one is needed"),
        ] {
            assert_eq!(of(values).unwrap_err(), why);
        }
    }
}
