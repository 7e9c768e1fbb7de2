// @ts-check
/**
 * Boxes over a picture or a drawing: one per mark, and one for all that was ignored. Line styles and colours are those of the
 * style sheet, by class. Only reading.js calls it.
 */

import { svg } from "./elements.js";

/** @typedef {import("./pictures.js").Box} Box */
/** @typedef {{box: Box, name: string}} Shown a box, and its class */

/** Distance of a box from its ink, in pixels of the screen. */
const GAP_PX = 2;

export class Boxes {
  #svg = svg("svg", { class: "boxes", preserveAspectRatio: "none", "aria-hidden": "true" });
  /** @type {(Box | undefined)[]} */
  #places = [];
  /** @type {(SVGElement | undefined)[]} */
  #rects = [];
  /** @type {SVGElement | undefined} */
  #selected = undefined;

  /**
   * Show boxes.
   *
   * @param {HTMLElement} parent that shows the area
   * @param {Box} area in pixels of the image
   * @param {(Shown | undefined)[]} marks
   * @param {Shown[]} ignored
   */
  show(parent, area, marks, ignored) {
    const [width, height] = [area.right - area.left, area.bottom - area.top];
    this.#svg.setAttribute("viewBox", `${area.left} ${area.top} ${width} ${height}`);
    const gap = GAP_PX * Math.max(1, width / (parent.clientWidth || width));
    this.#places = marks.map((mark) => mark?.box);
    this.#rects = marks.map((mark) => mark && rectangle(mark, gap));
    this.#svg.replaceChildren(...ignored.map((one) => rectangle(one, gap)), ...this.#rects.filter((rect) => rect !== undefined));
    parent.append(this.#svg);
  }

  hide() {
    this.#svg.remove();
    this.#places = [];
    this.#rects = [];
    this.#selected = undefined;
  }

  /** @param {number} index of the mark that is emphasised; -1 for none */
  select(index) {
    this.#selected?.classList.remove("selected");
    this.#selected = this.#rects[index];
    this.#selected?.classList.add("selected");
  }

  /**
   * @param {number} x in pixels of the window
   * @param {number} y
   * @returns {number} index of the mark there; the smallest of several; -1 if there is none
   */
  at(x, y) {
    const { left, top, width, height } = this.#svg.getBoundingClientRect();
    const view = (this.#svg.getAttribute("viewBox") ?? "").split(" ").map(Number);
    const column = view[0] + ((x - left) / width) * view[2];
    const row = view[1] + ((y - top) / height) * view[3];
    const hits = this.#places.flatMap((box, index) => (box && contains(box, column, row) ? [{ index, area: areaOf(box) }] : []));
    hits.sort((one, other) => one.area - other.area);
    return hits[0]?.index ?? -1;
  }
}

/**
 * @param {Shown} shown
 * @param {number} gap in pixels of the image
 */
function rectangle({ box, name }, gap) {
  return svg("rect", {
    class: name, "vector-effect": "non-scaling-stroke", x: String(box.left - gap), y: String(box.top - gap),
    width: String(box.right - box.left + 2 * gap), height: String(box.bottom - box.top + 2 * gap),
  });
}

/**
 * @param {Box} box
 * @param {number} column
 * @param {number} row
 */
function contains(box, column, row) {
  return column >= box.left && column < box.right && row >= box.top && row < box.bottom;
}

/** @param {Box} box */
function areaOf(box) {
  return (box.right - box.left) * (box.bottom - box.top);
}
