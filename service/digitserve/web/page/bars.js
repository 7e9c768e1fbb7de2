// @ts-check
/** A list of labels with their probabilities as bars: of an image in answer.js, of one mark in marks.js. */

import { create, part } from "./elements.js";
import { percent } from "./words.js";

/** @typedef {{label: string, class_index: number, confidence: number | null}} Score null: not known yet */

export class Bars {
  /** @param {HTMLElement} list */
  constructor(list) {
    this.list = list;
  }

  /**
   * Update the rows in place, so that the lengths of the bars change smoothly.
   *
   * @param {Score[]} scores in the order of the rows
   * @param {string} winner label of the row that is emphasised
   */
  show(scores, winner) {
    if (scores.length !== this.list.childElementCount) {
      this.list.replaceChildren(...scores.map(newRow));
    }
    scores.forEach(({ label, confidence }, index) => {
      const row = /** @type {HTMLElement} */ (this.list.children[index]);
      const isKnown = confidence !== null;
      row.classList.toggle("winner", isKnown && label === winner);
      row.style.setProperty("--share", String(confidence ?? 0));
      part(row, ".digit").textContent = label;
      part(row, ".share").textContent = isKnown ? percent(confidence) : "–";
    });
  }
}

/** @returns {HTMLElement} a row */
function newRow() {
  const row = create("li", "");
  const bar = create("span", "", "bar");
  bar.setAttribute("aria-hidden", "true");
  row.append(create("span", "", "digit"), create("span", ": ", "unseen"), bar, create("span", "", "share"));
  return row;
}
