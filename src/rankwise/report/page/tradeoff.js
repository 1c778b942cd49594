// The trade-off: one line per method with its confidence band, published figures hollow, the Pareto front.

/** Of [kept, quality] pairs those that no other beats; the same rule as rankwise.report.curves.pareto. */
function paretoFront(pairs, moreIsBetter) {
  const front = [];
  const better = (a, b) => (moreIsBetter ? a > b : a < b);
  for (const pair of [...pairs].sort((a, b) => a[0] - b[0] || (moreIsBetter ? b[1] - a[1] : a[1] - b[1]))) {
    if (!front.length || better(pair[1], front[front.length - 1][1])) front.push(pair);
  }
  return front;
}

function pointsOf(curve) {
  return curve.points[state.stage].filter((point) => known(meanOf(point, state.kept)) && known(meanOf(point, state.quality)));
}

function hoverOf(curve, point) {
  const [, low, high] = point.figures[state.quality];
  const quality = axisOf(state.quality);
  const lines = [`<b>${plain(curve.label)}</b>`];
  for (const axis of content.kept) {
    if (point.figures[axis.name]) lines.push(`${axis.label}: ${percent(meanOf(point, axis.name))}`);
  }
  for (const axis of content.qualities) {
    if (point.figures[axis.name]) lines.push(`${plain(axis.label)}: ${shown(axis, meanOf(point, axis.name))}`);
  }
  if (known(low)) lines.push(`${percent(content.confidence, 0)} interval: ${shown(quality, low)} to ${shown(quality, high)}`);
  lines.push(point.trials.length === 1 ? "one trial" : `mean of ${point.trials.length} repetitions`);
  return lines.join("<br>");
}

const USUAL = { band: 0.16, Pareto: 0.18 }; // opacity

function bandOf(curve, colour) {
  const quality = axisOf(state.quality);
  const here = pointsOf(curve).filter((point) => known(point.figures[state.quality][1]));
  if (here.length < 2) return null;
  const x = here.map((point) => 100 * meanOf(point, state.kept));
  const side = (at) => here.map((point) => scaled(quality, point.figures[state.quality][at]));
  return {
    x: [...x, ...[...x].reverse()], y: [...side(2), ...side(1).reverse()], fill: "toself", mode: "lines", name: `band of ${plain(curve.label)}`,
    line: { width: 0 }, fillcolor: colour, opacity: USUAL.band, hoverinfo: "skip",
  };
}

function lineOf(curve) {
  const style = look(curve.label);
  const quality = axisOf(state.quality);
  const here = pointsOf(curve);
  return {
    x: here.map((point) => 100 * meanOf(point, state.kept)), y: here.map((point) => scaled(quality, meanOf(point, state.quality))),
    customdata: here.map((point) => point.trials[0]), hovertext: here.map((point) => hoverOf(curve, point)),
    hovertemplate: "%{hovertext}<extra></extra>", name: plain(curve.label), mode: "lines+markers", cliponaxis: false,
    line: { color: css(style.hue), width: 2, dash: style.dash }, marker: { color: css(style.hue), size: 7, symbol: style.symbol },
  };
}

/** A published row's value on the chosen quality axis. */
function publishedValue(row) {
  if (state.quality === "top1") return row.top1;
  if (state.quality === "agreement") return row.agreement;
  return state.quality === "change" && known(row.loss) ? -row.loss : null;
}

function publishedTraces() {
  const quality = axisOf(state.quality);
  const rows = publishedShown().filter((row) => row.measure === state.kept && known(row.kept) && known(publishedValue(row)));
  return [...new Set(rows.map((row) => row.label))].map((label) => {
    const own = rows.filter((row) => row.label === label).sort((a, b) => a.kept - b.kept);
    const style = publishedLook(label);
    const hover = (row) => [
      `<b>${plain(label)}</b>, published`, `${axisOf(row.measure).label}: ${percent(row.kept)}`,
      `${plain(quality.label)}: ${shown(quality, publishedValue(row))}`, known(row.loss) ? `points of top-1 lost: ${row.loss.toFixed(2)}` : null,
      row.retrained === null ? null : row.retrained ? "retrained afterwards" : "not retrained", row.source ? plain(row.source) : null,
    ].filter(Boolean).join("<br>");
    return {
      x: own.map((row) => 100 * row.kept), y: own.map((row) => scaled(quality, publishedValue(row))), mode: own.length > 2 ? "lines+markers" : "markers", name: `published: ${plain(label)}`,
      line: { color: css(style.hue), width: 1, dash: "dot" },
      hovertext: own.map(hover), hovertemplate: "%{hovertext}<extra></extra>", cliponaxis: false,
      marker: { symbol: style.symbol, size: 10, color: css(style.hue), line: { width: 2, color: css(style.hue) } },
    };
  });
}

function drawTradeoff() {
  const section = $("tradeoff");
  const enough = content.trials.filter((trial) => !trial.failed).length > 1 || content.published.length;
  section.hidden = !enough || !curvesHere().length || !axisOf(state.quality);
  if (section.hidden) return;
  drawLegend();
  const quality = axisOf(state.quality);
  const lines = curvesShown().filter((curve) => pointsOf(curve).length);
  const traces = [];
  if (state.bands) traces.push(...lines.map((curve) => bandOf(curve, css(look(curve.label).hue))).filter(Boolean));
  const pairs = lines.flatMap((curve) => pointsOf(curve).map((point) => [meanOf(point, state.kept), meanOf(point, state.quality)]));
  const front = paretoFront(pairs, quality.more_is_better);
  if (state.front && lines.length > 1) {
    traces.push({
      x: front.map((pair) => 100 * pair[0]), y: front.map((pair) => scaled(quality, pair[1])), mode: "lines", name: "Pareto front", hoverinfo: "skip",
      line: { color: css("--ink"), width: 5, shape: "hv" }, opacity: USUAL.Pareto,
    });
  }
  traces.push(...lines.map(lineOf), ...publishedTraces());
  const original = scaled(quality, content.networks[state.network].original[state.quality]);
  const level = state.quality === "change" ? 0 : state.quality === "agreement" ? null : original;
  const layout = {
    hovermode: "closest", margin: { l: 60, r: 14, t: 14, b: 50 },
    xaxis: axisStyle(`${axisOf(state.kept).label}, %`, { ticksuffix: "" }), yaxis: axisStyle(titleOf(quality)),
    uirevision: `${state.network} ${state.kept} ${state.quality} ${state.stage} ${state.near}`,
  };
  if (known(level)) {
    layout.shapes = [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: level, y1: level, line: { color: css("--soft"), width: 1, dash: "dot" } }];
    layout.annotations = [{
      xref: "paper", x: 0, y: level, xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 12, color: css("--soft") },
      text: state.quality === "change" ? "original" : `original ${shown(quality, content.networks[state.network].original[state.quality])}`,
    }];
  }
  if (state.near) layout.yaxis.range = nearRange(quality, level);
  draw("tradeoff-chart", traces, layout).then((chart) => {
    if (!chart.listens) chart.on("plotly_click", (event) => openTrial(event.points[0].customdata));
    chart.listens = true;
  });
  $("tradeoff-note").textContent = noteOf(lines);
  $("points").replaceChildren(pointsTable(lines));
}

/** The last ten points of a rate, or the better half of another figure. */
function nearRange(quality, level) {
  if (quality.unit === "%") return [(known(level) ? level : 100) - 10, Math.min(100.5, (known(level) ? level : 100) + 1)];
  if (quality.unit === "points") return [-10, 1];
  const values = curvesShown().flatMap((curve) => pointsOf(curve).map((point) => meanOf(point, state.quality))).sort((a, b) => a - b);
  return values.length ? [0, values[Math.floor(values.length / 2)] * 1.1] : undefined;
}

function noteOf(lines) {
  const counts = lines.flatMap((curve) => pointsOf(curve).map((point) => point.trials.length));
  const most = Math.max(0, ...counts);
  const parts = [];
  if (most > 1) parts.push(`Means over up to ${most} repetitions; bands are ${percent(content.confidence, 0)} intervals of the mean by Student's t.`);
  if (state.front && lines.length > 1) parts.push("The wide grey line is the Pareto front of the methods shown.");
  if (publishedTracesExist()) parts.push("Hollow markers are published figures, of other training runs.");
  if (!lines.length) parts.push(curvesShown().length ? `No trial has ${axisOf(state.quality).label} over ${axisOf(state.kept).label} ${STAGES[state.stage]}.` : "No method is switched on.");
  parts.push("A click on a point opens its trial below.");
  return parts.join(" ");
}

const publishedTracesExist = () => publishedShown().some((row) => row.measure === state.kept && known(publishedValue(row)));

function pointsTable(lines) {
  const kept = content.kept.filter((axis) => lines.some((curve) => curve.points[state.stage].some((point) => point.figures[axis.name])));
  const qualities = content.qualities.filter((axis) => lines.some((curve) => curve.points[state.stage].some((point) => point.figures[axis.name])));
  const cell = (axis) => ({ point }) => {
    const figures = point.figures[axis.name];
    if (!figures) return "–";
    const spread = known(figures[1]) ? make("small", {}, `${shown(axis, figures[1])} to ${shown(axis, figures[2])}`) : null;
    return [shown(axis, figures[0]), spread];
  };
  const rows = lines.flatMap((curve) => curve.points[state.stage].map((point) => ({ curve, point })));
  return tableOf([
    ["Method", ({ curve }) => named(look(curve.label), true, curve.label), { text: true }],
    ...kept.map((axis) => [capital(axis.label), ({ point }) => percent(meanOf(point, axis.name)), { number: true }]),
    ...qualities.map((axis) => [capital(axis.label), cell(axis), { number: true }]),
    ["Repetitions", ({ point }) => String(point.trials.length), { number: true }],
  ], rows, "The points of the chart");
}

// --- the legend is the filter by method

function drawLegend() {
  const wanted = $("find").value.trim().toLowerCase();
  const fits = (label) => label.toLowerCase().includes(wanted);
  const row = (label, style, line, absent) => make("label", { class: absent ? "absent" : null, title: absent ? "no point on these axes" : null, onmouseenter: () => emphasise(label), onmouseleave: () => emphasise(null), onfocusin: () => emphasise(label), onfocusout: () => emphasise(null) },
    make("input", { type: "checkbox", "data-label": label, onchange: (event) => toggle(label, event.target.checked) }), key(style, line), make("span", {}, label));
  const ours = curvesHere().filter((curve) => fits(curve.label)).map((curve) => row(curve.label, look(curve.label), true, !pointsOf(curve).length));
  const others = [...new Set(publishedHere().map((row) => row.label))].filter(fits).map((label) =>
    row(label, publishedLook(label), false, !publishedHere().some((r) => r.label === label && r.measure === state.kept && known(publishedValue(r)))));
  const list = $("legend");
  const focused = document.activeElement && list.contains(document.activeElement) ? document.activeElement.dataset.label : null;
  list.replaceChildren(...(others.length ? [make("h3", {}, "Measured here")] : []), ...ours, ...(others.length ? [make("h3", {}, "Published"), ...others] : []));
  for (const input of list.querySelectorAll("input")) {
    input.checked = !state.hidden.has(input.dataset.label);
    if (input.dataset.label === focused) input.focus();
  }
}

/** Let the traces of `label` stand out; null lets all be equal again. */
function emphasise(label) {
  const chart = $("tradeoff-chart");
  const name = label === null ? null : plain(label);
  const own = chart.data.map((trace) => [name, `band of ${name}`, `published: ${name}`].includes(trace.name));
  const usual = chart.data.map((trace) => USUAL[trace.name.split(" ")[0]] || 1);
  const faint = label !== null && own.includes(true);
  Plotly.restyle(chart, { opacity: usual.map((value, at) => (faint && !own[at] ? 0.12 * value : value)) });
}

function toggle(label, on) {
  if (on) state.hidden.delete(label);
  else state.hidden.add(label);
  update();
}

function toggleAll(on) {
  const labels = [...curvesHere().map((curve) => curve.label), ...publishedHere().map((row) => row.label)];
  const wanted = $("find").value.trim().toLowerCase();
  for (const label of labels.filter((name) => name.toLowerCase().includes(wanted))) {
    if (on) state.hidden.delete(label);
    else state.hidden.add(label);
  }
  update();
}
