// What the Nodes page says about members: pure functions of the overview.

import type { ClusterView, NodeView, Overview, ReplicaView } from "./api";

export type Mode = "active" | "passive" | "standby" | "stopped";

/** The word in the mode column; `null` for a node that is no manager. */
export function modeOf(node: NodeView): Mode | null {
  if (node.mode === null || node.mode === "active") return node.mode;
  return node.standing === "standby" || node.standing === "stopped" ? node.standing : "passive";
}

/**
 * Passive managers in the order in which they are restarted: the one that serves this page comes
 * last, since the page may move away then.
 */
export function restartOrder({ nodes, answered_by }: Overview): NodeView[] {
  const passive = nodes.filter((node) => node.state === "joined" && (modeOf(node) === "passive" || modeOf(node) === "standby"));
  const last = (node: NodeView): number => (node.name === answered_by ? 1 : 0);
  return passive.sort((a, b) => last(a) - last(b) || natural(a.name, b.name));
}

/** Whether a node has been started anew and has caught up. */
export function isBack(before: NodeView, { nodes }: Overview): boolean {
  const now = nodes.find(({ id }) => id === before.id);
  return now !== undefined && now.state === "joined" && now.generation > before.generation && now.applied !== null && (now.lag ?? 0) < LAG_NOTABLE;
}

/** Less than this many entries behind is what a healthy follower is at any moment of a busy cluster. */
export const LAG_NOTABLE = 1000;

export function natural(a: string, b: string): number {
  return a.localeCompare(b, "en", { numeric: true });
}

export const COLUMNS = ["name", "alias", "mode", "state", "roles", "version", "applied", "replicas"] as const;
export type Column = (typeof COLUMNS)[number];

export interface Order {
  column: Column;
  descending: boolean;
}

const MODES: (Mode | null)[] = ["active", "passive", "standby", "stopped", null];
const STATES: NodeView["state"][] = ["down", "unreachable", "joined", "removed"];

/** Sorted by one column, then by name. A node without a value comes last, whatever the direction. */
export function sorted(nodes: readonly NodeView[], { column, descending }: Order): NodeView[] {
  const key = (node: NodeView): string | number | null => {
    switch (column) {
      case "name": return node.name;
      case "alias": return node.alias;
      case "mode": return MODES.indexOf(modeOf(node));
      case "state": return STATES.indexOf(node.state);
      case "roles": return [...node.roles].sort().join(" ");
      case "version": return node.version;
      case "applied": return node.applied;
      case "replicas": return node.replicas;
    }
  };
  return [...nodes].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === null || y === null) return x === y ? natural(a.name, b.name) : x === null ? 1 : -1;
    const order = typeof x === "number" && typeof y === "number" ? x - y : natural(String(x), String(y));
    return (descending ? -order : order) || natural(a.name, b.name);
  });
}

/** Nodes in which every word of `text` occurs somewhere. */
export function filtered(nodes: readonly NodeView[], text: string): NodeView[] {
  const words = text.toLowerCase().split(/\s+/);
  return nodes.filter((node) => {
    const hay = [node.name, node.alias, node.state, modeOf(node), ...node.roles, node.api, node.link, node.id, node.version];
    return words.every((word) => hay.join(" ").toLowerCase().includes(word));
  });
}

export interface Offered {
  alias: boolean;
  roles: boolean;
  activate: boolean;
  /** Stop the manager role; `active`: this one is not stopped. */
  stop: boolean | "active";
  start: boolean;
  restart: boolean;
  /** Restart the Active one, which hands over first. */
  restartActive: boolean;
  remove: boolean;
}

/** What may be done to a node by somebody with these permissions, at this moment. */
export function offered(node: NodeView, cluster: ClusterView, permissions: readonly string[]): Offered {
  const control = permissions.includes("manager-control");
  const write = permissions.includes("member-write");
  const mode = modeOf(node);
  const passive = mode === "passive" || mode === "standby";
  // A node that is alone is restarted, and nothing else is done to it as a manager.
  const alone = !cluster.ha;
  return {
    alias: control,
    roles: write,
    // Only a voter that answers can lead, and only a leader can hand over.
    activate: control && node.state === "joined" && mode === "passive" && cluster.leader !== null,
    stop: control && (passive ? true : mode === "active" ? "active" : false),
    start: control && mode === "stopped",
    restart: control && (passive || alone) && node.state === "joined",
    restartActive: control && mode === "active",
    remove: write && !alone,
  };
}

export interface Tolerance {
  voters: number;
  majority: number;
  answering: number;
  canLose: number;
  /** Voters that do not answer. */
  away: string[];
  standbys: string[];
  /** Managers whose role was stopped. */
  stopped: string[];
}

/** How many voters a cluster of so many can lose: decisions need more than half. */
export function losses(voters: number): number {
  return Math.max(0, Math.ceil(voters / 2) - 1);
}

export function tolerance({ cluster, nodes }: Overview): Tolerance {
  const by = (wanted: NodeView["standing"]): NodeView[] => nodes.filter((node) => node.standing === wanted);
  const voters = cluster.voters ?? 0;
  const away = by("voter").filter((node) => node.state !== "joined");
  return {
    voters,
    majority: Math.floor(voters / 2) + 1,
    answering: cluster.voters_joined ?? 0,
    canLose: cluster.can_lose ?? 0,
    away: away.map((node) => node.name).sort(natural),
    standbys: by("standby").filter((node) => node.state !== "removed").map((node) => node.name).sort(natural),
    stopped: by("stopped").map((node) => node.name).sort(natural),
  };
}

export interface Matrix {
  services: string[];
  rows: { node: NodeView; cells: ReplicaView[][] }[];
}

/** Which replicas of which service are on which node. Nodes that left and run nothing are left out. */
export function matrix({ nodes, services }: Overview): Matrix {
  const names = services.map((service) => service.name);
  const rows = [...nodes].sort((a, b) => natural(a.name, b.name)).map((node) => ({
    node,
    cells: services.map((service) => service.replicas.filter((replica) => replica.node_id === node.id)),
  }));
  const kept = rows.filter(({ node, cells }) => node.state !== "removed" || cells.some((cell) => cell.length > 0));
  return { services: names, rows: kept };
}

/** `HOST:PORT` of a URL; the text itself when it is none. */
export function hostOf(url: string): string {
  try {
    return new URL(url).host || url;
  } catch {
    return url;
  }
}
