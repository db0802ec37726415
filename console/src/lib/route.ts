// Which page an address names. Paths begin at /ui; the server sends the same file for all of them.

export const PAGES = ["overview", "nodes", "access"] as const;
export type Page = (typeof PAGES)[number];

export const TABS = ["you", "users", "roles", "tokens", "sessions", "audit"] as const;
export type Tab = (typeof TABS)[number];

export interface Route {
  page: Page;
  /** Of the page `access`; `null` leaves the choice to the page. */
  tab: Tab | null;
}

/** An unknown path is the overview: a bookmark of an older console still opens something. */
export function parse(pathname: string): Route {
  const [page, tab] = pathname.replace(/^\/ui\/?/, "").split("/");
  if (page === "nodes") return { page, tab: null };
  if (page === "access") return { page, tab: TABS.find((known) => known === tab) ?? null };
  return { page: "overview", tab: null };
}

export function path({ page, tab }: Route): string {
  if (page === "overview") return "/ui/";
  return tab === null ? `/ui/${page}` : `/ui/${page}/${tab}`;
}

/** What a tab needs to show anything; `you` is for everybody. */
const NEEDS: Record<Tab, string | null> = {
  you: null, users: "user-read", roles: "user-read", tokens: "token-read", sessions: "session-read", audit: "audit-read",
};

/** The tabs that somebody with these permissions has. */
export function tabsFor(permissions: readonly string[]): Tab[] {
  return TABS.filter((tab) => {
    const needs = NEEDS[tab];
    return needs === null || permissions.includes(needs);
  });
}
