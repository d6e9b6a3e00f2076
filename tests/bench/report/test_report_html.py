"""The page: that its figures are those of the results, and that it works in a real browser."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import chromium
import example_results as examples
import pytest

from relukan_deploy.bench.report.html import write_page
from relukan_deploy.bench.results import Results
from relukan_deploy.bench.timing import ratio
from relukan_deploy.errors import InputError, MissingDependencyError

EVERY = {
    "cpu": examples.cpu_results,
    "gpu": examples.gpu_results,
    "small": examples.small_results,
    "several": examples.several_results,
    "hostile": examples.hostile_results,
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, make in EVERY.items():
        write_page(make(), folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in EVERY}


class Parsed(HTMLParser):
    """A page's tags with their attributes, the text of its tables' cells, and its scripts."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "input"):
            self._open.append(tag)
        if tag == "script":
            self.scripts.append("")
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"]:
            self.scripts[-1] += data
        elif {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data


def data_of(page: Path) -> Any:
    return json.loads(Parsed(page).scripts[0])


def charts(page: Path, name: str) -> list[Any]:
    """The traces of a chart's every choice, of the first group."""
    return [chart["traces"] for chart in data_of(page)["charts"][name][0]]


# --- the file


def test_the_times_are_those_that_were_measured_float_for_float(pages: dict[str, Path]) -> None:
    for name in ("cpu", "gpu"):
        results = EVERY[name]()
        (traces,) = charts(pages[name], "latency")
        assert len(traces) == len(results.series)
        for trace in traces:
            series = results.series[int(trace["meta"]["key"])]
            timings = {point.batch: point.timing for point in series.points if point.timing}
            assert trace["name"] == series.contender.name
            assert dict(zip(trace["x"], trace["y"], strict=True)) == {at: each.p50 for at, each in timings.items()}
            reach = [high + more for high, more in zip(trace["y"], trace["error_y"]["array"], strict=True)]
            assert reach == pytest.approx([timing.p99 for timing in timings.values()])


def test_rows_a_second_are_the_batch_by_its_time(pages: dict[str, Path]) -> None:
    results = EVERY["cpu"]()
    for trace in charts(pages["cpu"], "throughput")[0]:
        points = [point for point in results.series[int(trace["meta"]["key"])].points if point.timing]
        assert trace["y"] == [point.batch / point.timing.p50 for point in points if point.timing]


def test_the_distance_from_the_limit_is_the_time_by_the_ideal(pages: dict[str, Path]) -> None:
    results = EVERY["gpu"]()
    symbols = {"launch": "circle", "memory": "square", "arithmetic": "diamond"}
    (traces,) = charts(pages["gpu"], "limit")
    assert {int(trace["meta"]["key"]) for trace in traces} == {
        number for number, series in enumerate(results.series) if series.points[0].ideal
    }
    for trace in traces:
        points = results.series[int(trace["meta"]["key"])].points
        assert trace["y"] == [
            point.timing.p50 / point.ideal.seconds for point in points if point.timing and point.ideal
        ]
        assert trace["marker"]["symbol"] == [symbols[point.ideal.bound_by] for point in points if point.ideal]


def test_the_speed_up_is_the_median_over_the_rounds(pages: dict[str, Path]) -> None:
    results = EVERY["cpu"]()
    ours = next(each for each in results.series if each.contender.name == "this network: onnxruntime-cpu")
    pykan = next(each for each in results.series if each.contender.name == "pykan: torch")
    trace = next(trace for trace in charts(pages["cpu"], "speed-up")[0] if trace["name"] == "pykan: torch")
    expected = [
        ratio(above.timing, below.timing).median
        for above, below in zip(pykan.points, ours.points, strict=True)
        if above.timing and below.timing
    ]
    assert trace["customdata"] == expected
    assert [trace["base"] + height for height in trace["y"]] == pytest.approx(expected)


def test_the_fastest_way_of_a_peer_is_its_lowest_bar(pages: dict[str, Path]) -> None:
    results = EVERY["cpu"]()
    trace = next(trace for trace in charts(pages["cpu"], "speed-up")[0] if trace["name"] == "pykan: the fastest way")
    for batch, hover in zip(trace["x"], trace["hovertext"], strict=True):
        times = {
            point.timing.p50: series.contender.name
            for series in results.series
            if (series.contender.network, series.contender.data) == ("pykan", "host")
            for point in series.points
            if point.timing and str(point.batch) == batch
        }
        assert hover.startswith(f"<b>{times[min(times)]}</b>")


def test_the_parts_of_a_call_are_those_of_the_events(pages: dict[str, Path]) -> None:
    results = EVERY["gpu"]()
    having = [series for series in results.series if series.points[0].split]
    choices = data_of(pages["gpu"])["charts"]["split"][0]
    assert sorted(choice["label"] for choice in choices) == sorted(series.contender.name for series in having)
    names = {"to the GPU": "to_device", "on the GPU": "compute", "back": "to_host"}
    for choice in choices:
        series = next(series for series in having if series.contender.name == choice["label"])
        for trace in choice["traces"]:
            if trace["name"] in names:
                assert trace["customdata"] == [getattr(point.split, names[trace["name"]]) for point in series.points]
        for heights in zip(*(trace["y"] for trace in choice["traces"]), strict=True):
            assert sum(heights) == pytest.approx(1.0)


def test_accuracy_is_drawn_for_each_batch(pages: dict[str, Path]) -> None:
    results = EVERY["cpu"]()
    choices = data_of(pages["cpu"])["charts"]["accuracy"][0]
    assert [choice["label"] for choice in choices] == ["Batch 1", "Batch 1024"]
    for choice, batch in zip(choices, (1, 1024), strict=True):
        drawn = {(x, y) for trace in choice["traces"] for x, y in zip(trace["x"], trace["y"], strict=True)}
        assert drawn == {(each.seconds[batch], each.error) for each in results.accuracies}
        assert [shape["y0"] for shape in choice["layout"]["shapes"]] == [5e-4]


def test_an_error_of_zero_is_drawn_too(tmp_path: Path) -> None:
    made = examples.cpu_results()
    exact = dataclasses.replace(made.accuracies[0], error=0.0)
    write_page(dataclasses.replace(made, accuracies=(exact,)), tmp_path / "page.html")
    (choice, _) = data_of(tmp_path / "page.html")["charts"]["accuracy"][0]
    assert choice["layout"]["yaxis"].get("type") != "log"


def test_every_figure_of_every_line_is_in_the_tables(pages: dict[str, Path]) -> None:
    results = EVERY["gpu"]()
    rows = Parsed(pages["gpu"]).rows
    head = next(number for number, row in enumerate(rows) if "mean (95 % interval)" in row)
    titles = rows[head]
    assert titles[:4] == ["batch", "p50", "p90", "p99"]
    figures = [row for row in rows[head + 1 :] if len(row) == len(titles)]
    assert len(figures) == sum(point.timing is not None for series in results.series for point in series.points)


def test_sections_without_figures_are_left_out(pages: dict[str, Path]) -> None:
    def sections(name: str) -> list[str | None]:
        return [attributes["id"] for tag, attributes in Parsed(pages[name]).tags if tag == "section"]

    assert sections("small") == ["latency", "throughput", "limit", "start", "figures", "how"]
    assert set(sections("cpu")) - set(sections("small")) == {"speed-up", "accuracy", "skipped"}
    assert set(sections("gpu")) - set(sections("small")) == {"speed-up", "split", "skipped"}


@pytest.mark.parametrize("name", EVERY)
def test_it_needs_nothing_from_elsewhere(name: str, pages: dict[str, Path]) -> None:
    for tag, attributes in Parsed(pages[name]).tags:
        assert tag not in ("iframe", "img", "object", "embed", "base", "form")
        assert not [attribute for attribute in attributes if attribute.startswith("on")]
        for attribute in ("src", "href", "action", "srcset"):
            assert (attributes.get(attribute) or "#").startswith(("#", "data:"))


@pytest.mark.parametrize("name", EVERY)
def test_it_can_be_read_aloud(name: str, pages: dict[str, Path]) -> None:
    tags = Parsed(pages[name]).tags
    named = [tag for tag, _ in tags]
    assert dict(tags)["html"] == {"lang": "en"}
    assert (named.count("title"), named.count("h1")) == (1, 1)
    assert named.count("table") == named.count("caption")
    assert all(attributes.get("scope") in ("col", "row", "rowgroup") for tag, attributes in tags if tag == "th")
    described = [attributes for tag, attributes in tags if attributes.get("class") == "chart"]
    assert described
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in described)


def test_names_are_written_as_text(pages: dict[str, Path]) -> None:
    parsed = Parsed(pages["hostile"])
    assert len(parsed.scripts) == 3
    assert examples.HOSTILE in {row[0] for row in parsed.rows}
    (traces,) = charts(pages["hostile"], "latency")
    names = {series.contender.network for series in EVERY["hostile"]().series}
    assert {trace["meta"]["group"] for trace in traces} == names
    assert not [trace for trace in traces if "<" in trace["name"]]


def test_nothing_measured_is_a_page_too(tmp_path: Path) -> None:
    made = examples.cpu_results()
    write_page(dataclasses.replace(made, series=(), startups=(), accuracies=()), tmp_path / "page.html")
    sections = [attributes["id"] for tag, attributes in Parsed(tmp_path / "page.html").tags if tag == "section"]
    assert sections == ["skipped", "how"]


def test_a_path_that_is_no_text_is_written_all_the_same(tmp_path: Path) -> None:
    write_page(dataclasses.replace(examples.small_results(), bundle="model \udcff"), tmp_path / "page.html")
    assert "<h1>model ?</h1>" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not end in \.html"):
        write_page(examples.small_results(), tmp_path / "report.pdf")
    assert list(tmp_path.iterdir()) == []


def test_without_plotly_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'relukan-deploy\[bench\]'"):
        write_page(examples.small_results(), tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


# --- in a browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    if chromium.PATH is None:
        pytest.skip("there is no Chromium here")
    with chromium.open_browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


def shown(page: chromium.Page, path: Path, *, width: int = 1280, dark: bool = False) -> None:
    """Opens a page, and waits until it has drawn."""
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    prefer(page, dark=dark)
    page.go(path.as_uri())
    page.wait_for("document.readyState == 'complete' && document.querySelector('figure .main-svg, #how > :last-child')")


def prefer(page: chromium.Page, *, dark: bool) -> None:
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    page.call("Emulation.setEmulatedMedia", features=[scheme])


def place(page: chromium.Page, chart: str, trace: str, batch: int) -> tuple[float, float]:
    """Where a point is on the screen, scrolled to."""
    found = page.run(
        f"""(() => {{
            const chart = document.querySelector('[data-chart={chart}] .chart');
            chart.scrollIntoView({{ block: 'center', behavior: 'instant' }});
            const trace = chart._fullData.find((each) => each.name === {json.dumps(trace)});
            const at = trace.x.indexOf({batch});
            const {{ xaxis, yaxis }} = chart._fullLayout;
            const box = chart.getBoundingClientRect();
            return [
              box.x + xaxis._offset + xaxis.c2p(trace.x[at]),
              box.y + yaxis._offset + yaxis.c2p(trace.y[at]),
            ];
        }})()"""
    )
    return found[0], found[1]


def hovered(page: chromium.Page, chart: str, trace: str, batch: int) -> str:
    """What is shown where the mouse points at a point."""
    x, y = place(page, chart, trace, batch)
    for at in ((1, 1), (x, y)):
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=at[0], y=at[1])
    label = f"document.querySelector('[data-chart={chart}] .hovertext text')"
    page.wait_for(f"{label}?.textContent.includes('batch {batch}:')")
    text: str = page.run(f"{label}.textContent")
    return text


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_it_draws_without_a_complaint_and_asks_for_nothing(
    name: str, page: chromium.Page, pages: dict[str, Path]
) -> None:
    shown(page, pages[name])
    assert page.complaints == []
    assert [url for url in page.requested if not url.startswith("data:")] == [pages[name].as_uri()]


@pytest.mark.slow
def test_the_curves_are_there(page: chromium.Page, pages: dict[str, Path]) -> None:
    shown(page, pages["cpu"])
    (traces,) = charts(pages["cpu"], "latency")
    visible = [trace for trace in traces if trace["meta"]["visible"]]
    counted = (
        "(name => [...document.querySelectorAll(`[data-chart=${name}] .scatterlayer .trace`)]"
        ".map(trace => trace.querySelectorAll('.points path').length))"
    )
    for chart in ("latency", "throughput"):
        assert sorted(page.run(f"{counted}('{chart}')")) == sorted(len(trace["x"]) for trace in visible)
    assert page.run("document.querySelectorAll('[data-chart=speed-up] .barlayer .trace').length") == 4
    assert page.run(f"{counted}('limit')") == [9]


@pytest.mark.slow
def test_its_policy_lets_nothing_out(page: chromium.Page, pages: dict[str, Path]) -> None:
    shown(page, pages["small"])
    assert page.run("fetch('https://example.com/').then(() => 'sent', () => 'refused')") == "refused"
    assert "Content Security Policy" in page.complaints[0]
    script = "Object.assign(document.createElement('script'), { textContent: 'window.ran = true' })"
    page.run(f"document.body.append({script})")
    assert page.run("window.ran") is None


@pytest.mark.slow
def test_pointing_at_a_curve_shows_its_figures(page: chromium.Page, pages: dict[str, Path]) -> None:
    shown(page, pages["cpu"])
    text = hovered(page, "latency", "this network: onnxruntime-cpu", 1024)
    assert text.startswith("this network: onnxruntime-cpu")
    assert "batch 1024: p50 1.30 ms" in text
    assert re.search(r"p90 1\.\d\d ms, p99 1\.\d\d ms", text)
    assert "785k rows/s" in text
    assert "the baseline" in text


@pytest.mark.slow
def test_pointing_at_another_network_shows_how_many_times_as_long(page: chromium.Page, pages: dict[str, Path]) -> None:
    shown(page, pages["cpu"])
    text = hovered(page, "throughput", "pykan: torch", 64)
    assert text.startswith("pykan: torchbatch 64: p50 6.60 ms")
    assert re.search(r"68 × \(\d+–\d+\) as long", text)


@pytest.mark.slow
def test_a_line_is_shown_and_hidden_in_every_chart_of_lines(page: chromium.Page, pages: dict[str, Path]) -> None:
    shown(page, pages["cpu"])
    count = "(name => document.querySelectorAll(`[data-chart=${name}] .scatterlayer .trace`).length)"
    before = {name: page.run(f"{count}('{name}')") for name in ("latency", "throughput", "limit")}
    page.click("[data-chart=latency] .legend label:not(:has(:checked)) input")
    for name in ("latency", "throughput"):
        assert page.run(f"{count}('{name}')") == before[name] + 1
    page.click("[data-chart=latency] .legend input")  # ours
    assert page.run(f"{count}('limit')") == before["limit"] - 1
    assert page.run("document.querySelectorAll('[data-chart=limit] .legend span').length") == 0
    assert page.complaints == []


@pytest.mark.slow
def test_another_choice_is_drawn(page: chromium.Page, pages: dict[str, Path]) -> None:
    shown(page, pages["gpu"])
    options = page.run("[...document.querySelectorAll('#split .choice option')].map((each) => each.textContent)")
    assert options == [choice["label"] for choice in data_of(pages["gpu"])["charts"]["split"][0]]
    bars = "document.querySelectorAll('[data-chart=split] .barlayer .trace').length"
    assert page.run(bars) == 4
    device = next(index for index, label in enumerate(options) if "data on the device" in label)
    pick(page, "#split .choice", device)
    assert page.run(bars) == 2  # nothing is copied
    assert page.complaints == []


def pick(page: chromium.Page, selector: str, value: int) -> None:
    page.run(
        f"(select => {{ select.value = {value}; select.dispatchEvent(new Event('change', {{bubbles: true}})) }})"
        f"(document.querySelector({json.dumps(selector)}))"
    )


@pytest.mark.slow
def test_another_shape_or_machine_is_drawn(page: chromium.Page, pages: dict[str, Path]) -> None:
    shown(page, pages["several"])
    heights = "document.querySelector('[data-chart=latency] .chart')._fullData[0].y"
    groups = data_of(pages["several"])["charts"]["latency"]
    for number in (0, 3):
        pick(page, "#group", number)
        assert page.run(heights) == groups[number][0]["traces"][0]["y"]
    assert page.complaints == []


CURVE = "getComputedStyle(document.querySelector('[data-chart=latency] .scatterlayer .lines path')).stroke"


def ink(page: chromium.Page) -> dict[str, str]:
    """The colours of the ground, of an axis and of a curve."""
    found: dict[str, str] = page.run(
        f"""({{
            ground: getComputedStyle(document.body).backgroundColor,
            axis: getComputedStyle(document.querySelector('[data-chart=latency] .xtick text')).fill,
            curve: {CURVE},
        }})"""
    )
    return found


def brightness(colour: str) -> int:
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


@pytest.mark.slow
def test_it_is_dark_where_people_like_that_also_when_they_change_their_mind(
    page: chromium.Page, pages: dict[str, Path]
) -> None:
    shown(page, pages["cpu"], dark=True)
    dark = ink(page)
    assert brightness(dark["ground"]) < 100 < 400 < brightness(dark["axis"])
    prefer(page, dark=False)
    page.wait_for(f"{CURVE} !== '{dark['curve']}'")
    light = ink(page)
    assert brightness(light["ground"]) > 700 > 400 > brightness(light["axis"])
    prefer(page, dark=True)
    page.wait_for(f"{CURVE} !== '{light['curve']}'")
    assert ink(page) == dark


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_a_phone_never_scrolls_sideways(name: str, page: chromium.Page, pages: dict[str, Path]) -> None:
    shown(page, pages[name], width=360)
    assert page.run("document.documentElement.scrollWidth") == 360
    widths = page.run(
        "[...document.querySelectorAll('.chart')].map((each) => each.querySelector('.main-svg').clientWidth)"
    )
    assert all(250 < width <= 360 for width in widths)
    heights = page.run("[...document.querySelectorAll('.chart')].map((each) => each.clientHeight)")
    assert min(heights) > 300  # the legend stands below, and takes nothing


@pytest.mark.slow
def test_a_window_of_hardly_any_width_is_no_complaint(page: chromium.Page, pages: dict[str, Path]) -> None:
    """Chromium makes it one pixel wide for a moment to take a picture of the whole page."""
    shown(page, pages["cpu"])
    part = {"x": 0, "y": 0, "width": 9, "height": 9, "scale": 1}
    page.call("Page.captureScreenshot", captureBeyondViewport=True, clip=part)
    page.wait_for("[...document.querySelectorAll('.chart .main-svg')].every((each) => each.clientWidth > 500)")
    assert page.complaints == []


@pytest.mark.slow
def test_it_is_printed_light_and_whole(page: chromium.Page, pages: dict[str, Path]) -> None:
    shown(page, pages["cpu"], dark=True)
    widths = "[...document.querySelectorAll('.chart .main-svg')].map((each) => Number(each.getAttribute('width')))"
    page.run(f"addEventListener('beforeprint', () => (window.printed = {{ widths: {widths}, curve: {CURVE} }}))")
    curve = ink(page)["curve"]
    printed = page.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    paper = page.run("window.printed")
    assert 0 < max(paper["widths"]) <= (210 - 2 * 12) / 25.4 * 96  # A4 between its margins
    assert paper["curve"] != curve
    page.wait_for("!document.documentElement.classList.contains('paper')")
    assert ink(page)["curve"] == curve
    assert page.complaints == []


@pytest.mark.slow
def test_hostile_names_stay_text(page: chromium.Page, pages: dict[str, Path]) -> None:
    shown(page, pages["hostile"])
    assert page.text("h1") == examples.HOSTILE
    assert page.run("document.scripts.length") == 3
    assert page.run("document.querySelectorAll('main i, .legend b').length") == 0
    names = page.run("[...document.querySelectorAll('[data-chart=latency] .legend p')].map((each) => each.textContent)")
    results: Results = EVERY["hostile"]()
    assert names == list(dict.fromkeys(series.contender.network for series in results.series))
    for name in names[1:]:
        trace = f"{name}: torch.compile".replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        hide_others(page, name)
        assert hovered(page, "latency", trace, 64).startswith(f"{name}: torch.compilebatch 64")
    assert page.complaints == []


def hide_others(page: chromium.Page, name: str) -> None:
    """Their curves lie upon each other."""
    page.run(
        f"""for (const group of document.querySelectorAll('[data-chart=latency] .legend .sort')) {{
            const wanted = group.querySelector('p').textContent === {json.dumps(name)};
            for (const box of group.querySelectorAll('input')) if (box.checked !== wanted) box.click();
        }}"""
    )
