// What the page knows about its own freshness: a pure reducer and what follows from it.
//
// `stream.svelte.ts` feeds it with what the network did; nothing here reads a clock or the DOM.

import type { NodeView, Overview, Problem } from "./api";

/** After this long without the serving node the page looks for another one. */
export const MOVE_AFTER_MS = 2_000;
/** After this long the banner says how old the page is. */
export const STALE_AFTER_MS = 3_000;

export interface Live {
  phase: "connecting" | "live" | "lost" | "refused";
  overview: Overview | null;
  /** When the server was last known to be there. */
  heardAt: number;
  /** Since when it is not; absent while it is. */
  lostAt: number | null;
  /** The next overview is the first of its connection. */
  first: boolean;
  /** Why the server does not let us in; `null` while it does. */
  refusal: Problem | null;
}

export type Signal =
  | { kind: "opened"; now: number }
  | { kind: "overview"; now: number; overview: Overview }
  /** A health check answered. */
  | { kind: "alive"; now: number }
  | { kind: "lost"; now: number }
  /** The server is there and does not let us in. */
  | { kind: "refused"; now: number; refusal: Problem };

export function start(now: number): Live {
  return { phase: "connecting", overview: null, heardAt: now, lostAt: null, first: true, refusal: null };
}

export function step(live: Live, signal: Signal): Live {
  switch (signal.kind) {
    case "opened":
      return { ...live, phase: "live", heardAt: signal.now, lostAt: null, first: true, refusal: null };
    case "overview": {
      const heard: Live = { ...live, phase: "live", heardAt: signal.now, lostAt: null, first: false };
      return isOlder(live, signal.overview) ? heard : { ...heard, overview: signal.overview };
    }
    case "alive":
      return live.phase === "live" ? { ...live, heardAt: signal.now } : live;
    case "lost":
      return { ...live, phase: "lost", lostAt: live.lostAt ?? signal.now };
    case "refused":
      return { ...live, phase: "refused", heardAt: signal.now, lostAt: null, refusal: signal.refusal };
  }
}

/**
 * Sequences are comparable on one node only, and a restarted node counts anew: so the first overview
 * of a connection is always taken.
 */
function isOlder(live: Live, next: Overview): boolean {
  const known = live.overview;
  return !live.first && known !== null && known.answered_by === next.answered_by && next.sequence < known.sequence;
}

export type Banner =
  | { kind: "connecting" }
  | { kind: "live"; node: string }
  | { kind: "reconnecting" }
  /** Milliseconds since the server was last there. */
  | { kind: "stale"; for: number }
  | { kind: "refused" };

export function banner(live: Live, now: number): Banner {
  switch (live.phase) {
    case "refused":
      return { kind: "refused" };
    case "connecting":
      return { kind: "connecting" };
    case "live":
      return live.overview ? { kind: "live", node: live.overview.answered_by } : { kind: "connecting" };
    case "lost":
      if (live.lostAt !== null && now - live.lostAt < STALE_AFTER_MS) return { kind: "reconnecting" };
      return { kind: "stale", for: Math.max(0, now - live.heardAt) };
  }
}

export function shouldMove(live: Live, now: number): boolean {
  return live.phase === "lost" && live.lostAt !== null && now - live.lostAt >= MOVE_AFTER_MS;
}

/**
 * Origins of the other nodes, the best guess first: the leader, then those that were joined.
 *
 * A session cookie belongs to a host name, so a page opened as `localhost` goes on as `localhost`
 * where the node says `127.0.0.1`.
 */
export function otherNodes(overview: Overview | null, page: URL): string[] {
  if (!overview) return [];
  const rank = (node: NodeView): number =>
    node.name === overview.cluster.leader ? 0 : node.state === "joined" ? 1 : 2;
  const origins = overview.nodes
    .filter((node) => node.state !== "removed" && node.name !== overview.answered_by)
    .sort((a, b) => rank(a) - rank(b))
    .map((node) => originOf(node.api, page))
    .filter((origin) => origin !== null && origin !== page.origin);
  return [...new Set(origins)] as string[];
}

const LOOPBACK = new Set(["localhost", "127.0.0.1", "[::1]"]);

function originOf(api: string, page: URL): string | null {
  try {
    const url = new URL(api);
    if (url.protocol !== "http:" && url.protocol !== "https:") return null;
    if (LOOPBACK.has(url.hostname) && LOOPBACK.has(page.hostname)) url.hostname = page.hostname;
    return url.origin;
  } catch {
    return null;
  }
}

/** The same page on another node. `from` names the node that is left; a sign-in token never travels. */
export function pageOn(origin: string, page: URL, from: string): string {
  const next = new URL(page.pathname, origin);
  next.searchParams.set("from", from);
  next.hash = page.hash;
  return next.href;
}
