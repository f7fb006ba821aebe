"use strict";
// The page's script. It reads the data block, builds nodes, and never makes markup of text: the policy would refuse it.
const data = JSON.parse(document.getElementById("data").textContent);
const tensors = data.tensors;
const total = tensors.name.length;
const NONE = "\u2013";

function build(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function draw(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// A tensor's name may be broken after each dot.
function named(name) {
  const node = build("code");
  if (!name.trim()) return build("code", { textContent: "(no name)" });
  for (const part of name.split(/(?<=\.)/)) node.append(part, document.createElement("wbr"));
  return node;
}

// With commas between thousands. Intl would do the same, but takes longer to load than the rest of the script to run.
function count(value) {
  const [whole, fraction] = String(value).split(".");
  return whole.replace(/\B(?=(\d{3})+$)/g, ",") + (fraction ? "." + fraction : "");
}

// Four digits, or to the unit if there are more; exact() has them all.
function brief(value) {
  if (value === null) return NONE;
  const number = Number(value), size = Math.abs(number);
  if (number !== 0 && (size < 1e-3 || size >= 1e6)) return number.toExponential(3).replace("e+", "e");
  return count(size < 1000 ? Number(number.toPrecision(4)) : Math.round(number));
}

// The shortest decimal that is this float64; integers beyond 2^53 come as strings.
function exact(value) {
  return value === null ? NONE : String(value);
}

// The findings of each tensor: [rule, severity], the gravest first.
const found = new Map();
for (const [position, rule, severity] of data.findings) {
  if (!found.has(position)) found.set(position, []);
  found.get(position).push([rule, severity]);
}
for (const list of found.values()) list.sort((a, b) => a[1] - b[1] || (a[0] < b[0] ? -1 : 1));

function badges(position) {
  const known = new Map((found.get(position) || []).map(([rule, severity]) => [rule + severity, [rule, severity]]));
  return [...known.values()].map(([rule, severity]) => {
    const word = data.severities[severity];
    return build("span", { className: "badge " + word, textContent: rule, title: word });
  });
}

const tip = document.getElementById("tip");

function showTip(x, y, ...lines) {
  tip.replaceChildren(...lines.map((line) => (typeof line === "string" ? build("div", { textContent: line }) : line)));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(8, Math.min(x + 14, innerWidth - box.width - 8)) + "px";
  tip.style.top = (y + 18 + box.height > innerHeight ? Math.max(8, y - box.height - 14) : y + 18) + "px";
}

function hideTip() {
  tip.hidden = true;
}
