// Acts that may need the password again.
//
// The server says which do: it refuses with `confirmation-needed` and names the operation and its
// target. The password is then exchanged for a confirmation that is good for exactly that, once, and
// the act is repeated with it. The page never decides what is dangerous; it only knows when to show
// the field.

import type { Problem } from "./api";
import type { Answer, Ask } from "./http";

export type Send = <T>(ask: Ask, confirmation?: string) => Promise<Answer<T>>;

export type Outcome =
  | { kind: "done"; answers: unknown[] }
  /** The password is needed, or was wrong: then `problem` says so. */
  | { kind: "password"; problem: Problem | null; done: number }
  /** `done`: how many of the asks were carried out before. */
  | { kind: "problem"; problem: Problem; unknown: boolean; done: number };

/**
 * Carries out `asks` one after the other, and stops at the first that does not succeed. `between` is
 * waited for before the next one; a problem of its ends it too.
 */
export async function carryOut(
  send: Send,
  asks: Ask[],
  password: string | null,
  between: (done: number) => Promise<Problem | null> = async () => null,
): Promise<Outcome> {
  const answers: unknown[] = [];
  for (const ask of asks) {
    let answer = await send<unknown>(ask);
    if (!answer.ok && answer.problem.code === "confirmation-needed") {
      if (password === null || password === "") return { kind: "password", problem: null, done: answers.length };
      const { operation, target } = answer.problem.details ?? {};
      const body = { password, operation, target };
      const confirmed = await send<{ confirmation: string }>({ method: "POST", path: "/v1/confirm", body });
      if (!confirmed.ok) {
        const { problem } = confirmed;
        if (problem.code === "wrong-credentials") return { kind: "password", problem, done: answers.length };
        // Nothing but a password was sent, so nothing but that is unknown.
        return { kind: "problem", problem, unknown: false, done: answers.length };
      }
      answer = await send<unknown>(ask, confirmed.value.confirmation);
    }
    if (!answer.ok) {
      return { kind: "problem", problem: answer.problem, unknown: answer.unknown, done: answers.length };
    }
    answers.push(answer.value);
    const problem = answers.length < asks.length ? await between(answers.length) : null;
    if (problem !== null) return { kind: "problem", problem, unknown: false, done: answers.length };
  }
  return { kind: "done", answers };
}
