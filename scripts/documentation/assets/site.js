// For keyboards and screen readers: names that the theme leaves out, and focus for what scrolls.
document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
document.querySelectorAll(".md-nav--secondary nav").forEach((part) => {
  part.setAttribute("aria-label", `${part.getAttribute("aria-label")}, on this page`);
});
// No line break within a flag or a path, where it is not needed.
for (const name of document.querySelectorAll(":is(p, li) > code, :is(p, li) > a > code")) {
  if (/^\S{1,30}$/.test(name.textContent)) name.style.whiteSpace = "nowrap";
}
new MutationObserver(() => {
  document.querySelectorAll("nav.md-code__nav:not([aria-label])").forEach((buttons) => {
    buttons.setAttribute("aria-label", `Code block ${buttons.closest("pre").id}`);
  });
  for (const block of document.querySelectorAll(":is(pre > code, .md-typeset__scrollwrap, p:has(> img)):not([tabindex])")) {
    if (block.scrollWidth > block.clientWidth) block.tabIndex = 0;
  }
}).observe(document.body, { childList: true, subtree: true });
