//! A request to change one service: what all such handlers read of it before they look at what is wanted.

use crate::access::Acting;
use crate::backend::Backend;
use crate::cluster::{Changed, command, service_name};
use crate::problem::Failure;
use crate::request::{Named, Patience, patience, read_query};
use crate::server::Shared;
use axum::Json;
use axum::extract::{Extension, FromRequestParts};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use quorate_model::command::Command;
use quorate_model::id::{LogIndex, RequestId, ServiceName};
use std::time::Duration;

/// Who asks for what of which service, and how long they wait.
pub(crate) struct Asked<B> {
    pub app: Shared<B>,
    pub service: ServiceName,
    id: RequestId,
    acting: Acting,
    patience: Duration,
}

impl<B: Backend> FromRequestParts<Shared<B>> for Asked<B> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &Shared<B>) -> Result<Asked<B>, Response> {
        // The gate put both there.
        let Extension(id) = Extension::from_request_parts(parts, app).await.map_err(IntoResponse::into_response)?;
        let Extension(acting) = Extension::from_request_parts(parts, app).await.map_err(IntoResponse::into_response)?;
        let Named(name) = Named::<String>::from_request_parts(parts, app).await.map_err(Failure::into_response)?;
        let service = service_name(app, &name).map_err(Failure::into_response)?;
        let waits = read_query::<Patience>(&parts.uri).and_then(|query| patience(query.timeout_ms));
        let patience = waits.map_err(Failure::into_response)?;
        Ok(Asked { app: app.clone(), service, id, acting, patience })
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
