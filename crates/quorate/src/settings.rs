//! What an operator configures on a server: `quorate.toml`, and the environment over it.
//!
//! An empty file is valid, and so is none at the default place. [`keys`] is the one table of all
//! settings: reading, checking, `config show`, live reload and the page in the documentation are
//! made from it. What this node *is* in its cluster (ids, voters) is not here but in `node.toml`
//! ([`crate::config`]), which people do not edit.
//!
//! A setting comes from the environment if it is there, else from the file, else it is the default;
//! [`Loaded::origins`] says which, with the line. Whatever is wrong is found before anything is used,
//! all of it at once: an unknown key, a value out of range, two settings that contradict each other.

pub(crate) mod binding;
pub(crate) mod edit;
pub(crate) mod keys;
pub(crate) mod kuzzle;
pub(crate) mod mistake;
pub(crate) mod read;
pub(crate) mod reload;
pub(crate) mod value;

use binding::{Binding, Bound, Host, Interface, NoAddress};
use mistake::{Mistake, Mistakes};
use quorate_membership::Timers;
use quorate_model::state::Role;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Where the file is unless somebody says otherwise.
pub(crate) const DEFAULT_FILE: &str = "/etc/quorate/quorate.toml";
/// The API's port, which is also the one to join at.
pub(crate) const API_PORT: u16 = 7000;
/// The node link's port.
pub(crate) const LINK_PORT: u16 = 7001;

/// Everything that can be set, with its defaults in [`Settings::default`]. Meanings, units and
/// ranges are in [`keys::KEYS`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Settings {
    pub node: NodeSettings,
    pub cluster: ClusterSettings,
    pub ha: HaSettings,
    pub console: ConsoleSettings,
    pub dns: DnsSettings,
    pub log: LogSettings,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeSettings {
    pub name: Option<String>,
    pub alias: Option<String>,
    pub roles: BTreeSet<Role>,
    pub data_dir: PathBuf,
    pub listen: Binding,
    /// `None`: what `listen` means.
    pub advertise: Option<Binding>,
    pub link: Binding,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClusterSettings {
    pub seed: Vec<Seed>,
    pub token_file: PathBuf,
    pub minimum_nodes: u32,
    pub timers: Timers,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HaSettings {
    pub enabled: bool,
    pub failover_time: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConsoleSettings {
    pub redirect: Redirect,
    pub balancer_url: Option<String>,
}

/// Where a page request to a passive manager goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Redirect {
    Active,
    Balancer,
    Off,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DnsSettings {
    /// `None`: names are answered by nobody here.
    pub listen: Option<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogSettings {
    pub level: String,
    pub format: LogFormat,
    /// MiB of it that the data directory keeps.
    pub keep_mib: u32,
}

impl LogSettings {
    pub(crate) fn keep_bytes(&self) -> u64 {
        u64::from(self.keep_mib) << 20
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

impl Default for NodeSettings {
    fn default() -> Self {
        let everywhere = |port| Binding { host: Host::Address([0, 0, 0, 0].into()), port: Some(port) };
        NodeSettings {
            name: None,
            alias: None,
            roles: BTreeSet::from([Role::Manager, Role::Worker]),
            data_dir: "/var/lib/quorate".into(),
            listen: everywhere(API_PORT),
            advertise: None,
            link: everywhere(LINK_PORT),
        }
    }
}

impl Default for ClusterSettings {
    fn default() -> Self {
        ClusterSettings {
            seed: Vec::new(),
            token_file: "/etc/quorate/token".into(),
            minimum_nodes: 1,
            timers: Timers::default(),
        }
    }
}

impl Default for HaSettings {
    fn default() -> Self {
        HaSettings { enabled: false, failover_time: Duration::from_secs(30) }
    }
}

impl Default for ConsoleSettings {
    fn default() -> Self {
        ConsoleSettings { redirect: Redirect::Active, balancer_url: None }
    }
}

impl Default for LogSettings {
    fn default() -> Self {
        LogSettings { level: "info".into(), format: LogFormat::Text, keep_mib: 16 }
    }
}

/// A node to ask for admission: a name or an address, and its API's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seed {
    pub host: String,
    pub port: u16,
}

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("`{text}` is not HOST:PORT, like 192.168.1.100:{API_PORT} or core-1.example.com:{API_PORT}");
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Seed { host: address.ip().to_string(), port: address.port() });
        }
        if let Ok(address) = text.trim_matches(['[', ']']).parse::<std::net::IpAddr>() {
            return Ok(Seed { host: address.to_string(), port: API_PORT });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok().filter(|port| *port > 0).ok_or_else(bad)?),
            None => (text, API_PORT),
        };
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        };
        // A name of numbers alone is a mistyped address.
        let numeric = host.chars().all(|c| c.is_ascii_digit() || c == '.');
        if numeric || !host.trim_end_matches('.').split('.').all(label) {
            return Err(bad());
        }
        Ok(Seed { host: host.to_owned(), port })
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seed { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// What a node's addresses are on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub api: Bound,
    pub link: Bound,
}

impl NodeSettings {
    /// The name, or what this machine is called up to the first dot.
    pub(crate) fn name_or_host(&self) -> String {
        let host = || {
            let system = rustix::system::uname();
            let host = system.nodename().to_string_lossy();
            host.split('.').next().unwrap_or_default().to_owned()
        };
        self.name.clone().unwrap_or_else(host)
    }

    /// What `listen`, `advertise` and `link` mean on a machine with these interfaces.
    ///
    /// A link that listens everywhere is announced at the API's address: one address is then enough
    /// to configure.
    ///
    /// # Errors
    /// [`NoAddress`] when this machine has nothing of the kind.
    pub(crate) fn addresses(&self, interfaces: &[Interface]) -> Result<Addresses, NoAddress> {
        let port = self.listen.port.unwrap_or(API_PORT);
        let everywhere = |binding: &Binding| matches!(binding.host, Host::Address(all) if all.is_unspecified());
        let api = match &self.advertise {
            None => self.listen.resolve(API_PORT, interfaces)?,
            Some(advertise) => {
                let announced = advertise.resolve(port, interfaces)?;
                let listen = match self.listen.host {
                    // Nothing has to be found for it, and there may be nothing.
                    Host::Address(address) => SocketAddr::new(address, port),
                    _ => self.listen.resolve(API_PORT, interfaces)?.listen,
                };
                Bound { listen, ..announced }
            }
        };
        let link = if everywhere(&self.link) {
            let link_port = self.link.port.unwrap_or(LINK_PORT);
            let Host::Address(all) = self.link.host else { unreachable!("it is an unspecified address") };
            Bound {
                listen: SocketAddr::new(all, link_port),
                advertise: SocketAddr::new(api.advertise.ip(), link_port),
                because: api.because.clone(),
            }
        } else {
            self.link.resolve(LINK_PORT, interfaces)?
        };
        Ok(Addresses { api, link })
    }
}

/// Where a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    File {
        file: PathBuf,
        line: usize,
    },
    /// The variable's name.
    Environment(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { file, line } => write!(f, "{}:{line}", file.display()),
            Origin::Environment(name) => f.write_str(name),
        }
    }
}

/// Settings, and where each comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loaded {
    pub settings: Settings,
    /// Of those that are not the default, by the key's path.
    pub origins: BTreeMap<&'static str, Origin>,
}

impl Loaded {
    pub(crate) fn origin(&self, path: &str) -> Origin {
        self.origins.get(path).cloned().unwrap_or(Origin::Default)
    }
}

/// Where settings are read from, also when they are read again.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// `None`: [`DEFAULT_FILE`], which need not exist.
    pub file: Option<PathBuf>,
    /// The variables of the process, as it was started.
    pub environment: BTreeMap<String, String>,
}

impl Source {
    /// The file, or the default one, and this process's environment.
    pub(crate) fn of_process(file: Option<PathBuf>) -> Source {
        // A name or value that is no text is none of ours.
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Source { file, environment: std::env::vars_os().filter_map(text).collect() }
    }

    /// The file that is read.
    pub(crate) fn path(&self) -> &Path {
        self.file.as_deref().unwrap_or(Path::new(DEFAULT_FILE))
    }

    /// What the file says; nothing if it is the default one and not there.
    ///
    /// # Errors
    /// One mistake, when it cannot be read.
    pub(crate) fn text(&self) -> Result<String, Mistakes> {
        let path = self.path();
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.file.is_none() => Ok(String::new()),
            Err(error) => Err(Mistake::unreadable(path, &error).into()),
        }
    }

    /// # Errors
    /// Everything that is wrong with the file or the environment.
    pub(crate) fn load(&self) -> Result<Loaded, Mistakes> {
        read::read(&self.text()?, self.path(), &self.environment)
    }
}

#[cfg(test)]
mod tests;
