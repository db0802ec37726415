import type { ClusterView, GatewayView, NodeView, Overview } from "../../src/lib/api";

export function aNode(i: number, more: Partial<NodeView> = {}): NodeView {
  return {
    id: `id-${i}`, name: `n${i}`, state: "joined", mode: i === 1 ? "active" : "passive", roles: ["manager"],
    api: `http://127.0.0.1:${8000 + i}`, link: "", generation: 1, since: 0, lag: 0, replicas: 0,
    alias: null, standing: "voter", clock_ahead_us: null, applied: 1, version: "0.1.0", log_dir: null, ...more,
  };
}

export function aGateway(name: string, fed_by: string): GatewayView {
  return { name, url: "http://127.0.0.1:8000", fed_by, revision: 1, requests: 0, failed: 0 };
}

export function anOverview(cluster: Partial<ClusterView> = {}): Overview {
  return {
    sequence: 1,
    answered_by: "n1",
    cluster: {
      id: "c", name: "dev", health: "healthy", summary: "", leader: "n1", term: 1, ha: true, voters: 3, voters_joined: 3,
      can_lose: 1, voters_change: null, voters_next: null, manager_requires: null, applied: 1, version: "0.1.0", ...cluster,
    },
    nodes: [aNode(1), aNode(2), aNode(3)],
    services: [],
    gateways: [],
    events: [],
  };
}
