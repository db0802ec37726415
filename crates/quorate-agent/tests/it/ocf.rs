//! OCF agents under real agents and shims: Debian's own (package `resource-agents`, which CI installs), and
//! scripts that do what those would not.

use super::active::yielding;
use super::lease::{Holding, leased};
use super::*;
use quorate_model::observed::{Casting, Fencing, Part};
use quorate_model::spec::Mode;
use std::os::unix::fs::PermissionsExt;

const LEASE: Duration = Duration::from_secs(3);

fn ocf(agent: &str, params: Value, more: Value) -> ServiceSpec {
    let mut table = json!({"agent": agent, "params": params, "every": "1s"});
    table.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(json!({"name": "web", "mode": "singleton", "driver": "ocf", "ocf": table})).unwrap()
}

/// Debian's Dummy, whose whole state is a file.
fn dummy(node: &Node) -> (ServiceSpec, PathBuf) {
    let state = node.dir.path().join("dummy.state");
    (ocf("heartbeat:Dummy", json!({"state": state}), json!({})), state)
}

/// Puts an agent of its own into the node's directory. It knows the parameter `dir` and does as the script says.
fn own_agent(node: &Node, script: &str) -> ServiceSpec {
    own_agent_with(node, "<parameter name='dir'/>", script)
}

fn own_agent_with(node: &Node, parameters: &str, script: &str) -> ServiceSpec {
    own_agent_that_says(node, &format!("<parameters>{parameters}</parameters>"), script)
}

fn own_agent_that_says(node: &Node, about: &str, script: &str) -> ServiceSpec {
    let agents = node.dir.path().join("ocf/resource.d/test");
    fs::create_dir_all(&agents).unwrap();
    let meta = format!("<resource-agent name='own'>{about}</resource-agent>");
    let text = format!("#!/bin/sh\n[ $1 = meta-data ] && echo \"{meta}\" && exit 0\n{script}\n");
    fs::write(agents.join("own"), text).unwrap();
    fs::set_permissions(agents.join("own"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut spec = ocf("test:own", json!({"dir": node.dir.path()}), json!({}));
    spec.env.insert("OCF_ROOT".into(), node.dir.path().join("ocf").to_string_lossy().into_owned());
    spec
}

/// Starts a daemon in a session of its own, with nothing of its environment, and says its pid as the machine does.
const DAEMON: &str = r#"
up() { [ -e "$OCF_RESKEY_dir/pid" ] && kill -0 $(cat "$OCF_RESKEY_dir/pid") 2>/dev/null; }
case $1 in
start) env --ignore-environment setsid sleep 1000 & echo $! >"$OCF_RESKEY_dir/pid" ;;
stop) up && kill $(cat "$OCF_RESKEY_dir/pid"); rm -f "$OCF_RESKEY_dir/pid" ;;
monitor) up || exit 7 ;;
*) exit 3 ;;
esac"#;

/// The daemon is there, but may not have become `sleep` yet.
async fn daemon_of(shim: u32) -> u32 {
    let begun = Instant::now();
    loop {
        if let Some(daemon) = daemon_below(shim) {
            return daemon;
        }
        assert!(begun.elapsed() < DEADLINE, "no daemon is there");
        tokio::task::yield_now().await;
    }
}

/// The machine's number of a process that is looked for by its number in a namespace and its shim.
fn daemon_below(shim: u32) -> Option<u32> {
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).ok()?;
    let inside = children.split_whitespace().find_map(|child| {
        let child: u32 = child.parse().ok()?;
        namespace(child).filter(|of| Some(of) != namespace(shim).as_ref())
    })?;
    let pids =
        fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| namespace(*pid).as_ref() == Some(&inside))
        .find(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep\0")))
}

/// Waits until a file is there, or is not.
async fn file(path: &Path, is_there: bool) {
    let (begun, mut often) = (Instant::now(), tokio::time::interval(Duration::from_millis(20)));
    while path.exists() != is_there {
        assert!(begun.elapsed() < DEADLINE, "{} is there: {}", path.display(), !is_there);
        often.tick().await;
    }
}

#[tokio::test]
async fn debians_dummy_is_started_and_monitored_and_stopped() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let (spec, state) = dummy(&node);
    run_one(&agent, 1, id, &spec);
    healthy(&agent, id).await;
    assert!(state.exists());
    agent.assign(assignment(2, vec![assigned(id, &spec, Phase::Stop)]));
    let stopped = status(&agent, id, |status| status.state == ReplicaState::Stopped).await;
    assert_eq!((stopped.detail.as_str(), state.exists()), ("exited with status 0", false));
}

#[tokio::test]
async fn an_agent_has_its_secrets_in_its_environment_and_no_file_and_no_command_line_does() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    give_secret(&node, "pg", "canary-2b90");
    // Each operation says what it was given; the start fails without.
    let script = r#"
echo "$1 with ${#OCF_RESKEY_password}"
case $1 in
start) [ "$OCF_RESKEY_password" = "canary-$OCF_RESKEY_rest" ] && touch "$OCF_RESKEY_dir/up" ;;
stop) rm -f "$OCF_RESKEY_dir/up" ;;
monitor) [ -e "$OCF_RESKEY_dir/up" ] || exit 7 ;;
*) exit 3 ;;
esac"#;
    let parameters = "<parameter name='dir'/><parameter name='rest'/><parameter name='password' required='1'/>";
    let mut spec = own_agent_with(&node, parameters, script);
    spec.ocf.as_mut().unwrap().params.insert("rest".into(), "2b90".into());
    let password = ("OCF_RESKEY_password".to_owned(), "{secret.pg}".to_owned());
    spec.env.extend([password]);
    spec.secrets.insert("pg".parse().unwrap());
    run_one(&agent, 1, id, &spec);
    healthy(&agent, id).await;
    is_on_no_command_line("canary-2b90");
    agent.assign(assignment(2, vec![assigned(id, &spec, Phase::Stop)]));
    let stopped = status(&agent, id, |status| status.state == ReplicaState::Stopped).await;
    assert_eq!((stopped.detail.as_str(), node.dir.path().join("up").exists()), ("exited with status 0", false));
    logged(&agent, id, "stop with 11").await;
    is_in_no_file(node.dir.path(), "canary-2b90");
}

#[tokio::test]
async fn what_a_monitor_misses_is_started_again() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let (spec, state) = dummy(&node);
    run_one(&agent, 1, id, &spec);
    healthy(&agent, id).await;
    fs::remove_file(&state).unwrap();
    status(&agent, id, |status| status.state == ReplicaState::Healthy && status.restarts == 1).await;
    assert!(state.exists());
}

#[tokio::test]
async fn a_next_agent_takes_a_resource_over_without_touching_it() {
    let (node, id) = (Node::new(), replica(0));
    let first = node.agent().await;
    let (spec, state) = dummy(&node);
    run_one(&first, 1, id, &spec);
    let before = healthy(&first, id).await;
    let started = fs::metadata(&state).unwrap().modified().unwrap();
    first.stop().await;
    let second = node.agent().await;
    let after = healthy(&second, id).await;
    assert_eq!((after.pid, after.started_at, after.restarts), (before.pid, before.started_at, 0));
    assert_eq!(fs::metadata(&state).unwrap().modified().unwrap(), started);
}

#[tokio::test]
async fn what_can_never_start_says_why_and_disturbs_nothing_else() {
    let (node, id, other) = (Node::new(), replica(0), replica(1));
    let agent = node.agent().await;
    let wrong = ocf("heartbeat:Dummy", json!({"sate": "x"}), json!({}));
    let missing = ocf("heartbeat:Dumy", json!({}), json!({}));
    let healthy_one = patient();
    let runs = replica(2);
    agent.assign(assignment(
        1,
        vec![
            assigned(id, &wrong, Phase::Run),
            assigned(other, &missing, Phase::Run),
            assigned(runs, &healthy_one, Phase::Run),
        ],
    ));
    let failed = |status: &ReplicaStatus| status.state == ReplicaState::Failed && !status.detail.is_empty();
    let detail = status(&agent, id, failed).await.detail;
    assert_eq!(detail, "`sate` is unknown; did you mean `state`? (parameters of heartbeat:Dummy)");
    let detail = status(&agent, other, failed).await.detail;
    assert!(detail.starts_with("this node has no agent heartbeat:Dumy: there is no "), "{detail}");
    healthy(&agent, runs).await;
}

#[tokio::test]
async fn a_daemon_of_an_agent_ends_with_its_shim_and_is_started_again() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    run_one(&agent, 1, id, &own_agent(&node, DAEMON));
    healthy(&agent, id).await;
    let shim = node.shim_pid(id);
    let daemon = daemon_of(shim).await;
    kill_process(pid(shim), Signal::KILL).unwrap();
    gone(daemon).await;
    status(&agent, id, |status| status.state == ReplicaState::Healthy && status.restarts == 1).await;
    assert_ne!(daemon_of(node.shim_pid(id)).await, daemon);
}

#[tokio::test]
async fn a_daemon_of_an_agent_ends_with_its_lease_though_shim_and_agent_stand_still() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let replica = leased(id, &own_agent(&node, DAEMON), 7, LEASE);
    let holding = Holding::begin(&agent, id, 7, LEASE);
    agent.assign(assignment(1, vec![replica]));
    let running = healthy(&agent, id).await;
    assert_eq!(running.fencing, Some(Fencing::Agent));
    assert!(running.detail.starts_with("not fenced: "), "more is claimed than can be: {}", running.detail);
    let shim = node.shim_pid(id);
    let daemon = daemon_of(shim).await;
    holding.end().await;
    kill_process(pid(shim), Signal::STOP).unwrap();
    agent.stop().await;
    gone(daemon).await;
}

#[tokio::test]
async fn an_agent_that_hangs_in_its_start_is_killed_and_the_reason_told() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let hangs = "case $1 in start) sleep 1000 ;; monitor) exit 7 ;; stop) exit 0 ;; *) exit 3 ;; esac";
    let mut spec = own_agent(&node, hangs);
    spec.ocf.as_mut().unwrap().timeouts.start = Some(quorate_model::time::Span::from_secs(1));
    run_one(&agent, 1, id, &spec);
    let says =
        |status: &ReplicaStatus| status.detail.contains("start of test:own did not end within 1s and was killed");
    status(&agent, id, |status| says(status) && status.state == ReplicaState::BackingOff).await;
}

/// Says one line to a replica's shim, as an agent does.
fn tell_shim(node: &Node, replica: ReplicaId, line: &str) {
    use std::os::fd::AsRawFd;
    let dir = fs::File::open(node.replica_dir(replica)).unwrap();
    let path = format!("/proc/self/fd/{}/sock", dir.as_raw_fd());
    writeln!(std::os::unix::net::UnixStream::connect(path).unwrap(), "{line}").unwrap();
}

/// Waits until the shim's state says this of what its keeper keeps.
async fn kept(node: &Node, replica: ReplicaId, seen: &str) {
    let (begun, mut often) = (Instant::now(), tokio::time::interval(Duration::from_millis(20)));
    loop {
        let text = fs::read(node.replica_dir(replica).join("state.json")).unwrap();
        let state: Value = serde_json::from_slice(&text).unwrap();
        if state["kept"]["seen"] == seen {
            return;
        }
        assert!(begun.elapsed() < DEADLINE, "it is not {seen}: {state}");
        often.tick().await;
    }
}

#[tokio::test]
async fn a_shim_passes_on_who_is_to_be_active() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let state = node.dir.path().join("stateful.state");
    run_one(&agent, 1, id, &ocf("heartbeat:Stateful", json!({"state": state}), json!({})));
    healthy(&agent, id).await;
    assert_eq!(fs::read_to_string(&state).unwrap().trim(), "slave");
    tell_shim(&node, id, r#"{"v":1,"do":"promote"}"#);
    kept(&node, id, "promoted").await;
    assert_eq!(fs::read_to_string(&state).unwrap().trim(), "master");
    tell_shim(&node, id, r#"{"v":1,"do":"demote"}"#);
    kept(&node, id, "up").await;
    assert_eq!(fs::read_to_string(&state).unwrap().trim(), "slave");
}

/// Has a copy of an active-passive service become the active one under an epoch, and then a standby again. `is` looks
/// at it each time.
async fn promoted_and_demoted(agent: &Agent, id: ReplicaId, spec: &ServiceSpec, is: impl Fn(Part)) {
    run_one(agent, 1, id, spec);
    let before = healthy(agent, id).await;
    assert_eq!(before.casting, Some(Casting { part: Part::Standby, epoch: 0, yielded: 0 }));
    is(Part::Standby);
    let ttl = Duration::from_secs(20);
    let holding = Holding::begin(agent, id, 7, ttl);
    agent.assign(assignment(2, vec![leased(id, spec, 7, ttl)]));
    let active = Casting { part: Part::Active, epoch: 7, yielded: 0 };
    status(agent, id, |status| status.casting == Some(active)).await;
    is(Part::Active);
    agent.assign(assignment(3, vec![yielding(id, spec, 7)]));
    let given_back = Casting { part: Part::Standby, epoch: 0, yielded: 7 };
    let after = status(agent, id, |status| status.casting == Some(given_back)).await;
    is(Part::Standby);
    assert_eq!((after.pid, after.restarts), (before.pid, 0), "nothing was started anew");
    holding.end().await;
}

#[tokio::test]
async fn debians_stateful_is_active_under_its_lease_and_gives_that_back() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let state = node.dir.path().join("stateful.state");
    let mut spec = ocf("heartbeat:Stateful", json!({"state": state}), json!({}));
    (spec.mode, spec.replicas) = (Mode::ActivePassive, 2);
    let is = |part: Part| {
        let expected = if part == Part::Active { "master" } else { "slave" };
        assert_eq!(fs::read_to_string(&state).unwrap().trim(), expected);
    };
    promoted_and_demoted(&agent, id, &spec, is).await;
}

#[tokio::test]
async fn an_agent_that_wants_to_know_is_told_before_and_after_each_change_of_its_part() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let about = "<parameters><parameter name='dir'/></parameters><actions><action name='promote' timeout='20s'/>\
        <action name='demote' timeout='20s'/><action name='notify' timeout='20s'/></actions>";
    let script = r#"
note() { echo "$*" >>"$OCF_RESKEY_dir/asked"; }
case $1 in
start) echo standby >"$OCF_RESKEY_dir/part" ;;
stop) rm -f "$OCF_RESKEY_dir/part" ;;
monitor) case $(cat "$OCF_RESKEY_dir/part" 2>/dev/null) in standby) ;; active) exit 8 ;; *) exit 7 ;; esac ;;
promote) note promote; echo active >"$OCF_RESKEY_dir/part" ;;
demote) note demote; echo standby >"$OCF_RESKEY_dir/part" ;;
notify) note $OCF_RESKEY_CRM_meta_notify_type $OCF_RESKEY_CRM_meta_notify_operation ;;
*) exit 3 ;;
esac"#;
    let mut spec = own_agent_that_says(&node, about, script);
    (spec.mode, spec.replicas) = (Mode::ActivePassive, 2);
    promoted_and_demoted(&agent, id, &spec, |_| ()).await;
    let asked = fs::read_to_string(node.dir.path().join("asked")).unwrap();
    let expected = ["pre promote", "promote", "post promote", "pre demote", "demote", "post demote"];
    assert_eq!(asked.lines().collect::<Vec<_>>(), expected);
}

/// A network namespace in which an agent may change addresses.
struct Network(String);

impl Network {
    fn new() -> Network {
        let network = Network(format!("q-ocf-{}", std::process::id()));
        network.ip(&["netns", "add", &network.0]);
        network.ip(&["-n", &network.0, "link", "set", "lo", "up"]);
        network
    }

    fn ip(&self, args: &[&str]) -> String {
        let output = Command::new("ip").args(args).output().unwrap();
        assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn has(&self, address: &str) -> bool {
        self.ip(&["-n", &self.0, "-oneline", "address", "show"]).contains(address)
    }

    async fn comes_to(&self, address: &str, is_there: bool) {
        let (begun, mut often) = (Instant::now(), tokio::time::interval(Duration::from_millis(50)));
        while self.has(address) != is_there {
            assert!(begun.elapsed() < DEADLINE, "{address} is there: {}", !is_there);
            often.tick().await;
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

#[tokio::test]
async fn debians_ipaddr2_holds_an_address_and_what_a_killed_shim_leaves_is_taken_away() {
    let (network, node, id) = (Network::new(), Node::new(), replica(0));
    let mut config = node.config();
    // Not `ip netns exec`: that has a /sys of its own, without cgroups.
    let space = format!("--net=/run/netns/{}", network.0);
    config.shim_command = ["nsenter", &space, HELPER, "shim"].map(std::ffi::OsString::from).to_vec();
    let agent = Agent::start(config).await.unwrap();
    let address = "192.0.2.77";
    let params = json!({"ip": address, "cidr_netmask": "32", "nic": "lo"});
    let spec = ocf("heartbeat:IPaddr2", params, json!({}));
    // Six seconds of it are for the agent to take the address away, also on a busy machine.
    let ttl = Duration::from_secs(24);
    let holding = Holding::begin(&agent, id, 7, ttl);
    agent.assign(assignment(1, vec![leased(id, &spec, 7, ttl)]));
    let running = healthy(&agent, id).await;
    assert!(network.has(address));
    assert_eq!(running.fencing, Some(Fencing::Agent));

    // The shim cannot take it away any more: the kernel ends it with its lease, and then the agent cleans up.
    kill_process(pid(node.shim_pid(id)), Signal::STOP).unwrap();
    holding.end().await;
    network.comes_to(address, false).await;

    // Asked in time, it goes before the lease does.
    let holding = Holding::begin(&agent, id, 7, ttl);
    status(&agent, id, |status| status.state == ReplicaState::Healthy && status.restarts == 1).await;
    assert!(network.has(address));
    let end = holding.end().await;
    network.comes_to(address, false).await;
    let late = quorate_agent::boot_time().since(end);
    assert!(late.is_zero(), "the address went {late:?} after its lease");
    file(&node.dir.path().join("web").join(id.to_string()).join("sock"), false).await;
}
