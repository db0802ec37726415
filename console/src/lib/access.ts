// Users, roles, tokens, sessions and the audit as the server shows them (crates/quorate-api/src/access).

import type { Role, WallTime } from "./api";

export interface Me {
  /** A user's name, `root`, or `anyone` where nobody is asked. */
  who: string;
  user?: string;
  roles: string[];
  permissions: string[];
  session?: string;
}

export interface UserView {
  name: string;
  roles: string[];
  disabled: boolean;
  created: WallTime;
  password_changed: WallTime;
  sessions: number;
  tokens: number;
  /** Only in the answer that made it. */
  password?: string;
}

export interface RoleView {
  name: string;
  purpose: string;
  fixed: boolean;
  built_in: boolean;
  permissions: string[];
  users: string[];
}

export interface SessionView {
  id: string;
  user: string;
  from: string;
  created: WallTime;
  seen: WallTime;
}

export interface TokenView {
  id: string;
  user: string;
  label: string;
  scopes: string[];
  dangerous: boolean;
  created: WallTime;
  expires: WallTime;
  /** Only in the answer that made it. */
  token?: string;
}

export interface AuditLink {
  seq: number;
  index: number;
  at: WallTime;
  who: string;
  from: string;
  what: string;
  target: string;
  outcome: string;
  hash: string;
}

export interface AuditVerdict {
  node: string;
  entries: number;
  head: { seq: number; hash: string };
  broken?: { seq: number; why: string };
}

export interface JoinTokenView {
  id: string;
  role: Role;
  name?: string;
  created: WallTime;
  expires: WallTime;
  used_by?: string;
  used_at?: WallTime;
}

export interface Invited {
  token: JoinTokenView;
  commands: string[];
  index: number;
}

/** All that a role can grant, as groups that belong together. */
export const PERMISSIONS = [
  "cluster-read", "log-read", "node-log-read", "service-apply", "service-scale", "service-remove", "manager-control",
  "member-write", "sql-read", "sql-write", "gateway-feed", "user-read", "user-write", "role-write", "session-read",
  "session-revoke", "token-read", "token-revoke", "audit-read", "secret-read", "secret-write",
] as const;

/** Whoever is nobody in particular (`quorate dev`, or root) may do everything. */
export function can(me: Me | null, permission: string): boolean {
  return me !== null && me.permissions.includes(permission);
}

/** What to add and what to take to get from one set to another, in a fixed order. */
export function difference(from: readonly string[], to: readonly string[]): { add: string[]; take: string[] } {
  return {
    add: to.filter((one) => !from.includes(one)).sort(),
    take: from.filter((one) => !to.includes(one)).sort(),
  };
}

export type OutcomeKind = "done" | "begun" | "refused" | "denied";

/** `done`, `begun`, `refused: …`, `denied: …`; a word of a newer server counts as done. */
export function outcomeKind(outcome: string): OutcomeKind {
  const word = /^(begun|refused|denied)/.exec(outcome)?.[1];
  return (word as OutcomeKind | undefined) ?? "done";
}

export interface AuditFilter {
  /** Words that must all be found, in whatever field. */
  text: string;
  outcome: OutcomeKind | "all";
}

export function matchesAudit(link: AuditLink, filter: AuditFilter): boolean {
  if (filter.outcome !== "all" && outcomeKind(link.outcome) !== filter.outcome) return false;
  const hay = [link.who, link.from, link.what, link.target, link.outcome, `#${link.seq}`].join(" ").toLowerCase();
  return filter.text.toLowerCase().split(/\s+/).every((word) => hay.includes(word));
}

/** Where to ask for the lines before `oldest`; `null` when there are none. */
export function before(oldest: number, limit: number): { after: number; limit: number } | null {
  if (oldest <= 1) return null;
  const after = Math.max(0, oldest - 1 - limit);
  return { after, limit: oldest - 1 - after };
}

/** Two pieces of the audit as one, newest first, each line once. */
export function joinAudit(known: AuditLink[], more: AuditLink[]): AuditLink[] {
  const bySeq = new Map([...known, ...more].map((link) => [link.seq, link]));
  return [...bySeq.values()].sort((a, b) => b.seq - a.seq);
}
