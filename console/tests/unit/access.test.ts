import { describe, expect, it } from "vitest";
import { access as texts } from "../../src/en/access";
import { type AuditLink, PERMISSIONS, before, can, difference, joinAudit, matchesAudit, outcomeKind } from "../../src/lib/access";
import { parse, path, tabsFor } from "../../src/lib/route";

const line = (seq: number, more: Partial<AuditLink> = {}): AuditLink => ({
  seq, index: seq, at: 0, who: "anna", from: "192.0.2.7", what: "user-remove", target: "bob", outcome: "done", hash: "", ...more,
});

describe("the audit's filter", () => {
  it("finds all words in whatever field, in any case", () => {
    const all = { outcome: "all" } as const;
    expect(matchesAudit(line(7), { text: "ANNA user-remove", ...all })).toBe(true);
    expect(matchesAudit(line(7), { text: "anna eve", ...all })).toBe(false);
    expect(matchesAudit(line(7), { text: "#7", ...all })).toBe(true);
    expect(matchesAudit(line(7), { text: "", ...all })).toBe(true);
  });

  it("knows outcomes by their first word", () => {
    const outcomes = ["done", "begun", "refused: there is no such user", "denied: wrong user or password"];
    expect(outcomes.map(outcomeKind)).toEqual(["done", "begun", "refused", "denied"]);
    expect(matchesAudit(line(1, { outcome: "denied: x" }), { text: "", outcome: "denied" })).toBe(true);
    expect(matchesAudit(line(1), { text: "", outcome: "denied" })).toBe(false);
  });
});

describe("older lines of the audit", () => {
  it("are asked for in pieces without a gap, down to the first", () => {
    expect(before(501, 200)).toEqual({ after: 300, limit: 200 });
    expect(before(151, 200)).toEqual({ after: 0, limit: 150 });
    expect(before(2, 200)).toEqual({ after: 0, limit: 1 });
    expect(before(1, 200)).toBeNull();
    expect(before(0, 200)).toBeNull();
  });

  it("join the newer ones, each once, newest first", () => {
    expect(joinAudit([line(3), line(2)], [line(4), line(3)]).map(({ seq }) => seq)).toEqual([4, 3, 2]);
  });
});

it("changes roles by what is missing and what is too much, and by nothing else", () => {
  expect(difference(["viewer", "operator"], ["admin", "viewer"])).toEqual({ add: ["admin"], take: ["operator"] });
  expect(difference(["a"], ["a"])).toEqual({ add: [], take: [] });
});

it("lets nobody do anything before it is known who asks", () => {
  expect(can(null, "cluster-read")).toBe(false);
  expect(can({ who: "vera", roles: [], permissions: ["cluster-read"] }, "cluster-read")).toBe(true);
  expect(can({ who: "vera", roles: [], permissions: ["cluster-read"] }, "user-write")).toBe(false);
});

it("has words for every permission", () => {
  expect(Object.keys(texts.permission).sort()).toEqual([...PERMISSIONS].sort());
});

it("quotes a label so that the command line stays one", () => {
  const command = texts.tokens.command("bob's; rm -rf", null, ["sql-read"], true, "7d");
  expect(command).toBe("quorate token create 'bobs; rm -rf' --scope sql-read --dangerous --lasts 7d");
});

describe("addresses", () => {
  it("lead to their page and back", () => {
    for (const route of [
      { page: "overview", tab: null }, { page: "nodes", tab: null }, { page: "access", tab: null },
      { page: "access", tab: "audit" },
    ] as const) expect(parse(path(route))).toEqual(route);
  });

  it("that nobody knows lead to something", () => {
    expect(parse("/ui")).toEqual({ page: "overview", tab: null });
    expect(parse("/ui/gateways/x")).toEqual({ page: "overview", tab: null });
    expect(parse("/ui/access/nonsense")).toEqual({ page: "access", tab: null });
  });

  it("K12: show the tabs that somebody may read", () => {
    expect(tabsFor([])).toEqual(["you"]);
    expect(tabsFor(["user-read", "token-read", "session-read", "audit-read"])).toEqual(["you", "users", "roles", "tokens", "sessions", "audit"]);
  });
});
