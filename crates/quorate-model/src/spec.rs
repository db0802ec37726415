//! What a user writes about a service: the `[[service]]` and `[[route]]` tables of a spec file.
//!
//! The same types are read from TOML and JSON, stored in the log and shown again by
//! `quorate service show`. An unknown key is an error here, never ignored.

use crate::access::name::{ExternalName, SecretName};
use crate::access::service::Grant;
use crate::id::ServiceName;
use crate::need::{Artifact, Requirement};
use crate::place::Place;
use crate::resource::Resources;
use crate::template::Template;
use crate::time::Span;
use crate::vip::ServiceVip;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

mod active;
mod autoscale;
mod driver;
mod health;
mod placeholder;
mod read;
mod schedule;
mod update;
mod validate;

pub use active::{Active, HOOK_DEFAULT, Standby};
pub use autoscale::{Autoscale, Bounds, Clock, Counted, Days, Hours, Scrape, Share};
pub use driver::{Container, Driver, Engine, Ocf, OcfTimeouts, Systemd};
pub use health::{HealthCheck, SqlCheck};
pub use placeholder::{Placeholders, TemplateError, expand, tells_secrets};
pub use read::{Format, Position, SpecError, nearest, parse, render};
pub use schedule::{Moment, StartStop};
pub use update::{Batch, Order, Promote, Update};

/// A spec file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecDocument {
    #[serde(default, rename = "service", skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceSpec>,
    #[serde(default, rename = "route", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RouteSpec>,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    pub name: ServiceName,
    #[serde(default)]
    pub mode: Mode,
    /// How many copies run. 1 to 1000; default 1. Left out with the mode `every-node`.
    #[serde(default = "one")]
    pub replicas: u32,
    #[serde(default)]
    pub driver: Driver,
    /// The program and its arguments. `{port}` is the first port, `{port.NAME}` a named one; also
    /// `{replica}`, `{node}` and `{ordinal}`; `{artifact}` is where the first artifact lies,
    /// `{artifact.NAME}` where a named one does, `{dir}` the working directory, `{external.NAME.FIELD}` a field of one
    /// of `externals` that is no secret. No shell is involved. Left out where the driver needs none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// With the driver `ocf`, and only then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ocf: Option<Ocf>,
    /// With the driver `container`, and only then. `command` is then what follows the image, if it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// With the driver `systemd`, and only then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub systemd: Option<Systemd>,
    /// An address that is where the copy is: of what runs once. It is up before the program is started, and down
    /// before its lease is given to another; a failover time of 10s at the least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vip: Option<ServiceVip>,
    /// Added to a small fixed environment (PATH, HOME, TZ and the `QUORATE_*` variables).
    /// Placeholders work as in `command`, and `{secret.NAME}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Ports that the service listens on, by name. `{port}` is the one named `http`, else the first.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, Port>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// For what runs once, and for the active copy of several: from the loss of its node until it is started, or
    /// promoted, elsewhere, at the longest, also when that node led the cluster. 10s to 300s; default 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover: Option<Span>,
    /// Allows a failover time from 1s on. A short pause of a healthy node then moves the service. For tests,
    /// and for servers side by side on one network that nobody overloads. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unsafe_fast: bool,
    /// For what runs once, and for the active copy of several: what becomes of it while its server hears no majority of the managers.
    /// Default: it stops.
    #[serde(default, skip_serializing_if = "WithoutQuorum::is_default")]
    pub without_quorum: WithoutQuorum,
    #[serde(default)]
    pub restart: Restart,
    #[serde(default)]
    pub stop: Stop,
    /// On which nodes. Default: on any worker.
    #[serde(default, skip_serializing_if = "Place::is_anywhere")]
    pub place: Place,
    /// What each copy gets of its node: set aside for it, and never exceeded. Default: no limit.
    #[serde(default, skip_serializing_if = "Resources::is_none")]
    pub resources: Resources,
    /// With the mode `active-passive`: how one of the copies becomes the active one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<Active>,
    /// How many copies run follows what they have to do; `replicas` is where a new service starts. Default: it
    /// stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscale: Option<Autoscale>,
    /// When it is started and stopped by itself. At most 16 entries; default: never.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schedule: Vec<StartStop>,
    /// What is placed on each node that may run it, before it may. At most 16.
    #[serde(default, rename = "artifact", skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<Artifact>,
    /// What must be true of a node before it may run there. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<Requirement>,
    /// Secrets that its replicas get, for `{secret.NAME}` in `env`. At most 16.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub secrets: BTreeSet<SecretName>,
    /// What of the cluster itself its replicas may use, each with a token of its own in `QUORATE_TOKEN_FILE`.
    /// Default: nothing, and no token.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub grants: BTreeSet<Grant>,
    /// Services that its replicas use: where these are is in templates, as `endpoints.NAME`, and in the environment.
    /// At most 16.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub uses: BTreeSet<ServiceName>,
    /// `HUP`, `USR1` or `USR2`: sent to the program after its files were made anew, because what it uses is
    /// elsewhere. Default: none; it is to look at its files itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload: Option<StopSignal>,
    /// Externals that it uses: a node that cannot log in there does not run it, and replicas get variables like
    /// `ORDERS_DB_URL` for `orders-db`; see `docs/guides/externals.md`. At most 16.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub externals: BTreeSet<ExternalName>,
    /// Files that are made for each replica before it starts. At most 16.
    #[serde(default, rename = "template", skip_serializing_if = "Vec::is_empty")]
    pub templates: Vec<Template>,
    /// How another version takes the place of the one that runs.
    #[serde(default, skip_serializing_if = "Update::is_default")]
    pub update: Update,
}

fn one() -> u32 {
    1
}

impl ServiceSpec {
    /// Most replicas that one service may have.
    pub const MAX_REPLICAS: u32 = 1000;

    /// The name of the port that `{port}` stands for: `http` if there is one, else the first by name.
    #[must_use]
    pub fn main_port(&self) -> Option<&str> {
        if self.ports.contains_key("http") {
            return Some("http");
        }
        self.ports.keys().next().map(String::as_str)
    }

    /// Externals that its nodes must be able to log in to: those that it uses, and those that it only requires.
    pub fn wanted_externals(&self) -> impl Iterator<Item = &ExternalName> {
        let required = self.requires.iter().filter_map(|requirement| match requirement {
            Requirement::External(name) => Some(name),
            Requirement::Command(_) | Requirement::File(_) | Requirement::Mount(_) | Requirement::Reach(_) => None,
        });
        self.externals.iter().chain(required.filter(|name| !self.externals.contains(*name)))
    }

    /// Whether there cannot be two replicas on one node, not even for a moment: they would listen on one port, or
    /// be one thing by two names.
    #[must_use]
    pub fn is_alone_on_its_node(&self) -> bool {
        // A standby beside the active copy would be lost with it.
        self.mode == Mode::ActivePassive
            || self.driver.is_alone_on_its_node()
            || self.ports.values().any(|port| matches!(port, Port::Fixed(_)))
    }

    /// Whether replicas of one run what replicas of the other do: all but how many there are, where, and how
    /// they are replaced.
    #[must_use]
    pub fn runs_the_same(&self, other: &ServiceSpec) -> bool {
        // All fields by name: whoever adds one decides here.
        let ServiceSpec {
            name,
            mode,
            replicas: _,
            driver,
            command,
            ocf,
            container,
            systemd,
            vip,
            env,
            ports,
            health,
            failover,
            unsafe_fast,
            without_quorum,
            restart,
            stop,
            place: _,
            update: _,
            autoscale: _,
            schedule: _,
            active,
            resources,
            artifacts,
            // Where it may start, not what it is.
            requires: _,
            secrets,
            grants,
            uses,
            reload,
            externals,
            templates,
        } = self;
        (name, mode, command, env) == (&other.name, &other.mode, &other.command, &other.env)
            && (driver, ocf, vip) == (&other.driver, &other.ocf, &other.vip)
            && (container, systemd) == (&other.container, &other.systemd)
            && (ports, health, restart, stop) == (&other.ports, &other.health, &other.restart, &other.stop)
            && (failover, unsafe_fast, without_quorum) == (&other.failover, &other.unsafe_fast, &other.without_quorum)
            && (artifacts, resources) == (&other.artifacts, &other.resources)
            && (uses, reload) == (&other.uses, &other.reload)
            && (secrets, grants) == (&other.secrets, &other.grants)
            && (externals, templates) == (&other.externals, &other.templates)
            && match (active, &other.active) {
                (Some(active), Some(other)) => active.runs_the_same(other),
                (one, other) => one.is_none() == other.is_none(),
            }
    }
}

/// How many copies may be active and who decides which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Any number of equal copies.
    #[default]
    Replicated,
    /// One copy on each node that meets `place.require`.
    EveryNode,
    /// One copy, and never a second one, not even while a server is out of reach: it holds a lease.
    Singleton,
    /// Several copies on as many nodes, of which one is active and never a second one: it holds a lease.
    ActivePassive,
}

impl Mode {
    /// Whether something of it is never there twice, so that it has a lease.
    #[must_use]
    pub fn has_lease(self) -> bool {
        matches!(self, Mode::Singleton | Mode::ActivePassive)
    }
}

/// What becomes of what runs once while its server hears no majority of the managers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WithoutQuorum {
    /// It ends with its lease, and is started elsewhere.
    #[default]
    Stop,
    /// It goes on. So nobody else may start it, however long its server is silent, until an operator says that
    /// the server is dead.
    Keep,
    /// Of an active-passive service: the active copy becomes a standby before its lease ends, by its `demote`. One
    /// that cannot is killed in time, and starts anew as a standby.
    Demote,
}

impl WithoutQuorum {
    fn is_default(&self) -> bool {
        *self == WithoutQuorum::default()
    }
}

/// A port: a number, or `"auto"` for one that the node chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    Auto,
    Fixed(u16),
}

impl Serialize for Port {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Port::Auto => serializer.serialize_str("auto"),
            Port::Fixed(number) => serializer.serialize_u16(*number),
        }
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(u16),
            Text(String),
        }
        let refused = || serde::de::Error::custom("a port is a number from 1 to 65535 or \"auto\"");
        match Raw::deserialize(deserializer).map_err(|_| refused())? {
            Raw::Number(0) => Err(refused()),
            Raw::Number(number) => Ok(Port::Fixed(number)),
            Raw::Text(text) if text == "auto" => Ok(Port::Auto),
            Raw::Text(_) => Err(refused()),
        }
    }
}

/// What happens when a copy's process ends by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    #[serde(default)]
    pub policy: RestartPolicy,
    /// `FIRST..LONGEST`: the first restart comes at once, the second after FIRST, then each pause
    /// doubles up to LONGEST. 10 minutes without an exit begin anew. Default `200ms..30s`.
    #[serde(default)]
    pub backoff: Backoff,
}

impl Default for Restart {
    fn default() -> Self {
        Restart { policy: RestartPolicy::Always, backoff: Backoff::default() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    #[default]
    Always,
    /// Only after a signal or an exit status other than 0.
    OnFailure,
    Never,
}

/// Pauses between restarts, written `FIRST..LONGEST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    pub first: Span,
    pub longest: Span,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { first: Span::from_millis(200), longest: Span::from_secs(30) }
    }
}

impl Serialize for Backoff {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}..{}", self.first, self.longest))
    }
}

impl<'de> Deserialize<'de> for Backoff {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parse = || {
            let (first, longest) = text.split_once("..")?;
            let backoff = Backoff { first: first.parse().ok()?, longest: longest.parse().ok()? };
            (backoff.first <= backoff.longest && !backoff.first.0.is_zero()).then_some(backoff)
        };
        parse().ok_or_else(|| {
            serde::de::Error::custom(format!("`{text}` is not a back-off: write FIRST..LONGEST, like 200ms..30s"))
        })
    }
}

/// How a copy is asked to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    #[serde(default)]
    pub signal: StopSignal,
    /// After this it is killed. 0s to 10m; default 10s. It is also the longest wait for gateways
    /// to finish what they sent to the copy before the signal.
    #[serde(default = "grace")]
    pub grace: Span,
}

fn grace() -> Span {
    Span::from_secs(10)
}

impl Default for Stop {
    fn default() -> Self {
        Stop { signal: StopSignal::Term, grace: grace() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum StopSignal {
    #[default]
    Term,
    Int,
    Quit,
    Hup,
    Usr1,
    Usr2,
}

impl StopSignal {
    /// Its word in a spec, without SIG.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            StopSignal::Term => "TERM",
            StopSignal::Int => "INT",
            StopSignal::Quit => "QUIT",
            StopSignal::Hup => "HUP",
            StopSignal::Usr1 => "USR1",
            StopSignal::Usr2 => "USR2",
        }
    }
}

/// Which requests a gateway sends to which service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    /// `:PORT`, or `"default"` for the gateway's own port. Default `default`.
    #[serde(default = "default_listen")]
    pub listen: String,
    /// A host name or `*`. Default `*`. The more exact one wins.
    #[serde(default = "any_host")]
    pub host: String,
    /// Path prefix, on whole segments. Default `/`. The longer one wins.
    #[serde(default = "root")]
    pub path: String,
    pub service: ServiceName,
    #[serde(default)]
    pub balance: Balance,
}

fn default_listen() -> String {
    "default".into()
}
fn any_host() -> String {
    "*".into()
}
fn root() -> String {
    "/".into()
}

/// How a gateway chooses among healthy copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Balance {
    /// The one with the fewest requests in flight from this gateway.
    #[default]
    Leastconn,
}

impl SpecDocument {
    /// Checks what the types alone do not: ranges, names, references between tables.
    ///
    /// # Errors
    /// [`Refusal::Invalid`](crate::command::Refusal::Invalid) naming the field as a path, like `service.web.replicas`.
    pub fn validate(&self) -> Result<(), crate::command::Refusal> {
        validate::document(self)
    }
}
