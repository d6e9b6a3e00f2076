"""The page for people: what it is made of, what its status says, and that it works in a real browser."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import chromium
import httpx
import numpy as np
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from relukan_deploy import __version__
from relukan_deploy.api import export
from relukan_deploy.runtime.serving import asgi_app
from relukan_deploy.runtime.serving.app import build_app
from relukan_deploy.runtime.serving.metrics import Metrics
from relukan_deploy.runtime.serving.store import Store
from relukan_deploy.spec import KanSpec

MakeSpec = Callable[..., KanSpec]

HOSTILE = ("<img src=x onerror=alert(1)>", "</script><b>&'\"")


@pytest.fixture(scope="module")
def bundles(
    bundle_path: Path, classifier: KanSpec, make_spec: MakeSpec, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("page")
    return {
        "shield": bundle_path,
        "plants": export(classifier, folder / "plants").path,
        "<b>'odd": export(make_spec((2, 3, 1), seed=3, columns=HOSTILE), folder / "odd").path,
    }


@contextlib.contextmanager
def listening(app: Any) -> Iterator[str]:
    """Serves an application from a thread, and gives its URL."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def serving(bundles: dict[str, Path], **options: Any) -> Iterator[httpx.Client]:
    with listening(asgi_app(bundles, **options)) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture(scope="module")
def client(bundles: dict[str, Path]) -> Iterator[httpx.Client]:
    with serving(bundles) as client:
        yield client


def ask(client: httpx.Client, name: str, rows: list[list[float]]) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(rows), len(rows[0])], "data": rows}
    assert client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]}).status_code in (200, 400)


# --- the file


class Parsed(HTMLParser):
    """The tags of a page, with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_is_served(client: httpx.Client) -> None:
    answer = client.get("/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.text.startswith("<!doctype html>")


def test_its_policy_admits_its_own_script_and_style_and_nothing_else(client: httpx.Client) -> None:
    policy = dict(part.split(maxsplit=1) for part in client.get("/").headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy["script-src"])
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy["style-src"])


def test_it_needs_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/").text
    tags = Parsed(page).tags
    for tag, attributes in tags:
        assert tag not in ("iframe", "img", "object", "embed", "base")
        for name in ("src", "href", "action", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert [tag for tag, _ in tags].count("script") == 1
    assert not re.search(r"@import|url\(", page)
    assert set(re.findall(r"\w+://[^\s'\"]+", page)) == {"http://www.w3.org/2000/svg"}  # a name, never asked for


def test_it_writes_no_markup_of_others(client: httpx.Client) -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", client.get("/").text)


# --- the status


def test_status_says_what_is_served(client: httpx.Client) -> None:
    status = client.get("/status").json()
    assert status["server"] == {"version": __version__, "ready": True}
    assert [model["name"] for model in status["models"]] == ["shield", "plants", "<b>'odd"]
    shield, plants, _ = status["models"]
    assert (shield["version"], shield["ready"], shield["backend"]) == ("1", True, "onnxruntime-cpu")
    assert (shield["widths"], shield["columns"], shield["outputs"]) == (
        [3, 5, 2],
        ["width", "height", "depth"],
        ["mass", "cost"],
    )
    assert (plants["task"], plants["target"], plants["outputs"]) == ("classification", "kind", ["fern", "moss", "oak"])
    assert plants["columns"] == ["x0", "x1", "x2", "x3"]


def test_status_gives_the_domain(client: httpx.Client, spec: KanSpec) -> None:
    domain = client.get("/status").json()["models"][0]["domain"]
    np.testing.assert_allclose(domain, np.array(spec.intervals, np.float64))


def test_status_counts(bundles: dict[str, Path]) -> None:
    with serving({"shield": bundles["shield"]}) as client:
        ask(client, "shield", [[0.1, 0.2, 0.3], [0.1, 99.0, 0.3]])
        ask(client, "shield", [[0.1, -99.0, 99.0]])
        ask(client, "shield", [[0.1, 0.2]])
        (model,) = client.get("/status").json()["models"]
    assert (model["requests"], model["rows"], model["batches"], model["failures"]) == (2, 3, 2, {"OTHER": 1})
    assert (model["outside"], model["nonfinite"]) == ([0, 2, 1], [0, 0, 0])
    assert sum(model["latency"]["counts"]) == 2
    assert len(model["latency"]["counts"]) == len(model["latency"]["bounds"]) + 1


def test_status_before_any_request(bundles: dict[str, Path]) -> None:
    with serving({"shield": bundles["shield"]}) as client:
        (model,) = client.get("/status").json()["models"]
    assert (model["requests"], model["outside"], sum(model["latency"]["counts"])) == (0, [0, 0, 0], 0)


def test_status_counts_all_versions_together(copied: Path, make_spec: MakeSpec) -> None:
    with serving({"shield": copied}, poll_seconds=3600) as client:
        ask(client, "shield", [[0.1, 99.0, 0.3]])
        export(make_spec((3, 5, 2), seed=9, columns=("width", "height", "depth")), copied)
        assert client.post("/v2/repository/models/shield/load").status_code == 200
        ask(client, "shield", [[0.1, 99.0, 0.3]] * 2)
        (model,) = client.get("/status").json()["models"]
    assert (model["version"], model["requests"], model["rows"]) == ("2", 2, 3)
    assert (model["outside"], model["reloads"]) == ([0, 3, 0], {"success": 1, "failure": 0})


def test_with_keys_the_page_is_open_and_the_status_is_not(bundles: dict[str, Path]) -> None:
    with serving(bundles, api_keys=["secret"]) as client:
        assert client.get("/").status_code == 200
        assert client.get("/status").status_code == 401
        assert client.get("/status", headers={"authorization": "Bearer secret"}).status_code == 200


# --- in a browser


@pytest.fixture(scope="module")
def url(bundles: dict[str, Path]) -> Iterator[str]:
    with listening(asgi_app(bundles)) as url:
        yield url


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    if chromium.PATH is None:
        pytest.skip("there is no Chromium here")
    with chromium.open_browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


def shown(page: chromium.Page, url: str) -> None:
    """Opens a page and waits for what its server says."""
    page.go(url)
    page.wait_for("location.href != 'about:blank' && document.querySelector('#name')?.textContent")


@pytest.mark.slow
def test_it_shows_the_models_without_a_complaint(page: chromium.Page, url: str) -> None:
    shown(page, url)
    assert page.text("#state") == "Ready"
    assert page.text("#name") == "shield"
    assert page.text("#facts").split("\n")[:2] == ["Network", "3 → 5 → 2"]
    assert page.run("[...document.querySelectorAll('nav a')].map(link => link.title)") == [
        "shield",
        "plants",
        "<b>'odd",
    ]
    assert page.complaints == []


@pytest.mark.slow
def test_its_form_answers_what_the_network_does(page: chromium.Page, url: str, spec: KanSpec) -> None:
    shown(page, url)
    row = [0.125, 0.5, 0.75]
    for index, value in enumerate(row):
        page.fill(f"#input-{index}", str(value))
    page.click("#try button.main")
    page.wait_for("document.querySelector('#answer .value')")
    names = page.run("[...document.querySelectorAll('#answer dt')].map(each => each.textContent)")
    values = page.run("[...document.querySelectorAll('#answer .value')].map(each => each.textContent)")
    assert names == ["mass", "cost"]
    answer = [float(value.replace("−", "-")) for value in values]
    np.testing.assert_allclose(answer, spec.evaluate(np.array([row]))[0], atol=1e-5)
    assert page.complaints == []


@pytest.mark.slow
def test_it_ranks_classes_by_probability(page: chromium.Page, url: str, classifier: KanSpec) -> None:
    shown(page, f"{url}#plants")
    row = [0.1, 0.9, 0.4, 1.2]
    for index, value in enumerate(row):
        page.fill(f"#input-{index}", str(value))
    page.click("#try button.main")
    page.wait_for("document.querySelector('#answer .best')")
    logits = classifier.evaluate(np.array([row]))[0]
    probabilities = np.exp(logits) / np.exp(logits).sum()
    expected = sorted(zip(probabilities, ("fern", "moss", "oak"), strict=True), reverse=True)
    rows = page.run("[...document.querySelectorAll('#answer .row')].map(each => each.textContent)")
    assert rows == [f"{label}{100 * probability:.1f} %" for probability, label in expected]


@pytest.mark.slow
def test_it_begins_in_the_middle_of_the_domain_and_warns_outside(page: chromium.Page, url: str, spec: KanSpec) -> None:
    shown(page, url)
    low, high = spec.intervals[0] or (0.0, 0.0)
    assert float(page.run("document.querySelector('#input-0').value")) == pytest.approx((low + high) / 2, rel=1e-3)
    assert page.run("document.querySelectorAll('.outside').length") == 0
    page.fill("#input-0", "1e6")
    assert page.text("#hint-0").startswith("outside: above ")
    page.click("#try button.main")
    page.wait_for("document.querySelector('#answer .notice')")
    assert page.text("#answer .notice").startswith("1 value outside the domain")


@pytest.mark.slow
def test_its_counters_follow(page: chromium.Page, bundles: dict[str, Path]) -> None:
    with listening(asgi_app({"shield": bundles["shield"]})) as url:
        shown(page, url)
        assert page.text("#tiles").split("\n")[:2] == ["Requests", "0"]
        page.fill("#input-1", "1e6")
        page.click("#try button.main")
        page.wait_for("document.querySelector('#tiles .big').textContent == '1'")
        cells = page.run("[...document.querySelectorAll('#inputs tr:nth-child(2) td')].map(each => each.textContent)")
        assert (cells[0], cells[2:]) == ("height", ["1", "100 %", "0"])
        page.wait_for("document.querySelector('#bars li')")


@pytest.mark.slow
def test_names_stay_text(page: chromium.Page, url: str) -> None:
    shown(page, f"{url}#%3Cb%3E'odd")
    assert page.text("#name") == "<b>'odd"
    assert page.run("[...document.querySelectorAll('.field label')].map(each => each.textContent)") == list(HOSTILE)
    assert page.run("document.querySelectorAll('img, main b').length") == 0
    page.click("#try button.main")
    page.wait_for("document.querySelector('#answer .value')")
    assert "/v2/models/%3Cb%3E%27odd/infer " in page.text("#curl")
    assert page.complaints == []


@pytest.mark.slow
def test_it_works_under_a_prefix(page: chromium.Page, bundles: dict[str, Path]) -> None:
    outer = Starlette(routes=[Mount("/kan", asgi_app({"shield": bundles["shield"]}))])
    with listening(outer) as url:
        shown(page, f"{url}kan")
        page.click("#try button.main")
        page.wait_for("document.querySelector('#answer .value')")
        assert f"{url}kan/v2/models/shield/infer " in page.text("#curl")


@pytest.mark.slow
def test_it_asks_for_a_key_and_takes_it(page: chromium.Page, bundles: dict[str, Path]) -> None:
    with listening(asgi_app({"shield": bundles["shield"]}, api_keys=["secret"])) as url:
        page.go(url)
        page.wait_for("document.querySelector('#key')?.hidden === false")
        page.fill("#secret", "wrong")
        page.click("#key button")
        page.wait_for("document.querySelector('#refused').textContent")
        page.fill("#secret", "secret")
        page.click("#key button")
        page.wait_for("document.querySelector('#name').textContent == 'shield'")
        page.click("#try button.main")
        page.wait_for("document.querySelector('#answer .value')")
        assert "secret" not in page.run("document.body.innerText")


@pytest.mark.slow
def test_it_says_that_a_bundle_is_being_opened(page: chromium.Page, bundles: dict[str, Path]) -> None:
    with listening(build_app(Store({"shield": bundles["shield"]}), Metrics())) as url:
        shown(page, url)
        assert page.text("main").split("\n")[0] == "shield"
        assert "Its bundle is being opened" in page.text("main")
        assert page.text("#state") == "Not ready"
        assert page.complaints == []


@pytest.mark.slow
def test_it_says_when_the_server_is_gone(page: chromium.Page, bundles: dict[str, Path]) -> None:
    with listening(asgi_app({"shield": bundles["shield"]})) as url:
        shown(page, url)
    page.wait_for("document.querySelector('#lost').hidden === false")
    assert page.text("#lost").startswith("The server cannot be reached")
    assert page.text("#state") == "Not reachable"
