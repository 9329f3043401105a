"use strict";
// Shared by all parts of the page: what the reader chose, kept while the page reloads itself, and data in script elements.
const page = {
  one: (selector, root = document) => root.querySelector(selector),
  all: (selector, root = document) => [...root.querySelectorAll(selector)],
  data: (id) => JSON.parse(document.getElementById(id)?.textContent ?? "null"),
  // Plotly reads tags in texts: a name that holds some is shown as it is.
  escaped: (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"),
  node: (tag, text = "", attributes = {}) => {
    const node = Object.assign(document.createElement(tag), { textContent: text });
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  },
  kept: {},
  keep(name, value) {
    page.kept[name] = value;
    try {
      sessionStorage.setItem(`sqbench:${location.pathname}`, JSON.stringify(page.kept));
    } catch {} // a browser that keeps nothing for files
  },
  // Runs when everything, plotly.js included, is there; the table and the theme do not wait for it.
  ready: (task) => (document.readyState === "complete" ? task() : addEventListener("load", task)),
};
try {
  page.kept = JSON.parse(sessionStorage.getItem(`sqbench:${location.pathname}`)) ?? {};
} catch {}
