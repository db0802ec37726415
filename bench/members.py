#!/usr/bin/env python3
"""Real nodes, one in each of ten network namespaces: how soon the others see that one is gone, whom
they take for gone who is not, what gossip costs while nothing happens, how long a join takes, and what
others notice while passwords are guessed.

Arguments: any of gone alarms idle join guessing (all of them by default), --nodes N, --runs N. Needs root. A
node's view is what it sends on its own `GET /v1/stream`, taken when it arrives here."""
import contextlib, http.client, itertools, json, os, random, signal, socket, ssl, statistics, struct, subprocess, sys, threading, time
from rig import SWITCH, Cluster, Network, cpu, inside, measured, ms, option, percentile, sh

NODES, RUNS = option("--nodes", 10), option("--runs", 20)


class View(threading.Thread):
    """What one node shows of another, with the time at which it arrived here."""

    def __init__(self, cluster, i, of):
        super().__init__(daemon=True)
        self.cluster, self.i, self.of = cluster, i, of
        self.seen, self.ready, self.ended = [], threading.Event(), False
        self.start()

    def run(self):
        text = b""
        with contextlib.suppress(OSError):
            for part in self.cluster.request(self.i, "/v1/stream"):
                now = time.monotonic()
                text += part
                while b"\n\n" in text:
                    event, text = text.split(b"\n\n", 1)
                    data = [line[5:] for line in event.splitlines() if line.startswith(b"data:")]
                    with contextlib.suppress(ValueError, KeyError, TypeError):
                        nodes = json.loads(b"".join(data))["nodes"]
                        self.seen += [(now, node["state"]) for node in nodes if node["name"] == self.of]
                        self.ready.set()
                if self.ended:
                    return

    def first(self, after, state):
        return next((at - after for at, seen in self.seen if at >= after and state(seen)), None)


def gone(network):
    """Of one node, by each of the others: killed, without power, stopped."""
    cluster = Cluster(network)
    print(f"| {NODES} nodes, {RUNS} times each | shown as | p50 ms | p99 ms | longest ms | views |\n|---|---|---|---|---|---|")
    for name, states in [("killed", ("unreachable", "down")), ("without power", ("unreachable", "down")), ("stopped cleanly", ("removed",))]:
        took = []
        for _ in range(RUNS):
            victim = random.randrange(NODES)
            others = [i for i in range(NODES) if i != victim]
            views = [View(cluster, i, f"n{victim + 1}") for i in others]
            for view in views:
                view.ready.wait(10)
            # Not in step with anybody's timers.
            time.sleep(random.random())
            at = time.monotonic()
            if name == "without power":
                network.cable(victim, False)
            cluster.servers[victim].send_signal(signal.SIGTERM if name == "stopped cleanly" else signal.SIGKILL)
            deadline = at + 15
            shown = lambda state: state in states
            while any(view.first(at, shown) is None for view in views) and time.monotonic() < deadline:
                time.sleep(0.01)
            seen = [view.first(at, shown) for view in views]
            if None in seen:
                print(f"never seen by {sum(it is None for it in seen)} within 15 s", file=sys.stderr)
            took += [15 if it is None else it for it in seen]
            for view in views:
                view.ended = True
            cluster.servers[victim].wait()
            network.cable(victim, True)
            cluster.start(victim)
            cluster.whole()
        print(f"| {name} | {states[0]} | {ms(statistics.median(took))} | {ms(percentile(took, 99))} | {ms(max(took))} | {len(took)} |")
    cluster.stop()


def alarms(network, seconds=60):
    """Two of the nodes stand still for 0.3 to 0.8 s of every 2 to 3 s."""
    print(f"\n| {NODES} nodes, 2 of them slow, {seconds} s | false *unreachable* of nodes that are well | of slow ones |\n|---|---|---|")
    for name, flags in [("local health", ()), ("without it", ("--without-local-health",))]:
        cluster = Cluster(network, flags=flags)
        slow = [NODES - 1, NODES - 2]
        before = len(cluster.rumors("Unreachable"))

        def falter(i, until):
            pid = cluster.servers[i].pid
            while time.monotonic() < until:
                time.sleep(random.uniform(1.7, 2.2))
                os.kill(pid, signal.SIGSTOP)
                time.sleep(random.uniform(0.3, 0.8))
                os.kill(pid, signal.SIGCONT)

        threads = [threading.Thread(target=falter, args=(i, time.monotonic() + seconds)) for i in slow]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        said = cluster.rumors("Unreachable")[before:]
        of_slow = sum(of in slow for _, of in said)
        print(f"| {name} | {len(said) - of_slow} | {of_slow} |")
        cluster.stop()


def count(seconds):
    """Bytes of UDP payload by sender, at the switch; run in its namespace."""
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    tap.settimeout(0.2)
    sent, until = {}, time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(TimeoutError):
            frame, (interface, _, kind, *_) = tap.recvfrom(1 << 16)
            # What comes in at a port, once: not what the switch sends out again.
            if interface.startswith("p") and kind != socket.PACKET_OUTGOING and frame[12:14] == b"\x08\x00" and frame[23] == 17:
                payload = struct.unpack("!H", frame[14 + 4 * (frame[14] & 15) + 4:][:2])[0] - 8
                sender = socket.inet_ntoa(frame[26:30])
                sent[sender] = sent.get(sender, 0) + payload
    print(json.dumps(sent))


def idle(network, seconds=30):
    used, sent = {}, {}
    for name in ["with gossip", "without"]:
        cluster = Cluster(network)
        if name == "without":
            # Its keys are what turns it on.
            for i, server in enumerate(cluster.servers):
                server.kill()
                server.wait()
                os.remove(f"{cluster.dir}/{i}/tls/gossip.key")
                cluster.start(i)
            cluster.whole()
        time.sleep(10)
        before = [cpu(server.pid) for server in cluster.servers]
        counted = sh(*inside(SWITCH, sys.executable, __file__, "count", str(seconds)))
        used[name] = [(cpu(server.pid) - past) / seconds * 100 for server, past in zip(cluster.servers, before)]
        sent[name] = [byte / seconds for byte in json.loads(counted).values()]
        cluster.stop()
    mean = {name: statistics.mean(values) for name, values in used.items()}
    print(f"\n| {NODES} nodes, idle, {seconds} s | mean | most |\n|---|---|---|")
    print(f"| gossip sends, bytes/s of UDP payload a node | {statistics.mean(sent['with gossip']):,.0f} | {max(sent['with gossip']):,.0f} |")
    for name, values in used.items():
        print(f"| CPU of a node {name}, % of a core | {mean[name]:.2f} | {max(values):.2f} |")
    print(f"| the difference | {mean['with gossip'] - mean['without']:.2f} | |")


def join(network, times=100):
    cluster = Cluster(network, nodes=3)
    took = [cluster.join(3 + number % (NODES - 3), f"j{number}", "worker", f"j{number}", 8000 + 2 * number)
            for number in range(times)]
    print(f"\n| {times} joins one after another | p50 ms | p99 ms | longest ms |\n|---|---|---|---|")
    print(f"| `quorate join`, until the server is a node | {ms(statistics.median(took))} | {ms(percentile(took, 99))} | {ms(max(took))} |")
    cluster.stop()


PASSWORD = "correct horse battery"
OTHERS = "10.77.0.200"


def connect(i, source=None):
    return http.client.HTTPSConnection(f"10.77.0.{i + 1}", 7000, timeout=30, source_address=source and (source, 0),
                                       context=ssl._create_unverified_context())


def ask(connection, method, path, body=None, token=None):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    connection.request(method, path, json.dumps(body) if body else None, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def guess(i, seconds, rate=20):
    """Guesses at one node, in its namespace: in turn at one account, and at another from another address each
    time, which is not throttled and costs the server a hash. Prints how often each status was the answer."""
    began, answers = time.monotonic(), {}
    for number in itertools.count():
        if (wait := began + number / rate - time.monotonic()) > 0:
            time.sleep(wait)
        if time.monotonic() > began + seconds:
            break
        user, source = ("victim", None) if number % 2 else (f"user{i}x{number}", f"127.{i + 1}.{number >> 8}.{number & 255}")
        with contextlib.closing(connect(i, source)) as connection:
            status, _ = ask(connection, "POST", "/v1/login", {"user": user, "password": "wrong password", "token": True})
        answers[status] = answers.get(status, 0) + 1
    print(json.dumps(answers))


def calls(token, nodes, seconds):
    """Asks each node in turn for what others ask, and logs in now and then, from an address that nobody guesses
    from. Prints how long each answer took, in seconds, by request."""
    connections = [connect(i, OTHERS) for i in range(nodes)]
    bodies = {"GET /v1/status": None, "POST /v1/db/exec": {"sql": "INSERT INTO t VALUES (1)"},
              "POST /v1/login": {"user": "honest", "password": PASSWORD, "token": True}}
    took = {request: [] for request in bodies}
    until = time.monotonic() + seconds
    for round in itertools.count():
        if time.monotonic() > until:
            break
        for i, connection in enumerate(connections):
            for request, body in bodies.items():
                if request == "POST /v1/login" and round % (3 * nodes) != 3 * i:
                    continue
                began = time.monotonic()
                status, answer = ask(connection, *request.split(), body, token)
                took[request].append(time.monotonic() - began)
                if status != 200:
                    sys.exit(f"{request}: {status} {answer}")
            time.sleep(0.005)
    print(json.dumps(took))


def guessing(network, nodes=min(NODES, 5), seconds=30):
    cluster = Cluster(network, nodes=nodes)
    sh(*inside(network.nodes[0], "ip", "addr", "add", f"{OTHERS}/24", "dev", "q0"))
    with open(f"{cluster.dir}/password", "w") as file:
        file.write(PASSWORD)
    local = ["--server", f"unix:{cluster.dir}/0/api.sock"]
    for user in ["victim", "honest"]:
        cluster.cli(0, *local, "user", "create", user, "--role", "admin", "--password-file", file.name)
    cluster.cli(0, *local, "db", "exec", "CREATE TABLE t (n INTEGER)")
    made = cluster.cli(0, *local, "token", "create", "bench", "--user", "honest", "--scope", "cluster-read", "--scope",
                       "sql-write", "-o", "json")
    token = json.loads(made)["token"]
    self = [sys.executable, __file__]
    call = lambda: json.loads(sh(*inside(network.nodes[0], *self, "calls", token, str(nodes), str(seconds))))
    without = call()
    guessers = [subprocess.Popen(inside(network.nodes[i], *self, "guess", str(i), str(seconds + 2)), stdout=subprocess.PIPE)
                for i in range(nodes)]
    during = call()
    answers = [json.loads(guesser.communicate()[0]) for guesser in guessers]
    total = lambda status: sum(answer.get(status, 0) for answer in answers) / (seconds + 2)
    print(f"\nGuesses a second at {nodes} nodes: {total('401'):.0f} compared, {total('429'):.0f} throttled, {total('503'):.0f} refused as too many\n")
    print("| p99, guessing ÷ not | call | p50 / p99 ms | while passwords are guessed | calls |\n|---|---|---|---|---|")
    for request in without:
        of = lambda took: f"{statistics.median(took) * 1000:.1f} / {percentile(took, 99) * 1000:.1f}"
        ratio = percentile(during[request], 99) / percentile(without[request], 99)
        print(f"| **{ratio:.2f}×** | `{request}` | {of(without[request])} | {of(during[request])} | {len(without[request])}, {len(during[request])} |")
    cluster.stop()


if sys.argv[1:2] == ["count"]:
    count(float(sys.argv[2]))
    sys.exit()
if sys.argv[1:2] == ["guess"]:
    guess(int(sys.argv[2]), float(sys.argv[3]))
    sys.exit()
if sys.argv[1:2] == ["calls"]:
    calls(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    sys.exit()
measured(Network(NODES), {"gone": gone, "alarms": alarms, "idle": idle, "join": join, "guessing": guessing})
