// Texts of the Nodes page.

import type { Column, Mode, Tolerance } from "../lib/members";
import { losses } from "../lib/members";

const plural = (count: number, one: string, many: string): string => `${count} ${count === 1 ? one : many}`;
const list = (names: string[]): string => names.join(", ");

export const nodes = {
  title: "Nodes",
  intro: "Servers of the cluster",
  filter: "Filter nodes",
  noMatch: "No node matches the filter.",
  column: {
    name: "Node", alias: "Alias", mode: "Mode", state: "State", roles: "Roles", version: "Version", applied: "Applied",
    replicas: "Replicas",
  } satisfies Record<Column, string>,
  address: "Address",
  actions: (node: string) => `Actions for ${node}`,
  sortBy: (column: string) => `Sort by ${column}`,

  mode: { active: "Active", passive: "Passive", standby: "Standby", stopped: "Stopped" } satisfies Record<Mode, string>,
  noMode: "–",
  noModeWhy: "no manager",
  behind: (entries: number) => (entries === 0 ? "up to date" : `${plural(entries, "entry", "entries")} behind`),
  notHeard: "not heard",

  setAlias: "Set alias",
  aliasOf: (node: string) => `Alias of ${node}`,
  editAlias: (node: string, alias: string) => `${alias}: change the alias of ${node}`,
  addAlias: (node: string) => `Set alias of ${node}`,
  save: "Save",
  cancel: "Cancel",

  properties: "Properties",
  propertiesOf: (node: string) => `Properties of ${node}`,
  activate: "Make active",
  changeRoles: "Change roles",
  remove: "Remove",

  property: {
    id: "ID", name: "Name", alias: "Alias", mode: "Mode", vote: "Vote", state: "State", since: "Since", roles: "Roles",
    api: "API", link: "Node link", generation: "Generation", version: "Version", applied: "Applied", clock: "Clock",
    log: "Log", replicas: "Replicas", serves: "This page",
  },
  vote: { voter: "votes", standby: "does not vote; takes the place of a voter that is lost", stopped: "its manager role is stopped: it holds everything and decides nothing" },
  stateMeans: {
    joined: "answers",
    unreachable: "the node that serves this page does not hear it; nothing has been decided",
    down: "a majority of managers does not hear it",
    removed: "was stopped cleanly or left; it may come back",
  },
  generationMeans: (n: number) => (n === 1 ? "first start" : `started or joined ${n} times`),
  clock: (us: number) => {
    const ms = Math.abs(us) / 1000;
    if (ms < 1) return "less than 1 ms apart";
    const size = ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
    return `${size} ${us > 0 ? "ahead" : "behind"}`;
  },
  servesPage: "comes from this node",

  activateTitle: (node: string) => `Make ${node} active`,
  activateWhat: (from: string | null, to: string) =>
    `${from === null ? "Leadership" : `${from} hands leadership over and becomes passive. It`} goes to ${to}. Services stay where they are; writes wait for a moment.`,
  activateCommand: (node: string) => `quorate manager promote ${node}`,

  managers: "Managers",
  managersMenu: "Managers: acts on several",
  stop: "Stop manager",
  stopActive: "It is the active one: make another one active first, or restart it.",
  stopTitle: (node: string) => `Stop the manager on ${node}`,
  stopWhat: (node: string, votes: boolean) =>
    `${node} answers nobody as a manager${votes ? " and does not vote" : ""}. Its services, its gateway's routes and its agent go on. It stays stopped over restarts, and can be started from any other node.`,
  stopSelf: "It serves this page, which will move to another node.",
  stopCommand: (node: string) => `quorate manager stop ${node}`,
  stopAll: "Stop all passive",
  stopAllTitle: "Stop all passive managers",
  stopAllWhat: (active: string, names: string[]) =>
    `${list(names)} ${names.length === 1 ? "answers" : "answer"} nobody as ${names.length === 1 ? "a manager" : "managers"}. ${active} decides alone then: no manager may be lost. Services go on.`,
  stopAllCommand: "quorate manager stop --all-passive",
  start: "Start manager",
  startTitle: (node: string) => `Start the manager on ${node}`,
  startWhat: (node: string) => `${node} is a manager again. The cluster decides whether it votes or stands by.`,
  startCommand: (node: string) => `quorate manager start ${node}`,
  startAll: "Start all stopped",
  startAllTitle: "Start all stopped managers",
  startAllWhat: (names: string[]) => `${list(names)} ${names.length === 1 ? "is a manager" : "are managers"} again. The cluster decides which of them vote.`,
  startAllCommand: (names: string[]) => `quorate manager start ${names.join(" ")}`,
  restart: "Restart",
  restartTitle: (node: string) => `Restart ${node}`,
  restartWhat: (node: string) => `Ends the server on ${node} and begins it anew. What it runs for users is not touched.`,
  restartCommand: (node: string) => `quorate manager restart ${node}`,
  restartAll: "Restart all passive",
  restartAllTitle: "Restart all passive managers",
  restartAllWhat: (names: string[]) => `${list(names)}, one after the other: each is waited for before the next one. What they run for users is not touched. Keep this dialog open.`,
  restartAllCommand: "quorate manager restart --all-passive",
  restartActive: "Restart active",
  restartActiveTitle: (node: string) => `Restart ${node}, the active manager`,
  restartActiveWhat: (node: string) => `${node} hands leadership over first, then its server ends and begins anew. Writes wait for a moment. What it runs for users is not touched.`,
  restartActiveCommand: "quorate manager restart --active",
  notBack: (node: string) => ({
    code: "not-back",
    message: `${node} is not back after two minutes, so the others were not restarted`,
    fix: `look into the log of ${node}, then restart the others`,
  }),
  restartAloneWhat: (node: string) => `The server on ${node} begins anew, and what it runs goes on. There is no other node, so nothing is decided meanwhile.`,
  ha: "High availability",
  haOff: "Off: there is one node. It listens for no other, and nothing takes its place when it is lost.",
  haOn: "On: this node listens for others. Two more make it three, of which one may be lost.",
  haEnable: "Switch on",
  haDisable: "Switch off",
  haEnableTitle: "Switch high availability on",
  haDisableTitle: "Switch high availability off",
  haEnableWhat: "The node opens its port for other nodes. No data moves, and no service restarts. The first server that is added does it too.",
  haDisableWhat: "The node closes its port for other nodes, and join tokens that wait are good for nothing. No service restarts.",
  haCommand: (enable: boolean) => `quorate ha ${enable ? "enable" : "disable"}`,

  rule: "Where managers may be",
  ruleWhat: "Holds for roles and joins from now on. Managers that would be misplaced have to be moved first.",
  ruleAny: "on any node",
  ruleRole: (role: string) => `only on nodes that are ${role} too`,
  ruleCommand: (role: string | null) => `quorate manager rule ${role ?? "none"}`,
  ruleHolds: (role: string) => `Managers are only on nodes that are ${role} too.`,

  rolesTitle: (node: string) => `Roles of ${node}`,
  roleMeans: {
    manager: "holds the cluster's state and may vote",
    worker: "runs services",
    gateway: "takes requests from outside",
  },
  rolesWhat: "What the node says of itself in its configuration does not count any more.",
  rolesNone: "Choose at least one role.",
  rolesCommand: (node: string, roles: string[]) => `quorate node roles ${node} ${roles.join(" ")}`,
  apply: "Apply",

  removeTitle: (node: string) => `Remove ${node} for ever`,
  removeWhat: (node: string, replicas: number) =>
    `${node}'s certificate is refused from now on and its id is never used again. ${
      replicas === 0 ? "No replica runs on it." : `${plural(replicas, "replica", "replicas")} on it ${replicas === 1 ? "is" : "are"} started elsewhere.`
    } To bring the server back, empty its data directory and join it with a new token.`,
  removeSelf: "It serves this page, which will move to another node.",
  removeVoter: (voters: number) => `It votes: without it ${voters - 1 === 1 ? "1 voter is" : `${voters - 1} voters are`} left, until a standby takes its place.`,
  typeName: (node: string) => `Type ${node} to confirm`,
  removeCommand: (node: string) => `quorate node remove ${node}`,

  add: "Add node",
  addTitle: "Add a node",
  addWhat: "Makes a token that lets one server in, once. Run the command on that server.",
  role: "Role",
  expiry: "Valid for",
  expiries: [["15m", "15 minutes"], ["1h", "1 hour"], ["6h", "6 hours"], ["24h", "24 hours"]] as const,
  onlyName: "Only for a server named",
  onlyNameHint: "optional",
  makeToken: "Make token",
  addCommand: (role: string, ttl: string, name: string) =>
    `quorate add-node${role === "manager" ? "" : ` --role ${role}`}${ttl === "1h" ? "" : ` --ttl ${ttl}`}${name === "" ? "" : ` --name ${name}`}`,
  addDone: (role: string, left: string) => `Run one of these on the new server, as root. The token works once, makes it a ${role}, and expires in ${left}.`,
  addExpired: "The token has expired: make another one.",
  addOnce: "The secret is in the command and is not shown again.",
  addUsed: (node: string) => `${node} has joined with this token.`,
  done: "Done",

  tokens: "Join tokens",
  noTokens: "No token waits for a server. Make one here, or in a terminal:",
  noTokensCommand: "quorate add-node",
  token: "Token",
  tokenFor: "Makes it a",
  tokenName: "Only for",
  anyName: "any server",
  tokenState: "State",
  tokenUsed: (node: string) => `used by ${node}`,
  tokenExpired: "expired",
  tokenWaits: (left: string) => `expires in ${left}`,
  revoke: "Revoke",
  revokeToken: (id: string) => `Revoke token ${id}`,

  matrix: "Replicas by node and service",
  matrixNone: "No service yet, so nothing runs here. Describe one in a file and apply it:",
  matrixTotal: "Wanted",
  matrixCell: (service: string, node: string) => `${service} on ${node}: nothing`,

  tolerance: "What may be lost",
  toleranceHead: ({ canLose, voters, answering, majority }: Tolerance) => {
    if (answering < majority) return "No majority: nothing can be decided";
    if (canLose === 0) return voters === 1 ? "The only voting manager may not be lost" : "No other voting manager may be lost now";
    return `${plural(canLose, "voting manager", "voting managers")} may be lost`;
  },
  toleranceWhy: ({ voters, majority, answering, away }: Tolerance) => {
    const answer = answering === voters ? (voters === 1 ? "it answers" : "all answer") : `${answering} ${answering === 1 ? "answers" : "answer"}${away.length > 0 ? ` (not ${list(away)})` : ""}`;
    return `Decisions need more than half of the voting managers: ${majority} of ${voters}, and ${answer}.`;
  },
  toleranceFix: ({ voters, answering, majority, away }: Tolerance) => {
    if (answering < majority) return `Writes wait, reads are local and old, services go on as they are. Start ${away.length > 0 ? list(away) : "the others"} again.`;
    if (voters === 1) return "Two more managers make it three, of which one may be lost.";
    if (answering < voters) return "Start it again, or remove it: then a standby or a new manager can take its place.";
    return null;
  },
  toleranceStandby: (standbys: string[]) =>
    `${list(standbys)} ${standbys.length === 1 ? "is" : "are"} standby: an even number of voters would tolerate no more than one fewer. ${standbys.length === 1 ? "It takes" : "They take"} the place of a voter that is lost.`,
  toleranceStopped: (stopped: string[]) =>
    `${list(stopped)} ${stopped.length === 1 ? "is stopped and does" : "are stopped and do"} not vote until started again.`,
  toleranceNext: (why: string) => `Next: ${why}.`,
  toleranceServices: "Services run on without any manager. What counts here are managers that vote, not workers.",
  toleranceTable: "By number of voters",
  toleranceRow: [1, 2, 3, 4, 5, 6, 7, 8, 9].map((voters) => ({ voters, majority: Math.floor(voters / 2) + 1, losses: losses(voters) })),
  votersHead: "Voters",
  majorityHead: "Majority",
  lossesHead: "May be lost",
};
