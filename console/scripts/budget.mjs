// Fails when the first load of the console grows beyond its budget (gzip -9, as the server could send).

import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const BUDGET = 80 * 1024;
const built = join(dirname(fileURLToPath(import.meta.url)), "../../crates/quorate-api/console");

let total = 0;
for (const name of ["index.html", "app.js", "app.css", "favicon.svg"]) {
  const bytes = gzipSync(readFileSync(join(built, name)), { level: 9 }).length;
  total += bytes;
  console.log(`${name.padEnd(12)} ${(bytes / 1024).toFixed(1).padStart(6)} KiB gz`);
}
console.log(`${"first load".padEnd(12)} ${(total / 1024).toFixed(1).padStart(6)} KiB gz of ${BUDGET / 1024}`);
if (total > BUDGET) {
  console.error("The first load is over its budget: take something out, or load it later.");
  process.exit(1);
}
