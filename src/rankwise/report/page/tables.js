// The table at fixed loss, time and memory, failures, and how the results were made.

function lossRows() {
  const at = content.deltas.indexOf(state.delta);
  const ours = curvesShown().map((curve) => {
    const best = curve.best[state.stage][state.kept][at];
    return { curve, label: curve.label, style: look(curve.label), point: best === null ? null : curve.points[state.stage][best] };
  });
  const reduction = (row) => (row.point ? 1 - meanOf(row.point, state.kept) : -1);
  const found = ours.filter((row) => row.point).sort((a, b) => reduction(b) - reduction(a));
  const byLabel = new Map();
  for (const row of publishedShown()) {
    if (row.measure !== state.kept || !known(row.kept) || !known(row.loss) || row.loss > state.delta + 1e-9) continue;
    const label = row.label;
    if (!byLabel.has(label) || row.kept < byLabel.get(label).kept) byLabel.set(label, row);
  }
  const published = [...byLabel].map(([label, row]) => ({ label, row, style: publishedLook(label) })).sort((a, b) => a.row.kept - b.row.kept);
  return [...found, ...published.map((row, index) => ({ ...row, first: index === 0 }))];
}

/** What a published network keeps on another axis: the row of the same network, as far as its figures tell. */
function keptOfPublished(row, measure) {
  const same = ["label", "loss", "top1", "source", "retrained"];
  return (row.measure === measure ? row : content.published.find((other) => other.measure === measure && same.every((name) => other[name] === row[name])))?.kept;
}

function drawLoss() {
  const any = curvesHere().some((curve) => curve.points[state.stage].some((point) => known(meanOf(point, "change"))));
  $("loss").hidden = $("tradeoff").hidden || !any;
  if ($("loss").hidden) return;
  const costs = content.kept.filter((axis) => axis.name === state.kept || (axis.name !== "bytes" && curvesHere().some((c) => c.points[state.stage].some((p) => p.figures[axis.name]))));
  costs.sort((a, b) => (b.name === state.kept) - (a.name === state.kept));
  const removed = (axis) => ({ point, row }) => {
    if (row) return percent(1 - (keptOfPublished(row, axis.name) ?? NaN));
    return point ? percent(1 - (meanOf(point, axis.name) ?? NaN)) : "–";
  };
  const rows = lossRows();
  if (!rows.length) $("loss-table").replaceChildren(make("p", {}, "No measured point is within this loss."));
  else $("loss-table").replaceChildren(tableOf([
    ["Method", ({ label, style, curve, point, row }) => named(style, Boolean(curve), label), { text: true }],
    ...costs.map((axis) => [`${capital(axis.label.replace(" kept", ""))} removed`, removed(axis), { number: true }]),
    ["Top-1", ({ point, row }) => percent(row ? row.top1 : point && meanOf(point, "top1")), { number: true }],
    ["Change, points", ({ point, row }) => points(row ? -row.loss : point && meanOf(point, "change")), { number: true }],
    ["Agreement", ({ point, row }) => percent(row ? row.agreement : point && meanOf(point, "agreement")), { number: true }],
    ["Trained after", ({ point, row }) => (row ? (row.retrained === null ? "–" : row.retrained ? "yes" : "no") : point ? (state.stage === "recovered" ? "recovery" : "no") : "–"), { number: true }],
    ["Repetitions", ({ point }) => (point ? String(point.trials.length) : "–"), { number: true }],
  ], rows, `Largest reduction of ${state.kept} within ${state.delta} points`, { rowClass: ({ first }) => (first ? "apart" : null) }));
  $("loss-note").textContent = `For each method the measured point that removes most ${axisOf(state.kept).label.replace(" kept", "")} while its mean top-1 falls by at most ${state.delta} points; `
    + `nothing is interpolated.${lossMisses()}`;
  $("loss-sources").replaceChildren(...sourcesOf(rows.filter(({ row }) => row).map(({ row }) => row)));
}

/** Where published rows were read, each source once, with the rows out of it. */
function sourcesOf(rows) {
  const sources = new Map();
  for (const row of rows) if (row.source) sources.set(row.source, [...(sources.get(row.source) || []), row.label]);
  return [...sources].map(([source, labels]) => make("p", { class: "note" }, `Published: ${labels.join("; ")}. Source: ${source}`));
}

/** The methods without a point within the loss, with the least that each loses. */
function lossMisses() {
  const at = content.deltas.indexOf(state.delta);
  const least = (curve) => Math.max(...curve.points[state.stage].map((point) => meanOf(point, "change")).filter(known));
  const misses = curvesShown().filter((curve) => curve.best[state.stage][state.kept][at] === null && Number.isFinite(least(curve)));
  const named = misses.map((curve) => `${curve.label} (${points(least(curve))})`);
  return named.length ? ` No point within it, and the least change measured: ${named.join(", ")}.` : "";
}

/** The smallest loss of the choices within which some method has a point. */
function firstDelta() {
  const at = content.deltas.findIndex((_, index) => curvesHere().some((curve) => curve.best[state.stage][state.kept][index] !== null));
  return content.deltas[Math.max(0, at)];
}

const FIRST = ["calibrate", "decompose", "allocate", "build"];
const LAST = ["recover", "evaluate"];

function drawSpent() {
  const rows = curvesShown().filter((curve) => Object.keys(curve.seconds).length);
  $("spent").hidden = !rows.length;
  if (!rows.length) return;
  const others = rows.flatMap((curve) => Object.keys(curve.seconds)).filter((step) => ![...FIRST, ...LAST].includes(step));
  const steps = [...new Set([...FIRST, ...others, ...LAST])].filter((step) => rows.some((curve) => curve.seconds[step] > 0));
  const total = (curve) => Object.values(curve.seconds).reduce((sum, value) => sum + (value || 0), 0);
  const names = rows.map((curve) => curve.label);
  const places = rows.map((_, at) => at);
  const measured = rows.filter((curve) => known(curve.peak_bytes));
  $("spent-keys").replaceChildren(keys(steps.map((step, at) => [{ hue: `--c${at % HUES}`, symbol: "square" }, capital(step)])));
  draw("spent-chart", steps.map((step, at) => ({
    type: "bar", orientation: "h", name: plain(step), y: places, x: rows.map((curve) => curve.seconds[step] || 0), marker: { color: css(`--c${at % HUES}`), line: { color: css("--card"), width: 1 } },
    hovertext: rows.map((curve) => `<b>${plain(curve.label)}</b><br>${plain(step)}: ${seconds(curve.seconds[step])} of ${seconds(total(curve))}${known(curve.peak_bytes) ? `<br>peak memory: ${bytes(curve.peak_bytes)}` : ""}`),
    hovertemplate: "%{hovertext}<extra></extra>",
  })), {
    barmode: "stack", bargap: 0.35, height: 28 * rows.length + 90, margin: { l: leftFor("spent-chart", names), r: measured.length ? 84 : 16, t: 26, b: 46 },
    annotations: [...measured.map((curve) => ({ y: rows.indexOf(curve), text: bytes(curve.peak_bytes) })), ...(measured.length ? [{ yref: "paper", y: 1, yanchor: "bottom", text: "peak" }] : [])].map((one) => ({
      ...one, xref: "paper", x: 1, xanchor: "right", xshift: 76, showarrow: false, font: { size: 12, color: css("--soft") },
    })),
    xaxis: axisStyle(content.trials.length > 1 ? "mean time per trial, s" : "time, s", { fixedrange: true }),
    yaxis: axisStyle("", { range: [rows.length - 0.5, -0.5], tickvals: places, ticktext: clipped("spent-chart", names), fixedrange: true, showgrid: false, automargin: false }),
  });
  $("spent-table").replaceChildren(tableOf([
    ["Method", (curve) => named(look(curve.label), true, curve.label), { text: true }],
    ...steps.map((step) => [capital(step), (curve) => seconds(curve.seconds[step]), { number: true }]),
    ["Total", (curve) => seconds(total(curve)), { number: true }],
    ...(measured.length ? [["Peak memory", (curve) => bytes(curve.peak_bytes), { number: true }]] : []),
  ], rows, "Mean time per trial, and largest peak memory"));
}

function drawFailures() {
  const failed = content.trials.filter((trial) => trial.failed);
  const unreadable = content.unreadable;
  $("failures").hidden = !failed.length && !unreadable.length;
  const parts = [];
  if (failed.length) {
    const alike = new Map(); // repetitions fail alike
    for (const trial of failed) {
      const same = JSON.stringify([trial.method, trial.network, trial.target, trial.failed]);
      alike.set(same, [...(alike.get(same) || []), trial]);
    }
    parts.push(make("p", {}, failed.length === 1 ? "One trial failed." : `${failed.length} trials failed.`), make("div", { class: "scroll" }, tableOf([
      ["Method", ([trial]) => trial.method || "–", { text: true }], ["Network", ([trial]) => content.networks[trial.network].label, { text: true }], ["Kept", ([trial]) => trial.target || "–"],
      ["Trials", (trials) => String(trials.length), { number: true }],
      ["Reason", (trials) => [trials[0].failed, make("small", {}, trials.map((trial) => trial.folder).join(", "))], { text: true }],
    ], [...alike.values()], "Failed trials", { stack: true })));
  }
  if (unreadable.length) {
    parts.push(make("p", {}, unreadable.length === 1 ? "One file could not be read and is left out." : `${unreadable.length} files could not be read and are left out.`),
      make("div", { class: "scroll" }, tableOf([["File", (row) => row[0], { text: true }], ["Reason", (row) => row[1], { text: true }]], unreadable, "Unreadable files", { stack: true })));
  }
  $("failures-body").replaceChildren(...parts);
}

function drawMade() {
  const made = content.made;
  const entries = [
    ["Hardware", made.hardware], ["Weights", made.weights], ["Calibration", made.calibration], ["Ran", made.times.length ? [made.times.map(moment).join(" to ")] : []],
    ...Object.entries(made.versions),
  ].filter(([, values]) => values.length);
  const command = made.commands.length > 1 ? "Commands" : "Command";
  $("made").hidden = !made.commands.length && !entries.length;
  const several = (values) => (values.length > 5 ? `${values.slice(0, 5).join("; ")}; and ${values.length - 5} more` : values.join("; "));
  $("made-body").replaceChildren(
    ...(made.commands.length ? [make("h3", {}, command), make("pre", { tabindex: "0" }, made.commands.slice(0, 20).join("\n") + (made.commands.length > 20 ? `\n... and ${made.commands.length - 20} more` : ""))] : []),
    make("dl", {}, entries.flatMap(([name, values]) => [make("dt", {}, name), make("dd", {}, several(values))])));
}
