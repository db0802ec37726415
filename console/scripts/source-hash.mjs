// Writes the hash of everything that the built console is made of beside the built console.
//
// A Rust test recomputes it without Node: a changed source with an old build is a red test.
//
// Files: `.npmrc`, `index.html`, `package-lock.json`, `package.json`, `tsconfig.json`,
// `vite.config.ts`, and every file below `public/` and `src/`. Paths are relative to `console/`, with
// `/`, and sorted by their bytes. SHA-256 over, for each: path, NUL, content, NUL. The output is the
// hash in lower-case hex and a newline.

import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const alone = [".npmrc", "index.html", "package-lock.json", "package.json", "tsconfig.json", "vite.config.ts"];

function below(directory) {
  return readdirSync(join(root, directory), { withFileTypes: true }).flatMap((entry) => {
    const path = `${directory}/${entry.name}`;
    return entry.isDirectory() ? below(path) : [path];
  });
}

const paths = [...alone, ...below("public"), ...below("src")].sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
const hash = createHash("sha256");
for (const path of paths) {
  hash.update(path).update("\0").update(readFileSync(join(root, path))).update("\0");
}
writeFileSync(join(root, "../crates/quorate-api/console/.source-hash"), `${hash.digest("hex")}\n`);
