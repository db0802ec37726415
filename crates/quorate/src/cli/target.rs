//! Which cluster a command talks to.
//!
//! In this order: `--keep DIR`, which is only ever typed; `--server`, which may come from the
//! environment; the node that this server is, by its socket in the usual place; the one `quorate dev`
//! that runs on this machine. Several of those are never guessed between.

use crate::cli::failure::{Exit, Failure};
use crate::dev::registry::{self, Record};
use quorate_trust::fingerprint::Fingerprint;
use quorate_trust::{api, pin};
use rustls::ClientConfig;
use rustls::time_provider::DefaultTimeProvider;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The socket of the node that this server is, where it was installed in the usual way.
const LOCAL: &str = "/var/lib/quorate/api.sock";

/// Where a cluster answers.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// URLs of nodes, without a slash at the end, in the order in which they are tried.
    pub servers: Vec<String>,
    /// The running `quorate dev`, if it is one.
    pub dev: Option<Record>,
    /// Whom `https://` servers have to prove themselves by.
    pub tls: Option<Arc<ClientConfig>>,
}

/// How the user named a cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct Choice {
    pub server: Option<String>,
    pub keep: Option<PathBuf>,
    pub trust: Option<ServerTrust>,
}

/// How a server that is reached over TLS proves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ServerTrust {
    /// It belongs to the cluster whose authority has this fingerprint.
    Pin(Fingerprint),
    /// One of the authorities in this file made its certificate, for the name that is dialled.
    Authorities(PathBuf),
}

impl ServerTrust {
    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, Failure> {
        let config = match self {
            ServerTrust::Pin(fingerprint) => {
                pin::pinned(*fingerprint, Arc::new(DefaultTimeProvider)).map_err(|error| error.to_string())
            }
            ServerTrust::Authorities(path) => std::fs::read_to_string(path)
                .map_err(|error| error.to_string())
                .and_then(|text| api::client(&text).map_err(|error| error.to_string())),
        };
        config.map(Arc::new).map_err(|why| {
            Failure::new(Exit::Usage, "bad-ca", "the servers' authority cannot be used")
                .why(why)
                .fix("--ca-file FILE   with its certificate in PEM\nor --ca-pin FINGERPRINT")
        })
    }
}

impl Choice {
    /// # Errors
    /// Exit 2 for a URL that is none, 3 when no cluster runs, 7 when several do.
    pub(crate) fn find(&self) -> Result<Target, Failure> {
        match (&self.keep, &self.server) {
            (None, Some(list)) => {
                let servers = parse_servers(list, self.trust.is_some())?;
                let tls = self.trust.as_ref().map(ServerTrust::config).transpose()?;
                Ok(Target { servers, dev: None, tls })
            }
            (None, None) if Path::new(LOCAL).exists() => {
                Ok(Target { servers: vec![format!("unix:{LOCAL}")], dev: None, tls: None })
            }
            (Some(_), _) | (None, None) => Ok(self.find_dev()?.into()),
        }
    }

    /// The running `quorate dev` that is meant.
    ///
    /// # Errors
    /// Exit 3 when none runs, 7 when several do.
    pub(crate) fn find_dev(&self) -> Result<Record, Failure> {
        match &self.keep {
            Some(dir) => kept(dir),
            None => only_one(registry::running(&registry::dir())),
        }
    }
}

impl From<Record> for Target {
    fn from(record: Record) -> Target {
        Target { servers: record.nodes.iter().map(|node| node.api.clone()).collect(), dev: Some(record), tls: None }
    }
}

fn kept(dir: &Path) -> Result<Record, Failure> {
    match registry::read(&dir.join(registry::FILE)) {
        Ok(Some(record)) if record.is_alive() => Ok(record),
        Ok(_) => Err(Failure::new(Exit::Unreachable, "no-cluster", format!("no cluster runs in {}", dir.display()))
            .fix(format!("quorate dev --keep {}", dir.display()))),
        Err(error) => Err(Failure::new(
            Exit::Unreachable,
            "no-cluster",
            format!("the record of the cluster in {} cannot be read", dir.display()),
        )
        .why(error)),
    }
}

fn only_one(mut running: Vec<Record>) -> Result<Record, Failure> {
    match running.len() {
        0 => Err(Failure::new(Exit::Unreachable, "no-cluster", "no cluster is running here")
            .fix("quorate dev\nor name a cluster: --server URL")),
        1 => Ok(running.remove(0)),
        count => {
            let choices: Vec<String> =
                running.iter().map(|record| format!("--keep {}", record.dir.display())).collect();
            Err(Failure::new(Exit::Conflict, "several-clusters", format!("{count} clusters are running here"))
                .fix(format!("choose one:\n{}", choices.join("\n"))))
        }
    }
}

/// One URL or several, separated by commas. The scheme may be left out: it is `https` when it is
/// known by whom servers prove themselves.
fn parse_servers(list: &str, trusted: bool) -> Result<Vec<String>, Failure> {
    let scheme = if trusted { "https" } else { "http" };
    let bad = |text: &str| {
        Failure::new(Exit::Usage, "bad-server", format!("`{text}` is not the URL of a server"))
            .fix("--server http://HOST:PORT or unix:/PATH/api.sock")
    };
    let servers: Vec<String> = list
        .split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .map(|text| {
            if let Some(path) = text.strip_prefix("unix:") {
                return if path.starts_with('/') { Ok(text.to_owned()) } else { Err(bad(text)) };
            }
            let with_scheme = if text.contains("://") { text.to_owned() } else { format!("{scheme}://{text}") };
            let url: ureq::http::Uri = with_scheme.parse().map_err(|_| bad(text))?;
            match (url.scheme_str(), url.authority(), url.path()) {
                (Some("https"), Some(_), "/") if !trusted => {
                    Err(Failure::new(Exit::Usage, "no-ca", format!("nothing says by whom `{text}` proves itself")).fix(
                        "--ca-pin FINGERPRINT   of the cluster's CA\nor --ca-file FILE   with the CA's certificate",
                    ))
                }
                // A secret must not leave in clear because of a slip.
                (Some("http"), Some(_), "/") if trusted => {
                    Err(Failure::new(Exit::Usage, "plain-server", format!("`{text}` is not reached over TLS"))
                        .fix("--server https://HOST:PORT"))
                }
                (Some("http" | "https"), Some(authority), "/") => Ok(format!("{scheme}://{authority}")),
                _ => Err(bad(text)),
            }
        })
        .collect::<Result<_, _>>()?;
    if servers.is_empty() { Err(bad(list)) } else { Ok(servers) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::registry::NodeAddress;

    fn record(dir: &str) -> Record {
        Record {
            dir: dir.into(),
            temporary: false,
            pid: 1,
            started: 1,
            socket: format!("{dir}/dev.sock").into(),
            nodes: vec![NodeAddress { name: "n1".into(), api: "http://127.0.0.1:8001".into() }],
            gateway: "http://127.0.0.1:8000".into(),
            console: "http://127.0.0.1:8001/ui/".into(),
            app: None,
            token: "t".into(),
        }
    }

    #[test]
    fn the_only_running_cluster_is_found_without_a_word() {
        assert_eq!(only_one(vec![record("/a")]).unwrap().dir, Path::new("/a"));
    }

    #[test]
    fn between_several_clusters_nobody_guesses() {
        let failure = only_one(vec![record("/a"), record("/b")]).unwrap_err();
        assert_eq!(failure.exit, Exit::Conflict);
        assert_eq!(failure.fix, "choose one:\n--keep /a\n--keep /b");
    }

    #[test]
    fn without_a_cluster_the_way_to_one_is_shown() {
        let failure = only_one(Vec::new()).unwrap_err();
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.to_string().starts_with("error: no cluster is running here\nfix:   quorate dev\n"));
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(kept(dir.path()).unwrap_err().exit, Exit::Unreachable);
    }

    #[test]
    fn servers_are_urls_with_or_without_their_scheme() {
        let parse_servers = |list: &str| parse_servers(list, false);
        assert_eq!(parse_servers("127.0.0.1:8001/").unwrap(), ["http://127.0.0.1:8001"]);
        assert_eq!(parse_servers("http://a:1, b:2").unwrap(), ["http://a:1", "http://b:2"]);
        assert_eq!(parse_servers("unix:/var/lib/quorate/api.sock").unwrap(), ["unix:/var/lib/quorate/api.sock"]);
        for bad in ["unix:api.sock", "", ",", "ftp://a", "http://a/v1", "http://", "a b"] {
            assert_eq!(parse_servers(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }

    #[test]
    fn https_needs_somebody_to_believe_and_then_nothing_is_sent_in_clear() {
        assert_eq!(parse_servers("a:1, https://b:2", true).unwrap(), ["https://a:1", "https://b:2"]);
        assert_eq!(parse_servers("https://a:1", false).unwrap_err().code, "no-ca");
        assert_eq!(parse_servers("http://a:1", true).unwrap_err().code, "plain-server");
        let missing = ServerTrust::Authorities("/nonexistent/ca.crt".into());
        assert_eq!(missing.config().unwrap_err().code, "bad-ca");
    }
}
