"""What the real Triton makes of a repository that an export wrote."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks._servers import MISSING_TRITON, Server, find_triton, tritonserver
from relukan_deploy.api import export
from relukan_deploy.exporters.to_triton import TritonOptions, to_triton
from relukan_deploy.spec import KanSpec

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_triton() is None, reason=MISSING_TRITON)]

MakeSpec = Callable[..., KanSpec]
STRICT = "--disable-auto-complete-config"  # what the export left out would be missing


@pytest.fixture(scope="module")
def network(make_spec: MakeSpec) -> KanSpec:
    return make_spec((5, 4, 2), seed=2)


@pytest.fixture(scope="module")
def server(network: KanSpec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Triton with the network in half precision, and in single with two instances, which wait for company."""
    folder = tmp_path_factory.mktemp("repository")
    half = export(network, folder / "half", layout="batch-major", precision="fp16", tolerance=1.0)
    to_triton(half, TritonOptions(folder / "models"), batch=(1, 8, 32))
    single = export(network, folder / "single", layout="batch-major")
    to_triton(single, TritonOptions(folder / "models", max_delay=10, instances=2), batch=(1, 8, 32))
    with tritonserver(folder / "models", STRICT) as started:
        yield started


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with tritonclient.http.InferenceServerClient(server.http, concurrency=8) as connected:
        yield connected


def batches(client: Any, model: str) -> dict[int, int]:
    """How often a batch of each size was run."""
    (stats,) = client.get_inference_statistics(model)["model_stats"]
    return {each["batch_size"]: each["compute_infer"]["count"] for each in stats["batch_stats"]}


def test_golden_batches_were_run_before_it_was_ready(client: Any) -> None:
    assert {1, 8, 32} <= set(batches(client, "half"))


def test_half_precision_is_what_clients_send_and_get(client: Any, network: KanSpec) -> None:
    x = np.random.default_rng(0).uniform(-0.5, 1.0, (6, 5)).astype(np.float16)
    tensor = tritonclient.http.InferInput("x", [6, 5], "FP16").set_data_from_numpy(x)
    y = client.infer("half", [tensor]).as_numpy("y")
    assert y.dtype == np.float16
    assert np.abs(y - network.evaluate(x)).max() < 5e-2


def test_requests_wait_for_the_preferred_batch(client: Any, network: KanSpec) -> None:
    api = tritonclient.http
    x = np.random.default_rng(1).uniform(-0.5, 1.0, (8, 5)).astype(np.float32)
    before = batches(client, "single")[8]
    tensors = [api.InferInput("x", [1, 5], "FP32").set_data_from_numpy(row[np.newaxis]) for row in x]
    waiting = [client.async_infer("single", [tensor]) for tensor in tensors]
    y = np.concatenate([each.get_result().as_numpy("y") for each in waiting])
    assert np.abs(y - network.evaluate(x)).max() < 1e-5
    while batches(client, "single")[8] == before:  # counted after it was answered
        time.sleep(0.05)
    assert batches(client, "single")[8] == before + 1


def test_a_misspelt_field_is_refused(network: KanSpec, tmp_path: Path) -> None:
    """The other tests rely on it: the parser here is Triton's own."""
    bundle = export(network, tmp_path / "kan", layout="batch-major")
    config = to_triton(bundle, TritonOptions(tmp_path / "models")).parent / "config.pbtxt"
    config.write_text(config.read_text().replace("preferred_batch_size", "prefered_batch_size"))
    with pytest.raises(RuntimeError, match="prefered_batch_size"), tritonserver(tmp_path / "models", STRICT):
        pass
