"""Reports in a real browser without a network: what is drawn, what is said, by day, by night, on a phone, with keys."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.nvml.scripted import Counter, ScriptedGpu, ScriptedNvml, have_compiler
from tests.nvml.waveform import constant

from compare_results import Results
from llenergymeasure.domain.latency import histogram, percentiles
from llenergymeasure.results.compare.comparison import compare
from llenergymeasure.results.compare.gate import Limits
from llenergymeasure.results.compare.page import comparison_page
from llenergymeasure.results.compare.sides import read_side
from llenergymeasure.results.persistence import save_result
from llenergymeasure.results.report.experiment_charts import latency_chart, power_chart
from llenergymeasure.results.report.page import Section, render_page, tag
from llenergymeasure.results.report.power import DeviceSeries, WindowSeries
from llenergymeasure.results.report.write import write_page, write_report
from report_studies import saved_study, study_of
from result_samples import make_result, make_rich_result
from scripted_experiments import BoardEngine, experiment, run_experiment

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None or find_spec("selenium") is None,
    reason="needs chromium, chromedriver and selenium",
)

WIDE, NARROW = 1100, 360
LEAST_CONTRAST = 4.5
"""WCAG 2.2, 1.4.3, level AA."""

CONTRASTS = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
function rgb(colour) {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
}
function luminance([r, g, b]) {
  const [x, y, z] = [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
}
const found = {};
for (const element of document.querySelectorAll('body *')) {
  const says = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
  if (!says || !element.getClientRects().length || ['title', 'desc'].includes(element.tagName)) continue;
  let behind = element;
  while (behind && rgb(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const style = getComputedStyle(element);
  const ink = rgb(element.tagName === 'text' ? style.fill : style.color);
  const paper = rgb(behind ? getComputedStyle(behind).backgroundColor : 'white');
  const [low, high] = [luminance(ink), luminance(paper)].sort((a, b) => a - b);
  const ratio = (high + 0.05) / (low + 0.05);
  const name = element.tagName + '.' + (element.className.baseVal ?? element.className);
  found[name] = Math.min(found[name] ?? 99, ratio);
}
return found;
"""

SPILLS = """
const width = document.documentElement.clientWidth;
return [...document.querySelectorAll('body *')].filter(element => {
  const box = element.getBoundingClientRect();
  return box.width && box.right > width + 1 && !element.closest('.scroll, pre');
}).map(element => element.outerHTML.slice(0, 120));
"""

COLLISIONS = """
const found = [];
for (const svg of document.querySelectorAll('figure svg')) {
  if (!svg.getClientRects().length) continue;
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].filter(text => text.textContent.trim());
  const boxes = texts.map(text => text.getBoundingClientRect());
  boxes.forEach((a, i) => {
    if (a.left < frame.left - 2 || a.right > frame.right + 2 || a.top < frame.top - 2 || a.bottom > frame.bottom + 2)
      found.push(`${texts[i].textContent} leaves its chart`);
    boxes.slice(i + 1).forEach((b, j) => {
      const [width, height] = [Math.min(a.right, b.right) - Math.max(a.left, b.left),
                               Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top)];
      if (width > 2 && height > 3) found.push(`${texts[i].textContent} over ${texts[i + j + 1].textContent}`);
    });
  });
}
return found;
"""

CHARTS = """
return [...document.querySelectorAll('figure')].map(figure => {
  const shown = [...figure.querySelectorAll('svg')].filter(svg => svg.getBoundingClientRect().width > 0);
  const boxes = shown.flatMap(svg => [...svg.querySelectorAll('path, circle, use')]
    .map(mark => mark.getBoundingClientRect()).filter(box => box.width + box.height > 0));
  const [svg] = shown, box = svg?.getBoundingClientRect();
  const small = [...(svg?.querySelectorAll('text') ?? [])].map(text => text.getBoundingClientRect().height);
  return {shown: shown.length, marks: boxes.length, width: box?.width, height: box?.height, least: Math.min(...small)};
});
"""
MARKS = """
const centre = element => { const box = element.getBoundingClientRect(); return box.x + box.width / 2; };
return [...document.querySelectorAll('main section')].filter(section => section.querySelector('svg')).map(section => ({
  ticks: [...section.querySelectorAll('.wide text')].filter(text => /^[−\\d.]+$/.test(text.textContent))
    .map(text => [centre(text), text.textContent]),
  spots: [...section.querySelectorAll('.wide .spot')].map(spot => [centre(spot), spot.ariaLabel]),
}));
"""


class Browser:
    """A headless Chromium that may not use the network."""

    def __init__(self) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM or ""
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.driver.execute_cdp_cmd("Network.enable", {})
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self.driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)

    def open(self, path: Path, width: int = WIDE, scheme: str = "light") -> None:
        """Show a page; it must have nothing to complain of, and ask for no other file."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get_log("performance")
        self.driver.get(path.as_uri())
        assert self.driver.get_log("browser") == []
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        assert set(asked) <= {path.as_uri()}

    def ask(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def text(self, selector: str) -> list[str]:
        found: list[str] = self.ask(f"return [...document.querySelectorAll({selector!r})].map(e => e.innerText)")
        return found

    def print_pages(self) -> int:
        import base64

        answer = self.driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": True})
        return len(re.findall(rb"/Type\s*/Page\b", base64.b64decode(answer["data"])))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    opened = Browser()
    yield opened
    opened.driver.quit()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment on a scripted board, every sample kept."""
    if not have_compiler():
        pytest.skip("the scripted NVML is built with gcc, which is not installed")
    directory = tmp_path_factory.mktemp("measured")
    gpu = ScriptedGpu.of("hopper", waveform=constant(100.0), counter=Counter(0.1))
    nvml = ScriptedNvml([gpu], directory)
    nvml.load()
    try:
        config = experiment(directory, prompts=2, measurement={"save_trace": True})
        engine = BoardEngine(used_devices=(gpu.uuid,), drives=gpu, prefill_s=0.3, step_s=0.02)
        run = run_experiment(config, engine, directory, poll_interval_ms=50)
    finally:
        nvml.close()
    saved = save_result(run.result, directory, run.artefacts.timeseries, run.artefacts.beside_timeseries)
    return write_report(saved.parent)


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(saved_study(tmp_path_factory.mktemp("studied") / "study", study_of(range(1, 5))))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A change that is found beside one that is not, as a page and as JSON."""
    directory = tmp_path_factory.mktemp("compared")
    results, path = Results(directory), directory / "page.html"
    sides = [results.save("a", batches=(1, 8)), results.save("b/c", batches=(1, 8), energy=0.5)]
    found = compare(
        [read_side(Path(side)) for side in [*sides, results.save("b-c", batches=(1, 8))]], limits=Limits(5.0)
    )
    write_page(path, comparison_page(found))
    path.with_suffix(".json").write_text(found.model_dump_json())
    return path


@pytest.fixture(params=["measured", "studied"])
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_every_chart_is_drawn_once_and_nothing_leaves_the_screen(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    charts = browser.ask(CHARTS)
    assert len(charts) >= 3
    for chart in charts:
        assert chart["shown"] == 1
        assert chart["marks"] > 5
        assert chart["height"] > 50
        assert chart["width"] <= width
        assert chart["least"] >= 9  # a line of letters that can be read on a phone, in pixels
    assert browser.ask(SPILLS) == []
    assert browser.ask(COLLISIONS) == []
    assert browser.ask("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("kind", ["far apart", "many boards", "nearly alike"])
def test_no_letters_of_a_chart_lie_over_others(browser: Browser, tmp_path: Path, kind: str, width: int) -> None:
    path = tmp_path / "report.html"
    if kind == "far apart":  # thirty times as fast and thrifty: the axes are logarithmic
        path = write_report(saved_study(tmp_path / "study", study_of(range(1, 31), cycles=2)))
    elif kind == "many boards":
        readings = {"power_w": [300.0, 310.0], "temperature_c": [40.0, 41.0], "sm_clock_mhz": [1980.0, 1980.0]}
        boards = [DeviceSeries(f"GPU-{number}", [0.5, 1.5], readings) for number in range(16)]
        series = WindowSeries(boards, 2.0, False, {"prefill": [(0.0, 0.5)], "decode": [(0.5, 2.0)]})
        drawn = tag("figure", power_chart(series, None, "16 boards"))
        write_page(path, render_page("T", "K", [Section("One", drawn)]))
    else:
        values_ms = [20.00285, 20.0029, 20.00305]
        told, spread = histogram(values_ms), percentiles(values_ms)
        assert told is not None
        assert spread is not None
        drawn = tag("figure", latency_chart([("Between two tokens", told, spread)] * 3, "alike"))
        write_page(path, render_page("T", "K", [Section("One", drawn)]))
    browser.open(path, width)
    assert browser.ask(COLLISIONS) == []
    assert "$" not in browser.ask("return document.querySelector('figure svg').textContent")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(browser: Browser, page: Path, scheme: str) -> None:
    browser.open(page, scheme=scheme)
    paper = browser.ask("return getComputedStyle(document.documentElement).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    browser.ask("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    contrasts = browser.ask(CONTRASTS)
    assert "text." in contrasts
    assert {name: ratio for name, ratio in contrasts.items() if ratio < LEAST_CONTRAST} == {}


def test_an_experiments_page_shows_the_figures_of_its_file(browser: Browser, measured: Path) -> None:
    result = json.loads((measured.parent / "result.json").read_text())
    browser.open(measured)
    energy, speed, ttft, itl = browser.text(".tiles .value")
    assert float(energy.split(" ")[0]) == pytest.approx(result["avg_energy_per_token_j"], rel=0.01)
    half_width_j = result["uncertainty"]["absolute_per_token_j"]
    assert float(re.findall(r"[\d.]+", energy)[1]) == pytest.approx(half_width_j, rel=0.1)
    assert float(speed.split(" ")[0]) == pytest.approx(result["avg_tokens_per_second"], rel=0.01)
    assert float(ttft.split(" ")[0]) == pytest.approx(result["latency_stats"]["ttft_ms"]["mean"], rel=0.01)
    assert float(itl.split(" ")[0]) == pytest.approx(result["latency_stats"]["itl_ms"]["mean"], rel=0.01)


def test_the_line_of_power_is_that_of_the_board(browser: Browser, measured: Path) -> None:
    """600 W in prefill and 300 W in decode; both phases are shaded, and the table beside the chart has the readings."""
    browser.open(measured)
    legend = browser.ask("return [...document.querySelectorAll('#power-over-time .wide text')].map(e => e.textContent)")
    assert {"prefill", "decode", "idle power"} <= set(legend)
    cells = browser.ask(
        "return [...document.querySelectorAll('#power-over-time tbody td:nth-child(3)')].map(cell => cell.textContent)"
    )
    powers = [float(cell) for cell in cells]
    assert max(powers) == pytest.approx(600, rel=0.02)
    assert any(power == pytest.approx(300, rel=0.02) for power in powers)


def test_a_studys_points_tell_its_file_to_whoever_reaches_them_with_the_tab_key(
    browser: Browser, studied: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    summary = json.loads((studied.parent / "study_summary.json").read_text())
    browser.open(studied)
    spoken = []
    for _ in range(120):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        label = browser.ask("return document.activeElement.matches('.spot') ? document.activeElement.ariaLabel : null")
        if label is not None and "per token" in label:
            spoken.append(label)
    told = {float(re.findall(r"([\d.]+) (?:± [\d.]+ )?J per token", label)[0]) for label in spoken}
    means = {entry["energy_per_token_j"]["mean"] for entry in summary["statistics"]}
    assert len(told) == len(means) == 8
    assert all(any(abs(mean - read) <= 0.02 * mean for read in told) for mean in means)


def test_a_chart_has_a_name_a_description_and_its_figures_as_a_table(browser: Browser, page: Path) -> None:
    browser.open(page)
    unnamed = browser.ask(
        """return [...document.querySelectorAll('figure svg')].filter(svg =>
        !document.getElementById(svg.getAttribute('aria-labelledby'))?.textContent
        || !document.getElementById(svg.getAttribute('aria-describedby'))?.textContent).length"""
    )
    assert unnamed == 0
    assert browser.ask("return [...document.querySelectorAll('figure')].every(f => f.querySelector('details table'))")


@pytest.mark.parametrize(("width", "scheme"), [(WIDE, "light"), (NARROW, "dark")])
def test_a_comparison_is_drawn_and_can_be_read(browser: Browser, compared: Path, width: int, scheme: str) -> None:
    browser.open(compared, width, scheme)
    assert [chart["shown"] for chart in browser.ask(CHARTS)] == [1] * 4
    assert browser.ask(SPILLS) == []
    assert {name: ratio for name, ratio in browser.ask(CONTRASTS).items() if ratio < LEAST_CONTRAST} == {}
    addresses = browser.ask("return [...document.querySelectorAll('nav a')].map(a => a.hash)")
    assert len(set(addresses)) == len(addresses) == 6


def test_a_comparisons_points_lie_where_its_file_says(browser: Browser, compared: Path) -> None:
    """Read off the axis as an eye does: between two ticks."""
    browser.open(compared)
    candidates = json.loads(compared.with_suffix(".json").read_text())["candidates"]
    sections = browser.ask(MARKS)
    for place, name in ((0, "energy"), (1, "speed"), (2, "energy"), (3, "speed")):
        ticks = [(x, float(text.replace("−", "-"))) for x, text in sections[place]["ticks"]]
        (x0, first), (x1, last) = ticks[0], ticks[-1]
        read = [first + (x - x0) / (x1 - x0) * (last - first) for x, _ in sections[place]["spots"]]
        changes = [pair[name]["change_pct"] for pair in candidates[place // 2]["pairs"]]
        assert read == pytest.approx(changes, abs=0.01 * abs(last - first))
        told = [label.endswith(", more") for _, label in sections[place]["spots"]]
        assert told == [change > 20 for change in changes]


@pytest.mark.parametrize("kind", ["code", "table"])
def test_what_is_wider_than_a_phone_says_that_it_goes_on(browser: Browser, studied: Path, kind: str) -> None:
    browser.open(studied, NARROW)
    selector = {"code": "pre", "table": ".scroll"}[kind]
    cut = f"[...document.querySelectorAll('{selector}')].filter(e => e.scrollWidth > e.clientWidth)"
    shades = browser.ask(f"return {cut}.map(e => getComputedStyle(e).backgroundAttachment)")
    assert shades
    assert set(shades) == {"local, local, scroll, scroll, scroll"}


def test_a_page_prints(browser: Browser, page: Path) -> None:
    browser.open(page, scheme="dark")
    assert 1 < browser.print_pages() < 20


@pytest.mark.parametrize("kind", ["hostile", "bare", "failed"])
def test_odd_pages_are_pages_too(browser: Browser, tmp_path: Path, kind: str) -> None:
    name = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>" + "x" * 300
    if kind == "failed":
        path = write_report(saved_study(tmp_path / "study", study_of(range(1, 3)), lambda run: None))
    else:
        result = make_rich_result(model_name=name, config_name=name) if kind == "hostile" else make_result()
        path = write_report(save_result(result, tmp_path).parent)
    browser.open(path, NARROW)
    assert browser.driver.title != "taken"
    assert browser.ask(SPILLS) == []
