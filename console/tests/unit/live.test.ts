import { describe, expect, it } from "vitest";
import { type Live, banner, otherNodes, pageOn, shouldMove, start, step } from "../../src/lib/live";
import { aNode, anOverview } from "./samples";

const T = 1_000_000;
const overview = (sequence: number, answered_by = "n1") => ({ ...anOverview(), sequence, answered_by });
const live = (): Live =>
  step(step(start(T), { kind: "opened", now: T }), { kind: "overview", now: T, overview: overview(7) });

describe("the state of the page", () => {
  it("takes newer overviews and leaves out an older one of the same node", () => {
    const newer = step(live(), { kind: "overview", now: T + 1, overview: overview(8) });
    expect(newer.overview?.sequence).toBe(8);
    expect(step(newer, { kind: "overview", now: T + 2, overview: overview(6) }).overview?.sequence).toBe(8);
  });

  it("does not compare the sequences of two nodes", () => {
    expect(step(live(), { kind: "overview", now: T, overview: overview(2, "n2") }).overview?.sequence).toBe(2);
  });

  it("takes the first overview of a new connection, because a restarted node counts anew", () => {
    const again = step(step(live(), { kind: "lost", now: T }), { kind: "opened", now: T + 500 });
    expect(step(again, { kind: "overview", now: T + 501, overview: overview(1) }).overview?.sequence).toBe(1);
  });

  it("keeps the last overview while the server is away", () => {
    expect(step(live(), { kind: "lost", now: T + 1 }).overview?.sequence).toBe(7);
  });

  it("counts the loss from its beginning, however often the retry fails", () => {
    const lost = step(live(), { kind: "lost", now: T + 100 });
    expect(step(lost, { kind: "lost", now: T + 900 }).lostAt).toBe(T + 100);
  });
});

describe("the banner", () => {
  it("names the node that serves the page", () => {
    expect(banner(live(), T)).toEqual({ kind: "live", node: "n1" });
  });

  it("is connecting until a first overview is there", () => {
    expect(banner(step(start(T), { kind: "opened", now: T }), T)).toEqual({ kind: "connecting" });
  });

  it("is reconnecting for three seconds and then says since when the page is stale", () => {
    const lost = step(live(), { kind: "lost", now: T + 2_000 });
    expect(banner(lost, T + 4_999)).toEqual({ kind: "reconnecting" });
    expect(banner(lost, T + 12_000)).toEqual({ kind: "stale", for: 12_000 });
  });

  it("is live again as soon as the stream is open", () => {
    const back = step(step(live(), { kind: "lost", now: T }), { kind: "opened", now: T + 9_000 });
    expect(banner(back, T + 9_000).kind).toBe("live");
  });

  it("says that the session is refused", () => {
    expect(banner(step(live(), { kind: "refused", now: T, refusal: { code: "session-over", message: "" } }), T + 60_000)).toEqual({ kind: "refused" });
  });
});

describe("the move to another node", () => {
  const page = new URL("http://127.0.0.1:8001/ui/?t=secret#services");

  it("comes two seconds after the loss, and never while the page is live", () => {
    const lost = step(live(), { kind: "lost", now: T });
    expect(shouldMove(lost, T + 1_999)).toBe(false);
    expect(shouldMove(lost, T + 2_000)).toBe(true);
    expect(shouldMove(live(), T + 60_000)).toBe(false);
  });

  it("tries the leader first and neither itself nor a removed node", () => {
    const nodes = [
      aNode(1, { api: "http://127.0.0.1:8001" }),
      aNode(2, { api: "http://127.0.0.1:8002", state: "down" }),
      aNode(3, { api: "http://127.0.0.1:8003/" }),
      aNode(4, { api: "http://127.0.0.1:8004" }),
      aNode(5, { api: "http://127.0.0.1:8005", state: "removed" }),
    ];
    const seen = { ...anOverview({ leader: "n4" }), nodes };
    expect(otherNodes(seen, page)).toEqual(["http://127.0.0.1:8004", "http://127.0.0.1:8003", "http://127.0.0.1:8002"]);
  });

  it("goes on as localhost, where the session cookie is", () => {
    const seen = { ...anOverview(), nodes: [aNode(2, { api: "http://127.0.0.1:8002" })] };
    expect(otherNodes(seen, new URL("http://localhost:8001/ui/"))).toEqual(["http://localhost:8002"]);
  });

  it("leaves out what is no web address", () => {
    const nodes = [aNode(2, { api: "javascript:alert(1)" }), aNode(3, { api: "" })];
    expect(otherNodes({ ...anOverview(), nodes }, page)).toEqual([]);
  });

  it("takes the section along, and no sign-in token", () => {
    expect(pageOn("http://127.0.0.1:8002", page, "n1")).toBe("http://127.0.0.1:8002/ui/?from=n1#services");
  });
});
