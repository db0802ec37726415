//! Externals: systems that services use and that Quorate does not run, like a PostgreSQL of the company.
//!
//! An external is where such a system is and how to log in there, written down once. Services name it
//! (`externals`), and their replicas are handed what they need to reach it. Its password is a secret of the
//! cluster like any other: here stands only the secret's name.
//!
//! # Invariants
//! - Nothing in an [`External`] is secret, so it may be shown, logged and compared.
//! - An external that a service names is not removed.
//! - A change of an external restarts the services that name it, one replica after another, as an update does.

mod injected;
mod login;
mod url;

pub use injected::{FIELDS, Injected};
pub use login::{HostLogin, LoginProblem, NodeLogin, Why, usable};
pub use url::{BadUrl, FromUrl};

use crate::access::AccessCommand;
use crate::access::name::{ExternalName, SecretName};
use crate::command::Refusal;
use crate::event::Happening;
use crate::spec::nearest;
use crate::state::{Change, Changes, ClusterState, ServiceRecord};
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Most externals of a cluster.
pub const EXTERNALS_MAX: usize = 200;
/// Most hosts of one.
const HOSTS_MAX: usize = 32;
/// Longest user, database or setting, in bytes.
const TEXT_BYTES_MAX: usize = 255;
/// Longest text of certificates of authorities, in bytes.
const CA_BYTES_MAX: usize = 32 << 10;

/// A system that services use and that Quorate does not run. Everybody who sees the cluster may see it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct External {
    /// 1 to 48 of a-z, 0-9 and -. Variables of services begin with it: `orders-db` gives `ORDERS_DB_URL`.
    pub name: ExternalName,
    pub kind: ExternalKind,
    /// `HOST[:PORT]`, 1 to 32; default port: the kind's own. Of Redis several are the nodes of a cluster.
    pub hosts: Vec<String>,
    /// Who logs in; the access key of S3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The name of the cluster's secret that holds the password, or the secret key of S3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretName>,
    /// The database; the number of one of Redis, the virtual host of RabbitMQ, the bucket of S3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// Default: off; for S3: verify.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Certificates (PEM) of the authorities that are believed instead of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// What else its clients are to be told; which keys there are depends on the kind.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
}

/// What kind of system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExternalKind {
    Postgres,
    Redis,
    Rabbitmq,
    S3,
}

/// Whether connections are encrypted, and whom they believe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    Off,
    /// Encrypted, to whoever answers.
    Unverified,
    /// Encrypted, to a server whose certificate an authority has signed for its name.
    Verify,
}

/// The text is no kind of external that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKind {
    #[error("externals of the kind {0} are not supported yet: known are {KINDS}")]
    NotYet(String),
    #[error("`{text}` is no kind of external{}; known are {KINDS}", .similar.map(|it| format!("; did you mean `{it}`?")).unwrap_or_default())]
    Unknown { text: String, similar: Option<&'static str> },
}

const KINDS: &str = "postgres, redis, rabbitmq and s3";

impl ExternalKind {
    pub const ALL: [ExternalKind; 4] =
        [ExternalKind::Postgres, ExternalKind::Redis, ExternalKind::Rabbitmq, ExternalKind::S3];

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            ExternalKind::Postgres => "postgres",
            ExternalKind::Redis => "redis",
            ExternalKind::Rabbitmq => "rabbitmq",
            ExternalKind::S3 => "s3",
        }
    }

    fn default_port(self, tls: Tls) -> u16 {
        match (self, tls) {
            (ExternalKind::Postgres, _) => 5432,
            (ExternalKind::Redis, _) => 6379,
            (ExternalKind::Rabbitmq, Tls::Off) => 5672,
            (ExternalKind::Rabbitmq, _) => 5671,
            (ExternalKind::S3, Tls::Off) => 80,
            (ExternalKind::S3, _) => 443,
        }
    }

    /// Keys of [`External::set`], each with what it is.
    pub(crate) fn settings(self) -> &'static [&'static str] {
        match self {
            ExternalKind::Postgres => &["application_name", "connect_timeout", "target_session_attrs"],
            ExternalKind::Redis => &["cluster"],
            ExternalKind::Rabbitmq => &["heartbeat"],
            ExternalKind::S3 => &["region"],
        }
    }
}

impl fmt::Display for ExternalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl FromStr for ExternalKind {
    type Err = BadKind;

    fn from_str(text: &str) -> Result<Self, BadKind> {
        if let "mongodb" | "elasticsearch" = text {
            return Err(BadKind::NotYet(text.to_owned()));
        }
        let words = ExternalKind::ALL.map(ExternalKind::word);
        let found = ExternalKind::ALL.into_iter().find(|kind| kind.word() == text);
        found.ok_or_else(|| BadKind::Unknown { text: text.to_owned(), similar: nearest(text, &words) })
    }
}

impl External {
    #[must_use]
    pub fn tls(&self) -> Tls {
        self.tls.unwrap_or(if self.kind == ExternalKind::S3 { Tls::Verify } else { Tls::Off })
    }

    /// Each host with its port. IPv6 addresses are without brackets.
    #[must_use]
    pub fn addresses(&self) -> Vec<(&str, u16)> {
        let default = self.kind.default_port(self.tls());
        self.hosts.iter().filter_map(|host| address(host, default)).collect()
    }

    /// Whether its hosts are the nodes of a Redis cluster.
    #[must_use]
    pub fn is_redis_cluster(&self) -> bool {
        self.kind == ExternalKind::Redis
            && (self.hosts.len() > 1 || self.set.get("cluster").is_some_and(|word| word == "true"))
    }

    /// The secret for a password that was given together with the external.
    #[must_use]
    pub fn own_secret(name: &ExternalName) -> SecretName {
        SecretName::new(&format!("external.{name}")).expect("an external's name is a part of a secret's name")
    }

    /// # Errors
    /// The field that is wrong, and how.
    pub fn validate(&self) -> Result<(), (String, String)> {
        let at = |field: &str, problem: String| Err((field.to_owned(), problem));
        if !(1..=HOSTS_MAX).contains(&self.hosts.len()) {
            return at("hosts", format!("has {} entries; 1 to {HOSTS_MAX} are needed", self.hosts.len()));
        }
        if let Some(bad) = self.hosts.iter().find(|host| address(host, 1).is_none()) {
            return at("hosts", format!("has `{bad}`, which is not HOST or HOST:PORT"));
        }
        for (field, text) in [("user", &self.user), ("database", &self.database)] {
            if let Some(problem) = text.as_deref().and_then(unfit) {
                return at(field, problem);
            }
        }
        if self.ca.as_ref().is_some_and(|ca| ca.len() > CA_BYTES_MAX || !ca.contains("-----BEGIN CERTIFICATE-----")) {
            return at("ca", format!("is not one or more certificates as PEM, at most {CA_BYTES_MAX} bytes"));
        }
        if self.ca.is_some() && self.tls() != Tls::Verify {
            return at("ca", "is given, and certificates are not verified: write tls = \"verify\"".into());
        }
        self.settings()?;
        self.of_its_kind()
    }

    fn settings(&self) -> Result<(), (String, String)> {
        let known = self.kind.settings();
        for (key, value) in &self.set {
            if !known.contains(&key.as_str()) {
                let similar = nearest(key, known).map(|it| format!("; did you mean `{it}`?")).unwrap_or_default();
                let problem = format!("is no setting of {}{similar}; known: {}", self.kind, known.join(", "));
                return Err((format!("set.{key}"), problem));
            }
            if let Some(problem) = unfit(value) {
                return Err((format!("set.{key}"), problem));
            }
            if key == "cluster" && !["true", "false"].contains(&value.as_str()) {
                return Err(("set.cluster".into(), format!("is `{value}`; write true or false")));
            }
        }
        Ok(())
    }

    fn of_its_kind(&self) -> Result<(), (String, String)> {
        let missing = |field: &str, what: &str| Err((field.to_owned(), format!("is missing: {what}")));
        match self.kind {
            ExternalKind::Postgres if self.user.is_none() => missing("user", "PostgreSQL lets nobody in without one"),
            ExternalKind::Rabbitmq if self.user.is_none() => missing("user", "RabbitMQ lets nobody in without one"),
            ExternalKind::Rabbitmq if self.password.is_none() => {
                missing("password", "RabbitMQ lets nobody in without one")
            }
            ExternalKind::S3 if self.database.is_none() => missing("database", "write the name of the bucket"),
            ExternalKind::S3 if self.user.is_some() != self.password.is_some() => {
                missing("password", "an access key (`user`) and a secret key (`password`) are given both, or none")
            }
            ExternalKind::Redis => self.redis(),
            ExternalKind::Postgres | ExternalKind::Rabbitmq | ExternalKind::S3 => Ok(()),
        }
    }

    fn redis(&self) -> Result<(), (String, String)> {
        let Some(database) = &self.database else { return Ok(()) };
        let at = |problem: String| Err(("database".to_owned(), problem));
        match database.parse::<u32>() {
            Err(_) => at(format!("is `{database}`; databases of Redis have numbers, the first is 0")),
            Ok(number) if number > 0 && self.is_redis_cluster() => at(format!(
                "is {number}, and a cluster of Redis nodes has the database 0 alone: write 0, or name one host"
            )),
            Ok(_) => Ok(()),
        }
    }
}

fn unfit(text: &str) -> Option<String> {
    if text.is_empty() {
        return Some("is empty: leave it out".into());
    }
    if text.len() > TEXT_BYTES_MAX {
        return Some(format!("has {} bytes; at most {TEXT_BYTES_MAX} are allowed", text.len()));
    }
    text.chars().any(char::is_control).then(|| "has a character that is not printed".into())
}

/// The host, and its port or the default one.
fn address(text: &str, default: u16) -> Option<(&str, u16)> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, if rest.is_empty() { default } else { port(rest.strip_prefix(':')?)? })
        }
        None => match text.split_once(':') {
            Some((host, number)) => (host, port(number)?),
            None => (text, default),
        },
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    ((1..=253).contains(&host.len()) && host.bytes().all(plain)).then_some((host, port))
}

/// An external as decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalRecord {
    pub external: External,
    /// Grows with each change, of its password too.
    pub version: u64,
    pub changed: WallTime,
    /// It was accepted though not every node could log in, or though nobody tried.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unchecked: bool,
}

/// A mutation of the cluster's externals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "external", rename_all = "kebab-case")]
pub enum ExternalCommand {
    /// Adds it, or puts it in the place of the one with its name.
    Set {
        definition: Box<External>,
        /// A password that was given together with it: ciphertext, base64, for [`External::own_secret`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sealed: Option<String>,
        /// Number of the key that sealed it.
        #[serde(default)]
        key: u32,
        /// It is taken as it is, whatever the logins of the nodes said.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        unchecked: bool,
    },
    Remove {
        name: ExternalName,
    },
}

impl ClusterState {
    pub(crate) fn decide_external(&self, changes: &mut Changes, command: &ExternalCommand) -> Result<(), Refusal> {
        match command {
            ExternalCommand::Set { definition, sealed, key, unchecked } => {
                let sealed = sealed.as_ref().map(|sealed| (sealed, *key));
                self.set_external(changes, definition, sealed, *unchecked)
            }
            ExternalCommand::Remove { name } => {
                self.external(name)?;
                if let Some(service) = self.users_of(name).next() {
                    let (external, service) = (name.clone(), service.spec.name.clone());
                    return Err(Refusal::ExternalInUse { external, service });
                }
                changes.list.push(Change::ExternalGone { external: name.clone() });
                changes.event(Happening::ExternalRemoved { external: name.clone() });
                self.forget_own_secret(changes, name)
            }
        }
    }

    /// # Errors
    /// [`Refusal::UnknownExternal`], with the nearest name that exists.
    pub fn external(&self, name: &ExternalName) -> Result<&ExternalRecord, Refusal> {
        self.externals.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.externals.keys().map(ExternalName::as_str).collect();
            let similar = nearest(name.as_str(), &known).and_then(|name| ExternalName::new(name).ok());
            Refusal::UnknownExternal { external: name.clone(), similar }
        })
    }

    /// Services that name it.
    pub fn users_of(&self, name: &ExternalName) -> impl Iterator<Item = &ServiceRecord> {
        self.services.values().filter(move |service| service.spec.wanted_externals().any(|wanted| wanted == name))
    }

    fn set_external(
        &self,
        changes: &mut Changes,
        external: &External,
        sealed: Option<(&String, u32)>,
        unchecked: bool,
    ) -> Result<(), Refusal> {
        let name = &external.name;
        let invalid = |(field, problem): (String, String)| {
            let field = format!("external.{name}.{field}");
            Refusal::Invalid { field, problem }
        };
        external.validate().map_err(invalid)?;
        let own = External::own_secret(name);
        let known = self.externals.get(name);
        if known.is_none() && self.externals.len() >= EXTERNALS_MAX {
            let problem = format!("would be one more than {EXTERNALS_MAX}, which are allowed");
            return Err(invalid((String::new(), problem)));
        }
        let record = ExternalRecord {
            external: external.clone(),
            version: known.map_or(1, |known| known.version + 1),
            changed: changes.now,
            unchecked,
        };
        match sealed {
            Some((sealed, key)) => {
                if external.password.as_ref() != Some(&own) {
                    let problem = format!("is given, so its secret is `{own}`");
                    return Err(invalid(("password".into(), problem)));
                }
                self.change_secret(changes, &AccessCommand::SetSecret { name: own, sealed: sealed.clone(), key })?;
            }
            None if known.is_some_and(|known| known.external == *external && known.unchecked == unchecked) => {
                return Ok(());
            }
            None if external.password.as_ref() != Some(&own) => self.forget_own_secret(changes, name)?,
            None => {}
        }
        changes.list.push(Change::External(Box::new(record)));
        changes.event(Happening::ExternalSet { external: name.clone(), unchecked });
        if known.is_some_and(|known| known.external != *external || sealed.is_some()) {
            self.users_of(name).for_each(|service| self.restart(changes, service));
        }
        Ok(())
    }

    fn forget_own_secret(&self, changes: &mut Changes, name: &ExternalName) -> Result<(), Refusal> {
        let own = External::own_secret(name);
        if self.access.secrets.contains_key(&own) {
            self.change_secret(changes, &AccessCommand::RemoveSecret { name: own })?;
        }
        Ok(())
    }

    fn change_secret(&self, changes: &mut Changes, command: &AccessCommand) -> Result<(), Refusal> {
        self.sealed_well(command).map_err(Refusal::Access)?;
        let decided = self.access.decide(changes.now, command).map_err(Refusal::Access)?;
        changes.list.extend(decided.into_iter().map(Change::Access));
        Ok(())
    }

    /// Those that a service names, as far as they are there.
    pub(crate) fn externals_of<'a>(&'a self, names: impl Iterator<Item = &'a ExternalName>) -> Vec<External> {
        names.filter_map(|name| self.externals.get(name)).map(|record| record.external.clone()).collect()
    }
}

#[cfg(test)]
mod tests;
