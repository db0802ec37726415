import { describe, expect, it } from "vitest";
import { nodes as texts } from "../../src/en/nodes";
import type { ReplicaView, ServiceView } from "../../src/lib/api";
import { filtered, hostOf, isBack, losses, matrix, modeOf, offered, restartOrder, sorted, tolerance } from "../../src/lib/members";
import { readOverview } from "../../src/lib/api";
import { layout } from "../../src/lib/topology";
import { aNode, anOverview } from "./samples";

const names = (nodes: { name: string }[]): string => nodes.map(({ name }) => name).join(" ");

function aService(name: string, on: string[], want = on.length): ServiceView {
  const replicas = on.map((node, i): ReplicaView => ({
    id: `${name}-${i}`, ordinal: i + 1, node, node_id: `id-${node.slice(1)}`, state: "healthy", pid: 1, addresses: {},
    version: 1, restarts: 0, started_at: 0, detail: "", log_dir: "",
  }));
  return { name, mode: "replicated", driver: "process", want, healthy: on.length, version: 1, routes: [], replicas, held: [], spec: {} };
}

describe("K2: the mode column", () => {
  it("says Active, Passive or Standby of a manager and nothing of others", () => {
    expect(modeOf(aNode(1))).toBe("active");
    expect(modeOf(aNode(2))).toBe("passive");
    expect(modeOf(aNode(2, { standing: "standby" }))).toBe("standby");
    expect(modeOf(aNode(2, { mode: null, standing: null, roles: ["worker"] }))).toBeNull();
  });
});

describe("the order of nodes", () => {
  const nodes = [
    aNode(10, { alias: "b", applied: 5, state: "down" }), aNode(9, { alias: null, applied: null }),
    aNode(2, { alias: "a", applied: 50, mode: null, standing: null }),
  ];

  it("counts as people do", () => {
    expect(names(sorted(nodes, { column: "name", descending: false }))).toBe("n2 n9 n10");
    expect(names(sorted(nodes, { column: "name", descending: true }))).toBe("n10 n9 n2");
  });

  it("puts what is missing last in both directions", () => {
    expect(names(sorted(nodes, { column: "alias", descending: false }))).toBe("n2 n10 n9");
    expect(names(sorted(nodes, { column: "alias", descending: true }))).toBe("n10 n2 n9");
    expect(names(sorted(nodes, { column: "applied", descending: true }))).toBe("n2 n10 n9");
  });

  it("puts what needs a look first by state", () => {
    expect(names(sorted(nodes, { column: "state", descending: false }))).toBe("n10 n2 n9");
  });
});

it("finds nodes by any of their words", () => {
  const nodes = [aNode(1, { alias: "msk-1" }), aNode(2, { standing: "standby", api: "https://192.0.2.7:7000" }), aNode(3, { state: "down" })];
  expect(names(filtered(nodes, "MSK"))).toBe("n1");
  expect(names(filtered(nodes, "standby 192.0.2.7"))).toBe("n2");
  expect(names(filtered(nodes, "down"))).toBe("n3");
  expect(filtered(nodes, "")).toHaveLength(3);
  expect(filtered(nodes, "nothing-like-it")).toHaveLength(0);
});

describe("what is offered for a node", () => {
  const { cluster } = anOverview();
  const all = ["manager-control", "member-write"];

  it("follows from the permissions, also for passive managers", () => {
    const nothing = { alias: false, roles: false, activate: false, stop: false, start: false, restart: false, restartActive: false, remove: false };
    expect(offered(aNode(2), cluster, [])).toEqual(nothing);
    expect(offered(aNode(2), cluster, ["manager-control"])).toEqual({ ...nothing, alias: true, activate: true, stop: true, restart: true });
    expect(offered(aNode(2), cluster, ["member-write"])).toEqual({ ...nothing, roles: true, remove: true });
  });

  it("K11: leadership goes to a passive manager that votes and answers, and to no other", () => {
    expect(offered(aNode(2), cluster, all).activate).toBe(true);
    expect(offered(aNode(1), cluster, all).activate).toBe(false);
    expect(offered(aNode(2, { standing: "standby" }), cluster, all).activate).toBe(false);
    expect(offered(aNode(2, { state: "unreachable" }), cluster, all).activate).toBe(false);
    expect(offered(aNode(2, { mode: null, standing: null }), cluster, all).activate).toBe(false);
    expect(offered(aNode(2), { ...cluster, leader: null }, all).activate).toBe(false);
  });
});

describe("K4, K5: managers", () => {
  const { cluster } = anOverview();
  const offer = (node: Parameters<typeof offered>[0]) => {
    const { activate, stop, start, restart, restartActive } = offered(node, cluster, ["manager-control"]);
    return { activate, stop, start, restart, restartActive };
  };

  it("the active one is restarted by an act of its own, and not stopped", () => {
    expect(offer(aNode(1))).toEqual({ activate: false, stop: "active", start: false, restart: false, restartActive: true });
  });

  it("a passive one is stopped and restarted, a stopped one started", () => {
    expect(offer(aNode(2, { standing: "standby" }))).toEqual({ activate: false, stop: true, start: false, restart: true, restartActive: false });
    expect(offer(aNode(2, { standing: "stopped" }))).toEqual({ activate: false, stop: false, start: true, restart: false, restartActive: false });
  });

  it("a node that is no manager is none of these", () => {
    const worker = aNode(4, { mode: null, standing: null, roles: ["worker"] });
    expect(offer(worker)).toEqual({ activate: false, stop: false, start: false, restart: false, restartActive: false });
  });

  it("all passive ones are restarted in turn, the one that serves the page last", () => {
    const overview = { ...anOverview(), answered_by: "n2" };
    overview.nodes = [aNode(1), aNode(2), aNode(10), aNode(9, { standing: "standby" }), aNode(4, { state: "down" }), aNode(5, { standing: "stopped" })];
    expect(names(restartOrder(overview))).toBe("n9 n10 n2");
  });

  it("one is back when it was started anew, is heard and has caught up", () => {
    const before = aNode(2, { generation: 3 });
    const at = (more: Parameters<typeof aNode>[1]) => isBack(before, { ...anOverview(), nodes: [aNode(2, more)] });
    expect(at({ generation: 3 })).toBe(false);
    expect(at({ generation: 4, state: "unreachable" })).toBe(false);
    expect(at({ generation: 4, lag: 5_000 })).toBe(false);
    expect(at({ generation: 4, applied: null, lag: null })).toBe(false);
    expect(at({ generation: 4 })).toBe(true);
    expect(isBack(before, { ...anOverview(), nodes: [] })).toBe(false);
  });
});

describe("K6: high availability off", () => {
  const { voters: _voters, voters_joined: _joined, can_lose: _lose, ...rest } = anOverview().cluster;
  const cluster = { ...rest, ha: false };

  it("a node that is alone is restarted, gets roles and an alias, and nothing else is offered", () => {
    const alone = aNode(1, { mode: null, standing: null, lag: null });
    expect(offered(alone, cluster, ["manager-control", "member-write"])).toEqual({
      alias: true, roles: true, activate: false, stop: false, start: false, restart: true, restartActive: false, remove: false,
    });
  });

  it("no node is in the middle of the picture", () => {
    const overview = { ...anOverview(), cluster, nodes: [aNode(1, { mode: null, standing: null })] };
    expect(layout(overview, 900).nodes.map(({ leader }) => leader)).toEqual([false]);
  });

  it("an older node, which has no switch, has it on", () => {
    const old = JSON.stringify({ ...anOverview(), cluster: { ...anOverview().cluster, ha: undefined } });
    expect(readOverview(old).cluster.ha).toBe(true);
  });
});

describe("U4: what may be lost", () => {
  it("is the same for an even number as for one fewer", () => {
    expect([1, 2, 3, 4, 5, 6, 7, 8, 9].map(losses)).toEqual([0, 0, 1, 1, 2, 2, 3, 3, 4]);
  });

  it("names the majority, who is away, and who stands by", () => {
    const overview = anOverview({ voters: 3, voters_joined: 2, can_lose: 0 });
    overview.nodes = [aNode(1), aNode(2, { state: "down" }), aNode(3), aNode(10, { standing: "standby" }), aNode(9, { standing: "standby" })];
    const known = tolerance(overview);
    expect(known).toEqual({ voters: 3, majority: 2, answering: 2, canLose: 0, away: ["n2"], standbys: ["n9", "n10"], stopped: [] });
    expect(texts.toleranceHead(known)).toBe("No other voting manager may be lost now");
    expect(texts.toleranceWhy(known)).toBe("Decisions need more than half of the voting managers: 2 of 3, and 2 answer (not n2).");
    expect(texts.toleranceStandby(known.standbys)).toContain("n9, n10 are standby");
  });

  it("says so when there is no majority", () => {
    const overview = anOverview({ voters: 3, voters_joined: 1, can_lose: 0, leader: null });
    overview.nodes = [aNode(1), aNode(2, { state: "down" }), aNode(3, { state: "unreachable" })];
    const known = tolerance(overview);
    expect(texts.toleranceHead(known)).toBe("No majority: nothing can be decided");
    expect(texts.toleranceFix(known)).toContain("Start n2, n3 again");
  });

  it("of a single manager leads to two more", () => {
    const known = tolerance({ ...anOverview({ voters: 1, voters_joined: 1, can_lose: 0 }), nodes: [aNode(1)] });
    expect(texts.toleranceHead(known)).toBe("The only voting manager may not be lost");
    expect(texts.toleranceFix(known)).toContain("Two more managers");
  });
});

describe("K2: the matrix of nodes and services", () => {
  it("has each replica once, where it is", () => {
    const overview = anOverview();
    overview.services = [aService("web", ["n1", "n3", "n3"]), aService("db", ["n2"])];
    const { services, rows } = matrix(overview);
    expect(services).toEqual(["web", "db"]);
    expect(rows.map(({ node, cells }) => [node.name, ...cells.map((cell) => cell.length)])).toEqual([["n1", 1, 0], ["n2", 0, 1], ["n3", 2, 0]]);
  });

  it("leaves out a node that left, unless something is still said to be there", () => {
    const overview = anOverview();
    overview.nodes = [aNode(1), aNode(2, { state: "removed" }), aNode(3, { state: "removed" })];
    overview.services = [aService("web", ["n3"])];
    expect(names(matrix(overview).rows.map(({ node }) => node))).toBe("n1 n3");
  });
});

it("shows an address without its scheme, and what is none as it is", () => {
  expect(hostOf("https://192.0.2.7:7000/")).toBe("192.0.2.7:7000");
  expect(hostOf("")).toBe("");
});

it("names its commands as the command line has them", () => {
  expect(texts.addCommand("manager", "1h", "")).toBe("quorate add-node");
  expect(texts.addCommand("worker", "15m", "n7")).toBe("quorate add-node --role worker --ttl 15m --name n7");
});
