// A small line of the last minute.

import { svg } from "./dom.js";

const LENGTH = 60;
const WIDTH = 120;
const HEIGHT = 28;

export class Sparkline {
  /** `least`: what fills the height at least, so that noise near zero stays flat. */
  constructor(label, least = 1) {
    this.label = label;
    this.least = least;
    this.values = [];
    this.area = svg("path", { class: "spark-area" });
    this.line = svg("path", { class: "spark-line" });
    this.node = svg(
      "svg",
      {
        class: "spark",
        viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
        preserveAspectRatio: "none",
        role: "img",
      },
      this.area,
      this.line,
    );
  }

  /** Add a value at the right end; `text` is its reading. */
  push(value, text) {
    this.values = [...this.values, value].slice(-LENGTH);
    this.node.setAttribute("aria-label", `${this.label}, last minute, now ${text}`);
    const top = Math.max(this.least, ...this.values);
    const step = WIDTH / (LENGTH - 1);
    const left = WIDTH - (this.values.length - 1) * step;
    const points = this.values.map((v, i) => {
      const y = HEIGHT - 1.5 - (v / top) * (HEIGHT - 3);
      return `${(left + i * step).toFixed(1)} ${y.toFixed(1)}`;
    });
    this.line.setAttribute("d", `M${points.join("L")}`);
    this.area.setAttribute(
      "d",
      `M${left.toFixed(1)} ${HEIGHT}L${points.join("L")}L${WIDTH} ${HEIGHT}Z`,
    );
  }
}
