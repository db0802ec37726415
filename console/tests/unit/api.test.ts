import { expect, it } from "vitest";
import { readProblem } from "../../src/lib/http";
import { replicaLook } from "../../src/lib/looks";
import { nextTheme } from "../../src/lib/theme";

it("reads the server's problem with its fix", () => {
  const body = JSON.stringify({ code: "unknown-service", message: "There is no service wbe.", fix: "Did you mean web?", details: {} });
  expect(readProblem(404, body)).toEqual({ code: "unknown-service", message: "There is no service wbe.", fix: "Did you mean web?", details: {} });
});

it("says the status when something else answered", () => {
  for (const body of ["<html>Bad gateway</html>", "", "null", "{}", '{"message":3}']) {
    expect(readProblem(502, body)).toEqual({ code: "http-502", message: "The server answered 502." });
  }
});

it("shows a state that it does not know like an unknown one", () => {
  expect(replicaLook("teleporting")).toEqual(replicaLook("unknown"));
  expect(replicaLook("toString")).toEqual(replicaLook("unknown"));
});

it("goes through the three themes in a circle", () => {
  expect(["system", "light", "dark"].map((theme) => nextTheme(theme as "system"))).toEqual(["light", "dark", "system"]);
});
