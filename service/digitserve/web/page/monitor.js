// @ts-check
/**
 * Keeps the readings of the last seconds, and what is known about the service now.
 *
 *     poller ──Page, failure──▶ Monitor ──▶ panel_text ──▶ panel
 *
 * Uses no clock, network or DOM: the time in seconds is passed in. `digitserve.top.monitor` is the same for the terminal.
 */

import { compare, isRestarted } from "./figures.js";

/** @typedef {import("./metrics_text.js").Page} Page */

/** Seconds over which rates and quantiles are computed: in fewer, a p99 would have too few observations. */
export const WINDOW_S = 10;

/** Seconds by which a reading may be earlier or later than planned. */
const JITTER_S = 0.25;

/** Seconds for which the panel says that the service was restarted. */
export const RESTART_SHOWN_S = 10;

/** Seconds in the history of the rates. */
export const HISTORY_S = 120;

/** What is known about a service. */
export class Monitor {
  /** @type {import("./figures.js").Figures | null} figures of the last seconds; null before the first reading. They stay when the service is gone. */
  figures = null;
  /** @type {{timeS: number, images: number, requests: number}[]} rates between successive readings, the newest last */
  rates = [];
  /** @type {number | null} when the counters last started again from 0; null if they never did */
  restartedS = null;
  /** @type {import("./poller.js").Failure | null} why the last reading failed; null if it did not */
  failure = null;
  /** @type {number | null} time of the last reading; null before the first */
  lastS = null;
  /** @type {{timeS: number, page: Page}[]} */
  #readings = [];
  #isInterrupted = false;

  /**
   * Take a reading.
   *
   * @param {number} timeS not lower than before
   * @param {Page} page
   */
  read(timeS, page) {
    const readings = this.#readings;
    const previous = readings[readings.length - 1];
    if (previous && isRestarted(previous.page, page)) {
      readings.length = 0;
      this.restartedS = timeS;
    } else if (this.#isInterrupted && previous && timeS - previous.timeS > WINDOW_S) {
      readings.length = 0;
    }
    this.failure = null;
    this.lastS = timeS;
    this.#isInterrupted = false;
    readings.push({ timeS, page });
    // The oldest reading that is kept is the newest one outside of the window, or the first one.
    while (readings.length > 2 && readings[1].timeS <= timeS - WINDOW_S + JITTER_S) readings.shift();
    this.figures = compare(readings[0].page, page, timeS - readings[0].timeS);
    const before = readings[readings.length - 2];
    if (before && timeS > before.timeS) {
      const { images, requests } = compare(before.page, page, timeS - before.timeS);
      this.rates.push({ timeS, images: images.per_s, requests: requests.per_s });
    }
    while (this.rates.length && this.rates[0].timeS < timeS - HISTORY_S) this.rates.shift();
  }

  /** @param {import("./poller.js").Failure} failure why there is no reading */
  fail(failure) {
    this.failure = failure;
  }

  /** Note that no readings are taken until the next one: after a long pause the figures start again. */
  interrupt() {
    this.#isInterrupted = true;
  }
}
