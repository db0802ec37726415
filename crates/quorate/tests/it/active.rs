//! Active-passive services: never two active copies at one moment, whatever is lost, and another one in time.
//!
//! Every copy runs; it writes a line each millisecond while its hooks have made it the active one: who it is, under
//! which epoch, and the time by CLOCK_BOOTTIME, which all processes of this machine share.

use crate::cluster::{PATIENCE, TestCluster, lives, wait_for};
use crate::show::{is_whole, replicas};
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Whoever starts is no active copy, whatever was before. The time is taken before it looks.
const PROBE: &str = "import os, sys, time\n\
    if os.path.exists('active'): os.unlink('active')\n\
    file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)\n\
    while True:\n\
    \x20now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)\n\
    \x20try:\n\
    \x20 epoch = open('active').read().strip()\n\
    \x20 if epoch: os.write(file, (epoch + ' ' + os.environ['QUORATE_NODE'] + ' ' + str(now) + '\\n').encode())\n\
    \x20except FileNotFoundError: pass\n\
    \x20time.sleep(0.001)\n";

/// A service of three copies that proves which was active when.
struct Pair<'a> {
    cluster: &'a TestCluster,
    trail: PathBuf,
    hooks: PathBuf,
}

/// When the copy on one node was active under one epoch.
#[derive(Debug, Clone, PartialEq)]
struct Reign {
    epoch: u64,
    node: String,
    first: Duration,
    last: Duration,
}

impl Pair<'_> {
    /// Starts it; `demote` is what its hook does, `more` are lines of the spec and of its table `active`.
    fn start<'a>(cluster: &'a TestCluster, demote: &str, more: &str, active: &str) -> Pair<'a> {
        let (trail, hooks) = (cluster.dir.join("trail"), cluster.dir.join("hooks"));
        let note =
            |what: &str| format!("echo {what} $QUORATE_EPOCH $QUORATE_ROLE $QUORATE_NODE >> {}", hooks.display());
        let spec = format!(
            "[[service]]\nname = 'pair'\nmode = 'active-passive'\nreplicas = 3\nfailover = '10s'\n\
             stop = {{ grace = '500ms' }}\n{more}\n\
             command = ['/usr/bin/env', 'python3', '-c', '''{PROBE}''', '{}']\n\
             [service.active]\ntimeout = '2s'\n{active}\n\
             promote = ['/bin/sh', '-c', '''{}; echo $QUORATE_EPOCH > active.new; mv active.new active; read role epoch \
             < $QUORATE_ROLE_FILE; test \"$role $epoch\" = \"active $QUORATE_EPOCH\"''']\n\
             demote = ['/bin/sh', '-c', '''{}; {demote}''']\n",
            trail.display(),
            note("promote"),
            note("demote"),
        );
        cluster.apply(&spec);
        let pair = Pair { cluster, trail, hooks };
        pair.wait_active(|_| true);
        pair
    }

    /// The spans in which copies were active, in the order of their beginnings.
    fn reigns(&self) -> Vec<Reign> {
        let mut reigns: Vec<Reign> = Vec::new();
        for line in std::fs::read_to_string(&self.trail).unwrap_or_default().lines() {
            let mut words = line.split(' ');
            let (Some(epoch), Some(node), Some(at)) = (words.next(), words.next(), words.next()) else { continue };
            // The last line may be half there.
            let (Ok(epoch), Ok(at)) = (epoch.parse(), at.parse().map(Duration::from_nanos)) else { continue };
            match reigns.iter_mut().find(|reign| reign.epoch == epoch && reign.node == node) {
                Some(reign) => (reign.first, reign.last) = (reign.first.min(at), reign.last.max(at)),
                None => reigns.push(Reign { epoch, node: node.to_owned(), first: at, last: at }),
            }
        }
        reigns.sort_by_key(|reign| reign.first);
        reigns
    }

    fn hooks(&self) -> Vec<String> {
        std::fs::read_to_string(&self.hooks).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Waits until one copy is active that fits, and the service is whole. Its node, and the view.
    fn wait_active(&self, fits: impl Fn(&str) -> bool) -> (String, Value) {
        let view = self.cluster.wait_service("pair", "one copy is active and the others stand by", |view| {
            is_whole(view) && active(view).is_some_and(|node| fits(&node))
        });
        (active(&view).unwrap(), view)
    }

    /// Never two at one moment, and every epoch once.
    fn check(&self) -> Vec<Reign> {
        let reigns = self.reigns();
        for pair in reigns.windows(2) {
            assert!(pair[0].last < pair[1].first && pair[0].epoch < pair[1].epoch, "{reigns:?}");
        }
        reigns
    }
}

/// The node of the active copy, if exactly one says that it is one and all others stand by.
fn active(view: &Value) -> Option<String> {
    let role = |wanted: &'static str| replicas(view).iter().filter(move |replica| replica["role"] == wanted);
    let others = replicas(view).len().checked_sub(1)?;
    let one = role("active").next()?["node"].as_str()?.to_owned();
    (role("active").count() == 1 && role("standby").count() == others).then_some(one)
}

fn pid_on(view: &Value, node: &str) -> u64 {
    replicas(view).iter().find(|replica| replica["node"] == node).unwrap()["pid"].as_u64().unwrap()
}

#[test]
fn a_standby_is_promoted_within_the_failover_time_when_the_active_node_is_lost() {
    let cluster = TestCluster::start();
    let pair = Pair::start(&cluster, "rm -f active", "", "");
    let (node, _) = pair.wait_active(|_| true);
    wait_for("its first epoch is in the trail", PATIENCE, || (pair.reigns().len() == 1).then_some(()));
    // The worst case: the node that dies is the leader.
    cluster.ok(&["manager", "promote", &node]);
    wait_for("its node leads", PATIENCE, || (cluster.leader() == node).then_some(()));
    cluster.kill(&node);
    let reigns = wait_for("another is active", PATIENCE * 2, || Some(pair.reigns()).filter(|all| all.len() > 1));
    pair.check();
    assert_eq!((reigns[0].epoch, reigns[1].epoch), (1, 2));
    let took = reigns[1].first - reigns[0].last;
    assert!(took < Duration::from_secs(10), "it took {took:?}");
    let heir = &reigns[1].node;
    assert_eq!(pair.hooks(), [format!("promote 1 active {node}"), format!("promote 2 active {heir}")]);
    let measured = |view: &Value| view["lease"]["last_failover"]["to"] == heir.as_str();
    cluster.wait_service("pair", "the failover is measured", measured);

    cluster.start_node(&node);
    cluster.wait_whole();
    assert_eq!(pair.wait_active(|_| true).0, *heir, "whoever returns takes nothing back");
    assert_eq!(pair.check().len(), 2);
}

#[test]
fn an_operator_has_another_copy_take_over_and_no_process_ends() {
    let cluster = TestCluster::start();
    let pair = Pair::start(&cluster, "rm -f active", "", "");
    let (node, before) = pair.wait_active(|_| true);
    let target = cluster.names().into_iter().find(|name| *name != node).unwrap();
    let said = cluster.ok(&["service", "activate", "pair", "--to", &target]);
    assert!(said.contains(&format!("pair is active on {target}")), "{said}");
    let (_, after) = pair.wait_active(|active| active == target);
    for name in cluster.names() {
        assert_eq!(pid_on(&before, &name), pid_on(&after, &name), "nobody was started anew");
    }
    let hooks = ["promote 1 active", "demote 1 standby", "promote 2 active"];
    let nodes = [&node, &node, &target];
    let expected: Vec<String> = hooks.iter().zip(nodes).map(|(hook, node)| format!("{hook} {node}")).collect();
    assert_eq!(pair.hooks(), expected);
    assert!(cluster.ok(&["service", "show", "pair"]).contains("healthy, standby"));
    cluster.ok(&["service", "activate", "pair"]);
    pair.wait_active(|active| active != target);
    assert_eq!(pair.check().len(), 3);

    let refused = cluster.run(&["service", "activate", "pair", "--to", "nowhere"]);
    assert_eq!(refused.code, 6, "{}", refused.stderr);
    cluster.ok(&["scale", "pair", "1"]);
    let (alone, _) = pair.wait_active(|_| true);
    let other = cluster.names().into_iter().find(|name| *name != alone).unwrap();
    for (to, said) in [(&["--to", other.as_str()][..], "no healthy copy"), (&[], "no other copy")] {
        let refused = cluster.run(&[&["service", "activate", "pair"], to].concat());
        assert!(refused.code == 7 && refused.stderr.contains(said), "{} {}", refused.code, refused.stderr);
    }
}

/// Writes a line each millisecond from its first instruction to its last: what runs at all of a cold standby.
const COLD: &str = "import os, sys, time\n\
    file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)\n\
    while True:\n\
    \x20now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)\n\
    \x20os.write(file, (os.environ['QUORATE_EPOCH'] + ' ' + os.environ['QUORATE_NODE'] + ' ' + str(now) + '\\n').encode())\n\
    \x20time.sleep(0.001)\n";

#[test]
fn n5_a_cold_standby_runs_nothing_until_it_is_promoted_where_it_was_forecast() {
    let cluster = TestCluster::start();
    let trail = cluster.dir.join("trail");
    cluster.apply(&format!(
        "[[service]]\nname = 'pair'\nmode = 'active-passive'\nreplicas = 3\nfailover = '10s'\n\
         stop = {{ grace = '500ms' }}\nactive = {{ standby = 'cold' }}\n\
         command = ['/usr/bin/env', 'python3', '-c', '''{COLD}''', '{}']\n",
        trail.display()
    ));
    let pair = Pair { cluster: &cluster, trail, hooks: cluster.dir.join("hooks") };
    let (node, view) = pair.wait_active(|_| true);
    let runs = |view: &Value| replicas(view).iter().filter(|replica| replica["pid"].is_u64()).count();
    assert_eq!(runs(&view), 1, "nothing runs of the others: {view}");
    assert!(cluster.ok(&["service", "show", "pair"]).contains("healthy, standby (cold)"));
    let explained = cluster.ok(&["explain", "pair"]);
    assert!(explained.contains(&format!("on {node} is active under epoch 1")), "{explained}");
    assert!(explained.contains("standby (cold), would be promoted next"), "{explained}");
    let forecast: Value = serde_json::from_str(&cluster.ok(&["whatif", "kill", &node, "-o", "json"])).unwrap();
    let heir = forecast["roles"][0]["to"]["node"].as_str().unwrap().to_owned();

    cluster.kill(&node);
    let reigns = wait_for("another is active", PATIENCE * 2, || Some(pair.reigns()).filter(|all| all.len() > 1));
    assert_eq!((reigns[0].epoch, &reigns[0].node, reigns[1].epoch, &reigns[1].node), (1, &node, 2, &heir));
    let took = reigns[1].first - reigns[0].last;
    assert!(took < Duration::from_secs(10), "it took {took:?}");

    cluster.start_node(&node);
    cluster.wait_whole();
    let (now, view) = pair.wait_active(|_| true);
    assert_eq!((&now, runs(&view)), (&heir, 1), "whoever returns takes nothing back");
    cluster.ok(&["service", "activate", "pair", "--to", &node]);
    wait_for("it runs there", PATIENCE, || pair.check().last().filter(|last| last.node == node).cloned());
    pair.check();
}

#[test]
fn without_a_quorum_the_active_copy_is_demoted_and_its_process_runs_on() {
    let cluster = TestCluster::start();
    let pair = Pair::start(&cluster, "rm -f active", "without_quorum = 'demote'", "");
    let (node, before) = pair.wait_active(|_| true);
    let others: Vec<String> = cluster.names().into_iter().filter(|name| *name != node).collect();
    cluster.kill_servers(&others);
    let demoted = format!("demote 1 standby {node}");
    wait_for("it is demoted", PATIENCE, || pair.hooks().contains(&demoted).then_some(()));
    others.iter().for_each(|other| cluster.start_node(other));
    cluster.wait_whole();
    let (_, after) = pair.wait_active(|_| true);
    assert_eq!(pid_on(&before, &node), pid_on(&after, &node));
    pair.check();
}

#[test]
fn a_hook_that_hangs_is_killed_with_its_copy_before_the_lease_ends() {
    let cluster = TestCluster::start();
    let pair = Pair::start(&cluster, "exec sleep 1000", "without_quorum = 'demote'", "");
    let (node, before) = pair.wait_active(|_| true);
    let others: Vec<String> = cluster.names().into_iter().filter(|name| *name != node).collect();
    cluster.kill_servers(&others);
    let demoted = format!("demote 1 standby {node}");
    wait_for("its hook hangs", PATIENCE, || pair.hooks().contains(&demoted).then_some(()));
    let (begun, pid) = (Instant::now(), u32::try_from(pid_on(&before, &node)).unwrap());
    wait_for("it is killed", PATIENCE, || (!lives(pid)).then_some(()));
    // A quarter of a lease of 6 s is all that the hook gets, and its own limit comes later.
    assert!(begun.elapsed() < Duration::from_secs(2), "after {:?}", begun.elapsed());
    others.iter().for_each(|other| cluster.start_node(other));
    cluster.wait_whole();
    pair.wait_active(|_| true);
    pair.check();
}
