// @ts-check
/**
 * Texts and numbers of the panel about a service: `panel` shows them.
 *
 *     Monitor ──▶ describe ──▶ panel
 *
 * Uses no DOM.
 */

import { QUANTILES } from "./figures.js";
import { RESTART_SHOWN_S } from "./monitor.js";
import { INTERVAL_S } from "./poller.js";

/** Shown in place of an unknown value. */
const NONE = "–";

/** Between a number and its unit: no line break. */
const SPACE = "\u00a0";

/** Largest size of a batch that has a bar of its own: the default of --max-batch-size. */
const LARGEST_BATCH = 64;

/** Most lines of codes. */
const MAX_CODES = 3;

const CALLS = ["Classify", "ModelInfer"];
const STAGES = { queue: "Queue", preprocess: "Framing", inference: "Network" };

/** @typedef {import("./figures.js").Count} Count */
/** @typedef {import("./figures.js").Figures} Figures */
/** @typedef {{timeS: number, value: number}} Point */
/** @typedef {{now: string, highest: string, points: Point[], words: string}} Rate */
/** @typedef {{label: string, share: number, text: string}} Bar */
/**
 * @typedef {object} Description
 * @property {"waiting" | "current" | "old"} state whether there are figures, and whether they are those of now
 * @property {string} note one line: what is wrong, or when the figures were read
 * @property {string} model
 * @property {Rate} images
 * @property {Rate} requests
 * @property {string} period in which the batches ran, or why there are none
 * @property {string} latencyPeriod the same for the times
 * @property {{name: string, cells: string[]}[]} latencies one row for each kind of time, one cell for each quantile
 * @property {Bar[]} batches shares of the batches by size
 * @property {string} batchWords the same as a sentence
 * @property {string} pending images in the queue
 * @property {string} work estimated time for them
 * @property {string} workers such as "2 of 2"
 * @property {boolean} isMissingWorkers
 * @property {string[]} details of the workers: restarts, CPU time, memory
 * @property {string} errorRate
 * @property {boolean} isFailing whether there were errors in the period
 * @property {string} errorTotal whether there were any since the start of the service
 * @property {string[]} errors how many since then, by code
 */

/**
 * Describe what is known.
 *
 * @param {import("./monitor.js").Monitor} monitor
 * @param {number} nowS in the time of the monitor
 * @param {boolean} isPaused whether the user has stopped the readings
 * @param {(timeS: number) => string} toClock converts a time of the monitor to the time of day
 * @returns {Description}
 */
export function describe(monitor, nowS, isPaused, toClock) {
  const { figures, lastS } = monitor;
  const isOld = isPaused || monitor.failure !== null;
  const isKnown = figures !== null && figures.period_s > 0;
  const last = isKnown ? `the last ${Math.max(1, Math.round(figures.period_s))}${SPACE}s` : "";
  const isQuiet = isKnown && !figures.batch_size.per_s && !callRate(figures);
  const period = !isKnown ? "Not known yet" : isQuiet ? `No requests in ${last}` : `In ${last}`;
  const errorRate = isKnown ? sum(Object.values(figures.errors).map(({ per_s }) => per_s)) : 0;
  const errors = figures ? errorList(figures) : [];
  return {
    state: lastS === null ? "waiting" : isOld ? "old" : "current",
    note: note(monitor, nowS, isPaused, toClock),
    model: figures?.model ? [figures.model, provider(figures), figures.precision, shadow(figures)].filter(Boolean).join(" · ") : "",
    images: rate(monitor, "images", isKnown ? figures.images : null),
    requests: rate(monitor, "requests", isKnown ? figures.requests : null),
    latencyPeriod: errorRate && !isQuiet ? `${period}, with calls that failed` : period,
    period,
    latencies: latencies(isKnown ? figures : null),
    ...batches(isKnown ? figures : null),
    pending: figures ? whole(figures.pending_images) : NONE,
    work: figures ? work(figures) : "",
    workers: figures ? `${figures.ready_workers} of ${figures.workers}` : NONE,
    isMissingWorkers: figures !== null && figures.ready_workers < figures.workers,
    details: figures ? workerDetails(figures, isKnown) : [],
    errorRate: isKnown ? perSecond(errorRate) : NONE,
    isFailing: errorRate > 0,
    errorTotal: !figures ? "" : errors.length ? "Since the start:" : "None since the start",
    errors,
  };
}

/**
 * @param {number} value
 * @returns {string} about three digits: 0, 0.25, 12.5, 1,234; as many after the point as the terminal shows
 */
export function perSecond(value) {
  if (!value) return "0";
  if (value >= 99.95) return whole(value);
  return value >= 1 ? value.toFixed(1) : value >= 0.01 ? value.toFixed(2) : "<0.01";
}

/**
 * @param {number} value
 * @returns {string}
 */
export function whole(value) {
  return Math.round(value).toLocaleString("en");
}

/**
 * @param {number | null} value
 * @returns {string} three digits in the unit that fits: 250 µs, 1.25 ms, 2.50 s
 */
export function seconds(value) {
  if (value === null) return NONE;
  if (value < 0.0009995) return `${(1e6 * value).toFixed(0)}${SPACE}µs`;
  return value < 0.9995 ? `${threeDigits(1e3 * value)}${SPACE}ms` : `${threeDigits(value)}${SPACE}s`;
}

/**
 * @param {number} valueS
 * @returns {string} two digits in the unit that fits: 79 ms, 1.3 s
 */
function roughly(valueS) {
  const [value, unit] = valueS < 0.000995 ? [1e6 * valueS, "µs"] : valueS < 0.995 ? [1e3 * valueS, "ms"] : [valueS, "s"];
  return `${Number(value.toPrecision(2)).toLocaleString("en")}${SPACE}${unit}`;
}

/** @param {number} value */
function threeDigits(value) {
  return value < 9.995 ? value.toFixed(2) : value < 99.95 ? value.toFixed(1) : whole(value);
}

/**
 * @param {import("./monitor.js").Monitor} monitor
 * @param {number} nowS
 * @param {boolean} isPaused
 * @param {(timeS: number) => string} toClock
 */
function note(monitor, nowS, isPaused, toClock) {
  const { failure, figures, lastS, restartedS } = monitor;
  const age = lastS === null ? "." : `. These figures are from ${toClock(lastS)}.`;
  if (isPaused) return `Paused${age}`;
  if (failure) return `${failure.text}${age}`;
  if (figures === null) return "Waiting for the first figures.";
  if (restartedS !== null && nowS - restartedS < RESTART_SHOWN_S) return "The service was restarted a few seconds ago.";
  if (!figures.ready_workers) return "No worker is ready.";
  if (figures.ready_workers < figures.workers) return "Not all workers are ready.";
  return `Read from /metrics every ${INTERVAL_S}${SPACE}s.`;
}

/** @param {Figures} figures */
function provider(figures) {
  return figures.provider.replace(/ExecutionProvider$/, "");
}

/** @param {Figures} figures */
function shadow(figures) {
  return figures.shadow && `shadow ${figures.shadow}`;
}

/**
 * @param {import("./monitor.js").Monitor} monitor
 * @param {"images" | "requests"} name
 * @param {Count | null} count
 * @returns {Rate}
 */
function rate(monitor, name, count) {
  const points = monitor.rates.map((one) => ({ timeS: one.timeS, value: one[name] }));
  const highest = Math.max(0, ...points.map(({ value }) => value));
  const now = count ? perSecond(count.per_s) : NONE;
  const words = points.length ? `now ${now}, highest ${perSecond(highest)}` : "not known yet";
  return { now, highest: points.length ? `highest ${perSecond(highest)} in 2 min` : "", points, words };
}

/** @param {Figures} figures */
function callRate(figures) {
  return sum(CALLS.map((name) => figures.latencies_s[name]?.per_s ?? 0));
}

/** @param {Figures | null} figures */
function latencies(figures) {
  const times = figures?.latencies_s ?? {};
  const calls = CALLS.filter((name, index) => !index || name in times).map((name) => ({ key: name, name }));
  const stages = Object.entries(STAGES).map(([key, name]) => ({ key, name }));
  return [...calls, ...stages].map(({ key, name }) => ({
    name,
    cells: QUANTILES.map((share) => seconds(times[key]?.[/** @type {"p50"} */ (`p${100 * share}`)] ?? null)),
  }));
}

/** @param {Figures | null} figures */
function batches(figures) {
  /** @type {Bar[]} */
  const bars = [];
  let larger = 0;
  for (const [bound, share] of Object.entries(figures?.batches ?? {})) {
    if (!(Number(bound) <= LARGEST_BATCH)) larger += share;
  }
  for (let bound = 1; bound <= LARGEST_BATCH; bound *= 2) {
    const lowest = bound / 2 + 1;
    bars.push(bar(bound < 3 ? `${bound}` : `${lowest}–${bound}`, figures?.batches[String(bound)] ?? 0));
  }
  if (larger) bars.push(bar(`>${LARGEST_BATCH}`, larger));
  const filled = bars.filter(({ share }) => share).map(({ label, text }) => `${label}: ${text}`);
  return { batches: bars, batchWords: filled.length ? filled.join(", ") : "no batches" };
}

/**
 * @param {string} label
 * @param {number} share
 * @returns {Bar}
 */
function bar(label, share) {
  const text = share && share < 0.01 ? "<1" : (100 * share).toFixed(0);
  return { label, share, text: share ? `${text}${SPACE}%` : "" };
}

/** @param {Figures} figures */
function work(figures) {
  if (!figures.pending_images) return "Nothing waits";
  return figures.pending_s === null ? "Time unknown" : `About ${roughly(figures.pending_s)} of work`;
}

/**
 * @param {Figures} figures
 * @param {boolean} isKnown
 */
function workerDetails(figures, isKnown) {
  const restarts = figures.restarts.total;
  const memory = sum(Object.values(figures.memory_bytes));
  return [
    restarts ? `${whole(restarts)} ${restarts === 1 ? "restart" : "restarts"}` : "No restarts",
    figures.ready_workers && isKnown ? `${(figures.cpus / figures.ready_workers).toFixed(2)} CPUs per worker` : "",
    memory ? `${whole(memory / 1e6)}${SPACE}MB` : "",
  ].filter(Boolean);
}

/** @param {Figures} figures */
function errorList(figures) {
  /** @type {Map<string, number>} */
  const codes = new Map(Object.entries(figures.errors).map(([code, count]) => [code, count.total]));
  for (const [answer, count] of Object.entries(figures.http_requests)) {
    const status = answer.slice(answer.lastIndexOf(" ") + 1);
    if (Number(status) >= 400) codes.set(`HTTP ${status}`, (codes.get(`HTTP ${status}`) ?? 0) + count.total);
  }
  const listed = [...codes].map(([code, number]) => `${code}: ${whole(number)}`);
  const rest = listed.length - MAX_CODES + 1;
  return rest > 1 ? [...listed.slice(0, -rest), `${rest} other codes`] : listed;
}

/** @param {number[]} values */
function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}
