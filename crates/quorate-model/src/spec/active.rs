//! The table `active` of a service: how one of its copies becomes the active one, and another its successor.
//!
//! Every copy runs, or has its place and could: one of them is active, under the lease of the service. Which one, and
//! how it gets there and back, is said here. Source: docs/adr/0018-active-passive.md.

use super::{Driver, Mode, ServiceSpec, WithoutQuorum};
use crate::place::{Constraint, LIST_MAX};
use crate::time::Span;
use serde::{Deserialize, Serialize};

/// How long a hook may take that names no time.
pub const HOOK_DEFAULT: Span = Span::from_secs(10);
const HOOK_MIN: Span = Span::from_millis(100);
const HOOK_MAX: Span = Span::from_secs(600);

/// How one of several copies is the active one. With the mode `active-passive`, and only then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Active {
    /// A program and its arguments that makes a running copy the active one: it runs beside the copy, with its
    /// environment, `QUORATE_ROLE=active` and `QUORATE_EPOCH`, and must end with status 0. Placeholders work as in
    /// `command`. Left out, the copy learns of it from the file that `QUORATE_ROLE_FILE` names. Not with the driver
    /// `ocf`, whose agent promotes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub promote: Vec<String>,
    /// The other way round. Status 0 says that the copy is not active any more, and is believed. Left out, or with
    /// any other end, the copy is killed and starts anew as a standby.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub demote: Vec<String>,
    /// How long each of them may take. 100ms to 10m; default 10s. When a lease runs out a quarter of its time to
    /// live is the most that `demote` gets.
    #[serde(default = "hook")]
    pub timeout: Span,
    /// Whether the copies that are not active run. `hot` (default): they do, and a hook makes one of them the active
    /// one. `cold`: each has its place and what it needs there, and starts when it is to be the active one, under the
    /// lease; then there are no hooks.
    #[serde(default, skip_serializing_if = "Standby::is_hot")]
    pub standby: Standby,
    /// Copies on which nodes are active rather than others, the most important condition first. At most 16. Among
    /// equals it is the one that has been there for longest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefer: Vec<Constraint>,
    /// Whether a copy that `prefer` ranks higher takes over as soon as it is healthy. Default false: whoever returns
    /// stays a standby.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failback: bool,
}

/// Whether copies run that are not the active one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standby {
    #[default]
    Hot,
    Cold,
}

impl Standby {
    fn is_hot(&self) -> bool {
        *self == Standby::Hot
    }
}

fn hook() -> Span {
    HOOK_DEFAULT
}

impl Default for Active {
    fn default() -> Self {
        Active {
            promote: Vec::new(),
            demote: Vec::new(),
            timeout: HOOK_DEFAULT,
            standby: Standby::Hot,
            prefer: Vec::new(),
            failback: false,
        }
    }
}

impl Active {
    /// Whether copies of one become active as those of the other do; which one does is another matter.
    pub(super) fn runs_the_same(&self, other: &Active) -> bool {
        let Active { promote, demote, timeout, standby, prefer: _, failback: _ } = self;
        (promote, demote, timeout, standby) == (&other.promote, &other.demote, &other.timeout, &other.standby)
    }
}

impl ServiceSpec {
    /// How one of its copies is the active one.
    #[must_use]
    pub fn activity(&self) -> Active {
        self.active.clone().unwrap_or_default()
    }

    /// Whether a running copy becomes the active one, and a standby again: those of an active-passive service do,
    /// unless they stand by cold.
    #[must_use]
    pub fn changes_parts(&self) -> bool {
        self.mode == Mode::ActivePassive && !self.stands_by_cold()
    }

    /// Whether nothing runs of a copy that is not the active one.
    #[must_use]
    pub fn stands_by_cold(&self) -> bool {
        self.mode == Mode::ActivePassive && self.active.as_ref().is_some_and(|it| it.standby == Standby::Cold)
    }

    /// Whether a copy that loses its lease may run on as a standby.
    #[must_use]
    pub fn demotes(&self) -> bool {
        self.without_quorum == WithoutQuorum::Demote
    }
}

/// Where below the service, and what is wrong.
pub(super) fn validate(spec: &ServiceSpec) -> Result<(), (String, String)> {
    let refused = |field: &str, problem: String| Err((field.to_owned(), problem));
    if spec.mode != Mode::ActivePassive {
        return match &spec.active {
            Some(_) => refused("active", "is for mode = \"active-passive\": write that, or leave it out".into()),
            None => Ok(()),
        };
    }
    if spec.stands_by_cold() {
        cold(spec)?;
    } else if !matches!(spec.driver, Driver::Process | Driver::Ocf) {
        let problem = "has no way to be promoted: write driver = \"process\" or \"ocf\", or active.standby = \"cold\"";
        return refused("driver", problem.into());
    }
    let active = spec.activity();
    if spec.driver == Driver::Ocf {
        for (field, hook) in [("active.promote", &active.promote), ("active.demote", &active.demote)] {
            if !hook.is_empty() {
                return refused(
                    field,
                    "is a program, and an OCF agent has its own action for that: leave it out".into(),
                );
            }
        }
    }
    if !(HOOK_MIN..=HOOK_MAX).contains(&active.timeout) {
        return refused("active.timeout", format!("is {}; it must be {HOOK_MIN} to {HOOK_MAX}", active.timeout));
    }
    if active.prefer.len() > LIST_MAX {
        let problem = format!("has {} entries; at most {LIST_MAX} are allowed", active.prefer.len());
        return refused("active.prefer", problem);
    }
    if active.failback && active.prefer.is_empty() {
        return refused("active.failback", "goes back to what `prefer` names: write prefer = [\"node=NAME\"]".into());
    }
    if spec.demotes() && spec.driver == Driver::Process && active.demote.is_empty() {
        let problem = "is \"demote\", and no program does that: write active.demote = [\"/path/to/program\"]";
        return refused("without_quorum", problem.into());
    }
    Ok(())
}

/// What is started to be active, and ended to be that no more, has no use for what does that while it runs.
fn cold(spec: &ServiceSpec) -> Result<(), (String, String)> {
    let active = spec.activity();
    for (field, hook) in [("active.promote", &active.promote), ("active.demote", &active.demote)] {
        if !hook.is_empty() {
            let problem = "is for copies that run, and with standby = \"cold\" the active one alone does: leave it out";
            return Err((field.into(), problem.into()));
        }
    }
    if spec.demotes() {
        let problem = "is \"demote\", and with active.standby = \"cold\" nothing runs that is not active: leave it out";
        return Err(("without_quorum".into(), problem.into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::spec::{Format, parse};

    fn says(rest: &str) -> String {
        let text = format!("[[service]]\nname = 'db'\ncommand = ['/bin/db']\n{rest}");
        match parse(&text, Format::Toml) {
            Err(error) => error.to_string(),
            Ok(document) => document.validate().err().map(|refusal| refusal.to_string()).unwrap_or_default(),
        }
    }

    #[test]
    fn what_cannot_be_active_passive_is_refused_with_the_reason() {
        for (rest, said) in [
            ("[service.active]\nfailback = true", "is for mode = \"active-passive\""),
            ("mode = 'active-passive'\n[service.active]\nfailback = true", "write prefer"),
            ("mode = 'active-passive'\n[service.active]\ntimeout = '11m'", "it must be 100ms to 10m"),
            ("mode = 'active-passive'\nwithout_quorum = 'demote'", "write active.demote"),
            ("mode = 'active-passive'\nwithout_quorum = 'keep'", "is for one copy"),
            ("mode = 'singleton'\nwithout_quorum = 'demote'", "for mode = \"active-passive\""),
            ("without_quorum = 'demote'", "for services that run once"),
            ("mode = 'active-passive'\nvip = '10.0.0.9/24'", "is for services that run once"),
            ("mode = 'active-passive'\n[service.active]\nstandby = 'warm'", "allowed: \"hot\", \"cold\""),
            (
                "mode = 'active-passive'\n[service.active]\nstandby = 'cold'\ndemote = ['/d']",
                "the active one alone does",
            ),
            ("mode = 'active-passive'\nwithout_quorum = 'demote'\n[service.active]\nstandby = 'cold'", "nothing runs"),
            ("mode = 'active-passive'\n[service.active]\npromot = ['x']", "did you mean `promote`"),
            ("mode = 'active-passive'\n[service.active]\npromote = ['{nothing}']", "{nothing}"),
            ("mode = 'active-passive'\nreplicas = 3\nfailover = '9s'", "10s"),
        ] {
            assert!(says(rest).contains(said), "{rest}: {}", says(rest));
        }
        let whole = "mode = 'active-passive'\nreplicas = 3\nfailover = '10s'\nwithout_quorum = 'demote'\n\
                     [service.active]\npromote = ['/p', '{replica}']\ndemote = ['/d']\ntimeout = '2s'\n\
                     prefer = ['node=n1', 'zone=a']\nfailback = true";
        assert_eq!(says(whole), "");
        let cold = "mode = 'active-passive'\nreplicas = 2\n[service.active]\nstandby = 'cold'\nprefer = ['zone=a']";
        assert_eq!(says(cold), "");
    }

    #[test]
    fn who_stands_by_cold_runs_something_else_than_who_stands_by_hot() {
        let read = |standby: &str| {
            let text = format!(
                "[[service]]\nname = 'db'\ncommand = ['/bin/db']\nmode = 'active-passive'\n[service.active]\n{standby}"
            );
            parse(&text, Format::Toml).unwrap().services.remove(0)
        };
        let (hot, cold) = (read("standby = 'hot'"), read("standby = 'cold'"));
        assert_eq!((hot.changes_parts(), hot.stands_by_cold()), (true, false));
        assert_eq!((cold.changes_parts(), cold.stands_by_cold()), (false, true));
        assert!(hot.runs_the_same(&read("failback = false")) && !hot.runs_the_same(&cold));
        assert!(
            cold.runs_the_same(&read("standby = 'cold'\nprefer = ['zone=a']")),
            "which one is active is no part of it"
        );
    }
}
