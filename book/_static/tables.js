// A table that is wider than the page scrolls inside itself; then the keyboard can reach it, to scroll.
"use strict";
(() => {
  const reach = (table) => {
    if (table.scrollWidth > table.clientWidth) table.setAttribute("tabindex", "0");
    else table.removeAttribute("tabindex");
  };
  // Of a table that is shown later, too, and after the window has changed.
  const watch = new ResizeObserver((entries) => entries.forEach((entry) => reach(entry.target)));
  document.querySelectorAll(".bd-article table").forEach((table) => watch.observe(table));
})();
