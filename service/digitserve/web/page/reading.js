// @ts-check
/**
 * The section "Answer" of the mode "Numbers": the lines as text that can be edited and copied, all about one mark, what was
 * ignored, and times. Only page.js calls it.
 *
 *     page.js ──show, mark──▶ Reading ──▶ lines.js, boxes.js
 *     pointer or focus on a mark ──▶ Reading.select ──▶ #mark, boxes.js
 */

import { Bars } from "./bars.js";
import { Boxes } from "./boxes.js";
import { element, part } from "./elements.js";
import { Lines } from "./lines.js";
import { announce, classOf, describeIgnored, kindOf, scoresOf, summarise } from "./reading_text.js";
import { decoding, milliseconds, times } from "./words.js";

/** @typedef {import("./pictures.js").Box} Box */
/** @typedef {import("./reading_text.js").Mark} Mark */
/** @typedef {import("./reading_text.js").Line} Line */
/** @typedef {import("./reading_text.js").Ignored} Ignored */
/** @typedef {import("./reading_text.js").ReadResponse} ReadResponse */

/** Of the list of times. */
const TERMS = ["Round trip", "Decoding", "Queue", "Segmentation", "Network", "Candidates", "Model"];

const INVITATION = "Write a number, or choose an example.";
const NO_MARK = "Point at a digit, or move to it with Tab and arrow keys, to see its alternatives.";

export class Reading {
  #section = element("reading");
  #summary = element("summary");
  #message = element("message");
  #detail = element("mark");
  #bars = new Bars(part(this.#detail, "ol"));
  #ignored = element("ignored");
  #times = element("read-times");
  #lines = new Lines((index) => this.select(index));
  #boxes = new Boxes();
  /** @type {Mark[]} of all lines */
  #marks = [];
  /** Index of the mark that is shown in detail; -1 if none is. */
  #selected = -1;

  /** Show no answer. */
  clear() {
    this.#fill("empty", INVITATION, "");
    this.#times.replaceChildren(...times(TERMS, []));
  }

  /** @param {string} words shown until the answer arrives */
  wait(words) {
    this.#fill("empty", words, "");
  }

  /**
   * Show why there is no answer.
   *
   * @param {string} title
   * @param {string} message of the service
   */
  refuse(title, message) {
    this.#fill("refused", title, message);
    this.#times.replaceChildren(...times(TERMS, []));
  }

  /**
   * Show an answer.
   *
   * @param {ReadResponse} response
   * @param {{ms: number, headers: Headers}} call round trip, and the header fields of the answer
   * @param {boolean} isPicture whether it is about a picture; otherwise about a drawing
   * @returns {string} the answer in words, for users of a screen reader
   */
  show(response, { ms, headers }, isPicture) {
    this.#fill(response.lines.length ? "read" : "nothing", summarise(response), "", response.lines, response.ignored);
    const { queue_s, preprocess_s, inference_s, batch_size } = response.timing;
    this.#times.replaceChildren(
      ...times(TERMS, [
        milliseconds(ms), isPicture ? decoding(headers) : "none", milliseconds(1000 * queue_s), milliseconds(1000 * preprocess_s),
        milliseconds(1000 * inference_s), String(batch_size), `${response.model_name} ${response.model_version}`,
      ]),
    );
    return announce(response);
  }

  /**
   * Show the boxes of an answer.
   *
   * @param {ReadResponse} response
   * @param {HTMLElement} parent that shows the area
   * @param {Box} area in pixels of the image
   */
  mark(response, parent, area) {
    const marks = this.#marks.map((mark) => mark.box && { box: mark.box, name: classOf(mark) });
    const ignored = response.ignored.flatMap(({ box }) => (box ? [{ box, name: "ignored" }] : []));
    this.#boxes.show(parent, area, marks, ignored);
    this.#boxes.select(this.#selected);
  }

  /** Show no boxes. */
  unmark() {
    this.#boxes.hide();
  }

  /**
   * Show all about the mark at a place of the window, if there is one.
   *
   * @param {number} x
   * @param {number} y
   */
  selectAt(x, y) {
    const index = this.#boxes.at(x, y);
    if (index >= 0) {
      this.select(index);
    }
  }

  /** @param {number} index of the mark that is shown in detail */
  select(index) {
    const mark = this.#marks[index];
    this.#selected = index;
    part(this.#detail, ".character").textContent = mark.text.trim();
    part(this.#detail, ".kind").textContent = kindOf(mark);
    this.#bars.show(scoresOf(mark), mark.kind === "MARK_KIND_DIGIT" ? mark.label : "");
    this.#detail.dataset.mark = classOf(mark);
    this.#lines.select(index);
    this.#boxes.select(index);
  }

  /**
   * @param {string} kind
   * @param {string} summary
   * @param {string} message
   * @param {Line[]} lines
   * @param {Ignored[]} ignored
   */
  #fill(kind, summary, message, lines = [], ignored = []) {
    this.#section.dataset.kind = kind;
    this.#summary.textContent = summary;
    this.#message.textContent = message;
    this.#ignored.textContent = describeIgnored(ignored);
    this.#detail.hidden = kind !== "read";
    if (!this.#lines.show(lines)) {
      return;
    }
    this.#marks = lines.flatMap(({ marks }) => marks);
    this.#selected = -1;
    this.#detail.dataset.mark = "";
    part(this.#detail, ".character").textContent = "";
    part(this.#detail, ".kind").textContent = NO_MARK;
    this.#bars.show([], "");
  }
}
