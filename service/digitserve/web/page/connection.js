// @ts-check
/**
 * The state of the service: the attribute data-state of the document, and one line in words. No other module sets them.
 * It polls /readyz every 5 s, more often while the service does not answer, and never in a hidden tab.
 *
 *     page.js ──report──▶ Connection ──▶ data-state, #state, #token-form
 *                              └──onReady──▶ page.js
 */

import { call, setToken } from "./api.js";
import { create, element } from "./elements.js";

/** @typedef {"starting" | "ready" | "overloaded" | "gone" | "unauthorised"} State */
/** @typedef {{name: string, version: string, labels: string[], max_request_bytes: string}} Model */

const MIN_PAUSE_MS = 500;
const MAX_PAUSE_MS = 5_000;

/** @type {Record<State, [string, string]>} in words; narrow screens show only the first part */
const WORDS = {
  starting: ["Not ready", ": no worker can answer yet. This page continues automatically."],
  ready: ["Ready", ""],
  overloaded: ["Overloaded", ": some requests are rejected. This page retries automatically."],
  gone: ["No connection", " to the service. This page retries automatically."],
  unauthorised: ["Token required", ""],
};

export class Connection {
  /** @type {Model | null} the model that is served, once it is known */
  model = null;
  #isShown = false;
  #isTokenSent = false;
  #pauseMs = MIN_PAUSE_MS;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer = undefined;

  #line = element("state");
  #form = /** @type {HTMLFormElement} */ (element("token-form"));
  #input = /** @type {HTMLInputElement} */ (element("token"));

  /**
   * @param {object} listeners
   * @param {() => void} listeners.onReady called when the service answers again
   * @param {() => boolean} listeners.isWaiting returns whether an image has no answer yet: its answer ends the state "overloaded"
   */
  constructor(listeners) {
    this.listeners = listeners;
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      setToken(this.#input.value.trim());
      this.#isTokenSent = true;
      void this.#check();
    });
    document.addEventListener("visibilitychange", () => this.#plan(0));
    void this.#check();
  }

  /** @returns {State} */
  get state() {
    return /** @type {State} */ (document.documentElement.dataset.state);
  }

  /**
   * Update the state after a call.
   *
   * @param {import("./api.js").Outcome} outcome
   */
  report(outcome) {
    if (outcome.kind === "cancelled" || outcome.kind === "refused") {
      return;
    }
    if (outcome.kind === "ok") {
      this.#set("ready");
      return;
    }
    this.#set(outcome.kind, outcome.message);
    if (outcome.kind === "starting" || outcome.kind === "gone") {
      this.#plan(this.#pauseMs);
    }
  }

  /**
   * @param {State} state
   * @param {string} message of the service
   */
  #set(state, message = "") {
    if (state === "unauthorised") {
      element("token-words").textContent = this.#isTokenSent ? `This token was rejected: ${message}` : message;
      this.#input.select();
    }
    if (state === this.state && this.#isShown) {
      return;
    }
    this.#isShown = true;
    document.documentElement.dataset.state = state;
    const [first, rest] = WORDS[state];
    this.#line.replaceChildren(first, create("span", rest));
    this.#form.hidden = state !== "unauthorised";
    if (state === "unauthorised") {
      this.#input.focus();
    } else if (state === "ready") {
      this.#isTokenSent = false;
    }
  }

  /** @param {number} ms until the next check */
  #plan(ms) {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (!document.hidden) {
      this.#timer = setTimeout(() => void this.#check(), ms);
    }
  }

  async #check() {
    clearTimeout(this.#timer);
    let outcome = await call("/readyz");
    if (outcome.kind === "ok" && (this.state !== "ready" || !this.model)) {
      outcome = await call("/v1/model");
      if (outcome.kind === "ok") {
        this.model = JSON.parse(outcome.text).model;
      }
    }
    if (outcome.kind === "ok") {
      this.#pauseMs = MIN_PAUSE_MS;
      this.#plan(MAX_PAUSE_MS);
      // The state may have changed during the calls.
      if (this.state === "overloaded" && this.listeners.isWaiting()) {
        return;
      }
      const wasReady = this.state === "ready" && this.#isShown;
      this.#set("ready");
      if (!wasReady) {
        this.listeners.onReady();
      }
    } else {
      this.report(outcome);
      if (outcome.kind === "overloaded" || outcome.kind === "refused") {
        this.#plan(MAX_PAUSE_MS);
      }
      this.#pauseMs = Math.min(2 * this.#pauseMs, MAX_PAUSE_MS);
    }
  }
}
