import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

import { Requests } from "../../../../service/digitserve/web/page/requests.js";

/** The open calls of the service: each is answered by the test. */
let calls = [];
let outcomes = [];
let nowMs = 0;
let requests;

/** Let all promises settle. */
const settle = () => new Promise((resolve) => setImmediate(resolve));

/** Let time pass. */
async function pass(ms) {
  nowMs += ms;
  mock.timers.tick(ms);
  await settle();
}

/** Answer the last call. */
async function reply(status, body = {}, headers = {}) {
  calls.at(-1).resolve(new Response(JSON.stringify(body), { status, headers }));
  await settle();
}

const ask = (name) => requests.ask({ path: "/v1/read?q", body: () => name });
const sent = () => calls.map(({ body }) => body);

beforeEach(() => {
  [calls, outcomes, nowMs] = [[], [], 0];
  mock.reset();
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout"] });
  mock.method(performance, "now", () => nowMs);
  mock.method(globalThis, "fetch", (path, { body, signal }) => {
    assert.equal(path, "/v1/read?q");
    return new Promise((resolve, reject) => {
      signal.addEventListener("abort", () => reject(signal.reason));
      calls.push({ body, resolve, reject, signal });
    });
  });
  requests = new Requests((outcome, { body }) => outcomes.push([outcome.kind, body()]));
});

test("one request is open, and the newest image waits", async () => {
  for (const name of ["a", "b", "c"]) {
    ask(name);
  }
  await pass(1000);
  assert.deepEqual(sent(), ["a"]);
  await reply(200);
  assert.deepEqual(sent(), ["a", "c"]);
  await reply(200);
  assert.deepEqual(outcomes, [["ok", "a"], ["ok", "c"]]);
  assert.equal(requests.isWaiting, false);
});

test("requests start at least 250 ms apart", async () => {
  ask("a");
  await reply(200);
  ask("b");
  await pass(249);
  assert.deepEqual(sent(), ["a"]);
  ask("c");
  await pass(1);
  assert.deepEqual(sent(), ["a", "c"]);
});

test("the body is made when the request starts", async () => {
  let drawing = "a";
  requests.ask({ path: "/v1/read?q", body: () => drawing });
  requests.ask({ path: "/v1/read?q", body: () => drawing });
  drawing = "newer";
  await pass(250);
  await reply(200);
  assert.deepEqual(sent(), ["a", "newer"]);
});

test("the answer of a cancelled image is dropped", async () => {
  ask("a");
  requests.cancel();
  assert.equal(calls[0].signal.aborted, true);
  await reply(200);
  assert.deepEqual([outcomes, requests.isWaiting], [[], false]);
  ask("b");
  await pass(250);
  await reply(200);
  assert.deepEqual(outcomes, [["ok", "b"]]);
});

test("an overloaded service gets the newest image after the time that it gives", async () => {
  ask("a");
  await reply(429, { message: "the queue is full" }, { "retry-after": "2" });
  await pass(1000);
  ask("b");
  await pass(999);
  assert.deepEqual(sent(), ["a"]);
  await pass(1);
  assert.deepEqual(sent(), ["a", "b"]);
  await reply(504);
  await pass(1000);
  assert.deepEqual(sent(), ["a", "b", "b"]);
  assert.deepEqual(outcomes, [["overloaded", "a"], ["overloaded", "b"]]);
});

for (const [kind, fail] of [
  ["starting", () => reply(503)],
  ["unauthorised", () => reply(401)],
  ["gone", async () => (calls.at(-1).reject(new TypeError("no connection")), await settle())],
]) {
  test(`${kind}: the image is sent again when the service is ready`, async () => {
    ask("a");
    await fail();
    ask("b");
    await pass(60_000);
    assert.deepEqual([sent(), outcomes], [["a"], [[kind, "a"]]]);
    requests.resume();
    await settle();
    assert.deepEqual(sent(), ["a", "b"]);
  });
}

test("an image that is refused is not sent again", async () => {
  for (const status of [400, 408, 413, 415, 500]) {
    ask(status);
    await reply(status, { message: "words" });
    await pass(60_000);
  }
  assert.deepEqual(sent(), [400, 408, 413, 415, 500]);
  assert.deepEqual(outcomes.map(([kind]) => kind), Array(5).fill("refused"));
});
