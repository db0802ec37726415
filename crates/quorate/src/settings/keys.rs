//! The table of all settings: for each its kind and range, its default, whether it changes without a
//! restart, and what it means.
//!
//! The default is not written here: it is what [`Settings::default`] has.

use super::binding::Binding;
use super::value::{Kind, Value, span_of};
use super::{LogFormat, Redirect, Seed, Settings};
use quorate_model::state::Role;
use quorate_model::time::Span;
use std::path::PathBuf;
use std::time::Duration;

/// When a changed value is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applies {
    /// After a SIGHUP (`systemctl reload quorate`).
    Live,
    /// After a restart of the server; the services of the node are not touched by one.
    Restart,
    /// When the node is created or joins. Afterwards the cluster knows it, and its commands change it.
    Join,
}

impl Applies {
    pub(crate) fn words(self) -> &'static str {
        match self {
            Applies::Live => "live",
            Applies::Restart => "restart",
            Applies::Join => "join",
        }
    }
}

/// One setting.
#[derive(Debug)]
pub(crate) struct Key {
    /// Section and name, like `cluster.timers.heartbeat`.
    pub path: &'static str,
    pub kind: Kind,
    pub applies: Applies,
    /// For the documentation and `config show`.
    pub about: &'static str,
    get: fn(&Settings) -> Option<Value>,
    set: fn(&mut Settings, &Value) -> Result<(), String>,
}

impl Key {
    /// `None`: it is not set and has no default.
    pub(crate) fn get(&self, settings: &Settings) -> Option<Value> {
        (self.get)(settings)
    }

    /// # Errors
    /// What is wrong with the value; nothing was changed.
    pub(crate) fn set(&self, settings: &mut Settings, value: Value) -> Result<(), String> {
        (self.set)(settings, &self.kind.accept(value)?)
    }

    /// The variable that goes before the file.
    pub(crate) fn variable(&self) -> String {
        format!("QUORATE_{}", self.path.replace('.', "_").to_uppercase())
    }

    /// A shorter name of the same.
    pub(crate) fn short_variable(&self) -> Option<&'static str> {
        SHORT.iter().find(|(path, _)| *path == self.path).map(|(_, variable)| *variable)
    }
}

/// Variables with shorter names: those of KrakenD's `seed` and of Kyvos' switch, and the one that the log
/// always had.
const SHORT: &[(&str, &str)] =
    &[("cluster.seed", "QUORATE_SEED"), ("ha.enabled", "ENABLE_HA"), ("log.level", "QUORATE_LOG")];

/// The key with this path.
pub(crate) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// The sections, in the order of the table.
pub(crate) fn sections() -> Vec<&'static str> {
    let mut sections: Vec<&str> = KEYS.iter().filter_map(|key| key.path.split('.').next()).collect();
    sections.dedup();
    sections
}

fn text(value: &Value) -> &str {
    match value {
        Value::Text(text) => text,
        Value::Whole(_) | Value::Flag(_) | Value::List(_) => "",
    }
}

fn items(value: &Value) -> &[String] {
    match value {
        Value::List(items) => items,
        Value::Text(_) | Value::Whole(_) | Value::Flag(_) => &[],
    }
}

fn whole(value: &Value) -> u32 {
    match value {
        // Ranges end far below.
        Value::Whole(number) => u32::try_from(*number).unwrap_or(u32::MAX),
        Value::Text(_) | Value::Flag(_) | Value::List(_) => 0,
    }
}

fn not_empty(value: &Value) -> Option<String> {
    Some(text(value)).filter(|text| !text.is_empty()).map(str::to_owned)
}

fn binding(value: &Value) -> Result<Binding, String> {
    text(value).parse().map_err(|problem: super::binding::BadBinding| problem.to_string())
}

/// Names go into certificates, addresses and tables: letters, digits, `-`, `_` and `.` between them.
fn name(value: &Value) -> Result<Option<String>, String> {
    let Some(name) = not_empty(value) else { return Ok(None) };
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if name.len() > 63 || !name.chars().all(inside) || !ends(name.chars().next()) || !ends(name.chars().last()) {
        return Err(format!("`{name}` is not such a name"));
    }
    Ok(Some(name))
}

fn absolute(value: &Value) -> Result<PathBuf, String> {
    let path = PathBuf::from(text(value));
    if path.is_absolute() { Ok(path) } else { Err(format!("`{}` is not an absolute path", path.display())) }
}

const ROLES: &[(&str, Role)] = &[("manager", Role::Manager), ("worker", Role::Worker), ("gateway", Role::Gateway)];

fn role(word: &str) -> Result<Role, String> {
    ROLES.iter().find(|(known, _)| *known == word).map(|(_, role)| *role).ok_or_else(|| {
        let hint = crate::cli::failure::nearest(word, ROLES.iter().map(|(known, _)| *known));
        let hint = hint.map_or_else(String::new, |word| format!("; did you mean \"{word}\"?"));
        format!("there is no `{word}`{hint}")
    })
}

fn role_word(role: Role) -> &'static str {
    ROLES.iter().find(|(_, known)| *known == role).map_or("", |(word, _)| word)
}

const fn ms(ms: u64) -> Span {
    Span::from_millis(ms)
}

fn span(duration: Duration) -> Option<Value> {
    Some(Value::text(Span(duration)))
}

const BINDING: &str = "an address, `_site_` or the name of an interface, with or without a port";
const LEVEL: &str = "`error`, `warn`, `info`, `debug`, `trace`, or a filter like `info,quorate_node=debug`";

/// Every setting there is.
pub(crate) static KEYS: &[Key] = &[
    Key {
        path: "node.name",
        kind: Kind::Text("1 to 63 letters, digits, `-`, `_` or `.`, with none of these three at its ends"),
        applies: Applies::Join,
        about: "Name of this server in the cluster. Without it, the host name up to its first dot.",
        get: |all| all.node.name.clone().map(Value::Text),
        set: |all, value| name(value).map(|name| all.node.name = name),
    },
    Key {
        path: "node.alias",
        kind: Kind::Text("text, at most 63 characters"),
        applies: Applies::Join,
        about: "A second name for people, shown beside the first.",
        get: |all| all.node.alias.clone().map(Value::Text),
        set: |all, value| {
            let alias = not_empty(value);
            if alias.as_ref().is_some_and(|alias| alias.chars().count() > 63 || alias.chars().any(char::is_control)) {
                return Err("an alias has at most 63 characters, all of them printable".into());
            }
            all.node.alias = alias;
            Ok(())
        },
    },
    Key {
        path: "node.roles",
        kind: Kind::List("`manager`, `worker` or `gateway`"),
        applies: Applies::Join,
        about: "What this server is for: managers keep the cluster's data, workers run services, gateways forward requests. \
                A join token may allow less.",
        get: |all| Some(Value::list(all.node.roles.iter().map(|role| role_word(*role)))),
        set: |all, value| {
            if items(value).is_empty() {
                return Err("a node needs at least one role".into());
            }
            all.node.roles = items(value).iter().map(|word| role(word)).collect::<Result<_, _>>()?;
            Ok(())
        },
    },
    Key {
        path: "node.data_dir",
        kind: Kind::Text("absolute path"),
        applies: Applies::Restart,
        about: "Where the server keeps the log, the databases, its certificates and what its services print.",
        get: |all| Some(Value::text(all.node.data_dir.display())),
        set: |all, value| absolute(value).map(|path| all.node.data_dir = path),
    },
    Key {
        path: "node.listen",
        kind: Kind::Text(BINDING),
        applies: Applies::Join,
        about: "Where the API and the console listen, and where others join. Without a port: 7000.",
        get: |all| Some(Value::text(&all.node.listen)),
        set: |all, value| binding(value).map(|binding| all.node.listen = binding),
    },
    Key {
        path: "node.advertise",
        kind: Kind::Text(BINDING),
        applies: Applies::Join,
        about: "How the other servers reach this one, if `listen` does not say it. Without a port: the one of `listen`.",
        get: |all| all.node.advertise.as_ref().map(Value::text),
        set: |all, value| {
            let binding = not_empty(value).map(|_| binding(value)).transpose()?;
            all.node.advertise = binding;
            Ok(())
        },
    },
    Key {
        path: "node.link",
        kind: Kind::Text(BINDING),
        applies: Applies::Join,
        about: "Where the other servers' links connect, over TCP and UDP. Without a port: 7001. \
                If it listens everywhere, it is announced at the API's address.",
        get: |all| Some(Value::text(&all.node.link)),
        set: |all, value| binding(value).map(|binding| all.node.link = binding),
    },
    Key {
        path: "cluster.seed",
        kind: Kind::List("HOST:PORT with a name or an address"),
        applies: Applies::Restart,
        about: "Servers to ask for admission when this one is not in a cluster yet; one that answers is enough. \
                Without a port: 7000.",
        get: |all| Some(Value::list(&all.cluster.seed)),
        set: |all, value| {
            all.cluster.seed = items(value).iter().map(|item| item.parse::<Seed>()).collect::<Result<_, _>>()?;
            Ok(())
        },
    },
    Key {
        path: "cluster.token_file",
        kind: Kind::Text("absolute path"),
        applies: Applies::Restart,
        about: "The file with the join token that a server with a `seed` needs to be let in.",
        get: |all| Some(Value::text(all.cluster.token_file.display())),
        set: |all, value| absolute(value).map(|path| all.cluster.token_file = path),
    },
    Key {
        path: "cluster.minimum_nodes",
        kind: Kind::Whole(1, 1_000),
        applies: Applies::Live,
        about: "How many nodes have to be joined, this one included, before `/v1/health` says 200.",
        get: |all| Some(Value::Whole(all.cluster.minimum_nodes.into())),
        set: |all, value| {
            all.cluster.minimum_nodes = whole(value);
            Ok(())
        },
    },
    Key {
        path: "cluster.timers.heartbeat",
        kind: Kind::Span(ms(100), ms(60_000)),
        applies: Applies::Restart,
        about: "How often a node gives a sign of life. After twice this long in silence it is shown as unreachable.",
        get: |all| span(all.cluster.timers.heartbeat),
        set: |all, value| span_of(value).map(|span| all.cluster.timers.heartbeat = span),
    },
    Key {
        path: "cluster.timers.discover",
        kind: Kind::Span(ms(100), ms(60_000)),
        applies: Applies::Restart,
        about: "How long a server that is asked for admission may take to answer.",
        get: |all| span(all.cluster.timers.discover),
        set: |all, value| span_of(value).map(|span| all.cluster.timers.discover = span),
    },
    Key {
        path: "cluster.timers.join_attempt",
        kind: Kind::Span(ms(100), ms(300_000)),
        applies: Applies::Restart,
        about: "The pause between an attempt to join that failed and the next one.",
        get: |all| span(all.cluster.timers.join_attempt),
        set: |all, value| span_of(value).map(|span| all.cluster.timers.join_attempt = span),
    },
    Key {
        path: "cluster.timers.retry_join",
        kind: Kind::Whole(1, 10_000),
        applies: Applies::Restart,
        about: "How many attempts to join are made; then the server gives up and stays not ready.",
        get: |all| Some(Value::Whole(all.cluster.timers.retry_join.into())),
        set: |all, value| {
            all.cluster.timers.retry_join = whole(value);
            Ok(())
        },
    },
    Key {
        path: "ha.enabled",
        kind: Kind::Flag,
        applies: Applies::Restart,
        about: "Switches high availability on, if no command has switched it yet. Off, a single node runs without any \
                coordination; `quorate ha` switches it at any time, and the second node does.",
        get: |all| Some(Value::Flag(all.ha.enabled)),
        set: |all, value| {
            all.ha.enabled = *value == Value::Flag(true);
            Ok(())
        },
    },
    Key {
        path: "ha.failover_time",
        kind: Kind::Span(ms(10_000), ms(300_000)),
        applies: Applies::Restart,
        about: "How long a node may be away before its services are started elsewhere. Set the same on every manager: \
                the one that leads decides, unless `quorate cluster failover` has.",
        get: |all| span(all.ha.failover_time),
        set: |all, value| span_of(value).map(|span| all.ha.failover_time = span),
    },
    Key {
        path: "console.redirect",
        kind: Kind::OneOf(&["active", "balancer", "off"]),
        applies: Applies::Live,
        about: "Where a page request to a passive manager goes: to the active one, to the load balancer, or nowhere else.",
        get: |all| {
            Some(Value::text(match all.console.redirect {
                Redirect::Active => "active",
                Redirect::Balancer => "balancer",
                Redirect::Off => "off",
            }))
        },
        set: |all, value| {
            all.console.redirect = match text(value) {
                "balancer" => Redirect::Balancer,
                "off" => Redirect::Off,
                _ => Redirect::Active,
            };
            Ok(())
        },
    },
    Key {
        path: "console.balancer_url",
        kind: Kind::Text("URL with http or https"),
        applies: Applies::Live,
        about: "The load balancer before the consoles, for `redirect = \"balancer\"`.",
        get: |all| all.console.balancer_url.clone().map(Value::Text),
        set: |all, value| {
            let url = not_empty(value);
            let good = |url: &String| {
                let parsed = url.parse::<ureq::http::Uri>().ok();
                parsed.is_some_and(|url| matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some())
            };
            match url {
                Some(url) if !good(&url) => Err(format!("`{url}` is not a URL like https://console.example.com")),
                url => {
                    all.console.balancer_url = url;
                    Ok(())
                }
            }
        },
    },
    Key {
        path: "dns.listen",
        kind: Kind::Text("IP:PORT, like 127.0.0.1:53"),
        applies: Applies::Restart,
        about: "Where this server answers DNS, over UDP and TCP, for the names of services: `web.quorate`. \
                Not set: nowhere.",
        get: |all| all.dns.listen.map(Value::text),
        set: |all, value| {
            let address = not_empty(value).map(|text| text.parse().map_err(|_| text));
            let address = address.transpose().map_err(|text| format!("`{text}` is not IP:PORT, like 127.0.0.1:53"));
            address.map(|address| all.dns.listen = address)
        },
    },
    Key {
        path: "log.level",
        kind: Kind::Text(LEVEL),
        applies: Applies::Live,
        about: "How much the server writes to its log.",
        get: |all| Some(Value::text(&all.log.level)),
        set: |all, value| {
            let level = text(value);
            // An unknown word alone would be taken as the name of a module, and silence everything else.
            let plain = level.chars().all(|c| c.is_ascii_alphabetic());
            if plain && level.parse::<tracing::level_filters::LevelFilter>().is_err() {
                return Err(format!("there is no level `{level}`"));
            }
            tracing_subscriber::EnvFilter::builder().parse(level).map_err(|problem| problem.to_string())?;
            all.log.level = level.to_owned();
            Ok(())
        },
    },
    Key {
        path: "log.format",
        kind: Kind::OneOf(&["text", "json"]),
        applies: Applies::Restart,
        about: "How a line of the log is written, to standard error and in the data directory: for people or for programs.",
        get: |all| {
            Some(Value::text(match all.log.format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            }))
        },
        set: |all, value| {
            all.log.format = if text(value) == "json" { LogFormat::Json } else { LogFormat::Text };
            Ok(())
        },
    },
    Key {
        path: "log.keep_mib",
        kind: Kind::Whole(1, 65_536),
        applies: Applies::Restart,
        about: "How many MiB of its log the server keeps in its data directory, in two files, where `quorate logs --node` \
                finds it.",
        get: |all| Some(Value::Whole(all.log.keep_mib.into())),
        set: |all, value| {
            all.log.keep_mib = whole(value);
            Ok(())
        },
    },
];
