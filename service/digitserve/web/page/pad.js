// @ts-check
/**
 * The pad: strokes of mouse, pen, finger or keyboard, on the screen and as pixels for the service.
 *
 *     pointer and key events ──▶ Pad ──onChange──▶ page.js ──▶ Pad.pixels ──▶ requests.js
 *
 * Points are in units of the height of the pad: x from 0 to its aspect ratio, y from 0 to 1. The pixels that are sent do not
 * depend on the size of the screen or on its colours.
 */

import { canvas, element } from "./elements.js";

/** @typedef {{x: number, y: number}} Point */

/** @typedef {import("./pictures.js").Box} Box */
/**
 * @typedef {object} Shape of the pad and of the image that is sent
 * @property {number} aspect width by height
 * @property {number} heightPx of the image
 * @property {number} marginPx empty pixels around the drawing, so that no stroke touches the border of the image, where
 *     framing removes lines
 * @property {number} stroke width of a stroke, in units of the pad
 */

/**
 * For one digit. Framing works on at most 128 pixels a side, so it does not reduce this image. A digit that fills two thirds
 * of the pad has strokes as wide as those of MNIST.
 *
 * @type {Shape}
 */
export const SQUARE = { aspect: 1, heightPx: 128, marginPx: 8, stroke: 0.07 };

/**
 * For numbers: about six digits side by side, or two lines. Digits half as high as the pad have strokes as wide as those of
 * MNIST.
 *
 * @type {Shape}
 */
export const WIDE = { aspect: 2, heightPx: 256, marginPx: 16, stroke: 0.05 };

/** Steps of the keyboard's pen, in units of the pad. */
const STEP = 0.025;
const LARGE_STEP = 0.1;

/** @type {Record<string, Point>} */
const DIRECTIONS = {
  ArrowUp: { x: 0, y: -1 },
  ArrowDown: { x: 0, y: 1 },
  ArrowLeft: { x: -1, y: 0 },
  ArrowRight: { x: 1, y: 0 },
};

export class Pad {
  #canvas = canvas("pad");
  #pen = element("pen");
  #invitation = element("invitation");
  #shape = SQUARE;
  /** @type {Map<Shape, Point[][]>} the drawings of all shapes */
  #drawings = new Map();
  /** @type {Point[][]} of the drawing on the pad */
  #strokes = [];
  /** @type {number | null} pointer that draws the last stroke */
  #pointer = null;
  /** @type {Point} where the keyboard's pen is */
  #position = { x: 0.5, y: 0.5 };
  #isPenDown = false;
  #isDrawPlanned = false;

  /**
   * @param {object} listeners
   * @param {() => void} listeners.onStart called when a stroke starts
   * @param {() => void} listeners.onChange called when the drawing has changed
   * @param {() => boolean} listeners.mayStart returns whether a stroke may start now
   * @param {(words: string) => void} listeners.say reads words to users of a screen reader
   */
  constructor(listeners) {
    this.listeners = listeners;
    this.#canvas.addEventListener("pointerdown", (event) => this.#down(event));
    this.#canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of /** @type {const} */ (["pointerup", "pointercancel", "lostpointercapture"])) {
      this.#canvas.addEventListener(end, (event) => this.#up(event));
    }
    // Otherwise Chromium takes a fast stroke for a fling, and drops the tap that follows it, for example on Clear.
    this.#canvas.addEventListener("touchstart", (event) => listeners.mayStart() && event.preventDefault(), { passive: false });
    this.#canvas.addEventListener("keydown", (event) => this.#key(event));
    this.#canvas.addEventListener("blur", () => this.#hidePen());
    new ResizeObserver(() => this.#resize()).observe(this.#canvas);
    for (const query of ["(prefers-color-scheme: dark)", "(forced-colors: active)"]) {
      matchMedia(query).addEventListener("change", () => this.#planDraw());
    }
  }

  /** Whether there is nothing to send. */
  get isEmpty() {
    return this.#strokes.length === 0;
  }

  /** Whether a stroke is being drawn. */
  get isDrawing() {
    return this.#pointer !== null || this.#isPenDown;
  }

  /** @returns {Box} what of the image that is sent is on the pad, in pixels of the image */
  get area() {
    const { aspect, heightPx, marginPx } = this.#shape;
    const heightOfPad = heightPx - 2 * marginPx;
    return { top: marginPx, bottom: marginPx + heightOfPad, left: marginPx, right: marginPx + Math.round(aspect * heightOfPad) };
  }

  /** @returns {string} parameters of the request, for the pixels that are sent */
  get query() {
    const { right } = this.area;
    const { heightPx, marginPx } = this.#shape;
    return `width=${right + marginPx}&height=${heightPx}&pixel_format=gray8&ink=light_on_dark`;
  }

  /** @param {Shape} shape the style sheet gives the pad the same aspect ratio. Each shape has a drawing of its own */
  setShape(shape) {
    this.#endStroke();
    this.#drawings.set(this.#shape, this.#strokes);
    this.#shape = shape;
    this.#strokes = this.#drawings.get(shape) ?? [];
    this.#position = { x: shape.aspect / 2, y: 0.5 };
    this.#showPen();
    this.#planDraw();
  }

  /** Remove all strokes. */
  clear() {
    this.#strokes = [];
    this.#showPen();
    this.#planDraw();
  }

  /** Remove the last stroke. */
  undo() {
    this.#endStroke();
    this.#strokes.pop();
    this.#showPen();
    this.#planDraw();
  }

  /** @returns {Uint8Array<ArrayBuffer>} the drawing: rows of grey pixels, light on dark */
  pixels() {
    const { heightPx, marginPx } = this.#shape;
    const widthPx = this.area.right + marginPx;
    const context = new OffscreenCanvas(widthPx, heightPx).getContext("2d", { willReadFrequently: true });
    if (!context) {
      throw new Error("The browser has no memory for the drawing");
    }
    context.fillStyle = "#000";
    context.fillRect(0, 0, widthPx, heightPx);
    const scale = heightPx - 2 * marginPx;
    context.setTransform(scale, 0, 0, scale, marginPx, marginPx);
    this.#trace(context, "#fff");
    const rgba = context.getImageData(0, 0, widthPx, heightPx).data;
    return Uint8Array.from({ length: widthPx * heightPx }, (_, index) => rgba[4 * index]);
  }

  /** @param {PointerEvent} event */
  #down(event) {
    if (this.#pointer !== null || !event.isPrimary || event.button !== 0 || !this.listeners.mayStart()) {
      return; // a second finger, another button of the mouse, or a picture that stays
    }
    this.#canvas.setPointerCapture(event.pointerId);
    this.#hidePen();
    this.#isPenDown = false;
    this.#pointer = event.pointerId;
    this.#begin(this.#point(event));
  }

  /** @param {PointerEvent} event */
  #move(event) {
    if (event.pointerId !== this.#pointer) {
      return;
    }
    const events = event.getCoalescedEvents?.() ?? []; // old versions of Safari have none
    for (const one of events.length ? events : [event]) {
      this.#extend(this.#point(one));
    }
    this.#changed();
  }

  /** @param {PointerEvent} event */
  #up(event) {
    if (event.pointerId === this.#pointer) {
      this.#pointer = null;
      this.#changed();
    }
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const direction = DIRECTIONS[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey || (!direction && event.key !== " ")) {
      return;
    }
    event.preventDefault(); // no scrolling
    if (this.#pointer !== null || !this.listeners.mayStart()) {
      return;
    }
    if (direction) {
      const step = event.shiftKey ? LARGE_STEP : STEP;
      this.#position = {
        x: Math.min(this.#shape.aspect, Math.max(0, this.#position.x + step * direction.x)),
        y: Math.min(1, Math.max(0, this.#position.y + step * direction.y)),
      };
      if (this.#isPenDown) {
        this.#extend(this.#position);
        this.#changed();
      }
    } else if (!event.repeat) {
      this.#isPenDown = !this.#isPenDown;
      this.listeners.say(this.#isPenDown ? "Pen down" : "Pen up");
      if (this.#isPenDown) {
        this.#begin(this.#position);
      } else {
        this.#changed();
      }
    }
    this.#pen.hidden = false;
    this.#showPen();
  }

  /** @param {Point} point */
  #begin(point) {
    this.listeners.onStart();
    this.#strokes.push([point]);
    this.#changed();
  }

  /** @param {Point} point */
  #extend(point) {
    this.#strokes.at(-1)?.push(point);
  }

  #changed() {
    this.#planDraw();
    this.listeners.onChange();
  }

  /**
   * @param {PointerEvent} event
   * @returns {Point}
   */
  #point(event) {
    const box = this.#canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.height, y: (event.clientY - box.top) / box.height };
  }

  #endStroke() {
    this.#pointer = null;
    this.#isPenDown = false;
  }

  #hidePen() {
    this.#pen.hidden = true;
    if (this.#isPenDown) {
      this.#isPenDown = false;
      this.listeners.onChange();
    }
  }

  #showPen() {
    this.#pen.style.setProperty("--x", String(this.#position.x / this.#shape.aspect));
    this.#pen.style.setProperty("--y", String(this.#position.y));
    this.#pen.classList.toggle("down", this.#isPenDown);
  }

  #resize() {
    const width = Math.round(this.#canvas.clientWidth * devicePixelRatio);
    const height = Math.round(this.#canvas.clientHeight * devicePixelRatio);
    if (width && height && (width !== this.#canvas.width || height !== this.#canvas.height)) {
      this.#canvas.width = width;
      this.#canvas.height = height;
      this.#draw();
    }
  }

  #planDraw() {
    if (!this.#isDrawPlanned) {
      this.#isDrawPlanned = true;
      requestAnimationFrame(() => this.#draw());
    }
  }

  #draw() {
    this.#isDrawPlanned = false;
    const context = this.#canvas.getContext("2d");
    if (context) {
      const { width, height } = this.#canvas;
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, width, height);
      context.setTransform(height, 0, 0, height, 0, 0);
      this.#trace(context, getComputedStyle(this.#canvas).color);
    }
    this.#invitation.hidden = !this.isEmpty;
  }

  /**
   * Draw all strokes as curves through the middles between their points.
   *
   * @param {CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D} context in units of the pad
   * @param {string} color
   */
  #trace(context, color) {
    context.strokeStyle = color;
    context.lineWidth = this.#shape.stroke;
    context.lineCap = "round";
    context.lineJoin = "round";
    for (const points of this.#strokes) {
      context.beginPath();
      context.moveTo(points[0].x, points[0].y);
      for (let i = 1; i < points.length - 1; i++) {
        const [point, next] = [points[i], points[i + 1]];
        context.quadraticCurveTo(point.x, point.y, (point.x + next.x) / 2, (point.y + next.y) / 2);
      }
      const last = points[points.length - 1];
      context.lineTo(last.x, last.y); // a stroke of one point becomes a dot
      context.stroke();
    }
  }
}
