import { expect, it } from "vitest";
import type { ServiceView } from "../../src/lib/api";
import { autoscaled, fixed, leased, loaded, switched, updating, used } from "../../src/lib/duties";

const NOW = 1_790_000_000_000;
const minutesAgo = (minutes: number): number => (NOW - minutes * 60_000) * 1000;

it("says who holds a lease, and how the last failover went", () => {
  const last = { from: "n1", to: "n2", took: "18s", at: minutesAgo(5) };
  const [holder, failover] = leased({ failover: "30s", holder: "n2", epoch: 7, last_failover: last }, NOW);
  expect(holder).toEqual({ text: "held by n2 · epoch 7", tone: "quiet" });
  expect(failover?.text).toBe("last failover took 18s, 5 min ago");
  expect(failover?.title).toBe("n1 → n2; allowed: 30s");
  expect(leased({ failover: "30s", epoch: 0 }, NOW)[0]?.text).toBe("nobody has run it yet");
  expect(leased({ failover: "30s", holder: "n2", epoch: 7, fenced: true }, NOW)).toEqual([{ text: "taken from n2, which is silent", tone: "warn" }]);
});

it("says how far an update is, and nothing of one that ended well", () => {
  const update = { version: 4, from: 3, stage: "rolling", since: 0, updated: 1 };
  expect(updating(update, 3)).toEqual({ text: "update v3 → v4 · rolling · 1 of 3", tone: "busy" });
  expect(updating({ ...update, stage: "done" }, 3)).toBeNull();
  expect(updating({ ...update, stage: "later-word" }, 3)?.text).toContain("later-word");
  expect(updating({ ...update, held: "it broke" }, 3)).toEqual({ text: "update v3 → v4 · rolling · 1 of 3 · held: it broke", tone: "warn" });
  expect(updating({ ...update, stage: "rolled-back", why: "its program ended 3 times" }, 3)?.text).toBe("v4 was rolled back: its program ended 3 times");
});

it("offers a number only where one may be chosen", () => {
  const service = (mode: string): ServiceView => ({ mode }) as ServiceView;
  expect(fixed(service("replicated"))).toBeNull();
  expect(fixed(service("active-passive"))).toBeNull();
  expect(fixed(service("singleton"))).toBe("runs once");
  expect(fixed(service("every-node"))).toBe("one on each node");
});

it("says that a service is stopped, by whom, and what its schedule does next", () => {
  const service = (view: Partial<ServiceView>): ServiceView => view as ServiceView;
  const since = minutesAgo(5);
  const texts = (view: Partial<ServiceView>): string[] => switched(service(view), NOW).map((said) => said.text);
  expect(texts({})).toEqual([]);
  expect(texts({ stopped: { since, by_schedule: false } })).toEqual(["stopped, 5 min ago"]);
  expect(texts({ stopped: { since, by_schedule: false, by: "anna" } })).toEqual(["stopped by anna, 5 min ago"]);
  const next = { at: minutesAgo(-60), starts: true };
  const [stopped, starts] = texts({ stopped: { since, by_schedule: true }, next });
  expect(stopped).toBe("stopped by its schedule, 5 min ago");
  expect(starts).toMatch(/^its schedule starts it at .+/);
});

it("shows amounts as a spec writes them", () => {
  expect(used({ cpu_millis: 120, memory_bytes: 64 << 20 })).toBe("120m CPU, 64 MiB");
  expect(used({ cpu_millis: 0, memory_bytes: 3 << 19 })).toBe("0m CPU, 1.5 MiB");
  expect(used({ cpu_millis: 5, memory_bytes: 3 * 2 ** 30 })).toBe("5m CPU, 3.0 GiB");
  expect(used({ cpu_millis: 5 })).toBe("5m CPU");
});

it("leaves the number to the leader only while that is on", () => {
  const service = (autoscale?: { enabled?: boolean; min: number; max: number }): ServiceView =>
    ({ spec: autoscale === undefined ? {} : { autoscale } }) as ServiceView;
  expect(autoscaled(service())).toBeNull();
  expect(autoscaled(service({ enabled: false, min: 1, max: 2 }))).toBeNull();
  expect(autoscaled(service({ min: 1, max: 2 }))?.max).toBe(2);
});

it("shows the load with what it was measured by", () => {
  const found = { min: 1, max: 2, load: "high", readings: [{ metric: "rps", percent: 140 }], why: ["no more than 2, the maximum"] };
  expect(loaded({ found })).toEqual({ text: "load high", tone: "warn", title: "rps at 140% of its target\nno more than 2, the maximum" });
  expect(loaded({ found: { ...found, load: null } })?.text).toBe("load not measured");
  expect(loaded({})).toBeNull();
});
