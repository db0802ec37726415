// The shapes of the server's answers (crates/quorate-api/src/view.rs) and the one mutation that
// this page makes. Fields are only ever added there, so unknown ones are ignored here.

/** Microseconds since 1970, UTC. */
export type WallTime = number;

export type ClusterHealth = "healthy" | "degraded" | "no-quorum";
export type NodeState = "joined" | "unreachable" | "down" | "removed";
export type NodeMode = "active" | "passive";
export type Role = "manager" | "worker" | "gateway";

export interface ClusterView {
  id: string;
  name: string;
  health: ClusterHealth;
  summary: string;
  leader: string | null;
  term: number;
  voters: number;
  voters_joined: number;
  can_lose: number;
  applied: number;
  version: string;
}

export interface NodeView {
  id: string;
  name: string;
  state: NodeState;
  mode: NodeMode | null;
  roles: Role[];
  api: string;
  link: string;
  generation: number;
  since: WallTime;
  lag: number | null;
  replicas: number;
}

export interface RouteSpec {
  listen: string;
  host: string;
  path: string;
  service: string;
  balance: string;
}

export interface ReplicaView {
  id: string;
  ordinal: number;
  node: string;
  node_id: string;
  /** One of the words in `ReplicaView::state`; a newer server may send others. */
  state: string;
  pid: number | null;
  addresses: Record<string, string>;
  version: number;
  restarts: number;
  started_at: WallTime | null;
  detail: string;
  log_dir: string;
}

export interface ServiceView {
  name: string;
  mode: string;
  driver: string;
  want: number;
  healthy: number;
  version: number;
  routes: RouteSpec[];
  replicas: ReplicaView[];
  held: string[];
}

export interface GatewayView {
  name: string;
  url: string;
  fed_by: string;
  revision: number;
  requests: number;
  failed: number;
}

export interface EventView {
  index: number;
  at: WallTime;
  kind: string;
  text: string;
  node: string | null;
  service: string | null;
}

export interface Overview {
  sequence: number;
  answered_by: string;
  cluster: ClusterView;
  nodes: NodeView[];
  services: ServiceView[];
  gateways: GatewayView[];
  events: EventView[];
}

/** What every failed request answers. */
export interface Problem {
  code: string;
  message: string;
  fix?: string;
}

/** Most replicas that one service may have (`ServiceSpec::MAX_REPLICAS`). */
export const MAX_REPLICAS = 1000;

/**
 * Asks for another number of replicas. Answers the problem, or `null` when it was accepted.
 *
 * `unreachable` is what a failed connection means in words: the request may still have been done.
 */
export async function scale(service: string, replicas: number, unreachable: Problem): Promise<Problem | null> {
  try {
    const answer = await fetch(`/v1/services/${encodeURIComponent(service)}/scale`, {
      method: "POST",
      credentials: "same-origin",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ replicas }),
    });
    return answer.ok ? null : readProblem(answer.status, await answer.text());
  } catch {
    return unreachable;
  }
}

/** The server's problem; a bare status when something between us and it answered instead. */
export function readProblem(status: number, body: string): Problem {
  try {
    const problem: unknown = JSON.parse(body);
    if (typeof problem === "object" && problem !== null && "message" in problem && typeof problem.message === "string") {
      const text = (key: string): string => {
        const value = (problem as Record<string, unknown>)[key];
        return typeof value === "string" ? value : "";
      };
      return { code: text("code"), message: problem.message, fix: text("fix") };
    }
  } catch {
    // Not JSON: said below.
  }
  return { code: `http-${status}`, message: `The server answered ${status}.` };
}
