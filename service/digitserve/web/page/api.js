// @ts-check
/**
 * Calls of the service: one function for all of them. It adds the token, and returns an outcome, also after a failure.
 *
 *     connection.js, requests.js, panel.js ──call──▶ fetch
 *
 * The token stays in sessionStorage: it is gone when the tab is closed, and a reload does not ask for it again.
 */

/**
 * @typedef {object} Ok
 * @property {"ok"} kind
 * @property {string} text the body
 * @property {Headers} headers
 * @property {number} ms until the body was there
 */
/**
 * @typedef {object} Failure
 * @property {"refused" | "overloaded" | "starting" | "unauthorised" | "gone"} kind refused: the request is at fault, or the
 *     service failed; starting: no worker is ready; gone: no answer
 * @property {number} status of HTTP; 0 if there is no answer
 * @property {string} message of the service
 * @property {number} retryS seconds until a retry should succeed
 */
/** @typedef {Ok | Failure | {kind: "cancelled"}} Outcome */

const TOKEN_KEY = "digitserve token";
let token = storedToken();

/** Longest time of a call with an image. The service allows 20 s for the body, 15 s for decoding, and 5 s for the answer. */
const IMAGE_MS = 40_000;

/** Longest time of other calls. */
const CALL_MS = 5_000;

/** @type {Record<number, "overloaded" | "starting" | "unauthorised">} */
const KINDS = { 401: "unauthorised", 429: "overloaded", 503: "starting", 504: "overloaded" };

/**
 * A token with other characters, which no service has, would make the call itself fail: without a token the service says what is
 * wrong.
 *
 * @returns {Record<string, string>} the header field with the token; empty if there is none
 */
export function authorization() {
  return /^[!-~]+$/.test(token) ? { authorization: `Bearer ${token}` } : {};
}

/** @param {string} newToken of the next calls; empty for none */
export function setToken(newToken) {
  token = newToken;
  try {
    sessionStorage.setItem(TOKEN_KEY, token);
  } catch {
    // The browser does not allow storage: the token is used until the next reload.
  }
}

/** @returns {string} the token of this tab; empty if there is none */
function storedToken() {
  try {
    return sessionStorage.getItem(TOKEN_KEY) ?? "";
  } catch {
    return "";
  }
}

/**
 * Call the service.
 *
 * @param {string} path
 * @param {{method?: string, body?: BodyInit}} [options]
 * @param {AbortSignal} [signal] cancels the call
 * @returns {Promise<Outcome>}
 */
export async function call(path, options = {}, signal = undefined) {
  const limit = AbortSignal.timeout(options.body ? IMAGE_MS : CALL_MS);
  const started = performance.now();
  try {
    const response = await fetch(path, {
      ...options,
      headers: options.body ? { ...authorization(), "content-type": "application/octet-stream" } : authorization(),
      cache: "no-store",
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
    });
    const text = await response.text();
    if (response.ok) {
      return { kind: "ok", text, headers: response.headers, ms: performance.now() - started };
    }
    return failure(response, text);
  } catch {
    return signal?.aborted ? { kind: "cancelled" } : { kind: "gone", status: 0, message: "", retryS: 0 };
  }
}

/**
 * @param {Response} response with an error
 * @param {string} text its body
 * @returns {Failure}
 */
function failure(response, text) {
  const { status, headers } = response;
  const retryS = Number(headers.get("retry-after")) || 1;
  return { kind: KINDS[status] ?? "refused", status, message: words(text) || `HTTP status ${status}`, retryS };
}

/**
 * @param {string} text body of an error: google.rpc.Status as JSON, or plain text
 * @returns {string} what it says
 */
function words(text) {
  try {
    return JSON.parse(text).message;
  } catch {
    return text.trim();
  }
}
