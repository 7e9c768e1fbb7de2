// @ts-check
/** Access to the elements of the page, whose ids index.html defines. */

/**
 * @param {string} id
 * @returns {HTMLElement}
 */
export function element(id) {
  const found = document.getElementById(id);
  if (!found) {
    throw new Error(`index.html has no element #${id}`);
  }
  return found;
}

/**
 * @param {string} id
 * @returns {HTMLCanvasElement}
 */
export function canvas(id) {
  return /** @type {HTMLCanvasElement} */ (element(id));
}

/**
 * @param {HTMLElement} owner
 * @param {string} selector
 * @returns {HTMLElement}
 */
export function part(owner, selector) {
  const found = owner.querySelector(selector);
  if (!(found instanceof HTMLElement)) {
    throw new Error(`#${owner.id} has no ${selector}`);
  }
  return found;
}

/**
 * @param {string} tag
 * @param {string} text
 * @param {string} [className]
 * @returns {HTMLElement}
 */
export function create(tag, text, className = "") {
  const created = document.createElement(tag);
  created.textContent = text;
  created.className = className;
  return created;
}

/**
 * @param {string} tag
 * @param {Record<string, string>} attributes
 * @returns {SVGElement}
 */
export function svg(tag, attributes) {
  const created = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) created.setAttribute(name, value);
  return created;
}
