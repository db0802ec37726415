//! The services of a run: one of several copies, and some that run once.
//!
//! Copies are this program's own `demo`. Those that run once write down when they ran
//! ([`crate::demo::ran`]), which the verdict compares. They have different failover times: with the shortest
//! one, most faults that hit the holder move the service, and with the longest, most do not.

use crate::dev::procfs;
use crate::torture::reach::Node;
use serde_json::{Value, json};
use std::path::Path;

/// The service whose copies are counted, and whose number changes.
pub(crate) const SCALED: &str = "torture";

/// Those that run once, with their failover times in seconds.
pub(crate) const ONCE: [(&str, u32); 3] = [("once-a", 2), ("once-b", 4), ("once-c", 10)];

/// The directory, in that of the run, in which it is written down when these ran.
pub(crate) const RAN: &str = "ran";

/// Environment variable that says of which run a copy is.
const MARK: &str = "QUORATE_TORTURE_RUN";

/// The copies of one run, among all on a machine.
#[derive(Debug, Clone)]
pub(crate) struct Copies {
    mark: String,
}

impl Copies {
    pub(crate) fn of_run(run_id: u64) -> Copies {
        Copies { mark: format!("{run_id:016x}") }
    }

    /// What is to run: `program` is this one, and `replicas` the first number of [`SCALED`].
    pub(crate) fn specs(&self, program: &Path, replicas: u32, dir: &Path) -> Value {
        let program = program.to_string_lossy();
        let env = json!({ (MARK): self.mark });
        let serve = [
            &program,
            "demo",
            "--address",
            "0.0.0.0",
            "--port",
            "{port}",
            "--replica",
            "{replica}",
            "--node",
            "{node}",
            "--ordinal",
            "{ordinal}",
        ];
        let health = json!({ "http": "/healthz", "every": "1s" });
        let ports = json!({ "http": "auto" });
        let scaled = json!({
            "name": SCALED, "replicas": replicas, "command": serve, "env": env, "ports": ports, "health": health,
        });
        let ran = dir.join(RAN);
        let once = ONCE.map(|(name, seconds)| {
            let command: Vec<&str> = serve.into_iter().chain(["--ran", ran.to_str().unwrap_or_default()]).collect();
            json!({
                "name": name, "mode": "singleton", "failover": format!("{seconds}s"), "unsafe_fast": seconds < 10,
                "command": command, "env": env, "ports": ports, "health": health,
            })
        });
        let services: Vec<Value> = std::iter::once(scaled).chain(once).collect();
        json!({ "service": services })
    }

    /// How many processes of [`SCALED`] there are on this machine, of members: a server that was removed ends
    /// its own a while after it was told so, and the run does not wait for that.
    pub(crate) fn running(&self, members: &[Node]) -> u32 {
        let marks = [format!("{MARK}={}", self.mark), format!("QUORATE_SERVICE={SCALED}")];
        let has = |environment: &[u8], mark: &String| {
            environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        };
        let counts = |pid: u32| {
            let environment = read(pid, "environ");
            is_copy(pid) && marks.iter().all(|mark| has(&environment, mark))
        };
        let of_members = members.iter().flat_map(|node| procfs::replica_processes(&node.data_dir, None));
        u32::try_from(of_members.filter(|pid| counts(*pid)).count()).unwrap_or(u32::MAX)
    }
}

/// Whether a replica's process is the workload itself, and not one that watches over it.
pub(crate) fn is_copy(pid: u32) -> bool {
    // The shim has the same environment, and another command.
    read(pid, "cmdline").split(|byte| *byte == 0).nth(1) == Some(b"demo")
}

fn read(pid: u32, file: &str) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default()
}
