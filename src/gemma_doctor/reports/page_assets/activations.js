// The same chart for what a model's operations put out, in the order of execution.
// What is not float16, whose limit does not bound it, is pale.
const PHASE_MARKS = { load: "square", "load wide": "square", forward: "dot", "forward wide": "dot", backward: "cross", "backward wide": "cross" };

for (const box of document.querySelectorAll(".chart.activations")) {
  const run = data.runs[box.dataset.run];
  const kind = (i) => run.phase[i] + (run.dtype[i] === "F16" ? "" : " wide");
  new Chart(box, {
    length: run.step.length,
    value: (i) => run.absmax[i],
    broken: (i) => run.nonfinite[i] > 0,
    kind,
    marks: PHASE_MARKS,
    parts: [],
    was: [],
    faults: run.fault === null ? [] : [run.fault],
    callouts: run.fault === null ? [] : [[run.fault, run.op[run.fault]]],
    shown: () => null,
    tell: (i) => {
      const where = run.modules[run.module[i]] || "the model itself";
      const lines = [named(where), `${run.op[i]}, ${run.dtype[i]}, ${run.phase[i]}, step ${count(run.step[i])}: largest magnitude ${exact(run.absmax[i])}`];
      if (run.nonfinite[i]) lines.push(`${count(run.nonfinite[i])} NaN or inf`);
      return lines;
    },
    act: () => {},
  });
  const legend = build("ul", { className: "legend" });
  const kinds = new Set(run.step.map((_, i) => kind(i)));
  legendOf(legend, PHASE_MARKS, Object.keys(PHASE_MARKS).filter((one) => kinds.has(one)));
  box.after(legend);
}
