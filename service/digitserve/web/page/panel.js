// @ts-check
/**
 * The section "This service": shows what the service does now, from its own metrics.
 *
 *     Poller ──Page──▶ Monitor ──▶ describe ──▶ Panel ──▶ #panel
 *
 * Readings are taken only while the section is on the screen, the tab is visible, and the user has not paused them. The figures
 * are text, a table, and images with names. None is a live region: a screen reader would speak every 2 s.
 */

import { authorization } from "./api.js";
import { Bars, Sparkline } from "./charts.js";
import { QUANTILES } from "./figures.js";
import { HISTORY_S, Monitor } from "./monitor.js";
import { describe } from "./panel_text.js";
import { Poller } from "./poller.js";

/** @typedef {import("./panel_text.js").Description} Description */

/** The elements of the section. All exist from the start, so the layout does not change when figures arrive. */
class Panel {
  #images = new Sparkline("Images per second in the last 2 minutes", HISTORY_S);
  #requests = new Sparkline("Requests per second in the last 2 minutes", HISTORY_S);
  #batches = new Bars("Share of the batches by number of images");
  #rows = create("tbody");
  #workers = create("ul", "details");
  #errors = create("ul", "details");
  /** @type {Record<string, HTMLElement>} the elements with one text, by the name of the text */
  #texts = {};

  /** @param {HTMLElement} section */
  constructor(section) {
    this.section = section;
    this.pause = create("button", "", "Pause");
    this.pause.setAttribute("type", "button");
    this.pause.setAttribute("aria-describedby", "panel-title");
    const title = create("h2", "", "This service");
    title.id = "panel-title";
    const head = create("div", "head");
    head.append(title, this.#text("model", "model"), this.pause);
    const workers = tile("Workers ready", this.#text("workers", "value"), this.#workers);
    workers.classList.add("workers");
    const errors = tile("Errors per second", this.#text("errorRate", "value"), this.#text("errorTotal", "detail"), this.#errors);
    errors.classList.add("errors");
    const tiles = create("div", "tiles");
    tiles.append(
      tile("Images per second", this.#text("images", "value"), this.#images.element, this.#text("imagesHighest", "detail")),
      tile("Requests per second", this.#text("requests", "value"), this.#requests.element, this.#text("requestsHighest", "detail")),
      tile("Images in the queue", this.#text("pending", "value"), this.#text("work", "detail")),
      workers,
      errors,
    );
    const wide = create("div", "wide");
    wide.append(
      tile("Time of a request", this.#text("latencyPeriod", "detail"), this.#table()),
      tile("Images in a batch", this.#text("batchPeriod", "detail"), this.#batches.element),
    );
    section.replaceChildren(head, this.#text("note", "note"), tiles, wide);
  }

  /**
   * @param {Description} shown
   * @param {number} nowS
   */
  show(shown, nowS) {
    this.section.dataset.figures = shown.state;
    this.section.toggleAttribute("data-missing", shown.isMissingWorkers);
    this.section.toggleAttribute("data-failing", shown.isFailing);
    const texts = {
      model: shown.model, note: shown.note, images: shown.images.now, imagesHighest: shown.images.highest,
      requests: shown.requests.now, requestsHighest: shown.requests.highest, pending: shown.pending, work: shown.work,
      workers: shown.workers, errorRate: shown.errorRate, errorTotal: shown.errorTotal, latencyPeriod: shown.latencyPeriod, batchPeriod: shown.period,
    };
    for (const [name, text] of Object.entries(texts)) setText(this.#texts[name], text);
    this.#images.update(shown.images.points, nowS, shown.images.words);
    this.#requests.update(shown.requests.points, nowS, shown.requests.words);
    this.#batches.update(shown.batches, shown.batchWords);
    setList(this.#workers, shown.details);
    setList(this.#errors, shown.errors);
    this.#setRows(shown.latencies);
  }

  /**
   * @param {string} name of the text
   * @param {string} className
   */
  #text(name, className) {
    this.#texts[name] = create("p", className);
    return this.#texts[name];
  }

  #table() {
    const head = create("tr");
    head.append(create("td"));
    for (const share of QUANTILES) {
      const cell = create("th", "", `p${100 * share}`);
      cell.setAttribute("scope", "col");
      head.append(cell);
    }
    const table = create("table");
    table.setAttribute("aria-label", "Time of a request");
    const group = create("thead");
    group.append(head);
    table.append(group, this.#rows);
    return table;
  }

  /** @param {Description["latencies"]} rows */
  #setRows(rows) {
    while (this.#rows.childElementCount > rows.length) this.#rows.lastElementChild?.remove();
    rows.forEach(({ name, cells }, index) => {
      const row = this.#rows.children[index] ?? this.#newRow();
      [name, ...cells].forEach((text, column) => setText(row.children[column], text));
    });
  }

  #newRow() {
    const row = create("tr");
    const name = create("th");
    name.setAttribute("scope", "row");
    row.append(name, ...QUANTILES.map(() => create("td")));
    this.#rows.append(row);
    return row;
  }
}

/** Connects the elements with readings; lives as long as the page. */
class LivePanel {
  #monitor = new Monitor();
  #isOnScreen = false;
  #isPaused = false;

  /** @param {HTMLElement} section */
  constructor(section) {
    this.panel = new Panel(section);
    this.poller = new Poller({
      fetch: (path, init) => fetch(path, { ...init, headers: { ...init.headers, ...authorization() } }),
      clock: now,
      timers: window,
      onPage: (page) => {
        this.#monitor.read(now(), page);
        this.#show();
      },
      onFailure: (failure) => {
        this.#monitor.fail(failure);
        this.#show();
      },
    });
    this.panel.pause.addEventListener("click", () => this.#togglePause());
    document.addEventListener("visibilitychange", () => this.#update());
    new IntersectionObserver((entries) => {
      this.#isOnScreen = entries[entries.length - 1].isIntersecting;
      this.#update();
    }).observe(section);
    // The service may answer again, or the user may have entered a token.
    const changes = new MutationObserver(() => {
      if (this.#monitor.failure) this.poller.readNow();
    });
    changes.observe(document.documentElement, { attributes: true, attributeFilter: ["data-state"] });
    this.#show();
  }

  #togglePause() {
    this.#isPaused = !this.#isPaused;
    this.panel.pause.textContent = this.#isPaused ? "Resume" : "Pause";
    this.#update();
    this.#show();
  }

  #update() {
    const isActive = this.#isOnScreen && !this.#isPaused && document.visibilityState === "visible";
    if (!isActive) this.#monitor.interrupt();
    this.poller.setActive(isActive);
  }

  #show() {
    this.panel.show(describe(this.#monitor, now(), this.#isPaused, toClock), now());
  }
}

/** @returns {number} monotonic time in seconds */
function now() {
  return performance.now() / 1000;
}

/**
 * @param {number} timeS monotonic
 * @returns {string} the time of day
 */
function toClock(timeS) {
  return new Date(Date.now() - 1000 * (now() - timeS)).toLocaleTimeString();
}

/**
 * @param {string} title
 * @param {...Element} content
 */
function tile(title, ...content) {
  const created = create("div", "tile");
  created.append(create("h3", "", title), ...content);
  return created;
}

/**
 * @param {string} tag
 * @param {string} [className]
 * @param {string} [text]
 */
function create(tag, className = "", text = "") {
  const created = document.createElement(tag);
  if (className) created.className = className;
  created.textContent = text;
  return created;
}

/**
 * @param {HTMLElement} list
 * @param {string[]} texts
 */
function setList(list, texts) {
  while (list.childElementCount > texts.length) list.lastElementChild?.remove();
  texts.forEach((text, index) => {
    if (!list.children[index]) list.append(create("li"));
    setText(list.children[index], text);
  });
}

/**
 * @param {Element} element
 * @param {string} text
 */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const section = document.getElementById("panel");
if (section) new LivePanel(section);
