//! Settings of the cluster and of its services by name, changed while they run; several at once, all or none (E5).
//!
//! Keys are `failover` and `ha` for the cluster, and `replicas.NAME`, `autoscale.NAME` and `failover.NAME` for the
//! service NAME. Values are text, as people type them; what they mean is read here and nowhere else. What belongs to
//! one server is in its own file.

use crate::access::Acting;
use crate::backend::Backend;
use crate::cluster::{command, nearest, shown, unknown_service};
use crate::ha;
use crate::problem::Failure;
use crate::request::{Patience, patience, read_body, read_json, read_query};
use crate::server::Shared;
use crate::view::{Overview, Problem, ServiceView};
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use http::{HeaderMap, StatusCode, Uri};
use quorate_model::access::policy::Operation;
use quorate_model::autoscale::AutoscaleWish;
use quorate_model::command::Command;
use quorate_model::id::RequestId;
use quorate_model::lease::{FAILOVER_MAX, FAILOVER_MIN};
use quorate_model::reconfigure::Setting;
use quorate_model::spec::{Autoscale, Mode, ServiceSpec, SpecDocument};
use quorate_model::time::Span;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A setting of the cluster, or of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SettingView {
    /// `failover`, `ha`, `replicas.NAME`, `autoscale.NAME` or `failover.NAME`.
    pub key: String,
    pub value: String,
    /// What it takes, for people.
    pub takes: String,
    /// What it is about, for people.
    pub about: String,
}

/// Settings that are to have other values.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Reconfigure {
    pub set: BTreeMap<String, String>,
    /// Only says what would change.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plan: bool,
}

/// What changed, or would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reconfigured {
    /// Empty: every setting has its value already.
    pub changes: Vec<SettingChange>,
    /// The log entry that did it; absent when nothing was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
}

/// A setting with another value than before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SettingChange {
    pub key: String,
    pub from: String,
    pub to: String,
    /// What that does, for people.
    pub effect: String,
}

/// One kind of setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Failover,
    Ha,
    Replicas,
    Autoscale,
    ServiceFailover,
}

impl Kind {
    fn of_cluster(key: &str) -> Option<Kind> {
        match key {
            "failover" => Some(Kind::Failover),
            "ha" => Some(Kind::Ha),
            _ => None,
        }
    }

    fn of_service(word: &str) -> Option<Kind> {
        match word {
            "replicas" => Some(Kind::Replicas),
            "autoscale" => Some(Kind::Autoscale),
            "failover" => Some(Kind::ServiceFailover),
            _ => None,
        }
    }

    fn takes(self) -> String {
        match self {
            Kind::Failover | Kind::ServiceFailover => {
                format!("{FAILOVER_MIN} to {}s, or `default`", FAILOVER_MAX.0.as_secs())
            }
            Kind::Ha => "`on` or `off`".into(),
            Kind::Replicas => format!("1 to {}", ServiceSpec::MAX_REPLICAS),
            Kind::Autoscale => {
                "`off`, `on`, or `MIN..MAX`, with `cpu=SHARE` and `memory=SHARE` after it: `2..6 cpu=70%`".into()
            }
        }
    }

    fn about(self) -> &'static str {
        match self {
            Kind::Failover => "how long a node may be away before what ran there runs elsewhere",
            Kind::Ha => "whether nodes stand in for each other",
            Kind::Replicas => "how many copies run",
            Kind::Autoscale => "whether the number of copies follows what they have to do",
            Kind::ServiceFailover => "how long it may be away before it runs elsewhere",
        }
    }

    fn effect(self) -> &'static str {
        match self {
            Kind::Failover => "what is held keeps the time that it was given; each next holder gets the new one",
            Kind::Ha => "no data moves and no service restarts",
            Kind::Replicas => "copies start, or end after gateways have finished with them",
            Kind::Autoscale => "no copy is replaced; their number changes if it is outside of the limits",
            Kind::ServiceFailover => "its copy is replaced by one that holds its lease for that long",
        }
    }

    /// What changes the same alone; who may not do that may not do it here.
    fn operation(self) -> Operation {
        match self {
            Kind::Failover => Operation::FailoverSet,
            Kind::Ha => Operation::HaSet,
            Kind::Replicas => Operation::ServiceScale,
            Kind::Autoscale => Operation::ServiceAutoscale,
            Kind::ServiceFailover => Operation::ServiceApply,
        }
    }

    fn bad(self, key: &str, value: &str) -> Failure {
        let fix = format!("it takes {}", self.takes());
        Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", format!("`{key}` cannot be `{value}`"), fix)
            .with_details(json!({ "field": key }))
    }
}

/// Every setting that can be changed now, with its value.
#[utoipa::path(get, path = "/v1/settings", tag = "cluster", responses((status = 200, body = [SettingView])))]
pub(crate) async fn list<B: Backend>(State(app): State<Shared<B>>) -> Json<Vec<SettingView>> {
    Json(settings(&app.backend.overview().borrow()))
}

/// Changes settings, all or none of them. With `plan`, only says what would change.
#[utoipa::path(post, path = "/v1/settings", tag = "cluster", request_body = Reconfigure,
    responses((status = 200, body = Reconfigured), (status = 404, description = "unknown-service", body = Problem),
        (status = 409, description = "ha-in-use, ha-needs-three, link-port-taken, autoscaled, not-scalable", body = Problem),
        (status = 422, description = "invalid, unknown-setting", body = Problem)))]
pub(crate) async fn change<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Reconfigured>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let Reconfigure { set, plan } = read_json(&read_body(&headers, body).await?)?;
    let overview = app.backend.overview().borrow().clone();
    let wishes: Vec<Wish> =
        set.iter().map(|(key, value)| Wish::read(&overview, key, value)).collect::<Result<_, _>>()?;
    for wish in &wishes {
        acting.may(&app.access(), wish.kind.operation())?;
    }
    let wishes: Vec<Wish> = wishes.into_iter().filter(|wish| wish.change.from != wish.change.to).collect();
    let changes: Vec<SettingChange> = wishes.iter().map(|wish| wish.change.clone()).collect();
    if plan || wishes.is_empty() {
        return Ok(Json(Reconfigured { changes, index: None }));
    }
    let words: Vec<String> = changes.iter().map(|change| format!("{}={}", change.key, change.to)).collect();
    let actor = acting.on(&app.access(), &words.join(" "))?;
    if wishes.iter().any(|wish| wish.setting == Setting::Ha { on: true }) {
        ha::may_listen(&app)?;
    }
    let settings = wishes.into_iter().map(|wish| wish.setting).collect();
    let index = command(&app, id, &Command::Reconfigure { settings }, &actor, patience).await?;
    let overview = shown(&app, index).await;
    ha::listens(&app, overview.cluster.ha).await;
    Ok(Json(Reconfigured { changes, index: Some(index.0) }))
}

fn settings(overview: &Overview) -> Vec<SettingView> {
    let view = |kind: Kind, key: String, value: String| {
        let about = kind.about().to_owned();
        SettingView { key, value, takes: kind.takes(), about }
    };
    let mut all = vec![
        view(Kind::Failover, "failover".into(), span(overview.cluster.failover)),
        view(Kind::Ha, "ha".into(), switch(overview.cluster.ha).into()),
    ];
    for service in &overview.services {
        for (word, kind) in kinds(service) {
            all.push(view(*kind, format!("{word}.{}", service.name), value_of(*kind, service)));
        }
    }
    all
}

/// What can be set of it.
fn kinds(service: &ServiceView) -> &'static [(&'static str, Kind)] {
    match service.mode {
        Mode::Replicated => &[("replicas", Kind::Replicas), ("autoscale", Kind::Autoscale)],
        Mode::Singleton => &[("failover", Kind::ServiceFailover)],
        Mode::ActivePassive => &[("replicas", Kind::Replicas), ("failover", Kind::ServiceFailover)],
        Mode::EveryNode => &[],
    }
}

fn value_of(kind: Kind, service: &ServiceView) -> String {
    match kind {
        Kind::Autoscale => autoscale(service.spec.autoscale.as_ref()),
        Kind::ServiceFailover => span(service.spec.failover),
        Kind::Replicas | Kind::Failover | Kind::Ha => service.spec.replicas.to_string(),
    }
}

fn span(span: Option<Span>) -> String {
    span.map_or_else(|| "default".to_owned(), |span| span.to_string())
}

fn switch(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn autoscale(table: Option<&Autoscale>) -> String {
    let Some(table) = table.filter(|table| table.enabled) else { return "off".into() };
    let mut text = format!("{}..{}", table.min, table.max);
    for (word, share) in [("cpu", table.cpu), ("memory", table.memory)] {
        if let Some(share) = share {
            text.push_str(&format!(" {word}={share}"));
        }
    }
    text
}

/// A setting that somebody wants to have a value.
struct Wish {
    kind: Kind,
    setting: Setting,
    change: SettingChange,
}

impl Wish {
    fn read(overview: &Overview, key: &str, value: &str) -> Result<Wish, Failure> {
        let value = value.trim();
        if let Some(kind) = Kind::of_cluster(key) {
            let from =
                if kind == Kind::Ha { switch(overview.cluster.ha).into() } else { span(overview.cluster.failover) };
            let (setting, to) = match (kind, value) {
                (Kind::Ha, "on" | "off") => (Setting::Ha { on: value == "on" }, value.to_owned()),
                (Kind::Ha, _) => return Err(kind.bad(key, value)),
                _ => {
                    let failover = read_span(kind, key, value, FAILOVER_MIN)?;
                    (Setting::Failover { failover }, span(failover))
                }
            };
            return Ok(Wish::new(kind, setting, key, from, to));
        }
        let Some((kind, name)) = key.split_once('.').and_then(|(word, name)| Some((Kind::of_service(word)?, name)))
        else {
            return Err(unknown(overview, key));
        };
        let service = overview.services.iter().find(|service| service.name.as_str() == name);
        let service = service.ok_or_else(|| unknown_service(overview, name))?;
        let from = value_of(kind, service);
        let name = service.name.clone();
        let (setting, spec) = match kind {
            Kind::Replicas => {
                let replicas = value.parse().ok().filter(|count| (1..=ServiceSpec::MAX_REPLICAS).contains(count));
                let replicas = replicas.ok_or_else(|| kind.bad(key, value))?;
                return Ok(Wish::new(
                    kind,
                    Setting::Replicas { service: name, replicas },
                    key,
                    from,
                    replicas.to_string(),
                ));
            }
            Kind::Autoscale => {
                let wish = read_autoscale(value).ok_or_else(|| kind.bad(key, value))?;
                let present = service.spec.autoscale.as_ref();
                let table = match wish.over(present) {
                    None if wish.enabled == Some(false) => None,
                    None => return Err(kind.bad(key, value)),
                    table => table,
                };
                let spec = ServiceSpec { autoscale: table, ..service.spec.clone() };
                let spec = spec.settled(Some(service.spec.replicas));
                (Setting::Autoscale { service: name, wish }, spec)
            }
            Kind::ServiceFailover | Kind::Failover | Kind::Ha => {
                // A service may have asked for less than others may; what it says is looked at below.
                let failover = read_span(kind, key, value, Span::from_secs(1))?;
                let spec = ServiceSpec { failover, ..service.spec.clone() };
                (Setting::ServiceFailover { service: name, failover }, spec)
            }
        };
        SpecDocument { services: vec![spec.clone()], routes: Vec::new() }.validate()?;
        let to = match kind {
            Kind::Autoscale => autoscale(spec.autoscale.as_ref()),
            _ => span(spec.failover),
        };
        Ok(Wish::new(kind, setting, key, from, to))
    }

    fn new(kind: Kind, setting: Setting, key: &str, from: String, to: String) -> Wish {
        let change = SettingChange { key: key.to_owned(), from, to, effect: kind.effect().to_owned() };
        Wish { kind, setting, change }
    }
}

fn read_span(kind: Kind, key: &str, value: &str, least: Span) -> Result<Option<Span>, Failure> {
    if value == "default" {
        return Ok(None);
    }
    let span = value.parse::<Span>().ok().filter(|span| (least..=FAILOVER_MAX).contains(span));
    span.map(Some).ok_or_else(|| kind.bad(key, value))
}

/// `off`, `on`, or `2..6 cpu=70% memory=60%`.
fn read_autoscale(value: &str) -> Option<AutoscaleWish> {
    if value == "off" {
        return Some(AutoscaleWish { enabled: Some(false), ..AutoscaleWish::default() });
    }
    let mut wish = AutoscaleWish { enabled: Some(true), ..AutoscaleWish::default() };
    let mut words = value.split_whitespace();
    match words.next()? {
        "on" => {}
        limits => {
            let (min, max) = limits.split_once("..")?;
            (wish.min, wish.max) = (Some(min.parse().ok()?), Some(max.parse().ok()?));
        }
    }
    for word in words {
        match word.split_once('=')? {
            ("cpu", share) => wish.cpu = Some(share.parse().ok()?),
            ("memory", share) => wish.memory = Some(share.parse().ok()?),
            _ => return None,
        }
    }
    Some(wish)
}

fn unknown(overview: &Overview, key: &str) -> Failure {
    let all = settings(overview);
    let similar = nearest(key, all.iter().map(|setting| setting.key.as_str()));
    let hint = similar.map_or_else(String::new, |similar| format!("; did you mean `{similar}`?"));
    let fix = "`quorate reconfigure --list` shows all; what belongs to one server: `quorate config show` there";
    let message = format!("there is no setting `{key}`{hint}");
    Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "unknown-setting", message, fix)
        .with_details(json!({ "field": key, "similar": similar }))
}
