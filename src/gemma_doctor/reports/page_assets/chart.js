// A chart of magnitudes on a logarithmic axis: as SVG, so that it prints sharp and takes the page's colours.
const MARKS = {
  cross: "m-3.2-3.2l6.4 6.4m0-6.4l-6.4 6.4", dot: "h0", triangle: "m-2.9 2.4h5.8l-2.9-5.2z",
  square: "m-2.6-2.6h5.2v5.2h-5.2z", bar: "m-3 0h6", diamond: "m0-3.3l3.3 3.3l-3.3 3.3l-3.3-3.3z",
};
const LEFT = 56, RIGHT = 46, TOP = 20, BOTTOM = 30, FLOOR = 1e-8;

class Chart {
  // source: length, value(i), broken(i), kind(i) -> name of a style, marks: {kind: mark}, parts: [[i, name]], was: [[i, value]],
  // faults: [i], callouts: [[i, text]], shown() -> Set or null, tell(i) -> lines of the tip, act(i).
  constructor(box, source) {
    this.box = box;
    this.source = source;
    this.at = -1;
    new ResizeObserver(() => this.resize()).observe(box);
    box.addEventListener("pointermove", (event) => this.hover(event));
    box.addEventListener("pointerleave", () => this.leave());
    box.addEventListener("blur", () => this.leave());
    box.addEventListener("click", (event) => { this.hover(event); if (this.at >= 0) source.act(this.at); });
    box.addEventListener("keydown", (event) => this.key(event));
  }

  resize() {
    const width = Math.round(this.box.clientWidth - 16);
    if (width !== this.width && width > 0) this.paint(width);
  }

  // Once a frame at most, after what the reader is waiting for.
  repaint() {
    if (!this.width || this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.paint(this.width); });
  }

  paint(width) {
    this.width = width;
    this.height = width < 600 ? 320 : 420;
    this.scale();
    const svg = draw("svg", { viewBox: `0 0 ${width} ${this.height}`, "aria-hidden": "true" });
    this.axes(svg);
    this.was(svg);
    this.points(svg);
    this.limits(svg);
    this.callouts(svg);
    this.focus = draw("circle", { r: 6, class: "focus", visibility: "hidden" });
    svg.append(this.focus);
    this.box.replaceChildren(svg);
  }

  scale() {
    const { source } = this, values = [];
    for (let i = 0; i < source.length; i++) if (Number(source.value(i)) > 0) values.push(Number(source.value(i)));
    for (const [, value] of source.was) if (Number(value) > 0) values.push(Number(value));
    const least = values.reduce((a, b) => Math.min(a, b), 1), most = values.reduce((a, b) => Math.max(a, b), data.limits.fp16 * 2);
    this.low = Math.floor(Math.log10(Math.max(least, FLOOR)));
    this.high = Math.log10(most) + .15;
    this.zeros = [...Array(source.length).keys()].some((i) => Number(source.value(i)) === 0);
    this.broken = [...Array(source.length).keys()].some((i) => source.broken(i));
    this.ceiling = TOP + (this.broken ? 18 : 0);
    this.floor = this.height - BOTTOM - (this.zeros ? 20 : 0);
  }

  x(i) {
    return LEFT + (this.width - LEFT - RIGHT) * (this.source.length > 1 ? i / (this.source.length - 1) : .5);
  }

  level(value) {
    const share = (Math.log10(Math.max(value, 10 ** this.low)) - this.low) / (this.high - this.low);
    return this.floor - share * (this.floor - this.ceiling);
  }

  y(i) {
    if (this.source.broken(i)) return TOP;
    return Number(this.source.value(i)) > 0 ? this.level(Number(this.source.value(i))) : this.height - BOTTOM - 6;
  }

  axes(svg) {
    const right = this.width - RIGHT;
    for (let power = this.low; power <= this.high; power++) {
      const y = this.level(10 ** power), plain = power >= -3 && power <= 4;
      const label = draw("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, plain ? count(10 ** power) : "1e" + power);
      svg.append(draw("line", { x1: LEFT, x2: right, y1: y, y2: y, class: "grid" }), label);
    }
    if (this.zeros) svg.append(draw("text", { x: LEFT - 8, y: this.height - BOTTOM - 2, "text-anchor": "end" }, "zero"));
    if (this.broken) svg.append(draw("text", { x: LEFT - 8, y: TOP + 4, "text-anchor": "end" }, "NaN, inf"));
    this.source.parts.forEach(([i, name], place) => {
      const x = i ? (this.x(i - 1) + this.x(i)) / 2 : LEFT, next = this.source.parts[place + 1];
      svg.append(draw("line", { x1: x, x2: x, y1: TOP - 8, y2: this.height - BOTTOM + 6, class: "part" }));
      if ((next ? this.x(next[0]) : right) - x > 6.2 * name.length + 8) svg.append(draw("text", { x: x + 4, y: this.height - 8 }, name));
    });
  }

  limits(svg) {
    const right = this.width - RIGHT, { fp16, half, square } = data.limits;
    for (const [value, kind, shift] of [[fp16, "full", 0], [half, "half", 9], [square, "square", 4]]) {
      const y = this.level(value);
      svg.append(draw("line", { x1: LEFT, x2: right, y1: y, y2: y, class: "limit " + kind }));
      svg.append(draw("text", { x: right + 6, y: y + shift, class: "limit-label" }, String(value))); // beside the points
    }
  }

  points(svg) {
    const { source } = this, shown = source.shown(), paths = {};
    for (let i = 0; i < source.length; i++) {
      if (source.value(i) === null && !source.broken(i)) continue;
      const key = source.kind(i) + (shown && !shown.has(i) ? " dim" : "");
      (paths[key] ||= []).push(`M${Math.round(10 * this.x(i)) / 10} ${Math.round(10 * this.y(i)) / 10}${MARKS[source.marks[source.kind(i)]]}`);
    }
    const pale = (key) => /(dim|wide)$/.test(key);
    const order = Object.keys(paths).sort((a, b) => pale(b) - pale(a) || (a === "conv") - (b === "conv"));
    for (const key of order) svg.append(draw("path", { d: paths[key].join(""), class: "points " + key }));
    for (const i of source.faults) svg.append(draw("circle", { cx: this.x(i), cy: this.y(i), r: 8, class: "fault" }));
  }

  was(svg) {
    const lines = this.source.was.filter(([, value]) => Number(value) > 0).map(([i, value]) => {
      const x = this.x(i).toFixed(1), y = this.level(Number(value)).toFixed(1);
      return `M${x} ${y}m-3 0h6m-3 0V${this.y(i).toFixed(1)}`;
    });
    if (lines.length) svg.append(draw("path", { d: lines.join(""), class: "was" }));
  }

  callouts(svg) {
    const taken = [];
    for (const [i, text] of this.source.callouts) {
      const x = this.x(i), y = this.y(i), left = x > this.width / 2;
      if (this.width < 600 || taken.some((other) => Math.abs(other - y) < 12)) continue;
      taken.push(y);
      svg.append(draw("text", { x: x + (left ? -9 : 9), y: y + 4, "text-anchor": left ? "end" : "start", class: "callout" }, text));
    }
  }

  hover(event) {
    const { source } = this, svg = this.box.firstElementChild;
    if (!svg) return;
    const box = svg.getBoundingClientRect(), zoom = this.width / box.width;
    const x = (event.clientX - box.left) * zoom, y = (event.clientY - box.top) * zoom;
    const step = (this.width - LEFT - RIGHT) / Math.max(source.length - 1, 1), reach = 24;
    const first = Math.max(0, Math.floor((x - reach - LEFT) / step)), last = Math.min(source.length - 1, Math.ceil((x + reach - LEFT) / step));
    const shown = source.shown();
    let best = -1, least = reach ** 2;
    for (let i = first; i <= last; i++) {
      if ((source.value(i) === null && !source.broken(i)) || (shown && !shown.has(i))) continue;
      const distance = (this.x(i) - x) ** 2 + (this.y(i) - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    }
    this.point(best);
  }

  point(i) {
    this.at = i;
    if (i < 0) return this.leave();
    const box = this.box.firstElementChild.getBoundingClientRect(), zoom = box.width / this.width;
    this.focus.setAttribute("cx", this.x(i));
    this.focus.setAttribute("cy", this.y(i));
    this.focus.setAttribute("visibility", "visible");
    showTip(box.left + this.x(i) * zoom, box.top + this.y(i) * zoom, ...this.source.tell(i));
  }

  leave() {
    this.at = -1;
    if (this.focus) this.focus.setAttribute("visibility", "hidden");
    hideTip();
  }

  key(event) {
    const last = this.source.length - 1, step = event.shiftKey ? 10 : 1;
    const next = { ArrowRight: this.at + step, ArrowLeft: this.at - step, Home: 0, End: last }[event.key];
    if (next !== undefined && last >= 0) {
      event.preventDefault();
      this.point(Math.max(0, Math.min(last, next)));
    } else if (event.key === "Enter" && this.at >= 0) {
      event.preventDefault(); // or the key would press the button that gets the focus
      this.source.act(this.at);
    } else if (event.key === "Escape") {
      this.leave();
    }
  }
}

function legendOf(list, marks, kinds) {
  for (const kind of kinds) {
    const icon = draw("svg", { viewBox: "-7 -7 14 14", "aria-hidden": "true" }, draw("path", { d: "M0 0" + MARKS[marks[kind]], class: "points " + kind }));
    list.append(build("li", {}, icon, kind.replace(" wide", ", not float16")));
  }
}
