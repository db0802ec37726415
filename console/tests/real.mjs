// The console of a real cluster in a real browser.
//
//   node console/tests/real.mjs QUORATE_BINARY [browser.mjs's options]
//
// Starts `quorate dev`, runs browser.mjs against its console, stops it again.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const [binary, ...options] = process.argv.slice(2);
if (!binary) {
  console.error("usage: node console/tests/real.mjs QUORATE_BINARY [options]");
  process.exit(2);
}
const directory = mkdtempSync(join(tmpdir(), "quorate-real-"));
const dev = spawn(binary, ["dev", "--json", "--port-base", "0", "--keep", join(directory, "dev")], {
  stdio: ["ignore", "pipe", "inherit"],
});
let status = 1;
try {
  const lines = createInterface({ input: dev.stdout });
  const [line] = await Promise.race([
    once(lines, "line"),
    once(dev, "exit").then(([code]) => Promise.reject(new Error(`quorate dev ended with ${code}`))),
  ]);
  const { console: url } = JSON.parse(line);
  const script = join(dirname(fileURLToPath(import.meta.url)), "browser.mjs");
  const browser = spawn(process.execPath, [script, ...options, url], { stdio: "inherit" });
  [status] = await once(browser, "exit");
} finally {
  dev.kill("SIGTERM");
  if (dev.exitCode === null) await once(dev, "exit");
  rmSync(directory, { recursive: true, force: true });
}
process.exit(status ?? 1);
