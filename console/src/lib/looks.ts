// How a state looks: a shape and a tone, and always a word beside them (en.ts). Never colour alone.

import type { ClusterHealth, NodeState } from "./api";
import type { Mode } from "./members";

export type Tone = "ok" | "busy" | "warn" | "bad" | "quiet";
export type Shape = "disc" | "ring" | "triangle" | "cross" | "erased" | "square" | "question" | "diamond" | "diamond-open";

export interface Look {
  shape: Shape;
  tone: Tone;
}

export const nodeLook: Record<NodeState, Look> = {
  joined: { shape: "disc", tone: "ok" },
  unreachable: { shape: "triangle", tone: "warn" },
  down: { shape: "cross", tone: "bad" },
  removed: { shape: "erased", tone: "quiet" },
};

export const modeLook: Record<Mode, Look> = {
  active: { shape: "diamond", tone: "busy" },
  passive: { shape: "diamond-open", tone: "quiet" },
  standby: { shape: "ring", tone: "quiet" },
  stopped: { shape: "square", tone: "quiet" },
};

export const healthLook: Record<ClusterHealth, Look> = {
  healthy: { shape: "disc", tone: "ok" },
  degraded: { shape: "triangle", tone: "warn" },
  "no-quorum": { shape: "cross", tone: "bad" },
};

const replicaLooks = new Map<string, Look>(Object.entries({
  healthy: { shape: "disc", tone: "ok" },
  pending: { shape: "ring", tone: "busy" },
  starting: { shape: "ring", tone: "busy" },
  unhealthy: { shape: "triangle", tone: "warn" },
  "backing-off": { shape: "triangle", tone: "warn" },
  draining: { shape: "ring", tone: "quiet" },
  stopping: { shape: "ring", tone: "quiet" },
  stopped: { shape: "square", tone: "quiet" },
  failed: { shape: "cross", tone: "bad" },
}));

/** A state that this page does not know (a newer server's) looks like `unknown`. */
export function replicaLook(state: string): Look {
  return replicaLooks.get(state) ?? { shape: "question", tone: "quiet" };
}

export function eventLook(kind: string): Look {
  switch (kind) {
    case "node-down":
      return nodeLook.down;
    case "node-joined":
    case "node-returned":
    case "service-healthy":
      return nodeLook.joined;
    case "service-degraded":
      return nodeLook.unreachable;
    case "leader-elected":
      return modeLook.active;
    case "diverged":
      return { shape: "cross", tone: "bad" };
    default:
      return { shape: "ring", tone: "quiet" };
  }
}
