// The shapes of the server's answers (crates/quorate-api/src/view.rs). Fields are only ever added
// there, so unknown ones are ignored here.

/** Microseconds since 1970, UTC. */
export type WallTime = number;

export type ClusterHealth = "healthy" | "degraded" | "no-quorum";
export type NodeState = "joined" | "unreachable" | "down" | "removed";
export type NodeMode = "active" | "passive";
/** A manager's part in decisions. */
export type Standing = "voter" | "standby" | "stopped";
export type Role = "manager" | "worker" | "gateway";

export interface ClusterView {
  id: string;
  name: string;
  health: ClusterHealth;
  summary: string;
  leader: string | null;
  term: number;
  /** Whether high availability is on. Off, the one node is alone, and what follows about voters is absent. */
  ha: boolean;
  voters?: number;
  voters_joined?: number;
  can_lose?: number;
  /** While the voters change, who decides meanwhile. */
  voters_change?: string | null;
  /** What the Active node does about the voters next, and why. */
  voters_next?: { step: "change" | "hand-over" | "wait"; why: string } | null;
  /** Managers are only on nodes that have this role too. */
  manager_requires?: Role | null;
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
  alias: string | null;
  standing: Standing | null;
  clock_ahead_us: number | null;
  applied: number | null;
  version: string | null;
  /** The directory on it with its own log. */
  log_dir: string | null;
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
  /** Of a copy of an active-passive service: one of the words in `ReplicaView::role`. */
  role?: string;
  pid: number | null;
  addresses: Record<string, string>;
  version: number;
  restarts: number;
  started_at: WallTime | null;
  detail: string;
  log_dir: string;
  /** What it uses; absent where that is not measured. */
  usage?: { cpu_millis: number; memory_bytes?: number };
}

/** Who may run what runs once. Spans are text, like `1m30s`. */
export interface LeaseView {
  failover: string;
  holder?: string;
  epoch: number;
  keeps?: boolean;
  fenced?: boolean;
  last_failover?: { from: string; to: string; took: string; at: WallTime };
}

export interface DeploymentView {
  version: number;
  from?: number;
  /** One of the words in `DeploymentView::stage`; a newer server may send others. */
  stage: string;
  since: WallTime;
  updated: number;
  why?: string;
  held?: string;
}

export interface AutoscaleTable {
  enabled?: boolean;
  min: number;
  max: number;
}

/** Why a service has as many copies as it has. */
export interface AutoscaleView {
  found?: { min: number; max: number; load: string | null; readings: { metric: string; percent: number }[]; why: string[] };
}

/** A node that is away on purpose. */
export interface DrillView {
  id: number;
  node: string;
  away: string;
  by: string | null;
  began: WallTime;
  over: boolean;
  returned: string | null;
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
  /** Absent: it is to run. */
  stopped?: { since: WallTime; by_schedule: boolean; by?: string };
  /** What its schedule does next. */
  next?: { at: WallTime; starts: boolean };
  lease?: LeaseView;
  deployment?: DeploymentView;
  spec: { autoscale?: AutoscaleTable };
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
  details?: Record<string, unknown>;
}

/** Most replicas that one service may have (`ServiceSpec::MAX_REPLICAS`). */
export const MAX_REPLICAS = 1000;

/** An overview as the stream sends it. Of a node that is older than the switch, high availability is on. */
export function readOverview(text: string): Overview {
  const overview = JSON.parse(text) as Overview;
  overview.cluster.ha ??= true;
  return overview;
}
