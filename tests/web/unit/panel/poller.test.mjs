import assert from "node:assert/strict";
import test from "node:test";

import { ACCEPT, DENIED_INTERVAL_S, INTERVAL_S, Poller, TIMEOUT_S } from "../../../../service/digitserve/web/page/poller.js";

const METRICS = "digitserve_images_total 1\n";

/** A poller whose clock, timers and service belong to the test. */
class World {
  nowS = 100;
  timers = new Map();
  requests = [];
  pages = 0;
  failures = [];
  #ids = 0;

  constructor() {
    this.poller = new Poller({
      fetch: (path, init) =>
        new Promise((resolve, reject) => {
          init.signal.addEventListener("abort", () => reject(init.signal.reason));
          this.requests.push({ path, init, startedS: this.nowS, resolve, reject });
        }),
      clock: () => this.nowS,
      timers: {
        setTimeout: (call, ms) => (this.timers.set(++this.#ids, { call, atS: this.nowS + ms / 1000 }), this.#ids),
        clearTimeout: (id) => this.timers.delete(id),
      },
      onPage: () => (this.pages += 1),
      onFailure: ({ text }) => this.failures.push(text),
    });
  }

  /** Let time pass; each timer runs at its time. */
  async pass(seconds) {
    const endS = this.nowS + seconds;
    for (;;) {
      const due = [...this.timers].filter(([, { atS }]) => atS <= endS).sort(([, a], [, b]) => a.atS - b.atS)[0];
      if (!due) break;
      this.timers.delete(due[0]);
      this.nowS = due[1].atS;
      due[1].call();
      await settled();
    }
    this.nowS = endS;
  }

  /** Answer the newest request. */
  async answer(text = METRICS, status = 200) {
    this.requests[this.requests.length - 1].resolve(new Response(text, { status }));
    await settled();
  }
}

function settled() {
  return new Promise((resolve) => setImmediate(resolve));
}

test("nothing is read before it is active; then at once, and each interval after the answer", async () => {
  const world = new World();
  await world.pass(60);
  assert.equal(world.requests.length, 0);
  world.poller.setActive(true);
  await world.pass(0);
  const [{ path, init }] = world.requests;
  assert.deepEqual([path, init.headers.accept, init.cache], ["/metrics", ACCEPT, "no-store"]);
  await world.pass(1);
  await world.answer();
  await world.pass(INTERVAL_S - 1);
  assert.deepEqual(world.requests.map(({ startedS }) => startedS), [160, 160 + INTERVAL_S]);
  assert.equal(world.pages, 1);
});

test("there is never more than one request", async () => {
  const world = new World();
  world.poller.setActive(true);
  await world.pass(TIMEOUT_S - 0.1);
  world.poller.readNow();
  await world.pass(0);
  assert.equal(world.requests.length, 1);
});

test("an inactive poller cancels its request, and reports nothing; it continues within an interval", async () => {
  const world = new World();
  world.poller.setActive(true);
  await world.pass(0);
  world.poller.setActive(false);
  await settled();
  assert.equal(world.requests[0].init.signal.aborted, true);
  await world.pass(60);
  assert.deepEqual([world.requests.length, world.pages, world.failures.length], [1, 0, 0]);
  world.poller.setActive(true);
  world.poller.setActive(false);
  world.poller.setActive(true);
  await world.pass(0);
  await world.answer();
  assert.deepEqual([world.requests.length, world.pages], [2, 1]);
});

test("a tab that is shown again and again does not read more often", async () => {
  const world = new World();
  for (let times = 0; times < 20; times += 1) {
    world.poller.setActive(true);
    await world.pass(0.05);
    world.poller.setActive(false);
    await world.pass(0.05);
  }
  assert.equal(world.requests.length, 1);
});

test("a rejected token is tried seldom, and at once when something has changed", async () => {
  const world = new World();
  world.poller.setActive(true);
  await world.pass(0);
  await world.answer("no", 401);
  await world.pass(DENIED_INTERVAL_S - 0.1);
  assert.equal(world.requests.length, 1);
  assert.deepEqual(world.failures, ["A valid token is needed"]);
  world.poller.readNow();
  await world.pass(0);
  await world.answer();
  assert.deepEqual([world.requests.length, world.pages], [2, 1]);
});

test("each failure is reported in words, and the next reading is taken", async () => {
  const world = new World();
  world.poller.setActive(true);
  await world.pass(0);
  await world.answer("busy", 503);
  await world.pass(INTERVAL_S);
  await world.answer("<html>");
  await world.pass(INTERVAL_S);
  world.requests[2].reject(new TypeError("Failed to fetch"));
  await settled();
  await world.pass(INTERVAL_S);
  await world.pass(TIMEOUT_S);
  assert.deepEqual(world.failures, [
    "/metrics answers with HTTP status 503",
    "/metrics has no metrics of digitserve",
    "The service does not answer",
    `No answer within ${TIMEOUT_S} s`,
  ]);
  await world.pass(0);
  await world.answer();
  assert.equal(world.pages, 1);
});
