// The chart of all weights, by role; what the table's filter leaves out is dimmed.
const ROLE_MARKS = { conv: "cross", linear: "dot", norm: "triangle", embedding: "square", bias: "bar", other: "diamond" };

// The largest convolutions by their names' ends, as the published picture would need them.
function largestConvolutions(most) {
  const convs = [...Array(total).keys()].filter((i) => data.roles[tensors.role[i]] === "conv" && Number(tensors.absmax[i]) >= 16);
  convs.sort((a, b) => tensors.absmax[b] - tensors.absmax[a]);
  return convs.slice(0, most).map((i) => [i, tensors.name[i].replace(/\.weight$/, "").split(".").slice(-5).join(".") + "  " + brief(tensors.absmax[i])]);
}

{
  let visible = null;
  const chart = new Chart(document.querySelector(".chart.weights"), {
    length: total,
    value: (i) => tensors.absmax[i],
    broken: (i) => tensors.nan[i] + tensors.inf[i] > 0,
    kind: (i) => data.roles[tensors.role[i]],
    marks: ROLE_MARKS,
    parts: data.towers,
    was: data.before,
    faults: [],
    callouts: largestConvolutions(6),
    shown: () => visible,
    tell: (i) => {
      const lines = [named(tensors.name[i]), `${data.roles[tensors.role[i]]}, ${tensors.dtype[i]}: largest magnitude ${exact(tensors.absmax[i])}`];
      const was = data.before.find(([position]) => position === i);
      if (was) lines.push(`before: ${exact(was[1])}`);
      if (tensors.nan[i] + tensors.inf[i]) lines.push(`${count(tensors.nan[i])} NaN, ${count(tensors.inf[i])} inf`);
      if (found.has(i)) lines.push([...new Set(found.get(i).map(([rule]) => rule))].join(", "));
      return lines;
    },
    act: (i) => jump(i),
  });
  listeners.push(() => {
    visible = filtered() ? new Set(passing) : null;
    chart.repaint();
  });
  const kinds = data.roles.filter((_, role) => tensors.role.includes(role));
  legendOf(document.getElementById("legend"), ROLE_MARKS, kinds);
  if (data.before.length) document.getElementById("legend").append(build("li", { textContent: "a bar and a line: what a tensor was before" }));
}
