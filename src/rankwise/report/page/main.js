// Starting, the controls, what the address remembers, and the live mode.

async function inflate(text) {
  const packed = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

function complain(text) {
  $("message").textContent = text;
  $("message").hidden = false;
}

// --- theme: that of the system, until the button is used

const systemDark = matchMedia("(prefers-color-scheme: dark)");
let theme = null;
try { theme = localStorage.getItem("rankwise-theme"); } catch { /* storage is off */ }

function applyTheme() {
  const dark = theme ? theme === "dark" : systemDark.matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").textContent = dark ? "Light" : "Dark";
  if (content) update();
}

// --- state in the address, so that a link and a reload show the same

const WORDS = ["network", "stage", "kept", "quality", "delta", "trial"];
const FLAGS = ["bands", "front", "near"];

function remember() {
  const words = new URLSearchParams(WORDS.map((name) => [name, state[name]]));
  for (const name of FLAGS) words.set(name, state[name] ? 1 : 0);
  for (const label of state.hidden) words.append("hidden", label);
  history.replaceState(null, "", `#${words}`);
}

function recall() {
  const words = new URLSearchParams(location.hash.slice(1));
  for (const name of WORDS) {
    const given = words.get(name);
    if (given !== null) state[name] = ["network", "delta", "trial"].includes(name) ? Number(given) : given;
  }
  for (const name of FLAGS) if (words.has(name)) state[name] = words.get(name) === "1";
  state.hidden = new Set(words.getAll("hidden"));
}

// --- controls

function choice(id, options, chosen, choose) {
  $(id).replaceChildren(...options.map(([value, text]) => {
    const input = make("input", { type: "radio", name: id, value, onchange: () => { choose(value); update(); } });
    input.checked = value === chosen;
    return make("label", {}, input, make("span", {}, text));
  }));
}

const figuresHere = (name) => curvesHere().some((curve) => Object.values(curve.points).some((points) => points.some((point) => point.figures[name])));
const SHORT = { params: "Parameters", macs: "MACs", bytes: "Size", latency: "Latency" };

function drawControls() {
  if (!content.networks[state.network]) state.network = 0;
  const network = $("network");
  network.replaceChildren(...content.networks.map((one, at) => make("option", { value: at }, one.label)));
  network.value = state.network;
  $("network-field").hidden = content.networks.length < 2;
  const stages = Object.keys(STAGES).filter((stage) => curvesHere().some((curve) => curve.points[stage].length));
  if (!stages.includes(state.stage)) state.stage = (alone() ? stages[stages.length - 1] : stages[0]) || "compressed";
  choice("stage", stages.map((stage) => [stage, capital(STAGES[stage])]), state.stage, (value) => { state.stage = value; });
  $("stage-field").hidden = stages.length < 2;
  const kept = content.kept.filter((axis) => figuresHere(axis.name));
  if (kept.length && !kept.some((axis) => axis.name === state.kept)) state.kept = kept[0].name;
  choice("kept", kept.map((axis) => [axis.name, SHORT[axis.name]]), state.kept, (value) => { state.kept = value; });
  const qualities = content.qualities.filter((axis) => figuresHere(axis.name));
  if (qualities.length && !qualities.some((axis) => axis.name === state.quality)) state.quality = firstQuality(qualities);
  $("quality").replaceChildren(...qualities.map((axis) => make("option", { value: axis.name }, capital(axis.label))));
  $("quality").value = state.quality;
  state.delta = content.deltas.includes(state.delta) ? state.delta : firstDelta();
  choice("delta", content.deltas.map((delta) => [delta, String(delta)]), state.delta, (value) => { state.delta = value; });
  for (const name of FLAGS) $(name).checked = state[name];
  $("quality-field").hidden = alone();
  $("controls").hidden = !content.curves.length;
}

/** The change of top-1 where published losses stand beside ours, from networks that begin elsewhere; else top-1. */
function firstQuality(qualities) {
  const losses = publishedHere().some((row) => known(row.loss)) && qualities.some((axis) => axis.name === "change");
  return losses ? "change" : qualities[0].name;
}

function drawFacts() {
  const failed = content.trials.filter((trial) => trial.failed).length;
  const done = content.trials.length - failed;
  const count = (number, one, several) => `${number.toLocaleString("en")} ${number === 1 ? one : several}`;
  const waiting = content.expected - content.trials.length;
  const parts = [
    !alone() && (failed ? `${done.toLocaleString("en")} of ${count(content.trials.length, "trial", "trials")} succeeded, ${failed} failed` : count(done, "trial", "trials")), waiting > 0 && `${waiting} not finished`, content.unreadable.length && count(content.unreadable.length, "unreadable file", "unreadable files"),
    content.networks.length === 1 && content.networks[0].label, moment(content.created),
  ];
  $("facts").textContent = parts.filter(Boolean).join(" · ");
  $("description").textContent = content.description;
  $("description").hidden = !content.description;
}

/** Draw everything again as `state` and `content` say. */
function update() {
  // A control that is replaced keeps the focus.
  const focused = document.activeElement && document.activeElement.name ? [document.activeElement.name, document.activeElement.value] : null;
  drawControls();
  drawFacts();
  for (const part of [drawTradeoff, drawLoss, drawTrial, drawSpent, drawFailures, drawMade]) part();
  if (focused) {
    const again = [...document.getElementsByName(focused[0])].find((input) => input.value === focused[1]);
    if (again) again.focus({ preventScroll: true });
  }
  remember();
}

function listen() {
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("network").addEventListener("change", (event) => { state.network = Number(event.target.value); update(); });
  $("quality").addEventListener("change", (event) => { state.quality = event.target.value; update(); });
  for (const name of FLAGS) $(name).addEventListener("change", (event) => { state[name] = event.target.checked; update(); });
  $("find").addEventListener("input", drawLegend);
  $("all").addEventListener("click", () => toggleAll(true));
  $("none").addEventListener("click", () => toggleAll(false));
  $("trial-select").addEventListener("change", (event) => { state.trial = Number(event.target.value); drawTrial(); remember(); });
  $("previous").addEventListener("click", () => stepTrial(-1));
  $("next").addEventListener("click", () => stepTrial(1));
}

// --- live: only a page that `rankwise report --watch` serves asks its server what is new

const WAIT = 2000; // milliseconds between two questions

async function watch(seen) {
  const live = $("live");
  live.hidden = false;
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, WAIT));
    try {
      const now = await (await fetch("state")).text();
      if (now !== seen) {
        content = JSON.parse(await inflate(await (await fetch("data")).text()));
        seen = now;
        update();
      }
      live.classList.remove("off");
    } catch {
      live.classList.add("off"); // the server has stopped; the figures stay
    }
  }
}

async function start() {
  applyTheme();
  $("theme").addEventListener("click", () => {
    theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("rankwise-theme", theme); } catch { /* storage is off */ }
    applyTheme();
  });
  systemDark.addEventListener("change", applyTheme);
  if (typeof DecompressionStream === "undefined") {
    complain("This browser cannot unpack the figures of this page. Chrome or Edge 80, Firefox 113, Safari 16.4, or anything newer, can.");
    return;
  }
  const script = document.createElement("script");
  script.textContent = await inflate($("plotly").textContent);
  document.head.append(script);
  content = JSON.parse(await inflate($("data").textContent));
  recall();
  listen();
  update();
  document.body.dataset.ready = "yes";
  if (document.body.dataset.watch === "yes") watch("");
}

start().catch((error) => complain(`The page could not be drawn: ${error.message}`));
