//! The driver `ocf`: resource agents, called as Pacemaker calls them.
//!
//! An agent is a program that is run once for each operation and says by its exit status how that went. It starts
//! daemons, or changes the machine (an address, a mount); it does not stay itself. So `monitor` is how anything is
//! known, and its rhythm is the health.
//!
//! Before a start the agent's meta-data is read: a parameter that it does not know or lacks is told by name, with
//! what was probably meant, and nothing is started. Meta-data also advises times, which count where the spec says
//! nothing.
//!
//! What agents get wrong, and what is done about it:
//! - one that says that it started while nothing runs is looked at before that is believed, and stopped;
//! - one that hangs is killed with its process group when its time is over, which then counts as a failure;
//! - one that says "stopped" and is not is asked by a monitor.
//!
//! # Sources
//! The OCF Resource Agent API 1.1 (ClusterLabs/OCF-spec, `ra/1.1/resource-agent-api.md`); Pacemaker Explained,
//! "Resource Agents", and Pacemaker Administration, "Resource Agents: OCF exit codes" (190 and 191 are from there).

use super::desk::{Desk, Ended, Patience};
use super::{Backend, Look, Trouble, pacemaker};
use crate::launch::Launch;
use meta_data::MetaData;
use quorate_model::observed::Fencing;
use quorate_model::spec::{Mode, OcfTimeouts};
use quorate_model::time::Span;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

mod meta_data;

/// Where agents are, unless `OCF_ROOT` in the service's environment says otherwise.
const ROOT: &str = "/usr/lib/ocf";

/// For an operation of which neither the spec nor the meta-data says how long it may take.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Between two monitors, where neither says.
const EVERY: Duration = Duration::from_secs(10);

/// The set of features of Pacemaker that an agent may ask for; this is Pacemaker 2.1's.
const FEATURE_SET: &str = "3.16.2";

/// Whether a text is meta-data, for who tries to break the reader of it.
pub(crate) fn is_meta_data(text: &str) -> bool {
    MetaData::parse(text).is_ok()
}

/// What an agent's exit status means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Ok,
    Generic,
    Args,
    Unimplemented,
    Permission,
    Installed,
    Configured,
    NotRunning,
    RunningPromoted,
    FailedPromoted,
    /// As `Ok`, and not for long.
    Degraded,
    /// As `RunningPromoted`, and not for long.
    DegradedPromoted,
    Other(i32),
    /// The agent itself was killed by this signal.
    Killed(i32),
}

impl Code {
    fn of(status: ExitStatus) -> Code {
        use std::os::unix::process::ExitStatusExt;
        match status.code() {
            Some(0) => Code::Ok,
            Some(1) => Code::Generic,
            Some(2) => Code::Args,
            Some(3) => Code::Unimplemented,
            Some(4) => Code::Permission,
            Some(5) => Code::Installed,
            Some(6) => Code::Configured,
            Some(7) => Code::NotRunning,
            Some(8) => Code::RunningPromoted,
            Some(9) => Code::FailedPromoted,
            Some(190) => Code::Degraded,
            Some(191) => Code::DegradedPromoted,
            Some(other) => Code::Other(other),
            None => Code::Killed(status.signal().unwrap_or_default()),
        }
    }

    /// Whether it will be the same the next time, on this node and as it was told.
    fn is_final(self) -> bool {
        matches!(self, Code::Args | Code::Unimplemented | Code::Permission | Code::Installed | Code::Configured)
    }

    fn words(self) -> String {
        let (number, words) = match self {
            Code::Ok => (0, "success"),
            Code::Generic => (1, "error"),
            Code::Args => (2, "wrong arguments"),
            Code::Unimplemented => (3, "not implemented"),
            Code::Permission => (4, "not allowed"),
            Code::Installed => (5, "what it needs is not installed"),
            Code::Configured => (6, "wrong parameters"),
            Code::NotRunning => (7, "not running"),
            Code::RunningPromoted => (8, "running promoted"),
            Code::FailedPromoted => (9, "failed promoted"),
            Code::Degraded => (190, "degraded"),
            Code::DegradedPromoted => (191, "degraded promoted"),
            Code::Other(number) => (number, "unknown to OCF"),
            Code::Killed(number) => return format!("was killed by signal {number}"),
        };
        format!("said {words} ({number})")
    }
}

/// One call of an agent that came to an end by itself or was killed.
enum Answer {
    Said(Code),
    TimedOut(Duration),
    AskedToStop,
}

/// Which operation is about to be, or has been, for the agents that want to know.
#[derive(Clone, Copy)]
enum Notice {
    Before,
    After,
}

/// An agent, for one replica.
pub(crate) struct Ocf {
    program: PathBuf,
    agent: String,
    node: String,
    every: Option<Span>,
    timeouts: OcfTimeouts,
    fail_after: u32,
    /// Names of parameters, also of those that the environment holds because they are secret.
    told: BTreeSet<String>,
    /// What every operation is told.
    env: BTreeMap<String, String>,
    grace: Duration,
    meta: MetaData,
}

impl Ocf {
    pub(crate) fn new(launch: &Launch) -> Result<Ocf, Trouble> {
        let spec = &launch.assigned.spec;
        let table = spec.ocf.as_ref().ok_or_else(|| Trouble::Cannot("the spec has no `ocf`".to_owned()))?;
        let (provider, kind) = table
            .provider_and_type()
            .ok_or_else(|| Trouble::Cannot(format!("{:?} is no name of an agent", table.agent)))?;
        let agent = format!("{provider}:{kind}");
        let root = launch.env.get("OCF_ROOT").map_or(ROOT, String::as_str);
        let program = Path::new(root).join("resource.d").join(provider).join(kind);
        if !program.is_file() {
            return Err(Trouble::Cannot(format!("this node has no agent {agent}: there is no {}", program.display())));
        }
        // A node has one of a service, but for a moment while one of them ends.
        let instance = match spec.mode {
            Mode::Singleton | Mode::EveryNode => spec.name.to_string(),
            // Nor is there a number in Pacemaker's names of those of which one is promoted.
            Mode::ActivePassive => spec.name.to_string(),
            Mode::Replicated => format!("{}:{}", spec.name, launch.assigned.ordinal),
        };
        let node = launch.env.get("QUORATE_NODE").cloned().unwrap_or_default();
        let mut env: BTreeMap<String, String> = [
            ("OCF_ROOT", root),
            ("OCF_RA_VERSION_MAJOR", "1"),
            ("OCF_RA_VERSION_MINOR", "1"),
            ("OCF_RESOURCE_INSTANCE", &instance),
            ("OCF_RESOURCE_PROVIDER", provider),
            ("OCF_RESOURCE_TYPE", kind),
            ("OCF_RESKEY_crm_feature_set", FEATURE_SET),
            ("OCF_RESKEY_CRM_meta_on_node", &node),
            ("OCF_RESKEY_CRM_meta_on_node_uuid", &node),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        env.extend(launch.ocf_params.iter().map(|(name, value)| (format!("OCF_RESKEY_{name}"), value.clone())));
        if spec.changes_parts() {
            let meta = [("promotable", "true"), ("master_max", "1"), ("notify", "true")];
            env.extend(meta.map(|(name, value)| (format!("OCF_RESKEY_CRM_meta_{name}"), value.to_owned())));
            env.insert("OCF_RESKEY_CRM_meta_clone_max".to_owned(), spec.replicas.to_string());
        }
        if launch.env.contains_key(pacemaker::SOCKET) {
            let stand_ins = pacemaker::stand_ins().map_err(|error| {
                Trouble::Failed(format!("what stands in for Pacemaker's commands cannot be made: {error}"))
            })?;
            env.extend(pacemaker::variables(&stand_ins, launch.env.get("PATH").map(String::as_str)));
        }
        let of_env = spec.env.keys().filter_map(|name| name.strip_prefix("OCF_RESKEY_"));
        let told_by_env = of_env.filter(|name| !name.starts_with("CRM_meta_"));
        Ok(Ocf {
            program,
            agent,
            node,
            every: table.every,
            timeouts: table.timeouts.clone(),
            fail_after: table.fail_after,
            told: launch.ocf_params.keys().map(String::as_str).chain(told_by_env).map(str::to_owned).collect(),
            env,
            grace: spec.stop.grace.0,
            meta: MetaData::default(),
        })
    }

    fn timeout(&self, operation: &str) -> Duration {
        let said = match operation {
            "start" => self.timeouts.start,
            "monitor" => self.timeouts.monitor,
            "promote" => self.timeouts.promote,
            "demote" => self.timeouts.demote,
            "notify" => self.timeouts.notify,
            _ => None,
        };
        said.map(|span| span.0).or_else(|| self.meta.timeout(operation)).unwrap_or(TIMEOUT)
    }

    fn command(&self, operation: &str, limit: Duration) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg(operation)
            .envs(&self.env)
            .env("OCF_RESKEY_CRM_meta_name", operation)
            .env("OCF_RESKEY_CRM_meta_timeout", limit.as_millis().to_string());
        command
    }

    fn pause(&self) -> Duration {
        let advised = || self.meta.interval("monitor").filter(|every| !every.is_zero());
        self.every.map(|every| every.0).or_else(advised).unwrap_or(EVERY)
    }

    fn call(
        &self,
        desk: &mut Desk,
        operation: &str,
        mut command: Command,
        limit: Duration,
        patience: Patience,
    ) -> Result<Answer, Trouble> {
        match desk.run(&mut command, limit, patience) {
            Ok(Ended::With(status)) => Ok(Answer::Said(Code::of(status))),
            Ok(Ended::TimedOut) => Ok(Answer::TimedOut(limit)),
            Ok(Ended::AskedToStop) => Ok(Answer::AskedToStop),
            Err(error) => Err(Trouble::Failed(format!("{operation}: {}: {error}", self.program.display()))),
        }
    }

    /// Runs an operation that has to succeed.
    fn must(&self, desk: &mut Desk, operation: &str, command: Command, limit: Duration) -> Result<(), Trouble> {
        let patience = if operation == "stop" { Patience::ToTheEnd } else { Patience::UntilStop };
        match self.call(desk, operation, command, limit, patience)? {
            Answer::Said(Code::Ok) => Ok(()),
            Answer::Said(code) if code.is_final() && operation != "stop" => {
                Err(Trouble::Cannot(self.tell(desk, operation, code)))
            }
            Answer::Said(code) => Err(Trouble::Failed(self.tell(desk, operation, code))),
            Answer::TimedOut(limit) => Err(Trouble::Failed(self.tell_slow(operation, limit))),
            Answer::AskedToStop => Err(Trouble::AskedToStop),
        }
    }

    fn tell(&self, desk: &Desk, operation: &str, code: Code) -> String {
        let words = format!("{operation} of {} {}", self.agent, code.words());
        if desk.said().is_empty() { words } else { format!("{words}: {}", desk.said()) }
    }

    fn tell_slow(&self, operation: &str, limit: Duration) -> String {
        format!("{operation} of {} did not end within {} and was killed", self.agent, Span(limit))
    }

    /// Learns what the agent knows, and holds against that what it is told.
    fn learn(&mut self, desk: &mut Desk) -> Result<(), Trouble> {
        let (limit, mut command) = (TIMEOUT, self.command("meta-data", TIMEOUT));
        let text = match desk.ask(&mut command, limit, Patience::UntilStop) {
            Ok((Ended::With(status), text)) if status.success() => text,
            Ok((Ended::With(status), _)) => {
                return Err(Trouble::Cannot(self.tell(desk, "meta-data", Code::of(status))));
            }
            Ok((Ended::TimedOut, _)) => return Err(Trouble::Failed(self.tell_slow("meta-data", limit))),
            Ok((Ended::AskedToStop, _)) => return Err(Trouble::AskedToStop),
            Err(error) => return Err(Trouble::Cannot(format!("{}: {error}", self.program.display()))),
        };
        self.meta = MetaData::parse(&text)
            .map_err(|problem| Trouble::Cannot(format!("the meta-data of {} cannot be read: {problem}", self.agent)))?;
        self.meta
            .check(&self.told)
            .map_err(|problem| Trouble::Cannot(format!("{problem} (parameters of {})", self.agent)))
    }

    fn monitor(&self, desk: &mut Desk, patience: Patience) -> Look {
        self.look_every(self.pause(), desk, patience)
    }

    /// Looks for the first time at what may run or not. Agents know that by an interval of 0.
    fn probe(&self, desk: &mut Desk) -> Look {
        self.look_every(Duration::ZERO, desk, Patience::UntilStop)
    }

    fn look_every(&self, interval: Duration, desk: &mut Desk, patience: Patience) -> Look {
        let limit = self.timeout("monitor");
        let mut command = self.command("monitor", limit);
        command.env("OCF_RESKEY_CRM_meta_interval", interval.as_millis().to_string());
        match self.call(desk, "monitor", command, limit, patience) {
            Ok(Answer::Said(code)) => match code {
                Code::Ok | Code::Degraded => Look::Up,
                Code::RunningPromoted | Code::DegradedPromoted => Look::Promoted,
                Code::NotRunning => Look::Ended { detail: self.tell(desk, "monitor", code), as_it_should: false },
                _ => Look::Failing(self.tell(desk, "monitor", code)),
            },
            Ok(Answer::TimedOut(limit)) => Look::Failing(self.tell_slow("monitor", limit)),
            Ok(Answer::AskedToStop) => Look::AskedToStop,
            // The machine has no process to spare, say. That is not the resource's fault.
            Err(trouble) => Look::Unknown(trouble.to_string()),
        }
    }

    fn stop_within(&self, desk: &mut Desk, limit: Duration) -> Result<(), Trouble> {
        self.must(desk, "stop", self.command("stop", limit), limit)?;
        match self.monitor(desk, Patience::ToTheEnd) {
            Look::Up | Look::Promoted => {
                Err(Trouble::Failed(format!("stop of {} said success, and its monitor that it runs", self.agent)))
            }
            // A monitor that fails says nothing about a stop that did not.
            Look::Ended { .. } | Look::Failing(_) | Look::Unknown(_) | Look::AskedToStop => Ok(()),
        }
    }

    /// Tells an agent that wants to know of a change of roles. There is one replica that this keeper knows of.
    fn notify(&self, desk: &mut Desk, when: Notice, operation: &str) -> Result<(), Trouble> {
        if !self.meta.has("notify") {
            return Ok(());
        }
        let limit = self.timeout("notify");
        let mut command = self.command("notify", limit);
        command
            .env("OCF_RESKEY_CRM_meta_notify", "true")
            .env(
                "OCF_RESKEY_CRM_meta_notify_type",
                match when {
                    Notice::Before => "pre",
                    Notice::After => "post",
                },
            )
            .env("OCF_RESKEY_CRM_meta_notify_operation", operation)
            .env(format!("OCF_RESKEY_CRM_meta_notify_{operation}_uname"), &self.node)
            .env(
                format!("OCF_RESKEY_CRM_meta_notify_{operation}_resource"),
                self.env.get("OCF_RESOURCE_INSTANCE").map_or("", String::as_str),
            );
        self.must(desk, "notify", command, limit)
    }

    /// Promotes or demotes, and does not believe that before it was looked at.
    fn change_role(&mut self, desk: &mut Desk, operation: &str) -> Result<(), Trouble> {
        if !self.meta.has(operation) {
            return Err(Trouble::Cannot(format!("{} has no operation {operation}", self.agent)));
        }
        self.notify(desk, Notice::Before, operation)?;
        let limit = self.timeout(operation);
        self.must(desk, operation, self.command(operation, limit), limit)?;
        let seen = self.monitor(desk, Patience::UntilStop);
        match (operation, seen) {
            ("promote", Look::Promoted) | ("demote", Look::Up) => self.notify(desk, Notice::After, operation),
            // There are agents that end what they demote (a database may have to), and start it as a standby.
            ("demote", Look::Ended { .. }) => self.notify(desk, Notice::After, operation),
            (_, Look::AskedToStop) => Err(Trouble::AskedToStop),
            (_, Look::Up) => Err(Trouble::Failed(format!(
                "{operation} of {} said success, and its monitor that it is not promoted",
                self.agent
            ))),
            (_, Look::Promoted) => Err(Trouble::Failed(format!(
                "{operation} of {} said success, and its monitor that it is promoted",
                self.agent
            ))),
            (_, Look::Ended { detail, .. } | Look::Failing(detail) | Look::Unknown(detail)) => {
                Err(Trouble::Failed(format!("after {operation}, {detail}")))
            }
        }
    }
}

impl Backend for Ocf {
    fn fencing(&self) -> Fencing {
        Fencing::Agent
    }

    fn start(&mut self, desk: &mut Desk) -> Result<(), Trouble> {
        self.learn(desk)?;
        if self.meta.has("validate-all") {
            let limit = self.timeout("validate-all");
            let valid = self.must(desk, "validate-all", self.command("validate-all", limit), limit);
            valid.map_err(|trouble| match trouble {
                Trouble::Failed(detail) => Trouble::Cannot(detail),
                other => other,
            })?;
        }
        // What runs already is not started again; what is broken is stopped first. Both as in Pacemaker.
        match self.probe(desk) {
            Look::Up | Look::Promoted => return Ok(()),
            Look::AskedToStop => return Err(Trouble::AskedToStop),
            Look::Ended { .. } => {}
            Look::Failing(_) | Look::Unknown(_) => self.stop_within(desk, self.timeout("stop"))?,
        }
        let limit = self.timeout("start");
        self.must(desk, "start", self.command("start", limit), limit)
    }

    fn look(&mut self, desk: &mut Desk) -> Look {
        self.monitor(desk, Patience::UntilStop)
    }

    fn stop(&mut self, desk: &mut Desk) -> Result<(), Trouble> {
        // A little less than the shim waits for, so that there is time to say that it did not end.
        self.stop_within(desk, self.grace * 9 / 10)
    }

    fn promote(&mut self, desk: &mut Desk) -> Result<(), Trouble> {
        self.change_role(desk, "promote")
    }

    fn demote(&mut self, desk: &mut Desk) -> Result<(), Trouble> {
        self.change_role(desk, "demote")
    }

    fn clean_up(&mut self, desk: &mut Desk) -> Result<(), Trouble> {
        // An agent that is not told what it needs has not started anything.
        match self.learn(desk) {
            Ok(()) | Err(Trouble::Failed(_)) => {}
            Err(other) => return Err(other),
        }
        match self.monitor(desk, Patience::ToTheEnd) {
            Look::Ended { .. } => Ok(()),
            _ => self.stop_within(desk, self.timeout("stop")),
        }
    }

    fn news(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn every(&self) -> Option<Duration> {
        Some(self.pause())
    }

    fn fail_after(&self) -> u32 {
        self.fail_after
    }
}

#[cfg(test)]
mod tests;
