// @ts-check
/**
 * Small charts, made of SVG elements. `panel` creates each once, and updates it with each reading.
 *
 * A chart is an image for screen readers, with all its figures in its name. Nothing is animated.
 */

import { svg } from "./elements.js";

/** Units of the view box; the style sheet decides the size, and lines keep their width. */
const WIDTH = 240;
const HEIGHT = 40;

/** A line has a gap where points are further apart. */
const GAP_S = 5;

/** A line of the last seconds. */
export class Sparkline {
  #line = svg("path", { class: "line", "vector-effect": "non-scaling-stroke" });
  #area = svg("path", { class: "area" });
  #title;
  #periodS;

  /**
   * @param {string} title what is shown, for screen readers
   * @param {number} periodS from the left edge to the right one
   */
  constructor(title, periodS) {
    this.#title = title;
    this.#periodS = periodS;
    this.element = svg("svg", {
      class: "sparkline", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": title,
    });
    this.element.append(this.#area, this.#line);
  }

  /**
   * @param {{timeS: number, value: number}[]} points in ascending order of time
   * @param {number} nowS at the right edge
   * @param {string} words the figures in words
   */
  update(points, nowS, words) {
    const top = scaleEnd(Math.max(0, ...points.map(({ value }) => value)));
    const x = (/** @type {number} */ timeS) => round(WIDTH * Math.max(0, 1 - (nowS - timeS) / this.#periodS));
    // 1 unit from each edge, which would cut off half of the line.
    const y = (/** @type {number} */ value) => round(HEIGHT - 1 - ((HEIGHT - 2) * value) / top);
    let line = "";
    let area = "";
    for (const part of parts(points)) {
      const corners = part.map(({ timeS, value }) => `${x(timeS)},${y(value)}`);
      // h0 draws a single point as a dot.
      line += `M${corners.join("L")}h0`;
      area += `M${x(part[0].timeS)},${HEIGHT}L${corners.join("L")}L${x(part[part.length - 1].timeS)},${HEIGHT}Z`;
    }
    this.#line.setAttribute("d", line);
    this.#area.setAttribute("d", area);
    this.element.setAttribute("aria-label", `${this.#title}: ${words}`);
  }
}

/** Bars side by side, each with its figure above and its label below. */
export class Bars {
  #title;
  /** @type {{column: HTMLElement, value: HTMLElement, bar: SVGElement, label: HTMLElement}[]} */
  #columns = [];

  /** @param {string} title what is shown, for screen readers */
  constructor(title) {
    this.#title = title;
    this.element = document.createElement("div");
    this.element.className = "columns";
    this.element.setAttribute("role", "img");
  }

  /**
   * @param {{label: string, share: number, text: string}[]} bars the highest share is as high as the chart
   * @param {string} words the figures in words
   */
  update(bars, words) {
    while (this.#columns.length < bars.length) this.#columns.push(this.#newColumn());
    while (this.#columns.length > bars.length) this.#columns.pop()?.column.remove();
    const highest = Math.max(...bars.map(({ share }) => share)) || 1;
    bars.forEach(({ label, share, text }, index) => {
      const column = this.#columns[index];
      const height = round((100 * share) / highest);
      column.value.textContent = text;
      column.label.textContent = label;
      column.bar.setAttribute("y", String(100 - height));
      column.bar.setAttribute("height", String(height));
    });
    this.element.setAttribute("aria-label", `${this.#title}: ${words}`);
  }

  #newColumn() {
    const column = document.createElement("div");
    const value = document.createElement("span");
    const label = document.createElement("span");
    const drawing = svg("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" });
    const bar = svg("rect", { class: "bar", x: "8", width: "84" });
    drawing.append(bar);
    column.append(value, drawing, label);
    this.element.append(column);
    return { column, value, bar, label };
  }
}

/**
 * @param {number} highest value that is shown
 * @returns {number} end of the scale: 1, 2 or 5 times a power of ten, so that it seldom changes
 */
export function scaleEnd(highest) {
  if (!(highest > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(highest));
  return ([1, 2, 5].find((factor) => factor * power >= highest) ?? 10) * power;
}

/**
 * @param {{timeS: number, value: number}[]} points
 * @returns {{timeS: number, value: number}[][]} points without gaps between them
 */
export function parts(points) {
  /** @type {{timeS: number, value: number}[][]} */
  const found = [];
  points.forEach((point, index) => {
    if (!index || point.timeS - points[index - 1].timeS > GAP_S) found.push([]);
    found[found.length - 1].push(point);
  });
  return found;
}

/** @param {number} value */
function round(value) {
  return Math.round(10 * value) / 10;
}
