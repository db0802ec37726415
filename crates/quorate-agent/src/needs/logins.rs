//! Externals that services need, logged in to again and again.

use super::{Done, Look};
use crate::externals;
use crate::secrets::Secrets;
use quorate_model::external::{External, usable};
use quorate_model::need::SecretStamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How often a login is tried that works. It costs the external a connection, from each node.
const EVERY: Duration = Duration::from_secs(30);
/// How often one is tried that does not: somebody may be mending it. Servers that lock out whoever fails often see
/// few of these.
const FAILED_EVERY: Duration = Duration::from_secs(5);

/// An external with one password of it: a new password is another login.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Login {
    external: External,
    password: Option<SecretStamp>,
}

/// What is known of them.
#[derive(Default)]
pub(super) struct Logins {
    wanted: BTreeSet<External>,
    looks: BTreeMap<Login, Look>,
}

impl Logins {
    pub(super) fn want<'a>(&mut self, externals: impl Iterator<Item = &'a External>) {
        self.wanted = externals.cloned().collect();
    }

    pub(super) fn looks(&self) -> impl Iterator<Item = &Look> {
        self.looks.values()
    }

    pub(super) fn begin_what_is_due(&mut self, now: Instant, secrets: &Secrets, tasks: &mut JoinSet<Done>) {
        let logins: BTreeSet<Login> = self.wanted.iter().filter_map(|external| login(external, secrets)).collect();
        self.looks.retain(|login, _| logins.contains(login));
        for login in logins {
            let look = self.looks.entry(login.clone()).or_insert_with(Look::new);
            if look.busy || look.due > now {
                continue;
            }
            look.busy = true;
            let password = login.external.password.as_ref().and_then(|name| secrets.0.get(name));
            let password = password.map(|held| held.value.clone());
            tasks.spawn(async move {
                let hosts = externals::login(&login.external, password.as_ref()).await;
                let problem = usable(&hosts).err();
                if let Some(problem) = &problem {
                    tracing::warn!(external = %login.external.name, problem, "this node cannot log in to an external");
                }
                Done::LoggedIn(Box::new(login), problem)
            });
        }
    }

    pub(super) fn done(&mut self, login: &Login, problem: Option<String>) {
        if let Some(look) = self.looks.get_mut(login) {
            look.done(problem, EVERY, |_| FAILED_EVERY);
        }
    }

    /// `None`: its password is not on this node yet. Then `None`: it was not tried yet; then what is wrong, if
    /// anything.
    pub(super) fn found(&self, external: &External, secrets: &Secrets) -> Option<Option<Option<String>>> {
        let login = login(external, secrets)?;
        Some(self.looks.get(&login).and_then(|look| look.found.clone()))
    }
}

/// `None`: its password is not here.
fn login(external: &External, secrets: &Secrets) -> Option<Login> {
    let password = external.password.as_ref().map(|name| secrets.0.get(name).map(|held| held.stamp));
    let password = match password {
        None => None,
        Some(held) => Some(held?),
    };
    Some(Login { external: external.clone(), password })
}
