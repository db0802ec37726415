//! `/v1/services/{name}/stop` and `start`: a service that keeps what it is to be while none of it runs.

use crate::asked::Asked;
use crate::backend::Backend;
use crate::cluster::Changed;
use crate::problem::Failure;
use crate::view::Problem;
use axum::Json;
use quorate_model::command::Command;
use quorate_model::stopped::SwitchCommand;

/// Stops a service: its copies end, and what it is to be is kept. Answered at once; it is stopped when no replica of it
/// is left. With a schedule, until that starts it next.
#[utoipa::path(post, path = "/v1/services/{name}/stop", tag = "services", params(("name" = String, Path)),
    responses((status = 200, body = Changed), (status = 404, description = "unknown-service", body = Problem)))]
pub(crate) async fn stop<B: Backend>(asked: Asked<B>) -> Result<Json<Changed>, Failure> {
    let service = asked.service.clone();
    asked.done(service.as_str(), &Command::Switch(SwitchCommand::Stop { service: service.clone() })).await
}

/// Starts a service that is stopped: exactly what was wanted, or is by now. With a schedule, until that stops it next.
#[utoipa::path(post, path = "/v1/services/{name}/start", tag = "services", params(("name" = String, Path)),
    responses((status = 200, body = Changed), (status = 404, description = "unknown-service", body = Problem)))]
pub(crate) async fn start<B: Backend>(asked: Asked<B>) -> Result<Json<Changed>, Failure> {
    let service = asked.service.clone();
    asked.done(service.as_str(), &Command::Switch(SwitchCommand::Start { service: service.clone() })).await
}
