import assert from "node:assert/strict";
import test from "node:test";

import { HISTORY_S, Monitor, WINDOW_S } from "../../../../service/digitserve/web/page/monitor.js";
import { page } from "./pages.mjs";

function monitorOf(...readings) {
  const monitor = new Monitor();
  for (const [timeS, images, state] of readings) monitor.read(timeS, page(images, state));
  return monitor;
}

test("rates are those of the last ten seconds, also when timers are late", () => {
  const monitor = monitorOf([0, 0], [2, 5000], [4.1, 5020], [6, 5040], [8, 5060], [10, 5080], [12, 5100], [14, 5120]);
  assert.ok(Math.abs(monitor.figures.period_s - WINDOW_S) < 0.2);
  assert.ok(Math.abs(monitor.figures.images.per_s - 10) < 0.2);
});

test("the first reading has no rates, the second one has", () => {
  const monitor = monitorOf([0, 100]);
  assert.equal(monitor.figures.period_s, 0);
  assert.deepEqual(monitor.rates, []);
  monitor.read(2, page(120));
  assert.equal(monitor.figures.images.per_s, 10);
});

test("lower counters are a restart of the service: the period starts again, without a negative or huge rate", () => {
  const monitor = monitorOf([0, 100], [2, 200], [4, 50]);
  assert.deepEqual([monitor.figures.period_s, monitor.restartedS], [0, 4]);
  monitor.read(6, page(70));
  assert.equal(monitor.figures.images.per_s, 10);
  assert.deepEqual(monitor.rates.map(({ images }) => images), [50, 10]);
});

test("a replaced worker is not a restart: the service keeps its counts", () => {
  const monitor = monitorOf([0, 100], [2, 120, { ready: 1 }], [4, 140, { restarts: 1 }]);
  assert.equal(monitor.restartedS, null);
  assert.equal(monitor.figures.images.per_s, 10);
  assert.equal(monitor.figures.restarts.total, 1);
});

test("after a short pause the figures continue, after a long one they start again", () => {
  const monitor = monitorOf([0, 0], [2, 20]);
  monitor.interrupt();
  monitor.read(8, page(80));
  assert.deepEqual([monitor.figures.period_s, monitor.figures.images.per_s], [8, 10]);
  monitor.interrupt();
  monitor.read(100, page(5000));
  assert.equal(monitor.figures.period_s, 0);
  monitor.read(102, page(5020));
  assert.equal(monitor.figures.images.per_s, 10);
});

test("a failure keeps the figures, and the next reading ends it", () => {
  const monitor = monitorOf([0, 0], [2, 20]);
  monitor.fail({ isDenied: false, text: "x" });
  assert.equal(monitor.figures.images.per_s, 10);
  assert.equal(monitor.lastS, 2);
  monitor.read(4, page(40));
  assert.equal(monitor.failure, null);
});

test("the history of the rates is bounded", () => {
  const monitor = new Monitor();
  for (let timeS = 0; timeS < 600; timeS += 2) monitor.read(timeS, page(timeS));
  assert.equal(monitor.rates.length, HISTORY_S / 2 + 1);
});
