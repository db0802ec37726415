//! Numbers that somebody tells: what each copy has on its page of metrics, and what a query finds in the cluster's
//! database.

use super::Autoscale;
use crate::spec::ServiceSpec;
use crate::spec::validate::within_text;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A number that each copy tells of itself, in Prometheus' text format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scrape {
    /// Name of the port where the page is. Default: the one that gateways send to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Path of the page. At most 500 bytes; default `"/metrics"`.
    #[serde(default = "metrics")]
    pub path: String,
    /// Name of the metric. All its samples that have `labels` are added up.
    pub name: String,
    /// Labels that samples must have, others beside them or not. At most 16; default none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How much of it a copy is to have. 1 to 1000000000.
    pub target: u32,
}

fn metrics() -> String {
    "/metrics".to_owned()
}

/// A number that a query finds in the cluster's database, like how many jobs wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counted {
    /// One statement that reads, and gives one number of 0 or more. At most 2000 bytes. Every node runs it in its
    /// own copy of the database every five seconds, for one second at the most; what the leader finds counts.
    pub query: String,
    /// How much of it there is to be for each copy. 1 to 1000000000.
    pub target: u32,
}

/// Most that a target may be.
const TARGET_MAX: u32 = 1_000_000_000;
const LABELS_MAX: usize = 16;

/// What is wrong with them, by key.
pub(super) fn validate(spec: &ServiceSpec, autoscale: &Autoscale) -> Result<(), (String, String)> {
    let refused = |name: &str, problem: String| Err((format!("autoscale.{name}"), problem));
    let target = |target: u32| {
        let is_right = (1..=TARGET_MAX).contains(&target);
        is_right.then_some(()).ok_or_else(|| format!("is {target}; it must be 1 to {TARGET_MAX}"))
    };
    if let Some(counted) = &autoscale.sql {
        target(counted.target).map_err(|problem| ("autoscale.sql.target".to_owned(), problem))?;
        let query = within_text(counted.query.trim(), 2000);
        query.map_err(|problem| ("autoscale.sql.query".to_owned(), problem))?;
    }
    let Some(scrape) = &autoscale.scrape else { return Ok(()) };
    target(scrape.target).map_err(|problem| ("autoscale.scrape.target".to_owned(), problem))?;
    match &scrape.port {
        Some(port) if !spec.ports.contains_key(port) => {
            return refused("scrape.port", format!("is `{port}`, which is not among the service's `ports`"));
        }
        None if spec.main_port().is_none() => {
            return refused("scrape", "asks copies, and the service has no port: add one to `ports`".into());
        }
        Some(_) | None => {}
    }
    let is_path = scrape.path.starts_with('/') && scrape.path.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_path || scrape.path.len() > 500 {
        return refused(
            "scrape.path",
            format!("is `{}`; it must be a path like /metrics, at most 500 bytes", scrape.path),
        );
    }
    if !is_name(&scrape.name, true) {
        return refused(
            "scrape.name",
            format!("is `{}`, which is no name of a metric, like queue_length", scrape.name),
        );
    }
    if scrape.labels.len() > LABELS_MAX {
        return refused(
            "scrape.labels",
            format!("has {} entries; at most {LABELS_MAX} are allowed", scrape.labels.len()),
        );
    }
    if let Some(label) = scrape.labels.keys().find(|label| !is_name(label, false)) {
        return refused("scrape.labels", format!("has `{label}`, which is no name of a label"));
    }
    Ok(())
}

/// As Prometheus has them; names of metrics may have colons.
fn is_name(text: &str, of_metric: bool) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || (of_metric && byte == b':');
    (1..=200).contains(&text.len()) && text.bytes().all(fits) && !text.as_bytes()[0].is_ascii_digit()
}
