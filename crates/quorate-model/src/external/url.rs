//! Connection strings, as clients of each kind write them:
//! `SCHEME://[USER[:PASSWORD]@]HOST[:PORT][,HOST[:PORT]]…[/DATABASE][?KEY=VALUE&…]`.

use super::{External, ExternalKind, Tls};
use crate::access::name::ExternalName;
use crate::secret::Secret;
use std::collections::BTreeMap;

/// What a connection string says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FromUrl {
    /// Its `password` is not set: whoever seals the password names the secret.
    pub external: External,
    pub password: Option<Secret<String>>,
}

/// Why a text is no connection string. Never shows the text: there may be a password in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadUrl {
    #[error("the URL has no scheme: write {0}://…")]
    NoScheme(ExternalKind),
    #[error("the scheme of the URL, `{scheme}`, is not one of {kind}: {known}")]
    Scheme { scheme: String, kind: ExternalKind, known: &'static str },
    #[error("{0} of the URL has a % that is not followed by two hexadecimal digits, or bytes that are no UTF-8")]
    Encoding(&'static str),
    #[error("`{key}` in the URL is `{value}`: {known}")]
    Value { key: &'static str, value: String, known: &'static str },
}

const SSLMODES: &str = "known are disable, require (encrypted, to whoever answers) and verify-full";

impl FromUrl {
    /// # Errors
    /// [`BadUrl`]; what an external may be at all is for [`External::validate`].
    pub fn read(name: ExternalName, kind: ExternalKind, url: &str) -> Result<FromUrl, BadUrl> {
        let (scheme, rest) = url.trim().split_once("://").ok_or(BadUrl::NoScheme(kind))?;
        let mut tls = by_scheme(kind, scheme)?;
        let (rest, query) = rest.split_once('?').map_or((rest, ""), |(rest, query)| (rest, query));
        let (authority, path) = rest.split_once('/').map_or((rest, None), |(authority, path)| (authority, Some(path)));
        // A password may have an @, though it should be written as %40; a host never has.
        let (login, hosts) = authority.rsplit_once('@').map_or((None, authority), |(login, it)| (Some(login), it));
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
            None => (None, None),
            Some((user, password)) => (decoded("the user", user)?, decoded("the password", password)?),
        };
        let mut set = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let key = decoded("a key", key)?.unwrap_or_default();
            let value = decoded("a value", value)?.unwrap_or_default();
            match (kind, key.as_str()) {
                (ExternalKind::Postgres, "sslmode") => tls = Some(sslmode(value)?),
                _ => drop(set.insert(key, value)),
            }
        }
        let hosts = hosts.split(',').filter(|host| !host.is_empty()).map(str::to_owned).collect();
        let database = path.map(|path| decoded("the database", path)).transpose()?.flatten();
        let external = External { name, kind, hosts, user, password: None, database, tls, ca: None, set };
        Ok(FromUrl { external, password: password.map(Secret::new) })
    }
}

fn by_scheme(kind: ExternalKind, scheme: &str) -> Result<Option<Tls>, BadUrl> {
    let known = match kind {
        ExternalKind::Postgres => "postgres, postgresql",
        ExternalKind::Redis => "redis, rediss (with TLS)",
        ExternalKind::Rabbitmq => "amqp, amqps (with TLS)",
        ExternalKind::S3 => "https, http, s3 (with TLS)",
    };
    Ok(match (kind, scheme) {
        (ExternalKind::Postgres, "postgres" | "postgresql")
        | (ExternalKind::Redis, "redis")
        | (ExternalKind::Rabbitmq, "amqp") => None,
        (ExternalKind::Redis, "rediss") | (ExternalKind::Rabbitmq, "amqps") | (ExternalKind::S3, "https" | "s3") => {
            Some(Tls::Verify)
        }
        (ExternalKind::S3, "http") => Some(Tls::Off),
        _ => {
            // A text without a scheme may begin with a password.
            let plain = scheme.len() <= 16 && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
            let scheme = if plain { scheme.to_owned() } else { "…".to_owned() };
            return Err(BadUrl::Scheme { scheme, kind, known });
        }
    })
}

fn sslmode(value: String) -> Result<Tls, BadUrl> {
    match value.as_str() {
        "disable" => Ok(Tls::Off),
        "require" => Ok(Tls::Unverified),
        "verify-full" => Ok(Tls::Verify),
        _ => Err(BadUrl::Value { key: "sslmode", value, known: SSLMODES }),
    }
}

/// `None`: there is nothing.
fn decoded(what: &'static str, text: &str) -> Result<Option<String>, BadUrl> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = more.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).ok_or(BadUrl::Encoding(what))?;
        bytes.push(byte);
        rest = &more[2..];
    }
    let text = String::from_utf8(bytes).map_err(|_| BadUrl::Encoding(what))?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}
