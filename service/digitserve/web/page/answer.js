// @ts-check
/**
 * The section "Answer": label, confidence, verdict, probabilities, what the network saw, and times. Only page.js calls it.
 */

import { announcer } from "./announcer.js";
import { Bars } from "./bars.js";
import { canvas, element } from "./elements.js";
import { decoding, milliseconds, percent, times } from "./words.js";

/** @typedef {import("./pictures.js").Box} Box */
/** @typedef {import("./bars.js").Score} Score */
/**
 * @typedef {object} Preparation
 * @property {string} pixels base64
 * @property {string} framing
 * @property {string} ink
 * @property {Box} [box]
 * @property {{artefact: string}[]} removed
 */
/**
 * @typedef {object} Prediction
 * @property {string} label
 * @property {number} class_index
 * @property {number} confidence
 * @property {string} verdict
 * @property {Score[]} top
 * @property {Preparation} preparation
 */
/**
 * @typedef {object} ClassifyResponse
 * @property {Prediction[]} predictions
 * @property {string} model_name
 * @property {string} model_version
 * @property {{queue_s: number, preprocess_s: number, inference_s: number, batch_size: number}} timing
 */

/** @type {Record<string, [string, string]>} verdict and its explanation */
const VERDICTS = {
  VERDICT_ACCEPTED: ["Recognised as a digit", ""],
  VERDICT_UNFAMILIAR: ["Not recognised as a digit", "It is not similar to the training images."],
  VERDICT_BLANK: ["Blank", "There is no ink in the image, or too little."],
  VERDICT_SEVERAL: ["Several separate shapes", "An image must contain only one digit."],
};

/** @type {Record<string, string>} */
const ARTEFACTS = {
  ARTEFACT_PAGE_EDGE: "the edge of a page",
  ARTEFACT_RECTANGLE: "a frame around the digit",
  ARTEFACT_BORDER: "lines at the border",
};

/** @type {Record<string, string>} */
const INKS = { INK_LIGHT_ON_DARK: "light ink on dark", INK_DARK_ON_LIGHT: "dark ink on light" };

/** Below this confidence the second label is named too. */
const SURE = 0.9;

/** Of the list of times. */
const TERMS = ["Round trip", "Decoding", "Queue", "Framing", "Network", "Batch size", "Model"];

export class Answer {
  #section = element("answer");
  #label = element("label");
  #confidence = element("confidence");
  #verdict = element("verdict");
  #explanation = element("explanation");
  #bars = new Bars(element("bars"));
  #framed = canvas("framed");
  #preparation = element("preparation");
  #times = element("times");
  /** Of the model; until it is known the ten digits, so that the layout does not change later. */
  #labels = [..."0123456789"];

  /** Show no answer. */
  clear() {
    this.#head("empty", "", "", "Draw a digit, or choose an example.", "");
    this.#body();
    this.#times.replaceChildren(...times(TERMS, []));
  }

  /** @param {string} words shown until the answer arrives */
  wait(words) {
    this.#head("empty", "", "", words, "");
    this.#body();
  }

  /**
   * Show why there is no answer.
   *
   * @param {string} title
   * @param {string} message of the service
   */
  refuse(title, message) {
    this.#head("refused", "", "", title, message);
    this.#body();
    this.#times.replaceChildren(...times(TERMS, []));
    announcer.plan(`${title}. ${message}`);
  }

  /**
   * Show an answer.
   *
   * @param {ClassifyResponse} response
   * @param {{ms: number, headers: Headers}} call round trip, and the header fields of the answer
   * @param {boolean} isPicture whether it is about a picture; otherwise about a drawing
   * @returns {string} the answer in words, for users of a screen reader
   */
  show(response, { ms, headers }, isPicture) {
    const prediction = response.predictions[0];
    const { label, confidence, verdict } = prediction;
    const [title, explanation] = VERDICTS[verdict] ?? [verdict, ""];
    const second = verdict === "VERDICT_ACCEPTED" && confidence < SURE ? prediction.top[1] : undefined;
    const also = second?.confidence ? `It may also be ${second.label}: ${percent(second.confidence)}.` : "";
    if (verdict === "VERDICT_ACCEPTED") {
      this.#head("accepted", label, percent(confidence), title, also);
    } else {
      const nearest = label ? ` The nearest label is ${label}: ${percent(confidence)}.` : "";
      this.#head("doubtful", label, "", title, explanation + nearest);
    }
    this.#body(prediction, isPicture);
    const { queue_s, preprocess_s, inference_s, batch_size } = response.timing;
    this.#times.replaceChildren(
      ...times(TERMS, [
        milliseconds(ms), isPicture ? decoding(headers) : "none", milliseconds(1000 * queue_s), milliseconds(1000 * preprocess_s),
        milliseconds(1000 * inference_s), String(batch_size), `${response.model_name} ${response.model_version}`,
      ]),
    );
    return [label && `${label}, ${percent(confidence)}.`, `${title}.`, also].join(" ").trim();
  }

  /** @param {string[]} labels of the model, for the bars before the first answer */
  setLabels(labels) {
    this.#labels = labels;
    if (!this.#label.dataset.label) {
      this.#body();
    }
  }

  /**
   * @param {string} kind
   * @param {string} label
   * @param {string} confidence
   * @param {string} verdict
   * @param {string} explanation
   */
  #head(kind, label, confidence, verdict, explanation) {
    this.#section.dataset.kind = kind;
    this.#label.textContent = label || "–";
    this.#label.dataset.label = label;
    this.#confidence.textContent = confidence;
    this.#verdict.textContent = verdict;
    this.#explanation.textContent = explanation;
  }

  /**
   * @param {Prediction} [prediction]
   * @param {boolean} [isPicture]
   */
  #body(prediction, isPicture = false) {
    const scores = prediction?.top.length
      ? [...prediction.top].sort((one, other) => one.class_index - other.class_index)
      : this.#labels.map((label, index) => ({ label, class_index: index, confidence: null }));
    this.#bars.show(scores, prediction?.label ?? "");
    const context = this.#framed.getContext("2d");
    const side = this.#framed.width;
    context?.clearRect(0, 0, side, side);
    if (prediction?.preparation) {
      context?.putImageData(toImage(prediction.preparation.pixels, side), 0, 0);
      this.#framed.setAttribute("aria-label", "The image after framing");
      this.#preparation.textContent = describe(prediction.preparation, isPicture);
    } else {
      this.#framed.setAttribute("aria-label", "No image yet");
      this.#preparation.textContent = "The image after framing: 28 by 28 pixels.";
    }
  }
}

/**
 * @param {string} base64 grey pixels
 * @param {number} side
 * @returns {ImageData}
 */
function toImage(base64, side) {
  const image = new ImageData(side, side);
  [...atob(base64)].forEach((character, index) => {
    image.data.fill(character.charCodeAt(0), 4 * index, 4 * index + 3);
    image.data[4 * index + 3] = 255;
  });
  return image;
}

/**
 * @param {Preparation} preparation
 * @param {boolean} isPicture
 * @returns {string}
 */
function describe({ framing, ink, box, removed }, isPicture) {
  const sentences = [];
  if (isPicture && INKS[ink]) {
    sentences.push(`Found ${INKS[ink]}.`);
  }
  if (removed.length) {
    sentences.push(`Cut off: ${removed.map(({ artefact }) => ARTEFACTS[artefact] ?? artefact).join(", ")}.`);
  }
  if (box) {
    sentences.push("The marked box was scaled to 20 pixels and centred in 28 by 28.");
  } else if (framing === "FRAMING_AS_IS") {
    sentences.push("The image was neither moved nor scaled.");
  } else {
    sentences.push("No ink was found.");
  }
  return sentences.join(" ");
}
