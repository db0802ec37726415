import { describe, expect, it } from "vitest";
import { type Fetch, NO_ANSWER, freshId, readProblem, request, segment } from "../../src/lib/http";
import { pieces } from "../../src/lib/said";

/** Answers everything with this, and keeps what it was asked. */
function server(status: number, body: string): { fetcher: Fetch; asked: [string, RequestInit][] } {
  const asked: [string, RequestInit][] = [];
  const fetcher: Fetch = async (url, init) => {
    asked.push([url, init]);
    return new Response(status === 204 ? null : body, { status });
  };
  return { fetcher, asked };
}

describe("a request", () => {
  it("carries its body, its id and its confirmation, and only those that it has", async () => {
    const { fetcher, asked } = server(200, '{"index":7}');
    const answer = await request(fetcher, { method: "PUT", path: "/v1/x", body: { a: 1 }, id: "id-1" }, "yes");
    expect(answer).toEqual({ ok: true, value: { index: 7 } });
    expect(asked[0]?.[0]).toBe("/v1/x");
    expect(asked[0]?.[1]).toMatchObject({
      method: "PUT", body: '{"a":1}', credentials: "same-origin",
      headers: { "content-type": "application/json", "quorate-request-id": "id-1", "quorate-confirmation": "yes" },
    });
    await request(fetcher, { method: "GET", path: "/v1/x" });
    expect(asked[1]?.[1]).toMatchObject({ method: "GET", headers: {} });
    expect(asked[1]?.[1].body).toBeUndefined();
  });

  it("is answered by nothing where the server has nothing to say", async () => {
    expect(await request(server(204, "").fetcher, { method: "DELETE", path: "/v1/x" })).toEqual({ ok: true, value: null });
  });

  it("of unknown outcome is told from one that was refused", async () => {
    const refused = server(409, '{"code":"user-exists","message":"there is one"}');
    expect(await request(refused.fetcher, { method: "POST", path: "/v1/x" })).toMatchObject({ ok: false, status: 409, unknown: false });
    const unknown = server(504, '{"code":"outcome-unknown","message":"it may be done"}');
    expect(await request(unknown.fetcher, { method: "POST", path: "/v1/x" })).toMatchObject({ ok: false, unknown: true });
    const dead: Fetch = () => Promise.reject(new TypeError("connection refused"));
    expect(await request(dead, { method: "POST", path: "/v1/x" })).toEqual({ ok: false, status: 0, problem: NO_ANSWER, unknown: true });
  });
});

it("keeps the details of a problem, which say what to confirm", () => {
  const details = { operation: "user-remove", target: "bob" };
  expect(readProblem(403, JSON.stringify({ code: "confirmation-needed", message: "m", details }))).toMatchObject({ details });
});

it("makes ids that the server takes, each another one", () => {
  const ids = Array.from({ length: 50 }, freshId);
  for (const id of ids) expect(id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  expect(new Set(ids).size).toBe(50);
});

it("puts a name into a path as one part of it", () => {
  expect(segment("../users?x=1")).toBe("..%2Fusers%3Fx%3D1");
});

it("shows what the server put into backticks as code, and an odd backtick as itself", () => {
  expect(pieces("see `quorate user list` for it")).toEqual([
    { code: false, text: "See " }, { code: true, text: "quorate user list" }, { code: false, text: " for it" },
  ]);
  expect(pieces("`ttl` is odd`").map(({ text }) => text).join("|")).toBe("ttl| is odd|`");
  expect(pieces("")).toEqual([]);
});
