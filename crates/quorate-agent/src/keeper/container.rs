//! The driver `container`: Podman or Docker, by their command line, in the foreground.
//!
//! Why not by their sockets: what fences is a namespace around everything that is started here. `podman run` in the
//! foreground starts its monitor and the container below itself, so the kernel ends them with the keeper. A service
//! behind a socket starts them below itself, and there is no lease there. So nothing more is claimed of Docker, whose
//! containers belong to its daemon, than that they are asked to end; and one way to call both is one less to get
//! wrong.
//!
//! The engine's own log is off: what the container writes comes here, like the output of a program.
//!
//! # Invariants
//! - A container has its replica's label. Whatever has it and is not the one that was started just now is removed:
//!   before a start, after a stop, and when cleaning up.
//! - The environment is given by name, never on a command line that everybody on the machine can read.
//!
//! Sources: podman-run(1) ("--sig-proxy", exit status), docker-run(1).

use super::desk::{Desk, Ended, Operation, Patience};
use super::{Backend, Look, Trouble};
use crate::launch::Launch;
use quorate_model::id::ReplicaId;
use quorate_model::observed::Fencing;
use quorate_model::spec::{Engine, StopSignal};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// By which everything of a replica is found.
const LABEL: &str = "quorate.replica";

/// Where the engine writes the id of the container that it has made. In the replica's directory.
const ID_FILE: &str = "container.id";

/// An engine may fetch an image of some GiB before it starts.
const START_LIMIT: Duration = Duration::from_secs(1800);

/// For a question to the engine, and for taking something away. Busy machines need seconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// Between two looks at whether a container runs by now.
const START_PAUSE: Duration = Duration::from_millis(100);

/// What the engine says of itself, and not of what runs in the container; see podman-run(1).
const ENGINE_FAILED: i32 = 125;
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// Variables that are for programs of this machine; an image has its own.
const OF_THE_MACHINE: [&str; 4] = ["PATH", "HOME", "TZ", "LANG"];

/// A container of one replica.
pub(crate) struct Container {
    engine: Engine,
    program: PathBuf,
    replica: ReplicaId,
    /// After `run`: what the spec says.
    arguments: Vec<String>,
    stop: StopSignal,
    grace: Duration,
    /// [`ID_FILE`].
    id_file: PathBuf,
    running: Option<Operation>,
}

impl Container {
    pub(crate) fn new(launch: &Launch) -> Result<Container, Trouble> {
        let (spec, replica) = (&launch.assigned.spec, launch.assigned.replica);
        let table = spec.container.as_ref().ok_or_else(|| Trouble::Cannot("the spec has no `container`".to_owned()))?;
        let (engine, program) =
            find(table.engine, table.rootfs.is_some(), launch.env.get("PATH").map_or("", String::as_str))?;
        let mut arguments = launch.container_args.clone();
        let own = |name: &String| !OF_THE_MACHINE.contains(&name.as_str()) || spec.env.contains_key(name);
        // After what the spec says: of two labels of one name the last counts.
        arguments.extend([
            "--network=host".to_owned(),
            "--log-driver=none".to_owned(),
            format!("--name=quorate-{}-{replica}", spec.name),
            format!("--label={LABEL}={replica}"),
            format!("--label=quorate.service={}", spec.name),
        ]);
        // Those that hold secrets are in the spec and in this keeper's environment alone.
        let names: BTreeSet<&String> = launch.env.keys().chain(spec.env.keys()).collect();
        arguments.extend(names.into_iter().filter(|name| own(name)).map(|name| format!("--env={name}")));
        match (&table.image, &table.rootfs) {
            (Some(image), _) => arguments.push(image.clone()),
            (None, Some(rootfs)) => arguments.extend(["--rootfs".to_owned(), rootfs.clone()]),
            (None, None) => return Err(Trouble::Cannot("the spec names no image".to_owned())),
        }
        arguments.extend(launch.command.iter().cloned());
        let (stop, grace) = (spec.stop.signal, spec.stop.grace.0);
        Ok(Container { engine, program, replica, arguments, stop, grace, id_file: ID_FILE.into(), running: None })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        command
    }

    /// Has the engine do something that it answers at once.
    fn tell(&self, desk: &mut Desk, arguments: &[&str], patience: Patience) -> Result<String, Trouble> {
        let what = || format!("{} {}", self.engine, arguments.first().copied().unwrap_or_default());
        match desk.ask(&mut self.command(arguments), ANSWER_LIMIT, patience) {
            Ok((Ended::With(status), text)) if status.success() => Ok(text),
            Ok((Ended::With(_), _)) => Err(Trouble::Failed(format!("{}: {}", what(), desk.said()))),
            Ok((Ended::TimedOut, _)) => Err(Trouble::Failed(format!("{} does not answer", what()))),
            Ok((Ended::AskedToStop, _)) => Err(Trouble::AskedToStop),
            Err(error) => Err(Trouble::Failed(format!("{}: {error}", what()))),
        }
    }

    /// Removes whatever has the replica's label.
    fn remove_all(&self, desk: &mut Desk, patience: Patience) -> Result<(), Trouble> {
        let filter = format!("label={LABEL}={}", self.replica);
        let found = self.tell(desk, &["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter], patience)?;
        let ids: Vec<&str> = found.split_whitespace().collect();
        if ids.is_empty() {
            return Ok(());
        }
        let at_once: &[&str] = match self.engine {
            // Else it asks first and waits.
            Engine::Podman => &["rm", "--force", "--time", "0"],
            Engine::Docker | Engine::Auto => &["rm", "--force"],
        };
        self.tell(desk, &[at_once, &ids].concat(), patience).map(drop)
    }

    /// Whether it runs by now, `None` before the engine has made it.
    fn runs(&self, desk: &mut Desk) -> Result<Option<bool>, Trouble> {
        let id = fs::read_to_string(&self.id_file).unwrap_or_default();
        let id = id.trim();
        if id.is_empty() {
            return Ok(None);
        }
        let inspected = self.tell(desk, &["inspect", "--format", "{{.State.Running}}", id], Patience::UntilStop);
        match inspected {
            Ok(text) => Ok(Some(text.trim() == "true")),
            Err(Trouble::AskedToStop) => Err(Trouble::AskedToStop),
            // It may be over and removed already; its end says more.
            Err(_) => Ok(Some(false)),
        }
    }

    /// What an end means. `said`: what the engine or the container wrote last.
    fn ended(&self, status: ExitStatus, said: &str) -> Look {
        let detail = match status.code() {
            Some(ENGINE_FAILED | NOT_EXECUTABLE | NOT_FOUND) if !said.is_empty() => format!("{}: {said}", self.engine),
            Some(code) => format!("exited with status {code}"),
            None => format!("{} was killed", self.engine),
        };
        Look::Ended { detail, as_it_should: status.success() }
    }
}

impl Backend for Container {
    fn fencing(&self) -> Fencing {
        match self.engine {
            Engine::Podman => Fencing::PidNamespace,
            Engine::Docker | Engine::Auto => Fencing::Asked,
        }
    }

    fn start(&mut self, desk: &mut Desk) -> Result<(), Trouble> {
        self.remove_all(desk, Patience::UntilStop)?;
        match fs::remove_file(&self.id_file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Trouble::Failed(format!("{ID_FILE}: {error}")));
            }
            _ => {}
        }
        let mut command = self.command(&["run", "--rm", "--cidfile"]);
        command.arg(&self.id_file);
        let mut running = desk
            .spawn(command.args(&self.arguments))
            .map_err(|error| Trouble::Failed(format!("{}: {error}", self.engine)))?;
        let until = Instant::now() + START_LIMIT;
        loop {
            if let Some(status) = running.status() {
                desk.hear();
                return match self.ended(status, desk.said()) {
                    // It did what it was for.
                    Look::Ended { as_it_should: true, .. } => {
                        self.running = Some(running);
                        Ok(())
                    }
                    Look::Ended { detail, .. } => Err(Trouble::Failed(detail)),
                    _ => Ok(()),
                };
            }
            // Kept, so that a stop finds it.
            let runs = self.runs(desk);
            if matches!(runs, Ok(Some(true)) | Err(_)) {
                self.running = Some(running);
                return runs.map(drop);
            }
            if Instant::now() >= until {
                self.running = Some(running);
                return Err(Trouble::Failed(format!("{} has not started it within half an hour", self.engine)));
            }
            if desk.pause(START_PAUSE) {
                self.running = Some(running);
                return Err(Trouble::AskedToStop);
            }
        }
    }

    fn look(&mut self, desk: &mut Desk) -> Look {
        let Some(running) = &mut self.running else {
            return Look::Ended { detail: "it was not started".to_owned(), as_it_should: false };
        };
        match running.status() {
            Some(status) => {
                desk.hear();
                self.ended(status, desk.said())
            }
            None => Look::Up,
        }
    }

    fn stop(&mut self, desk: &mut Desk) -> Result<(), Trouble> {
        let begun = Instant::now();
        if let Some(mut running) = self.running.take()
            && running.status().is_none()
        {
            let signal = format!("--signal={}", self.stop.name());
            let id = fs::read_to_string(&self.id_file).unwrap_or_default();
            if !id.trim().is_empty() {
                // One that has ended meanwhile cannot be asked. What remains is removed below in any case.
                let _ = self.tell(desk, &["kill", &signal, id.trim()], Patience::ToTheEnd);
            }
            // A part of the grace is for the engine, which has to take it away then.
            let left = (self.grace * 8 / 10).saturating_sub(begun.elapsed());
            let _ = desk.finish(running, left, Patience::ToTheEnd);
        }
        self.remove_all(desk, Patience::ToTheEnd)
    }

    fn promote(&mut self, _: &mut Desk) -> Result<(), Trouble> {
        Err(Trouble::Cannot("a container cannot be promoted".to_owned()))
    }

    fn demote(&mut self, _: &mut Desk) -> Result<(), Trouble> {
        Err(Trouble::Cannot("a container cannot be demoted".to_owned()))
    }

    fn clean_up(&mut self, desk: &mut Desk) -> Result<(), Trouble> {
        self.remove_all(desk, Patience::ToTheEnd)
    }

    fn news(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().map(Operation::ended)
    }

    fn every(&self) -> Option<Duration> {
        None
    }

    fn fail_after(&self) -> u32 {
        1
    }
}

/// The engine that is meant, and its program on the path.
fn find(wanted: Engine, needs_podman: bool, path: &str) -> Result<(Engine, PathBuf), Trouble> {
    let program = |name: &str| path.split(':').map(|dir| Path::new(dir).join(name)).find(|path| path.is_file());
    let candidates: &[Engine] = match wanted {
        Engine::Podman => &[Engine::Podman],
        Engine::Docker => &[Engine::Docker],
        Engine::Auto if needs_podman => &[Engine::Podman],
        Engine::Auto => &[Engine::Podman, Engine::Docker],
    };
    candidates.iter().find_map(|engine| Some((*engine, program(engine.name())?))).ok_or_else(|| {
        let names: Vec<&str> = candidates.iter().map(|engine| engine.name()).collect();
        Trouble::Cannot(format!("this node has no {}", names.join(" and no ")))
    })
}

#[cfg(test)]
mod tests;
