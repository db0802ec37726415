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
import { parseArgs } from "node:util";
import { startMock } from "./mock.mjs";
import { openBrowser } from "./page.mjs";

const { values, positionals } = parseArgs({ allowPositionals: true, options: { shots: { type: "string" } } });
const mock = positionals[0] ? null : await startMock();
const base = positionals[0] ?? `${mock.urls[0]}ui/`;
const origin = new URL(base).origin;
const browser = await openBrowser({ origins: [origin], shots: values.shots });
const { context, page, quiet, accessible, shoot, noOverflow } = browser;

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
  await page.locator(".live.live").waitFor();
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

  // The other pages have addresses of their own, and keys.
  await page.locator("body").press("n");
  await page.waitForURL((url) => url.pathname === "/ui/nodes");
  for (const node of status.nodes) await page.locator("[data-node]", { has: page.getByRole("button", { name: node.name, exact: true }) }).waitFor();
  await page.getByText("voting manager may be lost").first().waitFor();
  await accessible("on the Nodes page");
  await noOverflow("on the Nodes page");
  await shoot("nodes");
  await page.locator("body").press("a");
  await page.waitForURL((url) => url.pathname === "/ui/access");
  // Nobody is asked who they are here, so the page begins with what anybody may do.
  await page.getByText("Open access").waitFor();
  await page.getByRole("tab", { name: "Users", selected: true }).waitFor();
  await page.getByText("There is no user yet").waitFor();
  await accessible("on the Access page");
  await page.goBack();
  await page.waitForURL((url) => url.pathname === "/ui/nodes");
  await page.locator("body").press("s");
  await page.waitForURL((url) => url.pathname === "/ui/");
  await page.locator("#services").waitFor();
  await page.locator("body").press("o");
  quiet("on the other pages");
  console.log("ok  every page by its key");
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
    quiet("with a refusal", [400]);

    for (const scene of ["trouble", "empty", "crowd"]) {
      mock.set(scene);
      await page.waitForFunction((name) => document.querySelector(".sentence")?.textContent?.includes(name), { trouble: "n1 is down", empty: "no service", crowd: "No leader" }[scene]);
      if (scene === "trouble") await page.getByRole("button", { name: "Details of web" }).click();
      await accessible(`in ${scene}`);
      await noOverflow(`in ${scene}`);
      await shoot(scene);
      await page.locator("body").press("n");
      await page.locator("#nodes-title").waitFor();
      await accessible(`in ${scene}, on the Nodes page`);
      await noOverflow(`in ${scene}, on the Nodes page`);
      await shoot(`nodes-${scene}`);
      await page.locator("body").press("o");
      await page.locator("#overview").waitFor();
      quiet(`in ${scene}`);
      console.log(`ok  ${scene}`);
    }

    // K6: nothing about managers is on any page while high availability is off, but its switch.
    mock.set("alone");
    await page.waitForFunction(() => document.querySelector(".sentence")?.textContent === "1 node");
    for (const key of ["o", "n"]) {
      await page.locator("body").press(key);
      await page.locator(key === "o" ? "#overview" : "#nodes-title").waitFor();
      const shown = (await page.locator("main").innerText()).toLowerCase();
      for (const word of ["leader", "active", "passive", "voting", "quorum", "may be lost", "lag", "mode", "behind"]) {
        assert.ok(!shown.includes(word), `${word} is on the page of a node that is alone: ${shown}`);
      }
    }
    await accessible("alone");
    await page.getByRole("button", { name: "Switch on" }).click();
    await page.getByText("quorate ha enable").waitFor();
    await accessible("with the switch");
    await page.getByRole("button", { name: "Cancel" }).click();
    await page.locator("body").press("o");
    quiet("alone");
    console.log("ok  alone");

    mock.set("calm");
    await page.locator(".sentence", { hasText: "All services" }).waitFor();
    mock.kill(0);
    const began = Date.now();
    await page.waitForURL((url) => url.origin !== origin);
    await page.getByText("n1 stopped answering").waitFor();
    await page.locator(".live.live").waitFor();
    console.log(`ok  moved to another node ${Date.now() - began} ms after the death of its own`);
    await accessible("after the move");

    mock.stop();
    await page.getByText("Stale since").waitFor();
    await accessible("when stale");
    await shoot("stale");
    console.log("ok  says that it is stale when no node answers");
  }
} finally {
  await browser.close();
  mock?.stop();
}
