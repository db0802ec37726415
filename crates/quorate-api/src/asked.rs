//! A request to change one service, or one node: what all such handlers read of it before they look at what is wanted.

use crate::access::Acting;
use crate::backend::Backend;
use crate::cluster::{Changed, command, service_name, shown};
use crate::members::{find_node, node_id};
use crate::problem::Failure;
use crate::request::{Named, Patience, patience, read_query};
use crate::server::Shared;
use crate::view::NodeView;
use axum::Json;
use axum::extract::{Extension, FromRequestParts};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use quorate_model::command::Command;
use quorate_model::id::{LogIndex, NodeId, RequestId, ServiceName};
use quorate_model::member::MemberCommand;
use std::time::Duration;

/// Who asks for what of which service, and how long they wait.
pub(crate) struct Asked<B> {
    pub app: Shared<B>,
    pub service: ServiceName,
    id: RequestId,
    acting: Acting,
    patience: Duration,
}

/// Who asks for what of which node, and how long they wait.
pub(crate) struct AskedOfNode<B> {
    pub app: Shared<B>,
    /// The node as it was written: its name, its id, or how that begins.
    pub wanted: String,
    pub patience: Duration,
    id: RequestId,
    acting: Acting,
}

/// Who asks under which request id, of what, and how long they wait.
async fn asked<B: Backend>(
    parts: &mut Parts,
    app: &Shared<B>,
) -> Result<(RequestId, Acting, String, Duration), Response> {
    // The gate put both there.
    let Extension(id) = Extension::from_request_parts(parts, app).await.map_err(IntoResponse::into_response)?;
    let Extension(acting) = Extension::from_request_parts(parts, app).await.map_err(IntoResponse::into_response)?;
    let Named(name) = Named::<String>::from_request_parts(parts, app).await.map_err(Failure::into_response)?;
    let waits = read_query::<Patience>(&parts.uri).and_then(|query| patience(query.timeout_ms));
    Ok((id, acting, name, waits.map_err(Failure::into_response)?))
}

impl<B: Backend> FromRequestParts<Shared<B>> for Asked<B> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &Shared<B>) -> Result<Asked<B>, Response> {
        let (id, acting, name, patience) = asked(parts, app).await?;
        let service = service_name(app, &name).map_err(Failure::into_response)?;
        Ok(Asked { app: app.clone(), service, id, acting, patience })
    }
}

impl<B: Backend> FromRequestParts<Shared<B>> for AskedOfNode<B> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &Shared<B>) -> Result<AskedOfNode<B>, Response> {
        let (id, acting, wanted, patience) = asked(parts, app).await?;
        Ok(AskedOfNode { app: app.clone(), wanted, patience, id, acting })
    }
}

impl<B: Backend> Asked<B> {
    /// Carries out the command, on `target` as the audit calls it.
    pub(crate) async fn carry_out(&self, target: &str, wish: &Command) -> Result<LogIndex, Failure> {
        let actor = self.acting.on(&self.app.access(), target)?;
        command(&self.app, self.id, wish, &actor, self.patience).await
    }

    /// The same, answered with no more than that it is done.
    pub(crate) async fn done(self, target: &str, wish: &Command) -> Result<Json<Changed>, Failure> {
        let index = self.carry_out(target, wish).await?;
        Ok(Json(Changed { service: self.service, index: index.0, replicas: None, room: None }))
    }

    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }
}

impl<B: Backend> AskedOfNode<B> {
    /// Carries out what is made of the node's id.
    pub(crate) async fn carry_out(
        &self,
        make: impl FnOnce(NodeId) -> MemberCommand,
    ) -> Result<(LogIndex, NodeId), Failure> {
        let overview = self.app.backend.overview().borrow().clone();
        let node = node_id(&overview, &self.wanted)?;
        let shown = overview.nodes.iter().find(|known| known.id == node);
        let actor = self.acting.on(&self.app.access(), shown.map_or(&self.wanted, |known| &known.name))?;
        let index = command(&self.app, self.id, &Command::Member(make(node)), &actor, self.patience).await?;
        Ok((index, node))
    }

    /// The same, answered with the node as it is then.
    pub(crate) async fn changed(self, make: impl FnOnce(NodeId) -> MemberCommand) -> Result<Json<NodeView>, Failure> {
        let (index, node) = self.carry_out(make).await?;
        let overview = shown(&self.app, index).await;
        Ok(Json(find_node(&overview, &node.to_string())?.clone()))
    }
}
