//! Units of a real systemd, on a server that this test boots: this machine's own Debian on a disk of its own, with
//! nothing started but what a unit asks for. Needs root, and the packages `systemd-container` and `dbus`.

use super::*;
use std::process::{Output, Stdio};

/// To boot, and for all tests on it.
const PATIENCE: Duration = Duration::from_secs(300);

/// A server whose first process is systemd, in a container of its own.
struct Server {
    dir: TempDir,
    name: String,
    nspawn: Child,
}

impl Server {
    fn boot() -> Server {
        let dir = tempfile::tempdir().unwrap();
        for part in ["upper", "work", "root"] {
            fs::create_dir(dir.path().join(part)).unwrap();
        }
        let at = |part: &str| dir.path().join(part).display().to_string();
        let options = format!("lowerdir=/,upperdir={},workdir={}", at("upper"), at("work"));
        run("mount", &["-t", "overlay", "overlay", "-o", &options, &at("root")]);
        fs::write(dir.path().join("root/etc/machine-id"), "").unwrap();
        let name = format!("q-agent-{}", std::process::id());
        let helper = Path::new(HELPER).parent().unwrap().display();
        // In cgroups of its own: two systemds in one would end each other's units.
        let script = r#"for c in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
                [ -d $c ] && mkdir -p "$c/$1" && echo $$ >"$c/$1/cgroup.procs"; done 2>/dev/null
            [ -d /sys/fs/cgroup/systemd ] || { mkdir -p "/sys/fs/cgroup/$1" && echo $$ >"/sys/fs/cgroup/$1/cgroup.procs"; }
            exec systemd-nspawn --quiet --directory="$2" --register=no --keep-unit --private-network --machine="$1" \
                --capability=all --bind-ro="$3" --boot -- --unit=basic.target"#;
        let console = fs::File::create(dir.path().join("console")).unwrap();
        let nspawn = Command::new("setsid")
            .args(["/bin/bash", "-c", script, "-", &name, &at("root"), &helper.to_string()])
            .stdin(Stdio::null())
            .stderr(console.try_clone().unwrap())
            .stdout(console)
            .spawn()
            .unwrap();
        Server { dir, name, nspawn }
    }

    /// Its first process, as this machine counts.
    fn leader(&self) -> Option<String> {
        let pid = self.nspawn.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_whitespace().next().map(str::to_owned)
    }

    fn run(&self, command: &[&str]) -> Option<Output> {
        let leader = self.leader()?;
        Command::new("nsenter").args(["--target", &leader, "--all", "--"]).args(command).output().ok()
    }

    async fn is_up(&self) {
        let (begun, mut often) = (Instant::now(), tokio::time::interval(Duration::from_millis(200)));
        let says = |output: Output| String::from_utf8_lossy(&output.stdout).trim().to_owned();
        loop {
            let state = self.run(&["systemctl", "is-system-running"]).map(says).unwrap_or_default();
            if ["running", "degraded"].contains(&state.as_str()) {
                return;
            }
            let console = || fs::read_to_string(self.dir.path().join("console")).unwrap_or_default();
            assert!(begun.elapsed() < PATIENCE, "the server does not boot ({state}):\n{}", console());
            often.tick().await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(leader) = self.leader().and_then(|leader| leader.parse().ok()) {
            let _ = kill_process(pid(leader), Signal::KILL);
        }
        let _ = self.nspawn.kill();
        let _ = self.nspawn.wait();
        let _ = Command::new("umount").arg("--lazy").arg(self.dir.path().join("root")).status();
        let begun = Instant::now();
        for hierarchy in ["systemd", "unified", "."] {
            let cgroup = Path::new("/sys/fs/cgroup").join(hierarchy).join(&self.name);
            // They are in use until the last killed process is buried.
            while cgroup.is_dir() && begun.elapsed() < DEADLINE {
                let _ = Command::new("find").arg(&cgroup).args(["-depth", "-type", "d", "-delete"]).output();
            }
        }
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Set for this test's own run on the server that it boots.
const INSIDE: &str = "QUORATE_TEST_INSIDE";

#[tokio::test]
async fn under_a_real_systemd() {
    if std::env::var_os(INSIDE).is_some() {
        return inside::all().await;
    }
    let server = Server::boot();
    server.is_up().await;
    let this = std::env::current_exe().unwrap();
    let inside = format!("{INSIDE}=1");
    let command = ["env", &inside, this.to_str().unwrap(), "systemd::under_a_real_systemd", "--nocapture"];
    let output = server.run(&command).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(inside::DONE) && said.contains(" 1 passed"), "not all of it ran: {said}");
}

/// What runs on that server, and there alone.
mod inside {
    use super::*;
    use quorate_model::observed::Fencing;

    /// Said when all of it ran.
    pub(super) const DONE: &str = "units: all held";

    pub(super) async fn all() {
        a_unit_is_started_and_followed_and_stopped().await;
        what_systemd_starts_by_itself_or_does_not_have_is_refused().await;
        a_unit_that_ignores_its_stop_is_killed_within_the_grace().await;
        what_a_killed_shim_leaves_is_stopped_and_started_again().await;
        a_bus_that_is_lost_ends_nothing().await;
        #[expect(clippy::print_stdout, reason = "the test that runs this one reads it")]
        {
            println!("{DONE}");
        }
    }

    /// A unit that sleeps, of this name.
    fn unit(name: &str, more: &str) -> String {
        let unit = format!("{name}.service");
        let text = format!("[Unit]\nDescription=a test\n[Service]\nExecStart=/bin/sleep 1000\n{more}");
        fs::create_dir_all("/etc/systemd/system").unwrap();
        fs::write(Path::new("/etc/systemd/system").join(&unit), text).unwrap();
        run("systemctl", &["daemon-reload"]);
        unit
    }

    fn kept(unit: &str) -> ServiceSpec {
        let fields = json!({"name": "web", "mode": "singleton", "driver": "systemd", "systemd": {"unit": unit}});
        serde_json::from_value(fields).unwrap()
    }

    fn property(unit: &str, name: &str) -> String {
        run("systemctl", &["show", "--property", name, "--value", unit]).trim().to_owned()
    }

    fn is_active(unit: &str) -> bool {
        property(unit, "ActiveState") == "active"
    }

    async fn a_unit_is_started_and_followed_and_stopped() {
        let (node, id) = (Node::new(), replica(0));
        let (first, unit) = (node.agent().await, unit("q-followed", ""));
        run_one(&first, 1, id, &kept(&unit));
        let before = healthy(&first, id).await;
        assert!(is_active(&unit));
        logged(&first, id, "journalctl --unit=q-followed.service").await;
        let process = property(&unit, "MainPID");

        // The next agent changes nothing.
        first.stop().await;
        let agent = node.agent().await;
        let after = healthy(&agent, id).await;
        assert_eq!((after.pid, property(&unit, "MainPID")), (before.pid, process));

        // Nobody asks systemd how it is; it says so.
        run("systemctl", &["kill", "--signal=KILL", &unit]);
        let again = |status: &ReplicaStatus| status.state == ReplicaState::Healthy && status.restarts == 1;
        status(&agent, id, again).await;
        assert!(is_active(&unit));

        agent.assign(assignment(2, vec![assigned(id, &kept(&unit), Phase::Stop)]));
        status(&agent, id, |status| status.state == ReplicaState::Stopped).await;
        assert_eq!(property(&unit, "ActiveState"), "inactive");
    }

    async fn what_systemd_starts_by_itself_or_does_not_have_is_refused() {
        let (node, ids) = (Node::new(), [replica(0), replica(1), replica(2)]);
        let agent = node.agent().await;
        let enabled = unit("q-enabled", "[Install]\nWantedBy=multi-user.target\n");
        run("systemctl", &["enable", &enabled]);
        let broken = unit("q-broken", "Type=nonsense\nExecStart=\n");
        let specs = [kept(&enabled), kept("q-missing.service"), kept(&broken)];
        let all = ids.iter().zip(&specs).map(|(id, spec)| assigned(*id, spec, Phase::Run));
        agent.assign(assignment(1, all.collect()));
        let failed = |status: &ReplicaStatus| status.state == ReplicaState::Failed && !status.detail.is_empty();
        let detail = status(&agent, ids[0], failed).await.detail;
        assert_eq!(
            detail,
            "q-enabled.service is enabled, so systemd starts it by itself: systemctl disable q-enabled.service"
        );
        let detail = status(&agent, ids[1], failed).await.detail;
        assert_eq!(detail, "this node has no unit q-missing.service");
        let detail = status(&agent, ids[2], failed).await.detail;
        assert_eq!(detail, "q-broken.service cannot be started: systemd says bad-setting");
        assert!(!is_active(&enabled));
    }

    async fn a_unit_that_ignores_its_stop_is_killed_within_the_grace() {
        let (node, id) = (Node::new(), replica(0));
        let agent = node.agent().await;
        let unit = unit("q-stubborn", "ExecStart=\nExecStart=/bin/sh -c 'trap \"\" TERM; while :; do sleep 1; done'\n");
        let mut spec = kept(&unit);
        spec.stop.grace = quorate_model::time::Span::from_secs(5);
        run_one(&agent, 1, id, &spec);
        healthy(&agent, id).await;
        agent.assign(assignment(2, vec![]));
        forgotten(&agent).await;
        assert!(!is_active(&unit));
    }

    async fn what_a_killed_shim_leaves_is_stopped_and_started_again() {
        let (node, id) = (Node::new(), replica(0));
        let (agent, unit) = (node.agent().await, unit("q-left", ""));
        let holding = super::super::lease::Holding::begin(&agent, id, 7, Duration::from_secs(60));
        let leased = super::super::lease::leased(id, &kept(&unit), 7, Duration::from_secs(60));
        agent.assign(assignment(1, vec![leased]));
        let running = healthy(&agent, id).await;
        assert_eq!(running.fencing, Some(Fencing::Asked));
        assert!(running.detail.starts_with("not fenced: "), "more is claimed than can be: {}", running.detail);
        let process = property(&unit, "MainPID");
        kill_process(pid(node.shim_pid(id)), Signal::KILL).unwrap();
        let again = |status: &ReplicaStatus| status.state == ReplicaState::Healthy && status.restarts == 1;
        status(&agent, id, again).await;
        assert!(is_active(&unit));
        assert_ne!(property(&unit, "MainPID"), process);
        holding.end().await;
    }

    async fn a_bus_that_is_lost_ends_nothing() {
        let (node, id) = (Node::new(), replica(0));
        let (agent, unit) = (node.agent().await, unit("q-unknown", ""));
        run_one(&agent, 1, id, &kept(&unit));
        let before = healthy(&agent, id).await;
        run("systemctl", &["stop", "dbus.socket", "dbus.service"]);
        let unknown = status(&agent, id, |status| status.detail.starts_with("unknown: ")).await;
        assert_eq!((unknown.state, unknown.pid), (ReplicaState::Healthy, before.pid));
        assert!(is_active(&unit));
        run("systemctl", &["start", "dbus.socket"]);
        let known = status(&agent, id, |status| status.detail.is_empty()).await;
        assert_eq!((known.state, known.pid, known.restarts), (ReplicaState::Healthy, before.pid, 0));
    }
}
