// Who is signed in, and the one way from the pages to the server.

import { getContext, setContext } from "svelte";
import { type Me, can } from "./access";
import type { Problem } from "./api";
import { type Answer, type Ask, type Fetch, request } from "./http";

const RETRY_MS = 1_000;
/** Whoever comes back after this long is asked for by the server first: the session may be over. */
const AWAY_MS = 60_000;
/** Pages go on asking by themselves for so long after the last sign of a reader. More would keep a
    session alive that nobody uses; the server ends one after 30 minutes without a request. */
const PRESENT_MS = 5 * 60_000;

export class Session {
  /** `asking`: it is not known yet. `out`: the login page is shown. */
  phase: "asking" | "in" | "out" = $state("asking");
  me: Me | null = $state.raw(null);
  /** Why it is not known, or why nobody is signed in any more; `null` at a first visit. */
  why: Problem | null = $state.raw(null);

  #fetch: Fetch;
  #lastInput = Date.now();

  constructor(fetcher: Fetch = (url, init) => fetch(url, init)) {
    this.#fetch = fetcher;
  }

  /** Asks until the server says who this is; the returned function ends that. */
  start(): () => void {
    let retry: ReturnType<typeof setTimeout> | undefined;
    let over = false;
    const again = async (): Promise<void> => {
      await this.check();
      if (!over && this.phase === "asking") retry = setTimeout(() => void again(), RETRY_MS);
    };
    void again();
    return () => {
      over = true;
      clearTimeout(retry);
    };
  }

  async check(): Promise<void> {
    const answer = await this.send<Me>({ method: "GET", path: "/v1/me" });
    if (answer.ok) {
      this.me = answer.value;
      this.phase = "in";
      this.why = null;
    } else if (this.phase === "asking") {
      this.why = answer.problem;
    }
  }

  /** A function that stays the same, for `carryOut`. */
  send = async <T>(ask: Ask, confirmation?: string): Promise<Answer<T>> => {
    const answer = await request<T>(this.#fetch, ask, confirmation);
    if (!answer.ok) this.refused(answer.problem);
    return answer;
  };

  /** The login page, if the problem is that nobody is signed in. */
  refused(problem: Problem): void {
    if (problem.code !== "session-over" && problem.code !== "login-needed") return;
    // At a first visit there is nothing to explain.
    this.why = problem.code === "login-needed" && this.phase === "asking" ? null : problem;
    this.phase = "out";
    this.me = null;
  }

  /** Answers the problem; `null` when the session began. Then ask who it is, or load the page again. */
  async logIn(user: string, password: string): Promise<Problem | null> {
    const answer = await this.send({ method: "POST", path: "/v1/login", body: { user, password } });
    return answer.ok ? null : answer.problem;
  }

  async logOut(): Promise<Problem | null> {
    const answer = await this.send({ method: "POST", path: "/v1/logout" });
    if (!answer.ok && this.phase === "in") return answer.problem;
    this.phase = "out";
    this.me = null;
    this.why = null;
    return null;
  }

  can(permission: string): boolean {
    return can(this.me, permission);
  }

  /** Whether somebody is at the page. */
  isPresent(now: number): boolean {
    return now - this.#lastInput < PRESENT_MS;
  }

  /** A key, a click, or the page in front again. */
  noteInput(now: number): void {
    const away = now - this.#lastInput;
    this.#lastInput = now;
    if (away >= AWAY_MS && this.phase === "in") void this.check();
  }
}

const KEY = Symbol("session");

export function provideSession(session: Session): void {
  setContext(KEY, session);
}

export function useSession(): Session {
  return getContext<Session>(KEY);
}
