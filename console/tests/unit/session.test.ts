import { describe, expect, it } from "vitest";
import type { Fetch } from "../../src/lib/http";
import { Session } from "../../src/lib/session.svelte";

const ME = { who: "anna", user: "anna", roles: ["operator"], permissions: ["cluster-read"] };
const answers = (...list: [number, unknown][]): Fetch => async () => {
  const [status, body] = list.length > 1 ? list.shift()! : list[0]!;
  return new Response(JSON.stringify(body), { status });
};
const problem = (code: string) => ({ code, message: code });

describe("the session of a page", () => {
  it("is in as soon as the server says who this is", async () => {
    const session = new Session(answers([200, ME]));
    expect(session.phase).toBe("asking");
    await session.check();
    expect([session.phase, session.me?.user, session.can("cluster-read"), session.can("user-read")]).toEqual(["in", "anna", true, false]);
  });

  it("begins with the login page, without an explanation, where a login is needed", async () => {
    const session = new Session(answers([401, problem("login-needed")]));
    await session.check();
    expect([session.phase, session.why]).toEqual(["out", null]);
  });

  it("says why when it was over at the first visit", async () => {
    const session = new Session(answers([401, problem("session-over")]));
    await session.check();
    expect([session.phase, session.why?.code]).toEqual(["out", "session-over"]);
  });

  it("asks on while no node can say", async () => {
    const session = new Session(answers([503, problem("no-leader")], [200, ME]));
    await session.check();
    expect([session.phase, session.why?.code]).toEqual(["asking", "no-leader"]);
    await session.check();
    expect([session.phase, session.why]).toEqual(["in", null]);
  });

  it("leads back to the login page from any request that finds it over", async () => {
    const session = new Session(answers([200, ME], [401, problem("session-over")]));
    await session.check();
    await session.send({ method: "GET", path: "/v1/users" });
    expect([session.phase, session.me, session.why?.code]).toEqual(["out", null, "session-over"]);
  });

  it("goes on after a wrong password for an act", async () => {
    const session = new Session(answers([200, ME], [401, problem("wrong-credentials")]));
    await session.check();
    await session.send({ method: "POST", path: "/v1/confirm" });
    expect(session.phase).toBe("in");
  });

  it("ends by logging out, also one that was over already", async () => {
    for (const answer of [[204, null], [401, problem("session-over")]] as [number, unknown][]) {
      const fetcher: Fetch = async (url) =>
        url === "/v1/me" ? new Response(JSON.stringify(ME)) : new Response(answer[0] === 204 ? null : JSON.stringify(answer[1]), { status: answer[0] });
      const session = new Session(fetcher);
      await session.check();
      expect(await session.logOut()).toBeNull();
      expect([session.phase, session.why]).toEqual(["out", null]);
    }
  });

  it("is asked for when somebody comes back after a while, and lists rest while nobody is there", async () => {
    let asked = 0;
    const session = new Session(async () => {
      asked += 1;
      return new Response(JSON.stringify(ME));
    });
    await session.check();
    const now = Date.now();
    session.noteInput(now + 30_000);
    expect([asked, session.isPresent(now + 60_000)]).toEqual([1, true]);
    expect(session.isPresent(now + 30_000 + 5 * 60_000)).toBe(false);
    session.noteInput(now + 10 * 60_000);
    expect(asked).toBe(2);
  });
});
