// One trial: its figures, what was done to every layer, the spectra, and every class.

const trialsHere = () => content.trials.map((trial, at) => ({ trial, at })).filter(({ trial }) =>
  !trial.failed && trial.network === state.network && !state.hidden.has(content.curves[trial.curve].label));

function trialName(trial, label) {
  const parts = [label || trial.method, trial.target, trial.repetition && `repetition ${trial.repetition}`, trial.seed && `seed ${trial.seed}`];
  return parts.filter(Boolean).join(" · ");
}

function openTrial(at) {
  if (at === undefined) return;
  state.trial = at;
  drawTrial();
  remember();
  $("trial").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth", block: "start" });
}

function stepTrial(by) {
  const here = trialsHere();
  const now = here.findIndex(({ at }) => at === state.trial);
  const next = here[(now + by + here.length) % here.length];
  if (!next) return;
  state.trial = next.at;
  drawTrial();
  remember();
}

function drawTrial() {
  const here = trialsHere();
  $("trial").hidden = !here.length;
  if (!here.length) return;
  if (!here.some(({ at }) => at === state.trial)) state.trial = here[0].at;
  $("picker").hidden = alone();
  $("trial-title").textContent = alone() ? "The compressed network" : "One trial";
  const select = $("trial-select");
  const groups = new Map();
  for (const { trial, at } of here) {
    const label = content.curves[trial.curve].label;
    if (!groups.has(label)) groups.set(label, make("optgroup", { label }));
    groups.get(label).append(make("option", { value: at }, trialName(trial, label)));
  }
  select.replaceChildren(...groups.values());
  select.value = state.trial;

  const trial = content.trials[state.trial];
  $("tiles").replaceChildren(...tilesOf(trial));
  const body = $("trial-body");
  for (const id of ["layers-chart", "spectra-chart", "classes-chart", "prediction-chart"]) if ($(id)) Plotly.purge($(id));
  const layers = block(trial.layers, "What each layer keeps", "layers-chart");
  const classes = block(trial.classes, "Accuracy of every class", "classes-chart");
  const spectra = block(trial.spectra, "Spectra", "spectra-chart");
  const prediction = block(trial.tradeoff, "Predicted trade-off", "prediction-chart");
  const left = [make("div", { class: "block scroll" }, stagesTable(trial))];
  const right = [layers, spectra, prediction];
  ((trial.layers && trial.layers.length > 11) || spectra || prediction ? left : right).push(classes); // where there is more room
  const columns = [left, right];
  body.replaceChildren(make("div", { class: "pair" }, columns.map((column) => column.filter(Boolean)).filter((column) => column.length).map((column) => make("div", { class: "column" }, column))));
  if (content.without.length) body.append(make("p", { class: "note" }, `Left out, to keep the page small: ${content.without.join(", ")} of the trials. They are in each trial's folder.`));
  if (trial.layers) drawLayers(trial);
  if (trial.classes) drawClasses(trial);
  if (trial.spectra) drawSpectra(trial);
  if (trial.tradeoff) drawPrediction(trial);
}

function block(data, title, id) {
  if (!data) return null;
  return make("div", { class: "block" }, make("h3", {}, title), make("div", { id: `${id}-keys` }), make("div", { class: "long" }, make("div", { id, class: "chart", role: "img", "aria-label": title })), make("div", { id: `${id}-more` }));
}

const lastStage = (trial) => (state.stage === "recovered" && trial.stages.recovered ? "recovered" : "compressed");

function tilesOf(trial) {
  const before = trial.stages.original || {};
  const after = trial.stages[lastStage(trial)];
  const tile = (value, ...under) => make("div", { class: "tile" }, make("b", {}, value), ...under.filter(Boolean).map((line) => make("span", {}, line)));
  const tiles = [];
  if (known(after.perplexity)) tiles.push(tile(significant(after.perplexity), "perplexity", known(before.perplexity) && `original ${significant(before.perplexity)}`));
  else if (known(after.top1)) {
    const change = known(before.top1) ? 100 * (after.top1 - before.top1) : null;
    tiles.push(tile(percent(after.top1), `top-1 ${STAGES[lastStage(trial)]}`, known(change) && `${points(change)} points, original ${percent(before.top1)}`));
  }
  if (known(after.agreement)) tiles.push(tile(percent(after.agreement), "agreement with the original", known(after.flips) && `${short(after.flips)} of ${short(after.examples)} decisions changed`));
  if (known(after.params_kept)) tiles.push(tile(percent(after.params_kept), "parameters kept", `${short(after.params)} of ${short(before.params)}`));
  if (known(after.macs_kept)) tiles.push(tile(percent(after.macs_kept), "MACs kept", `${short(after.macs)} of ${short(before.macs)}`));
  if (known(after.latency_kept)) tiles.push(tile(percent(after.latency_kept), "latency kept"));
  return tiles;
}

function stagesTable(trial) {
  const stages = ["original", "compressed", "recovered"].filter((stage) => trial.stages[stage]);
  const row = (label, show) => ({ label, show });
  const cost = (name, show) => (figures) => [show(figures[name]), known(figures[`${name}_kept`]) ? make("small", {}, `${percent(figures[`${name}_kept`])} kept`) : null];
  const interval = (name) => (figures) => {
    if (!known(figures[name])) return "–";
    const ends = figures[`${name}_interval`];
    return [percent(figures[name]), ends ? make("small", {}, `${(100 * ends[0]).toFixed(2)} – ${(100 * ends[1]).toFixed(2)}`) : null];
  };
  const rows = [
    row("Top-1", interval("top1")), row("Agreement", interval("agreement")), row("Top-5", (f) => percent(f.top5)),
    row("Decisions changed", (f) => short(f.flips)), row("KL, nats", (f) => nats(f.kl)), row("Loss, nats", (f) => nats(f.loss)),
    row("Perplexity", (f) => significant(f.perplexity)), row("Parameters", cost("params", short)),
    row("MACs", cost("macs", short)), row("Size in memory", cost("bytes", bytes)), row("File", (f) => bytes(f.file_bytes)),
  ].filter(({ show }) => stages.some((stage) => [show(trial.stages[stage])].flat()[0] !== "–"));
  const intervals = stages.some((stage) => trial.stages[stage].top1_interval);
  const titles = { original: "Original", compressed: "Compressed", recovered: "Recovered" };
  const made = tableOf([
    ["", (r) => r.label],
    ...stages.map((stage) => [titles[stage], (r) => r.show(trial.stages[stage]), { number: true }]),
  ], rows, "Figures of the trial");
  const where = [intervals && `Small print: ${percent(content.confidence, 0)} intervals by the bootstrap over examples.`, trial.folder && trial.folder !== "." && `Folder: ${trial.folder}`].filter(Boolean);
  return make("div", {}, made, where.length ? make("p", { class: "note" }, where.join(" ")) : null);
}

const LAYER = { name: 0, choice: 1, params: [2, 3], macs: [4, 5], error: 6 };

/** Room on the left for names of this length, at most two fifths of the chart. */
function leftFor(id, texts) {
  const width = $(id).clientWidth || 600;
  return Math.min(Math.max(40, 7.2 * Math.max(0, ...texts.map((text) => text.length)) + 14), 0.4 * width);
}

function clipped(id, texts) {
  const letters = Math.floor((leftFor(id, texts) - 13) / 7.2);
  return texts.map((text) => plain(text.length > letters ? `…${text.slice(1 - letters)}` : text));
}

/** A choice, or its first part, where it fits beside or inside a bar that fills `kept` percent of `room` pixels. */
function choiceThatFits(choice, kept, room) {
  for (const text of [choice, choice.split(",")[0]]) {
    const width = 6.4 * text.length + 8;
    if ((room * (100 - kept)) / 100 > width) return { text, inside: false };
    if ((room * kept) / 100 > width) return { text, inside: true };
  }
  return { text: "", inside: false };
}

function drawLayers(trial) {
  const cost = state.kept === "params" || state.kept === "bytes" ? "params" : "macs";
  const [before, after] = LAYER[cost];
  const rows = trial.layers;
  const names = rows.map((row) => content.names[row[LAYER.name]]);
  const kept = rows.map((row) => (row[before] ? (100 * row[after]) / row[before] : null));
  const hover = rows.map((row, at) => [
    `<b>${plain(names[at])}</b>`, plain(content.names[row[LAYER.choice]]),
    `${cost === "params" ? "parameters" : "MACs"}: ${short(row[before])} → ${short(row[after])}`,
    known(row[LAYER.error]) ? `predicted relative error: ${percent(row[LAYER.error])}` : null,
  ].filter(Boolean).join("<br>"));
  const bar = { type: "bar", orientation: "h", y: rows.map((_, at) => at), hovertext: hover, hovertemplate: "%{hovertext}<extra></extra>" };
  const room = ($("layers-chart").clientWidth || 600) - leftFor("layers-chart", names) - 24;
  const written = rows.map((row, at) => choiceThatFits(content.names[row[LAYER.choice]], kept[at] || 0, room));
  draw("layers-chart", [
    { ...bar, x: rows.map(() => 100), marker: { color: css("--track") }, name: "original" },
    { ...bar, x: kept, marker: { color: kept.map((value) => (value >= 100 ? css("--whole") : css("--accent"))) }, name: "kept" },
  ], {
    barmode: "overlay", bargap: 0.28, height: 24 * rows.length + 70, margin: { l: leftFor("layers-chart", names), r: 16, t: 4, b: 46 },
    xaxis: axisStyle(`${cost === "params" ? "parameters" : "MACs"} kept, %`, { range: [0, Math.max(100.01, ...kept)], tickvals: [0, 25, 50, 75, 100], fixedrange: true }),
    yaxis: axisStyle("", { autorange: "reversed", tickvals: rows.map((_, at) => at), ticktext: clipped("layers-chart", names), fixedrange: true, showgrid: false, automargin: false }),
    annotations: written.map(({ text, inside }, at) => ({
      y: at, x: Math.min(kept[at] || 0, 100), xanchor: inside ? "right" : "left", yanchor: "middle", showarrow: false, text: plain(text), xshift: inside ? -4 : 4,
      font: { size: 11.5, color: inside && kept[at] < 100 ? css("--accent-ink") : css("--ink") },
    })),
  });
  $("layers-chart-more").replaceChildren(make("details", {}, make("summary", {}, "As a table"), make("div", { class: "scroll" }, tableOf([
    ["Layer", (row) => content.names[row[LAYER.name]], { text: true }], ["Choice", (row) => content.names[row[LAYER.choice]], { text: true }],
    ["Parameters", (row) => `${short(row[2])} → ${short(row[3])}`, { number: true }], ["MACs", (row) => `${short(row[4])} → ${short(row[5])}`, { number: true }],
    ["Relative error", (row) => percent(row[LAYER.error]), { number: true }],
  ], rows, "Layers"))));
}

const CLASSES = 40; // drawn at most: those that lose most

function drawClasses(trial) {
  const [accuracy, agreement] = lastStage(trial) === "recovered" ? [5, 6] : [3, 4];
  const loss = (row) => (known(row[2]) && known(row[accuracy]) ? row[2] - row[accuracy] : 0);
  const rows = trial.classes.length > CLASSES ? [...trial.classes].sort((a, b) => loss(b) - loss(a)).slice(0, CLASSES) : trial.classes;
  const y = rows.map((_, at) => at);
  const names = rows.map((row) => content.names[row[0]]);
  const hover = rows.map((row, at) => [
    `<b>class ${plain(names[at])}</b>, ${short(row[1])} examples`, `original ${percent(row[2])}`, `${STAGES[lastStage(trial)]} ${percent(row[accuracy])}`, `agreement ${percent(row[agreement])}`,
  ].join("<br>"));
  const marks = (at, name, symbol, colour, open) => ({
    x: rows.map((row) => scaled({ unit: "%" }, row[at])), y, mode: "markers", name, hovertext: hover, hovertemplate: "%{hovertext}<extra></extra>", cliponaxis: false,
    marker: { symbol, size: 9, color: colour, line: { width: open ? 2 : 0, color: colour } },
  });
  const lines = rows.flatMap((row, at) => (known(row[2]) && known(row[accuracy]) ? [[100 * row[2], at], [100 * row[accuracy], at], [null, null]] : []));
  draw("classes-chart", [
    { x: lines.map((p) => p[0]), y: lines.map((p) => p[1]), mode: "lines", line: { color: css("--soft"), width: 1.5 }, hoverinfo: "skip", name: "change" },
    marks(agreement, "agreement", "line-ns-open", css("--c1"), true), marks(2, "original", "circle-open", css("--soft"), true),
    marks(accuracy, STAGES[lastStage(trial)], "circle", css("--accent"), false),
  ], {
    height: Math.max(160, 24 * rows.length + 60), margin: { l: leftFor("classes-chart", names), r: 12, t: 6, b: 46 }, hovermode: "closest",
    xaxis: axisStyle("of the class's examples, %", { fixedrange: true }),
    yaxis: axisStyle("", { tickvals: y, ticktext: clipped("classes-chart", names), fixedrange: true, automargin: false, range: [rows.length - 0.5, -0.5] }),
  });
  $("classes-chart-keys").replaceChildren(keys([[{ hue: "--soft", symbol: "circle-open" }, "Original"], [{ hue: "--accent", symbol: "circle" }, capital(STAGES[lastStage(trial)])], [{ hue: "--c1", symbol: "line" }, "Agreement"]]));
  const more = [];
  if (rows.length < trial.classes.length) more.push(make("p", { class: "note" }, `The ${rows.length} of ${trial.classes.length} classes that lose most.`));
  more.push(make("details", {}, make("summary", {}, "As a table"), make("div", { class: "scroll" }, tableOf([
    ["Class", (row) => content.names[row[0]], { text: true }], ["Examples", (row) => short(row[1]), { number: true }], ["Original", (row) => percent(row[2]), { number: true }],
    ["Compressed", (row) => percent(row[3]), { number: true }], ["Agreement", (row) => percent(row[4]), { number: true }],
    ...(trial.stages.recovered ? [["Recovered", (row) => percent(row[5]), { number: true }], ["Agreement", (row) => percent(row[6]), { number: true }]] : []),
  ], trial.classes, "Classes"))));
  $("classes-chart-more").replaceChildren(...more);
}

function drawSpectra(trial) {
  const ranks = new Map((trial.layers || []).map((row) => [row[LAYER.name], (/\brank (\d+)/.exec(content.names[row[LAYER.choice]]) || [])[1]]));
  const entries = Object.entries(trial.spectra);
  const wide = entries.some(([, pairs]) => pairs.some((pair) => pair[1] < 0.1));
  draw("spectra-chart", entries.flatMap(([place, pairs], at) => {
    const colour = css(`--c${at % HUES}`);
    const name = plain(content.names[place]);
    const rank = Number(ranks.get(Number(place)));
    const chosen = pairs.find((pair) => pair[0] >= rank);
    const line = { x: pairs.map((p) => p[0]), y: pairs.map((p) => p[1]), mode: "lines", name, line: { color: colour, width: 1.5 }, hovertemplate: `<b>${name}</b><br>%{x}: %{y:.3g}<extra></extra>` };
    const mark = chosen && { x: [chosen[0]], y: [chosen[1]], mode: "markers", name, marker: { color: colour, size: 8 }, hovertemplate: `<b>${name}</b><br>rank ${rank}<extra></extra>` };
    return mark ? [line, mark] : [line];
  }), {
    height: 340, hovermode: "closest", xaxis: axisStyle("singular value, by size"), yaxis: axisStyle("relative to the largest", { type: "log", exponentformat: "power", ...(wide ? { dtick: 1 } : { tickvals: [1, 0.7, 0.5, 0.3, 0.2, 0.1], ticktext: ["1", "0.7", "0.5", "0.3", "0.2", "0.1"] }) }),
  });
  $("spectra-chart-more").replaceChildren(make("p", { class: "note" }, "Singular values of the original weights, one line per layer; the dot is the rank that was chosen."));
}

function drawPrediction(trial) {
  const kept = state.kept === "params" ? 0 : 1;
  const rows = trial.tradeoff.filter((row) => known(row[kept])).sort((a, b) => a[kept] - b[kept]);
  const axis = axisOf(kept ? "macs" : "params");
  const after = trial.stages.compressed;
  const traces = [{ x: rows.map((row) => 100 * row[kept]), y: rows.map((row) => row[2]), mode: "lines+markers", name: "predicted", line: { color: css("--accent"), width: 2 }, marker: { size: 6 },
    hovertemplate: `${axis.label}: %{x:.2f} %<br>predicted KL: %{y:.4f} nats<extra></extra>` }];
  if (known(after.kl) && known(after[`${axis.name}_kept`])) {
    traces.push({ x: [100 * after[`${axis.name}_kept`]], y: [after.kl], mode: "markers", name: "measured", marker: { size: 10, color: css("--c1") }, hovertemplate: `measured on the test data<br>${axis.label}: %{x:.2f} %<br>KL: %{y:.4f} nats<extra></extra>` });
  }
  draw("prediction-chart", traces, { height: 340, hovermode: "closest", xaxis: axisStyle(`${axis.label}, %`), yaxis: axisStyle("KL(original ‖ compressed), nats", { rangemode: "tozero" }) });
  $("prediction-chart-more").replaceChildren(make("p", { class: "note" }, "The line is predicted from calibration data; the other dot is this network, measured on the test data."));
}
