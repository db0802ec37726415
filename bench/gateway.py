#!/usr/bin/env python3
"""Quorate's gateway beside HAProxy, each on core 0; wrk (1 thread, 64 connections) and three
canned-answer backends on core 1. 100-byte and 10-KiB bodies, HTTP/1.1 keep-alive on both sides.

The peers' own script measures HAProxy (and others) the same way; its parts are used here so that
both run in one go. The gateway gets its routing table from a file: no manager takes part."""
import os, re, sys, uuid

sys.path.insert(0, os.path.join(os.environ["QUORATE_ANCHORS"], "lib"))
from anchor import *

need("haproxy", "wrk", "taskset")
D = tmpdir()
B = ports(3)
back = Proc([load(), "backend", "--ports", ",".join(map(str, B))], core=1)
[wait_port(p) for p in B]


def haproxy():
    port, f = ports(1)[0], f"{D}/haproxy.cfg"
    open(f, "w").write(
        "global\n nbthread 1\n maxconn 4000\ndefaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"
        f"frontend f\n bind 127.0.0.1:{port}\n default_backend b\nbackend b\n balance leastconn\n option http-keep-alive\n http-reuse always\n"
        + "".join(f" server s{i} 127.0.0.1:{p}\n" for i, p in enumerate(B)))
    return Proc([shutil.which("haproxy"), "-db", "-f", f], core=0, log=f + ".log"), port


def quorate():
    port, d = ports(1)[0], f"{D}/gateway"
    os.makedirs(d, exist_ok=True)
    table = {
        "revision": 1,
        "routes": [{"listen": "default", "host": "*", "path": "/", "service": "b", "balance": "leastconn"}],
        "services": [{"service": "b", "balance": "leastconn", "check_path": "/small", "endpoints": [
            {"replica": str(uuid.uuid4()), "node": str(uuid.uuid4()), "address": f"127.0.0.1:{p}", "state": "healthy"} for p in B]}],
    }
    json.dump(table, open(f"{d}/routes.json", "w"))
    p = Proc([os.environ["QUORATE_BINARY"], "gateway", "--listen", f"127.0.0.1:{port}", "--name", "bench", "--url", f"http://127.0.0.1:{port}",
              "--manager", f"http://127.0.0.1:{ports(1)[0]}", "--data-dir", d], core=0, log=f"{d}/log")
    return p, port


def wrk(port, path, secs):
    o = run([shutil.which("wrk"), "-t1", "-c64", f"-d{secs}s", "--latency", f"http://127.0.0.1:{port}{path}"], core=1)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", o)
    return {"rps": float(re.search(r"Requests/sec:\s+([\d.]+)", o).group(1)), "n": int(re.search(r"(\d+) requests in", o).group(1)), "bad": int(bad.group(1)) if bad else 0}


rows, base = [], {}
for name, start in (("haproxy", haproxy), ("quorate gateway", quorate)):
    p, port = start()
    wait_port(port)
    for path in ("/small", "/large"):
        wrk(port, path, 2)
        rs = []
        for _ in range(RUNS):
            c0 = cpu(p.pid)
            r = wrk(port, path, int(SECS))
            r.update(label=f"{name} {path}", cpu_us_req=(cpu(p.pid) - c0) * 1e6 / r["n"], rss=rss(p.pid))
            note(r)
            rs.append(r)
        us = statistics.median(r["cpu_us_req"] for r in rs)
        base.setdefault(path, us)
        rows.append([f"{us / base[path]:.2f}", name, path[1:], mmm([r["rps"] for r in rs]), mmm([r["cpu_us_req"] for r in rs], 1), f"{rs[-1]['rss']:.0f}", sum(r["bad"] for r in rs)])
    p.stop()
table(["CPU per request / HAProxy's", "proxy", "body", "requests/s", "CPU us per request", "RSS MiB", "bad"], rows)
