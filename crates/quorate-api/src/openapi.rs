//! The description of the native API, made from the handlers themselves.

use crate::{cluster, database, join, log, members, stream};
use axum::response::{IntoResponse as _, Response};
use http::header;
use std::sync::LazyLock;
use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Quorate",
        description = "The control plane of a Quorate node. Every failure is a Problem with a stable code.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    paths(
        cluster::status,
        cluster::nodes,
        cluster::services,
        cluster::service,
        cluster::remove_service,
        cluster::scale,
        cluster::events,
        cluster::active,
        cluster::health,
        cluster::apply_specs,
        cluster::transfer,
        members::tokens,
        members::invite,
        members::revoke,
        members::node,
        members::remove,
        members::alias,
        members::roles,
        members::vote,
        members::leave,
        members::quota,
        members::set_quota,
        join::check,
        join::join,
        database::exec,
        database::query,
        database::query_get,
        stream::overview,
        stream::routing,
        stream::gateway_report,
        log::replica_log,
    )
)]
struct Description;

/// `docs/reference/openapi.json`, and what `/openapi.json` answers.
pub fn document() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let mut text = Description::openapi().to_pretty_json().expect("the description has string keys");
        text.push('\n');
        text
    });
    &TEXT
}

pub(crate) async fn serve() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document()).into_response()
}
