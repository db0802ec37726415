// A small cluster that only talks: the built console, the stream, the scale endpoint and health on a
// few loopback ports, with the server's headers. For the browser test, and for work on the console:
//
//   node tests/mock.mjs [SCENE]        SCENE is one of the keys of `scenes`
//
// A node can be killed, so that the page has something to move away from.

import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { dirname, extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

const built = join(dirname(fileURLToPath(import.meta.url)), "../../crates/quorate-api/console");
const types = { ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml" };

const micros = (secondsAgo) => (Date.now() - secondsAgo * 1000) * 1000;
const uuid = (n) => `00000000-0000-4000-8000-${String(n).padStart(12, "0")}`;

function node(i, more = {}) {
  return {
    id: uuid(i), name: `n${i}`, state: "joined", mode: i === 1 ? "active" : "passive",
    roles: ["manager", "worker"], api: "", link: `127.0.0.1:${8100 + i}`, generation: 1,
    since: micros(3 * 3600 + 312), lag: 0, replicas: 0, alias: null, standing: "voter", clock_ahead_us: i === 1 ? null : 420 * i,
    applied: 1284, version: "0.1.0", ...more,
  };
}

const PERMISSIONS = [
  "cluster-read", "log-read", "service-apply", "service-scale", "service-remove", "manager-control", "member-write",
  "sql-read", "sql-write", "gateway-feed", "user-read", "user-write", "role-write", "session-read", "session-revoke",
  "token-read", "token-revoke", "audit-read",
];

const tokens = () => [
  { id: uuid(71), role: "manager", created: micros(7200), expires: micros(3600) },
  { id: uuid(72), role: "worker", name: "n7", created: micros(600), expires: micros(-3000) },
  { id: uuid(73), role: "gateway", created: micros(900), expires: micros(-2700), used_by: "n5", used_at: micros(700) },
];

let serial = 100;
function replica(service, ordinal, on, state = "healthy", more = {}) {
  serial += 1;
  const runs = !["pending", "unknown", "stopped", "failed"].includes(state);
  return {
    id: uuid(serial), ordinal, node: on, node_id: uuid(Number(on.slice(1))), state,
    pid: runs ? 41_000 + serial : null, addresses: runs ? { http: `127.0.0.1:${30_000 + serial}` } : {},
    version: 1, restarts: 0, started_at: runs ? micros(1830) : null, detail: "",
    log_dir: `/var/lib/quorate/services/${service}/${uuid(serial)}/log/`, ...more,
  };
}

function service(name, want, replicas, more = {}) {
  return {
    name, mode: "replicated", driver: "process", want, version: 1,
    healthy: replicas.filter(({ state }) => state === "healthy").length,
    routes: [{ listen: "default", host: "*", path: "/", service: name, balance: "leastconn" }],
    replicas, held: [], spec: {}, ...more,
  };
}

/** Why it has so many replicas. */
const autoscale = (name) => ({
  service: name, on: true, want: 4,
  found: {
    min: 2, max: 8, load: "moderate", readings: [{ metric: "rps", mean: 92_500, target: 100_000, percent: 92, copies: 4, right: 4 }],
    right: 4, to: 4, why: ["that is near enough to the target; the number stays"], changes: [],
  },
});

const history = [
  [4, "service-healthy", "demo has all 3 replicas healthy", null, "demo"],
  [5, "replica-placed", "demo.3 is placed on n3", "n3", "demo"],
  [5, "replica-placed", "demo.2 is placed on n2", "n2", "demo"],
  [5, "replica-placed", "demo.1 is placed on n1", "n1", "demo"],
  [6, "service-applied", "demo is wanted with 3 replicas", null, "demo"],
  [312, "node-joined", "n3 joined", "n3", null],
  [312, "node-joined", "n2 joined", "n2", null],
  [314, "leader-elected", "n1 is Active, leader of term 2", "n1", null],
  [315, "node-joined", "n1 joined", "n1", null],
].map(([age, kind, text, about, name], i) => ({ index: 40 - i, at: micros(age), kind, text, node: about, service: name }));

function cluster(more = {}) {
  return {
    id: uuid(9000), name: "dev", health: "healthy", summary: "3 of 3 managers are joined, one may be lost. All services are healthy.",
    leader: "n1", term: 2, ha: true, voters: 3, voters_joined: 3, can_lose: 1, applied: 1284, version: "0.1.0", ...more,
  };
}

const gateway = { name: "gw", url: "http://127.0.0.1:8000/", fed_by: "n2", revision: 17, requests: 48_213, failed: 0 };

export const scenes = {
  calm: () => ({
    cluster: cluster(),
    nodes: [1, 2, 3].map((i) => node(i)),
    services: [
      service("demo", 3, [replica("demo", 1, "n1"), replica("demo", 2, "n2"), replica("demo", 3, "n3")]),
      service("report", 2, [replica("report", 1, "n2"), replica("report", 2, "n3", "healthy", { restarts: 2 })], {
        version: 4, routes: [{ listen: ":8443", host: "report.example.com", path: "/v2", service: "report", balance: "leastconn" }],
        deployment: { version: 4, from: 3, stage: "rolling", since: micros(20), updated: 1 },
      }),
      service("shop", 4, [1, 2, 3, 1].map((on, i) => replica("shop", i + 1, `n${on}`, "healthy", { usage: { cpu_millis: 340 + 10 * i, memory_bytes: (180 + i) << 20 } })), {
        spec: { autoscale: { min: 2, max: 8, rps: 100 } },
      }),
      service("ledger", 1, [replica("ledger", 1, "n2", "healthy", { usage: { cpu_millis: 20, memory_bytes: 3 << 19 } })], {
        mode: "singleton", routes: [],
        lease: { failover: "30s", holder: "n2", epoch: 7, last_failover: { from: "n1", to: "n2", took: "18s400ms", at: micros(312) } },
      }),
    ],
    drills: [{ id: 3, node: "n3", away: "30s", by: "ops", began: micros(12), over: false, returned: null }],
    gateways: [gateway],
    events: history,
  }),
  trouble: () => ({
    cluster: cluster({
      health: "degraded", leader: "n2", term: 3, voters_joined: 2, can_lose: 0,
      summary: "n1 is down. 2 of 3 managers are joined, none may be lost. web has 2 of 4 replicas.",
    }),
    nodes: [
      node(1, { state: "down", mode: "passive", alias: "msk-1", since: micros(14), lag: null, applied: null }),
      node(2, { mode: "active", alias: "msk-2" }),
      node(3, { lag: 4012, applied: 81_234 - 4012, version: "0.0.9" }),
      node(4, { state: "unreachable", mode: null, standing: null, roles: ["worker"], since: micros(3), lag: null, applied: null }),
      node(5, { state: "removed", mode: null, standing: null, roles: ["worker"], since: micros(7200), lag: null, applied: null }),
      node(6, { standing: "standby", alias: "a name that somebody made as long as an alias may be: 63 signs." }),
    ],
    services: [
      service("demo", 3, [replica("demo", 2, "n2"), replica("demo", 3, "n3"), replica("demo", 4, "n2", "starting")]),
      service("web", 4, [
        replica("web", 1, "n2"), replica("web", 2, "n3"),
        replica("web", 3, "n3", "backing-off", { restarts: 5, detail: "exit status 1 after 0.2 s: bind: address already in use; next start in 6 s" }),
        replica("web", 5, "n4", "unknown"),
      ], { held: ["web.4 is not placed: port 8081 is taken on n2 and n3", "web.5 stays on n4 until n4 is down (in 24 s)"] }),
      service("batch", 1, [replica("batch", 1, "n3", "failed", { detail: "the program /opt/batch/run does not exist" })], { routes: [] }),
    ],
    gateways: [{ ...gateway, failed: 3 }, { ...gateway, name: "gw-2", fed_by: "n3", url: "http://127.0.0.1:8010/", requests: 912 }],
    events: [
      { index: 71, at: micros(2), kind: "service-degraded", text: "web has 2 of 4 replicas healthy", node: null, service: "web" },
      { index: 70, at: micros(9), kind: "replica-placed", text: "demo.4 is placed on n2", node: "n2", service: "demo" },
      { index: 69, at: micros(13), kind: "leader-elected", text: "n2 is Active, leader of term 3", node: "n2", service: null },
      { index: 68, at: micros(14), kind: "node-down", text: "n1 is down", node: "n1", service: null },
      ...history,
    ],
  }),
  empty: () => ({
    cluster: cluster({ voters: 1, voters_joined: 1, can_lose: 0, summary: "1 of 1 manager is joined, none may be lost. There is no service." }),
    nodes: [node(1)], services: [], gateways: [], events: [],
  }),
  alone: () => ({
    cluster: { ...cluster({ ha: false, summary: "1 node" }), voters: undefined, voters_joined: undefined, can_lose: undefined },
    nodes: [node(1, { mode: null, standing: null, lag: null })], services: [], gateways: [], events: [],
  }),
  crowd: () => ({
    cluster: cluster({
      name: "prod", leader: null, health: "no-quorum", voters: 7, voters_joined: 3,
      summary: "No leader: 3 of 7 managers are joined and 4 are needed. Reads are old, writes wait.",
    }),
    nodes: [1, 2, 3, 4, 5, 6, 7, 8, 9].map((i) =>
      node(i, { mode: i > 7 ? null : "passive", standing: i > 7 ? null : "voter", roles: i > 7 ? ["worker"] : ["manager"], state: i > 3 && i < 8 ? "down" : "joined" })),
    services: [service("web", 40, Array.from({ length: 40 }, (_, i) => replica("web", i + 1, `n${1 + (i % 9)}`)))],
    gateways: [gateway], events: history,
  }),
};

/** Starts `count` nodes. `set` and `change` go to every open stream. */
export async function startMock({ count = 3, scene = "calm" } = {}) {
  let state = scenes[scene]();
  let sequence = 1;
  const servers = [];

  const overview = (i) => {
    for (const view of state.nodes) {
      view.replicas = state.services.flatMap(({ replicas }) => replicas).filter(({ node: on }) => on === view.name).length;
      const server = servers[Number(view.name.slice(1)) - 1];
      view.api = server?.url ?? `http://127.0.0.1:9/`;
    }
    const { cluster, nodes, services, gateways, events } = state;
    return JSON.stringify({ sequence, answered_by: `n${i + 1}`, cluster, nodes, services, gateways, events });
  };
  const publish = () => {
    sequence += 1;
    servers.forEach(({ streams }, i) => {
      for (const stream of streams) stream.write(`event: overview\ndata: ${overview(i)}\n\n`);
    });
  };
  const change = (edit) => {
    edit(state);
    publish();
  };

  function scale(name, wanted) {
    const found = state.services.find((one) => one.name === name);
    if (!found) return [404, { code: "unknown-service", message: `There is no service ${name}.`, fix: "quorate service list" }];
    if (!Number.isInteger(wanted) || wanted < 1 || wanted > 100) {
      return [400, { code: "invalid", message: `replicas is ${wanted}; this cluster has room for 100.`, fix: "Ask for at most 100, or add a node: quorate add-node" }];
    }
    change(() => {
      const from = found.want;
      found.want = wanted;
      while (found.replicas.length > wanted) found.replicas.pop();
      while (found.replicas.length < wanted) {
        const ordinal = found.replicas.length + 1;
        found.replicas.push(replica(name, ordinal, `n${1 + (ordinal % state.nodes.length)}`, "starting"));
      }
      state.events.unshift({ index: ++state.cluster.applied, at: micros(0), kind: "service-scaled", text: `${name} is scaled from ${from} to ${wanted}`, node: null, service: name });
      found.healthy = found.replicas.filter((one) => one.state === "healthy").length;
    });
    setTimeout(() => change(() => {
      for (const one of found.replicas) if (one.state === "starting") one.state = "healthy";
      found.healthy = found.replicas.length;
    }), 250);
    return [200, { index: state.cluster.applied }];
  }

  async function answer(i, request, response) {
    const { pathname } = new URL(request.url, "http://localhost");
    const json = (status, body) => {
      response.writeHead(status, { "content-type": "application/json" });
      response.end(JSON.stringify(body));
    };
    if (pathname === "/v1/health") return json(200, {});
    if (pathname === "/v1/me") return json(200, { who: "anyone", roles: [], permissions: PERMISSIONS });
    if (pathname === "/v1/join-tokens") return json(200, tokens());
    if (pathname === "/v1/drills") return json(200, { drills: state.drills ?? [], applied: state.cluster.applied });
    if (/^\/v1\/services\/[^/]+\/autoscale$/.test(pathname)) return json(200, autoscale(pathname.split("/")[3]));
    if (["/v1/users", "/v1/roles"].includes(pathname)) return json(200, []);
    if (pathname === "/v1/status") {
      response.writeHead(200, { "content-type": "application/json" });
      return response.end(overview(i));
    }
    if (pathname === "/v1/stream") {
      response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
      response.write(`event: overview\ndata: ${overview(i)}\n\n`);
      servers[i].streams.add(response);
      request.on("close", () => servers[i].streams.delete(response));
      return undefined;
    }
    const scaling = /^\/v1\/services\/([^/]+)\/scale$/.exec(pathname);
    if (scaling && request.method === "POST") {
      let body = "";
      for await (const chunk of request) body += chunk;
      return json(...scale(decodeURIComponent(scaling[1]), JSON.parse(body).replicas));
    }
    if (!pathname.startsWith("/ui/")) {
      response.writeHead(307, { location: "/ui/" });
      return response.end();
    }
    const path = normalize(pathname.slice("/ui".length));
    const file = path === "/" ? "/index.html" : path;
    try {
      const content = readFileSync(join(built, file));
      const others = servers.map(({ url }) => url.slice(0, -1)).join(" ");
      response.writeHead(200, {
        "content-type": types[extname(file)] ?? "application/octet-stream",
        "content-security-policy": `default-src 'self'; connect-src 'self' ${others}; base-uri 'none'; form-action 'self'; frame-ancestors 'none'`,
        "x-content-type-options": "nosniff",
      });
      return response.end(content);
    } catch {
      return json(404, { code: "not-found", message: `There is no ${pathname}.` });
    }
  }

  for (let i = 0; i < count; i += 1) {
    const server = createServer((request, response) => void answer(i, request, response));
    await new Promise((done) => server.listen(0, "127.0.0.1", done));
    servers.push({ server, url: `http://127.0.0.1:${server.address().port}/`, streams: new Set() });
  }
  const kill = (i) => {
    servers[i].server.closeAllConnections();
    servers[i].server.close();
  };
  return {
    urls: servers.map(({ url }) => url),
    change,
    set: (name) => {
      state = scenes[name]();
      publish();
    },
    kill,
    stop: () => servers.forEach((_, i) => kill(i)),
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const mock = await startMock({ scene: process.argv[2] ?? "calm" });
  console.log(mock.urls.map((url) => `${url}ui/`).join("\n"));
}
