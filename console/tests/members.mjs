// The console's Nodes and Access pages on a real cluster that asks who is there, over TLS.
//
//   node console/tests/members.mjs QUORATE_BINARY [--shots DIR]
//
// Four managers (three vote, one stands by) made with `init` and `join`. What is done by hand on the
// page is looked at through the command line, and the other way round.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { startCluster, until } from "./cluster.mjs";
import { openBrowser } from "./page.mjs";

const { values, positionals } = parseArgs({ allowPositionals: true, options: { shots: { type: "string" } } });
const [binary] = positionals;
if (!binary) {
  console.error("usage: node console/tests/members.mjs QUORATE_BINARY [--shots DIR]");
  process.exit(2);
}
const PASSWORD = "correct horse battery";
const SPEC = `
[[service]]
name = "hold"
mode = "replicated"
replicas = 3
driver = "process"
command = ["/bin/sleep", "86400"]
`;

const began = Date.now();
const cluster = await startCluster(binary, 4);
let browser;
try {
  console.log(`ok  four managers are joined after ${Date.now() - began} ms`);
  await cluster.createUser("admin", "admin", PASSWORD);
  await cluster.createUser("vera", "viewer", PASSWORD);
  writeFileSync(join(cluster.directory, "hold.toml"), SPEC);
  await cluster.asRoot("n1", "service", "apply", "--file", join(cluster.directory, "hold.toml"), "--yes");

  const urlOf = (name) => cluster.nodes.get(name).url;
  const originOf = (name) => new URL(urlOf(name)).origin;
  const origins = [...cluster.nodes.keys()].map(originOf);
  browser = await openBrowser({ origins, shots: values.shots, insecure: true });
  const { context, page, quiet, forget, accessible, shoot, noOverflow } = browser;

  const row = (name) => page.locator(`tr[data-node="${name}"]`);
  const dialog = page.getByRole("dialog");
  const field = (name) => page.getByRole("textbox", { name, exact: true });
  const press = (name) => page.getByRole("button", { name, exact: true }).click();
  const inDialog = (name) => dialog.getByRole("button", { name, exact: true });
  async function act(node, word) {
    await press(`Actions for ${node}`);
    await page.getByRole("menuitem", { name: word }).click();
    await dialog.waitFor();
  }
  async function logIn(user, password) {
    await field("User").fill(user);
    await field("Password").fill(password);
    await page.keyboard.press("Enter");
  }
  const gone = () => dialog.waitFor({ state: "detached" });

  // ── Log in ───────────────────────────────────────────────────────────────────────────────────
  // A passive manager sends page requests to the active one (K3), path and all.
  await page.goto(`${urlOf("n2")}ui/nodes`);
  assert.equal(page.url(), `${urlOf("n1")}ui/nodes`, "a passive manager sends the page to the active one");
  await field("User").waitFor();
  await accessible("on the login page");
  await noOverflow("on the login page");
  await shoot("login");
  await logIn("admin", "a wrong password");
  await page.getByText("The user or the password is wrong").waitFor();
  await page.getByText("Fix:").waitFor();
  await logIn("admin", PASSWORD);
  await row("n4").waitFor();
  assert.equal(new URL(page.url()).pathname, "/ui/nodes", "the page that was asked for");
  await page.getByRole("link", { name: "Signed in as admin admin" }).waitFor();
  quiet("around the login", [401]);
  console.log("ok  logged in, after a wrong password, at the page that was asked for");

  // ── The Nodes page ───────────────────────────────────────────────────────────────────────────
  for (const [name, mode] of [["n1", "Active"], ["n2", "Passive"], ["n3", "Passive"], ["n4", "Standby"]]) {
    await row(name).getByText(mode, { exact: true }).waitFor();
    await row(name).locator(".tone-ok").getByText("Joined").waitFor();
  }
  await page.getByText("1 voting manager may be lost").waitFor();
  await page.getByText("n4 is standby").waitFor();
  await page.getByText("3 of 3 healthy").first().waitFor({ timeout: 60_000 });
  await accessible("on the Nodes page");
  await noOverflow("on the Nodes page");
  await shoot("nodes-members");

  // K2: the alias of a passive manager, where it stands, by keyboard alone.
  await page.getByRole("button", { name: "Set alias of n3" }).focus();
  await page.keyboard.press("Enter");
  await page.keyboard.type("msk-3");
  await page.keyboard.press("Enter");
  await page.getByRole("button", { name: "msk-3: change the alias of n3" }).waitFor();
  assert.equal((await cluster.json("n2", "node", "show", "n3")).alias, "msk-3");
  await page.keyboard.press("Enter");
  await page.keyboard.type("never mind");
  await page.keyboard.press("Escape");
  await page.getByRole("button", { name: "msk-3: change the alias of n3" }).waitFor();
  console.log("ok  the alias of a passive manager is edited in place, by keyboard");

  await press("n3");
  const id = (await cluster.json("n1", "node", "show", "n3")).id;
  const { replicas } = await cluster.json("n1", "service", "show", "hold");
  const runs = replicas.some(({ node }) => node === "n3") ? "hold." : "none";
  for (const text of [id, "votes", "msk-3", runs]) await dialog.getByText(text).first().waitFor();
  await accessible("with properties open");
  await shoot("properties");
  await page.keyboard.press("Escape");
  await gone();

  // ── The password again ───────────────────────────────────────────────────────────────────────
  // The list of acts by keyboard.
  await page.getByRole("button", { name: "Actions for n2" }).focus();
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.activeElement?.getAttribute("role") === "menuitem");
  await page.keyboard.press("ArrowDown");
  assert.equal(await page.evaluate(() => document.activeElement?.textContent), "Make active");
  await page.keyboard.press("Enter");
  await dialog.waitFor();
  assert.ok(await inDialog("Make active").isDisabled(), "there is no act without the password");
  await field("Your password").fill("a wrong password");
  await inDialog("Make active").click();
  await dialog.getByText("The user or the password is wrong").waitFor();
  assert.equal((await cluster.json("n1", "status")).cluster.leader, "n1", "a wrong password changes nothing");
  await accessible("with a password refused");
  await shoot("step-up-refused");
  await field("Your password").fill(PASSWORD);
  await page.keyboard.press("Enter");
  await gone();
  await row("n2").getByText("Active", { exact: true }).waitFor();
  await row("n1").getByText("Passive", { exact: true }).waitFor();
  // It asks nobody who has no password to give.
  await press("Actions for n2");
  assert.equal(await page.getByRole("menuitem", { name: "Make active" }).count(), 0, "the active one is active");
  await page.keyboard.press("Escape");
  quiet("around the acts", [401, 403]);
  console.log("ok  leadership moved with the right password, and not with a wrong one");

  // ── Add a node with the command that the page shows ──────────────────────────────────────────
  await press("Add node");
  await dialog.getByRole("radio", { name: "worker" }).check();
  await dialog.getByText("quorate add-node --role worker").waitFor();
  await accessible("with the dialog for a node");
  await field("Your password").fill(PASSWORD);
  await inDialog("Make token").click();
  await dialog.getByText("sudo quorate join").waitFor();
  const command = await dialog.locator("code").first().innerText();
  assert.match(command, /^sudo quorate join 127\.0\.0\.1:\d+\/[a-z2-7]{32}\/[0-9a-f]{64}$/);
  await accessible("with the join command");
  await shoot("add-node");
  await cluster.join("n5", command.replace("sudo quorate join ", ""), ["--role", "worker"]);
  await dialog.getByText("n5 has joined with this token.").waitFor({ timeout: 30_000 });
  await inDialog("Close").last().click();
  await row("n5").getByText("Joined").waitFor();
  await row("n5").getByText("worker", { exact: true }).waitFor();
  // Another token, which nobody will use.
  await cluster.asRoot("n1", "add-node", "--role", "gateway", "--name", "edge");
  const token = page.getByRole("row", { name: /edge/ });
  await token.getByRole("button", { name: /^Revoke/ }).click();
  await token.waitFor({ state: "detached" });
  console.log("ok  a node joined with the command that the page showed; a token was revoked");

  // ── Red and green ────────────────────────────────────────────────────────────────────────────
  await cluster.kill("n3");
  await row("n3").locator(".tone-bad").getByText("Down").waitFor({ timeout: 60_000 });
  await page.getByText("(not n3)").waitFor();
  await accessible("with a node down");
  await noOverflow("with a node down");
  await shoot("node-down");
  cluster.serve("n3");
  await row("n3").locator(".tone-ok").getByText("Joined").waitFor({ timeout: 60_000 });
  console.log("ok  a node that died is red, and green when it is back");

  // ── Managers (K4, K5) ────────────────────────────────────────────────────────────────────────
  await page.goto(`${urlOf("n2")}ui/nodes`);
  await press("Actions for n2");
  const stopActive = page.getByRole("menuitem", { name: /^Stop manager/ });
  assert.equal(await stopActive.getAttribute("aria-disabled"), "true");
  assert.match(await stopActive.innerText(), /make another one active first/);
  await accessible("with a menu open");
  await page.keyboard.press("Escape");
  async function confirmed(word) {
    await field("Your password").fill(PASSWORD);
    await inDialog(word).click();
    await gone();
  }
  const generation = async (name) => (await cluster.json("n2", "node", "show", name)).generation;
  await act("n3", "Stop manager");
  await accessible("with the dialog that stops a manager");
  await confirmed("Stop manager");
  await row("n3").getByText("Stopped", { exact: true }).waitFor();
  // The standby takes its place.
  await row("n4").getByText("Passive", { exact: true }).waitFor({ timeout: 30_000 });
  await page.getByText("n3 is stopped").waitFor();
  await accessible("with a manager stopped");
  await shoot("manager-stopped");
  await act("n3", "Start manager");
  await confirmed("Start manager");
  await row("n3").getByText("Stopped", { exact: true }).waitFor({ state: "detached" });
  const before = await generation("n3");
  await act("n3", "Restart");
  await confirmed("Restart");
  await until("n3 is started anew", async () => (await generation("n3")) > before);
  await row("n3").locator(".tone-ok").getByText("Joined").waitFor({ timeout: 30_000 });

  await press("Managers: acts on several");
  await page.getByRole("menuitem", { name: "Restart all passive" }).click();
  const all = { n1: await generation("n1"), n3: await generation("n3"), n4: await generation("n4") };
  await field("Your password").fill(PASSWORD);
  await inDialog("Restart all passive").click();
  await dialog.waitFor({ state: "detached", timeout: 120_000 });
  for (const name of Object.keys(all)) await until(`${name} is started anew`, async () => (await generation(name)) > all[name]);
  for (const name of Object.keys(all)) await row(name).locator(".tone-ok").getByText("Joined").waitFor({ timeout: 30_000 });
  assert.equal((await cluster.json("n2", "status")).cluster.leader, "n2", "the active one went on");

  await press("Managers: acts on several");
  await page.getByRole("menuitem", { name: "Stop all passive" }).click();
  await dialog.getByText("n2 decides alone then").waitFor();
  await confirmed("Stop all passive");
  for (const name of ["n1", "n3", "n4"]) await row(name).getByText("Stopped", { exact: true }).waitFor();
  await page.getByText("The only voting manager may not be lost").waitFor({ timeout: 30_000 });
  await press("Managers: acts on several");
  await page.getByRole("menuitem", { name: "Start all stopped" }).click();
  await confirmed("Start all stopped");
  await page.getByText("1 voting manager may be lost").waitFor({ timeout: 60_000 });
  quiet("around the managers", [403]);

  await act("n2", "Restart active");
  await confirmed("Restart active");
  await until("another one is active", async () => {
    const { leader } = (await cluster.json("n1", "status")).cluster;
    return leader !== null && leader !== "n2";
  });
  await row("n2").getByText("Active", { exact: true }).waitFor({ state: "detached", timeout: 30_000 });
  await row("n2").locator(".tone-ok").getByText("Joined").waitFor({ timeout: 60_000 });
  await page.goto(`${urlOf("n1")}ui/nodes`);
  await row("n2").waitFor();
  // Connections to the node that restarted broke: the browser notes that.
  forget();
  console.log("ok  managers are stopped, started and restarted, one and all; the active one hands over first");

  // ── Remove ───────────────────────────────────────────────────────────────────────────────────
  await cluster.kill("n5", "SIGTERM");
  await row("n5").getByText("Left").waitFor({ timeout: 30_000 });
  await act("n5", "Remove");
  await field("Your password").fill(PASSWORD);
  await field("Type n5 to confirm").fill("n4");
  assert.ok(await inDialog("Remove").isDisabled(), "another name does not remove it");
  await field("Type n5 to confirm").fill("n5");
  await accessible("with the dialog that removes");
  await inDialog("Remove").click();
  await row("n5").waitFor({ state: "detached" });
  assert.ok(!(await cluster.json("n1", "node", "list")).some(({ name }) => name === "n5"));
  quiet("on the Nodes page", [403]);
  console.log("ok  a node is removed with its name and the password");

  // ── Access ───────────────────────────────────────────────────────────────────────────────────
  const tab = async (name) => {
    await page.getByRole("tab", { name, exact: true }).click();
    await page.getByRole("tab", { name, exact: true, selected: true }).waitFor();
  };
  await page.locator("body").press("a");
  await tab("Users");
  await press("New user");
  await field("User").fill("bob");
  await dialog.getByRole("checkbox", { name: "operator" }).check();
  await dialog.getByText("quorate user create bob --role operator").waitFor();
  await accessible("with the dialog for a user");
  await field("Your password").fill(PASSWORD);
  await inDialog("Create user").click();
  await dialog.getByText("Shown once").waitFor();
  const chosen = await dialog.locator("code").first().innerText();
  await shoot("user-created");
  await inDialog("Close").last().click();
  const bob = page.locator('tr[data-user="bob"]');
  await bob.getByText("operator").waitFor();
  const login = { data: { user: "bob", password: chosen, token: true } };
  const answer = await context.request.post(`${urlOf("n4")}v1/login`, login);
  assert.equal(answer.status(), 200, "the new user logs in on another node with the password that was shown");
  await accessible("with the users");
  await noOverflow("with the users");
  await shoot("access-users");

  await press("Actions for bob");
  await page.getByRole("menuitem", { name: "Change roles" }).click();
  await dialog.getByRole("checkbox", { name: "operator" }).uncheck();
  await dialog.getByRole("checkbox", { name: "auditor" }).check();
  await field("Your password").fill(PASSWORD);
  await inDialog("Apply").click();
  await gone();
  assert.deepEqual((await cluster.json("n3", "user", "show", "bob")).roles, ["auditor"]);
  await press("Actions for bob");
  await page.getByRole("menuitem", { name: "Disable" }).click();
  await dialog.getByText("1 session ends").waitFor();
  await field("Your password").fill(PASSWORD);
  await inDialog("Disable").click();
  await bob.locator(".tone-bad").getByText("disabled").waitFor();
  assert.equal((await context.request.post(`${urlOf("n4")}v1/login`, login)).status(), 401);
  // The last admin stays, and the server says why.
  await press("Actions for admin");
  await page.getByRole("menuitem", { name: "Remove" }).click();
  await field("Your password").fill(PASSWORD);
  await inDialog("Remove").click();
  await dialog.getByText("is the last admin").waitFor();
  await page.keyboard.press("Escape");
  quiet("with the users", [401, 403, 409]);
  console.log("ok  a user is made, changed and disabled; the last admin stays");

  await tab("Roles");
  await press("Clone auditor");
  await field("Name of the new role").fill("inspector");
  await field("Your password").fill(PASSWORD);
  await inDialog("Clone").click();
  await gone();
  await press("Change inspector");
  await dialog.getByRole("checkbox", { name: "read logs of services" }).check();
  await dialog.getByRole("checkbox", { name: "see all tokens" }).uncheck();
  await accessible("with the dialog for a role");
  await field("Your password").fill(PASSWORD);
  await inDialog("Apply").click();
  await gone();
  const { permissions } = await cluster.json("n1", "role", "show", "inspector");
  assert.deepEqual(permissions, ["cluster-read", "log-read", "user-read", "session-read", "audit-read", "secret-read"]);
  await accessible("with the roles");
  await noOverflow("with the roles");
  await shoot("access-roles");
  assert.equal(await page.getByRole("button", { name: "Change admin" }).count(), 0, "a fixed role is only cloned");
  console.log("ok  a role is cloned and changed, with one password for both changes");

  await tab("You");
  await press("New token");
  await field("What it is for").fill("build server");
  await dialog.getByRole("checkbox", { name: "see the cluster" }).check();
  await field("Your password").fill(PASSWORD);
  await inDialog("Make token").click();
  await dialog.getByText("Shown once").waitFor();
  const secret = await dialog.locator("code").first().innerText();
  await inDialog("Close").last().click();
  const program = { headers: { authorization: `Bearer ${secret}` } };
  assert.equal((await context.request.get(`${urlOf("n3")}v1/nodes`, program)).status(), 200);
  await press("Revoke the token build server");
  await inDialog("Revoke").click();
  await gone();
  await until("the token is refused", async () => (await context.request.get(`${urlOf("n3")}v1/nodes`, program)).status() === 401);

  // Another session of the same user, somewhere else.
  const elsewhere = await context.request.post(`${urlOf("n4")}v1/login`, { data: { user: "admin", password: PASSWORD, token: true } });
  const other = await elsewhere.json();
  await press(`End session ${other.session} of admin`);
  await page.getByRole("button", { name: `End session ${other.session} of admin` }).waitFor({ state: "detached" });
  const ended = { headers: { authorization: `Bearer ${other.token}` } };
  assert.equal((await context.request.get(`${urlOf("n4")}v1/me`, ended)).status(), 401);
  await accessible("with the own account");
  await noOverflow("with the own account");
  await shoot("access-you");
  for (const name of ["API tokens", "Sessions"]) {
    await tab(name);
    await page.getByRole("heading", { level: 2, name, exact: true }).waitFor();
    await accessible(`with ${name}`);
  }
  console.log("ok  a token works once it is shown until it is revoked; a session elsewhere is ended");

  await tab("Audit");
  await page.getByRole("searchbox").fill("admin node-remove n5");
  await page.getByRole("row").filter({ hasText: "node-remove" }).filter({ hasText: "done" }).first().waitFor();
  await page.getByRole("combobox", { name: "Outcome" }).selectOption("denied");
  await page.getByText("No loaded line matches").waitFor();
  await page.getByRole("searchbox").fill("");
  await page.getByText("denied: wrong user or password").first().waitFor();
  await press("Verify");
  await page.getByText(/The chain holds on n\d/).waitFor();
  await accessible("with the audit");
  await noOverflow("with the audit");
  await shoot("access-audit");
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("link", { name: "Export" }).click()]);
  const file = join(cluster.directory, "audit.ndjson");
  await download.saveAs(file);
  execFileSync(binary, ["audit", "verify", "--file", file]);
  quiet("on the Access page", [403]);
  console.log("ok  the audit is filtered, verified and exported");

  // ── A session that ends ──────────────────────────────────────────────────────────────────────
  // Leadership goes elsewhere, so this manager is passive: a page that is loaded anew would leave it.
  const address = page.url();
  const passive = (await cluster.json("n1", "node", "list")).find(({ mode, standing, api }) => mode === "passive" && standing === "voter" && new URL(api).origin !== new URL(address).origin);
  await cluster.asRoot("n1", "raft", "transfer", passive.name);
  const here = await page.evaluate(() => fetch("/v1/me").then((answer) => answer.json()));
  await cluster.asRoot("n1", "session", "revoke", here.session);
  // The list asks by itself when the cluster moved on.
  await page.getByText("Log in to go on where you were").waitFor();
  await accessible("with an ended session");
  await logIn("admin", PASSWORD);
  await page.getByRole("tab", { name: "Audit", exact: true, selected: true }).waitFor();
  // The page goes on here, where the login counts.
  assert.equal(page.url(), address);
  quiet("around the end of a session", [401]);
  console.log("ok  an ended session leads to the login page, and that back to the page");

  // ── The node that serves the page dies ───────────────────────────────────────────────────────
  const serving = passive.name;
  await page.goto(`${urlOf(serving)}ui/nodes`);
  await row(serving).getByText("serves this page").waitFor();
  await cluster.kill(serving);
  await page.waitForURL((url) => url.origin !== originOf(serving), { timeout: 30_000 });
  await page.getByText(`${serving} stopped answering`).waitFor();
  await row(serving).locator(".tone-bad").getByText("Down").waitFor({ timeout: 60_000 });
  assert.equal(new URL(page.url()).pathname, "/ui/nodes");
  cluster.serve(serving);
  await row(serving).locator(".tone-ok").getByText("Joined").waitFor({ timeout: 60_000 });
  // Connections that broke are in the browser's own log.
  console.log("ok  the page moved to another node when its own died");

  // ── Somebody who may only look ───────────────────────────────────────────────────────────────
  await press("Log out");
  await logIn("vera", PASSWORD);
  await row("n2").waitFor();
  assert.equal(await page.getByRole("button", { name: "Add node" }).count(), 0);
  assert.equal(await page.getByRole("button", { name: /alias of/ }).count(), 0);
  await press("Actions for n2");
  assert.deepEqual(await page.getByRole("menuitem").allInnerTexts(), ["Properties"]);
  await page.keyboard.press("Escape");
  await accessible("for a viewer");
  await page.locator("body").press("a");
  assert.deepEqual(await page.getByRole("tab").allInnerTexts(), ["You"]);
  await page.locator("body").press("s");
  await page.getByText("3 wanted").waitFor();
  await accessible("for a viewer, with services");
  console.log("ok  a viewer is offered nothing that a viewer may not do");

  // ── Too many guesses ─────────────────────────────────────────────────────────────────────────
  await press("Log out");
  for (let i = 0; i < 8 && !(await page.getByText(/too many tries/i).isVisible()); i += 1) {
    await field("User").fill("admin");
    await field("Password").fill(`guess number ${i}`);
    const [said] = await Promise.all([page.waitForResponse("**/v1/login"), page.keyboard.press("Enter")]);
    await said.finished();
    await page.getByRole("alert").getByText("Fix:").waitFor();
  }
  await page.getByText(/too many tries/i).waitFor();
  await page.getByText(/wait \d+ s/i).waitFor();
  await accessible("with too many tries");
  await shoot("too-many-tries");
  console.log("ok  somebody who guesses is told to wait, and for how long");
} catch (error) {
  cluster.explain();
  if (browser && values.shots) await browser.page.screenshot({ path: join(values.shots, "failed.png"), fullPage: true });
  throw error;
} finally {
  await browser?.close();
  await cluster.stop();
}
