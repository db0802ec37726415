// One request to the server, and what came of it in a form that a page can show.

import type { Problem } from "./api";

export interface Ask {
  method: "GET" | "POST" | "PUT" | "DELETE";
  path: string;
  body?: unknown;
  /** A mutation that is sent again with its id is done once. */
  id?: string;
}

export type Answer<T> =
  | { ok: true; value: T }
  /** `unknown`: it may have been done all the same. */
  | { ok: false; status: number; problem: Problem; unknown: boolean };

export type Fetch = (url: string, init: RequestInit) => Promise<Response>;

/** Longest wait for an answer; the server itself gives up on a write after 10 s. */
const PATIENCE_MS = 15_000;

/** What a failed connection means in words. */
export const NO_ANSWER: Problem = {
  code: "unreachable",
  message: "The node did not answer, so it is not known whether this was done.",
  fix: "Look at the page once it is live again, and repeat it if it was not.",
};

export async function request<T>(fetcher: Fetch, ask: Ask, confirmation?: string): Promise<Answer<T>> {
  const headers: Record<string, string> = {};
  if (ask.body !== undefined) headers["content-type"] = "application/json";
  if (ask.id !== undefined) headers["quorate-request-id"] = ask.id;
  if (confirmation !== undefined) headers["quorate-confirmation"] = confirmation;
  const init: RequestInit = {
    method: ask.method,
    credentials: "same-origin",
    cache: "no-store",
    headers,
    signal: AbortSignal.timeout(PATIENCE_MS),
  };
  if (ask.body !== undefined) init.body = JSON.stringify(ask.body);
  try {
    const answer = await fetcher(ask.path, init);
    const text = await answer.text();
    if (!answer.ok) {
      const problem = readProblem(answer.status, text);
      return { ok: false, status: answer.status, problem, unknown: problem.code === "outcome-unknown" };
    }
    return { ok: true, value: (text === "" ? null : JSON.parse(text)) as T };
  } catch {
    return { ok: false, status: 0, problem: NO_ANSWER, unknown: true };
  }
}

/** The server's problem; a bare status when something between us and it answered instead. */
export function readProblem(status: number, body: string): Problem {
  try {
    const problem: unknown = JSON.parse(body);
    if (typeof problem === "object" && problem !== null && "message" in problem && typeof problem.message === "string") {
      const { details } = problem as Record<string, unknown>;
      const text = (key: string): string => {
        const value = (problem as Record<string, unknown>)[key];
        return typeof value === "string" ? value : "";
      };
      const read: Problem = { code: text("code"), message: problem.message, fix: text("fix") };
      if (typeof details === "object" && details !== null) read.details = details as Record<string, unknown>;
      return read;
    }
  } catch {
    // Not JSON: said below.
  }
  return { code: `http-${status}`, message: `The server answered ${status}.` };
}

/** A part of a path, whatever is in it. */
export function segment(text: string): string {
  return encodeURIComponent(text);
}

/** A random id (UUID, version 4). `crypto.randomUUID` is missing on pages that came over plain HTTP. */
export function freshId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = ((bytes[6] ?? 0) & 0x0f) | 0x40;
  bytes[8] = ((bytes[8] ?? 0) & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
