// @ts-check
/**
 * Sends images to the service. At most one request is open, and requests start at least 250 ms apart. An image that
 * arrives meanwhile waits; a newer one replaces it. A request that the service could not answer is sent again.
 *
 *     pad.js, pictures.js ──ask──▶ Requests ──call──▶ service
 *                                     └──onOutcome──▶ page.js
 */

import { call } from "./api.js";

/** @typedef {import("./api.js").Outcome} Outcome */
/**
 * @typedef {object} Question an image to classify or to read
 * @property {string} path of the call, with its query
 * @property {() => BodyInit} body called when the request starts, so that it is the newest drawing
 */

/** Four requests per second: enough to show the answer while the user draws. */
const PAUSE_MS = 250;

export class Requests {
  /** @type {Question | null} */
  #waiting = null;
  /** @type {AbortController | null} */
  #open = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer = undefined;
  #nextMs = 0;
  #held = false;

  /** @param {(outcome: Outcome, question: Question) => void} onOutcome called for each outcome that counts, in order */
  constructor(onOutcome) {
    this.onOutcome = onOutcome;
  }

  /** Whether an image has no answer yet. */
  get isWaiting() {
    return this.#waiting !== null || this.#open !== null;
  }

  /** @param {Question} question replaces one that waits */
  ask(question) {
    this.#waiting = question;
    this.#start();
  }

  /** Drop the image: its answer is not shown. */
  cancel() {
    this.#waiting = null;
    this.#open?.abort();
    this.#open = null;
  }

  /** Send what waits, because the service is ready again. */
  resume() {
    this.#held = false;
    this.#start();
  }

  #start() {
    if (this.#open || this.#held || !this.#waiting || this.#timer !== undefined) {
      return;
    }
    const wait = this.#nextMs - performance.now();
    if (wait > 0) {
      this.#timer = setTimeout(() => {
        this.#timer = undefined;
        this.#start();
      }, wait);
      return;
    }
    const question = this.#waiting;
    this.#waiting = null;
    void this.#send(question);
  }

  /** @param {Question} question */
  async #send(question) {
    const open = new AbortController();
    this.#open = open;
    this.#nextMs = performance.now() + PAUSE_MS;
    const outcome = await call(question.path, { method: "POST", body: question.body() }, open.signal);
    if (this.#open !== open) {
      return; // cancelled; another request may be open
    }
    this.#open = null;
    if (outcome.kind === "overloaded") {
      this.#waiting ??= question;
      this.#nextMs = performance.now() + outcome.retryS * 1000;
    } else if (outcome.kind === "starting" || outcome.kind === "gone" || outcome.kind === "unauthorised") {
      this.#waiting ??= question;
      this.#held = true;
    }
    this.onOutcome(outcome, question);
    this.#start();
  }
}
