//! How many copies follow what they have to do: switching it, and why there are as many as there are.

use crate::asked::Asked;
use crate::backend::Backend;
use crate::cluster::{Changed, service_name, shown, unknown_service};
use crate::problem::Failure;
use crate::request::{Named, Patience, patience, read_body, read_json, read_query};
use crate::server::Shared;
use crate::view::Problem;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use http::{HeaderMap, Uri};
use quorate_model::autoscale::{AutoscaleCommand, AutoscaleWish};
use quorate_model::command::Command;
use quorate_model::id::ServiceName;
use quorate_model::spec::{Autoscale, Share};
use quorate_model::time::{Span, WallTime};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What is to be different in a service's table `autoscale`; what is absent stays as it is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AutoscaleChange {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Never fewer copies. 1 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// Never more copies. 1 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// How much of `resources.cpu` copies are to use, `"1%"` to `"90%"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub cpu: Option<Share>,
    /// How much of `resources.memory` copies are to use, `"1%"` to `"90%"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub memory: Option<Share>,
    /// How many requests a second a copy is to have, 1 to 1000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rps: Option<u32>,
    /// How long 95 of 100 requests may take at most, `1ms` to `10s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub p95: Option<Span>,
    /// How often it is looked, `5s` to `10m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub every: Option<Span>,
    /// For how long a copy that has just become healthy does not count, `0s` to `10m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub warmup: Option<Span>,
    /// No fewer copies than were needed within this, `0s` to `1h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub down_after: Option<Span>,
}

/// Why a service has as many copies as it has, as the node that answers sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AutoscaleView {
    #[schema(value_type = String)]
    pub service: ServiceName,
    /// Whether it is autoscaled.
    pub on: bool,
    /// How many copies are wanted now.
    pub want: u32,
    /// The table `autoscale` of its spec; absent if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub table: Option<Autoscale>,
    /// What was found; absent while it is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<FoundView>,
}

/// What was found for an autoscaled service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FoundView {
    /// The limits in force now.
    pub min: u32,
    pub max: u32,
    /// The hours that the limits come from, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hours: Option<String>,
    /// `low`, `moderate` or `high`: what a copy has to do, by the busiest metric. `null`: nothing was measured.
    pub load: Option<String>,
    pub readings: Vec<ReadingView>,
    /// What gateways told; absent where nothing is to go by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<TrafficView>,
    /// How many copies are right for that, between the limits. `null`: nobody has looked yet.
    pub right: Option<u32>,
    /// How many are asked for now.
    pub to: Option<u32>,
    /// What keeps that from being what was measured, for people.
    pub why: Vec<String>,
    /// How long ago it was looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub looked: Option<Span>,
    /// The last changes, newest first.
    pub changes: Vec<AutoscaledView>,
}

/// What gateways told between the last look and the one before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TrafficView {
    /// Gateways that have told of it lately.
    pub gateways: u32,
    /// Those of them that are silent now, or were heard only once.
    pub silent: u32,
    /// Requests that came in, in thousandths of one a second.
    pub millirequests: u64,
    /// Requests that waited for their response.
    pub waiting: u64,
    /// How long 95 of 100 took at most, in microseconds.
    pub p95_us: u64,
}

/// What one metric says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReadingView {
    /// `cpu`, `memory`, `rps`, `p95`, `scrape` or `sql`.
    pub metric: String,
    /// What a copy has on average: thousandths of a CPU, bytes, thousandths of a request a second or of a number that
    /// is told; of `p95` how long 95 of 100 requests took at most, in microseconds.
    pub mean: u64,
    /// What it is to use.
    pub target: u64,
    /// `mean` in percent of `target`.
    pub percent: u64,
    /// How many copies were measured.
    pub copies: u32,
    /// How many copies would be right.
    pub right: u32,
}

/// A number of copies that was changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AutoscaledView {
    #[schema(value_type = u64)]
    pub at: WallTime,
    pub from: u32,
    pub to: u32,
    pub why: String,
}

/// Why a service has as many copies as it has: what was measured against its targets, what would be right, and what
/// keeps it from being so.
#[utoipa::path(get, path = "/v1/services/{name}/autoscale", tag = "services", params(("name" = String, Path)),
    responses((status = 200, body = AutoscaleView), (status = 404, description = "unknown-service", body = Problem)))]
pub(crate) async fn show<B: Backend>(
    State(app): State<Shared<B>>,
    Named(name): Named,
    uri: Uri,
) -> Result<Json<AutoscaleView>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let service = service_name(&app, &name)?;
    match app.backend.autoscale(service, patience).await? {
        Some(view) => Ok(Json(view)),
        None => Err(unknown_service(&app.backend.overview().borrow(), &name)),
    }
}

/// Switches autoscaling of a service on or off, or changes what it goes by.
#[utoipa::path(put, path = "/v1/services/{name}/autoscale", tag = "services", params(("name" = String, Path)),
    request_body = AutoscaleChange,
    responses((status = 200, body = Changed), (status = 404, description = "unknown-service", body = Problem),
        (status = 422, description = "invalid", body = Problem)))]
pub(crate) async fn set<B: Backend>(asked: Asked<B>, headers: HeaderMap, body: Body) -> Result<Json<Changed>, Failure> {
    let service = asked.service.clone();
    let change: AutoscaleChange = read_json(&read_body(&headers, body).await?)?;
    let word = match change.enabled {
        Some(true) => "on",
        Some(false) => "off",
        None => "changed",
    };
    let AutoscaleChange { enabled, min, max, cpu, memory, rps, p95, every, warmup, down_after } = change;
    let wish = AutoscaleWish { enabled, min, max, cpu, memory, rps, p95, every, warmup, down_after };
    let wish = Command::Autoscale(AutoscaleCommand::Set { service: service.clone(), wish });
    let index = asked.carry_out(&format!("{service} {word}"), &wish).await?;
    let overview = shown(&asked.app, index).await;
    let replicas = overview.services.iter().find(|known| known.name == service).map(|known| known.want);
    Ok(Json(Changed { service, index: index.0, replicas, room: None }))
}
