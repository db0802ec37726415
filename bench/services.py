"""Services on real nodes, for benches. The workload writes who it is, its epoch and CLOCK_BOOTTIME each
millisecond, appending to one file of its service: what shows how long nothing ran, and whether two copies ever ran
at once."""
import contextlib, json, os, signal, statistics, sys, time
from rig import Cluster, ms, sh

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


class Written:
    """What the copies of a service have written so far."""

    def __init__(self, path):
        self.path, self.read, self.known = path, 0, {}

    def spans(self):
        """Of each process the first moment and the last."""
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as file:
            file.seek(self.read)
            lines, _, _ = file.read().rpartition(b"\n")
            self.read += len(lines) + 1 if lines else 0
            for line in lines.splitlines():
                if len(words := line.split()) == 4:
                    at, who = float(words[3]), tuple(words[:3])
                    first, last = self.known.get(who, (at, at))
                    self.known[who] = (min(first, at), max(last, at))
        return self.known


def overlaps(spans):
    """How long each copy ran although another still did, of spans in the order of their beginnings."""
    end, found = float("-inf"), []
    for first, last in spans:
        if first <= end:
            found.append(min(end, last) - first)
        end = max(end, last)
    return found


class Services(Cluster):
    """All nodes are managers, so that any of them may lead."""

    def __init__(self, network, failover=10):
        super().__init__(network, managers=len(network.nodes))
        self.written, self.patience = {}, 6 * failover
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
        return sorted(self.written.setdefault(name, Written(f"{self.dir}/{name}.ran")).spans().values())

    def gap(self, name, known):
        """For how long nothing ran, between the last of those that were known and whoever came next."""
        self.until(lambda: len(self.ran(name)) > known, f"{name} runs again", self.patience)
        spans = self.ran(name)
        for length in overlaps(spans):
            sys.exit(f"two copies of {name} ran at once, for {ms(length)} ms")
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
