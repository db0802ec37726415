import { describe, expect, it } from "vitest";
import type { NodeView } from "../../src/lib/api";
import { GATEWAY_BOX, LABEL_HALF, LABEL_HEIGHT, heap, layout, overlap } from "../../src/lib/topology";
import { aGateway, aNode, anOverview } from "./samples";

const WIDTHS = [296, 330, 519, 520, 700, 1000];
const nodes = (count: number, more: (i: number) => Partial<NodeView> = () => ({})): NodeView[] =>
  Array.from({ length: count }, (_, i) => aNode(i + 1, more(i + 1)));

describe("the topology picture", () => {
  for (const leader of ["n1", null]) {
    for (const width of WIDTHS) {
      it(`fits 1 to 9 nodes without overlaps into ${width} px, ${leader ? "with" : "without"} a leader`, () => {
        for (let count = 1; count <= 9; count += 1) {
          for (const managers of [count, Math.min(count, 3)]) {
            const all = nodes(count, (i) => ({ roles: i <= managers ? ["manager"] : ["worker"] }));
            const gateways = [aGateway("gw", "n1"), aGateway("gw-2", "n2")];
            const picture = layout({ ...anOverview({ leader }), nodes: all, gateways }, width);
            expect(picture.nodes).toHaveLength(count);
            expect(picture.height).toBeLessThan(1300);
            picture.nodes.forEach((a, i) => {
              expect(a.x - LABEL_HALF).toBeGreaterThanOrEqual(-1);
              expect(a.x + LABEL_HALF).toBeLessThanOrEqual(width + 1);
              expect(a.y - picture.radius).toBeGreaterThanOrEqual(0);
              expect(a.y + picture.radius + LABEL_HEIGHT).toBeLessThanOrEqual(picture.height);
              for (const b of picture.nodes.slice(i + 1)) {
                expect(overlap(a, b, picture.radius), `${a.node.name} and ${b.node.name} of ${count}`).toBe(false);
              }
              for (const box of picture.gateways) {
                const apart =
                  Math.abs(a.x - box.x) >= picture.radius + GATEWAY_BOX.width / 2 ||
                  Math.abs(a.y - box.y) >= picture.radius + GATEWAY_BOX.height / 2;
                expect(apart, `${a.node.name} and ${box.gateway.name} of ${count}`).toBe(true);
              }
            });
          }
        }
      });
    }
  }

  it("has the leader in the middle and one link to each other node, in that node's state", () => {
    const all = nodes(3, (i) => ({ state: i === 3 ? "down" : "joined" }));
    const picture = layout({ ...anOverview({ leader: "n2" }), nodes: all }, 700);
    const leader = picture.nodes.find((place) => place.leader);
    expect(leader?.node.name).toBe("n2");
    expect(leader).toMatchObject(picture.centre);
    expect(picture.links.map((link) => [link.key, link.state])).toEqual([["id-1", "joined"], ["id-3", "down"]]);
  });

  it("leaves removed nodes out", () => {
    const all = nodes(3, (i) => ({ state: i === 3 ? "removed" : "joined" }));
    expect(layout({ ...anOverview(), nodes: all }, 700).nodes.map(({ node }) => node.name)).toEqual(["n1", "n2"]);
  });

  it("ties a gateway to the manager that feeds it, and to none that is not there", () => {
    const gateways = [aGateway("a", "n2"), aGateway("b", "n9")];
    const picture = layout({ ...anOverview(), gateways }, 700);
    expect(picture.gateways).toHaveLength(2);
    expect(picture.links.filter((link) => link.state === "feed").map((link) => link.key)).toEqual(["feed a"]);
  });

  it("does not change what it is given", () => {
    const overview = { ...anOverview(), nodes: nodes(3).reverse() };
    const before = structuredClone(overview);
    layout(overview, 700);
    expect(overview).toEqual(before);
  });
});

it("heaps dots without two in one place, up to the limit", () => {
  for (let count = 0; count <= 20; count += 1) {
    const dots = heap(count, 14, 12);
    expect(dots).toHaveLength(Math.min(count, 12));
    expect(new Set(dots.map(({ x, y }) => `${x} ${y}`)).size).toBe(dots.length);
  }
});
