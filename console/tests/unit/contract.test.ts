import { expect, it } from "vitest";
import policy from "../../../crates/quorate-model/src/access/policy.rs?raw";
import openapi from "../../../docs/reference/openapi.json";
import { PERMISSIONS } from "../../src/lib/access";

const sources = import.meta.glob<string>("../../src/**/*.{ts,svelte}", { query: "?raw", import: "default", eager: true });

/** `/v1/nodes/${node.id}/alias` and `/v1/nodes/{node}/alias` are one path. */
const shape = (path: string): string => path.replace(/\$\{[^}]*\}|\{[^}]*\}/g, "{}").replace(/\?.*$/, "").replace(/\/$/, "");

it("asks only for what the API describes", () => {
  const described = new Set(Object.keys(openapi.paths).map(shape));
  const asked = Object.entries(sources).flatMap(([file, text]) =>
    [...text.matchAll(/["'`](\/v1\/[^"'`]*)["'`]/g)].map(([, path]) => ({ file, path: shape(path ?? "") })),
  );
  expect(asked.length).toBeGreaterThan(20);
  expect(asked.filter(({ path }) => !described.has(path))).toEqual([]);
});

it("knows every permission that the server knows", () => {
  const block = /Permission \{([^}]*)\}/.exec(policy)?.[1] ?? "";
  const words = [...block.matchAll(/= "([a-z-]+)"/g)].map(([, word]) => word);
  expect(words.length).toBeGreaterThan(10);
  expect([...PERMISSIONS].sort()).toEqual(words.sort());
});
