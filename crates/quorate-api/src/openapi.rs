//! The description of the native API, made from the handlers themselves.

use crate::access::{audit, login, roles, tokens, users};
use crate::{
    activation, autoscale, certificates, cluster, database, drills, externals, failover, ha, health, join, log,
    managers, members, placement, reconfigure, secrets, stream, switch, updates, vips,
};
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
        cluster::restart,
        switch::stop,
        switch::start,
        activation::activate,
        autoscale::show,
        autoscale::set,
        updates::history,
        updates::rollback,
        updates::update,
        cluster::events,
        cluster::active,
        health::health,
        cluster::apply_specs,
        cluster::transfer,
        members::tokens,
        members::invite,
        members::revoke,
        members::node,
        members::remove,
        members::confirm_dead,
        members::alias,
        members::roles,
        members::vote,
        placement::labels,
        placement::attribute,
        placement::availability,
        placement::explain,
        placement::what_if_kill,
        placement::to_rebalance,
        placement::rebalance,
        drills::list,
        drills::show,
        drills::forecast,
        drills::begin,
        managers::stop,
        managers::start,
        managers::restart,
        managers::restart_active,
        managers::rule,
        managers::restart_node,
        reconfigure::list,
        reconfigure::change,
        failover::show,
        failover::set,
        ha::show,
        ha::set,
        members::leave,
        members::quota,
        members::set_quota,
        join::check,
        join::join,
        certificates::show,
        certificates::renew,
        certificates::rotate,
        externals::list,
        externals::show,
        externals::set,
        externals::test,
        externals::remove,
        vips::list,
        vips::add,
        vips::remove,
        secrets::list,
        secrets::show,
        secrets::set,
        secrets::remove,
        database::exec,
        database::query,
        database::query_get,
        stream::overview,
        stream::routing,
        stream::gateway_report,
        log::replica_log,
        log::node_log,
        login::log_in,
        login::log_out,
        login::confirm,
        login::me,
        login::own_password,
        tokens::own,
        tokens::create_own,
        tokens::revoke_own,
        tokens::own_sessions,
        tokens::end_own_session,
        users::first_admin,
        users::list,
        users::create,
        users::get,
        users::remove,
        users::password,
        users::disable,
        users::enable,
        tokens::create_for,
        users::grant,
        users::revoke,
        roles::list,
        roles::clone,
        roles::get,
        roles::remove,
        roles::add,
        roles::take,
        tokens::sessions,
        tokens::end_session,
        tokens::all,
        tokens::revoke_any,
        audit::list,
        audit::verify,
        audit::export,
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
