import { expect, it } from "vitest";
import { ago, clock, count, exact, span } from "../../src/lib/time";

it("writes a span with at most two units, rounded down", () => {
  const cases: [number, string][] = [
    [0, "0 s"], [59_999, "59 s"], [60_000, "1 min"], [3_599_000, "59 min"], [3_600_000, "1 h"],
    [11_100_000, "3 h 5 min"], [86_400_000, "1 d"], [187_200_000, "2 d 4 h"],
  ];
  for (const [ms, text] of cases) expect(span(ms)).toBe(text);
});

it("takes microseconds and calls a time slightly ahead of our clock now", () => {
  const now = 1_700_000_000_000;
  expect(ago((now - 12_000) * 1000, now)).toBe("12 s ago");
  expect(ago((now + 3_000) * 1000, now)).toBe("now");
});

it("shows the day only of another day, and the year only of another year", () => {
  const at = new Date(2026, 10, 20, 14, 3, 7).getTime() * 1000;
  expect(clock(at, new Date(2026, 10, 20, 23, 0, 0).getTime())).toBe("14:03:07");
  expect(clock(at, new Date(2026, 10, 21, 1, 0, 0).getTime())).toBe("Nov 20 14:03:07");
  expect(clock(at, new Date(2027, 0, 1).getTime())).toBe("Nov 20 2026 14:03:07");
});

it("writes the exact time in UTC and nothing for a time that is none", () => {
  expect(exact(1_700_000_000_000_000)).toBe("2023-11-14T22:13:20.000Z");
  expect(exact(Number.MAX_SAFE_INTEGER)).toMatch(/^2255-/);
  expect(exact(1e300)).toBe("");
});

it("shortens large counts", () => {
  expect([0, 9_999, 12_440, 3_100_000].map(count)).toEqual(["0", "9999", "12.4 k", "3.1 M"]);
});
