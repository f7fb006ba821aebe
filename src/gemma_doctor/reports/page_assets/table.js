// The table of tensors: sorted, filtered, a page at a time, so that 20,000 tensors stay quick.
const PAGE = 50;
const COLUMNS = [
  { key: "name", title: "Tensor", order: (i) => i },
  { key: "found", title: "Findings", order: (i) => (found.has(i) ? 9 - found.get(i)[0][1] : 0), down: true, minor: true },
  { key: "role", title: "Role", order: (i) => tensors.role[i], minor: true },
  { key: "dtype", title: "Dtype", order: (i) => tensors.dtype[i], minor: true },
  { key: "shape", title: "Shape", order: (i) => tensors.count[i], minor: true, down: true },
  { key: "absmax", title: "Largest", order: (i) => tensors.absmax[i], number: true, down: true },
  { key: "rms", title: "RMS", order: (i) => tensors.rms[i], number: true, down: true, minor: true },
  { key: "budget", title: "Input budget", order: (i) => tensors.budget[i], number: true, minor: true },
  { key: "limit", title: "Limit", order: (i) => tensors.limit[i], number: true, minor: true },
];
const FIGURES = [
  ["Largest finite magnitude", "absmax"], ["Smallest value", "min"], ["Largest value", "max"], ["Root mean square", "rms"],
  ["NaN", "nan", "elements"], ["inf", "inf", "elements"], ["Zeros", "zeros", "elements"], ["Becomes inf in float16", "overflow", "elements"],
  ["Subnormal in float16", "subnormal", "elements"], ["Flushed to zero in float16", "underflow", "elements"],
  ["Largest row sum of magnitudes", "l1"], ["Largest row norm", "l2"], ["Limit of an output's magnitude", "limit"], ["Input budget: largest safe |x|", "budget"],
];
const head = document.querySelector("#table thead tr"), body = document.querySelector("#table tbody");
const view = { column: COLUMNS[5], down: true, page: 0, rows: [], open: -1 };

function shapeOf(i) {
  return tensors.shape[i].join(" \u00d7 ") || "scalar";
}

function compare(a, b) {
  const x = view.column.order(a), y = view.column.order(b);
  if (x === null || y === null) return (x === null) - (y === null) || a - b;
  const numbers = view.column.key !== "dtype";
  const sign = numbers ? Math.sign(Number(x) - Number(y)) : (x > y) - (x < y);
  return (view.down ? -sign : sign) || a - b;
}

function arrange() {
  view.rows = passing.slice().sort(compare);
  view.page = 0;
  render();
}

function cellOf(i, column) {
  const classes = [column.number ? "n" : "", column.minor ? "minor" : ""].join(" ").trim();
  const cell = build(column.key === "name" ? "th" : "td", { className: classes });
  if (column.key === "name") {
    const button = build("button", { type: "button", className: "open" }, ...named(tensors.name[i]).childNodes);
    button.setAttribute("aria-expanded", String(view.open === i));
    button.addEventListener("click", () => { view.open = view.open === i ? -1 : i; render(); focusRow(i); });
    cell.scope = "row";
    cell.append(button, build("span", { className: "sub quiet" }, `${data.roles[tensors.role[i]]}, ${tensors.dtype[i]}, ${shapeOf(i)} `, ...badges(i)));
  } else if (column.key === "found") {
    cell.append(...badges(i));
  } else if (column.key === "role") {
    cell.textContent = data.roles[tensors.role[i]];
  } else if (column.key === "shape") {
    cell.textContent = shapeOf(i);
  } else if (column.number) {
    cell.textContent = brief(tensors[column.key][i]);
    cell.title = exact(tensors[column.key][i]);
  } else {
    cell.textContent = tensors[column.key][i];
  }
  return cell;
}

function detailOf(i) {
  const list = build("dl");
  const add = (title, text) => list.append(build("div", {}, build("dt", { textContent: title }), build("dd", { textContent: text })));
  add("File", tensors.file[i]);
  add("Elements", count(tensors.count[i]));
  add("Size", count(tensors.bytes[i]) + " bytes");
  for (const [title, key, unit] of FIGURES) {
    const value = tensors[key][i];
    add(title, unit ? `${count(value)} of ${count(tensors.count[i])} ${unit}` : exact(value));
  }
  const cell = build("td", { colSpan: COLUMNS.length }, list);
  return build("tr", { className: "detail" }, cell);
}

function render() {
  const pages = Math.max(1, Math.ceil(view.rows.length / PAGE)), start = view.page * PAGE;
  const rows = [];
  for (const i of view.rows.slice(start, start + PAGE)) {
    const row = build("tr", { className: view.open === i ? "shown" : "" }, ...COLUMNS.map((column) => cellOf(i, column)));
    row.dataset.position = i;
    rows.push(row);
    if (view.open === i) rows.push(detailOf(i));
  }
  if (!rows.length) rows.push(build("tr", {}, build("td", { className: "empty", colSpan: COLUMNS.length, textContent: total ? "No tensor matches." : "No tensor was measured." })));
  body.replaceChildren(...rows);
  document.getElementById("matches").textContent = filtered() ? `${count(view.rows.length)} of ${count(total)} tensors` : `${count(total)} tensors`;
  document.getElementById("page").textContent = `${view.page + 1} of ${pages}`;
  document.getElementById("previous").disabled = view.page === 0;
  document.getElementById("next").disabled = view.page === pages - 1;
  heads();
}

function heads() {
  [...head.children].forEach((cell, place) => {
    if (COLUMNS[place] === view.column) cell.setAttribute("aria-sort", view.down ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  });
}

function sortBy(column) {
  view.down = view.column === column ? !view.down : Boolean(column.down);
  view.column = column;
  arrange();
}

function focusRow(i) {
  const button = body.querySelector(`tr[data-position="${i}"] .open`);
  if (button) button.focus({ preventScroll: true });
  return button;
}

// Show a tensor's row with its figures, whatever is filtered.
function jump(i) {
  if (!view.rows.includes(i)) choose({ name: "", role: "", rule: "", cell: null });
  view.open = i;
  view.page = Math.floor(view.rows.indexOf(i) / PAGE);
  render();
  hideTip();
  focusRow(i).scrollIntoView({ block: "center" });
}

for (const column of COLUMNS) {
  const button = build("button", { type: "button", textContent: column.title });
  button.addEventListener("click", () => sortBy(column));
  head.append(build("th", { scope: "col", className: [column.number ? "n" : "", column.minor ? "minor" : ""].join(" ").trim() }, button));
}
document.getElementById("previous").addEventListener("click", () => { view.page -= 1; render(); });
document.getElementById("next").addEventListener("click", () => { view.page += 1; render(); });
listeners.push(arrange);
arrange();
