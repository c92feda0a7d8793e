// Boxes on a picture, in its pixels: seen, drawn, moved, resized, chosen. All text is set as text, never as markup.

const NAMESPACE = "http://www.w3.org/2000/svg";
export const COLORS = ["#e6194b", "#2a9d4a", "#b58900", "#4363d8", "#d9601a", "#0f9bb5", "#c026b8", "#5a7d00"];

export function shape(parent, name, attributes = {}, text = null) {
  const made = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  parent.append(made);
  return made;
}

/** One box with its tag; `unit` is the length of a hundredth of the picture. */
export function drawBox(parent, box, unit, attributes, tag) {
  const [x1, y1, x2, y2] = box;
  const made = shape(parent, "rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, class: "box", ...attributes });
  const size = 2.7 * unit;
  const y = y1 > size ? y1 - 0.6 * unit : y2 + size;
  const isRight = x1 > 80 * unit; // the tag ends where the box does
  const place = { x: isRight ? x2 : x1, y, "text-anchor": isRight ? "end" : "start" };
  if (tag) shape(parent, "text", { ...place, "font-size": size, class: "tag", fill: attributes.stroke }, tag);
  return made;
}

/** Cells of a grid that covers `area`, red where they speak for something and blue where against it. */
export function drawHeat(parent, grid, area) {
  const [x1, y1, x2, y2] = area;
  const side = grid.length;
  const [width, height] = [(x2 - x1) / side, (y2 - y1) / side];
  const most = Math.max(...grid.flat().map(Math.abs)) || 1;
  grid.forEach((row, j) => row.forEach((value, i) => {
    const fill = value > 0 ? "#c4314b" : "#3557c9";
    const place = { x: x1 + i * width, y: y1 + j * height, width, height };
    shape(parent, "rect", { ...place, fill, "fill-opacity": (0.75 * Math.abs(value)) / most, class: "heat" });
  }));
}

export class Editor {
  /** `changed` is called after each change by hand, `picked` when another box is chosen. */
  constructor(svg, changed, picked) {
    Object.assign(this, { svg, changed, picked, boxes: [], width: 0, height: 0, chosen: -1, heat: null, drag: null });
    svg.addEventListener("pointerdown", (event) => this.down(event));
    svg.addEventListener("pointermove", (event) => this.move(event));
    svg.addEventListener("pointerup", (event) => this.up(event));
    svg.addEventListener("pointercancel", () => { this.drag = null; this.render(); });
  }

  show(picture, width, height) {
    Object.assign(this, { picture, width, height, boxes: [], chosen: -1, heat: null });
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  }

  get unit() {
    return Math.max(this.width, this.height) / 100;
  }

  render() {
    this.svg.replaceChildren();
    if (!this.width) return;
    shape(this.svg, "image", { href: this.picture, width: this.width, height: this.height, preserveAspectRatio: "none" });
    if (this.heat) drawHeat(this.svg, this.heat.regions, this.heat.area);
    this.boxes.forEach((one, number) => {
      const kinds = ["box", one.on ? "on" : "off", number === this.chosen ? "chosen" : ""].join(" ");
      const stroke = COLORS[number % COLORS.length];
      const tag = `${one.label} ${one.score < 1 ? one.score.toFixed(2) : ""}`.trim();
      drawBox(this.svg, one.box, this.unit, { class: kinds, stroke, "data-number": number }, tag);
    });
    const box = this.boxes[this.chosen]?.box;
    for (const corner of box ? [0, 1, 2, 3] : []) {
      const [x, y] = [box[corner % 2 ? 2 : 0], box[corner < 2 ? 1 : 3]];
      shape(this.svg, "circle", { cx: x, cy: y, r: 1.1 * this.unit, class: "corner", "data-corner": corner });
    }
  }

  at(event) {
    const matrix = this.svg.getScreenCTM().inverse();
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix);
    return [Math.min(Math.max(point.x, 0), this.width), Math.min(Math.max(point.y, 0), this.height)];
  }

  down(event) {
    if (!this.width || event.button !== 0) return;
    this.svg.setPointerCapture(event.pointerId);
    const [x, y] = this.at(event);
    const { number, corner } = event.target.dataset;
    if (corner !== undefined) {
      const box = this.boxes[this.chosen].box;
      const fixed = [box[corner % 2 ? 0 : 2], box[corner < 2 ? 3 : 1]];
      this.drag = { kind: "size", number: this.chosen, fixed };
    } else if (number !== undefined) {
      this.choose(Number(number));
      this.drag = { kind: "move", number: this.chosen, from: [x, y], box: [...this.boxes[this.chosen].box] };
    } else {
      this.choose(-1);
      this.drag = { kind: "draw", number: -1, fixed: [x, y] };
    }
    this.drag.start = [event.clientX, event.clientY];
  }

  move(event) {
    const drag = this.drag;
    if (!drag) return;
    const far = Math.hypot(event.clientX - drag.start[0], event.clientY - drag.start[1]);
    if (!drag.begun && far < 4) return; // a click
    drag.begun = true;
    const [x, y] = this.at(event);
    if (drag.kind === "draw" && drag.number < 0) {
      drag.number = this.boxes.push({ box: [x, y, x, y], label: "", score: 1, on: true }) - 1;
      this.choose(drag.number);
    }
    const one = this.boxes[drag.number];
    if (drag.kind === "move") {
      const [x1, y1, x2, y2] = drag.box;
      const dx = Math.min(Math.max(x - drag.from[0], -x1), this.width - x2);
      const dy = Math.min(Math.max(y - drag.from[1], -y1), this.height - y2);
      one.box = [x1 + dx, y1 + dy, x2 + dx, y2 + dy];
    } else {
      const [a, b] = drag.fixed;
      one.box = [Math.min(a, x), Math.min(b, y), Math.max(a, x), Math.max(b, y)];
    }
    this.render();
  }

  up() {
    const drag = this.drag;
    this.drag = null;
    if (!drag?.begun || drag.number < 0) return;
    const [x1, y1, x2, y2] = this.boxes[drag.number].box;
    if (x1 === x2 || y1 === y2) this.boxes.splice(drag.number, 1);
    this.changed();
  }

  choose(number) {
    this.chosen = number;
    this.picked(number);
    this.render();
  }
}
