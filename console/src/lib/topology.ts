// Where everything is in the topology picture.
//
// Managers are on a ring around the leader (in rows, where a ring does not fit), other nodes in rows below, gateways beside (or, in a
// narrow picture, above). Pure: the same cluster and width always give the same picture, and the
// order is by name, so that nothing jumps when a node changes its state.

import type { GatewayView, NodeState, NodeView, Overview } from "./api";

export interface PlacedNode {
  node: NodeView;
  leader: boolean;
  x: number;
  y: number;
}

export interface PlacedGateway {
  gateway: GatewayView;
  /** Middle of its box. */
  x: number;
  y: number;
}

export interface Link {
  key: string;
  state: NodeState | "feed";
  path: string;
}

export interface Picture {
  width: number;
  height: number;
  /** Radius of a node. */
  radius: number;
  nodes: PlacedNode[];
  gateways: PlacedGateway[];
  links: Link[];
  /** Middle of the ring: where a leader would be. */
  centre: { x: number; y: number };
}

/** Half the width that a node's label may take. */
export const LABEL_HALF = 46;
/** Height of the two lines under a node; the leader's are a little lower, clear of its halo. */
export const LABEL_HEIGHT = 45;
export const GATEWAY_BOX = { width: 132, height: 52 };
const NARROW = 520;
/** Half the height of the highest ring. */
const RING_HEIGHT_MAX = 320;
const PAD = 18;

interface Point {
  x: number;
  y: number;
}

export function layout(overview: Pick<Overview, "nodes" | "gateways" | "cluster">, width: number): Picture {
  const narrow = width < NARROW;
  const present = overview.nodes.filter((node) => node.state !== "removed").sort(byName);
  const managers = present.filter((node) => node.roles.includes("manager"));
  const others = present.filter((node) => !node.roles.includes("manager"));
  const leader = managers.find((node) => overview.cluster.ha && node.name === overview.cluster.leader) ?? null;
  const ring = managers.filter((node) => node !== leader);
  const radius = narrow && managers.length > 5 ? 27 : narrow ? 31 : 38;
  const gateways = [...overview.gateways].sort(byName);

  const column = gateways.length > 0 && !narrow ? GATEWAY_BOX.width + 48 : 0;
  const left = PAD + column;
  const middle = { x: (left + width - PAD) / 2, y: 0 };
  const reach = Math.max(LABEL_HALF, (width - PAD - left) / 2 - LABEL_HALF);
  const step = 2 * LABEL_HALF + 4;
  const perRow = Math.max(1, Math.floor((width - PAD - left) / step));
  const rowHeight = 2 * radius + LABEL_HEIGHT + 16;
  const around =
    placeRing(ring.length, leader !== null, Math.min(reach, 190), radius) ??
    placeRows(ring.length, perRow, step, rowHeight).map(({ x, y }) => ({ x, y: y + (leader ? rowHeight : 0) }));

  const points: Point[] = around.map((point) => ({ x: middle.x + point.x, y: point.y }));
  const placed: PlacedNode[] = ring.map((node, i) => ({ node, leader: false, ...(points[i] ?? middle) }));
  if (leader) placed.unshift({ node: leader, leader: true, ...middle });

  const below = bottom(placed, radius);
  const rows = placeRows(others.length, perRow, step, rowHeight);
  others.forEach((node, i) => {
    const spot = rows[i] ?? { x: 0, y: 0 };
    placed.push({ node, leader: false, x: middle.x + spot.x, y: below + 24 + radius + spot.y });
  });

  // Until here the ring's middle was y = 0; now the picture gets its top and its height.
  const gatewayRows = narrow ? gatewayGrid(gateways, width) : [];
  const above = narrow && gateways.length > 0 ? gatewayRows.length * (GATEWAY_BOX.height + 12) + 28 : 0;
  const top = Math.min(0, ...placed.map((place) => place.y - radius));
  const shift = PAD + above - top + 8;
  for (const place of placed) place.y += shift;
  middle.y += shift;
  const columnHeight = column > 0 ? gateways.length * (GATEWAY_BOX.height + 16) : 0;
  const content = Math.max(bottom(placed, radius), middle.y + radius) + PAD;
  const height = Math.max(content, columnHeight + 2 * PAD, narrow ? 0 : 250);
  const slack = (height - content) / 2;
  for (const place of placed) place.y += slack;
  middle.y += slack;

  const placedGateways: PlacedGateway[] = narrow
    ? gatewayRows.flatMap((row, y) =>
        row.map(({ gateway, x }) => ({ gateway, x, y: PAD + GATEWAY_BOX.height / 2 + y * (GATEWAY_BOX.height + 12) })),
      )
    : gateways.map((gateway, i) => ({
        gateway,
        x: PAD + GATEWAY_BOX.width / 2,
        y: height / 2 + (i - (gateways.length - 1) / 2) * (GATEWAY_BOX.height + 16),
      }));

  const centre = placed.find((place) => place.leader);
  const links: Link[] = [];
  if (centre) {
    for (const place of placed) {
      if (place === centre) continue;
      const state = centre.node.state === "joined" ? place.node.state : centre.node.state;
      links.push({ key: place.node.id, state, path: straight(centre, place, radius + 5) });
    }
  }
  for (const place of placedGateways) {
    const feeder = placed.find((node) => node.node.name === place.gateway.fed_by);
    if (feeder) links.push({ key: `feed ${place.gateway.name}`, state: "feed", path: feed(place, feeder, radius, narrow) });
  }
  return { width, height, radius, nodes: placed, gateways: placedGateways, links, centre: middle };
}

function byName(a: { name: string }, b: { name: string }): number {
  return a.name.localeCompare(b.name, "en", { numeric: true });
}

function bottom(nodes: PlacedNode[], radius: number): number {
  return Math.max(0, ...nodes.map((place) => place.y + radius + LABEL_HEIGHT));
}

/** Points of `count` nodes in centred rows below (0, 0), which is in the first row. */
function placeRows(count: number, perRow: number, step: number, rowHeight: number): Point[] {
  return Array.from({ length: count }, (_, i) => {
    const row = Math.floor(i / perRow);
    const inRow = Math.min(perRow, count - row * perRow);
    return { x: ((i % perRow) - (inRow - 1) / 2) * step, y: row * rowHeight };
  });
}

/**
 * Points of `count` nodes around (0, 0), as flat as possible without two that overlap; `null` when the
 * ring would be too high for its width.
 */
function placeRing(count: number, centre: boolean, reach: number, radius: number): Point[] | null {
  if (count === 1 && !centre) return [{ x: 0, y: 0 }];
  // Two side by side at the bottom stay too close in a narrow picture, however high the ring is; a
  // turned ring has no two side by side.
  for (const turn of [0, 0.5, 0.25]) {
    for (let ry = 100; ry <= RING_HEIGHT_MAX; ry += 8) {
      const points = Array.from({ length: count }, (_, i) => {
        const angle = ringAngle(i, count, centre) + (turn * 2 * Math.PI) / count;
        return { x: reach * Math.cos(angle), y: ry * Math.sin(angle) };
      });
      const all = centre ? [{ x: 0, y: 0 }, ...points] : points;
      const free = all.every((a, i) => all.slice(i + 1).every((b) => !overlap(a, b, radius)));
      if (free) return points;
    }
  }
  return null;
}

function ringAngle(i: number, count: number, centre: boolean): number {
  if (count === 1) return 0;
  // Two beside a leader hang below it, in the shape of a roof; alone they stand side by side.
  if (count === 2) return centre ? [Math.PI * 0.74, Math.PI * 0.26][i] ?? 0 : [Math.PI, 0][i] ?? 0;
  const first = count === 4 ? -0.75 * Math.PI : -0.5 * Math.PI;
  return first + (2 * Math.PI * i) / count;
}

export function overlap(a: Point, b: Point, radius: number): boolean {
  return Math.abs(a.x - b.x) < 2 * LABEL_HALF - 8 && Math.abs(a.y - b.y) < 2 * radius + LABEL_HEIGHT + 4;
}

function gatewayGrid(gateways: GatewayView[], width: number): { gateway: GatewayView; x: number }[][] {
  const step = GATEWAY_BOX.width + 12;
  const perRow = Math.max(1, Math.floor((width - 2 * PAD + 12) / step));
  const rows: { gateway: GatewayView; x: number }[][] = [];
  gateways.forEach((gateway, i) => {
    const row = Math.floor(i / perRow);
    const inRow = Math.min(perRow, gateways.length - row * perRow);
    (rows[row] ??= []).push({ gateway, x: width / 2 + ((i % perRow) - (inRow - 1) / 2) * step });
  });
  return rows;
}

function straight(a: Point, b: Point, trim: number): string {
  const length = Math.hypot(b.x - a.x, b.y - a.y) || 1;
  const [dx, dy] = [((b.x - a.x) / length) * trim, ((b.y - a.y) / length) * trim];
  return `M${n(a.x + dx)} ${n(a.y + dy)}L${n(b.x - dx)} ${n(b.y - dy)}`;
}

function feed(gateway: Point, node: Point, radius: number, narrow: boolean): string {
  if (narrow) {
    const [x1, y1] = [gateway.x, gateway.y + GATEWAY_BOX.height / 2 + 2];
    const end = edge(node, { x: (gateway.x + node.x) / 2, y: y1 }, radius + 6);
    return `M${n(x1)} ${n(y1)}C${n(x1)} ${n((y1 + end.y) / 2)} ${n(end.x)} ${n((y1 + end.y) / 2)} ${n(end.x)} ${n(end.y)}`;
  }
  const x1 = gateway.x + GATEWAY_BOX.width / 2 + 2;
  const end = edge(node, { x: x1, y: (gateway.y + node.y) / 2 }, radius + 6);
  const bend = x1 + (end.x - x1) * 0.5;
  return `M${n(x1)} ${n(gateway.y)}C${n(bend)} ${n(gateway.y)} ${n(bend)} ${n(end.y)} ${n(end.x)} ${n(end.y)}`;
}

/** Where the line from the middle of a node to `toward` leaves the node. */
function edge(node: Point, toward: Point, distance: number): Point {
  const length = Math.hypot(toward.x - node.x, toward.y - node.y) || 1;
  return { x: node.x + ((toward.x - node.x) / length) * distance, y: node.y + ((toward.y - node.y) / length) * distance };
}

function n(value: number): number {
  return Math.round(value * 10) / 10;
}

/**
 * Offsets of `count` dots inside a circle: rows that form a hexagon-like heap. At most `fit` dots; the
 * caller says in words how many more there are.
 */
export function heap(count: number, pitch: number, fit: number): Point[] {
  const shown = Math.min(count, fit);
  const rows: Record<number, number[]> = {
    1: [1], 2: [2], 3: [1, 2], 4: [2, 2], 5: [2, 3], 6: [1, 2, 3], 7: [2, 3, 2], 8: [3, 2, 3], 9: [2, 3, 4],
    10: [3, 4, 3], 11: [3, 4, 4], 12: [3, 4, 5],
  };
  const shape = rows[shown] ?? (shown === 0 ? [] : Array.from({ length: Math.ceil(shown / 4) }, (_, i) => Math.min(4, shown - 4 * i)));
  const rise = pitch * 0.9;
  return shape.flatMap((inRow, row) =>
    Array.from({ length: inRow }, (_, i) => ({
      x: (i - (inRow - 1) / 2) * pitch,
      y: (row - (shape.length - 1) / 2) * rise,
    })),
  );
}
