// The I/O around `live.ts`: one EventSource, a health check while it is silent, and the move to
// another node when this one is gone.

import { readOverview } from "./api";
import { readProblem } from "./http";
import { type Live, type Signal, otherNodes, pageOn, shouldMove, start, step } from "./live";

/** A silent stream is normal while nothing changes, and is also what a server without power looks like. */
const CHECK_AFTER_MS = 5_000;
/** Longest wait for a connection or for the answer of a health check. */
const PATIENCE_MS = 2_000;
const RETRY_MS = 500;

export class Cluster {
  live: Live = $state.raw(start(Date.now()));
  /** Ticks once a second, so that all ages on the page move together. */
  now = $state(Date.now());

  #source: EventSource | null = null;
  #opening: ReturnType<typeof setTimeout> | undefined;
  #retry: ReturnType<typeof setTimeout> | undefined;
  #checking = false;
  #moving = false;

  /** Connects; the returned function ends everything. */
  run(): () => void {
    this.#connect();
    const tick = setInterval(() => this.#tick(), 1_000);
    return () => {
      clearInterval(tick);
      this.#close();
    };
  }

  #signal(signal: Signal): void {
    this.live = step(this.live, signal);
    this.now = Math.max(this.now, signal.now);
  }

  #connect(): void {
    this.#close();
    const source = new EventSource("/v1/stream");
    this.#source = source;
    // A server without power does not refuse the connection, it just never answers.
    this.#opening = setTimeout(() => this.#lost(), PATIENCE_MS);
    source.addEventListener("open", () => {
      clearTimeout(this.#opening);
      this.#signal({ kind: "opened", now: Date.now() });
    });
    source.addEventListener("overview", (event: MessageEvent<string>) => {
      this.#signal({ kind: "overview", now: Date.now(), overview: readOverview(event.data) });
    });
    source.addEventListener("error", () => {
      // CLOSED means that something answered, and not with a stream.
      if (source.readyState === EventSource.CLOSED) void this.#askWhy();
      else this.#lost();
    });
  }

  #close(): void {
    clearTimeout(this.#opening);
    clearTimeout(this.#retry);
    this.#source?.close();
    this.#source = null;
  }

  #lost(): void {
    this.#signal({ kind: "lost", now: Date.now() });
    this.#again();
  }

  // Our own retry instead of the browser's, which waits for seconds.
  #again(): void {
    this.#close();
    this.#retry = setTimeout(() => this.#connect(), RETRY_MS);
  }

  async #askWhy(): Promise<void> {
    this.#close();
    const status = await ask("/v1/status", { cache: "no-store" }).catch(() => null);
    if (status?.status === 401 || status?.status === 403) {
      const refusal = readProblem(status.status, await status.text().catch(() => ""));
      this.#signal({ kind: "refused", now: Date.now(), refusal });
      this.#retry = setTimeout(() => this.#connect(), PATIENCE_MS);
    } else {
      this.#lost();
    }
  }

  #tick(): void {
    this.now = Date.now();
    if (this.live.phase === "live" && this.now - this.live.heardAt >= CHECK_AFTER_MS) void this.#check();
    if (shouldMove(this.live, this.now)) void this.#move();
  }

  async #check(): Promise<void> {
    if (this.#checking) return;
    this.#checking = true;
    try {
      await ask("/v1/health", { cache: "no-store" });
      this.#signal({ kind: "alive", now: Date.now() });
    } catch {
      if (this.live.phase === "live") this.#lost();
    } finally {
      this.#checking = false;
    }
  }

  async #move(): Promise<void> {
    const from = this.live.overview?.answered_by;
    if (this.#moving || from === undefined) return;
    this.#moving = true;
    try {
      const page = new URL(location.href);
      const reachable = otherNodes(this.live.overview, page).map(async (origin) => {
        // The answer is opaque to us, and that there is one is all that we ask.
        await ask(`${origin}/v1/health`, { mode: "no-cors", credentials: "omit", cache: "no-store" });
        return origin;
      });
      const origin = await Promise.any(reachable).catch(() => null);
      if (origin !== null && this.live.phase === "lost") location.replace(pageOn(origin, page, from));
    } finally {
      this.#moving = false;
    }
  }
}

function ask(url: string, init: RequestInit): Promise<Response> {
  return fetch(url, { ...init, signal: AbortSignal.timeout(PATIENCE_MS) });
}
