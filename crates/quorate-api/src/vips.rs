//! Virtual addresses that gateways hold: added, listed with who holds them, removed.

use crate::access::Acting;
use crate::backend::Backend;
use crate::cluster::command;
use crate::problem::Failure;
use crate::request::{Named, Patience, patience, read_body, read_json, read_query};
use crate::server::Shared;
use crate::view::Problem;
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use http::{HeaderMap, StatusCode, Uri};
use quorate_model::command::Command;
use quorate_model::id::RequestId;
use quorate_model::vip::{Interface, VipAddress, VipCommand};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A virtual address of gateways. `quorate vip list -o json` is an array of these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VipView {
    /// With the length of its subnet's prefix, like `10.0.0.9/24`.
    #[schema(value_type = String)]
    pub address: VipAddress,
    /// Absent: the interface that has an address in the same subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub interface: Option<Interface>,
    /// Labels that a gateway's node must have.
    pub gateways: BTreeMap<String, String>,
    /// The node whose gateway holds it, as far as is heard.
    pub holder: Option<String>,
    /// Nodes whose gateways may hold it, the first choice first.
    pub candidates: Vec<CandidateView>,
}

/// A node whose gateway may hold a virtual address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CandidateView {
    pub node: String,
    pub state: CandidateState,
    /// Of the holder; 0 of others. The newest one counts where two say that they hold the address.
    pub epoch: u64,
    /// Why it could not serve there, or who else says that it has the address.
    pub detail: String,
}

/// What a gateway has to do with a virtual address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CandidateState {
    /// Its server answers there.
    Holding,
    /// It would take the address.
    Standby,
    /// It could not serve there.
    Unfit,
    /// No gateway on that node is heard of.
    Silent,
}

/// A virtual address that gateways are to hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewVip {
    /// Like `10.0.0.9/24`.
    pub address: String,
    /// Default: the interface that has an address in the same subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Labels that a gateway's node must have to hold it. Default: any gateway may.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gateways: BTreeMap<String, String>,
}

/// The virtual address that was added or removed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VipChanged {
    pub address: String,
    /// The log entry that did it.
    pub index: u64,
}

fn bad(field: &str, problem: &impl ToString) -> Failure {
    let fix = format!("nothing was changed: correct `{field}` and send it again");
    Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", problem.to_string(), fix)
        .with_details(json!({ "field": field }))
}

/// All virtual addresses of gateways, and who holds them.
#[utoipa::path(get, path = "/v1/vips", operation_id = "vip_list", tag = "gateway",
    responses((status = 200, body = [VipView])))]
pub(crate) async fn list<B: Backend>(State(app): State<Shared<B>>) -> Json<Vec<VipView>> {
    Json(app.backend.overview().borrow().vips.clone())
}

/// Adds a virtual address. Added again as it is, nothing changes.
#[utoipa::path(post, path = "/v1/vips", operation_id = "vip_add", tag = "gateway", request_body = NewVip,
    responses((status = 200, body = VipChanged), (status = 409, description = "vip-taken", body = Problem),
        (status = 422, description = "invalid", body = Problem)))]
pub(crate) async fn add<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<VipChanged>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let NewVip { address, interface, gateways } = read_json(&read_body(&headers, body).await?)?;
    let address: VipAddress = address.parse().map_err(|error| bad("address", &error))?;
    let interface: Option<Interface> =
        interface.map(|name| name.parse()).transpose().map_err(|error| bad("interface", &error))?;
    let actor = acting.on(&app.access(), &address.to_string())?;
    let wish = Command::Vip(VipCommand::Add { address, interface, gateways });
    let index = command(&app, id, &wish, &actor, patience).await?;
    Ok(Json(VipChanged { address: address.to_string(), index: index.0 }))
}

/// Removes a virtual address: whoever holds it takes it down.
#[utoipa::path(delete, path = "/v1/vips/{ip}", operation_id = "vip_remove", tag = "gateway",
    params(("ip" = String, Path, description = "The address without its prefix")),
    responses((status = 200, body = VipChanged), (status = 404, description = "unknown-vip", body = Problem),
        (status = 422, description = "invalid", body = Problem)))]
pub(crate) async fn remove<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    Named(ip): Named,
    uri: Uri,
) -> Result<Json<VipChanged>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let address = ip.parse().map_err(|_| bad("address", &format!("`{ip}` is no address")))?;
    let actor = acting.on(&app.access(), &ip)?;
    let index = command(&app, id, &Command::Vip(VipCommand::Remove { address }), &actor, patience).await?;
    Ok(Json(VipChanged { address: ip, index: index.0 }))
}
