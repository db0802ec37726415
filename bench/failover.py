#!/usr/bin/env python3
"""Services on five real nodes, each in a network namespace: how long work stands still when something is lost.

Arguments: any of process singleton leader restart managers vip (all of them by default), --runs N, --failover S.
Needs root. The workload writes who it is and CLOCK_BOOTTIME each millisecond, appending to one file: a gap
between two copies is how long nothing ran, and an overlap would be a failure of fencing, which ends the bench.
Power loss is silent: the cable is pulled first, then everything of the node is killed at once."""
import contextlib, json, os, random, signal, statistics, sys, time
from rig import Cluster, Network, measured, ms, option, sh
import vip as vips

NODES, RUNS, FAILOVER = option("--nodes", 5), option("--runs", 10), option("--failover", 10)

PROBE = r"""
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
int main(int argc, char **argv) {
    int file = open(argv[1], O_WRONLY | O_CREAT | O_APPEND, 0644);
    const char *epoch = getenv("QUORATE_EPOCH");
    for (char line[200];; usleep(1000)) {
        struct timespec now;
        clock_gettime(CLOCK_BOOTTIME, &now);
        int length = snprintf(line, sizeof line, "%s %d %s %ld.%09ld\n", argv[2], getpid(), epoch ? epoch : "0", now.tv_sec, now.tv_nsec);
        if (write(file, line, length) != length) return 1;
    }
}
"""


def boottime():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) / 1e9


class Services(Cluster):
    """All nodes are managers, so that any of them may lead."""

    def __init__(self, network):
        super().__init__(network, managers=len(network.nodes))
        with open(f"{self.dir}/probe.c", "w") as source:
            source.write(PROBE)
        sh("cc", "-O2", "-o", f"{self.dir}/probe", f"{self.dir}/probe.c")

    def running(self):
        return [i for i, server in enumerate(self.servers) if server]

    def ask(self, *args):
        """A command whose answer is JSON, by way of a node that runs."""
        i = self.running()[0]
        return json.loads(self.cli(i, "--server", f"unix:{self.dir}/{i}/api.sock", *args, "-o", "json"))

    def apply(self, name, more, command=None):
        command = command or [f"{self.dir}/probe", f"{self.dir}/{name}.ran", "{replica}"]
        path = f"{self.dir}/{name}.toml"
        with open(path, "w") as spec:
            spec.write(f"[[service]]\nname = '{name}'\ncommand = {json.dumps(command)}\n{more}\n")
        self.ask("service", "apply", "-f", path, "--yes")

    def replicas(self, name):
        return self.ask("service", "show", name)["replicas"]

    def ran(self, name):
        """The spans in which each process of a service ran, in order."""
        spans = {}
        with contextlib.suppress(FileNotFoundError):
            for line in open(f"{self.dir}/{name}.ran"):
                if len(words := line.split()) == 4:
                    at, who = float(words[3]), (words[0], words[1], words[2])
                    first, last = spans.get(who, (at, at))
                    spans[who] = (min(first, at), max(last, at))
        return sorted(spans.values())

    def gap(self, name, known):
        """For how long nothing ran, between the last of those that were known and whoever came next."""
        self.until(lambda: len(self.ran(name)) > known, f"{name} runs again", 6 * FAILOVER)
        spans = self.ran(name)
        for (_, end), (begin, _) in zip(spans, spans[1:]):
            if begin <= end:
                sys.exit(f"two copies of {name} ran at once, for {ms(end - begin)} ms")
        return spans[known][0] - spans[known - 1][1]

    def processes(self, i):
        """Everything of a node: what names its directory, and what those made."""
        mine, parents = set(), {}
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            with contextlib.suppress(OSError):
                parents[pid] = int(open(f"/proc/{pid}/stat").read().rsplit(") ", 1)[1].split()[1])
                said = open(f"/proc/{pid}/cmdline", "rb").read() + open(f"/proc/{pid}/environ", "rb").read()
                if f"{self.dir}/{i}/".encode() in said or f"{self.dir}/{i}\0".encode() in said:
                    mine.add(pid)
        while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
            mine |= more
        return mine

    def power_off(self, i):
        pids = self.processes(i)
        self.network.cable(i, False)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.servers[i].wait()
        self.servers[i] = None

    def power_on(self, i):
        self.network.cable(i, True)
        self.start(i)
        self.whole()

    def leader(self):
        leader = self.status(self.running()[0])["cluster"]["leader"]
        return leader and int(leader[1:]) - 1

    def home(self, name):
        """Where the only copy of a service runs."""
        self.until(lambda: [replica["state"] for replica in self.replicas(name)] == ["healthy"], f"{name} runs")
        return int(self.replicas(name)[0]["node"][1:]) - 1

    def stop(self):
        for i in range(len(self.servers)):
            for pid in self.processes(i):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        super().stop()


def row(event, kind, took):
    took = sorted(took)
    print(f"| {event} | {kind} | {ms(statistics.median(took))} | {ms(took[0])} – {ms(took[-1])} | {len(took)} |", flush=True)


def head(text):
    print(f"\n| {text} | crash or power loss | median ms | least – most | times |\n|---|---|---|---|---|", flush=True)


def process(network):
    """A replica's process is killed: until it runs again."""
    cluster = Services(network)
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
    cluster = Services(network)
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
    cluster = Services(network)
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
    cluster = Services(network)
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
