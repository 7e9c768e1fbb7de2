import assert from "node:assert/strict";
import test from "node:test";

import { parts, scaleEnd } from "../../../../service/digitserve/web/page/charts.js";
import { Monitor } from "../../../../service/digitserve/web/page/monitor.js";
import { describe, perSecond, seconds } from "../../../../service/digitserve/web/page/panel_text.js";
import { page } from "./pages.mjs";

const GONE = { isDenied: false, text: "The service does not answer" };

function monitorOf(...readings) {
  const monitor = new Monitor();
  for (const [timeS, images, state] of readings) monitor.read(timeS, page(images, state));
  return monitor;
}

function shown(monitor, { nowS = 10, isPaused = false } = {}) {
  const description = describe(monitor, nowS, isPaused, (timeS) => `12:00:${timeS}`);
  assert.doesNotMatch(JSON.stringify(description), /NaN|Infinity|undefined|null/);
  return description;
}

test("before the first reading nothing is claimed", () => {
  const description = shown(new Monitor());
  assert.deepEqual([description.state, description.images.now, description.workers], ["waiting", "–", "–"]);
  assert.equal(description.note, "Waiting for the first figures.");
  assert.equal(description.batches.length, 7);
});

test("after the first reading there are no rates yet", () => {
  const description = shown(monitorOf([0, 100]));
  assert.deepEqual([description.images.now, description.errorRate, description.period], ["–", "–", "Not known yet"]);
  assert.equal(description.workers, "2 of 2");
});

test("without requests it says so, instead of times of 0", () => {
  const description = shown(monitorOf([0, 100], [10, 100]));
  assert.equal(description.period, "No requests in the last 10\u00a0s");
  assert.ok(description.latencies.every(({ cells }) => cells.every((cell) => cell === "–")));
  assert.deepEqual([description.images.now, description.batchWords], ["0", "no batches"]);
});

test("with requests: rates, times, batches, workers", () => {
  const description = shown(monitorOf([0, 0], [10, 1000, { pending: 4, batch: 16, restarts: 1 }]));
  assert.deepEqual([description.images.now, description.requests.now, description.period], ["100", "100", "In the last 10\u00a0s"]);
  const [calls, ...stages] = description.latencies;
  assert.deepEqual(calls, { name: "Classify", cells: ["500\u00a0µs", "900\u00a0µs", "990\u00a0µs"] });
  assert.deepEqual(stages.map(({ name }) => name), ["Queue", "Framing", "Network"]);
  assert.equal(description.batchWords, "9–16: 100\u00a0%");
  // 4 images of 1 ms on 2 workers.
  assert.deepEqual([description.pending, description.work], ["4", "About 2\u00a0ms of work"]);
  assert.deepEqual(description.details, ["1 restart", "0.50 CPUs per worker", "200\u00a0MB"]);
  assert.equal(description.model, "digits/4 · CPU · int8");
  assert.equal(description.images.words, "now 100, highest 100");
});

test("images that wait while nothing is done have no known time", () => {
  assert.equal(shown(monitorOf([0, 9], [10, 9, { pending: 4 }])).work, "Time unknown");
  assert.equal(shown(monitorOf([0, 0], [10, 9, { pending: 4, ready: 0 }])).work, "Time unknown");
});

test("batches above the default limit are one more bar", () => {
  const { batches } = shown(monitorOf([0, 0], [10, 9, { batch: 256 }]));
  assert.deepEqual(batches.map(({ label }) => label), ["1", "2", "3–4", "5–8", "9–16", "17–32", "33–64", ">64"]);
  assert.equal(batches[7].share, 1);
});

test("errors are listed by code, HTTP statuses among them, only if there are any", () => {
  const without = shown(monitorOf([0, 0], [10, 9]));
  assert.deepEqual([without.errorTotal, without.errors], ["None since the start", []]);
  const http = `digitserve_http_requests_total{code="200",path="/v1/classify"} 5
digitserve_http_requests_total{code="415",path="/v1/classify"} 2
digitserve_http_requests_total{code="415",path="/v1/model"} 1`;
  const description = shown(monitorOf([0, 0], [10, 9, { faults: 20, http }]));
  assert.deepEqual([description.errorTotal, ...description.errors], ["Since the start:", "Internal: 20", "HTTP 415: 3"]);
  assert.deepEqual([description.errorRate, description.isFailing], ["2.0", true]);
  assert.equal(description.latencyPeriod, "In the last 10\u00a0s, with calls that failed");
  const many = ["400", "401", "404", "413", "415"].map((code) => `digitserve_http_requests_total{code="${code}",path="/"} 1`);
  assert.deepEqual(shown(monitorOf([0, 0], [10, 9, { faults: 1, http: many.join("\n") }])).errors, [
    "Internal: 1", "HTTP 400: 1", "4 other codes",
  ]);
});

test("what is not current is marked as old, with the time of the figures", () => {
  const monitor = monitorOf([0, 0], [2, 20]);
  monitor.fail(GONE);
  let description = shown(monitor);
  assert.deepEqual([description.state, description.images.now], ["old", "10.0"]);
  assert.equal(description.note, "The service does not answer. These figures are from 12:00:2.");
  description = shown(monitor, { isPaused: true });
  assert.match(description.note, /^Paused\. /);
  monitor.read(4, page(40));
  assert.equal(shown(monitor, { nowS: 4 }).state, "current");
  const never = new Monitor();
  never.fail(GONE);
  assert.deepEqual([shown(never).state, shown(never).note], ["waiting", "The service does not answer."]);
});

test("restarts of the service and missing workers are said in words", () => {
  const restarted = monitorOf([0, 100], [2, 50]);
  assert.match(shown(restarted, { nowS: 3 }).note, /restarted/);
  assert.doesNotMatch(shown(restarted, { nowS: 20 }).note, /restarted/);
  assert.equal(shown(monitorOf([0, 1, { ready: 1 }])).note, "Not all workers are ready.");
  assert.equal(shown(monitorOf([0, 1, { ready: 0 }])).note, "No worker is ready.");
});

test("numbers have about three digits, times three in the unit that fits", () => {
  assert.deepEqual([0, 0.001, 0.034, 9.96, 99.94, 99.96, 1234.5].map(perSecond), ["0", "<0.01", "0.03", "10.0", "99.9", "100", "1,235"]);
  const times = [null, 0, 0.00025, 0.0009996, 0.00125, 0.0125, 0.9994, 0.99951, 2.5];
  assert.deepEqual(times.map(seconds).map((text) => text.replace("\u00a0", " ")), [
    "–", "0 µs", "250 µs", "1.00 ms", "1.25 ms", "12.5 ms", "999 ms", "1.00 s", "2.50 s",
  ]);
});

test("the scale of a line ends at 1, 2 or 5 times a power of ten, at or above the highest value", () => {
  assert.deepEqual([0, NaN, 0.3, 1, 1.01, 5, 6, 120].map(scaleEnd), [1, 1, 0.5, 1, 2, 5, 10, 200]);
});

test("a line has a gap where readings are missing", () => {
  const points = [0, 2, 4, 20, 22].map((timeS) => ({ timeS, value: 1 }));
  assert.deepEqual(parts(points).map((part) => part.length), [3, 2]);
  assert.deepEqual(parts([]), []);
});
