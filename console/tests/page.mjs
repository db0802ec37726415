// A browser with one page, and what every page of the console has to keep.

import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/**
 * `origins`: where the page may send requests. `shots`: a directory for screenshots, if any.
 * `insecure`: the cluster's own authority is none that the browser knows.
 */
export async function openBrowser({ origins, shots, insecure = false }) {
  if (shots) mkdirSync(shots, { recursive: true });
  const profile = mkdtempSync(join(tmpdir(), "quorate-console-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    headless: true,
    ignoreHTTPSErrors: insecure,
    args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
    viewport: { width: 1440, height: 1000 },
  });
  context.setDefaultTimeout(20_000);
  // For work on the console: the files as they were built last, without a build of the server.
  if (process.env.CONSOLE_DIR) {
    await context.route(/\/ui\/app\.(js|css)$/, (route) => route.fulfill({ path: join(process.env.CONSOLE_DIR, new URL(route.request().url()).pathname.slice(4)) }));
  }

  let complaints = [];
  const page = context.pages()[0] ?? (await context.newPage());
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("request", (request) => {
    const url = new URL(request.url());
    if (url.protocol.startsWith("http") && !origins.includes(url.origin)) complaints.push(`request to ${url.href}`);
  });

  /** The browser itself writes a refused request to its log; `statuses` are those that were meant. */
  function quiet(when, statuses = []) {
    complaints = complaints.filter((text) => !statuses.some((status) => text.includes(`status of ${status}`)));
    assert.deepEqual(complaints, [], `the page complained ${when}`);
  }

  /** What was complained about so far was meant to happen. */
  const forget = () => {
    complaints = [];
  };

  async function accessible(when) {
    // The script is put in by the test, not by the page: evaluate is not subject to the page's policy.
    if (!(await page.evaluate(() => "axe" in globalThis))) await page.evaluate(axe);
    for (const theme of ["light", "dark"]) {
      await page.evaluate((name) => (document.documentElement.dataset.theme = name), theme);
      // Colours on their way from one theme to the other are not what the reader gets.
      await page.evaluate(() => Promise.all(document.getAnimations().filter((one) => one instanceof CSSTransition).map((one) => one.finished)));
      const violations = await page.evaluate(async () => {
        const found = await globalThis.axe.run(document, {
          runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
        });
        return found.violations.map(({ id, nodes }) => `${id}: ${nodes.map((one) => `${one.target} ${one.any[0]?.message ?? ""}`).join(" | ")}`);
      });
      assert.deepEqual(violations, [], `axe, ${theme} theme, ${when}`);
    }
  }

  async function shoot(name) {
    if (!shots) return;
    for (const [width, height] of [[1440, 1000], [360, 800]]) {
      await page.setViewportSize({ width, height });
      await page.evaluate(() => scrollTo({ top: 0, behavior: "instant" }));
      for (const theme of ["light", "dark"]) {
        await page.evaluate((to) => (document.documentElement.dataset.theme = to), theme);
        await page.waitForTimeout(900);
        await page.screenshot({ path: join(shots, `${name}-${theme}-${width}.png`), fullPage: true });
      }
    }
    await page.setViewportSize({ width: 1440, height: 1000 });
  }

  async function noOverflow(when) {
    for (const width of [1440, 900, 768, 360]) {
      await page.setViewportSize({ width, height: 900 });
      const [content, window] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
      assert.ok(content <= window, `the page is ${content} wide in a window of ${width}, ${when}`);
    }
    await page.setViewportSize({ width: 1440, height: 1000 });
  }

  async function close() {
    await context.close();
    rmSync(profile, { recursive: true, force: true });
  }

  return { context, page, quiet, forget, accessible, shoot, noOverflow, close };
}
