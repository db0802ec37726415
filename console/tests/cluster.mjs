// A cluster as an operator makes it: `init`, `add-node`, `join`, with users, over TLS, on loopback.

import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);
const PATIENCE_MS = 60_000;

/** Waits for a value that is there, with a deadline. */
export async function until(what, look, patience = PATIENCE_MS) {
  const end = Date.now() + patience;
  let last;
  for (;;) {
    try {
      const value = await look();
      if (value) return value;
    } catch (error) {
      last = error;
    }
    if (Date.now() > end) throw new Error(`${what}: not within ${patience} ms${last ? `: ${last.message}` : ""}`);
    await new Promise((done) => setTimeout(done, 100));
  }
}

async function freeAddresses(count) {
  const servers = await Promise.all(Array.from({ length: count }, async () => {
    const server = createServer();
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return server;
  }));
  const addresses = servers.map((server) => `127.0.0.1:${server.address().port}`);
  await Promise.all(servers.map((server) => new Promise((done) => server.close(done))));
  return addresses;
}

/**
 * Starts `count` managers n1, n2, … of one cluster that asks who is there. Each is a process that
 * can be killed; `stop` ends all and removes everything.
 */
export async function startCluster(binary, count) {
  const directory = mkdtempSync(join(tmpdir(), "quorate-members-"));
  const nodes = new Map();
  const home = (name) => join(directory, name);
  const env = { ...process.env, XDG_STATE_HOME: join(directory, "state") };
  delete env.QUORATE_SERVER;
  delete env.QUORATE_TOKEN_FILE;
  const quorate = async (...args) => (await run(binary, args, { env })).stdout;
  /** As root on a node: no login, no password again. */
  const asRoot = (name, ...args) => quorate("--server", `unix:${join(home(name), "api.sock")}`, ...args);
  const json = async (name, ...args) => JSON.parse(await asRoot(name, ...args, "-o", "json"));

  function serve(name) {
    const log = openSync(join(home(name), "server.log"), "a");
    const child = spawn(binary, ["serve", "--data-dir", home(name)], { stdio: ["ignore", log, log], env });
    nodes.set(name, { ...nodes.get(name), child });
  }

  async function kill(name, signal = "SIGKILL") {
    const { child } = nodes.get(name);
    if (child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, "exit");
    child.kill(signal);
    await ended;
  }

  /** Replicas end with the test, whatever becomes of their nodes. */
  function bind(name) {
    const file = join(home(name), "node.toml");
    writeFileSync(file, readFileSync(file, "utf8").replace("[node]\n", `[node]\nend_with_pid = ${process.pid}\n`));
  }

  /** Joins with a token as it stands in the command that `add-node` or the console shows. */
  async function joinWith(name, token, more = []) {
    const [listen, link] = await freeAddresses(2);
    await quorate("join", token, "--name", name, "--data-dir", home(name), "--listen", listen, "--link", link, "--no-start", ...more);
    nodes.set(name, { url: `https://${listen}/` });
    bind(name);
    serve(name);
    await until(`${name} is joined`, async () => (await json("n1", "node", "list")).some((node) => node.name === name && node.state === "joined"));
  }

  async function add(name) {
    const made = await json("n1", "add-node");
    await joinWith(name, made.commands[0].replace("quorate join ", ""));
  }

  async function stop() {
    await Promise.all([...nodes.keys()].map((name) => nodes.get(name).child && kill(name, "SIGTERM")));
    rmSync(directory, { recursive: true, force: true });
  }

  function explain() {
    for (const name of nodes.keys()) console.error(`── ${name}\n${readFileSync(join(home(name), "server.log"), "utf8").slice(-3000)}`);
  }

  try {
    const [listen, link] = await freeAddresses(2);
    await quorate("init", "--name", "prod", "--node-name", "n1", "--data-dir", home("n1"), "--listen", listen, "--link", link, "--no-start");
    nodes.set("n1", { url: `https://${listen}/` });
    bind("n1");
    serve("n1");
    await until("n1 leads", async () => (await json("n1", "status")).cluster.leader === "n1");
    for (let i = 2; i <= count; i += 1) await add(`n${i}`);
    const password = join(directory, "password");
    const createUser = async (name, role, text) => {
      writeFileSync(password, text, { mode: 0o600 });
      await asRoot("n1", "user", "create", name, "--role", role, "--password-file", password);
    };
    return { directory, nodes, asRoot, json, kill, serve, join: joinWith, stop, explain, createUser };
  } catch (error) {
    explain();
    await stop();
    throw error;
  }
}
