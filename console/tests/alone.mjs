// K6: the console of one real node, over TLS and with a login: nothing about managers while high
// availability is off, and the switch that turns it on and off again while the page stays as it is.
//
//   node console/tests/alone.mjs QUORATE_BINARY [--shots DIR]

import assert from "node:assert/strict";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { startCluster, until } from "./cluster.mjs";
import { openBrowser } from "./page.mjs";

const { values, positionals } = parseArgs({ allowPositionals: true, options: { shots: { type: "string" } } });
const [binary] = positionals;
if (!binary) {
  console.error("usage: node console/tests/alone.mjs QUORATE_BINARY [--shots DIR]");
  process.exit(2);
}
const PASSWORD = "correct horse battery";

const cluster = await startCluster(binary, 1);
let browser;
try {
  await cluster.createUser("admin", "admin", PASSWORD);
  const { url } = cluster.nodes.get("n1");
  browser = await openBrowser({ origins: [new URL(url).origin], shots: values.shots, insecure: true });
  const { page, quiet, accessible, shoot, noOverflow } = browser;
  const field = (name) => page.getByRole("textbox", { name, exact: true });
  const press = (name) => page.getByRole("button", { name, exact: true }).click();
  const dialog = page.getByRole("dialog");
  const modes = page.getByRole("columnheader", { name: "Mode" });

  async function turn(word) {
    await press(word);
    await dialog.waitFor();
    await accessible(`with the dialog to ${word}`);
    await page.getByLabel("Password", { exact: false }).last().fill(PASSWORD);
    await dialog.getByRole("button", { name: word, exact: true }).click();
    await dialog.waitFor({ state: "detached" });
  }

  await page.goto(`${url}ui/nodes`);
  await field("User").fill("admin");
  await page.getByLabel("Password", { exact: true }).fill(PASSWORD);
  await page.keyboard.press("Enter");
  await page.locator('tr[data-node="n1"]').waitFor();
  assert.equal(await modes.count(), 0, "no mode of a manager while it is off");
  await press("Actions for n1");
  assert.deepEqual(await page.getByRole("menuitem").allInnerTexts(), ["Properties", "Restart", "Change roles"]);
  await page.keyboard.press("Escape");
  await accessible("alone");
  await noOverflow("alone");
  await shoot("alone");

  await turn("Switch on");
  await modes.waitFor();
  await page.locator('tr[data-node="n1"]').getByText("Active", { exact: true }).waitFor();
  await page.getByText("The only voting manager may not be lost").waitFor();
  assert.equal((await cluster.json("n1", "ha", "show")).enabled, true);
  await accessible("alone, with it on");
  await shoot("alone-on");

  await turn("Switch off");
  await modes.waitFor({ state: "detached" });
  await until("it is off", async () => !(await cluster.json("n1", "ha", "show")).enabled);
  // Each act was refused once, so that the password was asked for.
  quiet("while it was switched", [401, 403]);
  console.log("ok  nothing about managers while alone, switched on and off with the password");
} catch (error) {
  cluster.explain();
  if (browser && values.shots) await browser.page.screenshot({ path: join(values.shots, "failed.png"), fullPage: true });
  throw error;
} finally {
  await browser?.close();
  await cluster.stop();
}
