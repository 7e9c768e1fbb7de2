// @ts-check
/**
 * Figures of the service over a period: the differences of two readings of `/metrics`.
 *
 *     monitor ──two Pages──▶ compare ──▶ figures ──▶ panel
 *
 * Uses no DOM. `digitserve.top.figures` is the same for the terminal: same names, same rules, and a test compares them.
 * The names are those that `digitserve top --json` prints.
 */

/** @typedef {import("./metrics_text.js").Page} Page */
/** @typedef {Map<number, number>} Buckets number of observations by upper bound, in ascending order of the bounds */
/** @typedef {{total: number, per_s: number}} Count total since the start of the service, and increase per second */
/** @typedef {{per_s: number, mean: number | null, p50: number | null, p90: number | null, p99: number | null}} Distribution */
/** @typedef {ReturnType<typeof compare>} Figures */

export const QUANTILES = [0.5, 0.9, 0.99];

const STREAMS = ["ClassifyStream", "ReadStream"];

/** Methods of which each call is one classification request; of streams, each message is one. */
const CALLS = [
  { grpc_service: "digitserve.v1.DigitService", grpc_method: "Classify" },
  { grpc_service: "inference.GRPCInferenceService", grpc_method: "ModelInfer" },
];

/** @type {Record<string, string>} */
const STAGES = {
  queue: "digitserve_queue_seconds",
  preprocess: "digitserve_preprocess_seconds",
  inference: "digitserve_inference_seconds",
};

/**
 * Return the figures of a period. A count has the `total` since the start of the service, and its increase `per_s`. A
 * distribution has its observations `per_s`, `mean`, `p50`, `p90` and `p99`, which are null without an observation.
 *
 * @param {Page} before at its start; the counters of `after` must not be lower
 * @param {Page} after at its end
 * @param {number} periodS its length in seconds; 0 if both are the same: then there are no rates
 */
export function compare(before, after, periodS) {
  const difference = new Difference(before, after, periodS);
  const model = after.labels("digitserve_model_info");
  const bounds = difference.buckets("digitserve_batch_size");
  const numBatches = sum(bounds.values());
  const images = difference.count("digitserve_images_total");
  const latencies = difference.latencies();
  const pendingImages = Math.trunc(after.total("digitserve_pending_images"));
  const readyWorkers = Math.trunc(after.total("digitserve_ready_workers"));
  return {
    period_s: periodS,
    model: modelName(model),
    provider: model.provider ?? "",
    precision: model.precision ?? "",
    shadow: modelName(after.labels("digitserve_shadow_info")),
    workers: Math.trunc(after.total("digitserve_workers")),
    ready_workers: readyWorkers,
    restarts: difference.count("digitserve_worker_restarts_total"),
    memory_bytes: Object.fromEntries(after.by("digitserve_resident_memory_bytes", "process")),
    cpus: difference.count("digitserve_cpu_seconds_total").per_s,
    connections: Math.trunc(after.total("digitserve_connections")),
    pending_images: pendingImages,
    pending_s: pendingSeconds(pendingImages, readyWorkers, images, latencies),
    images,
    requests: difference.requests(),
    latencies_s: latencies,
    batch_size: difference.distribution("digitserve_batch_size", upperBound),
    batches: Object.fromEntries(
      [...bounds]
        .filter(([, count]) => count)
        .map(([bound, count]) => [bound === Infinity ? "inf" : String(bound), count / numBatches]),
    ),
    errors: difference.errors(),
    http_requests: difference.httpRequests(),
    rejected: known(difference.counts("digitserve_rejected_total", "reason")),
    verdicts: known(difference.counts("digitserve_predictions_total", "verdict")),
    labels: Object.fromEntries(
      [...difference.counts("digitserve_predictions_total", "label")].filter(([label]) => label),
    ),
  };
}

/**
 * Return a quantile of a histogram; null without observations.
 *
 * Source: `histogram_quantile` of Prometheus: linear interpolation in a bucket. Above the highest finite bound it is that bound.
 *
 * @param {Buckets} buckets
 * @param {number} share 0 to 1
 * @returns {number | null}
 */
export function quantile(buckets, share) {
  const number = sum(buckets.values());
  if (!number) return null;
  let below = 0;
  let lower = 0;
  for (const [bound, count] of buckets) {
    if (count && below + count >= share * number) {
      return bound === Infinity ? lower : lower + ((bound - lower) * Math.max(0, share * number - below)) / count;
    }
    below += count;
    lower = bound === Infinity ? lower : bound;
  }
  // Rounding may leave the rank above all observations.
  return lower;
}

/**
 * Return the upper bound of the bucket with a quantile, the highest finite one at most; null without observations.
 *
 * @param {Buckets} buckets
 * @param {number} share 0 to 1
 * @returns {number | null}
 */
function upperBound(buckets, share) {
  const number = sum(buckets.values());
  let below = 0;
  let found = null;
  for (const [bound, count] of buckets) {
    if (!count) continue;
    found = bound === Infinity ? Math.max(0, ...[...buckets.keys()].filter(Number.isFinite)) : bound;
    below += count;
    if (below >= share * number) break;
  }
  return found;
}

/**
 * @param {Page} before
 * @param {Page} after
 * @returns {boolean} whether a counter has become lower: the service was restarted in between
 */
export function isRestarted(before, after) {
  for (const [name, samples] of before.samples) {
    if (!/_(total|bucket|count)$/.test(name)) continue;
    /** @type {Map<string, number>} */
    const now = new Map((after.samples.get(name) ?? []).map(({ labels, value }) => [key(labels), value]));
    if (samples.some(({ labels, value }) => value > (now.get(key(labels)) ?? 0))) return true;
  }
  return false;
}

/** @param {import("./metrics_text.js").Labels} labels */
function key(labels) {
  return JSON.stringify(Object.entries(labels).sort());
}

/**
 * @param {number} pendingImages
 * @param {number} readyWorkers
 * @param {Count} images
 * @param {Record<string, Distribution>} latencies
 * @returns {number | null} seconds until the pending images are done, with the mean time of an image in the period; null if unknown
 */
function pendingSeconds(pendingImages, readyWorkers, images, latencies) {
  if (!pendingImages) return 0;
  if (!images.per_s || !readyWorkers) return null;
  const busy = ["preprocess", "inference"].map((stage) => latencies[stage]).map(({ per_s, mean }) => per_s * (mean ?? 0));
  return (pendingImages * sum(busy)) / images.per_s / readyWorkers;
}

/** @param {import("./metrics_text.js").Labels} labels */
function modelName({ name, version }) {
  return name === undefined && version === undefined ? "" : `${name ?? ""}/${version ?? ""}`;
}

/** @param {Iterable<number>} values */
function sum(values) {
  let total = 0;
  for (const value of values) total += value;
  return total;
}

/**
 * @param {Iterable<[string, Count]>} counts
 * @returns {Record<string, Count>} those that are not 0, the largest first
 */
function known(counts) {
  return Object.fromEntries([...counts].filter(([, { total }]) => total).sort(([, a], [, b]) => b.total - a.total));
}

/** The increase of the counters between two pages; lives for one call of `compare`. */
class Difference {
  /**
   * @param {Page} before
   * @param {Page} after
   * @param {number} periodS
   */
  constructor(before, after, periodS) {
    this.before = before;
    this.after = after;
    this.periodS = periodS;
  }

  /** @param {number} increase */
  perS(increase) {
    return this.periodS ? Math.max(0, increase) / this.periodS : 0;
  }

  /**
   * @param {string} name
   * @param {import("./metrics_text.js").Labels} [labels]
   * @returns {Count}
   */
  count(name, labels) {
    const total = this.after.total(name, labels);
    return { total, per_s: this.perS(total - this.before.total(name, labels)) };
  }

  /**
   * @param {string} name
   * @param {string} label
   * @returns {Map<string, Count>} by the value of the label
   */
  counts(name, label) {
    const before = this.before.by(name, label);
    const after = [...this.after.by(name, label)];
    return new Map(after.map(([value, total]) => [value, { total, per_s: this.perS(total - (before.get(value) ?? 0)) }]));
  }

  /**
   * @param {string} name
   * @param {import("./metrics_text.js").Labels} [labels]
   * @returns {Buckets} the increase of each bucket
   */
  buckets(name, labels) {
    const before = this.before.buckets(name, labels);
    const after = [...this.after.buckets(name, labels)];
    return new Map(after.map(([bound, count]) => [bound, Math.max(0, count - (before.get(bound) ?? 0))]));
  }

  /**
   * @param {string} name
   * @param {(buckets: Buckets, share: number) => number | null} [estimate]
   * @param {import("./metrics_text.js").Labels} [labels]
   * @returns {Distribution}
   */
  distribution(name, estimate = quantile, labels = {}) {
    const buckets = this.buckets(name, labels);
    const number = sum(buckets.values());
    const total = this.after.total(`${name}_sum`, labels) - this.before.total(`${name}_sum`, labels);
    const [p50, p90, p99] = QUANTILES.map((share) => estimate(buckets, share));
    return { per_s: this.perS(number), mean: number ? Math.max(0, total) / number : null, p50, p90, p99 };
  }

  requests() {
    const parts = CALLS.map((method) => this.count("grpc_server_handled_total", { ...method, grpc_code: "OK" }));
    parts.push(this.count("digitserve_stream_messages_total", { grpc_code: "OK" }));
    return added(parts);
  }

  errors() {
    const codes = this.counts("grpc_server_handled_total", "grpc_code");
    for (const [code, count] of this.counts("digitserve_stream_messages_total", "grpc_code")) {
      const calls = codes.get(code);
      codes.set(code, calls ? added([calls, count]) : count);
    }
    codes.delete("OK");
    return known(codes);
  }

  httpRequests() {
    const name = "digitserve_http_requests_total";
    /** @type {[string, Count][]} */
    const answers = [];
    for (const path of this.after.by(name, "path").keys()) {
      for (const code of this.after.by(name, "code", { path }).keys()) {
        answers.push([`${path} ${code}`, this.count(name, { path, code })]);
      }
    }
    return known(answers);
  }

  /** @returns {Record<string, Distribution>} */
  latencies() {
    const name = "grpc_server_handling_seconds";
    const called = [...this.after.by(`${name}_count`, "grpc_method")];
    // A stream takes as long as its client keeps it open.
    const methods = called.filter(([method, number]) => number && !STREAMS.includes(method)).map(([method]) => method);
    return Object.fromEntries([
      ...methods.map((method) => [method, this.distribution(name, quantile, { grpc_method: method })]),
      ...Object.entries(STAGES).map(([stage, metric]) => [stage, this.distribution(metric)]),
    ]);
  }
}

/** @param {Count[]} counts */
function added(counts) {
  return { total: sum(counts.map(({ total }) => total)), per_s: sum(counts.map(({ per_s }) => per_s)) };
}
