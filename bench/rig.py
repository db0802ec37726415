"""Real nodes of a cluster, each in a network namespace of its own behind one switch, for benches. Needs root.
Every namespace is named after this process and removed again; no packet leaves them."""
import contextlib, json, os, re, shutil, signal, socket, subprocess, sys, tempfile, time

BINARY = os.environ["QUORATE_BINARY"]
NAME = f"qmb{os.getpid()}"
SWITCH = f"{NAME}-sw"


def option(name, default):
    if name in sys.argv:
        at = sys.argv.index(name)
        value = int(sys.argv[at + 1])
        del sys.argv[at:at + 2]
        return value
    return default


def sh(*args):
    return subprocess.run(args, check=True, capture_output=True, text=True).stdout


def inside(namespace, *args):
    return ["ip", "netns", "exec", namespace, *args]


class Network:
    """A switch in a namespace of its own, and one cable to each node."""

    def __init__(self, nodes):
        self.nodes = [f"{NAME}-{i}" for i in range(nodes)]
        sh("ip", "netns", "add", SWITCH)
        sh(*inside(SWITCH, "ip", "link", "add", "br0", "type", "bridge"))
        sh(*inside(SWITCH, "ip", "link", "set", "br0", "up"))
        for i, node in enumerate(self.nodes):
            sh("ip", "netns", "add", node)
            sh(*inside(SWITCH, "ip", "link", "add", f"p{i}", "type", "veth", "peer", "name", "q0", "netns", node))
            sh(*inside(SWITCH, "ip", "link", "set", f"p{i}", "master", "br0", "up"))
            sh(*inside(node, "ip", "addr", "add", f"10.77.0.{i + 1}/24", "dev", "q0"))
            sh(*inside(node, "ip", "link", "set", "q0", "up"))
            sh(*inside(node, "ip", "link", "set", "lo", "up"))

    def cable(self, i, plugged):
        sh(*inside(SWITCH, "ip", "link", "set", f"p{i}", "master" if plugged else "nomaster", *(["br0"] if plugged else [])))

    def remove(self):
        for namespace in [*self.nodes, SWITCH]:
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True)


CLUSTERS = []


class Cluster:
    def __init__(self, network, nodes=None, managers=3, flags=()):
        nodes = nodes or len(network.nodes)
        self.network, self.flags = network, list(flags)
        self.dir = tempfile.mkdtemp(prefix=NAME)
        self.settings = f"{self.dir}/quorate.toml"
        open(self.settings, "w").close()
        self.servers = [None] * len(network.nodes)
        CLUSTERS.append(self)
        self.ids = [None] * len(network.nodes)
        self.cli(0, "init", "--name", "bench", "--node-name", "n1", *self.place(0), "--no-start")
        self.start(0)
        self.until(lambda: self.status(0)["cluster"]["leader"], "a leader")
        for i in range(1, nodes):
            role = "manager" if i < managers else "worker"
            self.join(i, f"n{i + 1}", role)
            self.start(i)
            self.until(lambda: len(self.joined(0)) == i + 1, f"n{i + 1}")
        for i in range(nodes):
            self.until(lambda: len(self.joined(i)) == nodes, f"all nodes at n{i + 1}")
        for node in self.status(0)["nodes"]:
            self.ids[int(node["name"][1:]) - 1] = node["id"]

    def place(self, i, name=None, port=7000):
        address = f"10.77.0.{i + 1}"
        return ["--data-dir", f"{self.dir}/{name or i}", "--listen", f"{address}:{port}", "--link",
                f"{address}:{port + 1}", "--config", self.settings]

    def cli(self, i, *args):
        done = subprocess.run(inside(self.network.nodes[i], BINARY, *args), capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"quorate {' '.join(args)}: {done.stdout}{done.stderr}")
        return done.stdout

    def token(self, role):
        made = self.cli(0, "--server", f"unix:{self.dir}/0/api.sock", "add-node", "--role", role, "-o", "json")
        return json.loads(made)["commands"][0].split()[-1]

    def join(self, i, name, role, directory=None, port=7000):
        token = self.token(role)
        started = time.monotonic()
        self.cli(i, "join", token, "--name", name, *self.place(i, directory, port), "--no-start")
        return time.monotonic() - started

    def start(self, i):
        log = open(f"{self.dir}/{i}.log", "ab")
        command = [BINARY, "serve", "--data-dir", f"{self.dir}/{i}", "--config", self.settings, *self.flags]
        self.servers[i] = subprocess.Popen(inside(self.network.nodes[i], *command), stdout=subprocess.DEVNULL, stderr=log)

    def status(self, i):
        try:
            return json.loads(b"".join(self.request(i, "/v1/status")).split(b"\r\n\r\n", 1)[1])
        except (OSError, IndexError, ValueError):
            return {"cluster": {"leader": None}, "nodes": []}

    def request(self, i, path):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(f"{self.dir}/{i}/api.sock")
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            while part := connection.recv(1 << 16):
                yield part

    def joined(self, i):
        return [node for node in self.status(i)["nodes"] if node["state"] == "joined"]

    def until(self, ready, what, patience=60):
        deadline = time.monotonic() + patience
        while not ready():
            if time.monotonic() > deadline:
                sys.exit(f"after {patience} s still not: {what}")
            time.sleep(0.05)

    def whole(self):
        for i, server in enumerate(self.servers):
            if server:
                running = sum(server is not None for server in self.servers)
                self.until(lambda: len(self.joined(i)) == running, f"all nodes at n{i + 1}")

    def rumors(self, word):
        """Who said it, and of whom."""
        pattern = re.compile(r"gossip node=(\S+) generation=\d+ rumor=" + word)
        found = []
        for i in range(len(self.servers)):
            with contextlib.suppress(FileNotFoundError):
                lines = open(f"{self.dir}/{i}.log").read()
                found += [(i, self.ids.index(node)) for node in pattern.findall(lines) if node in self.ids]
        return found

    def stop(self):
        for server in filter(None, self.servers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(server.pid, signal.SIGCONT)
                server.kill()
            server.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


def percentile(values, p):
    return sorted(values)[min(len(values) - 1, int(len(values) * p / 100))]


def ms(seconds):
    return f"{seconds * 1000:,.0f}"


def cpu(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(network, kinds):
    """Runs what the command line asks for, or all, and leaves nothing behind."""
    print(f"load before: {open('/proc/loadavg').read().split()[0]}")
    try:
        for what in sys.argv[1:] or kinds:
            kinds[what](network)
    finally:
        for cluster in CLUSTERS:
            cluster.stop()
        network.remove()
