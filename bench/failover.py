#!/usr/bin/env python3
"""Services on five real nodes, each in a network namespace: how long work stands still when something is lost.

Arguments: any of process singleton leader restart managers vip (all of them by default), --runs N, --failover S.
Needs root. The workload writes who it is and CLOCK_BOOTTIME each millisecond, appending to one file: a gap
between two copies is how long nothing ran, and an overlap would be a failure of fencing, which ends the bench.
Power loss is silent: the cable is pulled first, then everything of the node is killed at once."""
import os, random, signal, sys, time
from rig import Network, measured, option
from services import Services, boottime, head, row
import vip as vips

NODES, RUNS, FAILOVER = option("--nodes", 5), option("--runs", 10), option("--failover", 10)


def process(network):
    """A replica's process is killed: until it runs again."""
    cluster = Services(network, FAILOVER)
    took = []
    for run in range(RUNS):
        # Each its own service: the first restart comes at once, and later ones are put off on purpose.
        cluster.apply(name := f"p{run}", "")
        cluster.home(name)
        os.kill(cluster.replicas(name)[0]["pid"], signal.SIGKILL)
        took.append(cluster.gap(name, 1))
    head("five nodes")
    row("a replica's process dies → it runs again", "crash", took)
    cluster.stop()


def singleton(network, leads=False):
    """The node of a singleton loses power, and leads the cluster or not."""
    cluster = Services(network, FAILOVER)
    cluster.apply("s", f"mode = 'singleton'\nfailover = '{FAILOVER}s'\n{'unsafe_fast = true' if FAILOVER < 10 else ''}")
    took = []
    for run in range(RUNS):
        home = cluster.home("s")
        if leads:
            cluster.ask("manager", "promote", f"n{home + 1}")
            cluster.until(lambda: cluster.leader() == home, f"n{home + 1} leads")
        elif cluster.leader() == home:
            other = random.choice([i for i in cluster.running() if i != home])
            cluster.ask("manager", "promote", f"n{other + 1}")
            cluster.until(lambda: cluster.leader() == other, f"n{other + 1} leads")
        # Not in step with anybody's timers.
        time.sleep(random.random())
        cluster.power_off(home)
        took.append(cluster.gap("s", run + 1))
        cluster.power_on(home)
    head(f"five nodes, F = {FAILOVER} s")
    what = "that led" if leads else "that did not lead"
    row(f"the node of a singleton, {what}, → it runs elsewhere", "power loss", took)
    cluster.stop()


def leader(network):
    singleton(network, True)


def restart(network, replicas=100):
    """A server is killed and started with many replicas: until it knows them again."""
    cluster = Services(network, FAILOVER)
    cluster.apply("many", f"replicas = {replicas * NODES}", ["/bin/sleep", "1000000"])
    of = lambda i: {(r["pid"], r["started_at"]) for r in cluster.replicas("many") if r["node"] == f"n{i + 1}"}
    took = []
    for _ in range(RUNS):
        i = random.choice([i for i in cluster.running() if i != cluster.leader()])
        before = of(i)
        cluster.servers[i].kill()
        cluster.servers[i].wait()
        started = time.monotonic()
        cluster.start(i)
        cluster.until(lambda: cluster.status(i)["cluster"]["leader"], f"n{i + 1} is back")
        cluster.until(lambda: of(i) == before, "the same processes as before")
        took.append(time.monotonic() - started)
    head(f"five nodes, {replicas} replicas on each")
    row("a server is killed and started → it shows the same processes", "crash", took)
    cluster.stop()


def managers(network):
    """Every server is gone for a while: what runs goes on, and what dies is started again."""
    cluster = Services(network, FAILOVER)
    cluster.apply("p", "")
    home = cluster.home("p")
    pid = cluster.replicas("p")[0]["pid"]
    for server in cluster.servers:
        server.kill()
        server.wait()
    known = len(cluster.ran("p"))
    time.sleep(5)
    went_on = len(cluster.ran("p")) == known and boottime() - cluster.ran("p")[-1][1] < 0.5
    os.kill(pid, signal.SIGKILL)
    again = cluster.gap("p", known)
    head("five nodes, all servers killed")
    row(f"a replica {'ran on for 5 s' if went_on else 'DID NOT RUN ON'}; killed → it runs again", "crash", [again])
    for i in range(NODES):
        cluster.start(i)
    cluster.stop()


def vip(network):
    """The node of the gateway that holds a VIP is lost."""
    vips.vip(network, head, row, Services, RUNS)


measured(Network(NODES), {"process": process, "singleton": singleton, "leader": leader, "restart": restart, "managers": managers, "vip": vip})
