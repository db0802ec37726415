// What a service is busy with, in words: its lease, its update, what its copies use and follow.

import { en } from "../en";
import type { AutoscaleTable, AutoscaleView, DeploymentView, LeaseView, ReplicaView, ServiceView } from "./api";
import type { Tone } from "./looks";
import { ago, clock, exact } from "./time";

/** A line about a service; `title` says more. */
export interface Said {
  text: string;
  tone: Tone;
  title?: string;
}

/** The table, if it counts. */
export function autoscaled(service: ServiceView): AutoscaleTable | null {
  const table = service.spec.autoscale;
  return table === undefined || table.enabled === false ? null : table;
}

/** Why nobody chooses how many copies it has, if that is so. */
export function fixed(service: ServiceView): string | null {
  if (service.mode === "singleton") return en.runsOnce;
  return service.mode === "every-node" ? en.runsOnEach : null;
}

/** That it is stopped, and what its schedule does next. */
export function switched({ stopped, next }: ServiceView, now: number): Said[] {
  const said: Said[] = [];
  if (stopped !== undefined) {
    const who = stopped.by_schedule ? en.bySchedule : stopped.by === undefined ? "" : en.byUser(stopped.by);
    said.push({ text: en.stopped(who, ago(stopped.since, now)), tone: "quiet", title: exact(stopped.since) });
  }
  if (next !== undefined) said.push({ text: en.switchesAt(next.starts, clock(next.at, now)), tone: "quiet", title: exact(next.at) });
  return said;
}

export function leased(lease: LeaseView, now: number): Said[] {
  const holder: Said =
    lease.holder === undefined ? { text: en.noHolder(lease.epoch), tone: "warn" } : { text: en.holder(lease.holder, lease.epoch), tone: "quiet" };
  const said = [lease.fenced === true ? { text: en.fenced(lease.holder ?? en.none), tone: "warn" as const } : holder];
  const last = lease.last_failover;
  if (last !== undefined) {
    said.push({ text: en.lastFailover(last.took, ago(last.at, now)), tone: "quiet", title: en.failedOver(last.from, last.to, lease.failover) });
  }
  return said;
}

/** Nothing about an update that ended well. */
export function updating(deployment: DeploymentView, want: number): Said | null {
  const { stage, version, from, updated, why, held } = deployment;
  if (stage === "done") return null;
  if (stage === "rolled-back") return { text: en.rolledBack(version, why ?? ""), tone: "warn" };
  const step = en.updateStage[stage] ?? stage;
  const text = en.updating(from, version, step, Math.min(updated, want), want);
  return held === undefined ? { text, tone: "busy" } : { text: en.updateHeld(text, held), tone: "warn" };
}

/** `120m CPU, 64 MiB`; the kernel's own units, as in a spec. */
export function used(usage: NonNullable<ReplicaView["usage"]>): string {
  const cpu = `${usage.cpu_millis}m CPU`;
  return usage.memory_bytes === undefined ? cpu : `${cpu}, ${bytes(usage.memory_bytes)}`;
}

function bytes(amount: number): string {
  const mebibytes = amount / (1 << 20);
  if (mebibytes >= 1024) return `${(mebibytes / 1024).toFixed(1)} GiB`;
  return mebibytes >= 10 ? `${Math.round(mebibytes)} MiB` : `${mebibytes.toFixed(1)} MiB`;
}

/** How much there is to do, by the busiest of what is gone by. */
export function loaded(view: AutoscaleView): Said | null {
  const found = view.found;
  if (found === undefined) return null;
  const readings = found.readings.map(({ metric, percent }) => en.reading(metric, percent));
  const title = [...readings, ...found.why].join("\n");
  if (found.load === null) return { text: en.loadUnknown, tone: "warn", title };
  return { text: en.load[found.load] ?? found.load, tone: found.load === "high" ? "warn" : "quiet", title };
}
