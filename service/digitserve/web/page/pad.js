// @ts-check
/**
 * The pad: strokes of mouse, pen, finger or keyboard, on the screen and as pixels for the service.
 *
 *     pointer and key events ──▶ Pad ──onChange──▶ page.js ──▶ Pad.pixels ──▶ requests.js
 *
 * Points are in units of the pad: 0 to 1 along each side. The pixels that are sent do not depend on the size of the screen or
 * on its colours.
 */

import { canvas, element } from "./elements.js";

/** @typedef {{x: number, y: number}} Point */

/** Side of the image that is sent, in pixels. Framing works on at most 128 pixels a side, so it does not reduce this image. */
export const SIDE_PX = 128;

/** Empty pixels around the drawing, so that no stroke touches the border of the image, where framing removes lines. */
export const MARGIN_PX = 8;

/** Width of a stroke in units of the pad. A digit that fills two thirds of it then has strokes as wide as those of MNIST. */
const STROKE = 0.07;

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
  /** @type {Point[][]} */
  #strokes = [];
  /** @type {number | null} pointer that draws the last stroke */
  #pointer = null;
  /** @type {Point} where the keyboard's pen is */
  #position = { x: 0.5, y: 0.5 };
  #isPenDown = false;
  #isDrawPlanned = false;
  #image = new OffscreenCanvas(SIDE_PX, SIDE_PX).getContext("2d", { willReadFrequently: true });

  /**
   * @param {object} listeners
   * @param {() => void} listeners.onStart called when a stroke starts
   * @param {() => void} listeners.onChange called when the drawing has changed
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
    this.#canvas.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
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

  /** Remove all strokes. */
  clear() {
    this.#strokes = [];
    this.#pointer = null;
    this.#isPenDown = false;
    this.#showPen();
    this.#planDraw();
  }

  /** Remove the last stroke. */
  undo() {
    this.#pointer = null;
    this.#isPenDown = false;
    this.#strokes.pop();
    this.#showPen();
    this.#planDraw();
  }

  /** @returns {Uint8Array<ArrayBuffer>} the drawing: SIDE_PX rows of SIDE_PX grey pixels, light on dark */
  pixels() {
    const context = /** @type {OffscreenCanvasRenderingContext2D} */ (this.#image);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, SIDE_PX, SIDE_PX);
    const scale = SIDE_PX - 2 * MARGIN_PX;
    context.setTransform(scale, 0, 0, scale, MARGIN_PX, MARGIN_PX);
    this.#trace(context, "#fff");
    const rgba = context.getImageData(0, 0, SIDE_PX, SIDE_PX).data;
    return Uint8Array.from({ length: SIDE_PX * SIDE_PX }, (_, index) => rgba[4 * index]);
  }

  /** @param {PointerEvent} event */
  #down(event) {
    if (this.#pointer !== null || !event.isPrimary || event.button !== 0) {
      return; // a second finger, or another button of the mouse
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
    if (this.#pointer !== null) {
      return;
    }
    if (direction) {
      const step = event.shiftKey ? LARGE_STEP : STEP;
      this.#position = {
        x: Math.min(1, Math.max(0, this.#position.x + step * direction.x)),
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
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  }

  #hidePen() {
    this.#pen.hidden = true;
    if (this.#isPenDown) {
      this.#isPenDown = false;
      this.listeners.onChange();
    }
  }

  #showPen() {
    this.#pen.style.setProperty("--x", String(this.#position.x));
    this.#pen.style.setProperty("--y", String(this.#position.y));
    this.#pen.classList.toggle("down", this.#isPenDown);
  }

  #resize() {
    const side = Math.round(this.#canvas.clientWidth * devicePixelRatio);
    if (side && side !== this.#canvas.width) {
      this.#canvas.width = side;
      this.#canvas.height = side;
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
      const side = this.#canvas.width;
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, side, side);
      context.setTransform(side, 0, 0, side, 0, 0);
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
    context.lineWidth = STROKE;
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
