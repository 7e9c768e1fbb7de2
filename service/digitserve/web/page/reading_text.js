// @ts-check
/** What is read, in words: lines, marks, and what was ignored. Uses no DOM. */

import { percent } from "./words.js";

/** @typedef {import("./pictures.js").Box} Box */
/** @typedef {import("./bars.js").Score} Score */
/**
 * @typedef {object} Mark
 * @property {string} text
 * @property {string} kind
 * @property {Box} [box]
 * @property {string} label
 * @property {number} confidence
 * @property {string} verdict
 * @property {Score[]} top
 */
/** @typedef {{text: string, confidence: number, marks: Mark[], matches: boolean}} Line */
/** @typedef {{kind: string, box?: Box}} Ignored */
/**
 * @typedef {object} ReadResponse
 * @property {Line[]} lines
 * @property {Ignored[]} ignored
 * @property {string} model_name
 * @property {string} model_version
 * @property {{queue_s: number, preprocess_s: number, inference_s: number, batch_size: number}} timing
 */
/** @typedef {"sure" | "check" | "unread" | "separator" | "empty"} MarkClass how a mark is shown */

/** Below this confidence a mark should be checked. */
const SURE = 0.95;

/** The same for a line: it has several marks. */
const SURE_LINE = 0.9;

/** @type {[number, string][]} lowest confidence of a line, and its words */
const LINE_WORDS = [[0.99, "Very sure"], [SURE_LINE, "Sure"], [0.6, "Probably right, check it"], [0, "Not sure, check it"]];

/** Lines of an answer that are announced; more are found in the list. */
const MAX_LINES_ANNOUNCED = 3;

/** @type {Record<string, string>} */
const SEPARATORS = { ".": "Point", ",": "Comma", "/": "Slash", "-": "Hyphen" };

/** @type {Record<string, string>} why a digit was not read */
const VERDICTS = {
  VERDICT_ACCEPTED: "Not read: less confident than required",
  VERDICT_UNFAMILIAR: "Not read: not similar to the training images",
  VERDICT_BLANK: "Not read: too little ink",
  VERDICT_SEVERAL: "Not read: several separate shapes",
};

/** @type {Record<string, [string, string]>} one, and several */
const IGNORED = {
  IGNORED_KIND_RULING: ["ruled line or box", "ruled lines or boxes"],
  IGNORED_KIND_SPECK: ["speck", "specks"],
  IGNORED_KIND_SHAPE: ["shape that is no digit", "shapes that are no digits"],
  IGNORED_KIND_OTHER_LINE: ["mark outside of the line", "marks outside of the line"],
};

/**
 * @param {Mark} mark
 * @returns {MarkClass}
 */
export function classOf({ kind, confidence }) {
  switch (kind) {
    case "MARK_KIND_UNREAD":
      return "unread";
    case "MARK_KIND_EMPTY":
      return "empty";
    case "MARK_KIND_SEPARATOR":
      return confidence < SURE ? "check" : "separator";
    default: // MARK_KIND_DIGIT
      return confidence < SURE ? "check" : "sure";
  }
}

/**
 * @param {Mark} mark
 * @returns {string} what it is
 */
export function kindOf({ kind, text, confidence, verdict }) {
  switch (kind) {
    case "MARK_KIND_UNREAD":
      return VERDICTS[verdict] ?? "Not read";
    case "MARK_KIND_EMPTY":
      return "Empty cell";
    case "MARK_KIND_SEPARATOR":
      return `${SEPARATORS[text] ?? "Separator"}: ${percent(confidence)}`;
    default:
      return `${confidence < SURE ? "Digit, check it" : "Digit"}: ${percent(confidence)}`;
  }
}

/**
 * @param {Mark} mark
 * @returns {Score[]} its labels by the network alone, most probable first; none for separators and empty cells
 */
export function scoresOf({ label, confidence, top }) {
  if (!label) {
    return [];
  }
  return top.length ? top : [{ label, class_index: 0, confidence }];
}

/**
 * @param {Mark} mark
 * @returns {string} all about it, for users of a screen reader
 */
export function describeMark(mark) {
  const scores = scoresOf(mark).map(({ label, confidence }) => `${label} ${percent(confidence ?? 0)}`);
  const name = `${mark.text.trim()} ${kindOf(mark)}`.trim();
  return scores.length ? `${name}. By the network: ${scores.join(", ")}` : name;
}

/**
 * @param {Line} line
 * @returns {string} its confidence in words
 */
export function describeLine({ confidence, marks, matches }) {
  const unread = marks.filter(({ kind }) => kind === "MARK_KIND_UNREAD").length;
  const words = unread
    ? `${count(unread, "mark", "marks")} not read`
    : `${LINE_WORDS.find(([least]) => confidence >= least)?.[1] ?? ""}: ${percent(confidence)}`;
  return matches ? words : `${words}. It does not have the pattern or the number of digits`;
}

/**
 * @param {Line} line
 * @returns {boolean} whether it should be checked
 */
export function isDoubtful({ confidence, matches }) {
  return confidence < SURE_LINE || !matches;
}

/**
 * @param {ReadResponse} response
 * @returns {string} how much was read
 */
export function summarise({ lines }) {
  const classes = lines.flatMap(({ marks }) => marks.filter(({ label }) => label).map(classOf));
  if (!lines.length) {
    return "No number found";
  }
  const toCheck = classes.filter((name) => name === "check").length;
  const unread = classes.filter((name) => name === "unread").length;
  const parts = [`${count(lines.length, "line", "lines")} with ${count(classes.length, "digit", "digits")}`];
  if (toCheck) parts.push(`${toCheck} to check`);
  if (unread) parts.push(`${unread} not read`);
  return parts.join(", ");
}

/**
 * @param {Ignored[]} ignored
 * @returns {string} what was ignored; empty if nothing was
 */
export function describeIgnored(ignored) {
  const parts = Object.entries(IGNORED).flatMap(([name, [one, several]]) => {
    const found = ignored.filter(({ kind }) => kind === name).length;
    return found ? [count(found, one, several)] : [];
  });
  return parts.length ? `Ignored: ${parts.join(", ")}.` : "";
}

/**
 * @param {ReadResponse} response
 * @returns {string} the answer, for users of a screen reader
 */
export function announce(response) {
  const few = response.lines.slice(0, MAX_LINES_ANNOUNCED);
  const lines = few.map((line) => `${[...line.text].join(" ").trim()}. ${describeLine(line)}.`);
  return [`${summarise(response)}.`, ...lines].join(" ");
}

/**
 * @param {number} number
 * @param {string} one
 * @param {string} several
 * @returns {string}
 */
function count(number, one, several) {
  return `${number} ${number === 1 ? one : several}`;
}
