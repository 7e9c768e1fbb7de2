// @ts-check
/**
 * Pictures: image files that the user chooses, photographs, drops or pastes, and examples. One of them is shown on the pad.
 *
 *     file inputs, drop, paste, examples ──▶ Pictures ──onPicture──▶ page.js
 */

import { create, element, part } from "./elements.js";

/** @typedef {{top: number, bottom: number, left: number, right: number}} Box in pixels of a picture */

const FOLDER = "/page/examples/";

/**
 * File and name of each example, by mode. The names say what the picture is, not what the service answers.
 *
 * @type {Record<import("./page.js").ModeName, string[][]>}
 */
const EXAMPLES = {
  digit: [
    ["mnist.png", "A digit from MNIST"],
    ["paper.jpg", "A digit on paper"],
    ["edge.jpg", "A page on a table"],
    ["two.png", "Two digits"],
    ["letter.png", "A letter"],
    ["scribble.png", "A scribble"],
    ["empty.jpg", "Empty paper"],
  ],
  number: [
    ["number.png", "A number"],
    ["date.png", "A date"],
    ["lines.jpg", "Lines on paper"],
    ["cells.png", "Cells of a form"],
  ],
};

export class Pictures {
  #figure = element("picture");
  #frame = part(this.#figure, ".frame");
  #image = /** @type {HTMLImageElement} */ (part(this.#figure, "img"));
  #caption = part(this.#figure, "figcaption");
  #box = part(this.#figure, ".box");
  #board = part(element("draw"), ".board");
  #url = "";

  /**
   * @param {object} listeners
   * @param {(picture: Blob, name: string) => void} listeners.onPicture called with each picture
   * @param {(words: string) => void} listeners.onNothing called when there is no file, or none that can be read
   */
  constructor(listeners) {
    this.listeners = listeners;
    this.#listenTo("choose", "file");
    this.#listenTo("take", "photo");
    document.addEventListener("dragover", (event) => this.#over(event));
    document.addEventListener("dragleave", (event) => this.#leave(event));
    document.addEventListener("drop", (event) => this.#drop(event));
    document.addEventListener("paste", (event) => this.#paste(event));
    this.#image.addEventListener("load", () => this.#loaded());
    this.#image.addEventListener("error", () => this.#figure.classList.add("unseen-picture"));
  }

  /** @param {import("./page.js").ModeName} mode whose examples are offered */
  offerExamples(mode) {
    element("examples").replaceChildren(...EXAMPLES[mode].map(([file, name]) => this.#example(file, name)));
  }

  /** Whether a picture is shown. */
  get isShown() {
    return !this.#figure.hidden;
  }

  /**
   * Show a picture on the pad, with its name and size.
   *
   * @param {Blob} picture
   * @param {string} name
   */
  show(picture, name) {
    this.hide();
    this.#url = URL.createObjectURL(picture);
    this.#figure.classList.remove("unseen-picture");
    this.#image.src = this.#url;
    this.#image.alt = name;
    this.#caption.textContent = `${name}, ${formatBytes(picture.size)}`;
    this.#figure.hidden = false;
    this.#board.classList.add("has-picture");
  }

  /** Show no picture. */
  hide() {
    this.#figure.hidden = true;
    this.#board.classList.remove("has-picture");
    this.unmark();
    this.#image.removeAttribute("src");
    URL.revokeObjectURL(this.#url);
    this.#url = "";
  }

  /** @returns {HTMLElement} what has the size of the picture on the screen */
  get frame() {
    return this.#frame;
  }

  /** @returns {Promise<Box | null>} all of the picture in its pixels, once it is decoded; null if the browser cannot show it */
  async area() {
    await this.#image.decode().catch(() => {});
    const { naturalWidth: right, naturalHeight: bottom } = this.#image;
    return right && bottom && this.isShown ? { top: 0, bottom, left: 0, right } : null;
  }

  /** @param {Box} box that was framed; the rest is shown darker */
  async mark(box) {
    const area = await this.area();
    if (area) {
      const { right: width, bottom: height } = area;
      placeBox(this.#box, box.left / width, box.top / height, box.right / width, box.bottom / height);
    }
  }

  /** Mark nothing. */
  unmark() {
    this.#box.hidden = true;
  }

  /**
   * @param {string} button
   * @param {string} input
   */
  #listenTo(button, input) {
    const field = /** @type {HTMLInputElement} */ (element(input));
    element(button).addEventListener("click", () => field.click());
    field.addEventListener("change", () => {
      this.#take(field.files);
      field.value = ""; // so that the same file can be chosen again
    });
  }

  /** @param {FileList | null | undefined} files */
  #take(files) {
    const file = files?.[0];
    if (file) {
      const others = files.length > 1 ? ` (first of ${files.length} files)` : "";
      void this.#offer(file, file.name + others);
    }
    return file !== undefined;
  }

  /**
   * A folder is a file that cannot be read. Sent, it would look as if the service had not answered.
   *
   * @param {File} file
   * @param {string} name
   */
  async #offer(file, name) {
    try {
      await file.slice(0, 1).arrayBuffer();
    } catch {
      this.listeners.onNothing(`${name} cannot be read. Choose a file that exists, not a folder.`);
      return;
    }
    this.listeners.onPicture(file, name);
  }

  /** @param {DragEvent} event */
  #over(event) {
    event.preventDefault(); // the browser would open the file
    this.#board.classList.add("over");
  }

  /** @param {DragEvent} event */
  #leave(event) {
    if (!event.relatedTarget) {
      this.#board.classList.remove("over");
    }
  }

  /** @param {DragEvent} event */
  #drop(event) {
    event.preventDefault();
    this.#board.classList.remove("over");
    if (!this.#take(event.dataTransfer?.files)) {
      this.listeners.onNothing("The dropped item is not a file. Save the picture first, then drop the file.");
    }
  }

  /** @param {ClipboardEvent} event */
  #paste(event) {
    if (!(event.target instanceof HTMLInputElement) && this.#take(event.clipboardData?.files)) {
      event.preventDefault();
    }
  }

  #loaded() {
    const { naturalWidth: width, naturalHeight: height } = this.#image;
    this.#board.style.setProperty("--ratio", String(width / height));
    this.#frame.classList.toggle("small", Math.max(width, height) < 100);
  }

  /**
   * @param {string} file
   * @param {string} name
   */
  #example(file, name) {
    const image = document.createElement("img");
    image.src = FOLDER + file;
    image.alt = name;
    image.width = 44;
    image.height = 44;
    const button = create("button", "");
    button.setAttribute("type", "button");
    button.title = name;
    button.append(image);
    button.addEventListener("click", async () => {
      const response = await fetch(FOLDER + file).catch(() => null);
      if (response?.ok) {
        this.listeners.onPicture(await response.blob(), name);
      }
    });
    const item = document.createElement("li");
    item.append(button);
    return item;
  }
}

/**
 * Place a box over its parent.
 *
 * @param {HTMLElement} box
 * @param {number} left 0 to 1 of the width of the parent; the other three in the same way
 * @param {number} top
 * @param {number} right
 * @param {number} bottom
 */
export function placeBox(box, left, top, right, bottom) {
  box.style.setProperty("--left", String(left));
  box.style.setProperty("--top", String(top));
  box.style.setProperty("--width", String(right - left));
  box.style.setProperty("--height", String(bottom - top));
  box.hidden = false;
}

/**
 * @param {number} bytes
 * @returns {string}
 */
function formatBytes(bytes) {
  if (bytes < 1000) {
    return `${bytes} bytes`;
  }
  return bytes < 1e6 ? `${(bytes / 1000).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
