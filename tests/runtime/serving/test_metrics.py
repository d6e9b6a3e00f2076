"""What is counted: Prometheus's text, and the protocol's statistics."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving_tools import Network, Rows, as_json, some_rows
from starlette.exceptions import HTTPException

from relukan_deploy.errors import DeadlineExceeded, InputError, QueueFull, RelukanError, ServiceClosed
from relukan_deploy.runtime.serving import asgi_app
from relukan_deploy.runtime.serving.metrics import Metrics, exposition, shared_registry
from relukan_deploy.spec import KanSpec

MakeSpec = Callable[..., KanSpec]


class Client:
    """A server of one model, shield, with three inputs."""

    def __init__(self, path: Path, **options: Any) -> None:
        self._app = asgi_app({"shield": path}, poll_seconds=1e6, **options)

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())

    def infer(self, x: Rows, **more: Any) -> int:
        return self("POST", "/v2/models/shield/infer", json=as_json(x, **more)).status_code

    def text(self) -> str:
        response = self("GET", "/metrics")
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        return response.text

    def count(self, name: str, **labels: str) -> float:
        """One sample, as the text has it."""
        (value,) = (
            float(value)
            for told, value in re.findall(rf"^{name}{{(.*)}} (\S+)$", self.text(), re.MULTILINE)
            if all(f'{label}="{of_label}"' in told.split(",") for label, of_label in labels.items())
        )
        return value

    def statistics(self, path: str = "/v2/models/shield/stats") -> dict[str, Any]:
        (statistics,) = self("GET", path).json()["model_stats"]
        assert (statistics["name"], statistics["version"]) == ("shield", "1")
        of_model: dict[str, Any] = statistics
        return of_model


@pytest.fixture
def client(bundle_path: Path) -> Client:
    return Client(bundle_path)


def test_answers_are_counted_under_tritons_names(client: Client) -> None:
    for rows in (1, 4):
        assert client.infer(some_rows(rows, 3)) == 200
    shield = {"model": "shield", "version": "1"}
    assert client.count("nv_inference_request_success", **shield) == 2
    assert client.count("nv_inference_count", **shield) == 5
    assert client.count("nv_inference_exec_count", **shield) == 2
    assert client.count("nv_inference_pending_request_count", **shield) == 0
    queue = client.count("nv_inference_queue_duration_us", **shield)
    compute = client.count("nv_inference_compute_infer_duration_us", **shield)
    assert 0 < queue + compute < client.count("nv_inference_request_duration_us", **shield)


def test_tritons_names_have_the_types_that_triton_gives_them(client: Client) -> None:
    lines = client.text().splitlines()
    for name in ("request_success", "request_failure", "count", "exec_count", "request_duration_us"):
        assert f"# TYPE nv_inference_{name} counter" in lines
    assert "# TYPE nv_inference_pending_request_count gauge" in lines
    assert not [line for line in lines if "_created" in line]


def test_what_has_not_happened_is_zero(client: Client) -> None:
    assert client.count("nv_inference_request_success") == 0
    assert client.count("relukan_reloads_total", outcome="failure") == 0
    assert client.count("relukan_rows_outside_domain_total", feature="depth") == 0


def test_durations_fall_into_buckets_of_less_than_a_millisecond(client: Client) -> None:
    assert client.infer(some_rows(1, 3)) == 200
    assert client.count("relukan_request_duration_seconds_count", model="shield") == 1
    assert client.count("relukan_request_duration_seconds_bucket", model="shield", le="+Inf") == 1
    assert client.count("relukan_request_duration_seconds_bucket", model="shield", le="0.0001") <= 1


def test_values_outside_the_domain_are_counted_by_the_name_of_their_column(client: Client) -> None:
    x = np.full((4, 3), 0.3, np.float32)
    x[1:3, 1] = 99
    assert client.infer(x) == 200
    counts = {name: client.count("relukan_rows_outside_domain_total", feature=name) for name in ("width", "height")}
    assert counts == {"width": 0, "height": 2}


def test_values_that_are_not_finite_are_counted(bundle_path: Path) -> None:
    client = Client(bundle_path, nonfinite="raise")
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
    header = httpx.Request("POST", "http://here", json={"inputs": [tensor]}).content
    raw = np.array([[0.3, 0.3, np.nan]], np.float32).tobytes()
    headers = {"Inference-Header-Content-Length": str(len(header))}
    response = client("POST", "/v2/models/shield/infer", content=header + raw, headers=headers)
    assert response.status_code == 400
    assert client.count("relukan_nonfinite_values_total", feature="depth") == 1
    assert client.count("relukan_nonfinite_values_total", feature="width") == 0
    assert client.count("nv_inference_request_failure", reason="OTHER") == 1


def test_failures_are_counted_by_their_reason(client: Client) -> None:
    assert client.infer(some_rows(1, 4)) == 400
    assert client.count("nv_inference_request_failure", model="shield", version="1", reason="OTHER") == 1
    assert client.count("nv_inference_request_success") == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (QueueFull(), "REJECTED"),
        (DeadlineExceeded(), "REJECTED"),
        (asyncio.CancelledError(), "CANCELED"),
        (InputError(), "OTHER"),
        (HTTPException(413), "OTHER"),
        (HTTPException(500), "BACKEND"),
        (RelukanError(), "BACKEND"),
        (ServiceClosed(), "BACKEND"),
        (RuntimeError(), "BACKEND"),
    ],
)
def test_a_failure_has_tritons_reason(error: BaseException, reason: str) -> None:
    metrics = Metrics()
    metrics.failed("shield", "1", error)
    assert metrics.totals() == {("shield", "1"): {"nv_inference_request_failure": 1}}
    assert f'reason="{reason}"' in metrics.exposition().decode()


@pytest.mark.parametrize("path", ["/v2/models/shield/stats", "/v2/models/shield/versions/1/stats", "/v2/models/stats"])
def test_statistics_are_the_same_numbers(client: Client, path: str) -> None:
    for rows in (2, 3):
        assert client.infer(some_rows(rows, 3)) == 200
    assert client.infer(some_rows(1, 4)) == 400
    told = client.statistics(path)
    assert (told["inference_count"], told["execution_count"]) == (5, 2)
    stats = told["inference_stats"]
    assert {name: stats[name]["count"] for name in ("success", "fail", "queue", "compute_infer")} == {
        "success": 2,
        "fail": 1,
        "queue": 2,
        "compute_infer": 2,
    }
    assert 0 < stats["compute_infer"]["ns"] < stats["success"]["ns"]


def test_a_name_like_a_counters_stays_as_it_is() -> None:
    metrics = Metrics()
    metrics.answered("nv_model_total", "1", 0.001)
    assert 'nv_inference_request_success{model="nv_model_total",version="1"} 1.0' in metrics.exposition().decode()


def test_reloads_and_versions_are_counted(tmp_path: Path, make_spec: MakeSpec) -> None:
    network = Network(tmp_path / "shield", make_spec)
    client = Client(network.path)
    assert client.infer(some_rows(2, 3)) == 200
    network.export()
    assert client("POST", "/v2/repository/models/shield/load").status_code == 200
    assert client.infer(some_rows(3, 3)) == 200
    (network.path / "model.onnx").write_bytes(b"damaged")
    assert client("POST", "/v2/repository/models/shield/load").status_code == 400
    assert client.count("relukan_model_version", model="shield") == 2
    assert client.count("relukan_reloads_total", outcome="success") == 1
    assert client.count("relukan_reloads_total", outcome="failure") == 1
    assert [client.count("nv_inference_count", version=version) for version in ("1", "2")] == [2, 3]
    assert [client.count("nv_inference_request_success", version=version) for version in ("1", "2")] == [1, 1]


def test_a_name_may_hold_anything_that_a_label_may(bundle_path: Path) -> None:
    app = asgi_app({'a"b\\c ä': bundle_path}, poll_seconds=1e6)
    transport = httpx.ASGITransport(app)

    async def ask() -> str:
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            assert (await client.get("/v2/models/a%22b%5Cc%20%C3%A4/ready")).status_code == 200
            return (await client.get("/metrics")).text

    families = text_string_to_metric_families(asyncio.run(ask()))
    names = {sample.labels.get("model") for family in families for sample in family.samples}
    assert names == {'a"b\\c ä'}


def test_a_file_that_a_worker_has_only_just_made_does_not_stop_the_others_from_being_read(tmp_path: Path) -> None:
    (tmp_path / "counter_123.db").touch()
    assert exposition(shared_registry(str(tmp_path))) == b""
