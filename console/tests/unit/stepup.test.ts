import { describe, expect, it } from "vitest";
import type { Answer, Ask } from "../../src/lib/http";
import { type Send, carryOut } from "../../src/lib/stepup";

const PASSWORD = "correct horse battery";

/** A server that wants its dangerous acts confirmed, each confirmation for one act, once. */
class Guarded {
  readonly done: string[] = [];
  readonly confirmedFor: unknown[] = [];
  refusal: { code: string; message: string } | null = null;
  #confirmations = new Map<string, string>();

  send: Send = async <T>(ask: Ask, confirmation?: string): Promise<Answer<T>> => {
    const no = (status: number, code: string, details?: Record<string, unknown>): Answer<T> => ({
      ok: false, status, unknown: false, problem: { code, message: code, ...(details ? { details } : {}) },
    });
    const yes = (value: unknown): Answer<T> => ({ ok: true, value: value as T });
    if (ask.path === "/v1/confirm") {
      const { password, operation, target } = ask.body as Record<string, string>;
      if (this.refusal) return no(429, this.refusal.code);
      if (password !== PASSWORD) return no(401, "wrong-credentials");
      const word = `c${this.#confirmations.size}`;
      this.#confirmations.set(word, `${operation} ${target}`);
      this.confirmedFor.push({ operation, target });
      return yes({ confirmation: word });
    }
    if (ask.path.startsWith("/tame")) {
      this.done.push(ask.path);
      return yes(null);
    }
    if (ask.path === "/impossible") return no(409, "last-admin");
    const target = ask.path.slice(1);
    if (confirmation === undefined) return no(403, "confirmation-needed", { operation: "user-remove", target });
    if (this.#confirmations.get(confirmation) !== `user-remove ${target}`) return no(403, "not-confirmed");
    this.#confirmations.delete(confirmation);
    this.done.push(ask.path);
    return yes({ removed: target });
  };
}

const remove = (name: string): Ask => ({ method: "DELETE", path: `/${name}` });

describe("a dangerous act", () => {
  it("is done with the password, which confirms exactly what the server named", async () => {
    const server = new Guarded();
    expect(await carryOut(server.send, [remove("bob")], PASSWORD)).toEqual({ kind: "done", answers: [{ removed: "bob" }] });
    expect(server.confirmedFor).toEqual([{ operation: "user-remove", target: "bob" }]);
  });

  it("asks for the password when there is none, and nothing was done", async () => {
    const server = new Guarded();
    for (const nothing of [null, ""]) {
      expect(await carryOut(server.send, [remove("bob")], nothing)).toEqual({ kind: "password", problem: null, done: 0 });
    }
    expect(server.done).toEqual([]);
  });

  it("is not done with a wrong password, and says what the server says", async () => {
    const server = new Guarded();
    const outcome = await carryOut(server.send, [remove("bob")], "guess");
    expect(outcome).toMatchObject({ kind: "password", problem: { code: "wrong-credentials" } });
    expect(server.done).toEqual([]);
  });

  it("has to wait where too often was tried", async () => {
    const server = new Guarded();
    server.refusal = { code: "too-many-tries", message: "" };
    expect(await carryOut(server.send, [remove("bob")], PASSWORD)).toMatchObject({ kind: "problem", problem: { code: "too-many-tries" }, unknown: false });
  });

  it("uses a confirmation of its own for each of several, and stops at the first that fails", async () => {
    const server = new Guarded();
    const impossible: Ask = { method: "DELETE", path: "/impossible" };
    const outcome = await carryOut(server.send, [remove("bob"), remove("eve"), impossible, remove("dan")], PASSWORD);
    expect(outcome).toMatchObject({ kind: "problem", problem: { code: "last-admin" }, done: 2 });
    expect(server.done).toEqual(["/bob", "/eve"]);
  });
});

it("waits between two acts, and ends where the wait does", async () => {
  const server = new Guarded();
  const tame = (name: string): Ask => ({ method: "POST", path: `/tame/${name}` });
  const seen: string[] = [];
  const between = async (done: number) => {
    seen.push(`${done}: ${server.done.join(" ")}`);
    return done === 2 ? { code: "not-back", message: "" } : null;
  };
  const outcome = await carryOut(server.send, [tame("a"), tame("b"), tame("c")], null, between);
  expect(outcome).toMatchObject({ kind: "problem", problem: { code: "not-back" }, done: 2 });
  expect(seen).toEqual(["1: /tame/a", "2: /tame/a /tame/b"]);
  expect(await carryOut(server.send, [tame("d")], null, between)).toMatchObject({ kind: "done" });
  expect(seen).toHaveLength(2);
});

it("an act that is not dangerous sends no password anywhere", async () => {
  const server = new Guarded();
  expect(await carryOut(server.send, [{ method: "PUT", path: "/tame" }], null)).toEqual({ kind: "done", answers: [null] });
  expect(server.confirmedFor).toEqual([]);
});
