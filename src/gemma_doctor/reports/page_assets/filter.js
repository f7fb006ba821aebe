// One filter for the table and the chart: part of the name, role, rule, and a cell of the heat map.
// The tensors that pass it, by position, are in `passing`; whoever shows them is told through `listeners`.
const chosen = { name: "", role: "", rule: "", cell: null };
const listeners = [];
let passing = [...tensors.name.keys()];
const lowered = tensors.name.map((name) => name.toLowerCase());

function filtered() {
  return chosen.name !== "" || chosen.role !== "" || chosen.rule !== "" || chosen.cell !== null;
}

function matching() {
  const name = chosen.name.toLowerCase(), role = chosen.role === "" ? -1 : Number(chosen.role);
  const pool = chosen.cell === null ? [...lowered.keys()] : data.cells[chosen.cell];
  return pool.filter((position) =>
    (name === "" || lowered[position].includes(name)) &&
    (role < 0 || tensors.role[position] === role) &&
    (chosen.rule === "" || (found.get(position) || []).some(([rule]) => rule === chosen.rule)));
}

const byName = document.getElementById("by-name");
const byRole = document.getElementById("by-role");
const byRule = document.getElementById("by-rule");
const byCell = document.getElementById("by-cell");

function choose(changes) {
  Object.assign(chosen, changes);
  byName.value = chosen.name;
  byRole.value = chosen.role;
  byRule.value = chosen.rule;
  byCell.hidden = chosen.cell === null;
  passing = matching();
  for (const listener of listeners) listener();
}

function showOnly(changes) {
  choose({ name: "", role: "", rule: "", cell: null, ...changes });
  document.getElementById("tensors").scrollIntoView();
}

for (const role of [...new Set(tensors.role)].sort()) byRole.append(build("option", { value: role, textContent: data.roles[role] }));
for (const rule of [...new Set(data.findings.map((one) => one[1]))].sort()) byRule.append(build("option", { value: rule, textContent: rule }));
byName.addEventListener("input", () => choose({ name: byName.value }));
byRole.addEventListener("change", () => choose({ role: byRole.value }));
byRule.addEventListener("change", () => choose({ rule: byRule.value }));
byCell.addEventListener("click", () => choose({ cell: null }));
for (const button of document.querySelectorAll("[data-rule]")) {
  button.addEventListener("click", () => showOnly({ rule: button.dataset.rule }));
}
