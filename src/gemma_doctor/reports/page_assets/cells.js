// The heat map: one stop of the tab key for each stack, arrow keys within it, and a cell shows its tensors.
for (const table of document.querySelectorAll("[data-cells]")) {
  const first = table.querySelector("button");
  if (first) first.tabIndex = 0;
  table.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    byCell.textContent = button.dataset.label;
    showOnly({ cell: Number(button.dataset.cell) });
  });
  table.addEventListener("pointerover", (event) => {
    const button = event.target.closest("button");
    if (button) showTip(event.clientX, event.clientY, button.getAttribute("aria-label"));
  });
  table.addEventListener("pointerleave", hideTip);
  table.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    if (!step || event.target.tagName !== "BUTTON") return;
    event.preventDefault();
    move(event.target, ...step);
  });
}

function move(button, across, down) {
  const rows = [...button.closest("tbody").rows];
  let row = rows.indexOf(button.closest("tr")), column = button.parentElement.cellIndex;
  for (;;) {
    row += down;
    column += across;
    const cell = rows[row] && rows[row].cells[column];
    if (!cell || cell.tagName === "TH") return;
    const next = cell.querySelector("button");
    if (!next) continue;
    button.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    return;
  }
}
