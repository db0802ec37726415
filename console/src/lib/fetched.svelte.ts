// A list that a page shows and keeps fresh.

import type { Problem } from "./api";
import type { Session } from "./session.svelte";

/** The log of a busy cluster grows all the time; a list is not asked for more often than this. */
const APART_MS = 2_000;

export class Fetched<T> {
  value: T | null = $state.raw(null);
  problem: Problem | null = $state.raw(null);

  #session: Session;
  #path: string;
  #at = 0;
  #applied = -1;
  #asking = false;

  constructor(session: Session, path: string) {
    this.#session = session;
    this.#path = path;
  }

  async load(): Promise<void> {
    if (this.#asking) return;
    this.#asking = true;
    this.#at = Date.now();
    const answer = await this.#session.send<T>({ method: "GET", path: this.#path });
    this.#asking = false;
    if (answer.ok) this.value = answer.value;
    this.problem = answer.ok ? null : answer.problem;
  }

  /** Loads it again if the cluster has moved on, somebody is there to read it, and it is time. */
  follow(applied: number, now: number): void {
    if (applied === this.#applied || now - this.#at < APART_MS || !this.#session.isPresent(now)) return;
    this.#applied = applied;
    void this.load();
  }
}
