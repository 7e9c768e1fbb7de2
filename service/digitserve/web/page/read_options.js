// @ts-check
/** The options of the mode "Numbers": how the numbers are arranged, how many digits a line has, and its pattern. */

import { element } from "./elements.js";

/** Alternatives that are listed for each digit. */
const NUM_ALTERNATIVES = 3;

export class ReadOptions {
  #form = /** @type {HTMLFormElement} */ (element("options"));

  /** @param {() => void} onChange called when an option has a new value */
  constructor(onChange) {
    // On a narrow screen the answer is nearer without them.
    element("more").toggleAttribute("open", matchMedia("(min-width: 52rem)").matches);
    this.#form.addEventListener("change", onChange);
    // Enter in a field changes it already; there is nothing to submit.
    this.#form.addEventListener("submit", (event) => event.preventDefault());
  }

  /** @returns {string} parameters of /v1/read */
  get query() {
    const fields = new FormData(this.#form);
    return toQuery(String(fields.get("layout")), String(fields.get("num_digits")), String(fields.get("pattern")));
  }
}

/**
 * @param {string} layout page, line or cells
 * @param {string} numDigits of each line; empty for any number
 * @param {string} pattern of each line; empty for any text
 * @returns {string} parameters of /v1/read
 */
export function toQuery(layout, numDigits, pattern) {
  const query = new URLSearchParams({ layout, top_k: String(NUM_ALTERNATIVES) });
  if (numDigits.trim()) {
    query.set("num_digits", numDigits.trim());
  }
  if (pattern.trim()) {
    query.set("pattern", pattern.trim());
  }
  return query.toString();
}
