import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vitest/config";

// The output is committed and built into the server, so that `cargo build` needs no Node. Its names
// are fixed: hashed names would make every two branches conflict. The server's ETag does what the
// hashes would do.
export default defineConfig({
  // Pages are at several depths below /ui.
  base: "/ui/",
  plugins: [svelte()],
  build: {
    outDir: "../crates/quorate-api/console",
    emptyOutDir: true,
    target: "es2022",
    sourcemap: false,
    cssCodeSplit: false,
    modulePreload: { polyfill: false },
    // A data: URL would be refused by the content security policy.
    assetsInlineLimit: 0,
    reportCompressedSize: false,
    rolldownOptions: {
      output: { entryFileNames: "app.js", chunkFileNames: "[name].js", assetFileNames: "app[extname]" },
    },
  },
  test: { include: ["tests/unit/**/*.test.ts"] },
});
