// @ts-check
/**
 * Reads `/metrics` periodically while the panel is visible.
 *
 *     panel ──active──▶ Poller ──GET /metrics──▶ service
 *                          └──Page, failure──▶ Monitor
 *
 * Uses no DOM. At most one reading is open at a time.
 */

import { NotMetrics, parse } from "./metrics_text.js";

/** From the start of one reading to the start of the next. */
export const INTERVAL_S = 2;

/** The same after a rejected token: each attempt is counted as unauthorised. */
export const DENIED_INTERVAL_S = 10;

/** Longest reading. */
export const TIMEOUT_S = 4;

/** The format that metrics_text.js parses. */
export const ACCEPT = "text/plain; version=0.0.4";

/** @typedef {{isDenied: boolean, text: string}} Failure why there is no reading, as the beginning of a sentence */
/**
 * @typedef {object} Options
 * @property {(path: string, init: RequestInit) => Promise<Response>} fetch with the credentials of the page
 * @property {(page: import("./metrics_text.js").Page) => void} onPage gets each reading
 * @property {(failure: Failure) => void} onFailure gets the reason why there is none
 * @property {() => number} clock monotonic time in seconds
 * @property {{setTimeout: (call: () => void, ms: number) => any, clearTimeout: (timer: any) => void}} timers such as the window
 */

/** Takes readings while it is active. */
export class Poller {
  #options;
  #isActive = false;
  /** @type {number | undefined} */
  #timer = undefined;
  /** @type {AbortController | null} */
  #reading = null;
  #nextS = -Infinity;

  /** @param {Options} options */
  constructor(options) {
    this.#options = options;
  }

  /**
   * Start or stop the readings; an open one is cancelled.
   *
   * @param {boolean} isActive
   */
  setActive(isActive) {
    if (isActive === this.#isActive) return;
    this.#isActive = isActive;
    if (isActive) {
      this.#schedule();
      return;
    }
    this.#options.timers.clearTimeout(this.#timer);
    this.#reading?.abort();
    this.#reading = null;
  }

  /** Take the next reading now, because the state of the service may have changed. */
  readNow() {
    if (this.#isActive && !this.#reading) {
      this.#nextS = -Infinity;
      this.#schedule();
    }
  }

  #schedule() {
    const { clock, timers } = this.#options;
    timers.clearTimeout(this.#timer);
    this.#timer = timers.setTimeout(() => void this.#read(), 1000 * Math.max(0, this.#nextS - clock()));
  }

  async #read() {
    const { clock, timers, onPage, onFailure } = this.#options;
    const reading = new AbortController();
    const limit = timers.setTimeout(() => reading.abort(new DOMException("too slow", "TimeoutError")), 1000 * TIMEOUT_S);
    this.#reading = reading;
    this.#nextS = clock() + INTERVAL_S;
    /** @type {import("./metrics_text.js").Page | null} */
    let page = null;
    /** @type {Failure | null} */
    let failure = null;
    try {
      page = await this.#fetchPage(reading.signal);
    } catch (error) {
      failure = toFailure(error);
    }
    timers.clearTimeout(limit);
    if (this.#reading !== reading) return; // cancelled
    this.#reading = null;
    if (failure?.isDenied) this.#nextS += DENIED_INTERVAL_S - INTERVAL_S;
    this.#schedule();
    if (page) onPage(page);
    else if (failure) onFailure(failure);
  }

  /** @param {AbortSignal} signal */
  async #fetchPage(signal) {
    const init = { headers: { accept: ACCEPT }, cache: /** @type {const} */ ("no-store"), signal };
    const response = await this.#options.fetch("/metrics", init);
    if (!response.ok) throw new HttpStatus(response.status);
    return parse(await response.text());
  }
}

class HttpStatus extends Error {
  /** @param {number} status */
  constructor(status) {
    super(`HTTP status ${status}`);
    this.status = status;
  }
}

/**
 * @param {unknown} error
 * @returns {Failure}
 */
function toFailure(error) {
  if (error instanceof HttpStatus && error.status === 401) {
    return { isDenied: true, text: "A valid token is needed" };
  }
  if (error instanceof HttpStatus) return { isDenied: false, text: `/metrics answers with ${error.message}` };
  if (error instanceof NotMetrics) return { isDenied: false, text: "/metrics has no metrics of digitserve" };
  if (error instanceof DOMException && error.name === "TimeoutError") return { isDenied: false, text: `No answer within ${TIMEOUT_S} s` };
  return { isDenied: false, text: "The service does not answer" };
}
