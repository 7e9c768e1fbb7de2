// @ts-check
/**
 * The page: creates the parts and connects them. It has two modes: "digit" classifies one digit, "number" reads numbers. The
 * hash of the URL states the mode, so links and the history of the browser change it.
 *
 *     pad.js, pictures.js ──▶ page.js ──▶ requests.js ──▶ page.js ──▶ answer.js or reading.js, connection.js
 */

import { announcer } from "./announcer.js";
import { Answer } from "./answer.js";
import { Connection } from "./connection.js";
import { element, part } from "./elements.js";
import { Pad, SQUARE, WIDE } from "./pad.js";
import { Pictures, placeBox } from "./pictures.js";
import { ReadOptions } from "./read_options.js";
import { Reading } from "./reading.js";
import { Requests } from "./requests.js";

/** @typedef {"digit" | "number"} ModeName */
/**
 * @typedef {object} Mode
 * @property {string} path of the call
 * @property {string} file name in the command of the footer
 * @property {import("./pad.js").Shape} shape of the pad
 * @property {string} invitation on the pad
 * @property {Answer | Reading} view shows the answers
 * @property {() => string} query parameters of the call
 * @property {(response: any) => Promise<void> | void} mark shows on the pad what an answer is about
 * @property {() => void} unmark
 */

const answer = new Answer();
const reading = new Reading();
const options = new ReadOptions(ask);
const pad = new Pad({ onStart: hidePicture, onChange: askDrawing, mayStart, say: (words) => announcer.say(words) });
const pictures = new Pictures({ onPicture: takePicture, onNothing: refusePicture });
const requests = new Requests(onOutcome);
const drawnBox = part(element("draw"), ".box.drawn");

/** @type {Record<ModeName, Mode>} */
const MODES = {
  digit: {
    path: "/v1/classify", file: "digit.png", shape: SQUARE, invitation: "Draw a digit here", view: answer,
    query: () => "top_k=1000&explain=true", // all labels, and what framing did
    mark: markDigit,
    unmark: () => {
      pictures.unmark();
      drawnBox.hidden = true;
    },
  },
  number: {
    path: "/v1/read", file: "page.jpg", shape: WIDE, invitation: "Write a number here", view: reading,
    query: () => options.query, mark: markNumbers, unmark: () => reading.unmark(),
  },
};

/** @type {ModeName} */
let modeName = "digit";
/** @type {Blob | null} the picture on the pad */
let picture = null;

const connection = new Connection({
  onReady: () => {
    answer.setLabels(connection.model?.labels ?? []);
    requests.resume();
  },
  isWaiting: () => requests.isWaiting,
});

element("undo").addEventListener("click", undo);
element("clear").addEventListener("click", () => clear());
element("pad").addEventListener("pointermove", (event) => pad.isDrawing || reading.selectAt(event.clientX, event.clientY));
element("pad").addEventListener("click", (event) => picture && reading.selectAt(event.clientX, event.clientY));
addEventListener("hashchange", setMode);
document.addEventListener("keydown", (event) => {
  if (event.target instanceof HTMLInputElement) {
    return;
  }
  if (event.key === "Escape" || event.key === "Delete") {
    clear();
  } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    undo();
  }
});
setMode();

/** Show the mode of the URL, and ask about what is on the pad. Each mode has its own drawing; a picture stays. */
function setMode() {
  requests.cancel();
  mode().unmark();
  modeName = location.hash === "#number" ? "number" : "digit";
  document.documentElement.dataset.mode = modeName;
  for (const link of document.querySelectorAll("#modes a")) {
    link.setAttribute("aria-current", link.getAttribute("href") === `#${modeName}` ? "page" : "false");
  }
  element("answer").hidden = modeName !== "digit";
  element("reading").hidden = modeName !== "number";
  element("more").hidden = modeName !== "number";
  element("invitation").textContent = mode().invitation;
  element("command").textContent = `curl --data-binary @${mode().file} ${location.origin}${mode().path}`;
  pictures.offerExamples(modeName);
  pad.setShape(mode().shape);
  if (picture) {
    pad.clear();
  }
  mode().view.clear();
  ask();
}

function mode() {
  return MODES[modeName];
}

/** @returns {boolean} whether a stroke may start: a page with numbers stays, so that its marks can be pointed at */
function mayStart() {
  return modeName === "digit" || !picture;
}

function hidePicture() {
  if (picture) {
    requests.cancel();
    removePicture();
  }
}

function removePicture() {
  picture = null;
  pictures.hide();
}

/** Ask about what is on the pad. */
function ask() {
  if (picture) {
    askPicture(picture);
  } else if (!pad.isEmpty) {
    askDrawing();
  }
}

function askDrawing() {
  mode().unmark();
  // Raw pixels, so that the service has nothing to decode.
  requests.ask({ path: `${mode().path}?${pad.query}&${mode().query()}`, body: () => pad.pixels() });
}

/** @param {Blob} image */
function askPicture(image) {
  mode().unmark();
  show("Sending the picture");
  requests.ask({ path: `${mode().path}?${mode().query()}`, body: () => image });
}

/**
 * @param {Blob} image
 * @param {string} name
 */
function takePicture(image, name) {
  requests.cancel();
  pad.clear();
  picture = image;
  pictures.show(image, name);
  askPicture(image);
}

/** @param {string} words why there is no picture */
function refusePicture(words) {
  hidePicture();
  requests.cancel();
  mode().unmark();
  mode().view.refuse("No picture", words);
}

/** @param {string} words shown until the answer arrives */
function show(words) {
  announcer.cancel();
  mode().view.wait(words);
}

function undo() {
  if (picture) {
    clear();
    return;
  }
  const wasEmpty = pad.isEmpty;
  requests.cancel();
  pad.undo();
  if (pad.isEmpty) {
    clear(wasEmpty);
  } else {
    askDrawing();
  }
}

/** @param {boolean} wasEmpty whether nothing was on the pad; otherwise a screen reader reads that it was cleared */
function clear(wasEmpty = pad.isEmpty && !picture) {
  requests.cancel();
  announcer.cancel();
  pad.clear();
  removePicture();
  mode().unmark();
  mode().view.clear();
  if (!wasEmpty) {
    announcer.say("Cleared");
  }
}

/** @param {import("./api.js").Outcome} outcome */
async function onOutcome(outcome) {
  connection.report(outcome);
  if (outcome.kind === "refused") {
    const rejected = picture ? "The picture was rejected" : "The drawing was rejected";
    mode().unmark();
    mode().view.refuse(outcome.status < 500 ? rejected : "The service failed", outcome.message);
  } else if (outcome.kind === "ok") {
    const response = JSON.parse(outcome.text);
    const words = mode().view.show(response, outcome, picture !== null);
    if (!pad.isDrawing) {
      announcer.plan(words);
      await mode().mark(response);
    }
  } else if (outcome.kind !== "cancelled") {
    show("Waiting for the service");
  }
}

/** @param {import("./answer.js").ClassifyResponse} response */
async function markDigit(response) {
  const box = response.predictions[0].preparation?.box;
  if (box && picture) {
    await pictures.mark(box);
  } else if (box) {
    const { left, top, right, bottom } = pad.area;
    const side = right - left;
    placeBox(
      drawnBox, (box.left - left) / side, (box.top - top) / (bottom - top), (box.right - left) / side,
      (box.bottom - top) / (bottom - top),
    );
  }
}

/** @param {import("./reading_text.js").ReadResponse} response */
async function markNumbers(response) {
  const shown = picture;
  const area = shown ? await pictures.area() : pad.area;
  if (area && shown === picture && !requests.isWaiting) {
    reading.mark(response, shown ? pictures.frame : part(element("draw"), ".board"), area);
  }
}
