// The console in a real browser.
//
//   node tests/browser.mjs [--shots DIR] [BASE_URL]
//
// BASE_URL is the console of a running node, with its sign-in token. Without it a mock cluster is
// started, which can also be broken: then the states of trouble and the move to another node are
// tested too. Checks: nothing on the console's log, no request to another origin, a change made
// through another node is on the page in less than 500 ms without a reload, and axe finds nothing in
// either theme. `--shots` writes screenshots (wide and narrow, light and dark).

import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";
import { startMock } from "./mock.mjs";

const { values, positionals } = parseArgs({ allowPositionals: true, options: { shots: { type: "string" } } });
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const mock = positionals[0] ? null : await startMock();
const base = positionals[0] ?? `${mock.urls[0]}ui/`;
const origin = new URL(base).origin;
if (values.shots) mkdirSync(values.shots, { recursive: true });

const profile = mkdtempSync(join(tmpdir(), "quorate-console-"));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  headless: true,
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  viewport: { width: 1440, height: 1000 },
});
context.setDefaultTimeout(10_000);

let complaints = [];
const page = context.pages()[0] ?? (await context.newPage());
page.on("console", (message) => {
  if (["error", "warning"].includes(message.type())) complaints.push(message.text());
});
page.on("pageerror", (error) => complaints.push(String(error)));
page.on("request", (request) => {
  const url = new URL(request.url());
  if (url.protocol.startsWith("http") && url.origin !== origin) complaints.push(`request to ${url.href}`);
});

const quiet = (when) => assert.deepEqual(complaints, [], `the page complained ${when}`);

async function accessible(when) {
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
  if (!values.shots) return;
  for (const [width, height] of [[1440, 1000], [360, 800]]) {
    await page.setViewportSize({ width, height });
    await page.evaluate(() => scrollTo({ top: 0, behavior: "instant" }));
    for (const theme of ["light", "dark"]) {
      await page.evaluate((to) => (document.documentElement.dataset.theme = to), theme);
      await page.waitForTimeout(900);
      await page.screenshot({ path: join(values.shots, `${name}-${theme}-${width}.png`), fullPage: true });
    }
  }
  await page.setViewportSize({ width: 1440, height: 1000 });
}

async function noOverflow(when) {
  for (const width of [1440, 768, 360]) {
    await page.setViewportSize({ width, height: 900 });
    const [content, window] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    assert.ok(content <= window, `the page is ${content} wide in a window of ${width}, ${when}`);
  }
  await page.setViewportSize({ width: 1440, height: 1000 });
}

/** Milliseconds from `act` until `sees` is true on the page, which must not have been reloaded. */
async function untilSeen(act, sees, argument) {
  await page.evaluate(() => (globalThis.notReloaded = true));
  const began = Date.now();
  const seen = page.waitForFunction(sees, argument, { polling: "raf" });
  await act();
  await seen;
  const took = Date.now() - began;
  assert.ok(await page.evaluate(() => globalThis.notReloaded), "the page was reloaded");
  return took;
}

try {
  await page.goto(base);
  // The script is put in by the test, not by the page: evaluate is not subject to the page's policy.
  await page.locator(".live.live").waitFor();
  await page.evaluate(axe);
  const status = await page.evaluate(() => fetch("/v1/status").then((answer) => answer.json()));
  await page.getByRole("heading", { level: 1, name: status.cluster.name }).waitFor();
  for (const node of status.nodes) await page.locator(".nodes h3", { hasText: node.name }).waitFor();
  quiet("at the start");

  const subject = status.services[0];
  if (subject) {
    const other = status.nodes.find(({ name, state }) => name !== status.answered_by && state === "joined");
    const scale = (replicas) => async () => {
      const url = new URL(`/v1/services/${subject.name}/scale`, other.api).href;
      const answer = await context.request.post(url, { data: { replicas } });
      assert.ok(answer.ok(), `scaling through ${other.name}: ${answer.status()} ${await answer.text()}`);
    };
    const sees = (text) => document.querySelector("#services")?.textContent?.includes(text) ?? false;
    const took = await untilSeen(scale(subject.want + 1), sees, `of ${subject.want + 1} healthy`);
    assert.ok(took < 500, `a change through ${other.name} took ${took} ms to the page`);
    console.log(`ok  a change through ${other.name} is on the page in ${took} ms`);

    // The same back, by hand and by keyboard alone.
    await page.getByRole("button", { name: `One replica of ${subject.name} fewer` }).focus();
    await page.keyboard.press("Enter");
    await page.getByText(`quorate scale ${subject.name} ${subject.want}`, { exact: true }).waitFor();
    await page.getByRole("button", { name: `Scale ${subject.want + 1} → ${subject.want}` }).focus();
    await page.keyboard.press("Enter");
    await page.getByText(`of ${subject.want} healthy`).first().waitFor();
    console.log("ok  scaled by keyboard");

    await page.getByRole("button", { name: `Details of ${subject.name}` }).click();
    await page.locator(".replicas").first().getByText("PID").first().waitFor();
    await accessible("with details open");
    await shoot("details");
    await page.getByRole("button", { name: `Details of ${subject.name}` }).click();
  }
  await accessible("at rest");
  await noOverflow("at rest");
  await shoot("calm");

  await page.locator("body").press("?");
  await page.getByRole("dialog").waitFor();
  await accessible("with the keys shown");
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "detached" });
  await page.evaluate(() => delete document.documentElement.dataset.theme);
  await page.locator("body").press("t");
  assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), "light", "t changes the theme");
  quiet("after use");
  console.log("ok  axe finds nothing, nothing on the console's log, no request off-origin");

  if (mock) {
    const input = page.getByRole("textbox", { name: "Replicas of demo" });
    await input.fill("999");
    await input.press("Enter");
    await page.getByRole("button", { name: /^Scale 3 → 999/ }).click();
    await page.getByText("this cluster has room for 100").waitFor();
    await page.getByText("Ask for at most 100").waitFor();
    await accessible("with a refusal");
    await page.getByRole("button", { name: "Cancel" }).click();
    // The browser itself writes a refused request to the log.
    complaints = complaints.filter((text) => !text.includes("status of 400"));

    for (const scene of ["trouble", "empty", "crowd"]) {
      mock.set(scene);
      await page.waitForFunction((name) => document.querySelector(".sentence")?.textContent?.includes(name), { trouble: "n1 is down", empty: "no service", crowd: "No leader" }[scene]);
      if (scene === "trouble") await page.getByRole("button", { name: "Details of web" }).click();
      await accessible(`in ${scene}`);
      await noOverflow(`in ${scene}`);
      await shoot(scene);
      quiet(`in ${scene}`);
      console.log(`ok  ${scene}`);
    }

    mock.set("calm");
    await page.locator(".sentence", { hasText: "All services" }).waitFor();
    mock.kill(0);
    const began = Date.now();
    await page.waitForURL((url) => url.origin !== origin);
    await page.getByText("n1 stopped answering").waitFor();
    await page.locator(".live.live").waitFor();
    console.log(`ok  moved to another node ${Date.now() - began} ms after the death of its own`);
    await page.evaluate(axe);
    await accessible("after the move");

    mock.stop();
    await page.getByText("Stale since").waitFor();
    await accessible("when stale");
    await shoot("stale");
    console.log("ok  says that it is stale when no node answers");
  }
} finally {
  await context.close();
  mock?.stop();
  rmSync(profile, { recursive: true, force: true });
}
