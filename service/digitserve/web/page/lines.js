// @ts-check
/**
 * The lines that were read: each is a text field with a button that copies it, the marks of which the text consists, and its
 * confidence in words. The marks of a line are one stop of the Tab key; arrow keys move between them. Only reading.js calls it.
 */

import { announcer } from "./announcer.js";
import { create, element } from "./elements.js";
import { classOf, describeLine, describeMark, isDoubtful } from "./reading_text.js";

/** @typedef {import("./reading_text.js").Line} Line */

/** Time for which a button says that it has copied. */
const COPIED_MS = 2000;

export class Lines {
  #list = element("lines");
  #copyAll = element("copy-all");
  /** @type {HTMLElement[]} the marks of all lines */
  #marks = [];
  /** @type {HTMLElement | undefined} */
  #selected = undefined;
  /** The lines that are shown, as JSON. */
  #content = "";

  /** @param {(index: number) => void} onMark called when the pointer or the focus is on a mark */
  constructor(onMark) {
    for (const event of ["pointerover", "focusin", "click"]) {
      this.#list.addEventListener(event, ({ target }) => {
        const index = this.#marks.indexOf(/** @type {HTMLElement} */ (target));
        if (index >= 0) {
          onMark(index);
        }
      });
    }
    this.#list.addEventListener("focusin", ({ target }) => this.#focused(/** @type {HTMLElement} */ (target)));
    this.#list.addEventListener("keydown", (event) => this.#key(event));
    this.#copyAll.addEventListener("click", () => {
      const fields = [...this.#list.querySelectorAll("input")];
      void copy(this.#copyAll, fields[0], fields.map(({ value }) => value).join("\n"));
    });
  }

  /**
   * Replace the lines that are shown. If they are the same, focus and corrections stay.
   *
   * @param {Line[]} lines
   * @returns {boolean} whether they are others
   */
  show(lines) {
    const content = JSON.stringify(lines);
    if (content === this.#content) {
      return false;
    }
    this.#content = content;
    this.#marks = [];
    this.#selected = undefined;
    this.#list.replaceChildren(...lines.map((line, index) => this.#newLine(line, index + 1)));
    // Without the clipboard, which needs https or localhost, each line is copied by hand.
    this.#copyAll.hidden = lines.length < 2 || !navigator.clipboard;
    return true;
  }

  /** @param {number} index of the mark that is emphasised */
  select(index) {
    this.#selected?.removeAttribute("aria-current");
    this.#selected = this.#marks[index];
    this.#selected.setAttribute("aria-current", "true");
  }

  /**
   * @param {Line} line
   * @param {number} number from 1
   */
  #newLine(line, number) {
    const field = /** @type {HTMLInputElement} */ (create("input", "", "text"));
    field.value = line.text;
    field.spellcheck = false;
    field.autocomplete = "off";
    field.setAttribute("aria-label", `Text of line ${number}`);
    const button = newButton("Copy", `Copy line ${number}`);
    button.addEventListener("click", () => copy(button, field, field.value));
    const row = create("div", "", "row");
    row.append(field, button);
    const marks = create("div", "", "marks");
    marks.setAttribute("role", "toolbar");
    marks.setAttribute("aria-label", `Marks of line ${number}`);
    marks.append(...line.marks.map((mark, index) => {
      const found = newButton(mark.text.trim() || "\u00a0", describeMark(mark));
      found.classList.add("mark", classOf(mark));
      found.tabIndex = index ? -1 : 0;
      this.#marks.push(found);
      return found;
    }));
    const item = create("li", "");
    const words = create("p", describeLine(line), "confidence");
    item.classList.toggle("doubtful", isDoubtful(line));
    item.append(row, marks, words);
    return item;
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const mark = /** @type {HTMLElement} */ (event.target);
    if (!mark.classList.contains("mark") || event.ctrlKey || event.metaKey || event.altKey) {
      return;
    }
    const marks = /** @type {HTMLElement[]} */ ([...(mark.parentElement?.children ?? [])]);
    const next = {
      ArrowLeft: mark.previousElementSibling, ArrowRight: mark.nextElementSibling, Home: marks[0], End: marks[marks.length - 1],
    }[event.key];
    if (next instanceof HTMLElement) {
      event.preventDefault();
      next.focus();
    }
  }

  /** @param {HTMLElement} target which Tab reaches next time, if it is a mark */
  #focused(target) {
    if (target.classList.contains("mark")) {
      for (const mark of /** @type {Iterable<HTMLElement>} */ (target.parentElement?.children ?? [])) {
        mark.tabIndex = mark === target ? 0 : -1;
      }
    }
  }
}

/**
 * @param {string} text
 * @param {string} name for users of a screen reader
 */
function newButton(text, name) {
  const button = create("button", text);
  button.setAttribute("type", "button");
  button.setAttribute("aria-label", name);
  return button;
}

/**
 * Copy a text. Without the clipboard the field is selected, for the user to copy.
 *
 * @param {HTMLElement} button that says so
 * @param {HTMLInputElement} field
 * @param {string} text
 */
async function copy(button, field, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    field.select();
    announcer.say("The text is selected. Copy it with Ctrl+C.");
    return;
  }
  announcer.say("Copied");
  const before = button.textContent;
  if (before !== "Copied") {
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = before), COPIED_MS);
  }
}
