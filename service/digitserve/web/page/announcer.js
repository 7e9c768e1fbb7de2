// @ts-check
/** What a screen reader reads about the answer: one live region, which all sections share. */

import { element } from "./elements.js";

/** Time without a change after which an answer is read. */
const SETTLED_MS = 700;

class Announcer {
  #region = element("announcement");
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer = undefined;

  /** @param {string} words read once nothing else is planned or said for a moment */
  plan(words) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.say(words), SETTLED_MS);
  }

  /** @param {string} words read now */
  say(words) {
    this.cancel();
    this.#region.textContent = words;
  }

  /** Do not read what is planned. */
  cancel() {
    clearTimeout(this.#timer);
  }
}

export const announcer = new Announcer();
