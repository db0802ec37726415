"""A VIP of three gateways, one host each: the node of the one that holds it is lost; how long until the next TCP
connection through the VIP succeeds. Beside it keepalived on the same hosts, as it comes and tuned to adverts each
100 ms, if it is installed (or $KEEPALIVED names it). Part of failover.py.

The client is a host of its own, at the switch: it connects again and again, for at most 10 ms each. Power loss is
silent: the cable is pulled, then everything of the node is killed. What is counted begins before the cable is
touched, and ends with a connection that was begun after it was out."""
import contextlib, os, random, shutil, signal, subprocess, sys, tempfile, time
from rig import SWITCH, inside, ms, sh

VIP, PORT, GATEWAYS = "10.77.0.9", 80, 3
KEEPALIVED = os.environ.get("KEEPALIVED") or shutil.which("keepalived") or shutil.which("keepalived", path="/usr/sbin")

CLIENT = f"""
import socket, struct, time
while True:
    begun = time.monotonic()
    with socket.socket() as client:
        client.settimeout(0.01)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            client.connect(("{VIP}", {PORT}))
            print(begun, time.monotonic(), flush=True)
        except OSError:
            pass
    time.sleep(0.001)
"""

SERVER = f"""
import socket
server = socket.create_server(("0.0.0.0", {PORT}), backlog=1000)
while True:
    server.accept()[0].close()
"""


class Client:
    """Whoever connects through the VIP, all the time."""

    def __init__(self):
        with contextlib.suppress(subprocess.CalledProcessError):
            sh(*inside(SWITCH, "ip", "address", "add", "10.77.0.254/24", "dev", "br0"))
        # The client's own place in the file is not ours.
        with tempfile.NamedTemporaryFile("w") as said:
            self.said = open(said.name)
            self.process = subprocess.Popen(inside(SWITCH, "python3", "-c", CLIENT), stdout=said)
        self.connections = []

    def connected(self, after):
        """When the first connection that was begun after a moment was there."""
        while (line := self.said.readline()).endswith("\n"):
            self.connections.append(tuple(map(float, line.split())))
        self.said.seek(self.said.tell() - len(line))
        return next((there for begun, there in self.connections if begun > after), None)

    def until(self, after, patience=30):
        deadline = time.monotonic() + patience
        while not (found := self.connected(after)):
            if time.monotonic() > deadline:
                sys.exit(f"no connection through the VIP within {patience} s")
            time.sleep(0.02)
        return found

    def stop(self):
        self.process.kill()
        self.process.wait()


def holders(network):
    """Hosts whose kernels answer for it."""
    return [i for i in range(GATEWAYS) if VIP in sh(*inside(network.nodes[i], "ip", "-4", "address", "show"))]


def measure(network, client, runs, lose, restore):
    took = []
    for _ in range(runs):
        deadline = time.monotonic() + 30
        while len(found := holders(network)) != 1:
            if time.monotonic() > deadline:
                sys.exit(f"{len(found)} hosts hold the VIP")
            time.sleep(0.05)
        client.until(time.monotonic())
        # Not in step with anybody's adverts.
        time.sleep(1 + random.random())
        begun = time.monotonic()
        out = lose(found[0])
        took.append(client.until(out) - begun)
        restore(found[0])
    return took


def quorate(network, row, services, runs):
    cluster = services(network)
    gateways = {}

    def start(i):
        command = [os.environ["QUORATE_BINARY"], "gateway", "--listen", f"0.0.0.0:{PORT}", "--name", f"gw{i + 1}"]
        command += ["--url", f"http://10.77.0.{i + 1}", "--manager", f"unix:{cluster.dir}/{i}/api.sock"]
        command += ["--data-dir", f"{cluster.dir}/{i}/gateway"]
        log = open(f"{cluster.dir}/gw{i}.log", "ab")
        gateways[i] = subprocess.Popen(inside(network.nodes[i], *command), stdout=subprocess.DEVNULL, stderr=log)

    def standing():
        states = [it["state"] for vip in cluster.ask("vip", "list") for it in vip["candidates"]]
        return sorted(states) == ["holding"] + ["standby"] * (GATEWAYS - 1)

    def restore(i):
        gateways[i].wait()
        cluster.power_on(i) if cluster.servers[i] is None else None
        start(i)
        cluster.until(standing, "all gateways stand by")

    def power_loss(i):
        pids = cluster.processes(i)
        network.cable(i, False)
        out = time.monotonic()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        cluster.servers[i].wait()
        cluster.servers[i] = None
        return out

    def ends_by(number):
        def end(i):
            gateways[i].send_signal(number)
            if number == signal.SIGKILL:
                gateways[i].wait()
            # One that is stopped serves until the address is down.
            while number == signal.SIGTERM and i in holders(network):
                pass
            return time.monotonic()
        return end

    for i in range(GATEWAYS):
        cluster.ask("node", "roles", f"n{i + 1}", "manager", "worker", "gateway")
        start(i)
    cluster.ask("vip", "add", f"{VIP}/24")
    cluster.until(standing, "all gateways stand by")
    client = Client()
    try:
        for event, kind, lose in [
            ("Quorate, the node of the gateway that holds it is lost", "power loss", power_loss),
            ("Quorate, the gateway that holds it is killed", "crash", ends_by(signal.SIGKILL)),
            ("Quorate, the gateway that holds it is stopped", "clean stop", ends_by(signal.SIGTERM)),
        ]:
            row(event, kind, measure(network, client, runs, lose, restore))
    finally:
        client.stop()
    cluster.stop()


def keepalived(network, row, runs, name, advert, version):
    with tempfile.TemporaryDirectory() as directory:
        processes = {}

        def start(i):
            path = f"{directory}/{i}"
            with open(f"{path}.conf", "w") as config:
                config.write(f"""global_defs {{
    vrrp_version {version}
}}
vrrp_instance vip {{
    state BACKUP
    nopreempt
    interface q0
    virtual_router_id 51
    priority {100 + i}
    advert_int {advert}
    virtual_ipaddress {{
        {VIP}/24
    }}
}}
""")
            # Those of a killed one may by now be of somebody else, and it would not start.
            for kind in ("pid", "vrrp"):
                with contextlib.suppress(FileNotFoundError):
                    os.remove(f"{path}.{kind}")
            command = [KEEPALIVED, "--dont-fork", "--log-console", "--vrrp", "--use-file", f"{path}.conf", "--pid", f"{path}.pid", "--vrrp_pid", f"{path}.vrrp"]
            log = open(f"{path}.log", "ab")
            processes[i] = [
                subprocess.Popen(inside(network.nodes[i], *command), stdout=log, stderr=log, start_new_session=True),
                subprocess.Popen(inside(network.nodes[i], "python3", "-c", SERVER), start_new_session=True),
            ]

        def kill(i):
            for process in processes[i]:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            # A host without power has no address either; this one's kernel lives.
            subprocess.run(inside(network.nodes[i], "ip", "address", "del", f"{VIP}/24", "dev", "q0"), capture_output=True)

        def lose(i):
            network.cable(i, False)
            out = time.monotonic()
            kill(i)
            return out

        def restore(i):
            network.cable(i, True)
            start(i)
            # Until it has heard the one that holds the address.
            time.sleep(5 * float(advert))

        for i in range(GATEWAYS):
            start(i)
        client = Client()
        try:
            row(f"keepalived, {name}, the node that holds it is lost", "power loss", measure(network, client, runs, lose, restore))
        finally:
            client.stop()
            for i in processes:
                kill(i)


def vip(network, head, row, services, runs):
    head("three gateways, one VIP")
    quorate(network, row, services, runs)
    if not KEEPALIVED:
        print("keepalived is not installed: not measured")
        return
    keepalived(network, row, runs, "adverts each 100 ms", "0.1", 3)
    keepalived(network, row, runs, "as it comes (1 s)", "1", 2)
