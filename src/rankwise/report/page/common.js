"use strict";
// Helpers that every part of the page uses. User-supplied text only ever becomes a text node, or passes `plain` on its way into plotly.

let content = null; // what rankwise.report.content made
const state = {
  network: 0, stage: null, kept: "params", quality: null, delta: null,
  hidden: new Set(), bands: true, front: true, near: false, trial: 0,
};
const STAGES = { compressed: "as compressed", recovered: "after recovery" };

const $ = (id) => document.getElementById(id);

/** An element with attributes and children; a child that is a string becomes text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Text for plotly, which reads some HTML: its own tags cannot come out of it. */
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

const known = (value) => typeof value === "number" && Number.isFinite(value);
const percent = (value, digits = 2) => (known(value) ? `${(100 * value).toFixed(digits)} %` : "–");
const points = (value) => (known(value) ? `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value).toFixed(2)}` : "–");
const nats = (value) => (known(value) ? value.toFixed(4) : "–");
const significant = (value) => (known(value) ? String(Number(value.toPrecision(3))) : "–");

/** A count with three digits and a unit, as the command line writes it: 40.6M. */
function short(value) {
  if (!known(value)) return "–";
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (Math.abs(value) >= size) return `${Number((value / size).toPrecision(3))}${unit}`;
  }
  return significant(value);
}

function seconds(value) {
  if (!known(value)) return "–";
  if (value >= 3600) return `${(value / 3600).toFixed(1)} h`;
  if (value >= 60) return `${(value / 60).toFixed(1)} min`;
  return `${value < 10 ? value.toFixed(2) : value.toFixed(1)} s`;
}

function bytes(value) {
  if (!known(value)) return "–";
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (value >= size) return `${Number((value / size).toPrecision(3))} ${unit}`;
  }
  return `${value} B`;
}

/** A time as it is written in files, for people. */
const moment = (text) => text.replace(/^(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(:\d\d)?(\.\d+)?(Z|\+00:00)$/, "$1 $2 UTC");

/** A figure on an axis, as text with its unit. */
function shown(axis, value) {
  if (!known(value)) return "–";
  if (axis.unit === "%") return percent(value);
  if (axis.unit === "points") return points(value);
  return axis.unit === "nats" ? `${nats(value)} nats` : significant(value);
}

const axisOf = (name) => [...content.kept, ...content.qualities].find((axis) => axis.name === name);
const scaled = (axis, value) => (known(value) && axis.unit === "%" ? 100 * value : value);
const titleOf = (axis) => (axis.unit ? `${axis.label}, ${axis.unit}` : axis.label);
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const meanOf = (point, name) => (point.figures[name] ? point.figures[name][0] : null);

/** Whether this is the page of one compression. */
const alone = () => content.trials.length === 1 && !content.expected;

/** The curves of the chosen network, and those of them that are not switched off. */
const curvesHere = () => content.curves.filter((curve) => curve.network === state.network);
const curvesShown = () => curvesHere().filter((curve) => !state.hidden.has(curve.label));
const publishedHere = () => content.published.filter((row) => row.networks.includes(state.network));
const publishedShown = () => publishedHere().filter((row) => !state.hidden.has(row.label));

// --- looks: a hue, a symbol and a dash per method, the same in every chart of a network and in both themes

const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "x"];
const DASHES = ["solid", "dash", "dot"];
const HUES = 7; // --c0 .. --c6 of the style sheet: distinct for colour-blind eyes, 3:1 against the page

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function look(label) {
  const labels = curvesHere().map((curve) => curve.label);
  const at = labels.indexOf(label);
  const turn = Math.floor(at / HUES);
  return { hue: `--c${at % HUES}`, symbol: SYMBOLS[(at + turn) % SYMBOLS.length], dash: DASHES[turn % DASHES.length] };
}

function publishedLook(label) {
  const labels = [...new Set(content.published.map((row) => row.label))];
  const method = content.published.find((row) => row.label === label).method.toLowerCase().split(/[\s,-]/)[0];
  const ours = curvesHere().find((curve) => curve.method === method);
  return { hue: ours ? look(ours.label).hue : "--ink", symbol: `${SYMBOLS[labels.indexOf(label) % SYMBOLS.length]}-open` };
}

const PATHS = {
  circle: "M15 3.2a3.8 3.8 0 1 0 .01 0z", square: "M11.5 3.5h7v7h-7z", diamond: "M15 2.2l4.8 4.8-4.8 4.8-4.8-4.8z",
  "triangle-up": "M15 2.4l4.6 8h-9.2z", "triangle-down": "M15 11.6l4.6-8h-9.2z", x: "M12.2 2.6L15 5.4l2.8-2.8 1.6 1.6L16.6 7l2.8 2.8-1.6 1.6L15 8.6l-2.8 2.8-1.6-1.6L13.4 7l-2.8-2.8z", line: "M15 2V12", cross: "M13.5 2.8h3v2.7h2.7v3h-2.7v2.7h-3V8.5h-2.7v-3h2.7z",
};

/** The sample of a line and its marker that stands beside a name. */
function key(style, line) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", "key");
  svg.setAttribute("viewBox", "0 0 30 14");
  svg.setAttribute("aria-hidden", "true");
  const open = style.symbol.endsWith("-open");
  const add = (d, fill, dash) => {
    const path = document.createElementNS(space, "path");
    path.setAttribute("d", d);
    path.setAttribute("style", `stroke: var(${style.hue}); fill: ${fill}; stroke-width: ${fill === "none" ? 1.8 : 0}`);
    if (dash) path.setAttribute("stroke-dasharray", dash);
    svg.append(path);
  };
  if (line) add("M1 7H29", "none", { dash: "6 4", dot: "2 3" }[style.dash]);
  add(PATHS[style.symbol.replace("-open", "")], open || style.symbol === "line" ? "none" : `var(${style.hue})`);
  return svg;
}

/** A name with its sample before it, and small print under it. */
const named = (style, line, label, small) => make("span", { class: "named" }, key(style, line), make("span", {}, label, small ? make("small", {}, small) : null));

/** What the colours or symbols of a chart mean: [look, text] pairs. */
const keys = (entries) => make("p", { class: "keys" }, entries.map(([style, text]) => make("span", {}, key(style, false), text)));

// --- tables and charts

/** A table; a column is [title, cell(row), {number, text}], a cell a string, a node or several. `stack`: one under another on a phone. */
function tableOf(columns, rows, caption, { rowClass = () => null, stack = false } = {}) {
  const kind = (options = {}) => ({ class: options.number ? "number" : options.text ? "text" : null });
  return make("table", { "aria-label": caption, class: stack ? "stack" : null },
    make("thead", {}, make("tr", {}, columns.map(([title, , options]) => make("th", { scope: "col", ...kind(options) }, title)))),
    make("tbody", {}, rows.map((row) =>
      make("tr", { class: rowClass(row) }, columns.map(([title, cell, options]) =>
        make("td", { ...kind(options), "data-title": title }, stack ? make("div", {}, cell(row)) : cell(row)))))));
}

function axisStyle(title, more = {}) {
  return {
    title: { text: title, font: { size: 13, color: css("--soft") }, standoff: 10 }, tickfont: { size: 12, color: css("--soft") },
    gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, automargin: true, ...more,
  };
}

/** Draw `traces` into the element `id`; plotly compares them with what is there. */
function draw(id, traces, layout) {
  const font = getComputedStyle(document.body).fontFamily;
  return Plotly.react($(id), traces, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, dragmode: "zoom",
    font: { family: font, size: 13, color: css("--ink") }, margin: { l: 56, r: 12, t: 10, b: 48 },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { family: font, size: 13, color: css("--ink") }, align: "left" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent") }, ...layout,
  }, {
    displaylogo: false, responsive: true, displayModeBar: matchMedia("(hover: hover) and (min-width: 861px)").matches ? "hover" : false,
    modeBarButtons: [layout.hovermode === "closest" && !(layout.xaxis || {}).fixedrange ? ["resetScale2d", "toImage"] : ["toImage"]],
    toImageButtonOptions: { format: "svg", filename: `rankwise-${id}` },
  });
}
