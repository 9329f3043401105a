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
  // What the address asks for, `?method=%3Dawq&study=...`: a view can be sent to somebody else.
  asked: Object.fromEntries(new URLSearchParams(location.search)),
  address(values) {
    const kept = page.asked.study && !("study" in values) ? { study: page.asked.study } : {};
    page.asked = { ...kept, ...values };
    const query = new URLSearchParams(page.asked).toString();
    try {
      history.replaceState(null, "", `${location.pathname}${query && `?${query}`}${location.hash}`);
    } catch {} // a browser that lets no file change its address
  },
  // Runs when everything, plotly.js included, is there; the table and the theme do not wait for it.
  ready: (task) => (document.readyState === "complete" ? task() : addEventListener("load", task)),
};
try {
  page.kept = JSON.parse(sessionStorage.getItem(`sqbench:${location.pathname}`)) ?? {};
} catch {}
