//! What replicas are told of an external: variables of their environment, and fields in templates.

use super::{External, ExternalKind, Tls};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// An external with its password, for one replica. Shows nothing of itself.
#[derive(Clone, Copy)]
pub struct Injected<'a> {
    pub external: &'a External,
    pub password: Option<&'a str>,
}

impl std::fmt::Debug for Injected<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Injected({})", self.external.name)
    }
}

/// All fields that an external may have, whatever its kind.
pub const FIELDS: [&str; 15] = [
    "url",
    "host",
    "port",
    "hosts",
    "user",
    "password",
    "database",
    "tls",
    "ca",
    "application_name",
    "connect_timeout",
    "target_session_attrs",
    "cluster",
    "heartbeat",
    "region",
];

impl Injected<'_> {
    /// Its fields by the names that templates use: `url`, `host`, `port`, `hosts`, `user`, `password`, `database`,
    /// `tls`, `ca`, and the settings. What the external does not have is the empty text, so that a variable is
    /// always there.
    #[must_use]
    pub fn fields(&self) -> BTreeMap<String, String> {
        let External { user, database, ca, set, .. } = self.external;
        let addresses = self.external.addresses();
        let (host, port) = addresses.first().copied().unwrap_or_default();
        let word = match self.external.tls() {
            Tls::Off => "off",
            Tls::Unverified => "unverified",
            Tls::Verify => "verify",
        };
        let mut fields: BTreeMap<String, String> = [
            ("url", self.url()),
            ("host", host.to_owned()),
            ("port", port.to_string()),
            ("hosts", hosts(&addresses)),
            ("user", user.clone().unwrap_or_default()),
            ("password", self.password.unwrap_or_default().to_owned()),
            ("database", database.clone().unwrap_or_default()),
            ("tls", word.to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        fields.extend(ca.iter().map(|ca| ("ca".to_owned(), ca.clone())));
        fields.extend(set.clone());
        fields
    }

    /// Whether a field tells the password.
    #[must_use]
    pub fn is_secret(field: &str) -> bool {
        matches!(field, "url" | "password")
    }

    /// The variable for a field: `ORDERS_DB_URL`.
    #[must_use]
    pub fn variable(&self, field: &str) -> String {
        Injected::variable_of(self.external.name.as_str(), field)
    }

    /// The same by the external's name.
    #[must_use]
    pub fn variable_of(name: &str, field: &str) -> String {
        format!("{name}_{field}").to_uppercase().replace('-', "_")
    }

    /// As clients of this kind take it.
    fn url(&self) -> String {
        let External { kind, user, database, set, .. } = self.external;
        let tls = self.external.tls();
        let hosts = hosts(&self.external.addresses());
        let database = encoded(database.as_deref().unwrap_or_default());
        if *kind == ExternalKind::S3 {
            // Keys of S3 are never in its addresses.
            let scheme = if tls == Tls::Off { "http" } else { "https" };
            return format!("{scheme}://{hosts}/{database}");
        }
        let login = match (user, self.password) {
            (None, None) => String::new(),
            (user, None) => format!("{}@", encoded(user.as_deref().unwrap_or_default())),
            (user, Some(password)) => {
                format!("{}:{}@", encoded(user.as_deref().unwrap_or_default()), encoded(password))
            }
        };
        let (scheme, query) = match (kind, tls) {
            (ExternalKind::Postgres, Tls::Off) => ("postgres", "sslmode=disable"),
            (ExternalKind::Postgres, Tls::Unverified) => ("postgres", "sslmode=require"),
            (ExternalKind::Postgres, Tls::Verify) => ("postgres", "sslmode=verify-full"),
            (ExternalKind::Redis, Tls::Off) => ("redis", ""),
            (ExternalKind::Redis, _) => ("rediss", ""),
            (ExternalKind::Rabbitmq, Tls::Off) => ("amqp", ""),
            (ExternalKind::Rabbitmq | ExternalKind::S3, _) => ("amqps", ""),
        };
        let told =
            set.iter().filter(|(key, _)| *key != "cluster").map(|(key, value)| format!("{key}={}", encoded(value)));
        let query: Vec<String> = Some(query.to_owned()).filter(|it| !it.is_empty()).into_iter().chain(told).collect();
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        let path = if database.is_empty() { String::new() } else { format!("/{database}") };
        format!("{scheme}://{login}{hosts}{path}{query}")
    }
}

fn hosts(addresses: &[(&str, u16)]) -> String {
    let one = |(host, port): &(&str, u16)| match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    addresses.iter().map(one).collect::<Vec<_>>().join(",")
}

/// All but what never needs it in any part of a URL.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(byte)),
            // A String takes all that is written into it.
            _ => drop(write!(text, "%{byte:02X}")),
        }
        text
    })
}
