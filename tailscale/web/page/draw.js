// Elements, numbers, tables and the plot. Whatever others wrote becomes text of an element, never markup.

const SVG = "http://www.w3.org/2000/svg";
const UNITS = ["B", "kB", "MB", "GB", "TB"];

export const byId = (id) => document.getElementById(id);

export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function shape(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

export function inBytes(count) {
  let unit = 0;
  while (count >= 999.5 && unit < UNITS.length - 1) [count, unit] = [count / 1000, unit + 1];
  return `${unit === 0 || count >= 9.95 ? Math.round(count) : count.toFixed(1)} ${UNITS[unit]}`;
}

export const inRate = (rate) => (rate >= 0.5 ? `${inBytes(rate)}/s` : "·");

export function inTime(seconds) {
  if (seconds === null) return "";
  if (seconds < 0.00995) return `${(seconds * 1000).toFixed(1)} ms`;
  return seconds < 0.9995 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`;
}

// A table in place: heads once, then rows of cells, each a text, an element, or [text, class].
export function fillTable(table, heads, rows) {
  if (!table.tHead) {
    const cells = heads.map(([title, style]) => element("th", { class: style ?? "" }, title));
    table.append(element("thead", {}, element("tr", {}, ...cells)), element("tbody"));
  }
  const body = table.tBodies[0];
  rows.forEach((row, number) => {
    const line = body.rows[number] ?? body.insertRow();
    const style = row.style ?? "";
    if (line.className !== style) line.className = style;
    row.cells.forEach((cell, column) => fillCell(line.cells[column] ?? line.insertCell(), cell, heads[column][1] ?? ""));
  });
  while (body.rows.length > rows.length) body.deleteRow(-1);
}

function fillCell(place, cell, style) {
  if (cell instanceof Node) {
    place.className = style;
    place.replaceChildren(cell);
    return;
  }
  const [text, own] = Array.isArray(cell) ? cell : [cell, ""];
  const wanted = `${style} ${own}`.trim();
  if (place.className !== wanted) place.className = wanted;
  if (place.textContent !== text) place.textContent = text;
}

export function spark(series) {
  const newest = series.slice(-42);
  const top = Math.max(1000, ...newest);
  if (!newest.some((rate) => rate >= 0.5)) return shape("svg", { class: "spark", viewBox: "0 0 84 18" });
  const points = newest.map((rate, x) => `${(84 - 2 * (newest.length - 1 - x)).toFixed(0)} ${(17 - (rate / top) * 15).toFixed(1)}`);
  return shape("svg", { class: "spark", viewBox: "0 0 84 18" }, shape("path", { d: `M${points.join("L")}` }));
}

// Received above the line and sent below it, each kind of path on top of the one before.
export function plotTraffic(svg, history) {
  const width = svg.clientWidth || 600, height = svg.clientHeight || 200, left = 64, length = 180;
  const kinds = ["direct", "relay", "peer-relay"];
  const stacks = Object.fromEntries(["received", "sent"].map((way) => [way, stacked(kinds.map((kind) => history.series(`${way} ${kind}`)))]));
  const top = niceTop(Math.max(1000, ...stacks.received.at(-1), ...stacks.sent.at(-1)));
  const middle = height / 2, scale = (middle - 8) / top, step = (width - left) / (length - 1);
  const parts = [];
  for (const rate of [top, top / 2, -top / 2, -top]) {
    const y = middle - rate * scale;
    parts.push(shape("line", { class: "grid", x1: left, x2: width, y1: y, y2: y }));
    parts.push(shape("text", { class: "tick", x: 0, y: y + 4 }, inRate(Math.abs(rate))));
  }
  for (let minute = 1; minute < length / 60; minute++) {
    const x = width - minute * 60 * step;
    parts.push(shape("line", { class: "grid", x1: x, x2: x, y1: 8, y2: height - 8 }));
    parts.push(shape("text", { class: "tick", x: x + 4, y: height - 6 }, `${minute} min ago`));
  }
  for (const [way, sign] of [["received", 1], ["sent", -1]]) {
    kinds.forEach((kind, number) => {
      const upper = stacks[way][number], lower = number ? stacks[way][number - 1] : upper.map(() => 0);
      const x = (at) => (width - (upper.length - 1 - at) * step).toFixed(1), y = (rate) => (middle - sign * rate * scale).toFixed(1);
      const there = upper.map((rate, at) => `${x(at)} ${y(rate)}`), back = lower.map((rate, at) => `${x(at)} ${y(rate)}`).reverse();
      if (there.length > 1) parts.push(shape("path", { class: `area ${kind} ${way}`, d: `M${[...there, ...back].join("L")}Z` }));
    });
  }
  parts.push(shape("line", { class: "axis", x1: left, x2: width, y1: middle, y2: middle }));
  parts.push(shape("text", { class: "tick", x: left + 6, y: 14 }, "received"));
  parts.push(shape("text", { class: "tick", x: left + 6, y: height - 6 }, "sent"));
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(...parts);
}

function stacked(layers) {
  const sums = [];
  for (const layer of layers) sums.push(layer.map((rate, at) => rate + (sums.at(-1)?.[at] ?? 0)));
  return sums;
}

function niceTop(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}
