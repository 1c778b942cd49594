"""The page in a real browser, opened from disk: every curve has its points, and no one is asked for more."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from threading import Thread
from typing import Any

import pytest

from rankwise.report.curves import pareto
from rankwise.report.page import write_page
from rankwise.report.serve import Server
from rankwise.report.trials import read_study
from tests.report.synthetic import METHODS, TARGETS, experiment, write_json, write_results

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (extra test)")
pytest.importorskip("plotly")
pytest.importorskip("jinja2")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed (Debian: chromium-driver)"
)

FLAGS = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "window-size=1440,900",
)  # fmt: skip
HOSTILE = "</script><img src=x onerror=\"document.body.dataset.hit='yes'\"><b>svd</b>"


class Browser:
    """A browser with one page open."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        """Open a page and wait until it has drawn itself; a page from disk is loaded anew."""
        self.driver.get("data:text/html,")
        self.driver.get_log("browser"), self.driver.get_log("performance")
        self.driver.get(address)
        self.wait("return document.body.dataset.ready || !document.getElementById('message').hidden")
        assert self.js("return document.getElementById('message').textContent") == ""

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, *arguments: Any) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 60, 0.05).until(lambda _: self.js(script, *arguments))

    def click(self, selector: str) -> None:
        self.js("document.querySelector(arguments[0]).click()", selector)

    def choose(self, name: str, value: str) -> None:
        """Choose a radio button or an option of a select."""
        self.js(
            "const e = document.getElementById(arguments[0]);"
            "if (e.tagName === 'SELECT') { e.value = arguments[1]; e.dispatchEvent(new Event('change')); }"
            "else [...e.querySelectorAll('input')].find((i) => i.value === arguments[1]).click();",
            name,
            value,
        )

    def traces(self) -> dict[str, list[tuple[float, float]]]:
        """The points of every line and set of markers of the trade-off, by name."""
        found = self.js(
            "return document.getElementById('tradeoff-chart').data.map((t) => [t.name, [...t.x], [...t.y]])"
        )
        return {name: list(zip(x, y, strict=True)) for name, x, y in found}

    def requests(self) -> list[str]:
        """Every address that the open page asked for."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [
            m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked if not url.startswith("data:")]

    def complaints(self) -> list[Any]:
        """What the page wrote to the console."""
        return list(self.driver.get_log("browser"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield Browser(driver)
    driver.quit()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with published rows, a failed trial, an unreadable file and hostile names."""
    out = tmp_path_factory.mktemp("sweep")
    write_results(out, [*METHODS[:3], HOSTILE], repetitions=3, recovered=True)
    write_json(out / "experiment.json", experiment(60, title=HOSTILE, description=HOSTILE, command=HOSTILE))
    failed = {"method": HOSTILE, "failed": f"BudgetError: {HOSTILE}", "target": 0.01, "measure": "params"}
    write_json(out / "trials" / "f" / "metrics.json", failed)
    (out / "trials" / "u").mkdir()
    (out / "trials" / "u" / "metrics.json").write_text("{")
    classes = [{"label": HOSTILE, "examples": 3, "accuracy": 0.5}]
    last = out / "trials" / "0059" / "metrics.json"
    metrics = json.loads(last.read_text())
    metrics["compressed"]["per_class"] = metrics["original"]["per_class"] = classes
    metrics["layers"][0] |= {"name": HOSTILE, "choice": {HOSTILE: HOSTILE}}
    metrics["spectra"] = {HOSTILE: [4.0, 2.0, 1.0]}
    write_json(last, metrics)
    write_page(read_study(out))
    return out


def expected(out: Path, method: str, stage: str, kept: str, quality: str) -> list[tuple[float, float]]:
    """A curve's points in percent, from the files alone."""
    files = (out / "trials").glob("0*/metrics.json")
    trials = [m for m in (json.loads(file.read_text()) for file in files) if m["method"] == method]
    groups = [[m[stage] for m in trials if m["target"] == target] for target in TARGETS]
    return [(100 * mean(t[f"{kept}_fraction"] for t in g), 100 * mean(t[quality] for t in g)) for g in groups]


def close(found: list[tuple[float, float]], wanted: list[tuple[float, float]]) -> bool:
    return len(found) == len(wanted) and all(
        pair == pytest.approx(other, rel=1e-4) for pair, other in zip(found, wanted, strict=True)
    )


def test_every_curve_has_its_points_and_nothing_is_asked_for(browser: Browser, sweep: Path) -> None:
    browser.open(f"file://{sweep}/report.html")
    shown = {**dict.fromkeys(METHODS[:3]), HOSTILE: None}
    names = [*METHODS[:3], HOSTILE.replace("<", "&lt;").replace(">", "&gt;")]
    for stage, kept, quality in (
        ("compressed", "params", "top1"),
        ("recovered", "macs", "agreement"),
        ("compressed", "bytes", "top1"),
    ):
        for control, value in (("stage", stage), ("kept", kept), ("quality", quality)):
            browser.choose(control, value)
        traces = browser.traces()
        curves = [expected(sweep, method, stage, kept, quality) for method in shown]
        assert all(close(traces[name], curve) for name, curve in zip(names, curves, strict=True))
        assert all(f"band of {name}" in traces for name in names)
        front = pareto(point for curve in curves for point in curve)
        assert close(traces["Pareto front"], front)
        published = {"params": 3, "macs": 1, "bytes": 0}[kept] if quality == "top1" else 0
        assert (
            sum(len(points) for name, points in traces.items() if name.startswith("published")) == published
        )
    assert browser.requests() == [f"file://{sweep}/report.html"]
    assert browser.complaints() == []


def test_what_users_wrote_is_shown_and_does_nothing(browser: Browser, sweep: Path) -> None:
    browser.open(f"file://{sweep}/report.html#trial=59")
    assert browser.js("return document.title") == f"{HOSTILE} · rankwise"
    assert browser.js("return document.querySelector('h1').textContent") == HOSTILE
    assert browser.js("return document.body.dataset.hit || document.querySelectorAll('img').length") == 0
    for place, count in {"failures": 2, "made": 1, "legend": 1, "trial": 4}.items():
        text = browser.js("return document.getElementById(arguments[0]).textContent", place)
        assert text.count("onerror=") >= count, place
    ticks = browser.js(
        "return [...document.querySelectorAll('#classes-chart .ytick, #layers-chart .ytick')]"
        ".map((t) => t.textContent)"
    )
    assert any("<b>svd</b>" in tick for tick in ticks)
    assert "One trial failed" in browser.js("return document.getElementById('failures').textContent")
    assert "One file could not be read" in browser.js(
        "return document.getElementById('failures').textContent"
    )
    assert browser.complaints() == []


def test_filters_hover_and_click(browser: Browser, sweep: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    browser.open(f"file://{sweep}/report.html")
    browser.choose("delta", "3")
    browser.click("#legend input[data-label='whitened']")
    assert "whitened" not in browser.traces() and "alds" in browser.traces()
    table = "return document.getElementById('loss-table').textContent"
    assert "whitened" not in browser.js(table) and "alds" in browser.js(table)
    assert "hidden=whitened" in browser.js("return location.hash")
    browser.click("#none")
    assert browser.traces() == {}
    browser.click("#all")
    assert "whitened" in browser.traces()

    chart = browser.driver.find_element("id", "tradeoff-chart")
    browser.js("document.activeElement.blur(); arguments[0].scrollIntoView({block: 'center'})", chart)
    x, y = browser.js(
        "const c = arguments[0], { xaxis, yaxis } = c._fullLayout, b = c.getBoundingClientRect();"
        "const t = c.data.find((t) => t.name === 'alds');"
        "return [b.left + xaxis._offset + xaxis.d2p(t.x[1]), b.top + yaxis._offset + yaxis.d2p(t.y[1])]",
        chart,
    )
    mouse = ActionChains(browser.driver)
    mouse.w3c_actions.pointer_action.move_to_location(round(x), round(y))
    mouse.perform()
    browser.wait("return document.querySelector('#tradeoff-chart .hovertext')")
    hover = browser.js("return document.querySelector('#tradeoff-chart .hovertext').textContent")
    assert "alds" in hover and "mean of 3 repetitions" in hover and "95 % interval" in hover
    assert f"top-1: {expected(sweep, 'alds', 'compressed', 'params', 'top1')[1][1]:.2f} %" in hover
    ActionChains(browser.driver).click().perform()
    browser.wait("return document.getElementById('trial-select').selectedOptions[0].text.startsWith('alds')")
    assert "0.35" in browser.js("return document.getElementById('trial-select').selectedOptions[0].text")
    assert browser.complaints() == []


def test_table_at_fixed_loss(browser: Browser, sweep: Path) -> None:
    browser.open(f"file://{sweep}/report.html")
    for delta in (0.5, 1, 2, 3):
        browser.choose("delta", str(delta))
        rows = browser.js(
            "return [...document.querySelectorAll('#loss-table tbody tr')]"
            ".map((r) => [...r.children].map((c) => c.textContent))"
        )
        found = {row[0]: row[1] for row in rows}
        for method in METHODS[:3]:
            curve = expected(sweep, method, "compressed", "params", "top1")
            fitting = [kept for kept, top1 in curve if 91.73 - top1 <= delta]
            assert found.get(method) == (f"{100 - min(fitting):.2f} %" if fitting else None)
        assert "alds, Liebenwein et al. 2021, retrained" in found


def test_a_cost_that_was_not_measured_is_no_reduction(browser: Browser, tmp_path: Path) -> None:
    write_results(tmp_path, ["svd", "pca"], [0.8], 1)
    for name, time in (("0000", 0.7), ("0001", None)):
        file = tmp_path / "trials" / name / "metrics.json"
        metrics = json.loads(file.read_text())
        metrics["compressed"]["latency_fraction"] = time
        write_json(file, metrics)
    browser.open(f"file://{write_page(read_study(tmp_path))}")
    browser.choose("delta", "3")
    rows = browser.js(
        "return [...document.querySelectorAll('#loss-table tr')]"
        ".map((r) => [...r.children].map((c) => c.textContent))"
    )
    at = rows[0].index("Latency removed")
    assert {row[0]: row[at] for row in rows[1:3]} == {"svd": "30.00 %", "pca": "–"}


def test_by_keyboard_in_both_themes_and_on_a_phone(browser: Browser, sweep: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(f"file://{sweep}/report.html")
    active = browser.driver.switch_to
    browser.driver.find_element("tag name", "body").send_keys(Keys.TAB)
    assert active.active_element.text == "Skip to the figures"
    browser.js("document.querySelector('#kept input:checked').focus()")
    active.active_element.send_keys(Keys.ARROW_RIGHT)
    assert browser.js("return document.activeElement.value") == "macs"
    assert (
        browser.js("return document.getElementById('tradeoff-chart').layout.xaxis.title.text")
        == "MACs kept, %"
    )
    page = "return getComputedStyle(document.body).backgroundColor"
    first = browser.js(page)
    browser.click("#theme")
    assert browser.js(page) != first
    browser.click("#theme")
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.open(f"file://{sweep}/report.html")
        assert browser.js("return document.documentElement.scrollWidth") <= 390
        assert browser.js("return document.getElementById('tradeoff-chart').clientWidth") > 300
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_one_compression_alone(browser: Browser, tmp_path: Path) -> None:
    write_results(tmp_path, ["svd"], [0.5], 1)
    folder = tmp_path / "trials" / "0000"
    page = write_page(read_study(folder))
    browser.open(f"file://{page}")
    hidden = browser.js(
        "return ['tradeoff', 'loss', 'picker'].map((id) => document.getElementById(id).hidden)"
    )
    assert hidden == [True, True, True]
    tiles = browser.js("return document.getElementById('tiles').textContent")
    assert "parameters kept" in tiles and "agreement with the original" in tiles
    assert browser.requests() == [f"file://{page}"] and browser.complaints() == []


def test_predicted_trade_off_spectra_and_latency(browser: Browser, tmp_path: Path) -> None:
    predicted = [{"params_fraction": f, "macs_fraction": f + 0.1, "kl": 1 - f} for f in (0.8, 0.4)]
    write_results(
        tmp_path, ["svd"], [0.5], 1, tradeoff=predicted, spectra={"conv1": [4.0, 2.0, 1.0], "other": [1.0]}
    )
    file = tmp_path / "trials" / "0000" / "metrics.json"
    metrics = json.loads(file.read_text())
    metrics["original"]["latency"], metrics["compressed"]["latency"] = 2_000_000, 1_500_000
    metrics["layers"][0]["choice"] = {"rank": 2}
    write_json(file, metrics)
    browser.open(f"file://{write_page(read_study(file))}")

    def drawn(chart: str) -> list[list[tuple[float, float]]]:
        found = browser.js(
            "return document.getElementById(arguments[0]).data.map((t) => [[...t.x], [...t.y]])", chart
        )
        return [list(zip(x, y, strict=True)) for x, y in found]

    line, measured = drawn("prediction-chart")
    assert close(line, [(40, 0.6), (80, 0.2)]) and len(measured) == 1
    assert drawn("spectra-chart") == [[(1, 1), (2, 0.5), (3, 0.25)], [(2, 0.5)], [(1, 1)]]
    assert "75.00 %latency kept" in browser.js("return document.getElementById('tiles').textContent")
    assert browser.complaints() == []


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [{"failed": "BudgetError: no", "model": "cifar10_resnet20"}],
        [{"compressed": {"params_fraction": 0.5}}, {"compressed": {"params_fraction": 0.4}, "original": {}}],
        [{"compressed": {"top1": 0.5}}, {"compressed": {"other": 1}}],
    ],
    ids=["begun", "all failed", "no quality", "no cost"],
)
def test_a_page_of_little(browser: Browser, tmp_path: Path, trials: list[dict[str, Any]]) -> None:
    write_json(tmp_path / "experiment.json", experiment(4))
    for place, metrics in enumerate(trials):
        write_json(tmp_path / str(place) / "metrics.json", metrics)
    browser.open(f"file://{write_page(read_study(tmp_path))}")
    facts = browser.js("return document.getElementById('facts').textContent")
    assert f"{4 - len(trials)} not finished" in facts
    failed = browser.js("return !document.getElementById('failures').hidden")
    assert failed == any("failed" in metrics for metrics in trials) and browser.complaints() == []


def test_the_served_page_follows_the_sweep(browser: Browser, tmp_path: Path) -> None:
    write_results(tmp_path, ["svd"], [0.5, 0.8], 1)
    with Server(tmp_path) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            browser.open(server.url)
            assert list(browser.traces()) == ["svd", *browser_published()]
            write_results(tmp_path / "more", ["pca"], [0.5, 0.8], 1)
            browser.wait(
                "return document.getElementById('tradeoff-chart').data.some((t) => t.name === 'pca')"
            )
            assert browser.complaints() == []
            assert {url.removeprefix(server.url) for url in browser.requests()} == {"", "state", "data"}
        finally:
            server.shutdown()
            thread.join()


def browser_published() -> list[str]:
    """The names of the traces of the made-up experiment's published rows."""
    return ["published: alds, Liebenwein et al. 2021, retrained", "published: pca, Zhang et al. 2016"]
