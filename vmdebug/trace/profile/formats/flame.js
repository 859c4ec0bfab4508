/* Zooms and searches a flame graph of vmdebug: see flame_svg.py. */
(function () {
  "use strict";
  const script = document.currentScript;
  const svg = (script && script.closest("svg")) || document.querySelector("svg.flame");
  const frames = Array.from(svg.querySelectorAll("svg.frame")).map((element) => ({
    element, start: +element.dataset.start, end: +element.dataset.end, level: +element.dataset.level,
    text: element.querySelector("text"), name: element.dataset.name,
  }));
  const info = svg.querySelector(".info"), back = svg.querySelector(".back");
  const title = info.textContent;
  let left = 0, right = 1, level = 0;

  function fit() {
    const width = svg.clientWidth || svg.getBoundingClientRect().width;
    for (const each of frames) {
      const pixels = (Math.min(each.end, right) - Math.max(each.start, left)) / (right - left) * width;
      each.text.style.display = pixels < 24 ? "none" : "";
    }
  }

  function zoom(to) {
    left = to ? to.start : 0;
    right = to ? to.end : 1;
    level = to ? to.level : 0;
    for (const each of frames) {
      const inside = each.end > left + 1e-9 && each.start < right - 1e-9;
      const start = Math.max(each.start, left), end = Math.min(each.end, right);
      each.element.style.display = inside ? "" : "none";
      each.element.setAttribute("x", (start - left) / (right - left) * 100 + "%");
      each.element.setAttribute("width", Math.max(end - start, 0) / (right - left) * 100 + "%");
      each.element.classList.toggle("around", each.level < level);
    }
    back.style.display = to && to.level ? "" : "none";
    fit();
  }

  function tell(frame) {
    info.textContent = frame ? frame.element.querySelector("title").textContent : title;
  }

  function search(words) {
    let pattern = null;
    try {
      pattern = words ? new RegExp(words, "i") : null;
    } catch (error) {
      info.textContent = "not a regular expression: " + words;
      return;
    }
    let covered = 0, until = -1;
    const found = frames.filter((each) => pattern && pattern.test(each.name));
    for (const each of frames) each.element.classList.toggle("found", found.includes(each));
    for (const each of found.sort((a, b) => a.start - b.start || a.level - b.level))
      if (each.start >= until - 1e-9) {
        covered += each.end - each.start;
        until = each.end;
      }
    info.textContent = pattern ? "/" + words + "/ is in " + (100 * covered).toFixed(1) + " % of all" : title;
  }

  for (const each of frames) {
    each.element.addEventListener("click", () => { zoom(each); tell(each); });
    each.element.addEventListener("mouseenter", () => tell(each));
  }
  back.addEventListener("click", () => { zoom(null); tell(null); });
  svg.querySelector(".search").addEventListener("click", () => search(window.prompt("Search a function (regular expression):") || ""));
  window.addEventListener("resize", fit);
  const field = document.getElementById("search");
  if (field) {
    field.addEventListener("input", () => search(field.value));
    svg.querySelector(".search").style.display = "none";
  }
  zoom(null);
})();
