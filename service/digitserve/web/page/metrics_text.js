// @ts-check
/**
 * Parses the page of `/metrics`, in version 0.0.4 of the text format of Prometheus.
 *
 *     poller ──text──▶ parse ──Page──▶ monitor ──▶ figures
 *
 * Uses no DOM. `digitserve.scrape` is the same for the commands: same names, same rules.
 */

/** @typedef {Record<string, string>} Labels */
/** @typedef {{labels: Labels, value: number}} Sample */

/** A metric that each page of digitserve has. */
const NAME = "digitserve_images_total";

const SAMPLE = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?[ \t]*$/;
const LABEL = /[ \t]*([A-Za-z_]\w*)[ \t]*=[ \t]*"((?:[^"\\]|\\[\\"n])*)"[ \t]*(?:,|$)/y;
/** @type {Record<string, string>} */
const ESCAPED = { "\\\\": "\\", '\\"': '"', "\\n": "\n" };
const NUMBER = /^[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?$/i;
/** @type {Record<string, number>} */
const SPECIAL = { nan: NaN, inf: Infinity, "+inf": Infinity, "-inf": -Infinity };

/** The text is not the metrics page of a digitserve service. */
export class NotMetrics extends Error {}

/** The samples of a page. */
export class Page {
  /** @param {Map<string, Sample[]>} samples by name of the sample, such as digitserve_batch_size_bucket */
  constructor(samples) {
    this.samples = samples;
  }

  /**
   * @param {string} name
   * @param {Labels} [labels]
   * @returns {number} sum of the samples that have these labels; 0 if there is none
   */
  total(name, labels = {}) {
    return this.#matching(name, labels).reduce((sum, { value }) => sum + value, 0);
  }

  /**
   * @param {string} name
   * @param {string} label
   * @param {Labels} [labels]
   * @returns {Map<string, number>} sums by the value of one label, over the samples that have the other labels
   */
  by(name, label, labels = {}) {
    /** @type {Map<string, number>} */
    const sums = new Map();
    for (const { labels: have, value } of this.#matching(name, labels)) {
      const key = have[label] ?? "";
      sums.set(key, (sums.get(key) ?? 0) + value);
    }
    return sums;
  }

  /**
   * @param {string} name
   * @returns {Labels} those of the first sample of a name; none if there is no sample
   */
  labels(name) {
    return this.samples.get(name)?.[0]?.labels ?? {};
  }

  /**
   * @param {string} name
   * @param {Labels} [labels]
   * @returns {Map<number, number>} counts of a histogram by the upper bound of each bucket, in ascending order, not cumulative
   */
  buckets(name, labels = {}) {
    const cumulative = [...this.by(`${name}_bucket`, "le", labels)].map(([le, value]) => ({ bound: toNumber(le), value }));
    cumulative.sort((left, right) => left.bound - right.bound);
    return new Map(cumulative.map(({ bound, value }, index) => [bound, value - (cumulative[index - 1]?.value ?? 0)]));
  }

  /**
   * @param {string} name
   * @param {Labels} labels
   */
  #matching(name, labels) {
    const wanted = Object.entries(labels);
    const all = this.samples.get(name) ?? [];
    return all.filter(({ labels: have }) => wanted.every(([label, value]) => have[label] === value));
  }
}

/**
 * Parse the text of a page; samples that are not finite numbers are left out.
 *
 * @param {string} text
 * @returns {Page}
 * @throws {NotMetrics} it is not the metrics page of a digitserve service
 */
export function parse(text) {
  /** @type {Map<string, Sample[]>} */
  const samples = new Map();
  for (const line of text.split("\n")) {
    if (!line || line.startsWith("#")) continue;
    const found = SAMPLE.exec(line);
    if (!found) throw new NotMetrics(`expected a sample, got ${line.slice(0, 80)}`);
    const [, name, labelText, valueText] = found;
    const labels = parseLabels(labelText ?? "");
    if (name.endsWith("_bucket")) toNumber(labels.le ?? "");
    const value = toNumber(valueText);
    if (!Number.isFinite(value)) continue;
    const known = samples.get(name);
    if (known) known.push({ labels, value });
    else samples.set(name, [{ labels, value }]);
  }
  if (!samples.has(NAME)) throw new NotMetrics(`the page has no ${NAME}`);
  return new Page(samples);
}

/**
 * @param {string} text between the braces
 * @returns {Labels}
 */
function parseLabels(text) {
  /** @type {Labels} */
  const labels = Object.create(null);
  LABEL.lastIndex = 0;
  while (LABEL.lastIndex < text.length) {
    const found = LABEL.exec(text);
    if (!found) throw new NotMetrics(`expected labels, got ${text.slice(0, 80)}`);
    labels[found[1]] = found[2].replace(/\\[\\"n]/g, (escape) => ESCAPED[escape]);
  }
  return labels;
}

/** @param {string} text */
function toNumber(text) {
  if (NUMBER.test(text)) return Number(text);
  const special = SPECIAL[text.toLowerCase()];
  if (special === undefined) throw new NotMetrics(`expected a number, got ${text.slice(0, 80)}`);
  return special;
}
