#!/usr/bin/env python3
"""Quorate, 3 nodes on loopback, default settings (fsync on), through its public HTTP API.

Laid out like the peers' scripts, with their helpers and their load generator, so that the rows can
be laid side by side. Arguments: any of write read failover idle (all of them by default)."""
import os, sys, tempfile

sys.path.insert(0, os.path.join(os.environ["QUORATE_ANCHORS"], "lib"))
from anchor import *

BINARY = os.environ["QUORATE_BINARY"]
L = load()


class Cluster:
    def __init__(self):
        self.dir = tmpdir() + "/dev"
        log = open(self.dir + ".log", "ab")
        self.proc = Proc([BINARY, "dev", "--json", "--port-base", "0", "--keep", self.dir], stdout=subprocess.PIPE, stderr=log)
        line = self.proc.p.stdout.readline()
        if not line:
            sys.exit(f"quorate dev did not start: {open(self.dir + '.log').read()[-2000:]}")
        self.ready = json.loads(line)
        self.nodes = self.ready["nodes"]

    def leader(self):
        return next(i for i, n in enumerate(self.nodes) if n["mode"] == "active")

    def endpoint(self, i):
        return self.nodes[i]["api"].removeprefix("http://").rstrip("/")

    def ep(self, idx):
        return ",".join(self.endpoint(i) for i in idx)

    def quorate(self, *args):
        return run([BINARY, *args, "--keep", self.dir])

    def stop(self):
        self.proc.stop(signal.SIGTERM)


def tree(pid):
    return [pid] + [d for c in children(pid) for d in tree(c)]


todo = sys.argv[1:] or ["write", "read", "failover", "idle"]
if "idle" in todo:
    c = Cluster()
    time.sleep(3)
    # A node is its server with the shims and replicas below it; `cpu` and `rss` count children.
    pids = [n["pid"] for n in c.nodes]
    c0, t0 = [cpu(p) for p in pids], time.time()
    time.sleep(10)
    use = [(cpu(p) - a) / (time.time() - t0) * 100 for p, a in zip(pids, c0)]
    mem = [rss(p) for p in pids]
    sets = [tree(p) for p in pids]
    note({"label": "quorate idle", "rss": mem, "cpu_pct": use, "processes": [len(s) for s in sets]})
    table(["quorate idle", "RSS MiB per node (server, shim, demo replica)", "CPU % of a core per node"],
          [["", "/".join(f"{m:.1f}" for m in mem), "/".join(f"{u:.2f}" for u in use)]])
    c.stop()
if "write" in todo:
    c = Cluster()
    l = c.leader()
    pids = [c.nodes[l]["pid"]] + [n["pid"] for i, n in enumerate(c.nodes) if i != l]
    table(HEAD, closed("quorate insert (to the leader)", lambda n: bench([L, "rqlite-put", "--endpoints", c.ep([l]), "--clients", str(n), "--secs", str(SECS), "--warm", "1.5"]), [1, 16, 64, 256], leader=pids[0], nodes=pids))
    c.stop()
if "read" in todo:
    c = Cluster()
    l = c.leader()
    f = (l + 1) % 3
    pids = [c.nodes[f]["pid"], c.nodes[l]["pid"], c.nodes[3 - l - f]["pid"]]
    rows = []
    for level, name in (("none", "local"), ("linearizable", "linearizable")):
        rows += closed(f"quorate select on a follower, {name}", lambda n: bench([L, "rqlite-get", "--endpoints", c.ep([f]), "--fill", c.endpoint(l), "--clients", str(n), "--secs", str(SECS), "--level", level]), [1, 64], leader=pids[0], nodes=pids)
    table([h.replace("leader CPU", "serving node CPU") for h in HEAD], rows)
    c.stop()
if "failover" in todo:
    rows = []
    for kind in ("kill -9 leader", "SIGTERM leader", "raft transfer"):
        rs = []
        for _ in range(int(os.environ.get("ANCHOR_FAILOVERS", "10")) if kind[0] == "k" else 5):
            c = Cluster()
            l = c.leader()
            others = [i for i in range(3) if i != l]
            a = [L, "rqlite-failover", "--endpoints", c.ep(others), "--fill", c.endpoint(l), "--after", "2", "--secs", "5.5"]
            if kind == "raft transfer":
                a += ["--exec", f"{BINARY} raft transfer {c.nodes[others[0]]['name']} --keep {c.dir}"]
            else:
                a += ["--pid", str(c.nodes[l]["pid"]), "--signal", "9" if kind[0] == "k" else "15"]
            r = bench(a)
            r["label"] = "quorate " + kind
            note(r)
            rs.append(r)
            c.stop()
        g = lambda k: [r[k] for r in rs]
        rows.append([kind, len(rs), mmm(g("first_ack_ms")), mmm(g("longest_gap_ms")), mmm(g("gap_before_ms")), sum(g("failed"))])
    table(["quorate: event", "runs", "event to first acked write issued after it, ms", "longest gap between acks, ms", "longest gap before the event, ms", "failed writes"], rows)
