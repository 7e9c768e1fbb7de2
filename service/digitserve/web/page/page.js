// @ts-check
/**
 * The page: creates the parts and connects them.
 *
 *     pad.js, pictures.js ──▶ page.js ──▶ requests.js ──▶ page.js ──▶ answer.js, connection.js
 */

import { Answer } from "./answer.js";
import { Connection } from "./connection.js";
import { element, part } from "./elements.js";
import { MARGIN_PX, Pad, SIDE_PX } from "./pad.js";
import { Pictures, placeBox } from "./pictures.js";
import { Requests } from "./requests.js";

/** The answer lists all labels, and what framing did. Drawings are raw pixels, so that the service has nothing to decode. */
const OPTIONS = "top_k=1000&explain=true";
const DRAWING = `width=${SIDE_PX}&height=${SIDE_PX}&pixel_format=gray8&ink=light_on_dark&${OPTIONS}`;

const answer = new Answer();
const pad = new Pad({ onStart: hidePicture, onChange: askDrawing, say: (words) => answer.say(words) });
const pictures = new Pictures({ onPicture: askPicture, onNothing: refusePicture });
const requests = new Requests(onOutcome);
const connection = new Connection({
  onReady: () => {
    answer.setLabels(connection.model?.labels ?? []);
    requests.resume();
  },
  isWaiting: () => requests.isWaiting,
});
const drawnBox = part(element("draw"), ".box.drawn");

element("undo").addEventListener("click", undo);
element("clear").addEventListener("click", () => clear());
element("command").textContent = `curl --data-binary @digit.png ${location.origin}/v1/classify`;
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
answer.clear();

function hidePicture() {
  if (pictures.isShown) {
    requests.cancel();
    pictures.hide();
  }
}

function askDrawing() {
  drawnBox.hidden = true;
  requests.ask({ query: DRAWING, body: () => pad.pixels() });
}

/**
 * @param {Blob} picture
 * @param {string} name
 */
function askPicture(picture, name) {
  requests.cancel();
  pad.clear();
  drawnBox.hidden = true;
  pictures.show(picture, name);
  answer.wait("Sending the picture");
  requests.ask({ query: OPTIONS, body: () => picture });
}

/** @param {string} words why there is no picture */
function refusePicture(words) {
  hidePicture();
  requests.cancel();
  answer.refuse("No picture", words);
}

function undo() {
  if (pictures.isShown) {
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
function clear(wasEmpty = pad.isEmpty && !pictures.isShown) {
  requests.cancel();
  pad.clear();
  pictures.hide();
  drawnBox.hidden = true;
  answer.clear();
  if (!wasEmpty) {
    answer.say("Cleared");
  }
}

/** @param {import("./api.js").Outcome} outcome */
async function onOutcome(outcome) {
  connection.report(outcome);
  if (outcome.kind === "refused") {
    const rejected = pictures.isShown ? "The picture was rejected" : "The drawing was rejected";
    answer.refuse(outcome.status < 500 ? rejected : "The service failed", outcome.message);
  } else if (outcome.kind === "ok") {
    const response = JSON.parse(outcome.text);
    answer.show(response, outcome, pictures.isShown);
    if (!pad.isDrawing) {
      answer.readOut();
    }
    const box = response.predictions[0].preparation?.box;
    if (box && pictures.isShown) {
      await pictures.mark(box);
    } else if (box && !pad.isDrawing) {
      const unit = SIDE_PX - 2 * MARGIN_PX;
      const [left, top, right, bottom] = [box.left, box.top, box.right, box.bottom].map((px) => (px - MARGIN_PX) / unit);
      placeBox(drawnBox, left, top, right, bottom);
    }
  } else if (outcome.kind !== "cancelled") {
    answer.wait("Waiting for the service");
  }
}
