import assert from "node:assert/strict";
import test from "node:test";

import { NotMetrics, parse } from "../../../../service/digitserve/web/page/metrics_text.js";

const START = "digitserve_images_total 1\n";

test("labels: escapes, separators inside of values, spaces, a comma at the end, names of Object", () => {
  const value = String.raw`a\"b\\n\nc},{=`;
  const page = parse(`${START}x{ a="${value}", __proto__="p",constructor="c" ,} 2.5 \n`);
  assert.deepEqual({ ...page.labels("x") }, { a: 'a"b\\n\nc},{=', ["__proto__"]: "p", constructor: "c" });
  assert.equal(page.total("x", { constructor: "c" }), 2.5);
  assert.equal(page.total("x", { toString: "c" }), 0);
});

test("values: all forms of numbers; those that are not finite are left out; timestamps are ignored", () => {
  const page = parse(`${START}a 1e+06\nb -.5\nc NaN\nd +Inf\ne -Inf\nf 7 1395066363000\ng\t3\t-4\n`);
  assert.deepEqual(["a", "b", "c", "d", "e", "f", "g"].map((name) => page.total(name)), [1e6, -0.5, 0, 0, 0, 7, 3]);
  assert.equal(page.samples.has("c"), false);
});

test("comments and empty lines are no samples", () => {
  assert.equal(parse(`# HELP x {"\n#\n\n# TYPE x counter\n${START}`).samples.size, 1);
});

test("buckets are in ascending order and not cumulative, summed over the other labels", () => {
  const page = parse(`${START}h_bucket{le="+Inf"} 9\nh_bucket{le="10.0"} 7\nh_bucket{le="2.0"} 3\nh_bucket{le="2.0",m="x"} 1\n`);
  assert.deepEqual([...page.buckets("h")], [[2, 4], [10, 3], [Infinity, 2]]);
  assert.deepEqual([...page.buckets("h", { m: "x" })], [[2, 1]]);
  assert.equal(page.buckets("missing").size, 0);
});

for (const text of [
  "", "<!doctype html>", "other 1\n", `${START}x{a="b} 1`, `${START}x{a=b} 1`, `${START}x{a="b"c="d"} 1`, `${START}x{a="\\q"} 1`,
  `${START}x`, `${START}x one`, `${START}x 0x10`, `${START}x 1 2 3`, `${START}h_bucket 1`, `${START}h_bucket{le="x"} 1`,
]) {
  test(`rejected: ${JSON.stringify(text)}`, () => assert.throws(() => parse(text), NotMetrics));
}
