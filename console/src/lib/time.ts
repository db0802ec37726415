// Times for people. Everything here takes `now`, so that it can be tested and ticks as one.

import type { WallTime } from "./api";

export function millis(at: WallTime): number {
  return at / 1000;
}

/** `12 s`, `4 min`, `3 h 5 min`, `2 d 4 h`: at most two units, rounded down. */
export function span(ms: number): string {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return two(hours, "h", minutes % 60, "min");
  return two(Math.floor(hours / 24), "d", hours % 24, "h");
}

function two(large: number, largeUnit: string, small: number, smallUnit: string): string {
  return small === 0 ? `${large} ${largeUnit}` : `${large} ${largeUnit} ${small} ${smallUnit}`;
}

/**
 * `now`, `12 s ago`, `3 h 5 min ago`. A time slightly in the future is `now`: clocks of two servers
 * differ a little.
 */
export function ago(at: WallTime, now: number): string {
  const passed = now - millis(at);
  return passed < 1000 ? "now" : `${span(passed)} ago`;
}

/** `14:03:27` today, `Nov 20 14:03:27` otherwise, in the reader's time zone. */
export function clock(at: WallTime, now: number): string {
  const date = new Date(millis(at));
  const time = [date.getHours(), date.getMinutes(), date.getSeconds()].map((part) => String(part).padStart(2, "0")).join(":");
  if (date.toDateString() === new Date(now).toDateString()) return time;
  const day = date.toLocaleDateString("en", { month: "short", day: "numeric" });
  const year = date.getFullYear() === new Date(now).getFullYear() ? "" : ` ${date.getFullYear()}`;
  return `${day}${year} ${time}`;
}

/** RFC 3339 in UTC, for `<time datetime>` and tooltips. */
export function exact(at: WallTime): string {
  const date = new Date(millis(at));
  return Number.isNaN(date.getTime()) ? "" : date.toISOString();
}

/** `950`, `12.4 k`, `3.1 M`. */
export function count(value: number): string {
  if (value < 10_000) return String(value);
  const [scaled, unit] = value < 1_000_000 ? [value / 1000, "k"] : [value / 1_000_000, "M"];
  return `${scaled.toFixed(1)} ${unit}`;
}
