#!/usr/bin/env python3
"""Services that run once, on three real nodes each in a network namespace: does any of them ever run twice?

A run: one node of a cluster is taken from the others in one of the ways below while it runs at least one of four
singletons; those start elsewhere; a while later the node comes back. Each copy writes its epoch and CLOCK_BOOTTIME
each millisecond, appending to one file of its service, and what all of them wrote is compared after each run.

Arguments: --runs N, --failover S, --clusters N side by side, --unfenced 1 for a binary that does not fence: then
overlaps must be found, or these runs could not find any. Needs root, and libfaketime for clocks that jump."""
import contextlib, json, os, random, signal, statistics, subprocess, sys, time
from collections import Counter
from rig import BINARY, Network, ms, option
from services import Services, overlaps

NODES, SINGLETONS = 3, 4
RUNS, FAILOVER, CLUSTERS = option("--runs", 1000), option("--failover", 2), option("--clusters", 3)
UNFENCED, ONE = option("--unfenced", 0), option("--one", 0)
FAKETIME = "/usr/$LIB/faketime/libfaketime.so.1"


class Fenced(Services):
    """Its servers have wall clocks that can be set."""

    def __init__(self, network):
        self.stopped, self.ways = [], [self.kill, self.stop_server, self.stop_watchers, self.partition, self.clock]
        super().__init__(network, FAILOVER)
        short = "unsafe_fast = true" if FAILOVER < 10 else ""
        for name in self.names():
            self.apply(name, f"mode = 'singleton'\nfailover = '{FAILOVER}s'\n{short}")

    def names(self):
        return [f"s{number}" for number in range(SINGLETONS)]

    def set_clock(self, i, seconds):
        with open(f"{self.dir}/{i}.clock.new", "w") as file:
            file.write(f"{seconds:+}\n")
        os.rename(f"{self.dir}/{i}.clock.new", f"{self.dir}/{i}.clock")

    def start(self, i):
        self.set_clock(i, 0)
        environment = {"LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": f"{self.dir}/{i}.clock", "NO_FAKE_STAT": "1",
                       "FAKETIME_CACHE_DURATION": "1", "DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        before = dict(os.environ)
        os.environ.update(environment)
        super().start(i)
        os.environ.clear()
        os.environ.update(before)

    def kill(self, i):
        """The server is killed; those who watch over its replicas go on."""
        self.servers[i].kill()
        self.servers[i].wait()
        self.servers[i] = None
        return lambda: self.start(i)

    def stop_server(self, i):
        """The server stands still."""
        return self.still([self.servers[i].pid])

    def stop_watchers(self, i):
        """The server stands still, and all that watches over its replicas."""
        program = os.path.realpath(BINARY)
        watchers = []
        for pid in self.processes(i):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/exe") == program:
                    watchers.append(pid)
        return self.still(watchers)

    def still(self, pids):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        self.stopped = pids
        return self.go_on

    def go_on(self):
        for pid in self.stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.stopped = []

    def partition(self, i):
        """The cable is out."""
        self.network.cable(i, False)
        return lambda: self.network.cable(i, True)

    def clock(self, i):
        """The wall clock jumps by up to an hour to either side, and the cable is out a moment later."""
        self.set_clock(i, random.choice([-1, 1]) * random.randint(1, 3600))
        time.sleep(random.random() * FAILOVER / 2)
        self.network.cable(i, False)

        def back():
            self.set_clock(i, 0)
            self.network.cable(i, True)
        return back

    def run(self, way):
        """Takes a node away. What became of each singleton that it had: how long none ran, and overlaps so far."""
        homes = {name: self.home(name) for name in self.names()}
        away = random.choice(sorted(set(homes.values())))
        lost = [name for name, home in homes.items() if home == away]
        known = {name: len(self.ran(name)) for name in lost}
        # Not in step with anybody's timers.
        time.sleep(random.random() * FAILOVER / 2)
        undo = way(away)
        try:
            for name in lost:
                self.until(lambda: len(self.ran(name)) > known[name], f"{name} runs elsewhere after {way.__name__}", self.patience)
            time.sleep(random.random() * FAILOVER / 2)
        finally:
            undo()
        self.whole()
        spans = {name: self.ran(name) for name in self.names()}
        gaps = [spans[name][known[name]][0] - max(last for _, last in spans[name][:known[name]]) for name in lost]
        return gaps, [length for name in self.names() for length in overlaps(spans[name])]


def one(network):
    """One cluster: a line of JSON for each run."""
    cluster, overlapped = Fenced(network), 0
    try:
        for run in range(RUNS):
            way = cluster.ways[run % len(cluster.ways)]
            gaps, found = cluster.run(way)
            longest, overlapped = max(found[overlapped:], default=0), len(found)
            print(json.dumps({"way": way.__name__, "gaps": gaps, "overlap": longest, "overlaps": overlapped}), flush=True)
    finally:
        cluster.go_on()
        cluster.stop()
        network.remove()


def several():
    """Clusters side by side, and what they say together."""
    share = [RUNS // CLUSTERS + (k < RUNS % CLUSTERS) for k in range(CLUSTERS)]
    command = [sys.executable, __file__, "--failover", str(FAILOVER), "--one", "1", "--runs"]
    children = [subprocess.Popen([*command, str(runs)], stdout=subprocess.PIPE, text=True) for runs in share]
    began, runs = time.monotonic(), []
    print(f"load before: {open('/proc/loadavg').read().split()[0]}", flush=True)
    for child in children:
        runs += [json.loads(line) for line in child.stdout]
    failed = [child for child in children if child.wait()]
    fenced = "WITHOUT fencing" if UNFENCED else "fenced"
    print(f"\n| {NODES} nodes, {SINGLETONS} singletons, F = {FAILOVER} s, {fenced} | runs | failovers | runs with two copies at once "
          "| nothing ran, median ms | least – most |\n|---|---|---|---|---|---|")
    by_way = Counter(run["way"] for run in runs)
    for way in by_way:
        of = [run for run in runs if run["way"] == way]
        gaps = sorted(gap for run in of for gap in run["gaps"])
        twice = sum(run["overlap"] > 0 for run in of)
        print(f"| {getattr(Fenced, way).__doc__} | {len(of)} | {len(gaps)} | {twice} | {ms(statistics.median(gaps))} "
              f"| {ms(gaps[0])} – {ms(gaps[-1])} |")
    twice = sum(run["overlap"] > 0 for run in runs)
    print(f"\n{len(runs)} runs in {time.monotonic() - began:,.0f} s, two copies at once in {twice} of them"
          + (f", for {ms(max(run['overlap'] for run in runs))} ms at most" if twice else ""), flush=True)
    if failed or len(runs) < RUNS:
        sys.exit(f"{RUNS - len(runs)} runs were not made")
    if bool(twice) != bool(UNFENCED):
        sys.exit("two copies ran at once" if twice else "nothing was fenced and no two copies were seen at once: these runs prove nothing")


one(Network(NODES)) if ONE else several()
