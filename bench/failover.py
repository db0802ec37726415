#!/usr/bin/env python3
"""Services on five real nodes, each in a network namespace: how long work stands still when something is lost.

Arguments: any of process singleton leader leave traffic restart managers autoscale vip (all of them by default), --runs N, --failover S.
Needs root. The workload writes who it is and CLOCK_BOOTTIME each millisecond, appending to one file: a gap
between two copies is how long nothing ran, and an overlap would be a failure of fencing, which ends the bench.
Power loss is silent: the cable is pulled first, then everything of the node is killed at once."""
import contextlib, os, random, re, signal, subprocess, sys, time
from rig import BINARY, Network, inside, measured, option
from services import Services, boottime, head, row
import vip as vips

DEMO = [BINARY, "demo", "--port", "{port}", "--address", "0.0.0.0", "--replica", "{replica}", "--node", "{node}",
        "--ordinal", "{ordinal}"]
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


def leave(network):
    """The server of a singleton's node is stopped for good: what runs once there is handed over first."""
    cluster = Services(network, FAILOVER)
    # Whoever waited for the lease would need most of this.
    cluster.apply("s", "mode = 'singleton'\nfailover = '300s'")
    took = []
    for run in range(RUNS):
        home = cluster.home("s")
        cluster.cli(home, "--server", f"unix:{cluster.dir}/{home}/api.sock", "leave", "--yes")
        took.append(cluster.gap("s", run + 1))
        cluster.servers[home].wait()
        cluster.start(home)
        cluster.whole()
    head("five nodes, F = 300 s")
    row("`quorate leave` on the node of a singleton → it runs elsewhere", "clean stop", took)
    cluster.stop()


ASKING = """
import http.client, threading, time
def ask():
    while True:
        begun, status = time.monotonic(), 0
        try:
            connection = http.client.HTTPConnection("127.0.0.1", 80, timeout=10)
            connection.request("GET", "/whoami", headers={"Host": "web"})
            status = connection.getresponse().status
            connection.close()
        except OSError:
            pass
        print(f"{begun} {time.monotonic()} {status}\\n", end="", flush=True)
        time.sleep(0.02)
for _ in range(4):
    threading.Thread(target=ask).start()
"""


def gateway(cluster, at, name):
    """A gateway on a node, at port 80 of its own address 127.0.0.1."""
    command = [BINARY, "gateway", "--listen", "127.0.0.1:80", "--name", name, "--url", f"http://{name}",
               "--data-dir", f"{cluster.dir}/{name}", "--manager", f"unix:{cluster.dir}/{at}/api.sock"]
    with open(f"{cluster.dir}/{name}.log", "wb") as log:
        return subprocess.Popen(inside(cluster.network.nodes[at], *command), stdout=subprocess.DEVNULL, stderr=log)


class Clients:
    """A gateway on a node, and four clients that ask it for a service all the time, each request on a new connection."""

    def __init__(self, cluster, at, name):
        self.path = f"{cluster.dir}/{name}.asked"
        self.gateway = gateway(cluster, at, name)
        with open(self.path, "wb") as said:
            self.clients = subprocess.Popen(inside(cluster.network.nodes[at], "python3", "-c", ASKING), stdout=said)

    def requests(self):
        """When each began and ended, and its status; 0: none came."""
        with open(self.path) as said:
            words = [line.split() for line in said if line.endswith("\n")]
        return [(float(begun), float(ended), int(status)) for begun, ended, status in words]

    def stop(self):
        for process in (self.clients, self.gateway):
            process.kill()
            process.wait()


def traffic(network, slow=0.1, watched=15):
    """The node of one of three copies loses power: until no request through a gateway fails or is slow any more."""
    cluster = Services(network, FAILOVER)
    cluster.apply("web", "replicas = 3\nports = { http = 'auto' }\nhealth = { http = '/healthz' }\n"
                         "[[route]]\nhost = 'web'\nservice = 'web'",
                  DEMO)
    took, failed, asked = [], 0, 0
    for run in range(RUNS):
        cluster.until(lambda: [replica["state"] for replica in cluster.replicas("web")] == ["healthy"] * 3, "web runs")
        homes = {int(replica["node"][1:]) - 1 for replica in cluster.replicas("web")}
        at, lost = random.choice(sorted(set(range(NODES)) - homes)), random.choice(sorted(homes))
        clients = Clients(cluster, at, f"gw{run}")
        with contextlib.ExitStack() as stack:
            stack.callback(clients.stop)
            cluster.until(lambda: [status for _, _, status in clients.requests()[-500:]] == [200] * 500, "requests are answered")
            time.sleep(random.random())
            off = time.monotonic()
            cluster.power_off(lost)
            time.sleep(watched)
        after = [request for request in clients.requests() if request[1] > off]
        noticed = [ended - off for begun, ended, status in after if status != 200 or ended - begun > slow]
        took.append(max(noticed, default=0))
        failed, asked = failed + sum(status != 200 for _, _, status in after), asked + len(after)
        cluster.power_on(lost)
    head("five nodes, three copies")
    row(f"the node of a copy → no request through a gateway fails or takes over {slow * 1000:.0f} ms", "power loss", took)
    print(f"\nIn the {watched} s after each loss {failed} of {asked:,} requests were not answered with 200.", flush=True)
    cluster.stop()


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


def autoscale(network, rps=100):
    """wrk asks a gateway for all that a service of two copies can do, the leader's node loses power, wrk stops: until
    there are four copies, and two again."""
    cluster = Services(network, FAILOVER)
    cluster.apply("web", f"replicas = 2\nports = {{ http = 'auto' }}\nhealth = {{ http = '/healthz' }}\n"
                         f"autoscale = {{ min = 2, max = 4, rps = {rps}, every = '5s', warmup = '0s', down_after = '30s' }}\n"
                         "[[route]]\nhost = 'web'\nservice = 'web'",
                  DEMO)
    healthy = lambda: sum(replica["state"] == "healthy" for replica in cluster.replicas("web"))
    up, down, failed = [], [], []
    for run in range(RUNS):
        cluster.until(lambda: healthy() == 2, "two copies run", 300)
        at = random.choice([i for i in cluster.running() if i != cluster.leader()])
        serving = gateway(cluster, at, f"gw{run}")
        answers = lambda: subprocess.run(inside(cluster.network.nodes[at], "wrk", "-t1", "-c1", "-d1", "-H", "Host: web",
                                                "http://127.0.0.1/whoami"), capture_output=True, text=True).stdout
        cluster.until(lambda: "Requests/sec" in (said := answers()) and "Non-2xx" not in said, "the gateway answers")
        began = time.monotonic()
        load = subprocess.Popen(inside(cluster.network.nodes[at], "wrk", "-t1", "-c4", "-d600", "-H", "Host: web",
                                       "http://127.0.0.1/whoami"), stdout=subprocess.PIPE, text=True)
        cluster.until(lambda: healthy() == 4, "four copies run", 120)
        up.append(time.monotonic() - began)
        cluster.power_off(lost := cluster.leader())
        cluster.until(lambda: cluster.leader() is not None and healthy() == 4, "the others run all four", 120)
        load.send_signal(signal.SIGINT)
        said, ended = load.communicate()[0], time.monotonic()
        failed += [line.strip() for line in said.splitlines() if "Socket errors" in line or "Non-2xx" in line]
        cluster.until(lambda: healthy() == 2, "two copies are left", 300)
        down.append(time.monotonic() - ended)
        serving.kill()
        serving.wait()
        cluster.power_on(lost)
    head(f"five nodes, {rps} requests a second for each copy, looked at each 5 s, down after 30 s")
    row("wrk begins → four copies instead of two are healthy", "–", up)
    row("the leader's node is lost meanwhile; wrk ends → two copies", "power loss", down)
    print("\nwhat failed, says wrk:", "; ".join(failed) or "nothing", flush=True)
    cluster.stop()


def vip(network):
    """The node of the gateway that holds a VIP is lost."""
    vips.vip(network, head, row, Services, RUNS)


measured(Network(NODES), {"process": process, "singleton": singleton, "leader": leader, "leave": leave, "traffic": traffic, "restart": restart, "managers": managers, "autoscale": autoscale, "vip": vip})
