// @ts-check
/** Figures in words, and the list of times of an answer. Both modes use it. */

import { create } from "./elements.js";

/**
 * @param {string[]} terms
 * @param {string[]} values in the order of the terms; a missing one is shown as a dash
 * @returns {HTMLElement[]}
 */
export function times(terms, values) {
  return terms.map((term, index) => {
    const group = document.createElement("div");
    group.append(create("dt", term), create("dd", values[index] ?? "–"));
    return group;
  });
}

/**
 * @param {Headers} headers
 * @returns {string} time in which the service decoded the picture
 */
export function decoding(headers) {
  const ms = /decode;dur=([0-9.]+)/.exec(headers.get("server-timing") ?? "");
  return ms ? milliseconds(Number(ms[1])) : "–";
}

/**
 * @param {number} share 0 to 1
 * @returns {string} one decimal; never 100 %, because no answer is certain
 */
export function percent(share) {
  return share < 0.9995 ? `${(100 * share).toFixed(1)} %` : `>99.9 %`;
}

/**
 * @param {number} ms
 * @returns {string}
 */
export function milliseconds(ms) {
  return `${ms.toFixed(ms < 10 ? 2 : ms < 100 ? 1 : 0)} ms`;
}
