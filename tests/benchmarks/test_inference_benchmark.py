"""The benchmark of inference on a CPU: what it divides by what, and a small run of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks import inference_cpu
from benchmarks._ratios import run_ratios, target
from relukan_deploy.bench.results import Contender
from relukan_deploy.bench.stored import read
from relukan_deploy.bench.timing import Turn, summarise

GRAPH = "this network: onnxruntime-cpu, graph alone"


def test_a_ratio_is_the_median_over_the_rounds_of_each_run() -> None:
    pykan = summarise([[[2.0], [30.0], [8.0]], [[5.0], [5.0], [5.0]]])
    graph = summarise([[[1.0], [10.0], [2.0]], [[1.0], [1.0], [50.0]]])
    assert run_ratios(pykan, graph) == [3.0, 5.0]


def test_targets_are_those_of_peers_at_their_best_known_way() -> None:
    wide, narrow = (4, 64, 64, 1), (2, 5, 1)
    assert target(Contender("pykan", narrow, "torch"), 64) == 30
    assert target(Contender("pykan", narrow, "torch.compile"), 64) is None
    assert target(Contender("relu-kan", wide, "torch"), 1) == 3
    assert target(Contender("relu-kan", narrow, "torch"), 1) is None
    exported = Contender("efficient-kan", wide, "onnxruntime-cpu", data="bound")
    assert [target(exported, batch) for batch in (1, 64, 1024)] == [4, None, 15]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_cpu, "NETWORKS", ((2, 3, 1),))
    monkeypatch.setattr(inference_cpu, "BATCHES", (1, 128))
    monkeypatch.setattr(inference_cpu, "ENGINES", ("torch",))
    monkeypatch.setattr(inference_cpu, "PEERS", ("mlp", "relu-kan"))


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_every_network_is_divided_by_the_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inference_cpu.main(["--quick", "--json", str(tmp_path / "found.json")])
    printed = capsys.readouterr().out
    results = read(tmp_path / "found.json")
    names = {series.contender.name for series in results.series}
    assert names == {
        "this network: onnxruntime-cpu",
        GRAPH,
        *(f"{name}: torch" for name in ("this network", "relu-kan", "mlp, same widths", "mlp, same parameters")),
    }
    for series in results.series:
        assert [point.batch for point in series.points] == [1, 128]
        assert all(point.timing and len(point.timing.rounds) == 2 for point in series.points)
    assert not results.skipped
    for title in ("[2, 3, 1]", "batch 128", "mlp, same parameters: torch"):
        assert title in printed


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_alone_are_the_graph_and_pykan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kan")
    monkeypatch.setattr(inference_cpu, "BATCHES", (64,))
    inference_cpu.main(["--quick", "--isolate", "--json", str(tmp_path / "found.json")])
    results = read(tmp_path / "found.json")
    assert [series.contender.name for series in results.series] == [GRAPH, "pykan: torch"]
    for series in results.series:
        (point,) = series.points
        assert (point.batch, point.skipped) == (64, None)
    assert not results.skipped


def test_each_batch_size_has_the_network_that_was_exported_for_it() -> None:
    asked: list[int] = []

    class Known:
        contender = Contender("this network", (2, 3, 1), "onnxruntime-cpu")
        parameters = 5

        def __init__(self, batch: int) -> None:
            self.batch = batch
            self.difference: float | None = batch * 1e-9

        def bytes_for(self, batch: int) -> int:
            return self.batch

        def prepare(self, batch: int) -> Turn:
            asked.append(self.batch)
            return lambda count: [1.0] * count

        def split(self) -> None:
            return None

        def release(self) -> None:
            asked.append(-self.batch)

        def close(self) -> None:
            asked.append(0)

    subject = inference_cpu.ForEachBatch({batch: Known(batch) for batch in (1, 64)})
    assert (subject.bytes_for(64), subject.difference) == (64, 64e-9)
    subject.prepare(64)
    subject.release()
    subject.prepare(1)
    subject.close()
    assert asked == [64, -64, 1, 0, 0]
